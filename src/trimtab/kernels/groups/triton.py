"""Floats as packed integers of 2 to 8 bits with one scale a group, on the device: see ref.py for the bytes.

Works on torch tensors, on CUDA or, with TRITON_INTERPRET=1, on the CPU. A program takes a tile of whole groups; the
last group, which may be short, gets a launch of its own. Every launch switches the fusing of products and sums off,
since all machines must round alike. Scales are read and written byte by byte: payloads may start anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import triton
import triton.language as tl

from trimtab.kernels.groups.ref import SMALLEST, padded, payload_bytes
from trimtab.kernels.hadamard.triton import _butterflies

__all__ = ["decode", "decode_add", "decode_sum", "decode_sum_encode", "encode", "encode_difference", "payload_bytes"]

_TILE = 1024  # elements of a program, where groups are no longer
_SMALLEST = tl.constexpr(SMALLEST)
_INFINITY, _NAN = tl.constexpr(0x7F800000), tl.constexpr(0x7FC00000)
_ROUND = tl.constexpr(1.5 * 2.0**23)  # adding it leaves the nearest integer, ties to even, in the lowest bits


def encode(x: torch.Tensor, payload: torch.Tensor, bits: int, group: int, order: int, key: int | None) -> None:
    """Fill `payload` (uint8) with what stands for `x` (flat float32 or bfloat16)."""
    _encode_from(x, None, payload, 0, x.numel(), bits, group, order, key)


def decode(payload: torch.Tensor, y: torch.Tensor, bits: int, group: int, order: int) -> None:
    """Fill `y` (flat float32 or bfloat16) with what a payload of as many elements stands for."""
    decode_sum(payload[None], y, bits, group, order, 1.0)


def decode_sum(payloads: torch.Tensor, y: torch.Tensor, bits: int, group: int, order: int, scale: float) -> None:
    """Fill `y` with `scale` times the sum of what the rows of `payloads` (uint8[rows, bytes]) stand for."""
    size = padded(y.numel(), group, order)
    _decode_from(payloads, y, 0, size, bits, group, order, scale / max(order, 1), False)


def decode_sum_encode(
    payloads: torch.Tensor,
    out: torch.Tensor,
    num: int,
    bits: int,
    group: int,
    out_bits: int,
    out_group: int,
    order: int,
    key: int | None,
) -> None:
    """Sum the rows of `payloads` as `decode_sum` does and fill the payload `out` with the sum, both still transformed.

    One launch does both for all groups but those at the end, whose sums go through memory.
    """
    size, out_size = padded(num, group, order), padded(num, out_group, order)
    tile = max(group, out_group, _TILE)
    whole = num // tile * tile
    if whole:
        with torch.cuda.device_of(out):
            _sum_encode[(whole // tile,)](
                payloads, len(payloads), payloads.stride(0), _first_code(size, group), out,
                _first_code(out_size, out_group), *_key_words(key), TILE=tile, GROUP=group, BITS=bits,
                OUT_GROUP=out_group, OUT_BITS=out_bits, NOISY=key is not None, **_options(tile),
            )  # fmt: skip
    if whole < num:
        z = torch.zeros(max(size, out_size) - whole, dtype=torch.float32, device=out.device)
        _decode_from(payloads, z, whole, size, bits, group, 0, 1.0, False)
        _encode_from(z, None, out, whole, out_size, out_bits, out_group, 0, key)


def encode_difference(
    x: torch.Tensor, reference: torch.Tensor, payload: torch.Tensor, bits: int, group: int, key: int | None
) -> None:
    """Fill `payload` with what stands for ``x - reference`` (each flat float32 or bfloat16), without a transform."""
    _encode_from(x, reference, payload, 0, x.numel(), bits, group, 0, key)


def decode_add(payload: torch.Tensor, reference: torch.Tensor, bits: int, group: int) -> None:
    """Add what `payload` stands for to `reference` (flat float32 or bfloat16), rounded to its type."""
    size = padded(reference.numel(), group, 0)
    _decode_from(payload[None], reference, 0, size, bits, group, 0, 1.0, True)


def _encode_from(
    x: torch.Tensor,
    reference: torch.Tensor | None,
    payload: torch.Tensor,
    origin: int,
    num: int,
    bits: int,
    group: int,
    order: int,
    key: int | None,
) -> None:
    """Encode elements `origin` to `num` of as many, which `x` holds."""
    size = padded(num, group, order)
    words, others = _words(x), _words(x if reference is None else reference)
    with torch.cuda.device_of(payload):
        for first, count, length in _launches(origin, size, group):
            rows = max(_TILE // length, 1)
            _encode[(triton.cdiv(count, rows),)](
                words, others, origin, num, payload, _first_code(size, group), first, first // group, count,
                *_key_words(key), GROUP=length, ROWS=rows, BITS=bits, LOG=order.bit_length() - 1 if order else 0,
                DIFFERENCE=reference is not None, NOISY=key is not None, **_options(rows * length),
            )  # fmt: skip


def _decode_from(
    payloads: torch.Tensor,
    y: torch.Tensor,
    origin: int,
    size: int,
    bits: int,
    group: int,
    order: int,
    factor: float,
    added: bool,
) -> None:
    """Decode the sums of elements `origin` to `size`, as far as `y` takes them, into it or to be added to it."""
    words = _words(y)
    with torch.cuda.device_of(y):
        for first, count, length in _launches(origin, size, group):
            rows = max(_TILE // length, 1)
            _decode_sum[(triton.cdiv(count, rows),)](
                payloads, len(payloads), payloads.stride(0), _first_code(size, group), words, origin,
                origin + y.numel(), first, first // group, count, factor, GROUP=length, ROWS=rows, BITS=bits,
                LOG=order.bit_length() - 1 if order else 0, ADDED=added, **_options(rows * length),
            )  # fmt: skip


def _launches(origin: int, size: int, group: int) -> Iterator[tuple[int, int, int]]:
    """Yield the first element, the number and the length of groups that are equally long."""
    whole = size // group * group
    if origin < whole:
        yield origin, (whole - origin) // group, group
    if whole < size:
        yield whole, 1, size - whole


def _first_code(size: int, group: int) -> int:
    return 4 * -(-size // group)


def _key_words(key: int | None) -> tuple[int, int]:
    low, high = np.array([key or 0], np.uint64).view(np.int32)
    return int(low), int(high)


def _words(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def _options(tile: int) -> dict:
    return {"num_warps": min(max(tile // 256, 1), 8), "enable_fp_fusion": False}


@triton.jit
def _widened(x):
    """Return float32, of bfloat16 whose bits are int16."""
    if x.dtype == tl.int16:
        x = (x.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x


@triton.jit
def _rounded(v, kind: tl.constexpr):
    """Return float32 as they are or, where `kind` is int16, the bits of the nearest bfloat16; NaN become 0x7fc0."""
    if kind == tl.int16:
        bits = v.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        v = tl.where((bits & 0x7FFFFFFF) > _INFINITY, 0x7FC0, nearest).to(tl.int16)
    return v


@triton.jit
def _load_bits(address):
    """Return the int32 at each address, byte by byte."""
    bits = tl.load(address).to(tl.int32)
    for k in tl.static_range(1, 4):
        bits |= tl.load(address + k).to(tl.int32) << (8 * k)
    return bits


@triton.jit
def _store_bits(address, bits, live):
    for k in tl.static_range(4):
        tl.store(address + k, ((bits >> (8 * k)) & 255).to(tl.uint8), mask=live)


@triton.jit
def _noise(i, low, high):
    h = (i & 0xFFFFFFFF).to(tl.uint32) + low.to(tl.uint32, bitcast=True)
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) + high.to(tl.uint32, bitcast=True) + (i >> 32).to(tl.uint32) * 0x9E3779B9
    h = (h ^ (h >> 16)) * 0x846CA68B
    k = (h ^ (h >> 16)) >> 16
    return (k.to(tl.int32).to(tl.float32) + 0.5) * (2.0**-16) - 0.5


@triton.jit
def _store_groups(z, i, payload, first_code, first_group, start, live, low, high,
                  GROUP: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr, NOISY: tl.constexpr):  # fmt: skip
    """Quantise and pack a tile of groups: `i` are the elements' indices, `start` is where each group's first one is."""
    levels: tl.constexpr = (1 << (BITS - 1)) - 1
    most = tl.max(z.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
    largest = most.to(tl.float32, bitcast=True)
    broken = most >= _INFINITY
    dead = broken | (largest < _SMALLEST)
    largest = tl.where(dead, 1.0, largest)
    top = tl.full([ROWS], levels, tl.float32)
    scale = tl.div_rn(largest, top).to(tl.int32, bitcast=True)
    scale = tl.where(broken, _NAN, tl.where(dead, 0, scale))
    _store_bits(payload + 4 * first_group, scale, live)
    t = tl.where(dead[:, None], 0.0, z) * tl.div_rn(top, largest)[:, None]
    t = tl.minimum(tl.maximum(t, -1.0 * levels), 1.0 * levels)
    if NOISY:
        t += _noise(i, low, high)
    codes = ((t + _ROUND).to(tl.int32, bitcast=True) + levels) & 255
    place = payload + first_code + (start // 8 * BITS)[:, None]
    for s in tl.static_range(4):
        if BITS & (8 >> s):
            _store_part(codes, place, live, GROUP, ROWS, BITS, 8 >> s)


@triton.jit
def _store_part(codes, place, live,
                GROUP: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    done: tl.constexpr = BITS // (2 * WIDTH) * 2 * WIDTH  # bits of a code that wider parts took
    num_fields: tl.constexpr = 8 // WIDTH
    num_bytes: tl.constexpr = GROUP * WIDTH // 8
    fields = tl.reshape((codes >> done) & ((1 << WIDTH) - 1), [ROWS, num_fields, num_bytes])
    packed = tl.sum(fields << (tl.arange(0, num_fields) * WIDTH)[None, :, None], 1)
    tl.store(place + done * GROUP // 8 + tl.arange(0, num_bytes)[None, :], packed.to(tl.uint8), mask=live[:, None])


@triton.jit
def _load_part(place, GROUP: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr, WIDTH: tl.constexpr):
    done: tl.constexpr = BITS // (2 * WIDTH) * 2 * WIDTH
    num_fields: tl.constexpr = 8 // WIDTH
    num_bytes: tl.constexpr = GROUP * WIDTH // 8
    packed = tl.load(place + done * GROUP // 8 + tl.arange(0, num_bytes)[None, :]).to(tl.int32)
    fields = (packed[:, None, :] >> (tl.arange(0, num_fields) * WIDTH)[None, :, None]) & ((1 << WIDTH) - 1)
    return tl.reshape(fields, [ROWS, GROUP]) << done


@triton.jit
def _load_groups(payload, first_code, first_group, start,
                 GROUP: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr):  # fmt: skip
    """Return what a tile of groups stands for."""
    levels: tl.constexpr = (1 << (BITS - 1)) - 1
    codes = tl.zeros([ROWS, GROUP], tl.int32)
    place = payload + first_code + (start // 8 * BITS)[:, None]
    for s in tl.static_range(4):
        if BITS & (8 >> s):
            codes |= _load_part(place, GROUP, ROWS, BITS, 8 >> s)
    scale = _load_bits(payload + 4 * first_group).to(tl.float32, bitcast=True)
    return (codes - levels).to(tl.float32) * scale[:, None]


@triton.jit
def _sum_rows(payloads, num_rows, stride, first_code, first_group, start,
              GROUP: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr):  # fmt: skip
    z = _load_groups(payloads, first_code, first_group, start, GROUP, ROWS, BITS)
    for _ in range(1, num_rows):
        payloads += stride
        z += _load_groups(payloads, first_code, first_group, start, GROUP, ROWS, BITS)
    return z


@triton.jit(do_not_specialize=["origin", "first_group", "num_groups", "low", "high"])
def _encode(x, reference, origin, num, payload, first_code, first, first_group, num_groups, low, high,
            GROUP: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr, LOG: tl.constexpr,
            DIFFERENCE: tl.constexpr, NOISY: tl.constexpr):  # fmt: skip
    g = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = first + g * GROUP
    i = start[:, None] + tl.arange(0, GROUP)[None, :]
    inside = (i < num) & (g < num_groups)[:, None]
    z = _widened(tl.load(x + (i - origin), mask=inside, other=0))
    if DIFFERENCE:
        z -= _widened(tl.load(reference + (i - origin), mask=inside, other=0))
    if LOG:
        z = tl.reshape(_butterflies(tl.reshape(z, [ROWS * GROUP]), ROWS * GROUP, LOG), [ROWS, GROUP])
    _store_groups(z, i, payload, first_code, first_group + g, start, g < num_groups, low, high,
                  GROUP, ROWS, BITS, NOISY)  # fmt: skip


@triton.jit(do_not_specialize=["origin", "first_group", "num_groups"])
def _decode_sum(payloads, num_rows, stride, first_code, y, origin, end, first, first_group, num_groups, factor,
                GROUP: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr, LOG: tl.constexpr,
                ADDED: tl.constexpr):  # fmt: skip
    g = tl.minimum(tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), num_groups - 1)
    start = first + g * GROUP
    z = _sum_rows(payloads, num_rows, stride, first_code, first_group + g, start, GROUP, ROWS, BITS)
    if LOG:
        z = tl.reshape(_butterflies(tl.reshape(z, [ROWS * GROUP]), ROWS * GROUP, LOG), [ROWS, GROUP])
    i = start[:, None] + tl.arange(0, GROUP)[None, :]
    at = y + (i - origin)
    # groups beyond the last repeat it, and must not be added twice
    inside = (i < end) & (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS) < num_groups)[:, None]
    if ADDED:
        z += _widened(tl.load(at, mask=inside, other=0))
    else:
        z *= factor
    tl.store(at, _rounded(z, y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["low", "high"])
def _sum_encode(payloads, num_rows, stride, first_code, out, out_first_code, low, high,
                TILE: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, OUT_GROUP: tl.constexpr,
                OUT_BITS: tl.constexpr, NOISY: tl.constexpr):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * TILE
    start = first + tl.arange(0, TILE // GROUP) * GROUP
    z = _sum_rows(payloads, num_rows, stride, first_code, start // GROUP, start, GROUP, TILE // GROUP, BITS)
    start = first + tl.arange(0, TILE // OUT_GROUP) * OUT_GROUP
    i = start[:, None] + tl.arange(0, OUT_GROUP)[None, :]
    _store_groups(tl.reshape(z, [TILE // OUT_GROUP, OUT_GROUP]), i, out, out_first_code, start // OUT_GROUP, start,
                  start >= 0, low, high, OUT_GROUP, TILE // OUT_GROUP, OUT_BITS, NOISY)  # fmt: skip
