"""Linear prediction of integers from their neighbours, the specification.

The integers q of a tile stand in rows, `rows_per_plane` rows to a plane; each row of the matrix has a margin of 2 x
lane places before and after its values. `lane` is the distance of neighbours within a row (channels that alternate in
a row are so kept apart). A tap (planes back, rows back, lanes back) names a neighbour. With the residual d, a value
is

    q = (sum of weight x neighbour + half + (d << shift)) >> shift

in wrapping int32, where half is 2^(shift - 1), or 0 for shift 0. Residuals exist for every |q| < 2^(30 - shift).

A tile is cut into bands of rows, whole planes where there are planes, that do not look at each other; rows and planes
below count from the start of the band. Rows that have no row before them in their plane, or no plane before them, fall
back to Lorenzo prediction (Ibarria et al., "Out-of-core compression and decompression of large n-dimensional scalar
fields", 2003) over the neighbours that exist. Taps reach at most two rows or planes back; past the first or last one
they meet that one instead. The margins hold: after the row, its last `lane` values twice; before it, the first `lane`
values of the row above, twice (above in its plane, else in the plane before, else zeros), or in a linear tile the last
values of the row before.
"""

from __future__ import annotations

import itertools

import numpy as np

TAPS = (
    *((0, 0, 1), (0, 0, 2)),
    *((0, 1, 0), (0, 1, 1), (0, 1, -1), (0, 2, 0), (0, 1, 2), (0, 1, -2), (0, 2, 1)),
    *((1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (1, 0, -1), (1, -1, 0), (2, 0, 0)),
    *((1, 1, -1), (1, -1, 1), (1, -1, -1), (1, 0, 2), (1, 2, 0), (2, 0, 1)),
)
"""Every neighbour that a weight may stand for; one dimension has the first 2, two have 9, three all 22."""

NUM_TAPS = (2, 9, 22)

LORENZO = (
    {(0, 0, 1): 1},
    {(0, 0, 1): 1, (0, 1, 0): 1, (0, 1, 1): -1},
    {(0, 0, 1): 1, (0, 1, 0): 1, (0, 1, 1): -1, (1, 0, 0): 1, (1, 0, 1): -1, (1, 1, 0): -1, (1, 1, 1): 1},
)
"""The Lorenzo weights in one, two and three dimensions."""

NUM_BANDS = 2

_PLANE_LORENZO = {(0, 0, 1): 1, (1, 0, 0): 1, (1, 0, 1): -1}


def band_edges(num_rows: int, rows_per_plane: int) -> np.ndarray:
    """Return the first row of each band and, last, the number of rows (int64).

    The unit is the plane, or the row where there is one plane: below 32 units there is one band, else `NUM_BANDS`.
    """
    unit = rows_per_plane if rows_per_plane < num_rows else 1
    num_units = num_rows // unit
    bands = NUM_BANDS if num_units >= 32 else 1
    return np.arange(bands + 1, dtype=np.int64) * num_units // bands * unit


def fill_margins(q: np.ndarray, edges: np.ndarray, rows_per_plane: int, lane: int, linear: bool) -> None:
    """Fill the margins of all rows of `q` (int32[rows, 2 lane + n + 2 lane]) from its values."""
    for start, stop in itertools.pairwise(edges):
        for r in range(stop - start):
            _fill_left(q[start:stop], r, rows_per_plane, lane, linear)
            _fill_right(q[start:stop], r, lane)


def encode(
    q: np.ndarray,
    edges: np.ndarray,
    rows_per_plane: int,
    lane: int,
    weights: np.ndarray,
    shift: int,
    residual: np.ndarray,
) -> None:
    """Write into `residual` (int32[rows, n]) what remains of `q` (int32[rows, n + 4 lane], margins filled).

    `weights` (int32) has one entry for each tap of the tile's dimension: 2, 9 or 22.
    """
    margin, num = 2 * lane, residual.shape[1]
    for start, stop in itertools.pairwise(edges):
        band = q[start:stop]
        for r in range(stop - start):
            total = np.full(num, (1 << shift) >> 1, np.int32)
            for row, lanes, weight in _taps_of_row(r, rows_per_plane, weights, shift):
                first = margin - lanes * lane
                total += np.int32(weight) * band[row, first : first + num]
            residual[start + r] = band[r, margin : margin + num] - (total >> shift)


def decode(
    q: np.ndarray, edges: np.ndarray, rows_per_plane: int, lane: int, linear: bool, weights: np.ndarray, shift: int
) -> None:
    """Replace the residuals in `q` by their values, and fill the margins."""
    margin, num = 2 * lane, q.shape[1] - 4 * lane
    for start, stop in itertools.pairwise(edges):
        band = q[start:stop]
        for r in range(stop - start):
            _fill_left(band, r, rows_per_plane, lane, linear)
            taps = _taps_of_row(r, rows_per_plane, weights, shift)
            for k in range(margin, margin + num):
                total = ((1 << shift) >> 1) + (int(band[r, k]) << shift)
                for row, lanes, weight in taps:
                    total += weight * int(band[row, k - lanes * lane])
                band[r, k] = _wrap(total) >> shift
            _fill_right(band, r, lane)


def products(vectors: np.ndarray, gram: np.ndarray) -> None:
    """Write the sums of products of every two rows of `vectors` (int32[m, n]) into `gram` (int64[m, m])."""
    gram[...] = vectors.astype(np.int64) @ vectors.T.astype(np.int64)


def _taps_of_row(r: int, rows_per_plane: int, weights: np.ndarray, shift: int) -> list[tuple[int, int, int]]:
    """Return (row to read, lanes back, weight) of each tap of row `r` of a band."""
    i, j = divmod(r, rows_per_plane)
    dimension = NUM_TAPS.index(len(weights)) + 1
    if dimension == 1 or (j > 0 and (dimension == 2 or i > 0)):
        chosen = {tap: int(weight) for tap, weight in zip(TAPS, weights, strict=False) if weight}
    else:
        sparse = LORENZO[1] if j > 0 else _PLANE_LORENZO if i > 0 else LORENZO[0]
        chosen = {tap: weight << shift for tap, weight in sparse.items()}
    taps = []
    for (planes, rows, lanes), weight in chosen.items():
        row = j - rows if planes == 0 and rows == 0 else min(max(j - rows, 0), rows_per_plane - 1)
        taps.append((max(i - planes, 0) * rows_per_plane + row, lanes, weight))
    return taps


def _fill_left(q: np.ndarray, r: int, rows_per_plane: int, lane: int, linear: bool) -> None:
    margin = 2 * lane
    if r == 0:
        q[r, :margin] = 0
    elif linear:
        q[r, :margin] = q[r - 1, -2 * margin : -margin]
    else:
        above = r - 1 if r % rows_per_plane else r - rows_per_plane
        first = q[above, margin : margin + lane].copy()
        q[r, :lane] = q[r, lane:margin] = first


def _fill_right(q: np.ndarray, r: int, lane: int) -> None:
    margin = 2 * lane
    last = q[r, -margin - lane : -margin].copy()
    q[r, -margin:-lane] = q[r, -lane:] = last


def _wrap(value: int) -> int:
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)
