"""Exponents in two widths, packed by halving, fast: see ref.py for the format.

The decoder is safe on hostile input: positions come from the number of elements alone, and the caller has made `high`
as long as the mask bits say.
"""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.halving.ref import BLOCK, GRAIN, HIGH_GRAIN, high_bytes, mask_bytes, packed_bytes, padded
from trimtab.kernels.jit import kernel

__all__ = ["decode", "encode", "high_bytes", "mask_bytes", "pack", "packed_bytes", "padded", "unpack"]

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_BLOCK, _GRAIN, _HIGH_GRAIN = BLOCK, GRAIN, HIGH_GRAIN
u8, u16, u64 = np.uint8, np.uint16, np.uint64


@kernel(types.void(types.uint16[::1], types.int64, types.uint8[::1], types.uint8[::1]))
def _pack_block(lanes, width, emitted, out):
    """Pack lanes, which are overwritten, into `out`; `emitted` is scratch of at least that size."""
    size, at = lanes.size, 0
    while width > 0:
        while width < 8:
            size //= 2
            low, high = lanes[:size], lanes[size : 2 * size]
            for i in range(size):
                low[i] = u16(low[i] | (high[i] << width))
            width *= 2
        low, bytes_ = lanes[:size], emitted[at : at + size]
        for i in range(size):
            bytes_[i] = u8(low[i])
            low[i] = u16(low[i] >> 8)
        at += size
        width -= 8
    half = at // 2
    first, second = emitted[:half], emitted[half:at]
    for i in range(half):
        out[2 * i] = first[i]
        out[2 * i + 1] = second[i]


@kernel(types.void(_BYTES, types.int64, types.uint8[::1], types.uint16[::1]))
def _unpack_block(packed, width, emitted, lanes):
    """Fill `lanes` from their pack; `emitted` is scratch of at least its size."""
    end = lanes.size * width // 8
    half = end // 2
    first, second = emitted[:half], emitted[half:end]
    for i in range(half):
        first[i] = packed[2 * i]
        second[i] = packed[2 * i + 1]
    residues, folds = np.zeros(8, np.int64), np.zeros(8, np.int64)
    num, size, residue = 0, lanes.size, width
    while residue > 0:
        residues[num] = residue
        while residue < 8:
            residue *= 2
            folds[num] += 1
            size //= 2
        residue -= 8
        num += 1
    for i in range(size if num > 0 else lanes.size):
        lanes[i] = u16(0)
    for stage in range(num - 1, -1, -1):
        low, bytes_ = lanes[:size], emitted[end - size : end]
        for i in range(size):
            low[i] = u16((low[i] << 8) | bytes_[i])
        end -= size
        for fold in range(folds[stage] - 1, -1, -1):
            narrow = residues[stage] << fold
            keep = u16((1 << narrow) - 1)
            low, high = lanes[:size], lanes[size : 2 * size]
            for i in range(size):
                high[i] = u16(low[i] >> narrow)
                low[i] = u16(low[i] & keep)
            size *= 2


@kernel(types.void(_BYTES, types.int64, types.uint8[::1]))
def pack(lanes, width, out):
    wide = np.empty(_BLOCK, np.uint16)
    emitted = np.empty(_BLOCK, np.uint8)
    at = 0
    for start in range(0, lanes.size, _BLOCK):
        block = lanes[start : min(start + _BLOCK, lanes.size)]
        num = (block.size + _GRAIN - 1) // _GRAIN * _GRAIN
        for i in range(block.size):
            wide[i] = u16(block[i])
        wide[block.size : num] = u16(0)
        size = num * width // 8
        _pack_block(wide[:num], width, emitted, out[at : at + size])
        at += size


@kernel(types.void(_BYTES, types.int64, types.uint8[::1]))
def unpack(packed, width, lanes):
    wide = np.empty(_BLOCK, np.uint16)
    emitted = np.empty(_BLOCK, np.uint8)
    at = 0
    for start in range(0, lanes.size, _BLOCK):
        block = lanes[start : min(start + _BLOCK, lanes.size)]
        num = (block.size + _GRAIN - 1) // _GRAIN * _GRAIN
        size = num * width // 8
        _unpack_block(packed[at : at + size], width, emitted, wide[:num])
        at += size
        for i in range(block.size):
            block[i] = u8(wide[i])


@kernel(types.int64(_BYTES, types.int64, types.uint16[::1], types.uint8[::1], types.uint8[::1], types.int64))
def _flush(values, width, wide, emitted, high, at):
    """Pack the collected high bits into `high` from byte `at` on; return where they end."""
    num = (values.size + _HIGH_GRAIN - 1) // _HIGH_GRAIN * _HIGH_GRAIN
    for i in range(values.size):
        wide[i] = u16(values[i])
    wide[values.size : num] = u16(0)
    size = num * width // 8
    _pack_block(wide[:num], width, emitted, high[at : at + size])
    return at + size


