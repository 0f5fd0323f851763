"""Arrays: what the stores of this package share. A store is a few arrays with equally many rows; a row is a sample."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from trimtab.data.reading import Costs, File, Parts, Reader, Rows, Tasks
from trimtab.data.store import Field
from trimtab.data.throttle import Throttle
from trimtab.dtypes import NAMES
from trimtab.errors import Corrupt, ShapeError, Truncated, UsageError

KEPT_ROW = 512
"""Bytes of a row up to which an array is read whole, once, and kept: labels must not cost a request each."""

KEPT_ARRAY = 1 << 25
"""Bytes of an array up to which that is done."""


class Layout(Protocol):
    """How the rows of one array lie in files."""

    note: str
    """How they are read, in words."""

    def tasks(self, rows: Rows) -> Tasks:
        """Return what has to be done to fill `rows`, which are not none and have bytes."""
        ...

    def close(self) -> None:
        """Close the files that belong to this array alone."""
        ...


class Array(NamedTuple):
    """One array of a store."""

    shape: tuple[int, ...]
    dtype: np.dtype
    """As stored, in either byte order."""
    layout: Layout

    @property
    def field(self) -> Field:
        """What it holds of a sample."""
        return Field(self.shape[1:], self.dtype.newbyteorder("="))


class Arrays:
    """The base of the stores: checks what is asked for, and opens files in each process when they are first needed.

    `num_threads` requests are in flight at a time; `costs` are measured where they are not given; `throttle` makes the
    store slower. A subclass has `_open`.
    """

    def __init__(self, num_threads: int = 4, costs: Costs | None = None, throttle: Throttle | None = None) -> None:
        self._reader = Reader(num_threads, costs, throttle)
        self._opening = threading.Lock()
        self._arrays: dict[str, Array] | None = None
        self._fields: dict[str, Field] = {}
        self._num_samples = 0
        arrays = self._opened()
        counts = {name: array.shape[0] for name, array in arrays.items()}
        if len(set(counts.values())) != 1:
            self.close()
            raise UsageError(f"{self}: fields must have equally many samples, got {counts}")

    def _open(self) -> dict[str, Array]:
        raise NotImplementedError

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields of a sample, by name."""
        return self._fields

    @property
    def num_samples(self) -> int:
        """Rows of every array."""
        return self._num_samples

    @property
    def report(self) -> dict[str, str]:
        """How each field is read, and why, where that is a slow way."""
        return {name: array.layout.note for name, array in self._opened().items()}

    @property
    def costs(self) -> Costs | None:
        """What a request costs, as it was given or measured; None before the first read."""
        return self._reader.costs

    def read(self, samples: np.ndarray, out: Mapping[str, np.ndarray]) -> int:
        """Read samples into `out` and return how many bytes came from storage; see `Store.read`."""
        arrays = self._opened()
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.dtype.kind not in "iu":
            raise UsageError(f"samples must be int64[n], got {samples.dtype} of shape {samples.shape}")
        samples = samples.astype(np.int64, copy=False)
        if len(samples) and not (samples.min() >= 0 and samples.max() < self._num_samples):
            odd = int(samples.min() if samples.min() < 0 else samples.max())
            raise UsageError(f"there is no sample {odd}; {self} has {self._num_samples}")
        tasks = Tasks([], 1)
        for name, x in out.items():
            self._check_out(name, x, len(samples))
            if x.size:
                tasks += arrays[name].layout.tasks(Rows(samples, x))
        return tasks.run()

    def _check_out(self, name: str, x: np.ndarray, num: int) -> None:
        field = self._fields.get(name)
        if field is None:
            raise UsageError(f"{self} has no field {name!r}; expected some of {[*self._fields]}")
        if x.shape != (num, *field.shape) or x.dtype != field.dtype:
            raise ShapeError(
                f"out[{name!r}] must be {field.dtype} of shape {(num, *field.shape)}, got {x.dtype} of {x.shape}"
            )
        if not (x.flags.c_contiguous or (num and x[:1].flags.c_contiguous)) or not x.flags.writeable:
            raise ShapeError(f"out[{name!r}] must be writeable, and each of its rows contiguous")

    def close(self) -> None:
        """Close the files; they are opened again when they are needed."""
        with self._opening:
            arrays, self._arrays = self._arrays, None
            for array in (arrays or {}).values():
                array.layout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None, "_opening": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opening=threading.Lock())

    def _opened(self) -> dict[str, Array]:
        """Return the arrays, opened in this process; the first time, they say what the fields are."""
        if self._arrays is not None:
            return self._arrays
        with self._opening:
            if self._arrays is None:
                arrays = {name: _kept(array) for name, array in self._open().items()}
                fields = {name: array.field for name, array in arrays.items()}
                if self._fields and fields != self._fields:
                    raise Corrupt(f"{self} holds {fields} now, and held {self._fields}; open the store again")
                self._fields = fields
                self._num_samples = next(iter(arrays.values())).shape[0] if arrays else 0
                self._arrays = arrays
            return self._arrays


