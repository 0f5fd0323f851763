"""Integers as byte tokens and raw extra bits, fast: see ref.py for the format.

The decoder reads where the widths of the tokens lead, clamped to the buffer, so it is safe on hostile input; the end is
compared afterwards.
"""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.tokens.ref import NUM_DIRECT, NUM_TOKENS, max_extra_size
from trimtab.kernels.words import load64, store64

__all__ = ["NUM_DIRECT", "NUM_TOKENS", "decode", "encode", "max_extra_size"]

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_VALUES = types.Array(types.int32, 1, "C", readonly=True)
_BLOCK = 4096
u32, u64 = np.uint32, np.uint64


@kernel(types.int64(_VALUES, types.uint8[::1], types.uint8[::1]))
def encode(values, tokens, extra):
    folded, rounded = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.float32)
    exponents = rounded.view(np.uint32)
    start = types.uintp(extra.ctypes.data)
    address, bits, num_bits = start, u64(0), u64(0)
    for o in range(0, values.size, _BLOCK):
        v, t = values[o : o + _BLOCK], tokens[o : o + _BLOCK]
        z, f, e = folded[: v.size], rounded[: v.size], exponents[: v.size]
        for i in range(v.size):
            z[i] = u32(u32(v[i] << 1) ^ u32(v[i] >> 31))
        for i in range(v.size):
            # bits below the 24 that float32 holds are cleared: the conversion must not round up to the next power of two
            f[i] = np.float32(u32(z[i] & u32(0xFFFFFF00)) if z[i] >= u32(1 << 24) else z[i])
        largest = u32(0)
        for i in range(v.size):
            token = u32((e[i] >> u32(21)) - u32(512)) if z[i] >= u32(8) else z[i]
            t[i] = np.uint8(token)
            largest = max(largest, token)
        if largest < u32(8):
            continue
        whole = v.size // 4 * 4 if largest < u32(64) else 0  # up to 14 bits each: four fit behind the 7 that may be left over
        for i in range(0, whole, 4):
            for k in range(4):
                width = u64(max((np.int64(t[i + k]) >> 2) - 1, 0))
                bits |= (u64(z[i + k]) & ((u64(1) << width) - u64(1))) << num_bits
                num_bits += width
            store64(address, bits)
            address += num_bits >> u64(3)
            bits >>= num_bits & u64(56)
            num_bits &= u64(7)
        for i in range(whole, v.size):
            width = u64(max((np.int64(t[i]) >> 2) - 1, 0))
            bits |= (u64(z[i]) & ((u64(1) << width) - u64(1))) << num_bits
            num_bits += width
            store64(address, bits)
            address += num_bits >> u64(3)
            bits >>= num_bits & u64(56)
            num_bits &= u64(7)
    end = np.int64(address - start)
    if num_bits > u64(0):
        extra[end] = np.uint8(bits)
        end += 1
    if 0 < end < 8:
        extra[end:8] = 0
        end = 8
    return end


@kernel(types.int64(_BYTES, _BYTES, types.int32[::1]))
def decode(tokens, extra, values):
    size = extra.size
    base, limit = types.uintp(extra.ctypes.data), u64(max(size - 8, 0))
    position = u64(0)
    for o in range(0, values.size, _BLOCK):
        t, v = tokens[o : o + _BLOCK], values[o : o + _BLOCK]
        largest = np.uint8(0)
        for i in range(t.size):
            largest = max(largest, t[i])
        if largest < np.uint8(8):
            for i in range(v.size):
                v[i] = np.int32((np.int32(t[i]) >> 1) ^ -(np.int32(t[i]) & 1))
            continue
        if size < 8:
            return -1
        for i in range(v.size):
            token = u64(t[i])
            width = u64(max((np.int64(token) >> 2) - 1, 0))
            at = min(position >> u64(3), limit)
            bits = load64(base + at) >> ((position - (at << u64(3))) & u64(63))
            top = token if width == u64(0) else (u64(4) | (token & u64(3))) << width
            z = u32(top | (bits & ((u64(1) << width) - u64(1))))
            position += width
            v[i] = np.int32(z >> u32(1)) ^ -np.int32(z & u32(1))
    end = np.int64((position + u64(7)) >> u64(3))
    return 0 if size == (max(end, 8) if end > 0 else 0) else -1
