"""Uniform and logarithmic quantisation of floating-point rows, fast: see ref.py for the arithmetic.

No fast-math and no contraction anywhere: encoder and decoder, and every machine, must round alike.
"""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.quantiser.ref import _EXP2, _ROUND, LIMIT
from trimtab.kernels.words import prefetch

__all__ = ["LIMIT", "dequantise", "dequantise_exp2", "extent", "quantise"]

_FLOATS = (types.float32, types.float64)
_STARTS = types.Array(types.int64, 1, "C", readonly=True)
_MATRIX = types.Array(types.int32, 2, "C", readonly=True)
_BLOCK = 4096
_AHEAD = 8
_NUM_LANES = 512
_COEFFICIENTS = np.array(_EXP2)
f64, i32 = np.float64, np.int32


def _read(scalar):
    return types.Array(scalar, 1, "C", readonly=True)


@kernel(*(types.UniTuple(types.float64, 2)(_read(scalar)) for scalar in _FLOATS))
def extent(x):
    low, high = np.full(_NUM_LANES, x.dtype.type(np.inf), x.dtype), np.full(_NUM_LANES, x.dtype.type(-np.inf), x.dtype)
    for o in range(0, x.size, _NUM_LANES):
        piece = x[o : o + _NUM_LANES]
        a, b = low[: piece.size], high[: piece.size]
        for k in range(piece.size):
            v = piece[k]
            a[k] = v if v < a[k] and v > -np.inf else a[k]
            b[k] = v if v > b[k] and v < np.inf else b[k]
    smallest, largest = np.inf, -np.inf
    for k in range(_NUM_LANES):
        smallest, largest = min(smallest, f64(low[k])), max(largest, f64(high[k]))
    return smallest, largest


@kernel(
    *(
        types.int64(
            _read(scalar), _STARTS, types.float64, types.float64, types.int64, types.int32[:, ::1], types.uint32[::1]
        )
        for scalar in _FLOATS
    )
)
def quantise(x, starts, step, bound, margin, q, outliers):
    num = q.shape[1] - 2 * margin
    inverse, count = 1.0 / step, 0
    base = types.uintp(x.ctypes.data)
    for r in range(starts.size):
        start = starts[r]
        if num < _BLOCK:  # the hardware does not foresee short rows that do not follow one another
            ahead = base + types.uintp(starts[min(r + _AHEAD, starts.size - 1)] * x.itemsize)
            for k in range(0, num * x.itemsize, 64):
                prefetch(ahead + types.uintp(k))
        size = min(num, x.size - start)
        for o in range(0, size, _BLOCK):
            piece = x[start + o : start + min(o + _BLOCK, size)]
            values = q[r, margin + o : margin + o + piece.size]
            num_good = np.int64(0)
            for k in range(piece.size):
                v = f64(piece[k])
                rounded = v * inverse
                inside = abs(rounded) < LIMIT
                rounded = ((rounded if inside else 0.0) + _ROUND) - _ROUND
                values[k] = i32(rounded)
                num_good += np.int64(inside & (abs(f64(x.dtype.type(rounded * step)) - v) <= bound))
            if num_good == piece.size:
                continue
            for k in range(piece.size):
                v = f64(piece[k])
                stand_in = f64(x.dtype.type(f64(values[k]) * step))
                if not (abs(v * inverse) < LIMIT and abs(stand_in - v) <= bound):
                    values[k] = q[r, margin + o + k - 1] if o + k > 0 else i32(0)
                    if count < outliers.size:
                        outliers[count] = np.uint32(r * num + o + k)
                    count += 1
        for k in range(max(size, 0), num):
            q[r, margin + k] = q[r, margin + k - 1] if k > 0 else i32(0)
    return count


@kernel(*(types.void(_MATRIX, _STARTS, types.float64, types.int64, scalar[::1]) for scalar in _FLOATS))
def dequantise(q, starts, step, margin, y):
    num = q.shape[1] - 2 * margin
    for r in range(starts.size):
        start = starts[r]
        size = min(num, y.size - start)
        values, row = q[r, margin : margin + size], y[start : start + size]
        for k in range(size):
            row[k] = f64(values[k]) * step


@kernel(*(types.void(_MATRIX, _STARTS, types.float64, types.int64, scalar[::1]) for scalar in _FLOATS))
def dequantise_exp2(q, starts, step, margin, y):
    num = q.shape[1] - 2 * margin
    biased = np.empty(min(num, _BLOCK), np.int64)
    scales = biased.view(np.float64)
    for r in range(starts.size):
        start = starts[r]
        size = min(num, y.size - start)
        for o in range(0, size, _BLOCK):
            row = y[start + o : start + min(o + _BLOCK, size)]
            values = q[r, margin + o : margin + o + row.size]
            e, scale = biased[: row.size], scales[: row.size]
            for k in range(row.size):
                t = f64(values[k]) * step
                t = min(max(t, -1022.0), 1023.0)
                e[k] = (np.int64((t + _ROUND) - _ROUND) + 1023) << 52
            for k in range(row.size):
                t = f64(values[k]) * step
                t = min(max(t, -1022.0), 1023.0)
                f = t - ((t + _ROUND) - _ROUND)
                value = _COEFFICIENTS[_COEFFICIENTS.size - 1]
                for c in range(_COEFFICIENTS.size - 2, -1, -1):
                    value = value * f + _COEFFICIENTS[c]
                row[k] = (value * f + 1.0) * scale[k]