class Plain:
    """Rows one behind the other from a byte of a file on.

    Raises:
        Truncated: the file ends before the last row.
    """

    def __init__(self, reader: Reader, file: File, start: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._reader, self._file, self._start, self._dtype = reader, file, start, dtype
        end = start + math.prod(shape) * dtype.itemsize
        if end > file.num_bytes:
            raise Truncated(f"{file.path}: the rows need bytes {start} to {end}, the file has {file.num_bytes}")
        self.note = f"in one piece, read at byte {start} of the file"

    def tasks(self, rows: Rows) -> Tasks:
        offsets = self._start + rows.samples * rows.row_bytes
        sizes = np.full(len(rows), rows.row_bytes)
        parts = Parts(self._file, offsets, sizes, range(len(rows)))
        return self._reader.fill(parts, rows, rows.places(), finisher(self._dtype, rows, f"{self._file.path}"))

    def close(self) -> None:
        """The store closes the file, which other arrays have too."""


class Sliced:
    """Rows that a library reads: ``get(first, last)`` returns some that are neighbours."""

    def __init__(
        self, reader: Reader, where: str, get: Callable[[int, int], np.ndarray], close: Callable[[], None], note: str
    ) -> None:
        self._reader, self._where, self._get, self._close, self.note = reader, where, get, close, note

    def tasks(self, rows: Rows) -> Tasks:
        return Tasks([partial(self._read, rows)], 1)

    def _read(self, rows: Rows) -> int:
        order = np.argsort(rows.samples, kind="stable")
        samples = rows.samples[order]
        first = 0
        for last in [*(np.flatnonzero(np.diff(samples) != 1) + 1).tolist(), len(samples)]:
            start, chosen = int(samples[first]), order[first:last]
            with self._reader.throttled(len(chosen) * rows.row_bytes):
                found = self._get(start, start + len(chosen))
            if found.shape != (len(chosen), *rows.array.shape[1:]):
                raise Corrupt(f"{self._where} has another shape than when it was opened")
            if found.dtype.kind == "b":
                check_bools(found, self._where, rows.what(int(chosen[0])))
            rows.array[chosen] = found
            first = last
        return len(samples) * rows.row_bytes

    def close(self) -> None:
        self._close()


class Kept:
    """An array of short rows, read whole when one is first needed."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self._rows: np.ndarray | None = None
        self._reading = threading.Lock()
        self.note = f"{array.layout.note}; read whole and kept, since rows are short"

    def tasks(self, rows: Rows) -> Tasks:
        return Tasks([partial(self._copy, rows)], 1)

    def _copy(self, rows: Rows) -> int:
        num_bytes = 0
        if self._rows is None:
            with self._reading:
                if self._rows is None:
                    every = np.empty(self._array.shape, self._array.field.dtype)
                    num_bytes = self._array.layout.tasks(Rows(np.arange(len(every)), every)).run()
                    self._rows = every
        np.take(self._rows, rows.samples, axis=0, out=rows.array, mode="clip")
        return num_bytes

    def close(self) -> None:
        self._array.layout.close()


def _kept(array: Array) -> Array:
    size = math.prod(array.shape) * array.dtype.itemsize
    if 0 < size <= KEPT_ARRAY and size <= KEPT_ROW * array.shape[0]:
        return array._replace(layout=Kept(array))
    return array


def finisher(dtype: np.dtype, rows: Rows, where: str) -> Any:
    """Return what has to be done to a row that holds the bytes as stored; None where nothing has."""
    if dtype.kind == "b":
        return lambda row: check_bools(rows.array[row : row + 1], where, rows.what(row))
    if not dtype.isnative:
        return lambda row: rows.array[row : row + 1].byteswap(inplace=True)
    return None


def check_bools(x: np.ndarray, where: str, what: str) -> None:
    """Check that each byte is 0 or 1, which is all that NumPy and PyTorch can take.

    Raises:
        Corrupt: one is not.
    """
    if x.size and x.view(np.uint8).max() > 1:
        raise Corrupt(f"{where}: {what} holds bytes other than 0 and 1 where there should be bools")


def is_number(dtype: np.dtype) -> bool:
    """Whether elements of this dtype can be read: numbers and bools, not texts, records, dates or objects."""
    return dtype.name in NAMES


def named(fields: Any, every: Iterable[str]) -> dict[str, str]:
    """Return field -> name in the file, of what a user gave: one name, several, field -> name, or None for every one.

    Raises:
        UsageError: it is none of these, or names nothing or something twice.
    """
    if fields is None:
        fields = every
    elif isinstance(fields, str):
        fields = (fields,)
    names = dict(fields) if isinstance(fields, Mapping) else {str(name).strip("/"): str(name) for name in fields}
    if not names:
        raise UsageError("there is no field; name at least one array of numbers with a first axis")
    return names
