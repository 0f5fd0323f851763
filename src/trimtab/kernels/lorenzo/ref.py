"""Lorenzo prediction as differences along every axis, the specification.

What Lorenzo prediction (Ibarria et al., "Out-of-core compression and decompression of large n-dimensional scalar
fields", 2003) leaves of integers is their differences along each axis in turn, in wrapping int32, with zeros before the
first element of every axis: along the planes, the rows of a plane, and the elements of a row that stand `lane` apart.
A difference d is folded to an unsigned z, ``2 d`` for d >= 0 and ``-2 d - 1`` below.

Rows come in pieces, in order. Two arrays, zeros at first, carry what the next piece needs: `above` (int32[n]), the last
row, and `before` (int32[rows_per_plane, n]), for each row of a plane the last one's differences along the rows. Where
there is one plane only, `before` has no rows; where a plane is one row, `above` stays as it is.
"""

from __future__ import annotations

import numpy as np


def encode(q: np.ndarray, above: np.ndarray, before: np.ndarray, first: int, rows_per_plane: int, lane: int) -> None:
    """Replace the integers of rows (int32[m, n]; the first is row `first` of all) by their folded differences."""
    for r in range(len(q)):
        j = (first + r) % rows_per_plane
        own = q[r].copy()
        d = own - above if j > 0 else own.copy()
        if rows_per_plane > 1:
            above[:] = own
        if len(before):
            d, before[j] = d - before[j], d
        d[lane:] -= d[:-lane].copy()
        q[r] = (d << 1) ^ (d >> 31)


def decode(q: np.ndarray, above: np.ndarray, before: np.ndarray, first: int, rows_per_plane: int, lane: int) -> None:
    """Replace the folded differences by the integers again."""
    for r in range(len(q)):
        j = (first + r) % rows_per_plane
        z = q[r].view(np.uint32)
        d = (z >> 1).view(np.int32) ^ -(z & 1).view(np.int32)
        for k in range(min(lane, d.size)):
            d[k::lane] = np.cumsum(d[k::lane], dtype=np.int32)
        if len(before):
            d += before[j]
            before[j] = d
        if j > 0:
            d += above
        q[r] = d
        if rows_per_plane > 1:
            above[:] = d
