"""Elements taken apart into byte planes, fast: see ref.py for the format."""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel

__all__ = ["merge", "split"]

_BLOCK = 2048
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_WORDS = (types.uint16, types.uint32, types.uint64)
_LOW_SEVEN = np.uint64(127)
_SEVEN = np.uint64(7)
u8, u64 = np.uint8, np.uint64


@kernel(*(types.void(types.Array(word, 1, "C", readonly=True), types.boolean, types.uint8[::1]) for word in _WORDS))
def split(words, signed_float, planes):
    size = words.itemsize
    low, sign = u64(8 * size - 9), u64(8 * size - 1)
    for start in range(0, words.size, _BLOCK):
        x = words[start : min(start + _BLOCK, words.size)]
        for k in range(size):
            plane = planes[k * words.size + start :][: x.size]
            shift = u64(8 * k)
            if signed_float and k == size - 1:
                for i in range(x.size):
                    plane[i] = u8(u64(x[i]) >> low)
            elif signed_float and k == size - 2:
                for i in range(x.size):
                    plane[i] = u8(((u64(x[i]) >> sign) << _SEVEN) | ((u64(x[i]) >> shift) & _LOW_SEVEN))
            else:
                for i in range(x.size):
                    plane[i] = u8(u64(x[i]) >> shift)


@kernel(*(types.void(_BYTES, types.boolean, word[::1]) for word in _WORDS))
def merge(planes, signed_float, words):
    size = words.itemsize
    low, sign = u64(8 * size - 9), u64(8 * size - 1)
    for start in range(0, words.size, _BLOCK):
        x = words[start : min(start + _BLOCK, words.size)]
        plane = planes[start:][: x.size]
        for i in range(x.size):
            x[i] = u64(plane[i])
        for k in range(1, size):
            plane = planes[k * words.size + start :][: x.size]
            shift = u64(8 * k)
            if signed_float and k == size - 1:
                # the plane below has put the sign where the lowest bit of this one belongs
                for i in range(x.size):
                    value = u64(x[i])
                    second = (value >> low) & u64(1)
                    value = value ^ (second << low)
                    x[i] = value | (second << sign) | (u64(plane[i]) << low)
            else:
                for i in range(x.size):
                    x[i] = u64(x[i]) | (u64(plane[i]) << shift)
