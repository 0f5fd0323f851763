"""LZF streams, fast: see ref.py."""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel

i64 = np.int64


@kernel(types.int64(types.Array(types.uint8, 1, "C", readonly=True), types.uint8[::1]))
def decode(data, found):
    at, size, num, most = i64(0), i64(0), i64(data.size), i64(found.size)
    while at < num:
        control = i64(data[at])
        at += 1
        if control < 32:
            length = control + 1
            if at + length > num or size + length > most:
                return i64(-1)
            for k in range(length):
                found[size + k] = data[at + k]
            at += length
        else:
            length = (control >> 5) + 2
            if length == 9:
                if at >= num:
                    return i64(-1)
                length += i64(data[at])
                at += 1
            if at >= num:
                return i64(-1)
            start = size - ((control & 31) << 8) - i64(data[at]) - 1
            at += 1
            if start < 0 or size + length > most:
                return i64(-1)
            for k in range(length):
                found[size + k] = found[start + k]
        size += length
    return size
