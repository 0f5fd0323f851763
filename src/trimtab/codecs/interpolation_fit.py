"""How the weights of an interpolated tile and the contexts of its codes are chosen; only encoders need it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trimtab import kernels
from trimtab.codecs.pyramid import Level, Point, context_groups, orbits
from trimtab.kernels.contexts.ref import MAX_CONTEXTS, UNIT

ONE, CONTEXT_ONE = 1 << 12, 1 << 7
"""What weights of values and of magnitudes are counted in: so many make up 1."""

MAX_SETS = 3
_SET_PAYS = 12288  # points of a level, from which weights of its own save more bytes than they take
_SAMPLE = 4096
_CONTEXT_SAMPLE = 4096
_MIN_FIT = 512  # sample points, below which nothing is fitted
_HEAVY = 4.0  # times the median of the squares that their mean exceeds where errors are heavy-tailed; 2.2 if normal
_FAR_PAYS = 1.04  # far groups take time, so they have to lessen the mean square of the error by so much
_NOISE = 1 / 24  # of a neighbour, in squares of the step
_DAMPING = 1 / 120  # as much noise again keeps weights that are fitted to their own results from growing
_IDLE = 2  # weights of magnitudes up to this one tell nothing, and take time


@dataclass(frozen=True)
class Weights:
    """The weights of one class: of `orbits`, of `context_groups`, and the bias of the activity."""

    values: np.ndarray
    magnitudes: np.ndarray
    bias: int


WeightSet = dict[Point, Weights]
"""The weights of all classes of a level."""


def fit_values(
    x: np.ndarray, levels: list[Level], steps: list[float], before: np.ndarray | None = None
) -> list[WeightSet]:
    """Return sets with weights of values, for as many levels, from the finest on, as have points enough.

    `x` is the tile, in three dimensions; `levels` has the coarsest first, and `steps` those of the levels. The weights
    of magnitudes are 0. Where the tile was encoded `before`, neighbours are as they were decoded then; else those of
    `x`, with noise.
    """
    sets = []
    for level, step in list(zip(levels, steps, strict=False))[::-1][:MAX_SETS]:
        fit = _fit(x, before, level, step) if math.prod(level.extents) >= _SET_PAYS else None
        if fit is None:
            break
        sets.append(fit)
    return sets


def _fit(x: np.ndarray, before: np.ndarray | None, level: Level, step: float) -> WeightSet | None:
    """Return weights of values that predict the level's points best, on a sample; None where that is too small."""
    found: WeightSet = {}
    noise = step**2 * (_NOISE if before is None else _DAMPING)
    for parity in level.parities:
        groups = orbits(parity, level.live)
        no_magnitudes = np.zeros(len(context_groups(parity, level.live)), np.int64)
        points = _sample(x.shape, level, parity, 3, _SAMPLE)
        if points.size < _MIN_FIT:
            return None
        means = _group_means(x if before is None else before, points, level, groups)
        own = x.reshape(-1)[points].astype(np.float64)
        good = np.isfinite(own) & np.isfinite(means).all(axis=0)
        good &= np.abs(own) < step * 2.0**30
        if np.count_nonzero(good) < _MIN_FIT:
            return None
        means, own = means[:, good], own[good]
        found[parity] = Weights(_least_squares(means, own, groups, noise, step / 2), no_magnitudes, 0)
    return found


