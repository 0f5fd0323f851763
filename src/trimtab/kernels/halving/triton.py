"""Exponents in two widths, packed by halving, on the device: see ref.py for the format.

Works on torch tensors, on CUDA or, with TRITON_INTERPRET=1, on the CPU, and for groups of 16, as published. A launch
costs more than a chunk, so these functions take all chunks of an array at once; a chunk is what `ref.encode` takes in
one call, a whole number of blocks.

Halving a block of 16 x s lanes combines lanes that stand a multiple of s apart, whatever the width. Place i of s thus
tells everything about bytes i, i + s, ... of the pack: a program takes a block, its threads take the places, and which
bits of the 16 lanes meet in which byte is known when the kernel is compiled. Groups are the same 16 lanes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl

from trimtab.kernels.halving.ref import BLOCK, GRAIN, HIGH_GRAIN, high_bytes, mask_bytes, packed_bytes, padded

__all__ = [
    "GROUP",
    "decode_chunks",
    "encode_chunks",
    "high_bytes",
    "mask_bytes",
    "pack",
    "packed_bytes",
    "padded",
    "unpack",
]

GROUP = 16
"""Elements that share a mask bit: the lanes that a place combines."""

_LANES = tl.constexpr(GROUP)
_PLACES = tl.constexpr(BLOCK // GROUP)
_MASKS = tl.constexpr(BLOCK // GROUP // 8)  # bytes


def pack(lanes: torch.Tensor, width: int, out: torch.Tensor) -> None:
    """Pack `lanes` (uint8, of at most `width` bits) block by block into `out` (uint8, `packed_bytes`)."""
    with torch.cuda.device_of(lanes):
        _Blocks([lanes.numel()], width, GRAIN).pack(lanes, out)


def unpack(packed: torch.Tensor, width: int, lanes: torch.Tensor) -> None:
    """Fill `lanes` (uint8) with what `pack` packed."""
    with torch.cuda.device_of(lanes):
        _Blocks([lanes.numel()], width, GRAIN).unpack(packed, lanes)


def encode_chunks(
    exponents: torch.Tensor, chunk: int, base: int, bits: int, low_bits: int, low: torch.Tensor, masks: torch.Tensor
) -> tuple[np.ndarray, torch.Tensor]:
    """Encode `exponents` (uint8) in chunks of `chunk` elements.

    Fills `low` and `masks` (uint8) as `ref.encode` does chunk by chunk. Returns the numbers of elements that store high
    bits (int64[chunks]), and what `ref.encode` writes to each chunk's `high`, back to back (uint8).
    """
    num, device = exponents.numel(), exponents.device
    num_chunks = -(-num // chunk)
    if not num or bits == low_bits:
        with torch.cuda.device_of(exponents):
            _Blocks([num], low_bits, GRAIN).pack(exponents, low, base, mapped=True)
        return np.zeros(num_chunks, np.int64), low.new_empty(0)
    with torch.cuda.device_of(exponents):
        blocks = _Blocks([num], low_bits, GRAIN)
        blocks.pack(exponents, low, base, mapped=True)
        counts = torch.empty(blocks.num, dtype=torch.int32, device=device)
        _mark[(blocks.num,)](exponents, num, base, (1 << bits) - 1, (1 << low_bits) - 1, masks, counts)
        ends = torch.cumsum(counts, 0, dtype=torch.int64) * GROUP
        num_high = _per_chunk(ends, num_chunks, chunk)
        values = torch.empty(int(num_high.sum()), dtype=torch.uint8, device=device)
        _collect[(blocks.num,)](exponents, num, base, (1 << bits) - 1, low_bits, masks, ends, values)
        above = _Blocks(num_high.tolist(), bits - low_bits, HIGH_GRAIN)
        high = torch.empty(above.num_bytes, dtype=torch.uint8, device=device)
        above.pack(values, high)
    return num_high, high


def decode_chunks(
    low: torch.Tensor,
    masks: torch.Tensor,
    high: torch.Tensor,
    chunk: int,
    base: int,
    bits: int,
    low_bits: int,
    exponents: torch.Tensor,
) -> bool:
    """Fill `exponents` (uint8) from what `encode_chunks` made; return False where `high` is not as long as masks say.

    `low` and `masks` have the sizes that `exponents` demands.
    """
    num, device = exponents.numel(), exponents.device
    blocks = _Blocks([num], low_bits, GRAIN)
    with torch.cuda.device_of(exponents):
        counts = torch.zeros(blocks.num, dtype=torch.int32, device=device)
        if blocks.num and bits > low_bits:
            _count[(blocks.num,)](masks, num, counts)
        ends = torch.cumsum(counts, 0, dtype=torch.int64) * GROUP
        above = _Blocks(_per_chunk(ends, -(-num // chunk), chunk).tolist(), bits - low_bits, HIGH_GRAIN)
        if above.num_bytes != high.numel():
            return False
        values = torch.empty(above.num_lanes, dtype=torch.uint8, device=device)
        above.unpack(high, values)
        if blocks.num:
            _decode[(blocks.num,)](low, masks, values, ends, exponents, num, base, bits, low_bits, WIDTH=low_bits,
                                   PLAN=_plan(low_bits), MASKED=bits > low_bits)  # fmt: skip
    return True


def _per_chunk(ends: torch.Tensor, num_chunks: int, chunk: int) -> np.ndarray:
    """Return the number of elements with high bits in each chunk, from those up to the end of each block."""
    last = np.minimum(np.arange(1, num_chunks + 1) * (chunk // BLOCK), ends.numel())
    return np.diff(np.append(0, ends.cpu().numpy())[last], prepend=0)


class _Blocks:
    """The blocks of lists that stand back to back, as do their packs."""

    def __init__(self, lengths: list[int], width: int, grain: int) -> None:
        self.width, self.num_lanes, self.num_bytes = width, sum(lengths), 0
        parts, source = [], 0
        for length in lengths:
            for start in range(0, length, BLOCK):
                size = min(BLOCK, length - start)
                filled = -(-size // grain) * grain
                parts.append((source + start, size, filled, self.num_bytes))
                self.num_bytes += filled * width // 8
            source += length
        self.num = len(parts)
        self._parts = torch.tensor(parts, dtype=torch.int64).reshape(-1, 4)

    def pack(self, lanes: torch.Tensor, out: torch.Tensor, base: int = 0, *, mapped: bool = False) -> None:
        """Pack lanes; of `mapped` ones the low bits of ``base - lane``."""
        if self.num and self.width:
            _pack[(self.num,)](lanes, self._parts.to(lanes.device), out, base, WIDTH=self.width,
                               PLAN=_plan(self.width), MAPPED=mapped)  # fmt: skip

    def unpack(self, packed: torch.Tensor, lanes: torch.Tensor) -> None:
        if not self.width:
            lanes.zero_()
        elif self.num:
            _unpack[(self.num,)](packed, self._parts.to(lanes.device), lanes, WIDTH=self.width,
                                 PLAN=_plan(self.width))  # fmt: skip


@cache
def _plan(width: int) -> tuple[int, ...]:
    """Return which bits of 16 lanes make each byte of their pack.

    For byte b and lane t, ``3 * (16 * b + t)`` on: a mask (0: none), its place in the lane, its place in the byte.
    """
    values = [[(lane, 0, width, 0)] for lane in range(GROUP)]  # fields: lane, first bit in it, bits, place in the value
    emitted, size = [], width
    while size > 0:
        while size < 8:
            half = len(values) // 2
            moved = [[(lane, first, num, at + size) for lane, first, num, at in v] for v in values[half:]]
            values = [low + high for low, high in zip(values[:half], moved, strict=True)]
            size *= 2
        for value in values:
            emitted.append([(lane, first, min(num, 8 - at), at) for lane, first, num, at in value if at < 8])
        values = [
            [(lane, first + max(8 - at, 0), num - max(8 - at, 0), max(at - 8, 0)) for lane, first, num, at in value
             if at + num > 8]
            for value in values
        ]  # fmt: skip
        size -= 8
    plan = np.zeros((2 * width, GROUP, 3), int)
    for byte, fields in enumerate(emitted):
        for lane, first, num, at in fields:
            plan[byte, lane] = ((1 << num) - 1, first, at)
    return tuple(plan.reshape(-1).tolist())


@triton.jit
def _filled(size):
    return (size + 127) // 128 * 128


@triton.jit
def _moved(lane, entry: tl.constexpr, PLAN: tl.constexpr):
    return ((lane >> PLAN[entry + 1]) & PLAN[entry]) << PLAN[entry + 2]


@triton.jit
def _moved_back(byte, entry: tl.constexpr, PLAN: tl.constexpr):
    return ((byte >> PLAN[entry + 2]) & PLAN[entry]) << PLAN[entry + 1]


@triton.jit
def _flags(masks, block, places, i):
    """Return a block's mask bits, one a place."""
    return (tl.load(masks + block * _MASKS + i // 8, mask=i < places, other=0).to(tl.int32) >> (i % 8)) & 1


@triton.jit(do_not_specialize=["base"])
def _pack(lanes, parts, out, base, WIDTH: tl.constexpr, PLAN: tl.constexpr, MAPPED: tl.constexpr):
    parts += tl.program_id(0).to(tl.int64) * 4
    source, size, target = tl.load(parts), tl.load(parts + 1).to(tl.int32), tl.load(parts + 3)
    places = tl.load(parts + 2).to(tl.int32) // _LANES
    i = tl.arange(0, _PLACES)
    for b in tl.static_range(WIDTH):
        first = tl.full([_PLACES], 0, tl.int32)  # a byte of the first half of the pack, and one of the second
        second = first
        for t in tl.static_range(_LANES):
            if PLAN[3 * (_LANES * b + t)] + PLAN[3 * (_LANES * (b + WIDTH) + t)] != 0:
                place = t * places + i
                live = (i < places) & (place < size)
                lane = tl.load(lanes + source + place, mask=live, other=0).to(tl.int32)
                if MAPPED:
                    lane = tl.where(live, base - lane, 0)
                first |= _moved(lane, 3 * (_LANES * b + t), PLAN)
                second |= _moved(lane, 3 * (_LANES * (b + WIDTH) + t), PLAN)
        at = out + target + 2 * (b * places + i)
        tl.store(at, first.to(tl.uint8), mask=i < places)
        tl.store(at + 1, second.to(tl.uint8), mask=i < places)


@triton.jit
def _lane(packed, places, i, t: tl.constexpr, WIDTH: tl.constexpr, PLAN: tl.constexpr):
    """Return lane `t` of each place of a pack."""
    lane = tl.full([_PLACES], 0, tl.int32)
    for b in tl.static_range(2 * WIDTH):
        if PLAN[3 * (_LANES * b + t)] != 0:
            at = packed + 2 * ((b % WIDTH) * places + i) + b // WIDTH
            byte = tl.load(at, mask=i < places, other=0).to(tl.int32)
            lane |= _moved_back(byte, 3 * (_LANES * b + t), PLAN)
    return lane


@triton.jit
def _unpack(packed, parts, lanes, WIDTH: tl.constexpr, PLAN: tl.constexpr):
    parts += tl.program_id(0).to(tl.int64) * 4
    target, size, source = tl.load(parts), tl.load(parts + 1).to(tl.int32), tl.load(parts + 3)
    places = tl.load(parts + 2).to(tl.int32) // _LANES
    i = tl.arange(0, _PLACES)
    for t in tl.static_range(_LANES):
        lane = _lane(packed + source, places, i, t, WIDTH, PLAN)
        place = t * places + i
        tl.store(lanes + target + place, lane.to(tl.uint8), mask=(i < places) & (place < size))


@triton.jit(do_not_specialize=["base", "all_bits", "all_low"])
def _mark(exponents, num, base, all_bits, all_low, masks, counts):
    """Set the mask bits of the groups of which a value exceeds the low bits."""
    block = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, _PLACES)
    size = tl.minimum(num - block * (_PLACES * _LANES), _PLACES * _LANES).to(tl.int32)
    places = _filled(size) // _LANES
    merged = tl.full([_PLACES], 0, tl.int32)
    for t in tl.static_range(_LANES):
        place = t * places + i
        live = (i < places) & (place < size)
        lane = tl.load(exponents + block * (_PLACES * _LANES) + place, mask=live, other=0).to(tl.int32)
        merged |= tl.where(live, (base - lane) & all_bits, 0)
    flags = (merged > all_low).to(tl.int32)
    tl.store(counts + block, tl.sum(flags, 0))
    bits = tl.sum(tl.reshape(flags << (i % 8), [_MASKS, 8]), 1)
    m = tl.arange(0, _MASKS)
    tl.store(masks + block * _MASKS + m, bits.to(tl.uint8), mask=m < places // 8)


@triton.jit
def _count(masks, num, counts):
    block = tl.program_id(0).to(tl.int64)
    size = tl.minimum(num - block * (_PLACES * _LANES), _PLACES * _LANES).to(tl.int32)
    tl.store(counts + block, tl.sum(_flags(masks, block, _filled(size) // _LANES, tl.arange(0, _PLACES)), 0))


@triton.jit(do_not_specialize=["base", "all_bits", "low_bits"])
def _collect(exponents, num, base, all_bits, low_bits, masks, ends, values):
    """List the high bits of the groups whose mask bits are set, in the order of the elements."""
    block = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, _PLACES)
    size = tl.minimum(num - block * (_PLACES * _LANES), _PLACES * _LANES).to(tl.int32)
    places = _filled(size) // _LANES
    flags = _flags(masks, block, places, i)
    count, before = tl.sum(flags, 0), tl.cumsum(flags, 0) - flags
    values += tl.load(ends + block) - count * _LANES
    if count > 0:
        for t in tl.static_range(_LANES):
            place = t * places + i
            live = (flags != 0) & (place < size)
            lane = tl.load(exponents + block * (_PLACES * _LANES) + place, mask=live, other=0).to(tl.int32)
            high = tl.where(live, ((base - lane) & all_bits) >> low_bits, 0)
            tl.store(values + t * count + before, high.to(tl.uint8), mask=flags != 0)


@triton.jit(do_not_specialize=["base", "bits", "low_bits"])
def _decode(
    low, masks, values, ends, exponents, num, base, bits, low_bits,
    WIDTH: tl.constexpr, PLAN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, _PLACES)
    size = tl.minimum(num - block * (_PLACES * _LANES), _PLACES * _LANES).to(tl.int32)
    places = _filled(size) // _LANES
    low += block * (_PLACES * 2 * WIDTH)
    flags = tl.full([_PLACES], 0, tl.int32)
    if MASKED:
        flags = _flags(masks, block, places, i)
    count, before = tl.sum(flags, 0), tl.cumsum(flags, 0) - flags
    values += tl.load(ends + block) - count * _LANES
    half = (1 << bits) >> 1
    for t in tl.static_range(_LANES):
        y = _lane(low, places, i, t, WIDTH, PLAN)
        if MASKED:
            y |= tl.load(values + t * count + before, mask=flags != 0, other=0).to(tl.int32) << low_bits
        y = ((y + half) & ((1 << bits) - 1)) - half
        place = t * places + i
        live = (i < places) & (place < size)
        tl.store(exponents + block * (_PLACES * _LANES) + place, (base - y).to(tl.uint8), mask=live)
