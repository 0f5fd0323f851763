"""Zarr folders, formats 2 and 3, through zarr. Arrays are called by their path, such as ``group/temperature``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from trimtab.dtypes import NAMES
from trimtab.errors import UsageError
from trimtab.sources.npy import native
from trimtab.sources.source import Source
from trimtab.sources.target import FolderTarget

_CHUNK = 1 << 24  # bytes of a chunk that we write, about

# zarr would decode ten chunks at a time, and each of its threads would keep the memory of its last one
zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})


class ZarrSource(Source):
    """The arrays of a Zarr folder; an array that is the folder itself is called by the folder's stem."""

    kind = "Zarr"

    def __init__(self, path: Path, *, tensors_only: bool) -> None:
        super().__init__(path, tensors_only=tensors_only)
        root = zarr.open(str(path), mode="r")
        members = [("", root), *(root.members(max_depth=None) if isinstance(root, zarr.Group) else ())]
        self._arrays: dict[str, Any] = {}
        for name, item in sorted(members, key=lambda member: member[0]):
            name = name or path.stem
            if isinstance(item, zarr.Array) and self.admit(name, np.dtype(item.dtype), item.shape):
                self._arrays[name] = item
        num_attributes = sum(len(item.attrs) for _, item in members)
        if num_attributes:
            self.not_kept = f"attributes ({num_attributes} in the Zarr folder)"

    def _read(self, name: str) -> np.ndarray:
        array = self._arrays[name]
        x = np.empty(array.shape, np.dtype(array.dtype))
        for slab in _slabs(array.shape, array.chunks):
            x[slab] = array[slab]
        return native(x)


class ZarrTarget(FolderTarget):
    """A Zarr folder of format 3; a slash in a name makes a group."""

    kind = "Zarr"
    dtypes = tuple(name for name in NAMES if not name.startswith(("bfloat16", "float8")))

    def open(self) -> None:
        self._group = zarr.open_group(str(self.partial), mode="w")

    def add(self, name: str, x: np.ndarray) -> None:
        chunks = _chunks(x.shape, x.itemsize)
        try:
            array = self._group.create_array(name, shape=x.shape, dtype=x.dtype, chunks=chunks)
        except (ValueError, OSError, TypeError) as error:  # empty, or both an array and a group
            raise UsageError(f"{self.path}: a Zarr folder cannot hold an array called {name!r}: {error}") from None
        for slab in _slabs(x.shape, chunks):
            array[slab] = x[slab]


def _slabs(shape: tuple[int, ...], chunks: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Return slices along the first axis, each one chunk thick: zarr holds one slab in memory beside the array."""
    if not shape:
        return [()]
    step = max(1, chunks[0])
    return [(slice(start, start + step),) for start in range(0, shape[0], step)]


def _chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the shape of chunks of about `_CHUNK` bytes: whole along the last axes, cut along the first ones."""
    chunks: list[int] = []
    room = max(1, _CHUNK // itemsize)
    for n in reversed(shape):
        chunks.insert(0, max(1, min(n, room)))
        room = max(1, room // max(1, n))
    return tuple(chunks)