def fit_contexts(tokens: np.ndarray, levels: list[Level], values: list[WeightSet]) -> list[WeightSet]:
    """Return the sets with weights of magnitudes that tell the magnitude of a point best, on a sample."""
    if not values:
        return []
    field, magnitudes = np.zeros(levels[-1].extents, np.uint8), (tokens + np.uint8(1)) >> np.uint8(1)
    at = 0
    for level in levels:
        for parity in level.parities:
            shape = level.class_shape(parity)
            size = math.prod(shape)
            level.elements(field, parity)[...] = magnitudes[at : at + size].reshape(shape)
            at += size
    sets = []
    for number, old in enumerate(values):
        level, found = levels[-1 - number], {}
        for parity, weights in old.items():
            groups = context_groups(parity, level.live)
            points = _sample(levels[-1].extents, level, parity, 2, _CONTEXT_SAMPLE // level.spacing)
            means = _group_means(field, points, level, groups)
            own = field.reshape(-1)[points].astype(np.float64)
            gram = _products(np.vstack([means, np.ones(own.size), own]), np.ones(own.size))
            gram.flat[:: len(gram) + 1] += 1e-6 * own.size
            solution = np.linalg.solve(gram[:-1, :-1], gram[:-1, -1])
            shares = np.clip(np.rint(solution[:-1] * CONTEXT_ONE), -127, 127).astype(np.int64)
            shares[np.abs(shares) <= _IDLE] = 0
            bias = int(np.clip(np.rint(solution[-1] * UNIT), -(2**15), 2**15 - 1))
            found[parity] = Weights(weights.values, shares, bias)
        sets.append(found)
    return sets


def _sample(extents: tuple[int, ...], level: Level, parity: Point, reach: int, count: int) -> np.ndarray:
    """Return flat positions of a class's points, spread over the tile, whose neighbours are all inside (int64)."""
    axes = []
    for n, odd, live in zip(level.extents, parity, level.live, strict=True):
        places = np.arange(odd, n, 2)
        axes.append(places[(places >= reach * live) & (places + reach * live < n)] * level.spacing)
    num = math.prod(axis.size for axis in axes)
    chosen = np.arange(min(num, count)) * num // max(min(num, count), 1)
    i, j, k = np.unravel_index(chosen, [axis.size for axis in axes]) if num else (np.zeros(0, np.int64),) * 3
    return (axes[0][i] * extents[1] + axes[1][j]) * extents[2] + axes[2][k]


def _group_means(x: np.ndarray, points: np.ndarray, level: Level, groups: list[list[Point]]) -> np.ndarray:
    """Return for each group the means of the neighbours of points (float64[groups, points])."""
    strides = np.array([x.shape[1] * x.shape[2], x.shape[2], 1]) * level.spacing
    offsets = np.array([step for group in groups for step in group]) @ strides
    means = np.empty((len(groups), points.size))
    sizes = np.array([len(group) for group in groups])
    kernels.load("interpolation").group_means(x.reshape(-1), points, offsets, sizes, means)
    return means


def _products(vectors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the weighted sums of products of every two vectors."""
    gram = np.empty((len(vectors), len(vectors)))  # not by BLAS, whose threads cost more than they save
    kernels.load("interpolation").products(np.ascontiguousarray(vectors), shares, gram)
    return gram


def _least_squares(
    means: np.ndarray, own: np.ndarray, groups: list[list[Point]], noise: float, bound: float
) -> np.ndarray:
    """Return weights (int64) of group means, summing to one, that come nearest to `own`.

    `noise` is the variance of the error of each neighbour. Where some errors are far larger than is usual, a second fit
    gives less weight to their points. Far groups have weights only where they help.
    """
    sizes = np.array([len(group) for group in groups])
    near = np.array([i for i, group in enumerate(groups[1:]) if sum(s * s for s in group[0]) not in (5, 6)], np.int64)
    vectors = np.vstack([means[1:], own]) - means[0]
    spread = noise * (np.diag(1 / np.append(sizes[1:], np.inf)) + 1 / sizes[0])
    gram = _products(vectors, np.ones(own.size)) / own.size + spread
    solution = _solve(gram, np.arange(len(groups) - 1))
    residual = vectors[-1].copy()
    for weight, vector in zip(solution, vectors, strict=False):
        residual -= weight * vector
    squares = np.square(residual)
    usual = np.median(squares)
    if squares.mean() > _HEAVY * usual:
        shares = 1 / (bound**2 + squares + 10 * usual)
        gram = _products(vectors, shares / shares.mean()) / own.size + spread
        solution = _solve(gram, np.arange(len(groups) - 1))
    narrow = _solve(gram, near)
    if _error(gram, narrow) <= _FAR_PAYS * _error(gram, solution):
        solution = narrow
    weights = np.zeros(len(means), np.int64)
    weights[1:] = np.rint(np.clip(solution, -3, 3) * ONE)
    weights[0] = ONE - weights.sum()
    return np.clip(weights, -(2**15), 2**15 - 1)


def _solve(gram: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the weights of the chosen vectors, 0 for others, that come nearest to the last vector."""
    part = gram[chosen[:, None], chosen]
    part.flat[:: len(chosen) + 1] += 1e-9 * np.trace(part) + 1e-300
    solution = np.zeros(len(gram) - 1)
    solution[chosen] = np.linalg.solve(part, gram[chosen, -1])
    return solution


def _error(gram: np.ndarray, solution: np.ndarray) -> float:
    """Return the mean square of what the weighted vectors leave of the last one."""
    both = np.append(solution, -1.0)
    return float(both @ gram @ both)


def merge_buckets(joint: np.ndarray) -> np.ndarray:
    """Return the buckets (uint8, ascending) at which a new context begins, so that tokens and tables are short."""
    begins = np.flatnonzero(joint.any(axis=1)).tolist()
    rows = joint[begins][:, : np.flatnonzero(joint.any(axis=0))[-1] + 1].astype(np.float64)
    bits, both = _table_bits(rows), _table_bits(rows[:-1] + rows[1:])
    savings = bits[:-1] + bits[1:] - both
    while savings.size and (savings.max() > 0 or len(begins) > MAX_CONTEXTS):
        i = int(np.argmax(savings))
        rows[i] += rows[i + 1]
        bits[i] = both[i]
        rows, bits = np.delete(rows, i + 1, axis=0), np.delete(bits, i + 1)
        both, savings = np.delete(both, i), np.delete(savings, i)
        del begins[i + 1]
        first, last = max(i - 1, 0), min(i + 1, savings.size)
        both[first:last] = _table_bits(rows[first:last] + rows[first + 1 : last + 1])
        savings[first:last] = bits[first:last] + bits[first + 1 : last + 1] - both[first:last]
    return np.array(begins[1:], np.uint8)


def _table_bits(counts: np.ndarray) -> np.ndarray:
    """Return for each row about how many bits tokens with these counts take, with their table."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / totals
    bits = -(counts * np.log2(np.maximum(shares, 2.0**-11))).sum(axis=1)
    last = counts.shape[1] - np.argmax(counts[:, ::-1] > 0, axis=1)
    return bits + 7 + last + 2 * np.log2(1 + 2048 * shares).sum(axis=1)
