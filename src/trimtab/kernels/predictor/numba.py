"""Linear prediction of integers from their neighbours, fast: see ref.py for the format.

Neighbours in other rows are summed a stretch of a row at a time, so that the loops vectorise; only the neighbours in
the row itself make a chain when decoding, and two bands are decoded side by side so that their chains overlap.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.predictor.ref import LORENZO, NUM_BANDS, NUM_TAPS, TAPS, band_edges
from trimtab.kernels.words import shift_right32

__all__ = ["LORENZO", "NUM_BANDS", "NUM_TAPS", "TAPS", "band_edges", "decode", "encode", "fill_margins", "products"]

_MATRIX = types.Array(types.int32, 2, "C", readonly=True)
_VECTOR = types.Array(types.int32, 1, "C", readonly=True)
_BLOCK = 2048
_EDGES = types.Array(types.int64, 1, "C", readonly=True)
_TAPS = np.array(TAPS, np.int32)
_MAX_TAPS = 2 + (len(TAPS) - 2 + 3) // 4 * 4
_LORENZO = np.zeros((max(NUM_TAPS) + 1, max(NUM_TAPS)), np.int32)  # by the number of taps
for _size, _weights in zip(NUM_TAPS, LORENZO, strict=True):
    for _tap, _weight in _weights.items():
        _LORENZO[_size, TAPS.index(_tap)] = _weight
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")
i32, u64 = np.int32, np.uint64


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


@kernel(types.void(types.int32[:, ::1], _EDGES, types.int64, types.int64, types.boolean))
def fill_margins(q, edges, rows_per_plane, lane, linear):
    for b in range(edges.size - 1):
        band = q[edges[b] : edges[b + 1]]
        for r in range(band.shape[0]):
            _fill_left(band, r, rows_per_plane, lane, linear)
            _fill_right(band, r, lane)


@kernel(types.int64(types.int64, types.int64, _VECTOR, types.int64, types.int64[:, ::1]))
def _taps_of_row(r, rows_per_plane, weights, shift, taps):
    """Write (row to read, lanes back, weight) of each tap of row `r` of a band; return their number, 2 + 4 n.

    The row's own neighbours come first. Taps of weight 0 fill up the rest.
    """
    i, j = r // rows_per_plane, r % rows_per_plane
    taps[:, 0], taps[:, 1], taps[:, 2] = r, 0, 0
    taps[0, 1], taps[1, 1] = 1, 2
    one = np.int64(1) << shift
    if weights.size == 2 or (j > 0 and (weights.size == 9 or i > 0)):
        num = 2
        taps[0, 2], taps[1, 2] = np.int64(weights[0]), np.int64(weights[1])
        for k in range(2, weights.size):
            if weights[k] != 0:
                row = min(max(j - np.int64(_TAPS[k, 1]), 0), rows_per_plane - 1)
                taps[num, 0] = max(i - np.int64(_TAPS[k, 0]), 0) * rows_per_plane + row
                taps[num, 1], taps[num, 2] = np.int64(_TAPS[k, 2]), np.int64(weights[k])
                num += 1
    elif j == 0 and i == 0:
        taps[0, 2] = one
        num = 2
    else:
        above = r - 1 if j > 0 else r - rows_per_plane
        taps[0, 2] = one
        taps[2, 0], taps[2, 1], taps[2, 2] = above, 0, one
        taps[3, 0], taps[3, 1], taps[3, 2] = above, 1, -one
        num = 4
    return 2 + (num - 2 + 3) // 4 * 4


@_inline
def _sum_four(flat, origin, width, taps, t, start, lane, sums):
    """Add four taps' products to `sums`, which stands for the places from column `start` on.

    Row r of the band begins at ``flat[origin + r * width]``. Unsigned indices need no test for negative ones.
    """
    a0 = u64(origin + taps[t, 0] * width + start - taps[t, 1] * lane)
    a1 = u64(origin + taps[t + 1, 0] * width + start - taps[t + 1, 1] * lane)
    a2 = u64(origin + taps[t + 2, 0] * width + start - taps[t + 2, 1] * lane)
    a3 = u64(origin + taps[t + 3, 0] * width + start - taps[t + 3, 1] * lane)
    w0, w1, w2, w3 = i32(taps[t, 2]), i32(taps[t + 1, 2]), i32(taps[t + 2, 2]), i32(taps[t + 3, 2])
    for k in range(u64(sums.size)):
        first = i32(i32(w0 * flat[a0 + k]) + i32(w1 * flat[a1 + k]))
        sums[k] = i32(sums[k] + first + i32(w2 * flat[a2 + k]) + i32(w3 * flat[a3 + k]))


@_inline
def _is_lorenzo(weights, shift, lorenzo):
    same = shift == 0
    for t in range(weights.size):
        same = same and weights[t] == lorenzo[weights.size, t]
    return same


@_inline
def _dimension(weights):
    return 1 if weights.size == 2 else (2 if weights.size == 9 else 3)


@_inline
def _rows_of_lorenzo(r, rows_per_plane, dimension):
    """Return how many other rows Lorenzo prediction of row `r` of a band needs (0, 1 or 3), and the nearest one."""
    i, j = r // rows_per_plane, r % rows_per_plane
    if dimension == 1 or r == 0:
        return 0, r
    if i > 0 and j > 0:
        return 3, r - 1
    return 1, (r - 1 if j > 0 else r - rows_per_plane)


@kernel(types.void(_MATRIX, _EDGES, types.int64, types.int64, types.int64, types.int32[:, ::1]))
def _encode_lorenzo(q, edges, rows_per_plane, lane, dimension, residual):
    """Encode with Lorenzo weights: the difference along the row of what the other rows leave of it."""
    margin, num = 2 * lane, residual.shape[1]
    rest = np.empty(num + lane, np.int32)
    for b in range(edges.size - 1):
        band = q[edges[b] : edges[b + 1], margin - lane : margin + num]
        for r in range(band.shape[0]):
            num_rows, above = _rows_of_lorenzo(r, rows_per_plane, dimension)
            own = band[r]
            if num_rows == 3:
                a, c, d = band[above], band[r - rows_per_plane], band[above - rows_per_plane]
                for k in range(num + lane):
                    rest[k] = i32(i32(own[k] - a[k]) - i32(c[k] - d[k]))
            elif num_rows == 1:
                a = band[above]
                for k in range(num + lane):
                    rest[k] = i32(own[k] - a[k])
            else:
                rest[:] = own
            later, out = rest[lane:], residual[edges[b] + r]
            for k in range(num):
                out[k] = i32(later[k] - rest[k])


@kernel(types.void(types.int32[:, ::1], _EDGES, types.int64, types.int64, types.boolean, types.int64))
def _decode_lorenzo(q, edges, rows_per_plane, lane, linear, dimension):
    """Decode with Lorenzo weights: a running sum along the row, and the other rows added to it."""
    margin, num = 2 * lane, q.shape[1] - 4 * lane
    for b in range(edges.size - 1):
        band = q[edges[b] : edges[b + 1]]
        for r in range(band.shape[0]):
            _fill_left(band, r, rows_per_plane, lane, linear)
            num_rows, above = _rows_of_lorenzo(r, rows_per_plane, dimension)
            own = band[r, margin - lane : margin + num]
            # where there are no other rows, these stand for zeros
            a, c, d = band[above, margin - lane :], band[r, margin - lane :], band[r, margin - lane :]
            if num_rows == 3:
                c, d = band[r - rows_per_plane, margin - lane :], band[above - rows_per_plane, margin - lane :]
            for k in range(lane):
                total = own[k]
                if num_rows > 0:
                    total = i32(total - a[k])
                if num_rows == 3:
                    total = i32(total - i32(c[k] - d[k]))
                for m in range(lane + k, own.size, lane):
                    total = i32(total + own[m])
                    own[m] = total
            own = own[lane:]
            a, c, d = a[lane:], c[lane:], d[lane:]
            if num_rows == 3:
                for k in range(own.size):
                    own[k] = i32(i32(own[k] + a[k]) + i32(c[k] - d[k]))
            elif num_rows == 1:
                for k in range(own.size):
                    own[k] = i32(own[k] + a[k])
            _fill_right(band, r, lane)


@kernel(types.void(_MATRIX, _EDGES, types.int64, types.int64, _VECTOR, types.int64, types.int32[:, ::1]))
def encode(q, edges, rows_per_plane, lane, weights, shift, residual):
    if _is_lorenzo(weights, shift, _LORENZO):
        _encode_lorenzo(q, edges, rows_per_plane, lane, _dimension(weights), residual)
        return
    margin, num = 2 * lane, residual.shape[1]
    taps = np.empty((_MAX_TAPS, 3), np.int64)
    half, low = i32((1 << shift) >> 1), i32(shift)
    flat, width = q.reshape(-1), q.shape[1]
    for b in range(edges.size - 1):
        for r in range(edges[b + 1] - edges[b]):
            num_taps = _taps_of_row(r, rows_per_plane, weights, shift, taps)
            first, second = i32(taps[0, 2]), i32(taps[1, 2])
            row = q[edges[b] + r]
            for o in range(0, num, _BLOCK):
                d = residual[edges[b] + r, o : min(o + _BLOCK, num)]
                size = d.size
                own, left, far_left = row[margin + o :][:size], row[margin + o - lane :][:size], row[o:][:size]
                for k in range(size):
                    d[k] = i32(half + i32(first * left[k]) + i32(second * far_left[k]))
                for t in range(2, num_taps, 4):
                    _sum_four(flat, edges[b] * width, width, taps, t, margin + o, lane, d)
                for k in range(size):
                    d[k] = i32(own[k] - shift_right32(d[k], low))


@_inline
def _chain(own, first, second, low, lane):
    """Turn sums into values, left to right; `own` begins with the 2 lanes before them."""
    for k in range(own.size - 2 * lane):
        total = i32(own[2 * lane + k] + i32(second * own[k]) + i32(first * own[lane + k]))
        own[2 * lane + k] = shift_right32(total, low)


@_inline
def _two_chains(a, b, first, second, low):
    """Turn sums into values in two rows at once; each begins with the 2 values before them."""
    a2, b2, a1, b1 = a[0], b[0], a[1], b[1]
    a, b = a[2:], b[2:]
    if second != 0:
        for k in range(a.size):
            a0 = shift_right32(i32(i32(a[k] + i32(second * a2)) + i32(first * a1)), low)
            b0 = shift_right32(i32(i32(b[k] + i32(second * b2)) + i32(first * b1)), low)
            a2, b2, a1, b1 = a1, b1, a0, b0
            a[k], b[k] = a0, b0
    else:
        for k in range(a.size):
            a1 = shift_right32(i32(a[k] + i32(first * a1)), low)
            b1 = shift_right32(i32(b[k] + i32(first * b1)), low)
            a[k], b[k] = a1, b1


@kernel(types.void(types.int32[:, ::1], _EDGES, types.int64, types.int64, types.boolean, _VECTOR, types.int64))
def decode(q, edges, rows_per_plane, lane, linear, weights, shift):
    if _is_lorenzo(weights, shift, _LORENZO):
        _decode_lorenzo(q, edges, rows_per_plane, lane, linear, _dimension(weights))
        return
    margin, num = 2 * lane, q.shape[1] - 4 * lane
    taps = np.empty((_MAX_TAPS, 3), np.int64)
    half, low = i32((1 << shift) >> 1), i32(shift)
    flat, width, num_bands = q.reshape(-1), q.shape[1], edges.size - 1
    longest, shortest = 0, np.int64(1) << 62
    for b in range(num_bands):
        longest, shortest = max(longest, edges[b + 1] - edges[b]), min(shortest, edges[b + 1] - edges[b])
    for r in range(longest):
        num_taps = _taps_of_row(r, rows_per_plane, weights, shift, taps)
        first, second = i32(taps[0, 2]), i32(taps[1, 2])
        for b in range(num_bands):
            if r < edges[b + 1] - edges[b]:
                _fill_left(q[edges[b] : edges[b + 1]], r, rows_per_plane, lane, linear)
        for o in range(0, num, _BLOCK):
            size = min(_BLOCK, num - o)
            for b in range(num_bands):
                if r < edges[b + 1] - edges[b]:  # all that does not depend on the row's own values, in their place
                    s = q[edges[b] + r, margin + o : margin + o + size]
                    for k in range(size):
                        s[k] = i32(half + i32(s[k] << low))
                    for t in range(2, num_taps, 4):
                        _sum_four(flat, edges[b] * width, width, taps, t, margin + o, lane, s)
            if num_bands == 2 and lane == 1 and r < shortest:
                end = o + margin + size
                _two_chains(q[edges[0] + r, o:end], q[edges[1] + r, o:end], first, second, low)
            else:
                for b in range(num_bands):
                    if r < edges[b + 1] - edges[b]:
                        _chain(q[edges[b] + r, o : o + margin + size], first, second, low, lane)
        for b in range(num_bands):
            if r < edges[b + 1] - edges[b]:
                _fill_right(q[edges[b] : edges[b + 1]], r, lane)


@kernel(types.void(types.Array(types.int32, 2, "C", readonly=True), types.int64[:, ::1]))
def products(vectors, gram):
    """Write the sums of products of every two rows of `vectors` (int32[m, n]) into `gram` (int64[m, m])."""
    for a in range(vectors.shape[0]):
        for b in range(a + 1):
            x, y = vectors[a], vectors[b]
            total = np.int64(0)
            for k in range(x.size):
                total += np.int64(x[k]) * np.int64(y[k])
            gram[a, b] = gram[b, a] = total
