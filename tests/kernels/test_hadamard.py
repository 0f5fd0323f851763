"""Hadamard transforms: what they are, and that twins agree to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.hadamard import numba, ref

TWINS = [ref, numba]


def matrix(order: int) -> np.ndarray:
    h = np.ones((1, 1))
    while len(h) < order:
        h = np.block([[h, h], [h, -h]])
    return h


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("order", ref.ORDERS)
def test_it_is_sylvesters_matrix(twin, order: int) -> None:
    z = np.random.default_rng(0).integers(-100, 100, 3 * order).astype(np.float32)
    expected = z.reshape(3, order).astype(np.float64) @ matrix(order)
    twin.transform(z, order)
    assert np.array_equal(z.reshape(3, order), expected)


@pytest.mark.parametrize("order", ref.ORDERS)
def test_twins_agree(order: int) -> None:
    z = np.random.default_rng(1).normal(size=7 * order).astype(np.float32)
    z[:order] *= 1e38  # overflows
    z[order] = np.nan
    w = z.copy()
    ref.transform(z, order)
    numba.transform(w, order)
    assert np.array_equal(z, w, equal_nan=True)
    assert not np.isfinite(z[:order]).all() and np.isnan(z[order : 2 * order]).all()
    assert np.isfinite(z[2 * order :]).all()


@pytest.mark.parametrize("twin", TWINS)
def test_twice_is_a_factor(twin) -> None:
    z = np.arange(512, dtype=np.float32)
    twin.transform(z, 512)
    twin.transform(z, 512)
    assert np.array_equal(z, 512 * np.arange(512))
    twin.transform(z[:0], 512)
