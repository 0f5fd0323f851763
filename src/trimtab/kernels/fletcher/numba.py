"""Fletcher's checksum of 32 bits, fast: see ref.py."""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel

u64, i64 = np.uint64, np.int64
_BLOCK = 4096  # words whose sums fit in 64 bits, with room


@kernel(types.uint64(types.uint64))
def _rest(total):
    return (total - u64(1)) % u64(65535) + u64(1) if total else u64(0)


@kernel(types.int64(types.Array(types.uint8, 1, "C", readonly=True)))
def checksum(data):
    num = data.size // 2
    a, b = u64(0), u64(0)
    for start in range(0, num, _BLOCK):
        end = min(start + _BLOCK, num)
        some = data[2 * start : 2 * end]
        count = end - start
        sum_a, sum_b = u64(0), u64(0)
        for k in range(count):
            word = u64(some[2 * k]) << u64(8) | u64(some[2 * k + 1])
            sum_a += word
            sum_b += word * u64(count - k)
        b = _rest(b + u64(count) * a + sum_b)
        a = _rest(a + sum_a)
    if data.size % 2:
        a = _rest(a + (u64(data[data.size - 1]) << u64(8)))
        b = _rest(b + a)
    return i64(b << u64(16) | a)
