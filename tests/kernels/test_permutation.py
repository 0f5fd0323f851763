"""Permutations: back ends agree, and they are PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.permutation import numba, ref


@pytest.mark.parametrize("num", [1, 2, 3, 17, 1000])
def test_twins_agree_and_permute(num):
    draws = np.random.default_rng(num).integers(0, 2**32, num, np.uint64)
    found = []
    for twin in (ref, numba):
        samples = np.full(num, -1, np.int32)
        twin.shuffle(draws, samples)
        found.append(samples)
    assert np.array_equal(*found)
    assert np.array_equal(np.sort(found[0]), np.arange(num))
