"""Floats within an absolute error bound, in blocks of bit planes, on the device: see ref.py for the bytes.

Works on torch tensors, on CUDA or, with TRITON_INTERPRET=1, on the CPU. A program takes a chunk. Encoding goes over it
twice, first for its size. Each plane of a block becomes a word, its bits moved to their places by the number of those
before them; words go into the stream, which starts as zeros, by atomic OR, since neighbours share bytes. Decoding takes
the blocks of a chunk one after another, and reads each bit where that number says.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trimtab.kernels.blocks.ref import (
    BLOCK,
    CHUNK,
    DITHER_BITS,
    DITHER_FACTORS,
    DITHER_SHIFT,
    LEAST,
    PLAIN,
    ROUNDS,
)

__all__ = ["BLOCK", "CHUNK", "ROUNDS", "decode_tensor", "encode_tensor"]

_BLOCK, _BLOCKS, _ROUNDS = tl.constexpr(BLOCK), tl.constexpr(CHUNK // BLOCK), tl.constexpr(ROUNDS)
_CODE_BITS, _SIGNED = tl.constexpr(22), tl.constexpr(32)
_LIMIT = tl.constexpr(float((1 << 22) - 1))
_ZERO, _MIXED, _FULL, _KEPT = (tl.constexpr(kind) for kind in range(4))
_FIRST, _SECOND = (tl.constexpr(factor - 2**32) for factor in DITHER_FACTORS)
_MIX, _MIXED_BITS = tl.constexpr(DITHER_SHIFT), tl.constexpr((1 << 32 - DITHER_SHIFT) - 1)
_DROP, _DITHER_BITS = tl.constexpr(32 - DITHER_BITS), tl.constexpr((1 << DITHER_BITS) - 1)
_UNIT, _LEAST = tl.constexpr(2.0**-DITHER_BITS), tl.constexpr(LEAST)
_FLOAT32, _FLOAT16, _BFLOAT16 = (tl.constexpr(kind) for kind in range(3))
_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def encode_tensor(x: torch.Tensor, error: float, start: int = PLAIN) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sizes of chunks (int32), the chunks (uint8) and the sum of the squared errors (float64) of `x`.

    `x` (flat, contiguous) is float32, float16 or bfloat16, and `error` a number of that type. `start` is that of the
    dither.
    """
    words, kind = x.view(_word_type(x)), _KINDS[x.dtype]
    num_chunks = -(-x.numel() // CHUNK)
    sizes = torch.empty(num_chunks, dtype=torch.int32, device=x.device)
    squares = torch.empty(num_chunks, dtype=torch.float32, device=x.device)
    if not num_chunks:
        return sizes, sizes.to(torch.uint8), squares.to(torch.float64).sum()
    step = torch.tensor(error, dtype=torch.float32)
    settings = words, x.numel(), step.item(), (1 / (step + step)).item(), _as_int32(start)
    options = {"KIND": kind, "ITEM": x.element_size(), "DITHERS": start != PLAIN, "num_warps": 4}
    options["enable_fp_fusion"] = False
    with torch.cuda.device_of(x):
        _encode[(num_chunks,)](*settings, sizes, sizes, sizes, squares, WRITES=False, **options)
        ends = sizes.to(torch.int64).cumsum(0)
        num_bytes = int(ends[-1])
        stream = torch.zeros(num_bytes // 4 + 4, dtype=torch.int32, device=x.device)
        _encode[(num_chunks,)](*settings, sizes, ends, stream, squares, WRITES=True, **options)
    return sizes, stream.view(torch.uint8)[:num_bytes], squares.to(torch.float64).sum()


def decode_tensor(sizes: torch.Tensor, data: torch.Tensor, error: float, y: torch.Tensor, start: int = PLAIN) -> bool:
    """Fill `y` (flat, contiguous) from what `encode_tensor` returned; False where a chunk contradicts itself.

    The sizes have to add up to that of `data`, and be as many as `y` has chunks.
    """
    num_chunks = sizes.numel()
    if not num_chunks:
        return True
    ends = sizes.to(torch.int64).cumsum(0)
    good = torch.empty(num_chunks, dtype=torch.int32, device=y.device)
    with torch.cuda.device_of(y):
        _decode[(num_chunks,)](
            data, sizes, ends, y.view(_word_type(y)), y.numel(), float(error), _as_int32(start), good,
            KIND=_KINDS[y.dtype], ITEM=y.element_size(), DITHERS=start != PLAIN, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return bool(good.all())


def _word_type(x: torch.Tensor) -> torch.dtype:
    return torch.int32 if x.dtype == torch.float32 else torch.int16


def _as_int32(start: int) -> int:
    """Return the signed number with the same last 32 bits."""
    return (start + 2**31) % 2**32 - 2**31


@triton.jit
def _dither(numbers):
    """Return u of elements; `numbers` (int32) are their places from the start on."""
    d = numbers * _FIRST
    d = (d ^ ((d >> _MIX) & _MIXED_BITS)) * _SECOND
    return ((d >> _DROP) & _DITHER_BITS).to(tl.float32) * _UNIT


@triton.jit
def _widened(words, KIND: tl.constexpr):
    if KIND == _FLOAT32:
        x = words.to(tl.float32, bitcast=True)
    elif KIND == _FLOAT16:
        x = words.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        x = (words.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x


@triton.jit
def _bfloat16_bits(y):
    """Return positive float32 rounded to bfloat16, as the bits of float32."""
    bits = y.to(tl.int32, bitcast=True)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536


@triton.jit
def _rounded(y, KIND: tl.constexpr):
    if KIND == _FLOAT16:
        y = y.to(tl.float16).to(tl.float32)
    elif KIND == _BFLOAT16:
        y = _bfloat16_bits(y).to(tl.float32, bitcast=True)
    return y


@triton.jit
def _as_words(y, negative, KIND: tl.constexpr):
    """Return the bits of positive float32 in the dtype of the elements, with their signs."""
    if KIND == _FLOAT32:
        words = y.to(tl.int32, bitcast=True) | (negative << 31)
    elif KIND == _FLOAT16:
        words = (y.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) | (negative << 15)).to(tl.int16)
    else:
        words = ((_bfloat16_bits(y) >> 16) | (negative << 15)).to(tl.int16)
    return words


@triton.jit
def _append(stream, first_bit, place, bits, chosen, count):
    """Write, for each block, the bits of its chosen elements at `place`; return where they end."""
    rank = tl.cumsum(chosen, 1) - chosen
    word = tl.sum((bits & chosen).to(tl.int64) << rank.to(tl.int64), 1).to(tl.uint64, bitcast=True)
    at = first_bit + place
    shift = (at & 31).to(tl.uint64)
    target = stream + (at >> 5)
    low, middle = (word << shift) & 0xFFFFFFFF, (word >> (32 - shift)) & 0xFFFFFFFF
    high = (word >> 1) >> (63 - shift)
    tl.atomic_or(target, low.to(tl.uint32).to(tl.int32, bitcast=True), mask=low != 0)
    tl.atomic_or(target + 1, middle.to(tl.uint32).to(tl.int32, bitcast=True), mask=middle != 0)
    tl.atomic_or(target + 2, high.to(tl.uint32).to(tl.int32, bitcast=True), mask=high != 0)
    return place + count


@triton.jit
def _encode(
    words, num, error, inverse, start, sizes, ends, stream, squares,
    KIND: tl.constexpr, ITEM: tl.constexpr, DITHERS: tl.constexpr, WRITES: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    b, i = tl.arange(0, _BLOCKS), tl.arange(0, _BLOCK)
    element = b[:, None] * _BLOCK + i[None, :]
    left = tl.minimum(num - chunk * (_BLOCK * _BLOCKS), _BLOCK * _BLOCKS).to(tl.int32)
    raw = tl.load(words + chunk * (_BLOCK * _BLOCKS) + element, mask=element < left, other=0)
    x = _widened(raw, KIND)
    magnitude = tl.abs(x)
    scaled = magnitude * inverse
    if DITHERS:
        noise = _dither(start + chunk.to(tl.int32) * (_BLOCK * _BLOCKS) + element)
        scaled += noise
    scaled = tl.where(scaled < _LIMIT, scaled, _LIMIT)
    rest = scaled.to(tl.int32)
    steps = (rest + rest + 1).to(tl.float32)
    if DITHERS:
        steps = tl.maximum(steps - (noise + noise), _LEAST)
    y = _rounded(steps * error, KIND)
    miss = tl.abs(y - magnitude)
    some = (magnitude != 0).to(tl.int32)
    fits = miss <= error
    if DITHERS:
        fits = fits & (y > 0)
        if KIND == _FLOAT32:
            fits = fits & (miss < error)
    bad = tl.sum((some != 0).to(tl.int32) & (1 - fits.to(tl.int32)), 1)
    negative = (x < 0).to(tl.int32)
    n = tl.sum(some, 1)
    real = tl.minimum(tl.maximum(left - b * _BLOCK, 0), _BLOCK)
    plain = real * ITEM
    kind = tl.where(bad > 0, _KEPT, tl.where(n == 0, _ZERO, tl.where(n == _BLOCK, _FULL, _MIXED)))
    coded = ((kind == _MIXED) | (kind == _FULL)).to(tl.int32)
    signed = tl.max(tl.max(negative, 1) * coded, 0)

    length = tl.maximum((scaled.to(tl.int32, bitcast=True) >> 23) - 126, 0)
    twice = tl.maximum(2 * n, 1)
    mean = (2 * tl.sum(rest * some, 1) + n) // twice
    suits = tl.maximum((mean.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127, 0)
    suits = tl.minimum(suits, (2 * tl.sum(length * some, 1) + n) // twice)
    num_coded = tl.sum(coded, 0)
    r = (2 * tl.sum(suits * coded, 0) + num_coded) // tl.maximum(2 * num_coded, 1)

    q = rest >> r
    left_over = some * (q >= _ROUNDS).to(tl.int32)
    num_over = tl.sum(left_over, 1)
    bits = n * (signed + r) + tl.sum(some * tl.minimum(q + 1, _ROUNDS), 1) + num_over * (_CODE_BITS - r)
    bits += tl.where(kind == _MIXED, _BLOCK, 0)
    kind = tl.where((coded != 0) & (bits >= 8 * plain), _KEPT, kind)
    coded = ((kind == _MIXED) | (kind == _FULL)).to(tl.int32)
    bits *= coded
    kept = tl.where(kind == _KEPT, plain, 0)
    head = 1 + ((left + _BLOCK - 1) // _BLOCK + 3) // 4
    bit_bytes = (tl.sum(bits, 0) + 7) // 8
    if not WRITES:
        size = tl.where(tl.max(kind, 0) > 0, head + bit_bytes + tl.sum(kept, 0), 0)
        tl.store(sizes + chunk, size)
        counted = some * coded[:, None]
        tl.store(squares + chunk, tl.sum(tl.sum(tl.where(counted != 0, miss * miss, 0.0), 1), 0))
    else:
        begin = tl.load(ends + chunk) - tl.load(sizes + chunk)
        if tl.max(kind, 0) > 0:
            out = stream.to(tl.pointer_type(tl.uint8), bitcast=True) + begin
            tl.store(out, (r + signed * _SIGNED).to(tl.uint8))
            fours = tl.sum(tl.reshape(kind << (2 * (b % 4)), [_BLOCKS // 4, 4]), 1)
            four = tl.arange(0, _BLOCKS // 4)
            tl.store(out + 1 + four, fours.to(tl.uint8), mask=four < head - 1)
            chosen = some * coded[:, None]
            count = n * coded
            first_bit = 8 * (begin + head)
            place = (tl.cumsum(bits, 0) - bits).to(tl.int64)
            every = tl.full([_BLOCKS, _BLOCK], 1, tl.int32) * tl.where(kind == _MIXED, 1, 0)[:, None]
            place = _append(stream, first_bit, place, some, every, tl.where(kind == _MIXED, _BLOCK, 0))
            if signed != 0:
                place = _append(stream, first_bit, place, negative, chosen, count)
            for plane in range(r):
                place = _append(stream, first_bit, place, rest >> plane, chosen, count)
            alive = chosen
            num_rounds = tl.minimum(tl.max(tl.max(alive * (q + 1), 1), 0), _ROUNDS)
            for j in range(num_rounds):
                more = alive * (q > j).to(tl.int32)
                place = _append(stream, first_bit, place, more, alive, tl.sum(alive, 1))
                alive = more
            left_over = left_over * coded[:, None]
            if tl.max(tl.max(left_over, 1), 0) > 0:
                for plane in range(r, _CODE_BITS):
                    place = _append(stream, first_bit, place, rest >> plane, left_over, tl.sum(left_over, 1))
            target = out + head + bit_bytes + (tl.cumsum(kept, 0) - kept)[:, None] + i[None, :] * ITEM
            for k in tl.static_range(ITEM):
                byte = (raw.to(tl.int32) >> (8 * k)) & 255
                tl.store(target + k, byte.to(tl.uint8), mask=(kind == _KEPT)[:, None] & (element < left))


@triton.jit
def _read(chunk_at, place, end, chosen):
    """Return the bits of the chosen elements at `place`, and where they end; what is behind `end` is not set."""
    at = place + tl.cumsum(chosen, 0) - chosen
    byte = tl.load(chunk_at + (at >> 3), mask=(chosen != 0) & (at < end), other=0).to(tl.int32)
    return (byte >> (at & 7)) & chosen, place + tl.sum(chosen, 0)


@triton.jit
def _decode(
    data, sizes, ends, words, num, error, start, good, KIND: tl.constexpr, ITEM: tl.constexpr, DITHERS: tl.constexpr
):
    chunk = tl.program_id(0).to(tl.int64)
    left = tl.minimum(num - chunk * (_BLOCK * _BLOCKS), _BLOCK * _BLOCKS).to(tl.int32)
    size = tl.load(sizes + chunk).to(tl.int32)
    chunk_at = data + (tl.load(ends + chunk) - size)
    words += chunk * (_BLOCK * _BLOCKS)
    num_blocks = (left + _BLOCK - 1) // _BLOCK
    head = 1 + (num_blocks + 3) // 4
    b, i = tl.arange(0, _BLOCKS), tl.arange(0, _BLOCK)
    first = tl.load(chunk_at, mask=size > 0, other=0).to(tl.int32)
    fine = (size == 0) | ((size >= head) & (size <= head + left * ITEM))
    fours = tl.load(chunk_at + 1 + b // 4, mask=(b // 4 < head - 1) & (size > 0) & fine, other=0).to(tl.int32)
    kinds = (fours >> (2 * (b % 4))) & 3
    kept = tl.where(kinds == _KEPT, tl.minimum(tl.maximum(left - b * _BLOCK, 0), _BLOCK) * ITEM, 0)
    r, signed = first % _SIGNED, first // _SIGNED
    end = 8 * (size - tl.sum(kept, 0))
    fine &= (size == 0) | ((first < 2 * _SIGNED) & (r <= _CODE_BITS) & (end >= 8 * head))
    fine &= tl.max(tl.where(b >= num_blocks, kinds, 0), 0) == 0
    place = 8 * head
    kept_at = size - tl.sum(kept, 0)
    if not fine:
        r, num_blocks = 0, 0
    for block in range(num_blocks):
        kind = tl.sum(tl.where(b == block, kinds, 0), 0)
        every = tl.full([_BLOCK], 1, tl.int32)
        mask, negative, rest, q = every * 0, every * 0, every * 0, every * 0
        if (kind == _MIXED) | (kind == _FULL):
            mask = every
            if kind == _MIXED:
                mask, place = _read(chunk_at, place, end, every)
            if signed != 0:
                negative, place = _read(chunk_at, place, end, mask)
            for plane in range(r):
                bits, place = _read(chunk_at, place, end, mask)
                rest |= bits << plane
            alive = mask
            j = 0
            while (tl.sum(alive, 0) > 0) & (j < _ROUNDS):
                alive, place = _read(chunk_at, place, end, alive)
                q += alive
                j += 1
            rest += tl.where(alive != 0, 0, q << r)
            if tl.sum(alive, 0) > 0:
                for plane in range(r, _CODE_BITS):
                    bits, place = _read(chunk_at, place, end, alive)
                    rest |= bits << plane
        element = block * _BLOCK + i
        steps = (rest + rest + 1).to(tl.float32)
        if DITHERS:
            noise = _dither(start + chunk.to(tl.int32) * (_BLOCK * _BLOCKS) + element)
            steps = tl.maximum(steps - (noise + noise), _LEAST)
        y = tl.where(mask != 0, steps * error, 0.0)
        result = _as_words(y, negative, KIND)
        is_kept = kind == _KEPT
        raw = tl.full([_BLOCK], 0, tl.int32)
        for k in tl.static_range(ITEM):
            byte = tl.load(chunk_at + kept_at + i * ITEM + k, mask=is_kept & (element < left), other=0)
            raw |= byte.to(tl.int32) << (8 * k)
        tl.store(words + element, tl.where(is_kept, raw.to(result.dtype), result), mask=element < left)
        kept_at += tl.sum(tl.where(b == block, kept, 0), 0)
    fine &= (size == 0) | ((place + 7) // 8 == end // 8)
    tl.store(good + chunk, fine.to(tl.int32))
