"""Prediction of the points of a finer lattice from their neighbours on all sides, the specification.

A level of a pyramid (`trimtab.codecs.pyramid`) is held in `grids`, flat. The points of a class stand in it from `start`
on: ``shape`` planes, rows and points, at distances of `plane` and `row` places. `offsets` and `weights` tell the
neighbours of every point; their number is a multiple of four, and sums are made in the grids' own dtype as
``s = s + ((w0 a0 + w1 a1) + (w2 a2 + w3 a3))`` from s = 0, four neighbours at a time, never fused. Where the sum s is
not finite it counts as 0. Then, in float64, s + code x step, or with `snap` (rint(s x (1 / step)) + code) x step, both
rounded to the grids' dtype, is the point.
"""

from __future__ import annotations

import numpy as np

LIMIT = 2.0**30
_ROUND = 1.5 * 2.0**52  # adding and taking away rounds a smaller float64 to the nearest integer, ties to even


def encode_class(
    x: np.ndarray,
    x_start: int,
    x_strides: np.ndarray,
    grids: np.ndarray,
    start: int,
    strides: np.ndarray,
    shape: np.ndarray,
    offsets: np.ndarray,
    weights: np.ndarray,
    step: float,
    snap: bool,
    kinds: np.ndarray,
    margins: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Write the codes (int32, flat) of a class of `x` (flat), and into the grids what they decode to.

    The class's points stand in `x` from `x_start` on, at distances `x_strides` (int64[3]). Where an element is not
    finite, or far from its prediction, its code is 0. Codes are the nearest ones, but where there are `kinds` (uint8,
    flat, one a point; never with `snap`): there a code of magnitude m > 0 becomes one nearer to zero if the element is
    less than margins[kind, m - 1] beyond the middle between the two, in steps. Larger m have the margin of the last
    column of `margins` (float64, from 0 to 1).
    """
    places = _places(start, strides, shape)
    sums = _sums(grids, places, offsets, weights)
    inverse = 1.0 / step
    origin = np.rint(sums * inverse) if snap else sums
    elements = x[_places(x_start, x_strides, shape)].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        d = elements * inverse - origin if snap else (elements - origin) * inverse
        d = np.where(np.abs(d) < LIMIT, d, 0)
        if kinds.size and not snap:
            m = np.abs(d) + _ROUND - _ROUND
            column = np.clip(m, 1, margins.shape[1]).astype(np.int64) - 1
            m -= (m > 0) & (np.abs(d) - m + 0.5 < margins[kinds.reshape(m.shape), column])
            d = np.where(d > 0, m, -m)
        else:
            d = d + _ROUND - _ROUND
        codes[:] = d.astype(np.int32).reshape(-1)
        grids[places] = (origin + d) * step if snap else origin + d * step


def decode_class(
    grids: np.ndarray,
    start: int,
    strides: np.ndarray,
    shape: np.ndarray,
    offsets: np.ndarray,
    weights: np.ndarray,
    step: float,
    snap: bool,
    codes: np.ndarray,
) -> None:
    """Write the points of a class into the grids (flat) from their codes (int32, flat)."""
    places = _places(start, strides, shape)
    sums = _sums(grids, places, offsets, weights)
    d = codes.reshape(places.shape).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        grids[places] = (np.rint(sums * (1.0 / step)) + d) * step if snap else sums + d * step


def join_class(
    values: np.ndarray,
    known: np.ndarray,
    x_start: int,
    x_strides: np.ndarray,
    grids: np.ndarray,
    lacking: np.ndarray,
    start: int,
    strides: np.ndarray,
    shape: np.ndarray,
    codes: np.ndarray,
    lacking_codes: np.ndarray,
) -> None:
    """Put together a class of a lattice of which some points are known beforehand.

    `values` and `known` (uint8, both flat) are the tile's, with the class's points as `x` has them in `encode_class`.
    Where a point is known, it becomes the sum of its value and of what `lacking` (a second array of grids) has for it,
    in the grids' dtype, and its code that of the latter; elsewhere `lacking` becomes 0.
    """
    places, sources = _places(start, strides, shape), _places(x_start, x_strides, shape)
    here = known[sources] != 0
    with np.errstate(invalid="ignore", over="ignore"):
        grids[places] = np.where(here, values[sources] + lacking[places], grids[places])
    lacking[places] = np.where(here, lacking[places], 0)
    codes[:] = np.where(here.reshape(-1), lacking_codes, codes)


def fill_margins(grids: np.ndarray, start: int, strides: np.ndarray, shape: np.ndarray, live: np.ndarray) -> None:
    """Continue a class in straight lines: one place before its points and two after, along each live axis.

    The last axis comes first; an axis of one point is continued by that point. With a the last point and b the one
    before, the places after are a + (a - b) and the same of these two.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        for axis in (2, 1, 0):
            if not live[axis]:
                continue
            size = [n + (3 if live[k] and k > axis else 0) for k, n in enumerate(shape)]
            first = start - sum(int(strides[k]) for k in range(axis + 1, 3) if live[k])
            size[axis] = 1
            place, n, stride = _places(first, strides, size), int(shape[axis]), int(strides[axis])
            inner = stride if n > 1 else 0
            last = place + (n - 1) * stride
            grids[place - stride] = grids[place] + (grids[place] - grids[place + inner])
            after = grids[last] + (grids[last] - grids[last - inner])
            grids[last + stride] = after
            grids[last + 2 * stride] = after + (after - grids[last])


def repeat_margins(grids: np.ndarray, start: int, strides: np.ndarray, shape: np.ndarray, live: np.ndarray) -> None:
    """Continue a class of uint8 by its outermost points: one place before and two after, along each live axis."""
    for axis in (2, 1, 0):
        if not live[axis]:
            continue
        size = [n + (3 if live[k] and k > axis else 0) for k, n in enumerate(shape)]
        first = start - sum(int(strides[k]) for k in range(axis + 1, 3) if live[k])
        size[axis] = 1
        place, stride = _places(first, strides, size), int(strides[axis])
        last = place + (int(shape[axis]) - 1) * stride
        grids[place - stride] = grids[place]
        grids[last + stride] = grids[last + 2 * stride] = grids[last]


def merge(
    grids: np.ndarray,
    starts: np.ndarray,
    strides: np.ndarray,
    extents: np.ndarray,
    out: np.ndarray,
    out_start: int,
    out_strides: np.ndarray,
) -> None:
    """Write the lattice that the eight classes make up into `out` (flat), its first point at `out_start`.

    `starts` (int64[8]) tells where each class begins; both last axes have no gaps.
    """
    for slot, start in enumerate(starts):
        parity = np.array([slot >> 2, slot >> 1 & 1, slot & 1])
        shape = (extents + 1 - parity) // 2
        target = _places(out_start + int(parity @ out_strides), 2 * out_strides, shape)
        out[target] = grids[_places(int(start), strides, shape)]


def misses(x: np.ndarray, y: np.ndarray, limit: float, positions: np.ndarray) -> int:
    """Write the positions (uint32) where |y - x|, in float64, is not at most the limit, and return their number.

    Both are flat; NaN and infinities of `x` are among them.
    """
    with np.errstate(invalid="ignore"):
        found = np.flatnonzero(~(np.abs(y.astype(np.float64) - x.astype(np.float64)) <= limit) | ~np.isfinite(x))
    positions[: found.size] = found
    return found.size


def group_means(x: np.ndarray, points: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, means: np.ndarray) -> None:
    """Write for each group of neighbours of points their mean (float64[groups, points]).

    `x` is flat; `points` and `offsets`, of the neighbours of all groups one after another, are int64, `sizes` (int64)
    tells how many each group has. Sums are made in float64 in this order.
    """
    at = 0
    with np.errstate(invalid="ignore"):
        for mean, size in zip(means, sizes, strict=True):
            mean[:] = 0
            for offset in offsets[at : at + size]:
                mean += x[points + offset]
            mean *= 1.0 / size
            at += size


def products(vectors: np.ndarray, shares: np.ndarray, gram: np.ndarray) -> None:
    """Write the sums of products of every two rows of `vectors` (float64[m, n]), weighted, into `gram` (float64[m, m]).

    `shares` (float64[n]) are the weights. Every sixteenth product goes into one sum, in order; the sixteen sums are
    added in order.
    """
    padded = np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % 16)))
    weights = np.pad(shares, (0, -shares.size % 16))
    for i, a in enumerate(padded):
        for j, b in enumerate(padded[: i + 1]):
            sums = np.zeros(16)
            for row in ((a * weights) * b).reshape(-1, 16):
                sums = sums + row
            total = 0.0
            for part in sums:
                total += part
            gram[i, j] = gram[j, i] = total


def _places(start: int, strides: np.ndarray, shape: np.ndarray | list[int]) -> np.ndarray:
    i, j, k = (np.arange(n, dtype=np.int64) * int(s) for n, s in zip(shape, strides, strict=True))
    return start + i[:, None, None] + j[:, None] + k


def _sums(grids: np.ndarray, places: np.ndarray, offsets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sums over the neighbours, as float64."""
    sums = np.zeros(places.shape, grids.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        for t in range(0, len(offsets), 4):
            a, b, c, d = (weights[u] * grids[places + offsets[u]] for u in range(t, t + 4))
            sums = sums + ((a + b) + (c + d))
        return np.where(np.isfinite(sums), sums, 0).astype(np.float64)
