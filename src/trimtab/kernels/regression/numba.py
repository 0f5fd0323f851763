"""Vectors on a grid predicted from those one step back along each axis, fast: see ref.py for the arithmetic."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.regression.ref import ONE

__all__ = ["ONE", "decode", "encode"]

_MASK = types.Array(types.uint8, 3, "C", readonly=True)
_WEIGHTS = types.Array(types.int32, 3, "C", readonly=True)
i32, i64 = np.int32, np.int64
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")


@_inline
def _predict(grid, weights, a, b, c, total):
    num = total.size
    for i in range(num):
        total[i] = 64
    for axis in range(3):
        if (a, b, c)[axis] > 0:
            back = grid[a - (axis == 0), b - (axis == 1), c - (axis == 2)]
            for i in range(num):
                own, dot = weights[axis, i], i64(0)
                for j in range(num):
                    dot += i64(own[j]) * i64(back[j])
                total[i] += dot


@kernel(types.void(types.int32[:, :, :, ::1], _MASK, _WEIGHTS, types.int32[:, :, :, ::1]))
def encode(grid, known, weights, residual):
    total = np.empty(grid.shape[3], np.int64)
    for a in range(grid.shape[0]):
        for b in range(grid.shape[1]):
            for c in range(grid.shape[2]):
                _predict(grid, weights, a, b, c, total)
                for i in range(total.size):
                    prediction = i32(total[i] >> 7)
                    if not known[a, b, c]:
                        grid[a, b, c, i] = prediction
                    residual[a, b, c, i] = i32(grid[a, b, c, i] - prediction)


@kernel(types.void(types.int32[:, :, :, ::1], _WEIGHTS))
def decode(grid, weights):
    total = np.empty(grid.shape[3], np.int64)
    for a in range(grid.shape[0]):
        for b in range(grid.shape[1]):
            for c in range(grid.shape[2]):
                _predict(grid, weights, a, b, c, total)
                for i in range(total.size):
                    grid[a, b, c, i] = i32(grid[a, b, c, i] + i32(total[i] >> 7))
