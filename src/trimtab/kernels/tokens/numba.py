"""Integers as byte tokens and raw extra bits, fast: see ref.py for the format.

The decoder reads where the widths of the tokens lead, clamped to the buffer, so it is safe on hostile input; the end is
compared afterwards.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.tokens.ref import NUM_DIRECT, NUM_TOKENS, max_extra_size
from trimtab.kernels.words import load64, shift_right32, store64

__all__ = ["NUM_DIRECT", "NUM_TOKENS", "decode", "encode", "max_extra_size"]

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_ROWS = types.Array(types.int32, 2, "C", readonly=True)
_TOKENS = types.Array(types.uint8, 2, "C", readonly=True)
_BLOCK = 4096
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")
i32, u32, u64 = np.int32, np.uint32, np.uint64


@_inline
def _gather(rows, margin, o, num, z):
    """Fold the integers from flat place `o` on into `z`."""
    done = 0
    while done < z.size:
        r, k = (o + done) // num, (o + done) % num
        size = min(num - k, z.size - done)
        v, part = rows[r, margin + k : margin + k + size], z[done : done + size]
        for i in range(size):
            part[i] = u32(u32(v[i] << 1) ^ u32(shift_right32(v[i], i32(31))))
        done += size


@_inline
def _encode_block(t, z, f, e, address, bits, num_bits):
    """Fill tokens `t` from folded integers `z` and write their extra bits; `f` and `e` are the same room."""
    for i in range(t.size):
        # bits below the 24 that float32 holds are cleared: the conversion must not round up to the next power of two
        f[i] = np.float32(u32(z[i] & u32(0xFFFFFF00)) if z[i] >= u32(1 << 24) else z[i])
    largest = u32(0)
    for i in range(t.size):
        token = u32((e[i] >> u32(21)) - u32(512)) if z[i] >= u32(8) else z[i]
        t[i] = np.uint8(token)
        largest = max(largest, token)
    if largest < u32(8):
        return address, bits, num_bits
    for i in range(t.size):
        e[i] = u32(max(i32(t[i] >> np.uint8(2)) - i32(1), i32(0)))
    for i in range(t.size):
        z[i] = u32(z[i] & u32(u32(u32(1) << e[i]) - u32(1)))
    whole = (
        t.size // 4 * 4 if largest < u32(64) else 0
    )  # up to 14 bits each: four fit behind the 7 that may be left over
    for i in range(0, whole, 4):
        w1 = u64(e[i])
        w2 = w1 + u64(e[i + 1])
        w3 = w2 + u64(e[i + 2])
        four = u64(z[i]) | u64(z[i + 1]) << w1 | u64(z[i + 2]) << w2 | u64(z[i + 3]) << w3
        bits |= four << num_bits
        num_bits += w3 + u64(e[i + 3])
        store64(address, bits)
        address += num_bits >> u64(3)
        bits >>= num_bits & u64(56)
        num_bits &= u64(7)
    for i in range(whole, t.size):
        bits |= u64(z[i]) << num_bits
        num_bits += u64(e[i])
        store64(address, bits)
        address += num_bits >> u64(3)
        bits >>= num_bits & u64(56)
        num_bits &= u64(7)
    return address, bits, num_bits


@kernel(types.int64(_ROWS, types.int64, types.uint8[:, ::1], types.uint8[::1]))
def encode(rows, margin, tokens, extra):
    folded, rounded = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.float32)
    exponents = rounded.view(np.uint32)
    start = types.uintp(extra.ctypes.data)
    address, bits, num_bits = start, u64(0), u64(0)
    num, flat = tokens.shape[1], tokens.reshape(-1)
    stretch = (
        _BLOCK // max(num, 1) * num if num <= _BLOCK else num
    )  # whole rows that fill a block, or one row in pieces
    for p in range(0, flat.size, max(stretch, 1)):
        for o in range(p, min(p + stretch, flat.size), _BLOCK):
            end = min(o + _BLOCK, p + stretch, flat.size)
            t = flat[o:end]
            z, f, e = folded[: t.size], rounded[: t.size], exponents[: t.size]
            _gather(rows, margin, o, num, z)
            address, bits, num_bits = _encode_block(t, z, f, e, address, bits, num_bits)
    end = np.int64(address - start)
    if num_bits > u64(0):
        extra[end] = np.uint8(bits)
        end += 1
    if 0 < end < 8:
        extra[end:8] = 0
        end = 8
    return end


@_inline
def _merge(entry, bits):
    return u32((entry >> u64(32)) | (bits & ((u64(1) << (entry & u64(63))) - u64(1))))


@_inline
def _scatter(z, o, num, margin, rows):
    """Unfold `z` into the rows from flat place `o` on."""
    done = 0
    while done < z.size:
        r, k = (o + done) // num, (o + done) % num
        size = min(num - k, z.size - done)
        v, part = rows[r, margin + k : margin + k + size], z[done : done + size]
        for i in range(size):
            v[i] = i32(u32(part[i] >> u32(1)) ^ u32(-i32(part[i] & u32(1))))
        done += size


@kernel(types.int64(_TOKENS, _BYTES, types.int64, types.int32[:, ::1]))
def decode(tokens, extra, margin, rows):
    size = extra.size
    base, limit = types.uintp(extra.ctypes.data), u64(max(size - 8, 0))
    entries = np.zeros(256, np.uint64)  # what a token stands for before its extra bits << 32 | their number
    for token in range(256):
        width = max((token >> 2) - 1, 0) & 31
        entries[token] = u64((token if width == 0 else (4 | token & 3) << width) & 0xFFFFFFFF) << u64(32) | u64(width)
    folded = np.empty(_BLOCK, np.uint32)
    position = u64(0)
    num, flat = tokens.shape[1], tokens.reshape(-1)
    stretch = _BLOCK // max(num, 1) * num if num <= _BLOCK else num
    for p in range(0, flat.size, max(stretch, 1)):
        for o in range(p, min(p + stretch, flat.size), _BLOCK):
            t = flat[o : min(o + _BLOCK, p + stretch, flat.size)]
            z = folded[: t.size]
            largest = np.uint8(0)
            for i in range(t.size):
                largest = max(largest, t[i])
            if largest < np.uint8(8):
                for i in range(t.size):
                    z[i] = u32(t[i])
            elif size < 8:
                return -1
            else:
                whole = t.size // 4 * 4 if largest < np.uint8(64) else 0  # up to 14 bits each: one load holds four
                for i in range(0, whole, 4):
                    at = min(position >> u64(3), limit)
                    bits = load64(base + at) >> ((position - (at << u64(3))) & u64(63))
                    a, b, c, d = entries[t[i]], entries[t[i + 1]], entries[t[i + 2]], entries[t[i + 3]]
                    z[i] = _merge(a, bits)
                    bits >>= a & u64(63)
                    z[i + 1] = _merge(b, bits)
                    bits >>= b & u64(63)
                    z[i + 2] = _merge(c, bits)
                    bits >>= c & u64(63)
                    z[i + 3] = _merge(d, bits)
                    position += (a + b + c + d) & u64(255)
                for i in range(whole, t.size):
                    at = min(position >> u64(3), limit)
                    bits = load64(base + at) >> ((position - (at << u64(3))) & u64(63))
                    entry = entries[t[i]]
                    z[i] = _merge(entry, bits)
                    position += entry & u64(63)
            _scatter(z, o, num, margin, rows)
    end = np.int64((position + u64(7)) >> u64(3))
    return 0 if size == (max(end, 8) if end > 0 else 0) else -1
