"""An SZ tile whose elements are interpolated: floats to a payload of bytes and back.

Only tiles of lane 1 and scale "linear" are interpolated, seen as three axes, the leading ones of length 1 where there
are fewer. With fewer than 8 elements, or where the grids of the finest level (`trimtab.codecs.pyramid`) had more than
2^16 places and more than four for each element, a tile is not interpolated. The payload, numbers little-endian:

- uint8 255; float64, the step, positive; four uint32: number of outliers K, bytes of the body, of the gaps and of the
  values
- the body (`trimtab.codecs.interpolation`)
- gaps and values, as in other payloads

The points that the body gives, float32 for 2-byte dtypes and else of the array's dtype, are rounded to that. Outliers
are put in last.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trimtab import kernels
from trimtab.codecs.interpolation import EVEN, Interpolation, Pass, Prior, Target, applies
from trimtab.codecs.interpolation_fit import WeightSet
from trimtab.codecs.pyramid import Point
from trimtab.codecs.sections import deflate, inflate
from trimtab.codecs.tiling import Tile
from trimtab.errors import Corrupt
from trimtab.packed import digest

INTERPOLATED = 255
"""The first byte of an interpolated tile's payload."""

_HEAD = struct.Struct("<Bd4I")
_MAX_OUTLIERS = 64  # one element in so many may be one
_FINENESS = (EVEN, (4, 16), (16, 48))
_FINENESS_PAYS = 2.0  # bits an element, beyond which finer coarse levels cost more than they save
_BIT = 0.15  # what a bit is worth, in squares of the step; where errors are uniform and many it is ln(2) / 6
_START = 0.85  # of the step that errors of nearest codes would allow
_MOST_PASSES = 8
_AIM, _CLOSE = 0.991, 0.98  # of the error allowed: what passes aim at, and with what they are content
_WORSE = 1.1  # times the cost of the pass before, beyond which new weights are dropped
_POWER = 1.4  # of the step that errors grow with, about
_LEAST_STEP, _LARGEST_STEP = 1e-140, 1e140  # so that squares of errors are ordinary numbers


@dataclass(frozen=True)
class Trial:
    """An encoded tile; elements `x`, outliers among them, and what they decode to, `y`, are flat."""

    step: float
    body: bytes
    x: np.ndarray
    outliers: np.ndarray
    y: np.ndarray

    @cached_property
    def error(self) -> float:
        """The sum of the squared errors of finite elements."""
        finite = np.isfinite(self.x)
        return float(np.square(self.y[finite].astype(np.float64) - self.x[finite].astype(np.float64)).sum())

    @property
    def cost(self) -> float:
        """Errors and bits in one number."""
        return self.error + _BIT * self.step**2 * 8 * self.payload.size

    @cached_property
    def payload(self) -> np.ndarray:
        """The payload of the tile (uint8)."""
        gaps = np.diff(self.outliers, prepend=np.uint32(0)).astype("<u4")
        packed = [self.body, deflate(gaps), deflate(self.x[self.outliers])]
        head = _HEAD.pack(INTERPOLATED, self.step, self.outliers.size, *map(len, packed))
        return np.frombuffer(b"".join([head, *packed]), np.uint8)


def encode_interpolated(
    tile: Tile, dtype: np.dtype, flat: np.ndarray, step: float, limit: float, prior: Prior | None = None
) -> tuple[np.ndarray, int] | None:
    """Return the payload (uint8) and the digest of what it decodes to; None if too many elements miss the limit."""
    x = _elements(tile, flat)
    if x is None or step > _LARGEST_STEP:
        return None
    done = Interpolation(x.shape, step, dtype).encode(x.astype(dtype, copy=False), 2 * limit <= step, prior=prior)
    trial = _judged(step, done, x, limit)
    return (trial.payload, digest(trial.y)) if trial else None


def encode_interpolated_by_error(
    tile: Tile, dtype: np.dtype, flat: np.ndarray, step: float, most: float
) -> tuple[np.ndarray, int] | None:
    """Return the payload (uint8) and the digest of what it decodes to, whose squared errors sum to at most `most`.

    Codes are rounded towards zero where that saves bits enough, and a step is sought, from `step` on, with which the
    sum is nearly `most`. How much finer the steps of coarser levels are is tried out. None if the sum is not met.
    """
    x = _elements(tile, flat)
    if x is None or not most > 0 or not _LEAST_STEP < step < _LARGEST_STEP:
        return None
    wide = x.astype(dtype, copy=False)
    best: _Lesson | None = None
    for fineness in _FINENESS:
        lesson = _learn(x, wide, _START * step, fineness)
        if lesson and (best is None or lesson.cost < best.cost):
            best = lesson
        if best is None or 8 * len(best.guide.body) > _FINENESS_PAYS * x.size:
            break
    found = _approach(x, wide, _START * step, most, best) if best else None
    return (found.payload, digest(found.y)) if found else None


@dataclass(frozen=True)
class _Lesson:
    """The pass that others learn from, the weights of values if they stay as they are, and the cost."""

    fineness: tuple[int, int]
    guide: Pass
    values: list[WeightSet] | None
    cost: float


