"""Integers of which most are zero, fast: see ref.py for the format.

The decoder is safe on hostile input: a state is never below 2^32, contexts come from what was decoded and are within
their table by construction, and words are counted before they are read.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.sparse.ref import (
    DENSITIES,
    HEAD_SIZE,
    LEAST,
    MAX_BITS,
    MAX_COUNT,
    MAX_LAG,
    NUM_CONTEXTS,
    PLACE_COUNT,
)

__all__ = ["HEAD_SIZE", "LEAST", "MAX_BITS", "MAX_COUNT", "MAX_LAG", "NUM_CONTEXTS", "decode", "encode"]

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_INTS = types.Array(types.int32, 1, "C", readonly=True)
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")
_HEAD, _CONTEXTS, _COUNT, _TOP = HEAD_SIZE, NUM_CONTEXTS, MAX_COUNT, MAX_BITS - 1
_SIGNS, _SIZES, _BITS = 225, 270, 358
_LEAST = LEAST
_UNLIKELY, _LIKELY = LEAST << 12, (65536 - LEAST) << 12
_SHARES, _PLACE_COUNT = np.array(DENSITIES), PLACE_COUNT
_PRIOR = 4 << 16
_GROUPS = np.array([45 * sum(z >= start for start in (1, 6, 48, 192)) for z in range(193)], np.uint8)
_RATES = 65536 // (np.arange(MAX_COUNT + 1) + 2)
_LOW = np.uint64(1 << 32)
i64, u8, u32, u64 = np.int64, np.uint8, np.uint32, np.uint64


@_inline
def _start(initial, p, n):
    for k in range(_SIGNS):
        p[k] = max(min(initial * _SHARES[k % 9] >> 8, 65536 - _LEAST), _LEAST) << 12
        n[k] = _PLACE_COUNT
    p[_SIGNS:] = 1 << 27
    n[_SIGNS:] = 0


@_inline
def _learnt(p, rate, event):
    # no arrays: as parameters of what is inlined they would be counted, which takes longer than all the rest
    return p + (((_LIKELY if event == 1 else _UNLIKELY) - p) * rate >> 16)


@_inline
def _log(n):
    """Return the logarithm of base 2 of a number below 2^48, in units of 1/256."""
    e = 0
    for step in (32, 16, 8, 4, 2, 1):
        if n >> (e + step) != 0:
            e += step
    return 256 * (e - 1) + (n << 8 >> e)


_NUM_RISES = 512
_RISES = np.array([_log.py_func(n + 5 << 16) - _log.py_func(n + 4 << 16) for n in range(_NUM_RISES)], np.uint8)


@_inline
def _rise(count):
    """Return what one nonzero more adds to the logarithm."""
    if count < _NUM_RISES:
        return i64(_RISES[count])
    return _log((count << 16) + (1 << 16) + _PRIOR) - _log((count << 16) + _PRIOR)


@_inline
def _columns(num, initial):
    """Return for each column the logarithm of its density, the nonzeros, and the positive less the negative ones."""
    levels = np.empty(num, np.int32)
    for column in range(num):
        levels[column] = np.int32(_log(_PRIOR) - _log(initial * column + _PRIOR))
    return levels, np.zeros(num, np.int32), np.zeros(num, np.int32)


@_inline
def _sign(last, before, balance):
    """Return the context of whether a nonzero is negative."""
    v = i64(balance >= -2) + i64(balance >= 0) + i64(balance >= 1) + i64(balance >= 3)
    return u64(_SIGNS + 15 * last + 5 * before + v)


@_inline
def _size(value):
    """Return the bits of a positive number but one."""
    bits = 0
    while value > 1:
        value >>= 1
        bits += 1
    return bits


@kernel(types.int64(_INTS, types.int64, types.int64, types.boolean, types.uint8[::1]))
def encode(q, width, lag, signed, out):
    num, num_events = q.size, q.size
    found = 0
    for i in range(num):
        if q[i] != 0:
            found += 1
            if signed:
                num_events += 2 + 2 * _size(abs(i64(q[i])))
    initial = max(min((found * 65536 + num // 2) // max(num, 1), 65536 - _LEAST), _LEAST)
    p, n = np.empty(_CONTEXTS, np.int64), np.empty(_CONTEXTS, np.int64)
    _start(initial, p, n)
    events = np.empty(num_events, np.uint32)  # the chance, and above it whether the event happened
    margin = 2 * lag + 1
    nonzero = np.zeros(margin + num, np.uint8)
    levels, counts, balances = _columns(min(width, num), initial)
    at, run, last, before, size = 0, 0, 1, 1, 0
    for first in range(0, num, width):
        level, count = _log(_PRIOR) - _log(initial * (first // width) + _PRIOR) + 64, 0
        for column in range(min(width, num - first)):
            value = i64(q[first + column])
            here = first + column + margin
            near = 0
            if lag > 0:
                near = 2 * i64(nonzero[here - lag]) + i64(nonzero[here - lag + 1])
                near = min(near + i64(nonzero[here - lag - 1]) + i64(nonzero[here - 2 * lag]), 4)
            density = max(min((level + i64(levels[column])) >> 7, 4), -4) + 4
            context = u64(i64(_GROUPS[min(run, 192)]) + 9 * near + density)
            event = 1 if value != 0 else 0
            events[at] = u32(p[context] >> 12 | event << 16)
            at += 1
            p[context] = _learnt(p[context], _RATES[u64(n[context])], event)
            n[context] += n[context] < _COUNT
            if event == 0:
                run += 1
                continue
            run = 0
            nonzero[here] = u8(1)
            level += _rise(count)
            levels[column] += np.int32(_rise(i64(counts[column])))
            count += 1
            counts[column] += np.int32(1)
            if not signed:
                continue
            negative = 1 if value < 0 else 0
            magnitude = abs(value)
            bits = _size(magnitude)
            num_sizes = min(bits + 1, _TOP)
            known = 1
            for k in range(1 + num_sizes + bits):
                if k == 0:
                    context, event = _sign(last, before, i64(balances[column])), negative
                elif k <= num_sizes:
                    context, event = u64(_SIZES + 32 * size + k - 1), 1 if bits >= k else 0
                else:
                    event = magnitude >> (num_sizes + bits - k) & 1
                    if known >= 8:
                        events[at] = u32(32768 | event << 16)
                        at += 1
                        continue
                    context = u64(_BITS + 8 * bits + known)
                    known = 2 * known + event
                events[at] = u32(p[context] >> 12 | event << 16)
                at += 1
                p[context] = _learnt(p[context], _RATES[u64(n[context])], event)
                n[context] += n[context] < _COUNT
            balances[column] += np.int32(1 - 2 * negative)
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


@kernel(types.int64(_BYTES, types.int64, types.int64, types.boolean, types.int32[::1]))
def decode(block, width, lag, signed, q):
    if block.size < _HEAD or (block.size - _HEAD) % 4 != 0:
        return -1
    initial = i64(block[0]) | i64(block[1]) << 8
    x = u64(0)
    for b in range(8):
        x |= u64(block[2 + b]) << u64(8 * b)
    if initial < _LEAST or initial > 65536 - _LEAST or x < _LOW:
        return -1
    num_words = (block.size - _HEAD) // 4
    words = np.zeros(num_words + 1, np.uint32)  # beyond the last one, zeros are read
    for k in range(num_words):
        first = _HEAD + 4 * k
        low = u32(block[first]) | u32(block[first + 1]) << u32(8)
        words[k] = low | u32(block[first + 2]) << u32(16) | u32(block[first + 3]) << u32(24)
    p, n = np.empty(_CONTEXTS, np.int64), np.empty(_CONTEXTS, np.int64)
    _start(initial, p, n)
    margin = 2 * lag + 1
    nonzero = np.zeros(margin + q.size, np.uint8)
    levels, counts, balances = _columns(min(width, q.size), initial)
    at, run, last, before, size = 0, 0, 1, 1, 0
    for first in range(0, q.size, width):
        level, count = _log(_PRIOR) - _log(initial * (first // width) + _PRIOR) + 64, 0
        for column in range(min(width, q.size - first)):
            here = first + column + margin
            near = 0
            if lag > 0:
                near = 2 * i64(nonzero[here - lag]) + i64(nonzero[here - lag + 1])
                near = min(near + i64(nonzero[here - lag - 1]) + i64(nonzero[here - 2 * lag]), 4)
            density = max(min((level + i64(levels[column])) >> 7, 4), -4) + 4
            context = u64(i64(_GROUPS[min(run, 192)]) + 9 * near + density)
            chance, rate = p[context], _RATES[u64(n[context])]
            n[context] += n[context] < _COUNT
            f, u = u64(chance >> 12), x & u64(65535)
            # a branch, which the processor foresees, and not a choice of values, which it would wait for
            if u >= f:
                p[context] = _learnt(chance, rate, 0)
                x = (u64(65536) - f) * (x >> u64(16)) + u - f
                if x < _LOW:
                    x = x << u64(32) | u64(words[min(at, num_words)])
                    at += 1
                q[first + column] = 0
                run += 1
                continue
            p[context] = _learnt(chance, rate, 1)
            x = f * (x >> u64(16)) + u
            if x < _LOW:
                x = x << u64(32) | u64(words[min(at, num_words)])
                at += 1
            run = 0
            nonzero[here] = u8(1)
            level += _rise(count)
            levels[column] += np.int32(_rise(i64(counts[column])))
            count += 1
            counts[column] += np.int32(1)
            if not signed:
                q[first + column] = 1
                continue
            # the sign, then whether there are more bits until there are not, then the bits
            context = _sign(last, before, i64(balances[column]))
            stage, negative, bits, known, left = 0, 0, 0, 1, 0
            while True:
                even = stage == 2 and known >= 8
                f, u = u64(32768 if even else p[context] >> 12), x & u64(65535)
                event = 1 if u < f else 0
                x = f * (x >> u64(16)) + u if event == 1 else (u64(65536) - f) * (x >> u64(16)) + u - f
                if x < _LOW:
                    x = x << u64(32) | u64(words[min(at, num_words)])
                    at += 1
                if not even:
                    p[context] = _learnt(p[context], _RATES[u64(n[context])], event)
                    n[context] += n[context] < _COUNT
                if stage == 0:
                    negative, stage = event, 1
                    context = u64(_SIZES + 32 * size)
                    continue
                if stage == 1:
                    bits += event
                    if event == 1 and bits < _TOP:
                        context += u64(1)
                        continue
                    stage, left = 2, bits
                else:
                    known = 2 * known + event
                    left -= 1
                if left == 0:
                    break
                context = u64(_BITS + 8 * bits + min(known, 7))
            q[first + column] = np.int32(-known if negative == 1 else known)
            balances[column] += np.int32(1 - 2 * negative)
            before = last
            last = 0 if negative == 1 else 2
            size = min(bits, 2)
            if at > num_words:
                return -1
    return 0 if x == _LOW and at == num_words else -1
