"""Stores in HDF5 files: h5py says where the rows lie, and they are read there without the HDF5 library.

The library takes one thread at a time. What cannot be read without it (filters that are not known here, virtual,
compact and external data sets, elements that NumPy does not have as they are stored) it reads after all; `HDF5.report`
says so.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from trimtab.data.arrays import Array, Arrays, Layout, Plain, Sliced, is_number, named
from trimtab.data.chunks import MOST_CUTS, Chunked, Grid, Table
from trimtab.data.decoders import hdf5_decoder
from trimtab.data.reading import Costs, File, Identity, Reader, Rows, Tasks
from trimtab.data.throttle import Throttle
from trimtab.errors import Corrupt, ShapeError, UsageError
from trimtab.sources.source import damage_told

Fields = str | Mapping[str, str] | tuple[str, ...] | list[str] | None
"""Data sets: one path in the file, several, or field -> path; None for all that have as many rows as the largest."""


class HDF5(Arrays):
    """The rows of data sets of an HDF5 file: contiguous, or in chunks, also with filters.

    Filters are undone in the threads that read: deflate, shuffle, Fletcher's checksum, LZF, Zstandard, and Blosc where
    numcodecs is installed. `fields` are names of data sets, or field -> path in the file; without them, all data sets
    of numbers that have as many rows as the one with the most bytes. `num_threads` requests are in flight at a time;
    `costs` of a request are measured where they are not given; `throttle` makes the store slower. For what the methods
    do, see `Store`.

    The HDF5 library reads the file's own tables, when the store is opened; damage there may come out as any error.

    Raises:
        UsageError: there is no such data set, or they differ in their number of rows.
        ShapeError: a data set is not of numbers, or has no axes.
        Truncated: the file is shorter than its tables say.
        Corrupt: the file is damaged.
        OSError: it cannot be opened.

    >>> store = HDF5("scans.h5", {"x": "entry/data", "y": "entry/phase"})  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fields: Fields = None,
        *,
        num_threads: int = 4,
        costs: Costs | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        self.path = Path(path)
        self._given = fields
        self._identity: Identity | None = None
        self._file: File | None = None
        super().__init__(num_threads, costs, throttle)

    def __repr__(self) -> str:
        return f"HDF5({self.path})"

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        super().close()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_file": None}

    def _open(self) -> dict[str, Array]:
        self._file = File(self.path, self._identity)
        self._identity = self._file.identity
        with damage_told(self.path), h5py.File(self.path, "r") as tables:
            names = named(self._given, _largest(tables) if self._given is None else ())
            return {field: self._array(tables, name) for field, name in names.items()}

    def _array(self, tables: h5py.File, name: str) -> Array:
        assert self._file is not None
        dataset = tables.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise UsageError(f"{self.path} has no data set {name!r}; it has {', '.join(_datasets(tables)) or 'none'}")
        if not _is_array(dataset):
            raise ShapeError(
                f"{self.path}: data set {name!r} holds {dataset.dtype} of shape {dataset.shape}; expected numbers, "
                "with samples along axis 0"
            )
        shape, dtype = tuple(int(n) for n in dataset.shape), _plain(dataset.dtype)
        if math.prod(n for n in shape if n) * dtype.itemsize > 2**62:
            raise Corrupt(f"{self.path}: data set {name!r} cannot have the shape {shape}")
        return Array(shape, dtype, _layout(self._reader, self._file, dataset, shape, dtype))


