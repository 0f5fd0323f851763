"""Tiles with the elements around them, from an array whose tiles are rewritten one by one, in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trimtab.codecs.tiling import Fold, Tile


class Surroundings:
    """Keeps what stands `reach` elements (one number an axis) beside the cuts between tiles, as it is now.

    What a tile is surrounded by does then not depend on which of its neighbours were rewritten. The memory for it is a
    few hundredths of the array.
    """

    def __init__(self, flat: np.ndarray, fold: Fold, reach: Sequence[int]) -> None:
        self._array = flat.reshape(fold.shape)
        self._reach = tuple(reach)
        self._kept: list[dict[int, np.ndarray]] = []
        for axis, (n, parts, r) in enumerate(zip(fold.shape, fold.splits, reach, strict=True)):
            cuts = [n * part // parts for part in range(1, parts)]
            self._kept.append({cut: self._part(axis, cut - r, cut + r).copy() for cut in cuts})

    def block(self, tile: Tile) -> np.ndarray:
        """Return the tile with `reach` elements on all sides; beyond the array stand its outermost elements again.

        The tile's own elements are as they are now.
        """
        starts = [max(start - r, 0) for (start, _), r in zip(tile.ranges, self._reach, strict=True)]
        stops = [min(stop + r, n) for (_, stop), r, n in zip(tile.ranges, self._reach, self._array.shape, strict=True)]
        window = tuple(map(slice, starts, stops))
        block = self._array[window].copy()
        for axis, ((start, stop), r) in enumerate(zip(tile.ranges, self._reach, strict=True)):
            other = [*window[:axis], slice(None), *window[axis + 1 :]]
            for cut, ours, theirs in (
                (start, slice(0, r), slice(0, r)),
                (stop, slice(block.shape[axis] - r, None), slice(r, None)),
            ):
                if cut in self._kept[axis]:
                    other[axis] = theirs
                    block[(*[slice(None)] * axis, ours)] = self._kept[axis][cut][tuple(other)]
        beyond = [
            (r - (tile_start - start), r - (stop - tile_stop))
            for (tile_start, tile_stop), start, stop, r in zip(tile.ranges, starts, stops, self._reach, strict=True)
        ]
        return np.pad(block, beyond, mode="edge")

    def _part(self, axis: int, start: int, stop: int) -> np.ndarray:
        return self._array[(*[slice(None)] * axis, slice(max(start, 0), stop))]


def row_starts(tile: Tile, reach: Sequence[int]) -> np.ndarray:
    """Return where in the flat block of a tile each of its rows starts (int64), a row being the last axis."""
    wide = [n + 2 * r for n, r in zip(tile.extents, reach, strict=True)]
    starts = np.full(1, reach[-1], np.int64)
    for axis, n in enumerate(tile.extents[:-1]):
        places = (np.arange(n, dtype=np.int64) + reach[axis]) * math.prod(wide[axis + 1 :])
        starts = (starts[:, None] + places).reshape(-1)
    return starts
