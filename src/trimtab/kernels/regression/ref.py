"""Vectors on a grid predicted from those one step back along each axis, in whole numbers, the specification.

The vectors stand in ``grid`` (int32[a, b, c, n]). The prediction of component i of a vector is
``(sum of weights[axis, i, j] * v[axis, j] over axes and j + 64) >> 7`` (int64, then cut to int32), where v[axis] is
the vector one step back along the axis, zeros where there is none. Differences wrap around in int32.
"""

from __future__ import annotations

import numpy as np

ONE = 128
"""What weights are counted in: so many make up 1."""


def encode(grid: np.ndarray, known: np.ndarray, weights: np.ndarray, residual: np.ndarray) -> None:
    """Write to `residual` (int32[a, b, c, n]) what the predictions miss of `grid`; weights are int32[3, n, n].

    Where `known` (uint8[a, b, c]) is 0, there is no vector: the prediction is written to `grid`, and nothing is missed.
    """
    for place in np.ndindex(grid.shape[:3]):
        prediction = _prediction(grid, weights, place).astype(np.int32)
        grid[place] = np.where(known[place] != 0, grid[place], prediction)
        residual[place] = (grid[place].astype(np.int64) - prediction).astype(np.int32)


def decode(grid: np.ndarray, weights: np.ndarray) -> None:
    """Replace residuals in `grid` by the vectors again."""
    for place in np.ndindex(grid.shape[:3]):
        prediction = _prediction(grid, weights, place).astype(np.int32)
        grid[place] = (grid[place].astype(np.int64) + prediction).astype(np.int32)


def _prediction(grid: np.ndarray, weights: np.ndarray, place: tuple[int, ...]) -> np.ndarray:
    total = np.zeros(grid.shape[3], np.int64)
    for axis in range(3):
        if place[axis]:
            back = tuple(at - (k == axis) for k, at in enumerate(place))
            total += weights[axis].astype(np.int64) @ grid[back].astype(np.int64)
    return (total + ONE // 2) >> 7
