"""Short fixed-length codes for bfloat16 exponents, on the device: see ref.py for the format.

Works on torch tensors, on CUDA or, with TRITON_INTERPRET=1, on the CPU. A launch costs more than a chunk, so these
functions take all chunks of an array at once; a chunk is what `ref.encode` takes in one call.

Whole blocks of bfloat16 are handled four elements to a 32-bit word, byte by byte within it (SWAR): an element a lane
would be bound by instructions, not by memory. The lists of escapes are short and take one byte a lane. The place of an
escape in its list is a prefix sum within its block plus the escapes of the blocks before it, which one kernel counts
and `torch.cumsum` adds up.

The decoder is safe on hostile input: planes have the sizes that the counts demand, and an escape that its list does not
hold is not read.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from trimtab.kernels.bitplanes.ref import BLOCK, LANES, RUN, plane_bytes

__all__ = ["decode_chunks", "encode_chunks", "plane_bytes", "survey"]

_STRIDE = tl.constexpr(BLOCK // LANES)
_WORDS = tl.constexpr(BLOCK // LANES // 4)  # 32-bit words of a whole block's plane
_LANES = tl.constexpr(LANES)
_LOW, _TOP, _REST, _ALL = (tl.constexpr(bits * 0x01010101) for bits in (1, 0x80, 0x7F, 0xFF))  # of each byte of a word
_ALIGNMENT = 16


def survey(halves: torch.Tensor, step: int, counts: np.ndarray) -> None:
    """Count the exponents (int64[256]) in runs of 64 elements, one run every `step` elements of int16 `halves`."""
    starts = torch.arange(0, halves.numel(), max(step, RUN), device=halves.device)
    sampled = (starts[:, None] + torch.arange(RUN, device=halves.device)).reshape(-1)
    exponents = halves[sampled[sampled < halves.numel()]] >> 7 & 255
    counts[...] = torch.bincount(exponents, minlength=256).cpu().numpy()


def encode_chunks(
    halves: torch.Tensor,
    chunk: int,
    base: int,
    width: int,
    next_width: int,
    distances: np.ndarray,
    signs: torch.Tensor,
    planes: torch.Tensor,
) -> tuple[np.ndarray, torch.Tensor]:
    """Encode int16 `halves` in chunks of `chunk` elements, a multiple of the block.

    Fills `signs` and `planes` (uint8) as `ref.encode` does chunk by chunk. Returns the numbers of escapes and of those
    outside the list (int64[chunks, 2]), and what `ref.encode` writes to each chunk's tail, back to back (uint8).
    """
    device, num_whole = halves.device, halves.numel() // BLOCK
    with torch.cuda.device_of(halves):
        words, packed, low = _aligned(halves), _aligned_like(planes), _aligned_like(signs)
        blocks = _Blocks.of_array(halves.numel(), width, device)
        counts = torch.empty(len(blocks), dtype=torch.int32, device=device)
        if num_whole:
            _split[(num_whole,)](_view(words, torch.int64), _view(low, torch.int32), _view(packed, torch.int32), counts,
                                 base, WIDTH=width)  # fmt: skip
        if num_whole < len(blocks):
            rest, last = halves[num_whole * BLOCK :], blocks.part(num_whole)
            low[num_whole * BLOCK :] = ((rest >> 8 & 0x80) | (rest & 0x7F)).to(torch.uint8)
            codes = torch.arange(256, device=device).clamp(max=(1 << width) - 1).to(torch.uint8)
            last.pack(_distances(rest, base), codes, packed, counts[num_whole:], sources=torch.zeros_like(last.sources))
        for target, filled in ((planes, packed), (signs, low)):
            if filled is not target:
                target.copy_(filled)
        ranks, ends = _ranks(counts)
        num_escapes = np.diff(_chunk_ends(ends, chunk // BLOCK).cpu().numpy(), prepend=0)
        far = torch.empty(int(num_escapes.sum()), dtype=torch.uint8, device=device)
        blocks.gather(packed, halves, ranks, far, base)
        return _encode_lists(far, num_escapes, next_width, distances)


def decode_chunks(
    signs: torch.Tensor,
    planes: torch.Tensor,
    tails: torch.Tensor,
    table: np.ndarray,
    chunk: int,
    base: int,
    width: int,
    next_width: int,
    distances: np.ndarray,
    halves: torch.Tensor,
) -> bool:
    """Fill int16 `halves` from what `encode_chunks` made; return False where the parts contradict each other.

    `signs` and `planes` have the sizes that `halves` demands, `tails` (uint8) the one that `table` does.
    """
    device, num_whole = halves.device, halves.numel() // BLOCK
    table = table.astype(np.int64)
    sizes = np.minimum(halves.numel() - np.arange(len(table), dtype=np.int64) * chunk, chunk)
    if (table[:, 0] > sizes).any() or (table[:, 1] > table[:, 0]).any():
        return False
    with torch.cuda.device_of(halves):
        low, packed, words = _aligned(signs), _aligned(planes), _aligned_like(halves)
        blocks = _Blocks.of_array(halves.numel(), width, device)
        ranks, ends = blocks.count(packed)  # keeps the device busy while the host plans the lists
        far, sound = _decode_lists(tails, table, next_width, distances)
        if num_whole:
            _merge[(num_whole,)](_view(low, torch.int32), _view(packed, torch.int32), ranks, far, far.numel(),
                                 _view(words, torch.int64), base, WIDTH=width)  # fmt: skip
        if num_whole < len(blocks):
            rest = words[num_whole * BLOCK :]
            values = torch.empty(rest.numel(), dtype=torch.uint8, device=device)
            last, codes = blocks.part(num_whole), torch.arange(16, dtype=torch.uint8, device=device)
            sound &= last.unpack(packed, ranks[num_whole:], far, codes, values, torch.zeros_like(last.sources))
            sign = signs[num_whole * BLOCK :].to(torch.int32)
            exponents = (base - values.to(torch.int32)) & 255
            rest.copy_((sign & 0x80) << 8 | exponents << 7 | sign & 0x7F)
        if words is not halves:
            halves.copy_(words)
        claimed = _upload(np.cumsum(table[:, 0]), device)
        return bool(sound & (_chunk_ends(ends, chunk // BLOCK) == claimed).all())


def _encode_lists(
    far: torch.Tensor, num_escapes: np.ndarray, width: int, distances: np.ndarray
) -> tuple[np.ndarray, torch.Tensor]:
    """Encode each chunk's list of escapes; return the table and the tails."""
    device, num_listed = far.device, (1 << width) - 1
    codes = np.full(256, num_listed, np.uint8)
    codes[distances[:num_listed][::-1]] = np.arange(num_listed, dtype=np.uint8)[::-1]  # the first of equal ones wins
    code_of = _upload(codes, device)
    num_planes = _list_planes(num_escapes, width)
    blocks, last = _Blocks.of_lists(num_escapes, np.cumsum(num_planes) - num_planes, width, device)
    counts = torch.empty(len(blocks), dtype=torch.int32, device=device)
    # where the planes go depends on how many distances follow each chunk's, so the lists are packed twice
    blocks.pack(far, code_of, torch.empty(int(num_planes.sum()), dtype=torch.uint8, device=device), counts)
    _, ends = _ranks(counts)
    num_raw = np.diff(_ends_at(ends, last).cpu().numpy(), prepend=0)
    tail_sizes = num_planes + num_raw
    starts = np.cumsum(tail_sizes) - tail_sizes
    blocks, _ = _Blocks.of_lists(num_escapes, starts, width, device)
    tails = torch.empty(int(tail_sizes.sum()), dtype=torch.uint8, device=device)
    blocks.pack(far, code_of, tails, counts)
    blocks.gather(tails, far, _raw_ranks(ends, counts, num_escapes, starts + num_planes, num_raw), tails)
    return np.stack([num_escapes, num_raw], axis=1), tails


