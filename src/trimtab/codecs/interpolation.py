"""Interpolation: the elements of a tile predicted from neighbours on all sides, lattice by lattice.

(Zhao et al., ICDE 2021: SZ with dynamic spline interpolation; HPEZ: Liu et al., SIGMOD 2024, averages over axes.)
Differences from these: the weights of up to ten groups of neighbours are fitted to the tile by least squares, in which
the decoder's own errors count as noise, so that neighbours are also averaged against those; the first point of a tile
is its only anchor; and every code has a context, for which the magnitudes of the codes around it are weighed in the
same way.

The body of an interpolated payload, numbers little-endian:

- uint8: number of sets of weights (0 to 3); uint8: 1 where predictions are rounded to multiples of the step, else 0
- the sets. The set number i, from 1 on, is that of level i; the last one is also that of the levels above. For each
  class of a level (`trimtab.codecs.pyramid`) that has points at the first level: an int16 for each group of `orbits`,
  the weight of the mean of the group's values, in units of 2^-12; an int8 for each group of `context_groups`, the weight
  of the mean of the group's magnitudes, in units of 2^-7; an int16, the bias of the activity, in units of 2^-11. Classes
  stand in the order of `PARITIES`. Without sets the weights are those of `_default`. At a level where an axis has
  become one point long, groups with a step along it have no members, and the weight of such a group goes to the first
- uint32: bytes of the token block; the block, as of `trimtab.kernels.ans`, with `trimtab.kernels.contexts` telling the
  contexts: thresholds are buckets there
- the rest: extra bits

Tokens are those of all codes but the first, from the top level to the first, class by class in C order;
`trimtab.kernels.tokens` defines how both give the codes. The first code, that of the tile's first element, is the int32
before the block, and stands for code x step. `trimtab.kernels.interpolation` defines how the codes of a class give its
points, in float32 or float64.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from trimtab import kernels
from trimtab.codecs.pyramid import PARITIES, Level, Point, context_groups, levels, orbits
from trimtab.errors import Corrupt
from trimtab.kernels.contexts.ref import MAX_CONTEXTS, NUM_BUCKETS, UNIT, threshold

_HEAD = struct.Struct("<BB")
_SIZES = struct.Struct("<iI")
_MAX_SETS = 3
_ONE = 1 << 12
_CONTEXT_ONE = 1 << 7
_SAMPLE = 4096
_CONTEXT_SAMPLE = 8192
_MIN_FIT = 512  # sample points, below which nothing is fitted


@dataclass(frozen=True)
class Weights:
    """The weights of one class: of `orbits`, of `context_groups`, and the bias of the activity."""

    values: np.ndarray
    magnitudes: np.ndarray
    bias: int


Set = dict[Point, Weights]


class Interpolation:
    """Packs and unpacks the elements of one tile; `extents` are the lengths of its three axes."""

    def __init__(self, extents: Point, step: float, dtype: np.dtype) -> None:
        self.extents, self.step, self.dtype = extents, step, dtype
        self.levels = levels(extents)
        self.live = self.levels[-1].live if self.levels else (0, 0, 0)

    def encode(self, x: np.ndarray, snap: bool, num_sets: int) -> tuple[bytes, np.ndarray]:
        """Return the body of a payload, and the elements that it decodes to, without outliers.

        `x` has the tile's extents and the working dtype. With `snap`, predictions are multiples of the step.
        """
        x = np.ascontiguousarray(x)
        with np.errstate(invalid="ignore", over="ignore"):
            first = x.reshape(-1)[0].astype(np.float64) / self.step
            first = int(np.rint(first)) if abs(first) < 2.0**30 else 0
        fits = [self._fit(x, level) for level in self.levels[::-1][:num_sets]]
        values = [fit for fit in fits if fit is not None]
        values = values if len(values) == len(fits) else []
        codes, y = self._predict(x, first, values, snap)
        coder = kernels.load("tokens")
        tokens = np.empty((1, codes.size), np.uint8)
        extra = np.empty(coder.max_extra_size(codes.size), np.uint8)
        extra = extra[: coder.encode(codes[None], 0, tokens, extra)]
        sets = self._fit_contexts(tokens[0], values)
        block = self._encode_tokens(tokens[0], sets)
        head = _HEAD.pack(len(sets), snap) + b"".join(map(self._pack_set, sets)) + _SIZES.pack(first, block.size)
        return head + block.tobytes() + extra.tobytes(), y

    def decode(self, body: np.ndarray) -> np.ndarray:
        """Return the elements (working dtype, the tile's extents), outliers aside.

        Raises:
            Corrupt: the body contradicts itself.
        """
        num_sets, snap = _HEAD.unpack(body[: _HEAD.size].tobytes()) if body.size >= _HEAD.size else (255, 0)
        start = _HEAD.size + num_sets * self._set_size
        if num_sets > _MAX_SETS or snap > 1 or body.size < start + _SIZES.size:
            raise Corrupt(f"an interpolated tile of {body.size} bytes has no room for {num_sets} sets of weights")
        sets = [
            self._unpack_set(body[_HEAD.size + i * self._set_size :][: self._set_size].tobytes())
            for i in range(num_sets)
        ]
        first, block_size = _SIZES.unpack(body[start : start + _SIZES.size].tobytes())
        start += _SIZES.size
        if block_size > body.size - start:
            raise Corrupt(f"a token block of {block_size} bytes does not fit {body.size - start}")
        tokens = self._decode_tokens(body[start : start + block_size], sets)
        codes = np.empty((1, tokens.size), np.int32)
        if kernels.load("tokens").decode(tokens[None], body[start + block_size :], 0, codes) != 0:
            raise Corrupt("a tile's extra bits do not match its tokens")
        return self._reconstruct(codes[0], first, sets, bool(snap))

    # prediction

    def _predict(self, x: np.ndarray, first: int, values: list[Set], snap: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes (int32) of all elements but the first, and the elements that they stand for."""
        codes = np.empty(x.size - 1, np.int32)
        kernel = kernels.load("interpolation")
        at, flat = 0, x.reshape(-1)
        strides = np.array([x.shape[1] * x.shape[2], x.shape[2], 1], np.int64)

        def encode_class(walk: _Walk, parity: Point, grids: np.ndarray) -> None:
            nonlocal at
            shape = walk.shape(parity)
            begin = int(walk.level.spacing * (np.array(parity) @ strides))
            taps = walk.value_taps(parity, self._weights(values, walk.level, parity).values, self.dtype)
            part = codes[at : at + math.prod(shape)]
            kernel.encode_class(
                flat, begin, 2 * walk.level.spacing * strides, grids, walk.level.start(parity), walk.strides,
                shape, *taps, self.step, snap, part,
            )  # fmt: skip
            at += part.size

        return codes, self._climb(self._root(first), encode_class)

    def _reconstruct(self, codes: np.ndarray, first: int, sets: list[Set], snap: bool) -> np.ndarray:
        kernel = kernels.load("interpolation")
        at = 0

        def decode_class(walk: _Walk, parity: Point, grids: np.ndarray) -> None:
            nonlocal at
            shape = walk.shape(parity)
            taps = walk.value_taps(parity, self._weights(sets, walk.level, parity).values, self.dtype)
            part = codes[at : at + math.prod(shape)]
            kernel.decode_class(
                grids, walk.level.start(parity), walk.strides, shape, *taps, self.step, snap, part
            )  # fmt: skip
            at += part.size

        return self._climb(self._root(first), decode_class)

    def _root(self, first: int) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.full((1, 1, 1), first * self.step).astype(self.dtype)

    def _climb(self, root: np.ndarray, fill_class) -> np.ndarray:
        """Return the finest lattice, made from the first element by filling in class after class."""
        kernel = kernels.load("interpolation")
        fill_margins = kernel.repeat_margins if root.dtype == np.uint8 else kernel.fill_margins
        coarse = root
        for number, level in enumerate(self.levels):
            walk = _Walk(level)
            if number == 0:
                grids = walk.empty_grids(root.dtype)
                grids[level.start((0, 0, 0))] = coarse[0, 0, 0]
            fill_margins(grids, level.start((0, 0, 0)), walk.strides, walk.shape((0, 0, 0)), walk.live)
            for parity in level.parities:
                fill_class(walk, parity, grids)
                fill_margins(grids, level.start(parity), walk.strides, walk.shape(parity), walk.live)
            if number + 1 < len(self.levels):
                finer = _Walk(self.levels[number + 1])
                out, out_start, strides = finer.empty_grids(root.dtype), finer.level.start((0, 0, 0)), finer.strides
            else:
                out, out_start = np.empty(math.prod(self.extents), root.dtype), 0
                strides = np.array([self.extents[1] * self.extents[2], self.extents[2], 1], np.int64)
            kernel.merge(grids, walk.starts, walk.strides, np.array(level.extents), out, out_start, strides)
            grids = out
        return (grids if self.levels else coarse).reshape(self.extents)

    # contexts

    def _encode_tokens(self, tokens: np.ndarray, sets: list[Set]) -> np.ndarray:
        kernel = kernels.load("contexts")
        buckets, joint = np.empty(tokens.size, np.uint8), np.zeros((NUM_BUCKETS, 128), np.int64)
        at = 0

        def fill_buckets(walk: _Walk, parity: Point, grids: np.ndarray) -> None:
            nonlocal at
            shape = walk.shape(parity)
            weights = self._weights(sets, walk.level, parity)
            size = math.prod(shape)
            kernel.buckets_of_class(
                tokens[at : at + size], grids, walk.level.start(parity), walk.strides, shape, walk.live[2],
                *walk.magnitude_taps(parity, weights.magnitudes), weights.bias, buckets[at : at + size], joint,
            )  # fmt: skip
            at += size

        self._climb(_NO_MAGNITUDE, fill_buckets)
        bounds = _merge_buckets(joint)
        contexts = np.searchsorted(bounds, np.arange(NUM_BUCKETS), side="right").astype(np.uint8)
        counts = np.zeros((bounds.size + 1, 128), np.int64)
        np.add.at(counts, contexts, joint)
        ans = kernels.load("ans")
        out = np.empty(ans.max_block_size(tokens.size) + MAX_CONTEXTS * 400, np.uint8)
        return out[: ans.encode_mixed(tokens, contexts[buckets], self._rows, counts, bounds, out)]

    def _decode_tokens(self, block: np.ndarray, sets: list[Set]) -> np.ndarray:
        """Return the tokens of all codes.

        Raises:
            Corrupt: the block is not that of so many tokens.
        """
        ans, kernel = kernels.load("ans"), kernels.load("contexts")
        tokens = np.empty(math.prod(self.extents) - 1, np.uint8)
        table, states = np.empty(MAX_CONTEXTS << 11, np.uint32), np.empty(8, np.uint64)
        start = ans.read_tables(block, MAX_CONTEXTS, table, states)
        if start < 0 or block[1 : block[0]].max(initial=0) >= NUM_BUCKETS:
            raise Corrupt("the tables of a tile's tokens are damaged")
        thresholds = np.array([threshold(int(b)) for b in block[1 : block[0]]], np.int32)
        position = np.array([start], np.uint64)
        at = 0

        def decode_class(walk: _Walk, parity: Point, grids: np.ndarray) -> None:
            nonlocal at
            shape = walk.shape(parity)
            weights = self._weights(sets, walk.level, parity)
            size = math.prod(shape)
            kernel.decode_class(
                block, position, states, table, thresholds, grids, walk.level.start(parity), walk.strides, shape,
                walk.live[2], *walk.magnitude_taps(parity, weights.magnitudes), weights.bias, tokens[at : at + size],
            )  # fmt: skip
            at += size

        self._climb(_NO_MAGNITUDE, decode_class)
        if states.any() or block.size != max((int(position[0]) + 7) // 8, start // 8 + 8):
            raise Corrupt("a tile's tokens do not end with their block")
        return tokens

    @cached_property
    def _rows(self) -> np.ndarray:
        """How many rows of what length each class has, in order (int64[m, 2])."""
        shapes = [level.class_shape(parity) for level in self.levels for parity in level.parities]
        return np.array([(a * b, c) for a, b, c in shapes], np.int64)

    # weights

    def _weights(self, sets: list[Set], level: Level, parity: Point) -> Weights:
        """Return the weights of a class at a level, with those of the groups that have no members left out."""
        if not sets:
            return _default(parity, level.live)
        weights = sets[min(level.spacing.bit_length(), len(sets)) - 1][parity]
        if level.live == self.live:
            return weights
        present, own = orbits(parity, level.live), context_groups(parity, level.live)
        values = dict(zip(map(_name, orbits(parity, self.live)), weights.values.tolist(), strict=True))
        magnitudes = dict(zip(map(_name, context_groups(parity, self.live)), weights.magnitudes.tolist(), strict=True))
        kept = [values.pop(_name(group)) for group in present]
        kept[0] += sum(values.values())
        return Weights(np.array(kept), np.array([magnitudes[_name(group)] for group in own]), weights.bias)

    @property
    def _set_size(self) -> int:
        return sum(2 * len(orbits(p, self.live)) + len(context_groups(p, self.live)) + 2 for p in self._parities)

    @property
    def _parities(self) -> list[Point]:
        return self.levels[-1].parities if self.levels else []

    def _pack_set(self, weights: Set) -> bytes:
        return b"".join(
            w.values.astype("<i2").tobytes() + w.magnitudes.astype("<i1").tobytes() + struct.pack("<h", w.bias)
            for w in (weights[parity] for parity in self._parities)
        )

    def _unpack_set(self, data: bytes) -> Set:
        found, at = {}, 0
        for parity in self._parities:
            num, num_context = len(orbits(parity, self.live)), len(context_groups(parity, self.live))
            values = np.frombuffer(data, "<i2", num, at).astype(np.int64)
            magnitudes = np.frombuffer(data, "<i1", num_context, at + 2 * num).astype(np.int64)
            at += 2 * num + num_context + 2
            found[parity] = Weights(values, magnitudes, struct.unpack_from("<h", data, at - 2)[0])
        return found

    def _fit(self, x: np.ndarray, level: Level) -> Set | None:
        """Return weights of values that predict the level's points best, on a sample; None where that is too small."""
        found: Set = {}
        noise = self.step**2 / 24
        for parity in level.parities:
            groups = orbits(parity, level.live)
            points = _sample(self.extents, level, parity, 3, _SAMPLE)
            if points.size < _MIN_FIT:
                return None
            means = _group_means(x, points, level, groups)
            own = x.reshape(-1)[points].astype(np.float64)
            good = np.isfinite(own) & np.isfinite(means).all(axis=0)
            good &= np.abs(own) < self.step * 2.0**30
            if np.count_nonzero(good) < _MIN_FIT:
                return None
            means, own = means[:, good], own[good]
            sizes = np.array([len(group) for group in groups])
            found[parity] = Weights(_least_squares(means, own, sizes, noise, self.step / 2), np.zeros(0), 0)
        return found

    def _fit_contexts(self, tokens: np.ndarray, values: list[Set]) -> list[Set]:
        """Return the sets with weights of magnitudes that tell the magnitude of a point best, on a sample."""
        if not values:
            return []
        field = np.zeros(self.extents, np.uint8)
        at = 0
        for level in self.levels:
            for parity in level.parities:
                shape = level.class_shape(parity)
                size = math.prod(shape)
                level.elements(field, parity)[...] = ((tokens[at : at + size].astype(np.uint16) + 1) >> 1).reshape(shape)
                at += size
        sets = []
        for number, old in enumerate(values):
            level, found = self.levels[-1 - number], {}
            for parity, weights in old.items():
                groups = context_groups(parity, level.live)
                points = _sample(self.extents, level, parity, 2, _CONTEXT_SAMPLE)
                means = _group_means(field, points, level, groups)
                own = field.reshape(-1)[points].astype(np.float64)
                vectors = np.vstack([means, np.ones(own.size)])
                gram = np.einsum("ik,jk->ij", vectors, vectors) + 1e-6 * own.size * np.eye(len(vectors))
                solution = np.linalg.solve(gram, np.einsum("ik,k->i", vectors, own))
                magnitudes = np.clip(np.rint(solution[:-1] * _CONTEXT_ONE), -127, 127).astype(np.int64)
                bias = int(np.clip(np.rint(solution[-1] * UNIT), -(2**15), 2**15 - 1))
                found[parity] = Weights(weights.values, magnitudes, bias)
            sets.append(found)
        return sets


class _Walk:
    """What the kernels need to know of a level."""

    def __init__(self, level: Level) -> None:
        self.level = level
        _, rows, points = level.shape
        self.strides = np.array([rows * points, points, 1], np.int64)
        self.live = np.array(level.live, np.int64)
        self.starts = np.array([level.start((s >> 2, s >> 1 & 1, s & 1)) for s in range(8)], np.int64)

    def shape(self, parity: Point) -> np.ndarray:
        return np.array(self.level.class_shape(parity), np.int64)

    def empty_grids(self, dtype: np.dtype) -> np.ndarray:
        return (np.zeros if dtype == np.uint8 else np.empty)(8 * math.prod(self.level.shape), dtype)

    def value_taps(self, parity: Point, weights: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Return the offsets and weights of the neighbours that a point is predicted from."""
        return _taps(_neighbours(self.level, parity), (weights / _ONE).astype(dtype))

    def magnitude_taps(self, parity: Point, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the offsets and weights of the magnitudes that make up an activity."""
        return _taps(_context_neighbours(self.level, parity), (weights * (UNIT // _CONTEXT_ONE)).astype(np.int32))


@dataclass(frozen=True)
class _Neighbours:
    """Neighbours in groups: how far each is in the grids, which group it belongs to, and how many each group has."""

    offsets: np.ndarray
    groups: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, level: Level, parity: Point, groups: list[list[Point]]) -> _Neighbours:
        sizes = np.array([len(group) for group in groups])
        steps = np.array([step for group in groups for step in group])
        return cls(level.offsets(parity, steps), np.repeat(np.arange(sizes.size), sizes), sizes)


@lru_cache(maxsize=512)
def _neighbours(level: Level, parity: Point) -> _Neighbours:
    return _Neighbours.of(level, parity, orbits(parity, level.live))


@lru_cache(maxsize=512)
def _context_neighbours(level: Level, parity: Point) -> _Neighbours:
    return _Neighbours.of(level, parity, context_groups(parity, level.live))


def _taps(neighbours: _Neighbours, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets and shares of a group's weight of neighbours whose weight is not 0; zeros make up fours."""
    sizes = neighbours.sizes.astype(weights.dtype)
    shares = (weights / sizes if weights.dtype.kind == "f" else weights // sizes)[neighbours.groups]
    used = np.flatnonzero(shares)
    missing = -used.size % 4
    return (
        np.concatenate([neighbours.offsets[used], np.repeat(neighbours.offsets[:1], missing)]),
        np.concatenate([shares[used], np.zeros(missing, shares.dtype)]),
    )


_NO_MAGNITUDE = np.zeros((1, 1, 1), np.uint8)


def _name(group: list[Point]) -> Point:
    return group[0]


def _default(parity: Point, live: Point) -> Weights:
    """Return the weights without fitting: the mean of the axes' cubics; near magnitudes count more than far ones."""
    groups = orbits(parity, live)
    values = np.zeros(len(groups), np.int64)
    num_axes = sum(parity)
    for i, group in enumerate(groups):
        if sum(s * s for s in group[0]) == 9:
            values[i] = -(_ONE // 8 // num_axes)
        elif sum(s * s for s in group[0]) == 1:
            values[i] = (_ONE + _ONE // 8) // num_axes
    values[0] += _ONE - values.sum()
    context = context_groups(parity, live)
    shares = np.array([len(group) * 4.0 / sum(s * s for s in group[0]) for group in context])
    return Weights(values, np.floor(shares / shares.sum() * _CONTEXT_ONE).astype(np.int64), 16)


def _sample(extents: Point, level: Level, parity: Point, reach: int, count: int) -> np.ndarray:
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
    flat, strides = x.reshape(-1), np.array([x.shape[1] * x.shape[2], x.shape[2], 1]) * level.spacing
    means = np.empty((len(groups), points.size))
    for mean, group in zip(means, groups, strict=True):
        around = np.take(flat, points + (np.array(group) @ strides)[:, None])
        np.mean(around, axis=0, dtype=np.float64, out=mean)
    return means


def _least_squares(means: np.ndarray, own: np.ndarray, sizes: np.ndarray, noise: float, bound: float) -> np.ndarray:
    """Return weights (int64) of group means, summing to one, that come nearest to `own`.

    `noise` is the variance of the error of each neighbour. A second fit gives less weight to points that the first one
    misses by more than is usual.
    """
    differences, target = means[1:] - means[0], own - means[0]
    spread = np.diag(1 / sizes[1:]) + 1 / sizes[0]
    shares = np.ones(own.size)
    solution = np.zeros(len(differences))
    for _ in range(2):
        weighted = differences * shares  # not by BLAS, whose threads cost more than they save
        gram = np.einsum("ik,jk->ij", weighted, differences) + noise * own.size * spread
        moments = np.einsum("ik,k->i", weighted, target) + noise * own.size / sizes[0]
        gram[np.diag_indices_from(gram)] += 1e-9 * np.trace(gram) + 1e-300
        solution = np.linalg.solve(gram, moments)
        squares = np.square(target - np.einsum("i,ik->k", solution, differences))
        shares = 1 / (bound**2 + squares + 10 * np.median(squares))
        shares /= shares.mean()
    weights = np.zeros(len(means), np.int64)
    weights[1:] = np.rint(np.clip(solution, -3, 3) * _ONE)
    weights[0] = _ONE - weights.sum()
    return np.clip(weights, -(2**15), 2**15 - 1)


def _merge_buckets(joint: np.ndarray) -> np.ndarray:
    """Return the buckets (uint8, ascending) at which a new context begins, so that tokens and tables are short."""
    used = np.flatnonzero(joint.any(axis=1))
    begins, rows = [int(b) for b in used], [joint[b].astype(np.float64) for b in used]
    bits = [_table_bits(row) for row in rows]
    savings = [a + b - _table_bits(x + y) for a, b, x, y in zip(bits, bits[1:], rows, rows[1:], strict=False)]
    while savings and (max(savings) > 0 or len(rows) > MAX_CONTEXTS):
        i = int(np.argmax(savings))
        rows[i : i + 2] = [rows[i] + rows[i + 1]]
        bits[i : i + 2] = [_table_bits(rows[i])]
        del begins[i + 1], savings[i]
        for k in (i - 1, i):
            if 0 <= k < len(savings):
                savings[k] = bits[k] + bits[k + 1] - _table_bits(rows[k] + rows[k + 1])
    return np.array(begins[1:], np.uint8)


def _table_bits(counts: np.ndarray) -> float:
    """Return about how many bits tokens with these counts take, with their table."""
    present = counts[counts > 0]
    total = present.sum()
    shares = np.maximum(present / total, 2.0**-11)
    last = np.flatnonzero(counts)[-1] + 1
    return float(-(present * np.log2(shares)).sum() + 7 + last + 2 * np.log2(1 + 2048 * shares).sum())
