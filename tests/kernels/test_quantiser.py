"""Quantisation: back ends agree to the bit, special values are outliers, exp2 is accurate."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.quantiser import numba, ref

SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 1e30, -1e30, 1e-40, 5e-324]


def field(dtype: type) -> np.ndarray:
    x = np.random.default_rng(0).normal(0, 100, 1000)
    x[:: 1000 // len(SPECIAL)][: len(SPECIAL)] = SPECIAL
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_twins_agree(dtype):
    x = field(dtype)
    starts = np.arange(0, x.size, 64)
    results = []
    for twin in (ref, numba):
        q, outliers = np.zeros((starts.size, 68), np.int32), np.zeros(x.size, np.uint32)
        count = twin.quantise(x, starts, 0.012, 0.005, 2, q, outliers)
        y, z = np.zeros_like(x), np.zeros_like(x)
        twin.dequantise(q, starts, 0.012, 2, y)
        twin.dequantise_exp2(q, starts, 0.001, 2, z)
        results.append((count, q, outliers, y.view(np.uint8), z.view(np.uint8), twin.extent(x)))
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)
    count, _, outliers, y, *_ = results[1]
    assert 100 < count < 300  # a step wider than the bound allows: a sixth of the elements miss it
    kept = np.setdiff1d(np.arange(x.size), outliers[:count])
    assert {0, 125, 250, 500, 625} <= set(outliers[:count].tolist())
    assert np.abs(y.view(dtype)[kept].astype(float) - x[kept]).max() <= 0.005


def test_exp2_is_accurate_over_all_exponents():
    q = np.zeros((1, 4004), np.int32)
    q[0, 2:-2] = np.linspace(-1_000_000, 1_000_000, 4000)
    y = np.empty(4000)
    numba.dequantise_exp2(q, np.zeros(1, np.int64), 1 / 1000, 2, y)
    expected = np.exp2(q[0, 2:-2] * (1 / 1000))
    assert np.abs(y / expected - 1).max() < 1e-15


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extent_of_nothing_finite(dtype):
    assert numba.extent(np.array([np.nan, np.inf], dtype)) == (np.inf, -np.inf)
    assert numba.extent(np.empty(0, dtype)) == (np.inf, -np.inf)