def _datasets(tables: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    tables.visititems(visit)
    return found


def _largest(tables: h5py.File) -> list[str]:
    """Return the data sets of numbers that have as many rows as the one with the most bytes."""
    found = {name: dataset for name, dataset in _datasets(tables).items() if _is_array(dataset)}
    sizes = {name: math.prod(dataset.shape) * dataset.dtype.itemsize for name, dataset in found.items()}
    if not sizes:
        return []
    num = found[max(sizes, key=lambda name: sizes[name])].shape[0]
    return [name for name, dataset in found.items() if dataset.shape[0] == num]


def _is_array(dataset: h5py.Dataset) -> bool:
    return bool(dataset.shape) and is_number(_plain(dataset.dtype)) and not dataset.dtype.subdtype


def _plain(dtype: np.dtype) -> np.dtype:
    """Return a dtype without what h5py writes on it, such as the names of an enumeration."""
    return dtype if dtype.kind in "VOSUmM" else np.dtype(dtype.str)


def _layout(reader: Reader, file: File, dataset: h5py.Dataset, shape: tuple[int, ...], dtype: np.dtype) -> Layout:
    """Return how a data set is read: at the file's own offsets, if that can be."""
    fill, properties = _fill_value(dataset, dtype), dataset.id.get_create_plist()
    try:
        is_plain = dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype, logical=True))
    except TypeError:
        is_plain = False
    kind = properties.get_layout()
    if not is_plain:
        reason = "its elements are not stored as NumPy has them"
    elif kind == h5py.h5d.CHUNKED:
        found = _chunked(reader, file, dataset, Grid(shape, tuple(dataset.chunks), dtype), fill)
        if not isinstance(found, str):
            return found
        reason = found
    elif kind != h5py.h5d.CONTIGUOUS:
        reason = "it is virtual or compact"
    elif properties.get_external_count():
        reason = "its rows are in other files"
    elif not dataset.id.get_storage_size():
        return _Unwritten(fill)
    elif (start := dataset.id.get_offset()) is None:
        reason = "the library does not say where it lies"
    else:
        return Plain(reader, file, start, shape, dtype)
    library = _Library(Path(file.path), dataset.name)
    where = f"{file.path}: data set {dataset.name!r}"
    return Sliced(reader, where, library.get, library.close, f"read by h5py, one thread at a time: {reason}")


def _chunked(reader: Reader, file: File, dataset: h5py.Dataset, grid: Grid, fill: Any) -> Layout | str:
    """Return how a data set of chunks is read, or words why only the library can."""
    if not hasattr(dataset.id, "chunk_iter"):
        return "this HDF5 library cannot list chunks"
    if grid.num_cuts > MOST_CUTS:
        return f"each sample is cut into {grid.num_cuts} chunks"
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(k) for k in range(properties.get_nfilters())]
    decode = hdf5_decoder([(one[0], one[2]) for one in filters], grid.chunk_bytes, grid.dtype.itemsize)
    if isinstance(decode, str):
        return decode
    where = f"{file.path}: data set {dataset.name!r}"
    if filters and not grid.fits():
        raise UsageError(
            f"{where} has {grid.array_bytes} bytes in chunks of {grid.chunk_bytes}; write it with smaller chunks"
        )
    listed: list[Any] = []
    dataset.id.chunk_iter(listed.append)
    numbers = [(*chunk.chunk_offset, chunk.byte_offset, chunk.size, chunk.filter_mask) for chunk in listed]
    table = np.array(numbers, np.int64).reshape(len(numbers), len(grid.shape) + 3)
    starts = table[:, :-3]
    corners = starts // grid.chunks
    if (corners * grid.chunks != starts).any() or (starts < 0).any() or (corners >= grid.counts).any():
        raise Corrupt(f"{where}: chunks are listed where none can be")
    keys = np.zeros(len(table), np.int64)
    for axis, count in enumerate(grid.counts):
        keys = keys * count + corners[:, axis]
    chunks = Table(file, grid.num_chunks, keys, table[:, -3], table[:, -2], table[:, -1])
    if not filters and (chunks.sizes != grid.chunk_bytes).any():
        raise Corrupt(f"{where}: chunks without filters must have {grid.chunk_bytes} bytes, and some have not")
    how = "".join(f", {one[3].decode(errors='replace')}" for one in filters)
    note = f"in chunks of {grid.chunks}{how}, read at the file's own offsets"
    return Chunked(reader, file, grid, chunks, fill, decode if filters else None, note)


def _fill_value(dataset: h5py.Dataset, dtype: np.dtype) -> Any:
    """Return what elements that were never written hold."""
    try:
        return np.asarray(dataset.fillvalue, dtype.newbyteorder("="))[()]
    except (RuntimeError, TypeError, ValueError):
        return np.zeros((), dtype.newbyteorder("="))[()]


class _Unwritten:
    """Rows of which none was ever written."""

    note = "never written, all rows hold the fill value"

    def __init__(self, fill: Any) -> None:
        self._fill = fill

    def tasks(self, rows: Rows) -> Tasks:
        rows.array[...] = self._fill
        return Tasks([], 1)

    def close(self) -> None:
        """There is nothing to close."""


class _Library:
    """A data set as the HDF5 library reads it, in each process through a handle of its own."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._lock = threading.Lock()
        self._handle: tuple[int, h5py.File] | None = None

    def get(self, first: int, last: int) -> np.ndarray:
        with self._lock, damage_told(self._path):
            if self._handle is None or self._handle[0] != os.getpid():
                self._handle = os.getpid(), h5py.File(self._path, "r")
            return self._handle[1][self._name][first:last]

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None and handle[0] == os.getpid():
            handle[1].close()