def _learn(x: np.ndarray, wide: np.ndarray, step: float, fineness: tuple[int, int]) -> _Lesson | None:
    """Return what two passes with a step teach: one of nearest codes, and one that learns from it.

    Weights that are fitted to decoded elements may make things worse, because errors grow with them.
    """
    lesson = None
    interpolation = Interpolation(x.shape, step, wide.dtype)
    for _ in range(2):
        guide = interpolation.encode(wide, False, fineness, lesson.guide if lesson else None, _BIT)
        trial = _judged(step, guide, x, 2 * step)
        if trial is None:
            return None
        if lesson and trial.cost > _WORSE * lesson.cost:
            return _Lesson(fineness, lesson.guide, lesson.guide.values, lesson.cost)
        lesson = _Lesson(fineness, guide, None, trial.cost)
    return lesson


def _approach(x: np.ndarray, wide: np.ndarray, step: float, most: float, lesson: _Lesson) -> Trial | None:
    """Return the shortest of several passes whose squared errors sum to at most `most`; None where all exceed it.

    All learn from the same pass, so that nothing but the step changes the errors: what learns from itself again and
    again drifts away.
    """
    found, values = None, lesson.values
    for _ in range(_MOST_PASSES):
        if not _LEAST_STEP < step < _LARGEST_STEP:
            break
        interpolation = Interpolation(x.shape, step, wide.dtype)
        done = interpolation.encode(wide, False, lesson.fineness, lesson.guide, _BIT, values)
        trial = _judged(step, done, x, 2 * step)
        if trial is None:
            break
        if values is None:
            values = done.values if trial.cost <= _WORSE * lesson.cost else lesson.guide.values
        if trial.error <= most and (found is None or trial.payload.size < found.payload.size):
            found = trial
        if trial.error == 0 or _CLOSE * most <= trial.error <= most:
            break
        step *= min(max((_AIM * most / trial.error) ** (1 / _POWER), 0.25), 4.0)
    return found


def _judged(step: float, result: Pass, x: np.ndarray, limit: float) -> Trial | None:
    """Return a pass with its outliers, which miss the limit; None if they are too many."""
    exact = x.reshape(-1)
    with np.errstate(over="ignore"):
        y = result.y.reshape(-1).astype(x.dtype)
    outliers = _misses(exact, y, limit, result.y.dtype)
    if outliers.size > x.size // _MAX_OUTLIERS:
        return None
    y[outliers] = exact[outliers]
    return Trial(step, result.body, exact, outliers, y)


def decode_interpolated(
    payload: np.ndarray, tile: Tile, dtype: np.dtype, flat: np.ndarray, prior: Prior | None = None
) -> None:
    """Write the tile's elements into `flat`, the whole array in C order.

    Raises:
        Corrupt: the payload contradicts itself.
    """
    if tile.lane != 1 or not applies(three_axes(tile)):
        raise Corrupt(f"a tile of extents {tile.extents} and lane {tile.lane} is never interpolated")
    if payload.size < _HEAD.size:
        raise Corrupt(f"an interpolated tile of {payload.size} bytes has no room for its head of {_HEAD.size}")
    _, step, num_outliers, *lengths = _HEAD.unpack(payload[: _HEAD.size].tobytes())
    if not 0 < step < math.inf or num_outliers > tile.num_elements or _HEAD.size + sum(lengths) != payload.size:
        raise Corrupt(
            f"an interpolated tile's head does not fit it: step {step}, {num_outliers} outliers among "
            f"{tile.num_elements} elements, sections of {lengths} bytes after {_HEAD.size} in {payload.size}"
        )
    ends = np.cumsum([_HEAD.size, *lengths])
    body, gaps, values = (payload[a:b] for a, b in itertools.pairwise(ends))
    interpolation = Interpolation(three_axes(tile), step, dtype)
    if flat.dtype == dtype:
        interpolation.decode(body, _target(tile, flat), prior)
    else:
        y = np.empty(three_axes(tile), dtype)
        interpolation.decode(body, Target.whole(y), prior)
        with np.errstate(over="ignore"):
            tile.view(flat)[...] = y.reshape(tile.extents).astype(flat.dtype)
    positions = inflate(gaps, "<u4", num_outliers).astype(np.int64).cumsum()
    if num_outliers and positions[-1] >= tile.num_elements:
        raise Corrupt(f"an outlier stands at {positions[-1]} in a tile of {tile.num_elements} elements")
    tile.put(flat, positions, inflate(values, flat.dtype, num_outliers))


def _elements(tile: Tile, flat: np.ndarray) -> np.ndarray | None:
    """Return the tile's elements in three dimensions; None if it is never interpolated."""
    extents = three_axes(tile)
    return np.ascontiguousarray(tile.view(flat)).reshape(extents) if tile.lane == 1 and applies(extents) else None


def _target(tile: Tile, flat: np.ndarray) -> Target:
    """Return where the tile is in the flat array."""
    shape = (1,) * (3 - len(tile.shape)) + tile.shape
    starts = (0,) * (3 - len(tile.shape)) + tuple(start for start, _ in tile.ranges)
    strides = np.array([shape[1] * shape[2], shape[2], 1], np.int64)
    return Target(flat, int(np.array(starts) @ strides), strides)


def three_axes(tile: Tile) -> Point:
    """Return the lengths of a tile's axes, with leading ones of 1."""
    a, b, c = (1,) * (3 - len(tile.extents)) + tile.extents
    return a, b, c


def _misses(x: np.ndarray, y: np.ndarray, limit: float, dtype: np.dtype) -> np.ndarray:
    """Return the positions (uint32) of elements that are not finite or that `y` is further from than the limit."""
    outliers = np.empty(x.size, np.uint32)
    count = kernels.load("interpolation").misses(
        x.astype(dtype, copy=False), y.astype(dtype, copy=False), limit, outliers
    )
    return outliers[:count].copy()
