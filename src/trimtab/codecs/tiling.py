"""Tiles: independent pieces of an array, laid out as rows; the grid follows from the shape alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import Corrupt
from trimtab.packed import Packed

MAX_TILE_SIZE = 1 << 21
_SHORT_AXIS = 16
_LINEAR_ROW = 256


@dataclass(frozen=True)
class Fold:
    """An array seen as at most three axes.

    Axes of length 1 vanish. A last axis shorter than 16 joins the one before it, and its length becomes the lane: the
    distance of neighbours within a row. Leading axes join until three remain.
    """

    shape: tuple[int, ...]
    lane: int

    @classmethod
    def of(cls, shape: Sequence[int]) -> Fold:
        axes = [n for n in shape if n != 1] or [1]
        lane = 1
        if len(axes) > 1 and axes[-1] < _SHORT_AXIS:
            lane = axes.pop()
            axes[-1] *= lane
        while len(axes) > 3:
            axes[:2] = [axes[0] * axes[1]]
        return cls(tuple(axes), lane)

    @property
    def splits(self) -> tuple[int, ...]:
        """Parts along each axis: the one with the longest part, the first of several, is halved until tiles fit."""
        splits = [1] * len(self.shape)
        parts = list(self.shape)
        while math.prod(parts) > MAX_TILE_SIZE:
            longest = parts.index(max(parts))
            splits[longest] *= 2
            parts[longest] = -(-self.shape[longest] // splits[longest])
        return tuple(splits)

    @property
    def num_tiles(self) -> int:
        return math.prod(self.splits) if math.prod(self.shape) else 0

    def tiles(self) -> list[Tile]:
        """Return the tiles in C order; part i of n along an axis of length N covers i N // n to (i + 1) N // n."""
        if not math.prod(self.shape):
            return []
        edges = [
            [(n * i // parts, n * (i + 1) // parts) for i in range(parts)]
            for n, parts in zip(self.shape, self.splits, strict=True)
        ]
        return [Tile(self.shape, self.lane, ranges) for ranges in itertools.product(*edges)]


@dataclass(frozen=True)
class Tile:
    """One piece of a folded array: `ranges` along its axes."""

    shape: tuple[int, ...]
    lane: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def extents(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.ranges)

    @property
    def num_elements(self) -> int:
        return math.prod(self.extents)

    @property
    def linear(self) -> bool:
        """Whether the tile has one axis; its rows then follow one another without a seam."""
        return len(self.shape) == 1

    @property
    def num_rows(self) -> int:
        return -(-self.num_elements // _LINEAR_ROW) if self.linear else math.prod(self.extents[:-1])

    @property
    def row_length(self) -> int:
        """Elements in a row; in a linear tile the last row may have fewer."""
        return -(-self.num_elements // self.num_rows) if self.linear else self.extents[-1]

    @property
    def rows_per_plane(self) -> int:
        return self.extents[1] if len(self.shape) == 3 else self.num_rows

    @property
    def margin(self) -> int:
        """Places kept free before and after each row of integers."""
        return 2 * self.lane

    @property
    def context_distance(self) -> int:
        """Rows back to the row of the plane before, or two rows where there is none."""
        return self.rows_per_plane if len(self.shape) == 3 else 2

    def starts(self) -> np.ndarray:
        """Return where each row starts in the flat array (int64)."""
        if self.linear:
            return self.ranges[0][0] + np.arange(self.num_rows, dtype=np.int64) * self.row_length
        starts = np.zeros(1, np.int64)
        for axis, (start, stop) in enumerate(self.ranges[:-1]):
            stride = math.prod(self.shape[axis + 1 :])
            starts = (starts[:, None] + np.arange(start, stop, dtype=np.int64) * stride).reshape(-1)
        return starts + self.ranges[-1][0]

    def local_starts(self) -> np.ndarray:
        """Return where each row starts in the tile's own elements (int64)."""
        return np.arange(self.num_rows, dtype=np.int64) * self.row_length

    def clip(self, flat: np.ndarray) -> np.ndarray:
        """Return `flat` without what comes after a linear tile, so that its last row ends with it."""
        return flat[: self.ranges[0][1]] if self.linear else flat

    def view(self, flat: np.ndarray) -> np.ndarray:
        """Return the tile's elements in the flat array, as a view with the tile's extents."""
        return flat.reshape(self.shape)[tuple(slice(*r) for r in self.ranges)]

    def take(self, flat: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the elements at `positions` within the tile."""
        return flat[self._indices(positions)]

    def put(self, flat: np.ndarray, positions: np.ndarray, values: np.ndarray) -> None:
        """Write elements at `positions` within the tile."""
        flat[self._indices(positions)] = values

    def _indices(self, positions: np.ndarray) -> np.ndarray:
        rows, places = np.divmod(positions.astype(np.int64), self.row_length)
        return self.starts()[rows] + places


def tile_payloads(packed: Packed, num_tiles: int) -> list[np.ndarray]:
    """Return the payload of each tile (uint8), from buffers "tiles", their sizes, and "data".

    Raises:
        Corrupt: the sizes do not add up to the data.
    """
    sizes = packed.buffer("tiles", "uint64", num_tiles)
    data = packed.buffer("data", "uint8")
    if any(int(size) > data.size for size in sizes) or sum(map(int, sizes)) != data.size:
        raise Corrupt(f"the tiles' sizes sum to {sum(map(int, sizes))}; buffer 'data' holds {data.size} bytes")
    return np.split(data, np.cumsum(sizes, dtype=np.int64)[:-1])
