"""Integers of which most are zero, fast: see ref.py for the format.

The decoder is safe on hostile input: a state is never below 2^32, contexts come from what was decoded and are within
their table by construction, and words are counted before they are read.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.sparse.ref import HEAD_SIZE, MAX_BITS, MAX_COUNT, MAX_LAG, NUM_CONTEXTS

__all__ = ["HEAD_SIZE", "MAX_BITS", "MAX_COUNT", "MAX_LAG", "NUM_CONTEXTS", "decode", "encode"]

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_INTS = types.Array(types.int32, 1, "C", readonly=True)
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")
_HEAD, _CONTEXTS, _COUNT, _TOP = HEAD_SIZE, NUM_CONTEXTS, MAX_COUNT, MAX_BITS - 1
_SIGNS, _SIZES, _BITS = 60, 69, 157
_GROUPS = np.array([5 * (z if z < 6 else 6 + sum(z >= s for s in (12, 24, 48, 96, 192))) for z in range(193)], np.uint8)
_RATES = 65536 // (np.arange(MAX_COUNT + 1) + 2)
_LOW = np.uint64(1 << 32)
i64, u8, u32, u64 = np.int64, np.uint8, np.uint32, np.uint64


@_inline
def _chance(p):
    return min(max(p >> 12, 24), 65536 - 24)


@_inline
def _start(initial, p, n):
    for k in range(_CONTEXTS):
        p[k] = initial << 12 if k < _SIGNS else 1 << 27
        n[k] = 0


@_inline
def _learn(p, n, context, event):
    """Let a context see an event; return the chance that it had."""
    before, count = p[u64(context)], n[u64(context)]
    p[u64(context)] = before + (((event << 28) - before) * _RATES[u64(count)] >> 16)
    n[u64(context)] = count + (count < _COUNT)
    return _chance(before)


@_inline
def _size(value):
    """Return the bits of a positive number but one."""
    bits = 0
    while value > 1:
        value >>= 1
        bits += 1
    return bits


@kernel(types.int64(_INTS, types.int64, types.boolean, types.uint8[::1]))
def encode(q, lag, signed, out):
    num, num_events = q.size, q.size
    found = 0
    for i in range(num):
        if q[i] != 0:
            found += 1
            if signed:
                num_events += 2 + 2 * _size(abs(i64(q[i])))
    initial = max(min((found * 65536 + num // 2) // max(num, 1), 65535), 1)
    p, n = np.empty(_CONTEXTS, np.int64), np.empty(_CONTEXTS, np.int64)
    _start(initial, p, n)
    events = np.empty(num_events, np.uint32)  # the chance, and above it whether the event happened
    margin = 2 * lag + 1
    nonzero = np.zeros(margin + num, np.uint8)
    at, run, last, before, size = 0, 0, 1, 1, 0
    for i in range(num):
        value = i64(q[i])
        here = i + margin
        near = 0
        if lag > 0:
            near = 2 * i64(nonzero[here - lag]) + i64(nonzero[here - lag + 1])
            near = min(near + i64(nonzero[here - lag - 1]) + i64(nonzero[here - 2 * lag]), 4)
        context = i64(_GROUPS[min(run, 192)]) + near
        if value == 0:
            events[at] = u32(_learn(p, n, context, 0))
            at += 1
            run += 1
            continue
        events[at] = u32(_learn(p, n, context, 1) | 1 << 16)
        at += 1
        run = 0
        nonzero[here] = u8(1)
        if not signed:
            continue
        negative = 1 if value < 0 else 0
        events[at] = u32(_learn(p, n, _SIGNS + 3 * last + before, negative) | negative << 16)
        at += 1
        magnitude = abs(value)
        bits = _size(magnitude)
        for k in range(min(bits + 1, _TOP)):
            more = 1 if bits > k else 0
            events[at] = u32(_learn(p, n, _SIZES + 32 * size + k, more) | more << 16)
            at += 1
        known = 1
        for place in range(bits - 1, -1, -1):
            bit = magnitude >> place & 1
            if known < 8:
                events[at] = u32(_learn(p, n, _BITS + 8 * bits + known, bit) | bit << 16)
            else:
                events[at] = u32(32768 | bit << 16)
            at += 1
            known = 2 * known + bit
        before = last
        last = 0 if value < 0 else 2
        size = min(bits, 2)
    x, end = _LOW, out.size
    for k in range(at - 1, -1, -1):
        event = u64(events[k])
        share = event & u64(65535)
        start = u64(0)
        if event >> u64(16) == u64(0):
            start = share
            share = u64(65536) - share
        if x >= share << u64(48):
            end -= 4
            if end < _HEAD:
                return -1
            for b in range(4):
                out[end + b] = u8(x >> u64(8 * b) & u64(255))
            x >>= u64(32)
        quotient = x // share
        x = (quotient << u64(16)) + (x - quotient * share) + start
    if end < _HEAD:
        return -1
    out[0], out[1] = u8(initial & 255), u8(initial >> 8)
    for b in range(8):
        out[2 + b] = u8(x >> u64(8 * b) & u64(255))
    for k in range(out.size - end):
        out[_HEAD + k] = out[end + k]
    return _HEAD + out.size - end


@_inline
def _take(x, f):
    """Return the state behind an event of chance f, before a word is read, and whether it happened."""
    u = x & u64(65535)
    if u < u64(f):
        return u64(f) * (x >> u64(16)) + u, 1
    return (u64(65536) - u64(f)) * (x >> u64(16)) + u - u64(f), 0


@_inline
def _fill(x, words, at):
    """Return a state of at least 2^32, and where the next word is; beyond the last one, zeros are read."""
    if x < _LOW:
        word = u64(0)
        if at + 4 <= words.size:
            word = u64(words[at]) | u64(words[at + 1]) << u64(8)
            word |= u64(words[at + 2]) << u64(16) | u64(words[at + 3]) << u64(24)
        x = x << u64(32) | word
        at += 4
    return x, at


@kernel(types.int64(_BYTES, types.int64, types.boolean, types.int32[::1]))
def decode(block, lag, signed, q):
    if block.size < _HEAD or (block.size - _HEAD) % 4 != 0:
        return -1
    initial = i64(block[0]) | i64(block[1]) << 8
    x = u64(0)
    for b in range(8):
        x |= u64(block[2 + b]) << u64(8 * b)
    if initial == 0 or x < _LOW:
        return -1
    p, n = np.empty(_CONTEXTS, np.int64), np.empty(_CONTEXTS, np.int64)
    _start(initial, p, n)
    margin = 2 * lag + 1
    nonzero = np.zeros(margin + q.size, np.uint8)
    at, run, last, before, size = _HEAD, 0, 1, 1, 0
    for i in range(q.size):
        here = i + margin
        near = 0
        if lag > 0:
            near = 2 * i64(nonzero[here - lag]) + i64(nonzero[here - lag + 1])
            near = min(near + i64(nonzero[here - lag - 1]) + i64(nonzero[here - 2 * lag]), 4)
        context = i64(_GROUPS[min(run, 192)]) + near
        x, event = _take(x, _chance(p[u64(context)]))
        x, at = _fill(x, block, at)
        _learn(p, n, context, event)
        if event == 0:
            q[i] = 0
            run += 1
            continue
        run = 0
        nonzero[here] = u8(1)
        if not signed:
            q[i] = 1
            continue
        context = _SIGNS + 3 * last + before
        x, negative = _take(x, _chance(p[context]))
        x, at = _fill(x, block, at)
        _learn(p, n, context, negative)
        bits, more = 0, 1
        while bits < _TOP and more == 1:
            context = _SIZES + 32 * size + bits
            x, more = _take(x, _chance(p[context]))
            x, at = _fill(x, block, at)
            _learn(p, n, context, more)
            bits += more
        known = 1
        for _ in range(bits):
            if known < 8:
                context = _BITS + 8 * bits + known
                x, bit = _take(x, _chance(p[context]))
                _learn(p, n, context, bit)
            else:
                x, bit = _take(x, 32768)
            x, at = _fill(x, block, at)
            known = 2 * known + bit
        q[i] = np.int32(-known if negative == 1 else known)
        before = last
        last = 0 if negative == 1 else 2
        size = min(bits, 2)
        if at > block.size:
            return -1
    return 0 if x == _LOW and at == block.size else -1
