"""Runs of zero tokens as symbols of their own, fast: see ref.py for the format."""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.runs.ref import MAX_POWER, NUM_TOKENS
from trimtab.kernels.words import count_ones, load64, store64, trailing_zeros

__all__ = ["MAX_POWER", "NUM_TOKENS", "fold", "unfold"]

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_TOKENS, _MAX_POWER = NUM_TOKENS, MAX_POWER
_LOW_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
_TOGETHER = np.uint64(0x0102040810204080)
_BLOCK = 4096
_GROUP = 4  # places that are listed without a branch; what is too much lands in spare space, or is overwritten
u8, u64 = np.uint8, np.uint64


@kernel(types.int64(types.int64, types.uint8[::1], types.int64))
def _put_run(run, symbols, count):
    """Write the symbols of a run of zeros from place `count` on; return the place behind them."""
    for _ in range(run >> _MAX_POWER):
        symbols[count] = u8(_TOKENS - 1 + _MAX_POWER)
        count += 1
    for power in range(_MAX_POWER):
        if (run >> power) & 1:
            symbols[count] = u8(_TOKENS - 1 + power if power > 0 else 0)
            count += 1
    return count


@kernel(types.int64(_BYTES, types.uint8[::1]))
def fold(tokens, symbols):
    # for each short run its symbols in a word, so that most runs are written without a branch
    words, lengths, digits = np.zeros(256, np.uint64), np.zeros(256, np.int64), np.zeros(8, np.uint8)
    for run in range(256):
        lengths[run] = _put_run(run, digits, 0)
        for k in range(lengths[run]):
            words[run] |= u64(digits[k]) << u64(8 * k)
    base, address = types.uintp(tokens.ctypes.data), types.uintp(symbols.ctypes.data)
    places = np.empty(_BLOCK + _GROUP, np.int64)
    count, begin = 0, 0
    for o in range(0, tokens.size, _BLOCK):
        end = min(o + _BLOCK, tokens.size)
        whole = o + (end - o) // 64 * 64
        num = u64(0)  # tokens other than zero, whose places are listed first
        for at in range(o, whole, 64):
            mask = u64(0)
            for k in range(0, 64, 8):
                word = load64(base + types.uintp(at + k))
                # a byte's high bit is set where the byte is not zero; the product moves these bits together
                found = (((word & _LOW_BITS) + _LOW_BITS) | word) & ~_LOW_BITS
                mask |= (((found >> u64(7)) * _TOGETHER) >> u64(56)) << u64(k)
            last = num + u64(count_ones(mask))
            while num < last:
                for k in range(_GROUP):
                    places[num + u64(k)] = at + trailing_zeros(mask)
                    mask &= mask - u64(1)
                num += u64(_GROUP)
            num = last
        for place in range(whole, end):
            if tokens[place] != 0:
                places[num] = place
                num += u64(1)
        for k in range(num):
            place = places[k]
            run = place - begin
            if run < 256:
                store64(address + types.uintp(count), words[run])
                count += lengths[run]
            else:
                count = _put_run(run, symbols, count)
            symbols[count] = tokens[place]
            count += 1
            begin = place + 1
    return _put_run(tokens.size - begin, symbols, count)


@kernel(types.int64(_BYTES, types.uint8[::1]))
def unfold(symbols, tokens):
    values, lengths = np.zeros(256, np.uint8), np.empty(256, np.int64)
    for symbol in range(_TOKENS):
        values[symbol], lengths[symbol] = u8(symbol), 1
    for power in range(1, _MAX_POWER + 1):
        lengths[_TOKENS - 1 + power] = np.int64(1) << power
    tokens[:] = u8(0)
    at = 0
    for k in range(symbols.size):
        if at >= tokens.size:
            return -1
        tokens[at] = values[symbols[k]]
        at += lengths[symbols[k]]
    return 0 if at == tokens.size else -1
