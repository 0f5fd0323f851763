"""Interpolation: a tile's elements predicted from neighbours on all sides, lattice by lattice.

Differences from the interpolation of SZ3 (Zhao et al., ICDE 2021) and HPEZ (Liu et al., SIGMOD 2024), which takes
cubics along an axis or their mean: the weights of groups of neighbours on all sides are fitted to the tile by least
squares, in which the decoder's own errors count as noise, so that neighbours are averaged against these too; the one
anchor is the tile's first element; and every code has a context, for which the magnitudes of the codes around it are
weighed in the same way.

The body of an interpolated payload, numbers little-endian:

- uint8: number of sets of weights S, at most 3; uint8: 1 where predictions are rounded to multiples of the step, else
  0; two uint8, A and B: the step of a level l levels above the finest is the tile's step / min((1 + A / 16)^l, 1 +
  B / 16), powers by repeated multiplication in float64, and positive; uint16: bytes of the sets
- the sets, in one zstd frame that states its content size (no bytes where S = 0), each for one level, the finest first;
  the last set is also that of all coarser levels. For each class that the finest level has, in the order of
  `trimtab.codecs.pyramid`: an int16 for each of the class's groups of neighbours, in units of 2^-12, the weight of the
  mean of their values; an int8 for each of its groups of magnitudes, in units of 2^-7, the weight of the mean of these;
  an int16, the bias of the activity, in units of 2^-11
- int32: the code of the first element, which code x the tile's step stands for; uint32: the bytes of the token block
- the token block: `trimtab.kernels.ans`, with up to 16 contexts, which `trimtab.kernels.contexts` tells; the thresholds
  are buckets
- extra bits: the rest

Tokens are those of all other elements' codes, from the coarsest level on, class by class, each in C order;
`trimtab.kernels.tokens` defines how tokens and extra bits give the codes, `trimtab.kernels.interpolation` how the codes
of a class give its points. A neighbour's weight is that of its group divided by the number of the group's members; an
activity's weights are in units of 2^-11, rounded down. Groups of weight 0 are left out. Neighbours are taken group by
group, in a group in the order of signs (+ before -, the last axis changing fastest). Where an axis is one point long at
a level but not at the finest, groups that step along it have no members there; the weights of such groups of values are
added to the first group's.

Where blocks of the tile are known beforehand (`Prior`), what these lack is predicted from what known neighbours lacked,
others counting as 0, and added: a second pyramid of the same shape holds it, in which points elsewhere are 0, and the
first element is what it lacks. Where predictions are rounded to multiples of the step, so are known values: rint(value
x (1 / step)) x step. The body then begins with uint8, the number of sets of weights for it, uint16, the bytes of these,
and the sets as above, of whose numbers only the weights of values count. Without any, those of the tile are taken.

With S = 0 the weights are those of a cubic along each odd axis, averaged: 4608 // n for each of the n groups at
distance 1 along an odd axis, -(512 // n) for those at distance 3, 0 for others, and to the first what is missing to
4096. Magnitudes have 128 w // W, where w is 24 times the group's members divided by their squared distance and W the
sum of these; the bias is 16.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from trimtab import kernels
from trimtab.codecs.interpolation_fit import (
    CONTEXT_ONE,
    MAX_SETS,
    ONE,
    Weights,
    WeightSet,
    fit_contexts,
    fit_values,
    merge_buckets,
)
from trimtab.codecs.pyramid import Level, Point, context_groups, levels, orbits
from trimtab.codecs.sections import deflate, inflate
from trimtab.errors import Corrupt
from trimtab.kernels.contexts.ref import MAX_CONTEXTS, NUM_BUCKETS, UNIT, threshold

_HEAD = struct.Struct("<4BH")
_SIZES = struct.Struct("<iI")
_SETS = struct.Struct("<BH")


EVEN = 0, 0
"""A and B where all levels have the same step."""

_NOTHING = np.empty(0, np.uint8)
_NO_MARGINS = np.empty((0, 1))
_MAX_MARGIN_CODE = 3  # codes beyond have the margin of this one
_SPREAD = 4.0  # so much less than at the finest level is a bit worth at others, whose errors spread

_FillClass = Callable[["_Walk", Point, list[np.ndarray]], None]


@dataclass(frozen=True)
class Pass:
    """What one pass of encoding made of a tile, and what the next one may learn from it."""

    body: bytes
    y: np.ndarray
    """The elements that the body decodes to, without outliers."""
    buckets: np.ndarray
    """The bucket of the activity of each code (uint8)."""
    values: list[WeightSet]
    """The weights of values that it predicted with."""
    bits: np.ndarray
    """About how many bits a code of each magnitude from 0 on takes in each bucket (float64)."""

    def margins(self, bit: float) -> np.ndarray:
        """Return by how much codes are rounded towards zero (`trimtab.kernels.interpolation`), by bucket.

        One bit saved is worth a squared error of `bit`, in squares of the step.
        """
        return np.clip(np.diff(self.bits, axis=1) * (bit / 2), 0, 1)


@dataclass(frozen=True)
class Target:
    """Where a tile's elements go: places of a flat array, at distances `strides` (int64[3], the last one 1)."""

    out: np.ndarray
    start: int
    strides: np.ndarray

    @classmethod
    def whole(cls, y: np.ndarray) -> Target:
        """Return all of a three-dimensional array in C order."""
        return cls(y.reshape(-1), 0, np.array([y.shape[1] * y.shape[2], y.shape[2], 1], np.int64))


