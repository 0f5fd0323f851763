"""Vectors on a grid predicted from those one step back along each axis, in whole numbers, the specification.

The vectors stand in ``grid`` (int32[a, b, c, n]). The prediction of component i of a vector is
``(sum of weights[axis, i, j] * v[axis, j] over axes and j + 64) >> 7`` (int64), where v[axis] is the vector one step
back along the axis, zeros where there is none. Differences wrap around in int32.
"""

from __future__ import annotations

import numpy as np

ONE = 128
"""What weights are counted in: so many make up 1."""


def encode(grid: np.ndarray, weights: np.ndarray, residual: np.ndarray) -> None:
    """Write to `residual` (int32[a, b, c, n]) what the predictions miss of `grid`; weights are int32[3, n, n]."""
    for place in np.ndindex(grid.shape[:3]):
        residual[place] = (grid[place] - _prediction(grid, weights, place)).astype(np.int32)


def decode(grid: np.ndarray, weights: np.ndarray) -> None:
    """Replace residuals in `grid` by the vectors again."""
    for place in np.ndindex(grid.shape[:3]):
        grid[place] = (grid[place] + _prediction(grid, weights, place)).astype(np.int32)


def _prediction(grid: np.ndarray, weights: np.ndarray, place: tuple[int, ...]) -> np.ndarray:
    total = np.zeros(grid.shape[3], np.int64)
    for axis in range(3):
        if place[axis]:
            back = tuple(at - (k == axis) for k, at in enumerate(place))
            total += weights[axis].astype(np.int64) @ grid[back].astype(np.int64)
    return (total + ONE // 2) >> 7
