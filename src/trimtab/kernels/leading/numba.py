"""Floats split into their leading bits and the trailing ones, fast: see ref.py for the format."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.leading.ref import BLOCK, ESCAPE, MAX_SPAN, RUN, WORTH, ZERO, rest_bytes
from trimtab.kernels.words import equal_bytes, prefetch, trailing_zeros

__all__ = ["BLOCK", "ESCAPE", "MAX_SPAN", "RUN", "WORTH", "ZERO", "merge", "rest_bytes", "split", "survey"]

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_WORDS = (types.uint16, types.uint32)
_TOPS = types.Array(types.uint16, 1, "C", readonly=True)
_BLOCK, _RUN, _ZERO, _ESCAPE = BLOCK, RUN, ZERO, ESCAPE
_MAX_SPAN, _WORTH = MAX_SPAN, WORTH
_AHEAD = 16  # runs of the survey that are asked for before they are looked at
u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")


def _read(word):
    return types.Array(word, 1, "C", readonly=True)


@kernel(*(types.UniTuple(types.int64, 2)(_read(word), types.int64, types.int64) for word in _WORDS))
def survey(words, low, step):
    tops, sixes = np.zeros(1024, np.int64), np.zeros(64, np.int64)
    bits = u32(8 * words.itemsize - 1)
    has_six, shift = (low + 1) % 8 != 0, u32((low + 1) // 8 * 8)
    num = 0
    step = max(step, _RUN)
    address = types.uintp(words.ctypes.data)
    for start in range(0, words.size, step):
        # runs are far from each other: without being asked for ahead, each would be waited for
        for line in range(0, _RUN * words.itemsize, 64):
            prefetch(address + types.uintp((start + _AHEAD * step) * words.itemsize + line))
        run = words[start : start + _RUN]
        num += run.size
        for i in range(run.size):
            w = u32(run[i])
            magnitude = u32(w & u32(u32(u32(1) << bits) - u32(1)))
            tops[u32(magnitude >> u32(low))] += 1
            rest = u32(u32(u32(w >> bits) << u32(low)) | u32(magnitude & u32(u32(u32(1) << u32(low)) - u32(1))))
            sixes[u32(rest >> shift) & u32(63)] += 1
    if has_six:
        squares = 0
        for k in range(64):
            squares += sixes[k] * sixes[k]
        if 256 * squares > 5 * num * num + 256 * num:
            return 1, 0
    tops[0] = 0
    first, last = 0, 0
    for top in range(1, 1024):
        if tops[top] * _WORTH > num:
            first = top if first == 0 else first
            last = top
    if first == 0:
        return 1, 1
    if last - first < _MAX_SPAN:
        return first, last - first + 1
    inside = 0
    for top in range(1, 1 + _MAX_SPAN):
        inside += tops[top]
    best, most = 1, inside
    for base in range(2, 1024 - _MAX_SPAN + 1):
        inside += tops[base + _MAX_SPAN - 1] - tops[base - 1]
        if inside > most:
            best, most = base, inside
    return best, _MAX_SPAN


def _twins(low, scalar):
    """Return `split` and `merge` for words of one type: with shifts known beforehand they are several times as fast."""
    word = np.dtype(scalar.name).type  # all arithmetic is as narrow as the elements: more of them fit into a vector
    num_bits, num_planes, has_six = np.dtype(word).itemsize * 8, (low + 1) // 8, (low + 1) % 8 != 0
    bits, shift, six_shift = word(num_bits - 1), word(low), word(8 * num_planes)
    magnitude_mask, low_mask = word((1 << (num_bits - 1)) - 1), word((1 << low) - 1)
    rest_mask = word(1 << (num_bits - 1) | (1 << low) - 1)

    @_inline
    def top_of(x):
        return word(word(x & magnitude_mask) >> shift)

    @_inline
    def rest_of(x):
        return word(word(word(x >> bits) << shift) | word(x & low_mask))

    @_inline
    def six_of(x):
        return u8(rest_of(x) >> six_shift)

    @_inline
    def from_top(top):
        return word(word(top << shift) & magnitude_mask)

    @_inline
    def from_rest(rest):
        return word(word(word(rest >> shift) << bits) | word(rest & low_mask))

    @_inline
    def from_symbol(symbol, lowest):
        return from_top(word(0) if symbol == u8(_ZERO) else word(word(symbol) + lowest))

    @_inline
    def from_six(six):
        return from_rest(word(word(six) << six_shift))

    @kernel(types.int64(_read(scalar), types.int64, types.int64, types.uint8[::1], types.uint8[::1], types.uint16[::1]))
    def split_words(words, base, span, symbols, rests, escaped):
        lowest, width = word(base), word(span)
        count, at = 0, num_planes * words.size
        padded = np.zeros(_BLOCK, word)
        for start in range(0, words.size, _BLOCK):
            x = words[start : min(start + _BLOCK, words.size)]
            s = symbols[start : start + x.size]
            largest = u8(0)
            for i in range(x.size):
                top = top_of(x[i])
                distance = word(top - lowest)
                symbol = u8(distance) if distance < width else u8(_ESCAPE)
                symbol = u8(_ZERO) if top == word(0) else symbol
                s[i] = symbol
                largest = max(largest, symbol)
            for k in range(num_planes):
                plane, plane_shift = rests[k * words.size + start :][: x.size], word(8 * k)
                for i in range(x.size):
                    plane[i] = u8(rest_of(x[i]) >> plane_shift)
            if has_six:
                quarter = (x.size + 3) // 4
                a, b, c, d = x[:quarter], x[quarter:][:quarter], x[2 * quarter :], x[3 * quarter :]
                if x.size % 4 != 0:
                    for i in range(x.size):
                        padded[i] = x[i]
                    padded[x.size :] = word(0)
                    c, d = padded[2 * quarter :], padded[3 * quarter :]
                    b = padded[quarter:][:quarter]
                p, q, r = rests[at:][:quarter], rests[at + quarter :][:quarter], rests[at + 2 * quarter :][:quarter]
                # a loop an output: of more arrays in a loop, the compiler would not check that they do not overlap
                for i in range(quarter):
                    p[i] = u8(six_of(a[i]) | u8(six_of(d[i]) << u8(6)))
                for i in range(quarter):
                    q[i] = u8(six_of(b[i]) | u8(u8(six_of(d[i]) >> u8(2)) << u8(6)))
                for i in range(quarter):
                    r[i] = u8(six_of(c[i]) | u8(u8(six_of(d[i]) >> u8(4)) << u8(6)))
                at += 3 * quarter
            if largest >= u8(_ESCAPE):
                address = types.uintp(s.ctypes.data)
                whole = x.size // 64 * 64
                for o in range(0, whole, 64):
                    found = equal_bytes(address + types.uintp(o), u8(_ESCAPE))
                    while found != u64(0):
                        escaped[count] = u16(top_of(x[o + trailing_zeros(found)]))
                        count += 1
                        found &= found - u64(1)
                for i in range(whole, x.size):
                    if s[i] == u8(_ESCAPE):
                        escaped[count] = u16(top_of(x[i]))
                        count += 1
        return count

    @kernel(types.int64(_BYTES, _BYTES, _TOPS, types.int64, scalar[::1]))
    def merge_words(symbols, rests, escaped, base, words):
        lowest = word(base)
        count, at = 0, num_planes * words.size
        for start in range(0, words.size, _BLOCK):
            x = words[start : min(start + _BLOCK, words.size)]
            s = symbols[start : start + x.size]
            if has_six:
                quarter = (x.size + 3) // 4
                p, q, r = rests[at:][:quarter], rests[at + quarter :][:quarter], rests[at + 2 * quarter :][:quarter]
                for k in range(3):
                    begin = min(k * quarter, x.size)
                    end = min(begin + quarter, x.size)
                    y, t, six = x[begin:end], s[begin:end], rests[at + k * quarter :][:quarter]
                    for i in range(y.size):
                        y[i] = word(from_symbol(t[i], lowest) | from_six(u8(six[i] & u8(63))))
                y, t = x[min(3 * quarter, x.size) :], s[min(3 * quarter, x.size) :]
                for i in range(y.size):
                    low_four = u8(u8(p[i] >> u8(6)) | u8(u8(q[i] >> u8(6)) << u8(2)))
                    y[i] = word(from_symbol(t[i], lowest) | from_six(u8(low_four | u8(u8(r[i] >> u8(6)) << u8(4)))))
                at += 3 * quarter
            else:
                for i in range(x.size):
                    x[i] = from_symbol(s[i], lowest)
            for k in range(num_planes):
                plane, plane_shift = rests[k * words.size + start :][: x.size], word(8 * k)
                for i in range(x.size):
                    x[i] = word(x[i] | from_rest(word(word(plane[i]) << plane_shift)))
            largest = u8(0)
            for i in range(x.size):
                largest = max(largest, s[i])
            if largest >= u8(_ESCAPE):
                address = types.uintp(s.ctypes.data)
                whole = x.size // 64 * 64
                for o in range(0, whole, 64):
                    found = equal_bytes(address + types.uintp(o), u8(_ESCAPE))
                    while found != u64(0):
                        if count >= escaped.size:
                            return -1
                        i = o + trailing_zeros(found)
                        x[i] = word(word(x[i] & rest_mask) | from_top(word(escaped[count])))
                        count += 1
                        found &= found - u64(1)
                for i in range(whole, x.size):
                    if s[i] == u8(_ESCAPE):
                        if count >= escaped.size:
                            return -1
                        x[i] = word(word(x[i] & rest_mask) | from_top(word(escaped[count])))
                        count += 1
        return 0 if count == escaped.size else -1

    return split_words, merge_words


_TWINS = {low: _twins(low, scalar) for low, scalar in ((5, types.uint16), (7, types.uint16), (21, types.uint32))}


def split(words, low, base, span, symbols, rests, escaped):
    return _TWINS[low][0](words, base, span, symbols, rests, escaped)


def merge(symbols, rests, escaped, low, base, words):
    return _TWINS[low][1](symbols, rests, escaped, base, words)
