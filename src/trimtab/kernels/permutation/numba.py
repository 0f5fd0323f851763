"""Random permutations from given draws, fast: see ref.py."""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel

i32, i64, u64 = np.int32, np.int64, np.uint64


@kernel(types.void(types.Array(types.uint64, 1, "C", readonly=True), types.int32[::1]))
def shuffle(draws, samples):
    num = samples.size
    for i in range(num):
        samples[i] = i32(i)
    for i in range(num):
        other = i + i64(draws[i] % u64(num - i))
        samples[i], samples[other] = samples[other], samples[i]
