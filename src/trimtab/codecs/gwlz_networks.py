"""The networks of GWLZ: what they see of an array, their bytes, and the elements that they correct."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from functools import cache

import numpy as np

from trimtab import kernels
from trimtab.codecs.sections import deflate, inflate
from trimtab.codecs.surroundings import row_starts
from trimtab.codecs.sz_tile import narrowed, widened
from trimtab.codecs.tiling import Tile
from trimtab.errors import Corrupt
from trimtab.kernels.enhancer.ref import LARGEST_ACTIVATION, LARGEST_INPUT, SUM_LIMIT

MAX_GROUPS = 16
MAX_HIDDEN_LAYERS = 2
MAX_UNITS = 64
MAX_SHIFT = 31
LARGEST_LIMIT = 128
CORRECTION_UNITS = 32
"""Of the corrections, in one of the inputs."""
_LARGEST_INTEGER = (1 << 30) - 1
_RADIUS_SQUARED = {1: 64, 2: 10, 3: 6}  # by the number of axes
_PIECE = 1 << 18  # elements whose float64 copies are made at a time
_HEAD = struct.Struct("<BB")


@cache
def neighbours(num_axes: int) -> tuple[tuple[int, ...], ...]:
    """Return the distances along each axis to the neighbours that a network sees: a line, a disc or a ball."""
    radius = math.isqrt(_RADIUS_SQUARED[num_axes])
    steps = itertools.product(range(-radius, radius + 1), repeat=num_axes)
    return tuple(step for step in steps if 0 < sum(s * s for s in step) <= _RADIUS_SQUARED[num_axes])


def reach(tile: Tile) -> tuple[int, ...]:
    """Return how many elements beyond a tile its networks see, along each axis."""
    radius = math.isqrt(_RADIUS_SQUARED[len(tile.shape)])
    return (*[radius] * (len(tile.shape) - 1), radius * tile.lane)


@dataclass(frozen=True)
class View:
    """A tile and its surroundings as the networks see them: whole numbers of a unit."""

    q: np.ndarray
    starts: np.ndarray
    taps: np.ndarray
    num: int

    @classmethod
    def of(cls, tile: Tile, block: np.ndarray, unit: float) -> View:
        """Return the view of a tile from its elements with `reach` others on all sides."""
        taps = []
        for step in neighbours(len(tile.shape)):
            tap = 0
            for distance, length in zip(step, block.shape, strict=True):
                tap = tap * length + distance
            taps.append(tap + step[-1] * (tile.lane - 1))
        q = _integers(block, unit)
        return cls(q, row_starts(tile, reach(tile)), np.array(taps, np.int64), tile.extents[-1])


def _integers(block: np.ndarray, unit: float) -> np.ndarray:
    """Return the elements in units, flat (int32); for NaN and infinities stands what comes before in the row."""
    q, flat = np.empty(block.size, np.int32), widened(block.reshape(-1))
    finite = np.isfinite(flat)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE].astype(np.float64)
            np.divide(piece, unit, out=piece)
            np.rint(piece, out=piece)
            np.clip(piece, -_LARGEST_INTEGER, _LARGEST_INTEGER, out=piece)
            q[start : start + _PIECE] = np.where(finite[start : start + _PIECE], piece, 0)
    if not finite.all():
        rows, finite = q.reshape(-1, block.shape[-1]), finite.reshape(-1, block.shape[-1])
        before = np.maximum.accumulate(np.where(finite, np.arange(block.shape[-1]), 0), axis=1)
        rows[:] = np.take_along_axis(rows, before, axis=1)
    return q


@dataclass(frozen=True)
class Networks:
    """One network a group, as `trimtab.kernels.enhancer` has them."""

    edges: np.ndarray
    origins: np.ndarray
    limits: np.ndarray
    sizes: np.ndarray
    weights: np.ndarray
    biases: np.ndarray
    shifts: np.ndarray

    @property
    def num_groups(self) -> int:
        return self.limits.size

    @property
    def hidden(self) -> tuple[int, ...]:
        """Units of the hidden layers."""
        return tuple(map(int, self.sizes[1:-1]))

    def to_bytes(self) -> np.ndarray:
        """Return what `from_bytes` reads (uint8)."""
        head = _HEAD.pack(self.num_groups, len(self.hidden)) + bytes(self.hidden)
        first = int(self.sizes[0] * self.sizes[1])
        parts = [
            self.edges.astype("<i4"),
            self.origins.astype("<i4"),
            self.limits.astype("<u1"),
            self.shifts,
            self.biases.astype("<i4"),
            self.weights[:, :first].astype("<i1"),
            self.weights[:, first:].astype("<i2"),
        ]
        content = b"".join(part.tobytes() for part in parts)
        return np.frombuffer(head + deflate(np.frombuffer(content, np.uint8)), np.uint8)

    @classmethod
    def from_bytes(cls, data: np.ndarray, num_axes: int) -> Networks:
        """Return the networks in a buffer (uint8), of arrays of so many axes.

        Raises:
            Corrupt: it holds something else, or numbers beyond what the arithmetic is exact for.
        """
        if data.size < _HEAD.size:
            raise Corrupt(f"networks of {data.size} bytes have no room for their head of {_HEAD.size}")
        num_groups, num_hidden = _HEAD.unpack(data[: _HEAD.size].tobytes())
        hidden = data[_HEAD.size : _HEAD.size + num_hidden].tolist()
        if not (1 <= num_groups <= MAX_GROUPS and num_hidden <= MAX_HIDDEN_LAYERS and len(hidden) == num_hidden):
            raise Corrupt(f"{num_groups} groups with {num_hidden} hidden layers in {data.size} bytes of networks")
        if not all(1 <= units <= MAX_UNITS for units in hidden):
            raise Corrupt(f"hidden layers of {hidden} units; expected 1 to {MAX_UNITS}")
        sizes = np.array([len(neighbours(num_axes)) + 1, *hidden, 1], np.int64)
        num_units, first = int(sizes[1:].sum()), int(sizes[0] * sizes[1])
        rest = int((sizes[1:-1] * sizes[2:]).sum())
        layout = [("<i4", num_groups - 1), ("<i4", num_groups), ("u1", num_groups), ("u1", num_groups * num_units)]
        layout += [("<i4", num_groups * num_units), ("i1", num_groups * first), ("<i2", num_groups * rest)]
        ends = np.cumsum([0, *(np.dtype(dtype).itemsize * count for dtype, count in layout)])
        content = inflate(data[_HEAD.size + num_hidden :], "u1", int(ends[-1]))
        parts = [
            np.frombuffer(content[a:b].tobytes(), dtype)
            for (dtype, _), (a, b) in zip(layout, itertools.pairwise(ends), strict=True)
        ]
        edges, origins, limits, shifts, biases, first_weights, other_weights = parts
        weights = np.concatenate(
            [first_weights.reshape(num_groups, first), other_weights.reshape(num_groups, rest)], axis=1
        ).astype(np.int16)
        networks = cls(
            edges.astype(np.int32),
            origins.astype(np.int32),
            limits.astype(np.int16),
            sizes,
            weights,
            biases.astype(np.int32).reshape(num_groups, num_units),
            shifts.reshape(num_groups, num_units).copy(),
        )
        networks.check()
        return networks

    def check(self) -> None:
        """Check that the arithmetic is exact, in any order.

        Raises:
            Corrupt: it is not, or a number is out of its range.
        """
        edges, origins = self.edges.astype(np.int64), self.origins.astype(np.int64)
        if (np.diff(edges) <= 0).any() or max(abs(edges).max(initial=0), abs(origins).max()) > _LARGEST_INTEGER:
            raise Corrupt(f"the edges {edges.tolist()} and origins {origins.tolist()} of groups are out of range")
        if self.limits.max() > LARGEST_LIMIT or self.shifts.max() > MAX_SHIFT:
            raise Corrupt(f"a group's limit is above {LARGEST_LIMIT}, or a shift above {MAX_SHIFT}")
        largest = LARGEST_INPUT
        weight, unit = 0, 0
        for before, after in itertools.pairwise(map(int, self.sizes)):
            w = self.weights[:, weight : weight + before * after].astype(np.int64).reshape(-1, after, before)
            sums = abs(w).sum(axis=2) * largest + abs(self.biases[:, unit : unit + after].astype(np.int64))
            if sums.max() >= SUM_LIMIT:
                raise Corrupt(f"a unit's sum may reach {sums.max()}; it must stay below {SUM_LIMIT}")
            weight, unit, largest = weight + before * after, unit + after, LARGEST_ACTIVATION

    def corrections(self, view: View) -> np.ndarray:
        """Return the corrections of a tile, flat (int16), in `CORRECTION_UNITS` of a unit."""
        out = np.empty((view.starts.size, view.num), np.int16)
        kernels.load("enhancer").correct(
            view.q,
            view.starts,
            view.num,
            view.taps,
            self.edges,
            self.origins,
            self.limits,
            self.sizes,
            self.weights,
            self.biases,
            self.shifts,
            out,
        )
        return out.reshape(-1)


def corrected(x: np.ndarray, corrections: np.ndarray, unit: float) -> np.ndarray:
    """Return the elements (flat) with their corrections added, in float64, and rounded to their dtype.

    NaN and infinities stay, and so does what is corrected by 0.
    """
    y = x.copy()
    for start in range(0, x.size, _PIECE):
        piece, c = x[start : start + _PIECE], corrections[start : start + _PIECE]
        wide = widened(piece)
        at = np.flatnonzero((c != 0) & np.isfinite(wide))
        with np.errstate(over="ignore"):  # to infinity: this misses every bound, and is not kept
            total = (wide[at].astype(np.float64) + c[at] * (unit / CORRECTION_UNITS)).astype(wide.dtype)
        y[start : start + _PIECE][at] = narrowed(total, x.dtype)
    return y