@kernel(
    types.int64(
        _BYTES,
        types.int64,
        types.int64,
        types.int64,
        types.int64,
        types.uint8[::1],
        types.uint8[::1],
        types.uint8[::1],
    )
)
def encode(exponents, base, bits, low_bits, group, low, masks, high):
    top, all_bits, all_low = u8(base), u8((1 << bits) - 1), u8((1 << low_bits) - 1)
    mapped = np.empty(_BLOCK, np.uint8)
    merged = np.empty(_BLOCK, np.uint8)
    flags = np.empty(_BLOCK, np.uint8)
    wide = np.empty(_BLOCK, np.uint16)
    emitted = np.empty(_BLOCK, np.uint8)
    rolling = np.empty(2 * _BLOCK, np.uint8)  # what one block adds fits behind what the flush left
    num_high, waiting, low_at, mask_at, high_at = 0, 0, 0, 0, 0
    for start in range(0, exponents.size, _BLOCK):
        x = exponents[start : min(start + _BLOCK, exponents.size)]
        num = (x.size + _GRAIN - 1) // _GRAIN * _GRAIN
        for i in range(x.size):
            mapped[i] = u8(u8(top - x[i]) & all_bits)
        mapped[x.size : num] = u8(0)
        for i in range(num):
            merged[i] = mapped[i]
            wide[i] = u16(mapped[i] & all_low)
        size = num * low_bits // 8
        _pack_block(wide[:num], low_bits, emitted, low[low_at : low_at + size])
        low_at += size
        if bits == low_bits:
            continue
        size = num
        while size > num // group:
            size //= 2
            first, second = merged[:size], merged[size : 2 * size]
            for i in range(size):
                first[i] = u8(first[i] | second[i])
        any_masked = False
        for i in range(size):
            flags[i] = u8(merged[i] > all_low)
            any_masked |= merged[i] > all_low
        for i in range(size // 8):
            byte = 0
            for j in range(8):
                byte |= flags[8 * i + j] << j
            masks[mask_at + i] = u8(byte)
        mask_at += size // 8
        if any_masked:
            for row in range(group):
                y = mapped[row * size : (row + 1) * size]
                for i in range(size):
                    rolling[u64(waiting)] = u8(y[i] >> low_bits)
                    waiting += np.int64(flags[i])
                if waiting > _BLOCK:
                    num_high += _BLOCK
                    high_at = _flush(rolling[:_BLOCK], bits - low_bits, wide, emitted, high, high_at)
                    for i in range(_BLOCK, waiting):
                        rolling[i - _BLOCK] = rolling[i]
                    waiting -= _BLOCK
    if waiting > 0:
        num_high += waiting
        _flush(rolling[:waiting], bits - low_bits, wide, emitted, high, high_at)
    return num_high


@kernel(types.void(_BYTES, _BYTES, _BYTES, types.int64, types.int64, types.int64, types.int64, types.uint8[::1]))
def decode(low, masks, high, base, bits, low_bits, group, exponents):
    high_bits = bits - low_bits
    top, half, all_bits = u8(base), u8(1 << bits >> 1), u8((1 << bits) - 1)
    wide = np.empty(_BLOCK, np.uint16)
    emitted = np.empty(_BLOCK, np.uint8)
    mapped = np.empty(_BLOCK, np.uint8)
    flags = np.empty(_BLOCK, np.uint8)
    num_high = high.size * 8 // high_bits if high_bits > 0 else 0
    values = np.empty(num_high + 1, np.uint8)
    values[num_high] = u8(0)
    at = 0
    for start in range(0, num_high, _BLOCK):
        num = min(_BLOCK, num_high - start)
        size = num * high_bits // 8
        _unpack_block(high[at : at + size], high_bits, emitted, wide[:num])
        at += size
        piece = values[start : start + num]
        for i in range(num):
            piece[i] = u8(wide[i])
    used, low_at, mask_at = 0, 0, 0
    for start in range(0, exponents.size, _BLOCK):
        x = exponents[start : min(start + _BLOCK, exponents.size)]
        num = (x.size + _GRAIN - 1) // _GRAIN * _GRAIN
        size = num * low_bits // 8
        _unpack_block(low[low_at : low_at + size], low_bits, emitted, wide[:num])
        low_at += size
        for i in range(num):
            mapped[i] = u8(wide[i])
        size = num // group if high_bits > 0 else 0
        any_masked = False
        for i in range(size // 8):
            byte = masks[mask_at + i]
            any_masked |= byte != 0
            for j in range(8):
                flags[8 * i + j] = u8((byte >> j) & 1)
        mask_at += size // 8
        if any_masked:
            for row in range(group):
                y = mapped[row * size : (row + 1) * size]
                for i in range(size):
                    flag = flags[i]
                    y[i] = u8(y[i] | ((values[u64(used)] * flag) << low_bits))
                    used += np.int64(flag)
        for i in range(x.size):
            x[i] = u8(top - u8(u8(u8(mapped[i] + half) & all_bits) - half))