@dataclass(frozen=True)
class Prior:
    """What is known of a tile beforehand: `values` (working dtype, finite) where `known` (uint8, 0 or 1) says so."""

    values: np.ndarray
    known: np.ndarray

    def on_grid(self, step: float) -> Prior:
        """Return the same with values rounded to multiples of a step."""
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = np.rint(self.values.astype(np.float64) * (1.0 / step)) * step
            return Prior(rounded.astype(self.values.dtype), self.known)

    def lack(self, x: np.ndarray) -> np.ndarray:
        """Return what the values lack of the tile's elements; NaN where they are not known."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.where(self.known != 0, x - self.values, np.array(np.nan, x.dtype))


def applies(extents: Point) -> bool:
    """Return whether a tile of such extents can be interpolated: not where that would take far more memory than it."""
    return math.prod(extents) >= 8 and Level(extents, 1).num_places <= max(4 * math.prod(extents), 1 << 16)


class Interpolation:
    """Packs and unpacks the elements of one tile; `extents` are the lengths of its three axes."""

    def __init__(self, extents: Point, step: float, dtype: np.dtype) -> None:
        self.extents, self.step, self.dtype = extents, step, dtype
        self.levels = levels(extents)
        self.live = self.levels[-1].live if self.levels else (0, 0, 0)

    def encode(
        self,
        x: np.ndarray,
        snap: bool = False,
        fineness: tuple[int, int] = EVEN,
        before: Pass | None = None,
        bit: float = 0.0,
        values: list[WeightSet] | None = None,
        prior: Prior | None = None,
    ) -> Pass:
        """Encode a tile, with A and B of `fineness`.

        `x` has the tile's extents and the working dtype. With `snap`, predictions are multiples of the step. Where a
        pass was made `before`, weights of values are fitted to the elements as it left them, unless `values` are given,
        and codes are rounded towards zero where that costs a squared error of less than `bit` squared steps for each
        bit that it saves. A `prior` goes with neither.
        """
        x = np.ascontiguousarray(x)
        prior = prior.on_grid(self.step) if prior is not None and snap else prior
        steps = self._steps(fineness)
        first, lacking = self._first(x), self._fit_lacking(x, prior)
        values = values or fit_values(x, self.levels, steps, before.y if before else None)
        codes, y = self._predict(x, first, values, snap, steps, before, bit, prior, lacking)
        coder = kernels.load("tokens")
        tokens = np.empty((1, codes.size), np.uint8)
        extra = np.empty(coder.max_extra_size(codes.size), np.uint8)
        extra = extra[: coder.encode(codes[None], 0, tokens, extra)]
        sets = fit_contexts(tokens[0], self.levels, values)
        block, buckets, bits = self._encode_tokens(tokens[0], sets)
        packed = deflate(np.frombuffer(b"".join(map(self._pack_set, sets)), np.uint8))
        head = _HEAD.pack(len(sets), snap, *fineness, len(packed)) + packed + _SIZES.pack(first, block.size)
        if prior is not None:
            packed = deflate(np.frombuffer(b"".join(map(self._pack_set, lacking)), np.uint8))
            head = _SETS.pack(len(lacking), len(packed)) + packed + head
        return Pass(head + block.tobytes() + extra.tobytes(), y, buckets, values, bits)

    def codes(self, x: np.ndarray, snap: bool, prior: Prior | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return each element's code (int32, with the tile's extents; 0 for the first), and the decoded elements.

        Both as `encode` makes them.
        """
        x = np.ascontiguousarray(x)
        prior = prior.on_grid(self.step) if prior is not None and snap else prior
        steps = self._steps(EVEN)
        values, lacking = fit_values(x, self.levels, steps), self._fit_lacking(x, prior)
        codes, y = self._predict(x, self._first(x), values, snap, steps, None, 0.0, prior, lacking)
        field, at = np.zeros(self.extents, np.int32), 0
        for level in self.levels:
            for parity in level.parities:
                shape = level.class_shape(parity)
                level.elements(field, parity)[...] = codes[at : at + math.prod(shape)].reshape(shape)
                at += math.prod(shape)
        return field, y

    def _first(self, x: np.ndarray) -> int:
        """Return the first element's code."""
        with np.errstate(invalid="ignore", over="ignore"):
            first = x.reshape(-1)[0].astype(np.float64) / self.step
            return int(np.rint(first)) if abs(first) < 2.0**30 else 0

    def _fit_lacking(self, x: np.ndarray, prior: Prior | None) -> list[WeightSet]:
        """Return the weights fitted to what a prior lacks."""
        return fit_values(prior.lack(x), self.levels, self._steps(EVEN)) if prior is not None else []

    def decode(self, body: np.ndarray, target: Target, prior: Prior | None = None) -> None:
        """Write the elements, outliers aside, to where `target` says; its dtype is the working dtype.

        Raises:
            Corrupt: the body contradicts itself.
        """
        lacking: list[WeightSet] = []
        if prior is not None:
            lacking, body = self._read_lacking(body)
        head = _HEAD.unpack(body[: _HEAD.size].tobytes()) if body.size >= _HEAD.size else (255, 0, 0, 0, 0)
        num_sets, snap, *fineness, size = head
        start = _HEAD.size + size
        if num_sets > MAX_SETS or snap > 1 or body.size < start + _SIZES.size:
            raise Corrupt(f"an interpolated tile of {body.size} bytes has no room for {num_sets} sets of weights")
        steps = self._steps(fineness)
        if not min(steps) > 0:
            raise Corrupt(f"the steps of a tile's levels, from {self.step} to {min(steps)}, are not all positive")
        sets = self._unpack_sets(body[_HEAD.size : start], num_sets)
        first, block_size = _SIZES.unpack(body[start : start + _SIZES.size].tobytes())
        start += _SIZES.size
        if block_size > body.size - start:
            raise Corrupt(f"a token block of {block_size} bytes does not fit {body.size - start}")
        tokens = self._decode_tokens(body[start : start + block_size], sets)
        codes = np.empty((1, tokens.size), np.int32)
        if kernels.load("tokens").decode(tokens[None], body[start + block_size :], 0, codes) != 0:
            raise Corrupt("a tile's extra bits do not match its tokens")
        prior = prior.on_grid(self.step) if prior is not None and snap else prior
        self._reconstruct(codes[0], first, sets, bool(snap), steps, target, prior, lacking)

    def _read_lacking(self, body: np.ndarray) -> tuple[list[WeightSet], np.ndarray]:
        """Return the weights for what a prior lacks, and the rest of the body."""
        num_sets, size = _SETS.unpack(body[: _SETS.size].tobytes()) if body.size >= _SETS.size else (255, 0)
        start = _SETS.size + size
        if num_sets > MAX_SETS or body.size < start:
            raise Corrupt(f"an interpolated tile of {body.size} bytes has no room for {num_sets} sets of weights")
        return self._unpack_sets(body[_SETS.size : start], num_sets), body[start:]

    def _unpack_sets(self, section: np.ndarray, num_sets: int) -> list[WeightSet]:
        weights = inflate(section, "u1", num_sets * self._set_size)
        return [
            self._unpack_set(weights[i * self._set_size : (i + 1) * self._set_size].tobytes()) for i in range(num_sets)
        ]

    # prediction

    def _steps(self, fineness: Sequence[int]) -> list[float]:
        """Return the step of each level, the coarsest first; one where there are none."""
        growth, most = (1 + number / 16 for number in fineness)
        factors = itertools.accumulate(range(len(self.levels) - 1), lambda factor, _: factor * growth, initial=1.0)
        return [self.step / min(factor, most) for factor in factors][::-1]

    def _predict(
        self,
        x: np.ndarray,
        first: int,
        values: list[WeightSet],
        snap: bool,
        steps: list[float],
        before: Pass | None,
        bit: float,
        prior: Prior | None,
        lacking: list[WeightSet],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes (int32) of all elements but the first, and the elements that they stand for."""
        codes = np.empty(x.size - 1, np.int32)
        kernel = kernels.load("interpolation")
        at, flat = 0, x.reshape(-1)
        strides = np.array([x.shape[1] * x.shape[2], x.shape[2], 1], np.int64)
        kinds, margins = (before.buckets, before.margins(bit)) if before else (_NOTHING, _NO_MARGINS)
        coarse = before.margins(bit / _SPREAD) if before else _NO_MARGINS
        missing = prior.lack(x).reshape(-1) if prior is not None else flat

        def encode_class(walk: _Walk, parity: Point, grids: list[np.ndarray]) -> None:
            nonlocal at
            place = walk.place(parity, strides)
            parts = [codes[at : at + walk.counts[parity]]]
            parts += [np.empty_like(parts[0]) for _ in grids[1:]]
            for source, grid, sets, part in zip(
                (flat, missing), grids, (values, lacking or values), parts, strict=False
            ):
                taps = walk.value_taps(parity, self._weights(sets, walk.level, parity).values, self.dtype)
                kernel.encode_class(
                    source, *place, grid, walk.start(parity), walk.strides, walk.shapes[parity], *taps,
                    self._step(steps, walk.level), snap, kinds[at : at + part.size],
                    margins if walk.level.spacing == 1 else coarse, part,
                )  # fmt: skip
            if prior is not None:
                self._join(walk, parity, prior, grids, parts)
            at += parts[0].size

        y = np.empty(self.extents, self.dtype)
        self._climb(self._roots(first, prior), encode_class, Target.whole(y))
        return codes, y

    def _reconstruct(
        self,
        codes: np.ndarray,
        first: int,
        sets: list[WeightSet],
        snap: bool,
        steps: list[float],
        target: Target,
        prior: Prior | None,
        lacking: list[WeightSet],
    ) -> None:
        kernel = kernels.load("interpolation")
        at = 0

        def decode_class(walk: _Walk, parity: Point, grids: list[np.ndarray]) -> None:
            nonlocal at
            part = codes[at : at + walk.counts[parity]]
            for grid, own in zip(grids, (sets, lacking or sets), strict=False):
                taps = walk.value_taps(parity, self._weights(own, walk.level, parity).values, self.dtype)
                kernel.decode_class(
                    grid, walk.start(parity), walk.strides, walk.shapes[parity], *taps,
                    self._step(steps, walk.level), snap, part,
                )  # fmt: skip
            if prior is not None:
                self._join(walk, parity, prior, grids, [part, part])
            at += part.size

        self._climb(self._roots(first, prior), decode_class, target)

    @staticmethod
    def _step(steps: list[float], level: Level) -> float:
        return steps[-level.spacing.bit_length()]

    def _join(self, walk: _Walk, parity: Point, prior: Prior, grids: list[np.ndarray], codes: list[np.ndarray]) -> None:
        """Put together the points of a class that are known beforehand, with what they lack, and those that are not."""
        strides = Target.whole(prior.values).strides
        kernels.load("interpolation").join_class(
            prior.values.reshape(-1), prior.known.reshape(-1), *walk.place(parity, strides), *grids,
            walk.start(parity), walk.strides, walk.shapes[parity], *codes,
        )  # fmt: skip

    def _roots(self, first: int, prior: Prior | None) -> list[np.ndarray]:
        """Return the first element, and what the prior lacks there."""
        with np.errstate(over="ignore", invalid="ignore"):
            root = np.full(1, first * self.step).astype(self.dtype)
            if prior is None:
                return [root]
            known = prior.known.reshape(-1)[:1] != 0
            return [root, np.where(known, root - prior.values.reshape(-1)[:1], self.dtype.type(0))]

    def _climb(self, roots: list[np.ndarray], fill_class: _FillClass, target: Target | None) -> None:
        """Fill in class after class, from the first elements on, and write the first finest lattice to the target."""
        kernel = kernels.load("interpolation")
        dtype = roots[0].dtype
        fill_margins = kernel.repeat_margins if dtype == np.uint8 else kernel.fill_margins
        if not self.levels and target is not None:
            target.out[target.start] = roots[0][0]
        even, all_grids = (0, 0, 0), roots
        for number, level in enumerate(self.levels):
            walk = _walk(level)
            if number == 0:
                all_grids = [walk.empty_grids(dtype) for _ in roots]
                for grids, root in zip(all_grids, roots, strict=True):
                    grids[walk.start(even)] = root[0]
            for grids in all_grids:
                fill_margins(grids, walk.start(even), walk.strides, walk.shapes[even], walk.live)
            for parity in level.parities:
                fill_class(walk, parity, all_grids)
                for grids in all_grids:
                    fill_margins(grids, walk.start(parity), walk.strides, walk.shapes[parity], walk.live)
            if number + 1 < len(self.levels):
                finer = _walk(self.levels[number + 1])
                coarse, all_grids = all_grids, [finer.empty_grids(dtype) for _ in roots]
                for grids, fine in zip(coarse, all_grids, strict=True):
                    kernel.merge(grids, walk.starts, walk.strides, walk.extents, fine, finer.start(even), finer.strides)
            elif target is not None:
                kernel.merge(
                    all_grids[0], walk.starts, walk.strides, walk.extents, target.out, target.start, target.strides
                )

    # contexts

    def _encode_tokens(self, tokens: np.ndarray, sets: list[WeightSet]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the block, the bucket of each token, and the bits of small magnitudes by bucket."""
        kernel = kernels.load("contexts")
        buckets, joint = np.empty(tokens.size, np.uint8), np.zeros((NUM_BUCKETS, 128), np.int64)
        at = 0

        def fill_buckets(walk: _Walk, parity: Point, all_grids: list[np.ndarray]) -> None:
            nonlocal at
            (grids,) = all_grids
            shape = walk.shapes[parity]
            weights = self._weights(sets, walk.level, parity)
            size = walk.counts[parity]
            kernel.buckets_of_class(
                tokens[at : at + size], grids, walk.start(parity), walk.strides, shape, walk.live[2],
                *walk.magnitude_taps(parity, weights.magnitudes), weights.bias, buckets[at : at + size], joint,
            )  # fmt: skip
            at += size

        self._climb([_NO_MAGNITUDE], fill_buckets, None)
        bounds = merge_buckets(joint)
        contexts = np.searchsorted(bounds, np.arange(NUM_BUCKETS), side="right").astype(np.uint8)
        counts = np.zeros((bounds.size + 1, 128), np.int64)
        np.add.at(counts, contexts, joint)
        ans = kernels.load("ans")
        out = np.empty(ans.max_block_size(tokens.size) + MAX_CONTEXTS * 400, np.uint8)
        block = out[: ans.encode_mixed(tokens, contexts[buckets], self._rows, counts, bounds, out)]
        return block, buckets, _bits(counts)[contexts]

    def _decode_tokens(self, block: np.ndarray, sets: list[WeightSet]) -> np.ndarray:
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
        thresholds = np.full((block[0] + 2) // 4 * 4, 2**31 - 1, np.int32)  # what makes up fours is never reached
        thresholds[: block[0] - 1] = [threshold(int(b)) for b in block[1 : block[0]]]
        position = np.array([start], np.uint64)
        at = 0

        def decode_class(walk: _Walk, parity: Point, all_grids: list[np.ndarray]) -> None:
            nonlocal at
            (grids,) = all_grids
            shape = walk.shapes[parity]
            weights = self._weights(sets, walk.level, parity)
            size = walk.counts[parity]
            kernel.decode_class(
                block, position, states, table, thresholds, grids, walk.start(parity), walk.strides, shape,
                walk.live[2], *walk.magnitude_taps(parity, weights.magnitudes), weights.bias, tokens[at : at + size],
            )  # fmt: skip
            at += size

        self._climb([_NO_MAGNITUDE], decode_class, None)
        if states.any() or block.size != max((int(position[0]) + 7) // 8, start // 8 + 8):
            raise Corrupt("a tile's tokens do not end with their block")
        return tokens

    @cached_property
    def _rows(self) -> np.ndarray:
        """How many rows of what length each class has, in order (int64[m, 2])."""
        shapes = [level.class_shape(parity) for level in self.levels for parity in level.parities]
        return np.array([(a * b, c) for a, b, c in shapes], np.int64)

    # weights

    def _weights(self, sets: list[WeightSet], level: Level, parity: Point) -> Weights:
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

    def _pack_set(self, weights: WeightSet) -> bytes:
        return b"".join(
            w.values.astype("<i2").tobytes() + w.magnitudes.astype("<i1").tobytes() + struct.pack("<h", w.bias)
            for w in (weights[parity] for parity in self._parities)
        )

    def _unpack_set(self, data: bytes) -> WeightSet:
        found, at = {}, 0
        for parity in self._parities:
            num, num_context = len(orbits(parity, self.live)), len(context_groups(parity, self.live))
            values = np.frombuffer(data, "<i2", num, at).astype(np.int64)
            magnitudes = np.frombuffer(data, "<i1", num_context, at + 2 * num).astype(np.int64)
            at += 2 * num + num_context + 2
            found[parity] = Weights(values, magnitudes, struct.unpack_from("<h", data, at - 2)[0])
        return found


def _bits(counts: np.ndarray) -> np.ndarray:
    """Return about how many bits a code of each small magnitude takes, its sign included, from counts of tokens."""
    magnitudes = np.arange(1, 2 * _MAX_MARGIN_CODE + 1, 2)
    each = np.column_stack([counts[:, 0], (counts[:, magnitudes] + counts[:, magnitudes + 1]) / 2])
    return np.log2(counts.sum(axis=1, keepdims=True) + 1) - np.log2(np.maximum(each, 0.25))


class _Walk:
    """What the kernels need to know of a level."""

    def __init__(self, level: Level) -> None:
        self.level = level
        _, rows, points = level.shape
        self.strides = np.array([rows * points, points, 1], np.int64)
        self.live = np.array(level.live, np.int64)
        self.extents = np.array(level.extents, np.int64)
        self.starts = np.zeros(8, np.int64)
        for parity in ((0, 0, 0), *level.parities):
            self.starts[parity[0] * 4 + parity[1] * 2 + parity[2]] = level.start(parity)
        self.shapes = {p: np.array(level.class_shape(p), np.int64) for p in ((0, 0, 0), *level.parities)}
        self.counts = {p: math.prod(level.class_shape(p)) for p in level.parities}

    def start(self, parity: Point) -> int:
        return int(self.starts[parity[0] * 4 + parity[1] * 2 + parity[2]])

    def place(self, parity: Point, strides: np.ndarray) -> tuple[int, np.ndarray]:
        """Return where in a tile of these strides a class begins, and the distances of its points."""
        return int(self.level.spacing * (np.array(parity) @ strides)), 2 * self.level.spacing * strides

    def empty_grids(self, dtype: np.dtype) -> np.ndarray:
        return (np.zeros if dtype == np.uint8 else np.empty)(self.level.num_places, dtype)

    def value_taps(self, parity: Point, weights: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Return the offsets and weights of the neighbours that a point is predicted from."""
        offsets, groups, sizes = _neighbours(self.level, parity, False, (weights != 0).tobytes())
        return offsets, np.append(weights / ONE / sizes, 0.0).astype(dtype)[groups]

    def magnitude_taps(self, parity: Point, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the offsets and weights of the magnitudes that make up an activity."""
        offsets, groups, sizes = _neighbours(self.level, parity, True, (weights != 0).tobytes())
        return offsets, np.append(weights * (UNIT // CONTEXT_ONE) // sizes, 0).astype(np.int32)[groups]


_walk = lru_cache(maxsize=64)(_Walk)


@lru_cache(maxsize=1024)
def _neighbours(level: Level, parity: Point, context: bool, used: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how far each neighbour is in the grids and its group, and how many each group has.

    Only groups in the mask `used` have any. The group after the last makes up fours.
    """
    groups = context_groups(parity, level.live) if context else orbits(parity, level.live)
    steps = [(step, i) for i, group in enumerate(groups) if used[i] for step in group]
    steps += [(groups[0][0], len(groups))] * (-len(steps) % 4)
    offsets = level.offsets(parity, np.array([step for step, _ in steps], np.int64).reshape(-1, 3))
    return offsets, np.array([i for _, i in steps], np.int64), np.array([len(group) for group in groups])


_NO_MAGNITUDE = np.zeros(1, np.uint8)


def _name(group: list[Point]) -> Point:
    return group[0]


def _default(parity: Point, live: Point) -> Weights:
    """Return the weights without fitting: the mean of the axes' cubics; near magnitudes count more than far ones."""
    groups = orbits(parity, live)
    values = np.zeros(len(groups), np.int64)
    num_axes = sum(parity)
    for i, group in enumerate(groups):
        if sum(s * s for s in group[0]) == 9:
            values[i] = -(ONE // 8 // num_axes)
        elif sum(s * s for s in group[0]) == 1:
            values[i] = (ONE + ONE // 8) // num_axes
    values[0] += ONE - values.sum()
    context = context_groups(parity, live)
    shares = np.array([24 * len(group) // sum(s * s for s in group[0]) for group in context])
    return Weights(values, shares * CONTEXT_ONE // shares.sum(), 16)
