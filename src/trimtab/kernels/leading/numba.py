"""Floats split into their leading bits and the trailing ones, fast: see ref.py for the format."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.leading.ref import BLOCK, ESCAPE, MAX_SPAN, RUN, WORTH, ZERO, rest_bytes
from trimtab.kernels.words import load64

__all__ = ["BLOCK", "ESCAPE", "MAX_SPAN", "RUN", "WORTH", "ZERO", "merge", "rest_bytes", "split", "survey"]

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_WORDS = (types.uint16, types.uint32)
_TOPS = types.Array(types.uint16, 1, "C", readonly=True)
_BLOCK, _RUN, _ZERO, _ESCAPE = BLOCK, RUN, ZERO, ESCAPE
_MAX_SPAN, _WORTH = MAX_SPAN, WORTH
_ESCAPES = np.uint64(0x0101010101010101 * ESCAPE)
u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64


@numba.njit(forceinline=True, boundscheck=False, error_model="numpy")
def _has_escape(eight):
    """Whether one of eight symbols is an escape."""
    eight ^= _ESCAPES  # turns them into zero bytes
    return (eight - u64(0x0101010101010101)) & ~eight & u64(0x8080808080808080) != u64(0)


def _read(word):
    return types.Array(word, 1, "C", readonly=True)


@kernel(*(types.UniTuple(types.int64, 2)(_read(word), types.int64, types.int64) for word in _WORDS))
def survey(words, low, step):
    tops, sixes = np.zeros(1024, np.int64), np.zeros(64, np.int64)
    bits = u32(8 * words.itemsize - 1)
    has_six, shift = (low + 1) % 8 != 0, u32((low + 1) // 8 * 8)
    num = 0
    for start in range(0, words.size, max(step, _RUN)):
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

    @kernel(types.int64(_read(scalar), types.int64, types.int64, types.uint8[::1], types.uint8[::1], types.uint16[::1]))
    def split_words(words, base, span, symbols, rests, escaped):
        lowest, width = word(base), word(span)
        count, at = 0, num_planes * words.size
        room = np.zeros(_BLOCK, word)
        for start in range(0, words.size, _BLOCK):
            x = words[start : min(start + _BLOCK, words.size)]
            s, rest = symbols[start : start + x.size], room[: x.size]
            largest = u8(0)
            for i in range(x.size):
                top = word(word(x[i] & magnitude_mask) >> shift)
                distance = word(top - lowest)
                symbol = u8(distance) if distance < width else u8(_ESCAPE)
                symbol = u8(_ZERO) if top == word(0) else symbol
                s[i] = symbol
                largest = max(largest, symbol)
            for i in range(x.size):
                rest[i] = word(word(word(x[i] >> bits) << shift) | word(x[i] & low_mask))
            for k in range(num_planes):
                plane, plane_shift = rests[k * words.size + start :][: x.size], word(8 * k)
                for i in range(x.size):
                    plane[i] = u8(rest[i] >> plane_shift)
            if has_six:
                quarter = (x.size + 3) // 4
                room[x.size : 4 * quarter] = word(0)
                a, b, c, d = room[:quarter], room[quarter:][:quarter], room[2 * quarter :], room[3 * quarter :]
                p, q, r = rests[at:][:quarter], rests[at + quarter :][:quarter], rests[at + 2 * quarter :][:quarter]
                # a loop an output: of more arrays in a loop, the compiler would not check that they do not overlap
                for i in range(quarter):
                    p[i] = u8(u8(a[i] >> six_shift) | u8(u8(d[i] >> six_shift) << u8(6)))
                for i in range(quarter):
                    q[i] = u8(u8(b[i] >> six_shift) | u8(u8(u8(d[i] >> six_shift) >> u8(2)) << u8(6)))
                for i in range(quarter):
                    r[i] = u8(u8(c[i] >> six_shift) | u8(u8(u8(d[i] >> six_shift) >> u8(4)) << u8(6)))
                at += 3 * quarter
            if largest >= u8(_ESCAPE):
                address = types.uintp(s.ctypes.data)
                for o in range(0, x.size, 8):
                    if x.size - o < 8 or _has_escape(load64(address + types.uintp(o))):
                        for i in range(o, min(o + 8, x.size)):
                            if s[i] == u8(_ESCAPE):
                                escaped[count] = u16(word(x[i] & magnitude_mask) >> shift)
                                count += 1
        return count

    @kernel(types.int64(_BYTES, _BYTES, _TOPS, types.int64, scalar[::1]))
    def merge_words(symbols, rests, escaped, base, words):
        lowest = word(base)
        count, at = 0, num_planes * words.size
        room = np.zeros(_BLOCK, word)
        for start in range(0, words.size, _BLOCK):
            x = words[start : min(start + _BLOCK, words.size)]
            s, rest = symbols[start : start + x.size], room[: x.size]
            if has_six:
                quarter = (x.size + 3) // 4
                p, q, r = rests[at:][:quarter], rests[at + quarter :][:quarter], rests[at + 2 * quarter :][:quarter]
                a, b, c, d = room[:quarter], room[quarter:][:quarter], room[2 * quarter :], room[3 * quarter :]
                for i in range(quarter):
                    a[i] = word(word(u8(p[i] & u8(63))) << six_shift)
                for i in range(quarter):
                    b[i] = word(word(u8(q[i] & u8(63))) << six_shift)
                for i in range(quarter):
                    c[i] = word(word(u8(r[i] & u8(63))) << six_shift)
                for i in range(quarter):
                    low_four = u8(u8(p[i] >> u8(6)) | u8(u8(q[i] >> u8(6)) << u8(2)))
                    d[i] = word(word(u8(low_four | u8(u8(r[i] >> u8(6)) << u8(4)))) << six_shift)
                at += 3 * quarter
            else:
                rest[:] = word(0)
            for k in range(num_planes):
                plane, plane_shift = rests[k * words.size + start :][: x.size], word(8 * k)
                for i in range(x.size):
                    rest[i] = word(rest[i] | word(word(plane[i]) << plane_shift))
            largest = u8(0)
            for i in range(x.size):
                largest = max(largest, s[i])
                top = word(0) if s[i] == u8(_ZERO) else word(word(s[i]) + lowest)
                magnitude = word(word(word(top << shift) & magnitude_mask) | word(rest[i] & low_mask))
                x[i] = word(word(word(rest[i] >> shift) << bits) | magnitude)
            if largest >= u8(_ESCAPE):
                address = types.uintp(s.ctypes.data)
                for o in range(0, x.size, 8):
                    if x.size - o < 8 or _has_escape(load64(address + types.uintp(o))):
                        for i in range(o, min(o + 8, x.size)):
                            if s[i] == u8(_ESCAPE):
                                if count >= escaped.size:
                                    return -1
                                top = word(word(word(escaped[count]) << shift) & magnitude_mask)
                                x[i] = word(word(word(rest[i] >> shift) << bits) | word(top | word(rest[i] & low_mask)))
                                count += 1
        return 0 if count == escaped.size else -1

    return split_words, merge_words


_TWINS = {low: _twins(low, scalar) for low, scalar in ((5, types.uint16), (7, types.uint16), (21, types.uint32))}


def split(words, low, base, span, symbols, rests, escaped):
    return _TWINS[low][0](words, base, span, symbols, rests, escaped)


def merge(symbols, rests, escaped, low, base, words):
    return _TWINS[low][1](symbols, rests, escaped, base, words)
