"""Byte planes: the fast twin agrees with the specification, and merging undoes splitting."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.planes import numba, ref


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("signed_float", [False, True])
@pytest.mark.parametrize("size", [0, 1, 7, 2047, 2048, 5001])
def test_twins_agree_and_round_trip(dtype: type, signed_float: bool, size: int) -> None:
    words = np.random.default_rng(size).integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True)
    words.flags.writeable = False
    fast, slow = np.empty(words.nbytes, np.uint8), np.empty(words.nbytes, np.uint8)
    numba.split(words, signed_float, fast)
    ref.split(words, signed_float, slow)
    assert np.array_equal(fast, slow)
    for module in (numba, ref):
        merged = np.zeros(size, dtype)
        module.merge(fast, signed_float, merged)
        assert np.array_equal(merged, words)


@pytest.mark.parametrize(("dtype", "bias"), [(np.float32, 127), (np.float64, 1023 // 8)])
def test_last_plane_is_the_exponent(dtype: type, bias: int) -> None:
    x = np.array([1.0, -1.0, 1.5, -1.75], dtype)
    planes = np.empty(x.nbytes, np.uint8)
    ref.split(x.view(f"u{x.itemsize}"), True, planes)
    assert planes[-4:].tolist() == [bias] * 4
    assert (planes[-8:-4] >> 7).tolist() == [0, 1, 0, 1]
