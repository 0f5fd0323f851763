"""Integers as byte symbols: back ends agree over all of uint32, and symbols and list must match."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.symbols import numba, ref

SIZES = [0, 1, 7, 8, 9, 4096, 4100, 10_001]


def sample(size: int, scale: float) -> np.ndarray:
    rng = np.random.default_rng(size)
    return (rng.pareto(1.5, size) * scale).clip(0, 2**32 - 1).astype(np.uint32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [0.1, 30.0, 1e4, 1e8])
@pytest.mark.parametrize("shift", [0, 1, 7, 8, 9, 16, 24])
def test_twins_agree(size, scale, shift):
    z = sample(size, scale)
    if size > 9:
        z[[1, 5, -1]] = 2**32 - 1, 2**31, 240 << shift
        z[6] = (240 << shift) - 1
    made = []
    for twin in (ref, numba):
        symbols, low = np.zeros(size, np.uint8), np.zeros((ref.num_planes(shift), size), np.uint8)
        listed = np.zeros(size, np.int32)
        num_listed, num_zeros = twin.split(z, shift, symbols, low, listed)
        assert num_listed == (symbols == ref.ESCAPE).sum()
        assert num_zeros == (symbols == 0).sum()
        made.append((symbols, low, listed[:num_listed]))
    assert all(map(np.array_equal, *made))
    symbols, low, listed = made[0]
    for twin in (ref, numba):
        back = np.zeros_like(z)
        assert twin.merge(symbols, low, listed, shift, back) == 0
        assert np.array_equal(z, back)
        assert twin.merge(symbols, low, np.append(listed, np.int32(0)), shift, back) == -1
        if listed.size:
            assert twin.merge(symbols, low, listed[:-1].copy(), shift, back) == -1
        if size:
            above = symbols.copy()
            above[-1] = ref.ESCAPE + 1
            assert twin.merge(above, low, listed, shift, back) == -1


@pytest.mark.parametrize("size", [1, 2, 50, 1000, ref.MAX_SAMPLE])
def test_twins_choose_the_same_shift(size):
    for scale in 2.0 ** np.arange(-3, 32):
        z = sample(size, scale)
        assert ref.choose_shift(z) == numba.choose_shift(z)


def test_the_shift_is_about_the_best():
    z = np.abs(np.random.default_rng(0).normal(0, 5000, ref.MAX_SAMPLE)).astype(np.uint32)
    assert (z >> 5).max() > ref.ESCAPE
    assert ref.choose_shift(z) in (6, 7)
    assert ref.choose_shift(z // 1000) == 0
    assert ref.choose_shift(np.full(9, 2**32 - 1, np.uint32)) == ref.MAX_SHIFT
