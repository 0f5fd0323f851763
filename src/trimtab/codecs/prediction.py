"""Which weights predict the integers of a tile best: least squares on a sample, against the plain Lorenzo weights."""

from __future__ import annotations

import numpy as np

from trimtab import kernels
from trimtab.codecs.tiling import Tile
from trimtab.kernels.predictor.ref import LORENZO, NUM_TAPS, TAPS

_SAMPLE_ROWS = 36
_SAMPLE_LENGTH = 128
_MAX_SHIFT = 8
_CANDIDATES = ((range(2),), (range(6), range(9)), ((0, 2, 3, 4, 9, 10, 11, 12, 13), range(22)))
"""For each dimension the taps, by number, to try besides Lorenzo: the nearest, then all."""

_GAIN = 0.05
"""More taps cost time, so they have to save this share of the bits."""


def lorenzo_weights(dimension: int) -> np.ndarray:
    """Return the Lorenzo weights (int32) for a tile of this dimension; their shift is 0."""
    weights = np.zeros(NUM_TAPS[dimension - 1], np.int32)
    for tap, weight in LORENZO[dimension - 1].items():
        weights[TAPS.index(tap)] = weight
    return weights


def fit(q: np.ndarray, tile: Tile, largest: int) -> tuple[np.ndarray, int]:
    """Return weights (int32) and shift that predict `q` (int32, margins filled) in the fewest bits, on a sample.

    No |q| exceeds `largest`.
    """
    dimension = len(tile.shape)
    best = lorenzo_weights(dimension), 0
    neighbours, own = _sample(q, tile, dimension)
    if own.size < 256:
        return best
    # differences to the left neighbour are small, and force weights that sum to one: constants stay exact
    shift = min(_MAX_SHIFT, 29 - largest.bit_length())
    least = _bits(own - _weighted(best[0], neighbours))
    if shift < 4 or least == 0:
        return best
    vectors = np.concatenate([neighbours[1:], own[None]]) - neighbours[0]
    vectors >>= max(int(np.abs(vectors).max()).bit_length() - 22, 0)  # so that no sum of products overflows
    products = np.empty((len(vectors), len(vectors)), np.int64)
    kernels.load("predictor").products(vectors.astype(np.int32), products)
    gram, moments = products[:-1, :-1].astype(np.float64), products[:-1, -1].astype(np.float64)
    for taps in _CANDIDATES[dimension - 1]:
        others = np.array(taps[1:])
        part, target = gram[np.ix_(others - 1, others - 1)], moments[others - 1]
        ridge = 1e-6 * np.trace(part) / others.size + 1e-3
        solution = np.linalg.solve(part + ridge * np.eye(others.size), target)
        weights = np.zeros(NUM_TAPS[dimension - 1], np.int64)
        weights[others] = np.rint(np.clip(solution, -64, 64) * (1 << shift)).astype(np.int64)
        weights[0] = (1 << shift) - weights.sum()
        if np.abs(weights).max() >= 1 << 15:
            continue
        bits = _bits(own - ((_weighted(weights, neighbours) + (1 << shift >> 1)) >> shift))
        if bits < (1 - _GAIN) * least:
            best, least = (weights.astype(np.int32), shift), bits
    return best


def sampled_bits(q: np.ndarray, tile: Tile, weights: np.ndarray, shift: int) -> float:
    """Return the bits that an integer takes without contexts, on a sample, as `fit` counts them."""
    neighbours, own = _sample(q, tile, len(tile.shape))
    return _bits(own - ((_weighted(weights, neighbours) + (1 << shift >> 1)) >> shift)) if own.size else 0.0


def _sample(q: np.ndarray, tile: Tile, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the neighbours (int64[taps, samples]) and the values (int64[samples]) of rows spread over the tile."""
    per_plane, num_planes = tile.rows_per_plane, tile.num_rows // tile.rows_per_plane
    if dimension == 3:
        planes, rows = _spread(1, num_planes, 6), _spread(1, per_plane, 6)
    else:
        planes, rows = np.zeros(1, np.int64), _spread(dimension - 1, per_plane, _SAMPLE_ROWS)
    i, j = (grid.reshape(-1) for grid in np.meshgrid(planes, rows, indexing="ij"))
    num = min(tile.row_length, _SAMPLE_LENGTH)
    start = tile.margin + (tile.row_length - num) // 2
    own = q[i * per_plane + j, start : start + num].reshape(-1).astype(np.int64)
    neighbours = np.empty((NUM_TAPS[dimension - 1], own.size), np.int64)
    for tap, (back, above, lanes) in enumerate(TAPS[: len(neighbours)]):
        source = np.maximum(i - back, 0) * per_plane + np.clip(j - above, 0, per_plane - 1)
        first = start - lanes * tile.lane
        neighbours[tap] = q[source, first : first + num].reshape(-1)
    return neighbours, own


def _spread(first: int, stop: int, count: int) -> np.ndarray:
    """Return up to `count` different numbers spread evenly over first to stop - 1."""
    num = min(count, max(stop - first, 0))
    return first + np.arange(num) * (stop - first) // max(num, 1)


def _weighted(weights: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    total = np.zeros(neighbours.shape[1], np.int64)
    for tap in np.flatnonzero(weights):
        total += int(weights[tap]) * neighbours[tap]
    return total


def _bits(residual: np.ndarray) -> float:
    """Return the mean number of bits that residuals take: entropy of their tokens plus extra bits."""
    values = np.clip(residual, -(2**31), 2**31 - 1).astype(np.int32)[None]
    coder = kernels.load("tokens")
    tokens, extra = np.empty(values.shape, np.uint8), np.empty(coder.max_extra_size(values.size), np.uint8)
    extra_size = coder.encode(values, 0, tokens, extra)
    counts = np.bincount(tokens[0])
    shares = counts[counts > 0] / tokens.size
    return float(-(shares * np.log2(shares)).sum()) + 8 * extra_size / tokens.size
