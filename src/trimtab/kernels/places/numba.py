"""Indices into windows as places, packed, fast: see ref.py for the bytes."""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.places.ref import MOST, bits_of, row_bytes

__all__ = ["MOST", "bits_of", "decode", "encode", "row_bytes"]

_INDICES = types.Array(types.int64, 2, "C", readonly=True)
_NUMBERS = types.Array(types.int64, 1, "C", readonly=True)
_BYTES = types.Array(types.uint8, 2, "C", readonly=True)
u8, i32 = np.uint8, np.int32


@kernel(types.boolean(_INDICES, _NUMBERS, _NUMBERS, types.int64, types.uint8[:, ::1]))
def encode(indices, first, offsets, bits, out):
    num = first.size
    a_byte = 8 // bits
    places = np.zeros(out.shape[1] * a_byte, u8)
    steps = np.empty(num, np.int64)
    found = np.empty(num, u8)
    for row in range(indices.shape[0]):
        index, place, target = indices[row], places[:num], out[row]
        for j in range(num):
            steps[j] = index[j] - first[j]
            place[j] = u8(0)
            found[j] = u8(0)
        for k in range(offsets.size):
            offset = offsets[k]
            for j in range(num):
                here = steps[j] == offset
                place[j] = u8(k) if here else place[j]
                found[j] |= u8(here)
        every = u8(1)
        for j in range(num):
            every &= found[j]
        if not every:
            return False
        for i in range(target.size):
            byte = 0
            for part in range(a_byte):
                byte |= np.int64(places[i * a_byte + part]) << (part * bits)
            target[i] = u8(byte)
    return True


@kernel(types.void(_BYTES, _NUMBERS, _NUMBERS, types.int64, types.int64[:, ::1]))
def decode(packed, first, offsets, bits, indices):
    num = first.size
    a_byte = 8 // bits
    table = np.zeros(256, np.int64)
    for k in range(offsets.size):
        table[k] = offsets[k]
    mask = (1 << bits) - 1
    for row in range(indices.shape[0]):
        index, source = indices[row], packed[row]
        j = 0
        for i in range(source.size):
            byte = np.int64(source[i])
            for _ in range(min(a_byte, num - j)):
                index[j] = first[j] + table[byte & mask]
                byte >>= bits
                j += 1
