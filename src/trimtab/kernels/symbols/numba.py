"""Unsigned integers as byte symbols, fast: see ref.py for the format.

Large integers are rare: a word of eight symbols is looked at as a whole. The decoder counts what it takes off the list.
"""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.symbols.ref import _LISTED_BITS, _LOG2, _ONE, ESCAPE, MAX_SAMPLE, MAX_SHIFT, num_planes
from trimtab.kernels.words import load64, trailing_zeros

__all__ = ["ESCAPE", "MAX_SAMPLE", "MAX_SHIFT", "choose_shift", "merge", "num_planes", "split"]

_ESCAPE, _MAX_SHIFT = ESCAPE, MAX_SHIFT
_BLOCK = 4096
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_PLANES = types.Array(types.uint8, 2, "C", readonly=True)
_ALL = np.uint64(0x0101010101010101)
_LOW_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
i32, u8, u32, u64 = np.int32, np.uint8, np.uint32, np.uint64


@kernel(types.int64(types.Array(types.uint32, 1, "C", readonly=True)))
def choose_shift(sample):
    best, least = _MAX_SHIFT, np.int64(-1)
    counts = np.empty(_ESCAPE + 1, np.int64)
    for shift in range(_MAX_SHIFT + 1):
        listed = np.int64(0)
        for k in range(sample.size):
            listed += np.int64((sample[k] >> u32(shift)) >= u32(_ESCAPE))
        if listed * 8 > sample.size:
            continue
        counts[:] = 0
        for k in range(sample.size):
            counts[min(sample[k] >> u32(shift), u32(_ESCAPE))] += 1
        bits = (shift * sample.size + _LISTED_BITS * listed) * _ONE + sample.size * _LOG2[sample.size]
        for symbol in range(_ESCAPE + 1):
            bits -= counts[symbol] * _LOG2[counts[symbol]]
        if least >= 0 and bits >= least:
            break
        best, least = shift, bits
    return best


@kernel(
    types.UniTuple(types.int64, 2)(
        types.Array(types.uint32, 1, "C", readonly=True),
        types.int64,
        types.uint8[::1],
        types.uint8[:, ::1],
        types.int32[::1],
    )
)
def split(z, shift, symbols, low, listed):
    num_listed, num_zeros = np.int64(0), np.int64(0)
    for o in range(0, z.size, _BLOCK):
        values = z[o : min(o + _BLOCK, z.size)]
        s = symbols[o : o + values.size]
        largest, zeros = u8(0), u32(0)
        for k in range(values.size):
            symbol = u8(min(values[k] >> u32(shift), u32(_ESCAPE)))
            s[k] = symbol
            largest = max(largest, symbol)
            zeros += u32(symbol == u8(0))
        num_zeros += np.int64(zeros)
        for p in range((shift + 7) // 8):
            plane = low[p, o : o + values.size]
            mask = u8((1 << min(shift - 8 * p, 8)) - 1)
            for k in range(values.size):
                plane[k] = u8(u8(values[k] >> u32(8 * p)) & mask)
        if largest == u8(_ESCAPE):
            base = types.uintp(s.ctypes.data)
            whole = s.size // 8 * 8
            for at in range(0, whole, 8):
                word = load64(base + types.uintp(at)) ^ (_ALL * u64(_ESCAPE))
                # a byte's high bit is set where the byte is zero
                found = ~(((word & _LOW_BITS) + _LOW_BITS) | word | _LOW_BITS)
                while found != u64(0):
                    value = values[at + (trailing_zeros(found) >> 3)]
                    listed[num_listed] = i32(i32(value >> u32(1)) ^ -i32(value & u32(1)))
                    num_listed += 1
                    found &= found - u64(1)
            for k in range(whole, s.size):
                if s[k] == u8(_ESCAPE):
                    listed[num_listed] = i32(i32(values[k] >> u32(1)) ^ -i32(values[k] & u32(1)))
                    num_listed += 1
    return num_listed, num_zeros


@kernel(types.int64(_BYTES, _PLANES, types.Array(types.int32, 1, "C", readonly=True), types.int64, types.uint32[::1]))
def merge(symbols, low, listed, shift, z):
    num_listed = np.int64(0)
    for o in range(0, z.size, _BLOCK):
        values = z[o : min(o + _BLOCK, z.size)]
        s = symbols[o : o + values.size]
        largest = u8(0)
        for k in range(values.size):
            values[k] = u32(u32(s[k]) << u32(shift))
            largest = max(largest, s[k])
        for p in range((shift + 7) // 8):
            plane = low[p, o : o + values.size]
            for k in range(values.size):
                values[k] = u32(values[k] | u32(u32(plane[k]) << u32(8 * p)))
        if largest > u8(_ESCAPE):
            return -1
        if largest == u8(_ESCAPE):
            base = types.uintp(s.ctypes.data)
            whole = s.size // 8 * 8
            for at in range(0, s.size, 8):
                found = u64(0)
                if at < whole:
                    word = load64(base + types.uintp(at)) ^ (_ALL * u64(_ESCAPE))
                    found = ~(((word & _LOW_BITS) + _LOW_BITS) | word | _LOW_BITS)
                else:
                    for k in range(at, s.size):
                        found |= u64(s[k] == u8(_ESCAPE)) << u64(8 * (k - at) + 7)
                while found != u64(0):
                    if num_listed == listed.size:
                        return -1
                    d = listed[num_listed]
                    values[at + (trailing_zeros(found) >> 3)] = u32(u32(d) << u32(1)) ^ u32(-i32(u32(d) >> u32(31)))
                    num_listed += 1
                    found &= found - u64(1)
    return 0 if num_listed == listed.size else -1
