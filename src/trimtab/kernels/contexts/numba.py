"""Contexts for the tokens of a pyramid, fast: see ref.py for the format.

The decoder is safe on hostile input without a test a symbol, as in `trimtab.kernels.ans`: every state leads to a state,
loads are clamped to the block, and positions come from the shape of the output.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.contexts.ref import MAX_CONTEXTS, NUM_BUCKETS, UNIT, threshold
from trimtab.kernels.jit import kernel
from trimtab.kernels.words import load64, store64

__all__ = ["MAX_CONTEXTS", "NUM_BUCKETS", "UNIT", "buckets_of_class", "decode_class", "threshold"]

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_LONGS = types.Array(types.int64, 1, "C", readonly=True)
_INTS = types.Array(types.int32, 1, "C", readonly=True)
_BITS = 11
_BLOCK = 4096  # a multiple of the number of states
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")
i32, u8, u64 = np.int32, np.uint8, np.uint64


@_inline
def _fill_activities(grids, place, offsets, weights, bias, sums):
    """Sum up the activities of a row. Unsigned indices need no test for negative ones; taps come in fours."""
    for k in range(sums.size):
        sums[k] = i32(bias)
    for t in range(0, offsets.size, 4):
        a0, a1 = u64(place + offsets[t]), u64(place + offsets[t + 1])
        a2, a3 = u64(place + offsets[t + 2]), u64(place + offsets[t + 3])
        w0, w1, w2, w3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        for k in range(u64(sums.size)):
            first = i32(i32(w0 * i32(grids[a0 + k])) + i32(w1 * i32(grids[a1 + k])))
            sums[k] = i32(sums[k] + first + i32(w2 * i32(grids[a2 + k])) + i32(w3 * i32(grids[a3 + k])))


@_inline
def _put_magnitudes(tokens, grids, place):
    magnitudes = grids[place : place + tokens.size]
    for k in range(tokens.size):
        magnitudes[k] = u8(u8(tokens[k] + u8(1)) >> u8(1))


@_inline
def _repeat_ends(grids, place, num):
    grids[place - 1] = grids[place]
    grids[place + num] = grids[place + num + 1] = grids[place + num - 1]


@kernel(
    types.void(
        _BYTES,
        types.uint8[::1],
        types.int64,
        _LONGS,
        _LONGS,
        types.int64,
        _LONGS,
        _INTS,
        types.int64,
        types.uint8[::1],
        types.int64[:, ::1],
    )
)
def buckets_of_class(tokens, grids, start, strides, shape, margin, offsets, weights, bias, buckets, joint):
    num = shape[2]
    sums_room, rounded_room = np.empty(min(num, _BLOCK), np.int32), np.empty(min(num, _BLOCK), np.float32)
    exponents = rounded_room.view(np.int32)
    for r in range(shape[0] * shape[1]):
        place = start + r // shape[1] * strides[0] + r % shape[1] * strides[1]
        for o in range(0, num, _BLOCK):
            size = min(_BLOCK, num - o)
            sums, rounded, e = sums_room[:size], rounded_room[:size], exponents[:size]
            _fill_activities(grids, place + o, offsets, weights, bias, sums)
            first = r * num + o
            row, b = tokens[first : first + size], buckets[first : first + size]
            for k in range(size):
                rounded[k] = np.float32(max(sums[k], i32(0)))  # below 2^24, so exact
            for k in range(size):
                b[k] = u8(i32((e[k] >> 21) - i32(507)) if e[k] > 0 else i32(0))
            for k in range(size):
                joint[u64(b[k]), u64(row[k])] += 1
            _put_magnitudes(row, grids, place + o)
        if margin > 0:
            _repeat_ends(grids, place, num)


@_inline
def _get(state, base, table, bits):
    """Pop one token: return the new state, the table entry and the bits that remain."""
    entry = u64(table[u64(base) + state])
    width = entry & u64(63)
    state = (entry >> u64(16)) + (bits & ((u64(1) << width) - u64(1)))
    return state, entry, bits >> width


@kernel(
    types.void(
        _BYTES,
        types.uint64[::1],
        types.uint64[::1],
        types.Array(types.uint32, 1, "C", readonly=True),
        _INTS,
        types.uint8[::1],
        types.int64,
        _LONGS,
        _LONGS,
        types.int64,
        _LONGS,
        _INTS,
        types.int64,
        types.uint8[::1],
    )
)
def decode_class(
    block, position, states, table, thresholds, grids, start, strides, shape, margin, offsets, weights, bias, tokens
):
    num, room = shape[2], min(shape[2], _BLOCK)
    sums_room, counts_room, bases_room = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.uint16)
    base, limit, at_bit = types.uintp(block.ctypes.data), u64(block.size - 8), position[0]
    out_address = types.uintp(tokens.ctypes.data)
    s0, s1, s2, s3 = states[0], states[1], states[2], states[3]
    s4, s5, s6, s7 = states[4], states[5], states[6], states[7]
    for r in range(shape[0] * shape[1]):
        place = start + r // shape[1] * strides[0] + r % shape[1] * strides[1]
        for o in range(0, num, _BLOCK):
            size = min(_BLOCK, num - o)
            whole = size // 8 * 8
            sums, counts, bases = sums_room[:size], counts_room[:size], bases_room[:size]
            _fill_activities(grids, place + o, offsets, weights, bias, sums)
            counts[:] = i32(0)
            for t in range(0, thresholds.size, 4):
                t0, t1, t2, t3 = thresholds[t], thresholds[t + 1], thresholds[t + 2], thresholds[t + 3]
                for k in range(size):
                    a = sums[k]
                    reached = i32(i32(a >= t0) + i32(a >= t1)) + i32(i32(a >= t2) + i32(a >= t3))
                    counts[k] = i32(counts[k] + i32(reached))
            for k in range(size):
                bases[k] = np.uint16(counts[k] << i32(_BITS))
            first = r * num + o
            address = out_address + types.uintp(first)
            for g in range(0, whole, 8):
                a = bases[g : g + 8]
                at = min(at_bit >> u64(3), limit)
                bits = load64(base + at) >> ((at_bit - (at << u64(3))) & u64(63))
                s0, e0, bits = _get(s0, a[0], table, bits)
                s1, e1, bits = _get(s1, a[1], table, bits)
                s2, e2, bits = _get(s2, a[2], table, bits)
                s3, e3, bits = _get(s3, a[3], table, bits)
                at_bit += (e0 + e1 + e2 + e3) & u64(255)
                at = min(at_bit >> u64(3), limit)
                bits = load64(base + at) >> ((at_bit - (at << u64(3))) & u64(63))
                s4, e4, bits = _get(s4, a[4], table, bits)
                s5, e5, bits = _get(s5, a[5], table, bits)
                s6, e6, bits = _get(s6, a[6], table, bits)
                s7, e7, bits = _get(s7, a[7], table, bits)
                at_bit += (e4 + e5 + e6 + e7) & u64(255)
                byte = u64(0xFF00)
                low = (e0 & byte) >> u64(8) | (e1 & byte) | (e2 & byte) << u64(8) | (e3 & byte) << u64(16)
                high = (e4 & byte) << u64(24) | (e5 & byte) << u64(32) | (e6 & byte) << u64(40) | (e7 & byte) << u64(48)
                store64(address + types.uintp(g), low | high)
            row = tokens[first : first + size]
            if whole < size:
                states[0], states[1], states[2], states[3] = s0, s1, s2, s3
                states[4], states[5], states[6], states[7] = s4, s5, s6, s7
                for k in range(whole, size):
                    at = min(at_bit >> u64(3), limit)
                    bits = load64(base + at) >> ((at_bit - (at << u64(3))) & u64(63))
                    states[k - whole], entry, bits = _get(states[k - whole], bases[k], table, bits)
                    at_bit += entry & u64(63)
                    row[k] = u8((entry >> u64(8)) & u64(255))
                s0, s1, s2, s3 = states[0], states[1], states[2], states[3]
                s4, s5, s6, s7 = states[4], states[5], states[6], states[7]
            _put_magnitudes(row, grids, place + o)
        if margin > 0:
            _repeat_ends(grids, place, num)
    states[0], states[1], states[2], states[3] = s0, s1, s2, s3
    states[4], states[5], states[6], states[7] = s4, s5, s6, s7
    position[0] = at_bit
