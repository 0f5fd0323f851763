"""Lorenzo prediction as differences along every axis, fast: see ref.py for the format.

Sums along different axes may be taken in any order, so those along the rows, which are chains, come first, and four of
them go side by side: four rows, or the quarters of one; the others vectorise.
"""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.words import shift_right32

__all__ = ["decode", "encode"]

_SIGNATURE = types.void(
    types.int32[:, ::1], types.int32[::1], types.int32[:, ::1], types.int64, types.int64, types.int64
)
_BLOCK = 4096
i32, u32 = np.int32, np.uint32


@kernel(_SIGNATURE)
def encode(q, above, before, first, rows_per_plane, lane):
    num = q.shape[1]
    padded = np.empty(lane + min(num, _BLOCK), np.int32)
    for r in range(q.shape[0]):
        j = (first + r) % rows_per_plane
        if j == 0:
            above[:] = i32(0)
        padded[:lane] = i32(0)
        for o in range(0, num, _BLOCK):
            own = q[r, o : min(o + _BLOCK, num)]
            size = own.size
            rest, left, over = padded[lane : lane + size], padded[:size], above[o : o + size]
            if before.shape[0] > 0:
                plane = before[j, o : o + size]
                for k in range(size):
                    d = i32(own[k] - over[k])
                    rest[k] = i32(d - plane[k])
                    plane[k] = d
            elif j > 0:
                for k in range(size):
                    rest[k] = i32(own[k] - over[k])
            else:
                for k in range(size):
                    rest[k] = own[k]
            if rows_per_plane > 1:
                for k in range(size):
                    over[k] = own[k]
            for k in range(size):
                d = i32(rest[k] - left[k])
                own[k] = i32(i32(d << 1) ^ shift_right32(d, i32(31)))
            for k in range(lane):
                padded[k] = padded[size + k]


@kernel(types.void(types.int32[:, ::1]))
def _sum_rows(rows):
    """Turn rows, of which there are a multiple of four, into their running sums."""
    for r in range(0, rows.shape[0], 4):
        a, b, c, d = rows[r], rows[r + 1], rows[r + 2], rows[r + 3]
        sum_a, sum_b, sum_c, sum_d = i32(0), i32(0), i32(0), i32(0)
        for k in range(a.size):
            sum_a, sum_b, sum_c, sum_d = i32(sum_a + a[k]), i32(sum_b + b[k]), i32(sum_c + c[k]), i32(sum_d + d[k])
            a[k], b[k], c[k], d[k] = sum_a, sum_b, sum_c, sum_d


@kernel(types.void(types.int32[::1]))
def _sum_row(row):
    """Turn a row into its running sum, its quarters side by side."""
    size = row.size // 4
    _sum_rows(row[: 4 * size].reshape(4, size))
    for start in range(size, 4 * size, max(size, 1)):
        quarter, total = row[start : start + size], row[start - 1]
        for k in range(size):
            quarter[k] = i32(quarter[k] + total)
    for k in range(max(4 * size, 1), row.size):
        row[k] = i32(row[k] + row[k - 1])


@kernel(_SIGNATURE)
def decode(q, above, before, first, rows_per_plane, lane):
    num = q.shape[1]
    flat = q.reshape(-1)
    for o in range(0, flat.size, _BLOCK):
        z = flat[o : o + _BLOCK]
        for k in range(z.size):
            z[k] = i32(i32(u32(z[k]) >> u32(1)) ^ i32(-i32(z[k] & 1)))
    rows = q.shape[0] // 4 * 4 if lane == 1 else 0
    _sum_rows(q[:rows])
    for r in range(rows, q.shape[0]):
        if lane == 1:
            _sum_row(q[r])
        else:
            for m in range(min(lane, num)):
                total = i32(0)
                for k in range(m, num, lane):
                    total = i32(total + q[r, k])
                    q[r, k] = total
    for r in range(q.shape[0]):
        j = (first + r) % rows_per_plane
        own = q[r]
        if j == 0:
            above[:] = i32(0)
        if before.shape[0] > 0:
            plane = before[j]
            for k in range(num):
                d = i32(own[k] + plane[k])
                plane[k] = d
                own[k] = i32(d + above[k])
        elif j > 0:
            for k in range(num):
                own[k] = i32(own[k] + above[k])
        if rows_per_plane > 1:
            for k in range(num):
                above[k] = own[k]
