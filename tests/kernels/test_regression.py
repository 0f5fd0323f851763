"""Vectors predicted on a grid: back ends agree, and the decoder undoes the encoder."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.regression import numba, ref

SHAPES = [(1, 1, 1, 1), (2, 3, 4, 5), (1, 6, 7, 3), (1, 1, 50, 2), (4, 1, 3, 1)]


@pytest.mark.parametrize("largest", [40, 2**31 - 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twins_agree_and_undo(shape, largest):
    rng = np.random.default_rng(0)
    grid = rng.integers(-largest, largest, shape).astype(np.int32)
    known = rng.integers(0, 3, shape[:3]).astype(np.uint8)
    weights = rng.integers(-127, 128, (3, shape[3], shape[3])).astype(np.int32)
    found = []
    for twin in (ref, numba):
        own, residual = grid.copy(), np.full(shape, 7, np.int32)
        twin.encode(own, known, weights, residual)
        assert np.array_equal(own[known != 0], grid[known != 0])
        assert not residual[known == 0].any()
        again = residual.copy()
        twin.decode(again, weights)
        assert np.array_equal(again, own)
        found.append(residual)
    assert np.array_equal(*found)


def test_a_vector_is_told_by_those_before():
    grid = np.zeros((1, 2, 2, 2), np.int32)
    grid[0, 0, 0] = 10, 20
    weights = np.zeros((3, 2, 2), np.int32)
    weights[1] = ref.ONE * np.array([[0, 1], [1, 0]])  # along the second axis: the other component
    residual = np.empty_like(grid)
    ref.encode(grid, np.array([[[1, 1], [0, 1]]], np.uint8), weights, residual)
    assert residual[0, 0].tolist() == [[10, 20], [0, 0]]
    assert grid[0, 1].tolist() == [[20, 10], [0, 0]]
