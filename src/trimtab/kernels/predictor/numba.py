"""Linear prediction of integers from their neighbours, fast: see ref.py for the format.

Neighbours in other rows are summed a stretch of a row at a time, so that the loops vectorise; only the neighbours in the
row itself make a chain when decoding.
"""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.predictor.ref import LORENZO, NUM_TAPS, TAPS

__all__ = ["LORENZO", "NUM_TAPS", "TAPS", "decode", "encode", "fill_margins"]

_MATRIX = types.Array(types.int32, 2, "C", readonly=True)
_VECTOR = types.Array(types.int32, 1, "C", readonly=True)
_BLOCK = 4096
_TAPS = np.array(TAPS, np.int32)
i32 = np.int32


@kernel(types.void(types.int32[:, ::1], types.int64, types.int64, types.int64, types.boolean))
def _fill_left(q, r, rows_per_plane, lane, linear):
    margin = 2 * lane
    if r == 0:
        q[r, :margin] = 0
    elif linear:
        start = q.shape[1] - 2 * margin
        for k in range(margin):
            q[r, k] = q[r - 1, start + k]
    else:
        above = r - 1 if r % rows_per_plane > 0 else r - rows_per_plane
        for k in range(lane):
            q[r, k] = q[r, lane + k] = q[above, margin + k]


@kernel(types.void(types.int32[:, ::1], types.int64, types.int64))
def _fill_right(q, r, lane):
    end = q.shape[1] - 2 * lane
    for k in range(lane):
        q[r, end + k] = q[r, end + lane + k] = q[r, end - lane + k]


@kernel(types.void(types.int32[:, ::1], types.int64, types.int64, types.boolean))
def fill_margins(q, rows_per_plane, lane, linear):
    for r in range(q.shape[0]):
        _fill_left(q, r, rows_per_plane, lane, linear)
        _fill_right(q, r, lane)


@kernel(types.int64(types.int64, types.int64, _VECTOR, types.int64, types.int64[:, ::1]))
def _taps_of_row(r, rows_per_plane, weights, shift, taps):
    """Write (row to read, lanes back, weight) of each tap of row `r`, the row's own first; return their number."""
    i, j = r // rows_per_plane, r % rows_per_plane
    num = 0
    if weights.size == 2 or (j > 0 and (weights.size == 9 or i > 0)):
        for k in range(weights.size):
            if weights[k] != 0:
                row = min(max(j - np.int64(_TAPS[k, 1]), 0), rows_per_plane - 1)
                taps[num, 0] = max(i - np.int64(_TAPS[k, 0]), 0) * rows_per_plane + row
                taps[num, 1], taps[num, 2] = np.int64(_TAPS[k, 2]), np.int64(weights[k])
                num += 1
        return num
    one = np.int64(1) << shift
    taps[0, 0], taps[0, 1], taps[0, 2] = r, 1, one
    if j == 0 and i == 0:
        return 1
    above = r - 1 if j > 0 else r - rows_per_plane
    taps[1, 0], taps[1, 1], taps[1, 2] = above, 0, one
    taps[2, 0], taps[2, 1], taps[2, 2] = above, 1, -one
    return 3


@kernel(
    types.void(
        _MATRIX, types.int64, types.int64, types.boolean, _VECTOR, types.int64, types.Array(types.int32, 2, "C")
    )
)
def encode(q, rows_per_plane, lane, linear, weights, shift, residual):
    margin, num = 2 * lane, residual.shape[1]
    taps = np.empty((22, 3), np.int64)
    half = i32((1 << shift) >> 1)
    low = i32(shift)
    for r in range(q.shape[0]):
        num_taps = _taps_of_row(r, rows_per_plane, weights, shift, taps)
        for o in range(0, num, _BLOCK):
            d = residual[r, o : min(o + _BLOCK, num)]
            size = d.size
            d[:] = half
            t = 0
            while t + 2 <= num_taps:
                start, start2 = margin + o - taps[t, 1] * lane, margin + o - taps[t + 1, 1] * lane
                n, n2 = q[taps[t, 0], start : start + size], q[taps[t + 1, 0], start2 : start2 + size]
                w, w2 = i32(taps[t, 2]), i32(taps[t + 1, 2])
                for k in range(size):
                    d[k] = i32(d[k] + i32(w * n[k]) + i32(w2 * n2[k]))
                t += 2
            if t < num_taps:
                start = margin + o - taps[t, 1] * lane
                n, w = q[taps[t, 0], start : start + size], i32(taps[t, 2])
                for k in range(size):
                    d[k] = i32(d[k] + i32(w * n[k]))
            own = q[r, margin + o : margin + o + size]
            for k in range(size):
                d[k] = i32(own[k] - (d[k] >> low))


@kernel(
    types.void(
        _MATRIX, types.int64, types.int64, types.boolean, _VECTOR, types.int64, types.Array(types.int32, 2, "C")
    )
)
def decode(residual, rows_per_plane, lane, linear, weights, shift, q):
    margin, num = 2 * lane, residual.shape[1]
    taps = np.empty((22, 3), np.int64)
    sums = np.empty(min(num, _BLOCK), np.int32)
    half = i32((1 << shift) >> 1)
    low = i32(shift)
    for r in range(q.shape[0]):
        _fill_left(q, r, rows_per_plane, lane, linear)
        num_taps = _taps_of_row(r, rows_per_plane, weights, shift, taps)
        first, second, t0 = i32(0), i32(0), 0  # weights of the row's own neighbours, which stand first
        if t0 < num_taps and taps[t0, 0] == r and taps[t0, 1] == 1:
            first = i32(taps[t0, 2])
            t0 += 1
        if t0 < num_taps and taps[t0, 0] == r and taps[t0, 1] == 2:
            second = i32(taps[t0, 2])
            t0 += 1
        for o in range(0, num, _BLOCK):
            d = residual[r, o : min(o + _BLOCK, num)]
            size = d.size
            s = sums[:size]
            s[:] = half
            t = t0
            while t + 2 <= num_taps:
                start, start2 = margin + o - taps[t, 1] * lane, margin + o - taps[t + 1, 1] * lane
                n, n2 = q[taps[t, 0], start : start + size], q[taps[t + 1, 0], start2 : start2 + size]
                w, w2 = i32(taps[t, 2]), i32(taps[t + 1, 2])
                for k in range(size):
                    s[k] = i32(s[k] + i32(w * n[k]) + i32(w2 * n2[k]))
                t += 2
            if t < num_taps:
                start = margin + o - taps[t, 1] * lane
                n, w = q[taps[t, 0], start : start + size], i32(taps[t, 2])
                for k in range(size):
                    s[k] = i32(s[k] + i32(w * n[k]))
            own = q[r, o : margin + o + size]
            if shift == 0 and first == 1 and second == 0:
                for k in range(size):
                    s[k] = i32(s[k] + d[k])
                if lane == 1:
                    q1 = own[1]
                    for k in range(size):
                        q1 = i32(q1 + s[k])
                        own[2 + k] = q1
                else:
                    for k in range(size):
                        own[margin + k] = i32(own[margin + k - lane] + s[k])
            elif lane == 1:
                q1, q2 = own[1], own[0]
                for k in range(size):
                    value = i32(i32(i32(s[k] + i32(second * q2)) + i32(first * q1)) >> low)
                    q2 = q1
                    q1 = i32(value + d[k])
                    own[2 + k] = q1
            else:
                for k in range(size):
                    value = i32(s[k] + i32(second * own[k]) + i32(first * own[lane + k]))
                    own[margin + k] = i32((value >> low) + d[k])
        _fill_right(q, r, lane)
