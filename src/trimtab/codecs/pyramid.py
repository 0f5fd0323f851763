"""A tile as a pyramid: lattices of ever finer spacing, each filled in class by class of points with like parities.

A tile has three axes. The lattice of level l has every 2^(l-1)-th element along each, from the first on; the coarsest
level is the first that has no more than two points along any axis. A point of a lattice has a parity along each axis:
that of its place in the lattice. Points with even parities form the next coarser lattice (at the coarsest level: the
tile's first element). The others are in up to seven classes, in this order of their parities: 001, 010, 100, 011, 101,
110, 111.

The neighbours of the points of a class stand in groups, at steps that differ in signs only. Groups of values are those
of even points and of classes that come before, within a squared distance of 6, and those three points away along an odd
axis; in order of squared distance, then of the step without signs. Groups of magnitudes are those of them within a
squared distance of 3, and then, of the class itself, the point two rows before, the one two planes before, and the two
diagonally before, at (0, -2, -2) and (0, -2, 2). Groups that step along an axis of one point do not exist.

A level is held as up to eight arrays in one, `grids`: one for the even points and one for each class that has points,
in the order of their parities read as a binary number. Along each axis longer than one point each array has one place
before the points, and as many after them as make its length that of the even points plus three: neighbours beyond the
edge (`trimtab.kernels.interpolation` tells their values, magnitudes repeat the outermost).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

Point = tuple[int, int, int]

PARITIES: tuple[Point, ...] = ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1))
"""Classes in the order in which they are decoded."""

_REACH = 6
_OWN_GROUPS: tuple[tuple[Point, ...], ...] = (((0, -2, 0),), ((-2, 0, 0),), ((0, -2, -2), (0, -2, 2)))


@dataclass(frozen=True)
class Level:
    """One level: how many points its lattice has along each axis, and how many elements lie between them."""

    extents: Point
    spacing: int

    @cached_property
    def live(self) -> Point:
        """1 for each axis longer than one point, else 0."""
        a, b, c = (int(n > 1) for n in self.extents)
        return a, b, c

    @cached_property
    def shape(self) -> Point:
        """The shape of one of the arrays."""
        a, b, c = ((n + 1) // 2 + 3 * live for n, live in zip(self.extents, self.live, strict=True))
        return a, b, c

    @cached_property
    def size(self) -> int:
        """Places in one of the arrays."""
        return math.prod(self.shape)

    @cached_property
    def num_places(self) -> int:
        """Places in the grids."""
        return self.size << sum(self.live)

    @cached_property
    def parities(self) -> list[Point]:
        """The classes that have points."""
        return [p for p in PARITIES if all(live >= odd for live, odd in zip(self.live, p, strict=True))]

    def class_shape(self, parity: Point) -> Point:
        """Return the number of points of a class along each axis."""
        a, b, c = ((n + 1 - odd) // 2 for n, odd in zip(self.extents, parity, strict=True))
        return a, b, c

    def start(self, parity: Point) -> int:
        """Return where in the grids, flat, the first point of a class is."""
        live = self.live
        return self._place(parity) + (live[0] * self.shape[1] + live[1]) * self.shape[2] + live[2]

    def offsets(self, parity: Point, steps: np.ndarray) -> np.ndarray:
        """Return for each step from a point of the class, in lattice points, the distance in the flat grids (int64)."""
        ends = steps + np.array(parity)
        strides = np.array([self.shape[1] * self.shape[2], self.shape[2], 1])
        return (ends % 2) @ self._slots * self.size + (ends // 2) @ strides - self._place(parity)

    def elements(self, tile: np.ndarray, parity: Point) -> np.ndarray:
        """Return the elements of a three-dimensional tile that are points of a class, as a view."""
        return tile[tuple(slice(odd * self.spacing, None, 2 * self.spacing) for odd in parity)]

    def _place(self, parity: Point) -> int:
        return int(np.array(parity) @ self._slots) * self.size

    @cached_property
    def _slots(self) -> np.ndarray:
        """How many arrays further an odd place along each axis is."""
        live = self.live
        return np.array([(1 + live[1]) * (1 + live[2]), 1 + live[2], 1])


def levels(extents: Point) -> list[Level]:
    """Return the levels of a tile, the coarsest first."""
    found = [Level(extents, 1)]
    while max(found[-1].extents) > 2:
        a, b, c = ((n + 1) // 2 for n in found[-1].extents)
        found.append(Level((a, b, c), 2 * found[-1].spacing))
    return found[::-1] if max(extents) > 1 else []


@cache
def orbits(parity: Point, live: Point) -> list[list[Point]]:
    """Return the groups of neighbours that share a weight when a point of a class is predicted, the nearest first.

    Steps are in lattice points; the module's docstring says which there are.
    """
    rank = PARITIES.index(parity)
    found = []
    for step in itertools.product(*(range(3 * axis + 1) for axis in live)):
        end = tuple((odd + s) % 2 for odd, s in zip(parity, step, strict=True))
        squared = sum(s * s for s in step)
        known = end == (0, 0, 0) or PARITIES.index(end) < rank
        along = max(step) == 3 and squared == 9
        if known and (squared <= _REACH or (along and parity[step.index(3)] == 1)):
            signs = itertools.product(*((s, -s) if s else (0,) for s in step))
            found.append((squared, step, [(a, b, c) for a, b, c in signs]))
    return [group for _, _, group in sorted(found)]


@cache
def context_groups(parity: Point, live: Point) -> list[list[Point]]:
    """Return the groups of neighbours that share a weight in the activity of a point of a class.

    The module's docstring says which there are.
    """
    near = [group for group in orbits(parity, live) if sum(s * s for s in group[0]) <= 3]
    inside = [
        list(group)
        for group in _OWN_GROUPS
        if all(axis or not s for step in group for axis, s in zip(live, step, strict=True))
    ]
    return near + inside