def _decode_lists(
    tails: torch.Tensor, table: np.ndarray, width: int, distances: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the chunks' escapes, back to back, and whether they make sense (a tensor of one bool)."""
    device, (num_escapes, num_raw) = tails.device, table.T
    far = torch.empty(int(num_escapes.sum()), dtype=torch.uint8, device=device)
    num_planes = _list_planes(num_escapes, width)
    starts = np.cumsum(num_planes + num_raw) - num_planes - num_raw
    blocks, last = _Blocks.of_lists(num_escapes, starts, width, device)
    ranks, ends = blocks.count(tails)
    sound = (_ends_at(ends, last) == _upload(np.cumsum(num_raw), device)).all()
    values = np.zeros(16, np.uint8)
    values[: (1 << width) - 1] = distances[: (1 << width) - 1]
    counts = ends - ranks
    ranks = _raw_ranks(ends, counts, num_escapes, starts + num_planes, num_raw)
    sound &= blocks.unpack(tails, ranks, tails, _upload(values, device), far, blocks.sources)
    return far, sound


def _raw_ranks(
    ends: torch.Tensor, counts: torch.Tensor, num_escapes: np.ndarray, raw_starts: np.ndarray, num_raw: np.ndarray
) -> torch.Tensor:
    """Return where in the tails each block of the lists has its first unlisted distance."""
    before = np.repeat(raw_starts - (np.cumsum(num_raw) - num_raw), -(-num_escapes // BLOCK))
    return ends - counts + _upload(before, ends.device)


class _Blocks:
    """Blocks of codes: where in the list each starts, how many codes it has, and where its planes start."""

    def __init__(self, sources: torch.Tensor, sizes: torch.Tensor, planes: torch.Tensor, width: int) -> None:
        self.sources, self.sizes, self.planes, self.width = sources, sizes, planes, width

    def __len__(self) -> int:
        return self.sources.numel()

    @classmethod
    def of_array(cls, num_elements: int, width: int, device: torch.device) -> _Blocks:
        sources = torch.arange(0, num_elements, BLOCK, device=device)
        return cls(sources, (num_elements - sources).clamp(max=BLOCK), sources // LANES * width, width)

    @classmethod
    def of_lists(
        cls, lengths: np.ndarray, planes: np.ndarray, width: int, device: torch.device
    ) -> tuple[_Blocks, np.ndarray]:
        """Blocks of lists that stand back to back, with planes from `planes` on; and how many each list ends after."""
        num_blocks = -(-lengths // BLOCK)
        ends = np.cumsum(num_blocks)
        places = BLOCK * (np.arange(num_blocks.sum()) - np.repeat(ends - num_blocks, num_blocks))
        sources = np.repeat(np.cumsum(lengths) - lengths, num_blocks) + places
        sizes = np.minimum(np.repeat(lengths, num_blocks) - places, BLOCK)
        at = np.repeat(planes, num_blocks) + places // LANES * width
        parts = _upload(np.stack([sources, sizes, at]), device)
        return cls(*parts, width), ends

    def part(self, start: int) -> _Blocks:
        return _Blocks(self.sources[start:], self.sizes[start:], self.planes[start:], self.width)

    def pack(
        self,
        values: torch.Tensor,
        codes: torch.Tensor,
        planes: torch.Tensor,
        counts: torch.Tensor,
        sources: torch.Tensor | None = None,
    ) -> None:
        """Write planes of the codes of `values`, and the number of escapes of each block."""
        if len(self):
            sources = self.sources if sources is None else sources
            _pack[(len(self),)](values, sources, self.sizes, codes, planes, self.planes, counts, WIDTH=self.width)

    def count(self, planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how many escapes come before each block, and up to its end (int64)."""
        counts = torch.empty(len(self), dtype=torch.int32, device=planes.device)
        if len(self):
            _count[(len(self),)](planes, self.planes, self.sizes, counts, WIDTH=self.width)
        return _ranks(counts)

    def gather(
        self, planes: torch.Tensor, values: torch.Tensor, ranks: torch.Tensor, listed: torch.Tensor, base: int = 0
    ) -> None:
        """List the values (of int16 halves: the distances from `base`) whose codes are escapes."""
        if len(self):
            _gather[(len(self),)](planes, self.planes, self.sizes, values, self.sources, ranks, listed, base,
                                  WIDTH=self.width, HALVES=values.dtype == torch.int16)  # fmt: skip

    def unpack(
        self,
        planes: torch.Tensor,
        ranks: torch.Tensor,
        escapes: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Write what the codes stand for; return whether the codes past the end are 0 (a tensor of one bool)."""
        wrong = torch.zeros(len(self), dtype=torch.int32, device=planes.device)
        if len(self):
            _unpack[(len(self),)](planes, self.planes, self.sizes, ranks, escapes, escapes.numel(), values, out,
                                  targets, wrong, WIDTH=self.width)  # fmt: skip
        return ~wrong.any()


def _list_planes(lengths: np.ndarray, width: int) -> np.ndarray:
    """Return the sizes of the planes of lists of these lengths."""
    whole, rest = np.divmod(lengths, BLOCK)
    return width * (whole * (BLOCK // LANES) + -(-rest // LANES))


def _ranks(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ends = torch.cumsum(counts, 0, dtype=torch.int64)
    return ends - counts, ends


def _chunk_ends(ends: torch.Tensor, blocks_per_chunk: int) -> torch.Tensor:
    """Return how many escapes there are up to the end of each chunk."""
    return _ends_at(ends, np.minimum(np.arange(0, ends.numel(), blocks_per_chunk) + blocks_per_chunk, ends.numel()))


def _ends_at(ends: torch.Tensor, num_blocks: np.ndarray) -> torch.Tensor:
    """Return how many escapes the first so many blocks have."""
    return torch.nn.functional.pad(ends, (1, 0))[_upload(num_blocks, ends.device)]


def _upload(x: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy a small array to the device without waiting for what runs there."""
    return torch.from_numpy(x).to(device, non_blocking=True)


def _distances(halves: torch.Tensor, base: int) -> torch.Tensor:
    return (base - (halves.to(torch.int32) >> 7) & 255).to(torch.uint8)


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """Return `x`, or a copy of it whose memory can be read in wide words."""
    return x if x.data_ptr() % _ALIGNMENT == 0 else x.clone()


def _aligned_like(x: torch.Tensor) -> torch.Tensor:
    """Return `x`, or new memory of its size that can be written in wide words."""
    return x if x.data_ptr() % _ALIGNMENT == 0 else torch.empty_like(x)


def _view(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the whole words of `x`, which is aligned."""
    size = dtype.itemsize // x.itemsize
    return x[: x.numel() // size * size].view(dtype)


@triton.jit
def _difference(base, y):
    """Return (base - byte) mod 256 of the four bytes of words; `base` has four equal bytes."""
    return ((base | _TOP) - (y & _REST)) ^ ((base ^ y ^ _ALL) & _TOP)


@triton.jit
def _ones_of_bytes(x):
    """Return how many bits are set in each of the four bytes of words."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    return (x + (x >> 4)) & 0x0F0F0F0F


@triton.jit(do_not_specialize=["base"])
def _split(words, signs, planes, counts, base, WIDTH: tl.constexpr):
    """Split whole blocks, four bfloat16 to a word of 64 bits."""
    block = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, _WORDS)
    limit = (1 << WIDTH) - 1
    base4 = tl.full([_WORDS], 0, tl.uint32) + base.to(tl.uint32) * _LOW
    p0 = tl.full([_WORDS], 0, tl.uint32)
    p1, p2, p3 = p0, p0, p0
    for j in tl.static_range(_LANES):
        word = tl.load(words + block * (_WORDS * _LANES) + j * _WORDS + i).to(tl.uint64, bitcast=True)
        a, b = word.to(tl.uint32), (word >> 32).to(tl.uint32)
        low = (a & 0xFF) | ((a >> 8) & 0xFF00) | ((b << 16) & 0xFF0000) | ((b << 8) & 0xFF000000)
        high = ((a >> 8) & 0xFF) | ((a >> 16) & 0xFF00) | ((b << 8) & 0xFF0000) | (b & 0xFF000000)
        sign = (high & _TOP) | (low & _REST)
        tl.store(signs + block * (_WORDS * _LANES) + j * _WORDS + i, sign.to(tl.int32, bitcast=True))
        far = _difference(base4, ((high & _REST) << 1) | ((low >> 7) & _LOW))
        above = far & ((255 - limit) * _LOW)
        above = ((((above & _REST) + _REST) | above) >> 7) & _LOW
        code = (far & (limit * _LOW)) | (above * limit)
        p0 |= (code & _LOW) << j
        p1 |= ((code >> 1) & _LOW) << j
        if WIDTH > 2:
            p2 |= ((code >> 2) & _LOW) << j
        if WIDTH > 3:
            p3 |= ((code >> 3) & _LOW) << j
    at = planes + block * (_WORDS * WIDTH) + i
    tl.store(at, p0.to(tl.int32, bitcast=True))
    tl.store(at + _WORDS, p1.to(tl.int32, bitcast=True))
    escapes = p0 & p1
    if WIDTH > 2:
        tl.store(at + 2 * _WORDS, p2.to(tl.int32, bitcast=True))
        escapes &= p2
    if WIDTH > 3:
        tl.store(at + 3 * _WORDS, p3.to(tl.int32, bitcast=True))
        escapes &= p3
    tl.store(counts + block, tl.sum(((_ones_of_bytes(escapes) * _LOW) >> 24).to(tl.int32), 0))


@triton.jit(do_not_specialize=["base", "num_escapes"])
def _merge(signs, planes, ranks, escapes, num_escapes, words, base, WIDTH: tl.constexpr):
    """Merge whole blocks, four bfloat16 to a word of 64 bits."""
    block = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, _WORDS)
    base4 = tl.full([_WORDS], 0, tl.uint32) + base.to(tl.uint32) * _LOW
    at = planes + block * (_WORDS * WIDTH) + i
    p0 = tl.load(at).to(tl.uint32, bitcast=True)
    p1 = tl.load(at + _WORDS).to(tl.uint32, bitcast=True)
    p2, p3 = p0, p0
    marks = p0 & p1
    if WIDTH > 2:
        p2 = tl.load(at + 2 * _WORDS).to(tl.uint32, bitcast=True)
        marks &= p2
    if WIDTH > 3:
        p3 = tl.load(at + 3 * _WORDS).to(tl.uint32, bitcast=True)
        marks &= p3
    ones = _ones_of_bytes(marks)
    upto = ones * _LOW  # byte k: the escapes of bytes 0 to k; no sum exceeds 32
    in_word = (upto >> 24).to(tl.int32)
    before_word = tl.cumsum(in_word, 0) - in_word
    before = upto << 8  # byte k: the escapes before byte k, and in it before bit j
    first = tl.load(ranks + block)
    listed = escapes + first
    num_listed = tl.minimum(tl.maximum(num_escapes - first, 0), _WORDS * 32).to(tl.int32)
    for j in tl.static_range(_LANES):
        far = ((p0 >> j) & _LOW) | (((p1 >> j) & _LOW) << 1)
        if WIDTH > 2:
            far |= ((p2 >> j) & _LOW) << 2
        if WIDTH > 3:
            far |= ((p3 >> j) & _LOW) << 3
        mark = (marks >> j) & _LOW
        far &= (mark * 255) ^ _ALL
        for k in tl.static_range(4):
            rank = before_word + ((before >> (8 * k)) & 255).to(tl.int32)
            found = (((mark >> (8 * k)) & 1) != 0) & (rank < num_listed)
            far |= tl.load(listed + rank, mask=found, other=0).to(tl.uint32) << (8 * k)
        before += mark
        exponent = _difference(base4, far)
        sign = tl.load(signs + block * (_WORDS * _LANES) + j * _WORDS + i).to(tl.uint32, bitcast=True)
        high = (sign & _TOP) | ((exponent >> 1) & _REST)
        low = ((exponent & _LOW) << 7) | (sign & _REST)
        a = (low & 0xFF) | ((high << 8) & 0xFF00) | ((low << 8) & 0xFF0000) | ((high << 16) & 0xFF000000)
        b = ((low >> 16) & 0xFF) | ((high >> 8) & 0xFF00) | ((low >> 8) & 0xFF0000) | (high & 0xFF000000)
        word = a.to(tl.uint64) | (b.to(tl.uint64) << 32)
        tl.store(words + block * (_WORDS * _LANES) + j * _WORDS + i, word.to(tl.int64, bitcast=True))


@triton.jit
def _marks(planes, at, stride, i, WIDTH: tl.constexpr):
    """Return the AND of a block's planes, whose set bits are its escapes (int32, a byte each)."""
    marks = tl.full([_STRIDE], 255, tl.int32)
    for k in tl.static_range(WIDTH):
        marks &= tl.load(planes + at + k * stride + i, mask=i < stride, other=0).to(tl.int32)
    return marks


@triton.jit
def _places(marks):
    """Return how many escapes stand in the bytes before each byte, and in all."""
    ones = _ones_of_bytes(marks)
    return tl.cumsum(ones, 0) - ones, tl.sum(ones, 0)


@triton.jit
def _pack(values, sources, sizes, codes, planes, starts, counts, WIDTH: tl.constexpr):
    block = tl.program_id(0)
    i = tl.arange(0, _STRIDE)
    source, size = tl.load(sources + block), tl.load(sizes + block).to(tl.int32)
    stride = (size + _LANES - 1) // _LANES
    p0 = tl.full([_STRIDE], 0, tl.int32)
    p1, p2, p3 = p0, p0, p0
    for j in tl.static_range(_LANES):
        place = j * stride + i
        live = (i < stride) & (place < size)
        value = tl.load(values + source + place, mask=live, other=0).to(tl.int32)
        code = tl.load(codes + value, mask=live, other=0).to(tl.int32)
        p0 |= (code & 1) << j
        p1 |= ((code >> 1) & 1) << j
        p2 |= ((code >> 2) & 1) << j
        p3 |= ((code >> 3) & 1) << j
    at = planes + tl.load(starts + block) + i
    tl.store(at, p0.to(tl.uint8), mask=i < stride)
    tl.store(at + stride, p1.to(tl.uint8), mask=i < stride)
    marks = p0 & p1
    if WIDTH > 2:
        tl.store(at + 2 * stride, p2.to(tl.uint8), mask=i < stride)
        marks &= p2
    if WIDTH > 3:
        tl.store(at + 3 * stride, p3.to(tl.uint8), mask=i < stride)
        marks &= p3
    _, total = _places(marks)
    tl.store(counts + block, total)


@triton.jit
def _count(planes, starts, sizes, counts, WIDTH: tl.constexpr):
    block = tl.program_id(0)
    stride = (tl.load(sizes + block).to(tl.int32) + _LANES - 1) // _LANES
    _, total = _places(_marks(planes, tl.load(starts + block), stride, tl.arange(0, _STRIDE), WIDTH))
    tl.store(counts + block, total)


@triton.jit(do_not_specialize=["base"])
def _gather(
    planes, starts, sizes, values, sources, ranks, listed, base, WIDTH: tl.constexpr, HALVES: tl.constexpr
):  # fmt: skip
    block = tl.program_id(0)
    i = tl.arange(0, _STRIDE)
    stride = (tl.load(sizes + block).to(tl.int32) + _LANES - 1) // _LANES
    marks = _marks(planes, tl.load(starts + block), stride, i, WIDTH)
    before, _ = _places(marks)
    source, rank = tl.load(sources + block), tl.load(ranks + block)
    for _ in range(tl.max(_ones_of_bytes(marks), 0)):  # few bytes have more than one or two
        lowest = marks & -marks
        lane = _ones_of_bytes(lowest - 1)
        value = tl.load(values + source + lane * stride + i, mask=marks != 0, other=0).to(tl.int32)
        if HALVES:
            value = (base - (value >> 7)) & 255
        tl.store(listed + rank + before, value.to(tl.uint8), mask=marks != 0)
        before += 1
        marks ^= lowest


@triton.jit(do_not_specialize=["num_escapes"])
def _unpack(
    planes, starts, sizes, ranks, escapes, num_escapes, values, out, targets, wrong, WIDTH: tl.constexpr
):  # fmt: skip
    block = tl.program_id(0)
    i = tl.arange(0, _STRIDE)
    size, at = tl.load(sizes + block).to(tl.int32), tl.load(starts + block)
    stride = (size + _LANES - 1) // _LANES
    marks = _marks(planes, at, stride, i, WIDTH)
    before, _ = _places(marks)
    target, rank = tl.load(targets + block), tl.load(ranks + block)
    bad = tl.full([_STRIDE], 0, tl.int32)
    for j in tl.static_range(_LANES):
        code = tl.full([_STRIDE], 0, tl.int32)
        for k in tl.static_range(WIDTH):
            byte = tl.load(planes + at + k * stride + i, mask=i < stride, other=0).to(tl.int32)
            code |= ((byte >> j) & 1) << k
        mark = (marks >> j) & 1
        place = j * stride + i
        live = (i < stride) & (place < size)
        found = live & (mark != 0) & (rank + before < num_escapes)
        value = tl.load(values + code, mask=live & (mark == 0), other=0)
        value = tl.where(mark != 0, tl.load(escapes + rank + before, mask=found, other=0), value)
        tl.store(out + target + place, value, mask=live)
        bad |= tl.where((i < stride) & (place >= size), code, 0)
        before += mark
    tl.store(wrong + block, tl.max(bad, 0))
