"""Blocks: the parts of a tile that a network sees, side by side on a grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Blocking:
    """How a tile of two or three axes is covered by blocks, seen as three axes; those at its ends reach beyond it."""

    extents: tuple[int, int, int]
    sides: tuple[int, int, int]

    @classmethod
    def of(cls, extents: Sequence[int], dims: int, side: int) -> Blocking:
        """Blocks have `side` elements along each of the last `dims` axes."""
        a, b, c = (1,) * (3 - len(extents)) + tuple(extents)
        return cls((a, b, c), (side if dims == 3 else 1, side, side))

    @property
    def grid(self) -> tuple[int, int, int]:
        """How many blocks there are along each axis."""
        a, b, c = (-(-n // side) for n, side in zip(self.extents, self.sides, strict=True))
        return a, b, c

    @property
    def num_blocks(self) -> int:
        return math.prod(self.grid)

    def cut(self, x: np.ndarray) -> np.ndarray:
        """Return the blocks of a tile, [blocks, elements]; what is beyond its ends repeats them."""
        x = x.reshape(self.extents)
        beyond = [(0, n * side - m) for n, side, m in zip(self.grid, self.sides, self.extents, strict=True)]
        x = np.pad(x, beyond, mode="edge") if any(more for _, more in beyond) else x
        split = x.reshape(tuple(itertools.chain(*zip(self.grid, self.sides, strict=True))))
        return split.transpose(0, 2, 4, 1, 3, 5).reshape(self.num_blocks, -1)

    def join(self, blocks: np.ndarray) -> np.ndarray:
        """Return the tile that blocks make up: the inverse of `cut`."""
        a, b, c = self.extents
        split = blocks.reshape(*self.grid, *self.sides).transpose(0, 3, 1, 4, 2, 5)
        whole = split.reshape([n * side for n, side in zip(self.grid, self.sides, strict=True)])
        return np.ascontiguousarray(whole[:a, :b, :c])

    def spread(self, numbers: np.ndarray) -> np.ndarray:
        """Return a tile whose elements have the number of their block."""
        blocks = np.broadcast_to(numbers[:, None], (self.num_blocks, math.prod(self.sides)))
        return self.join(blocks)
