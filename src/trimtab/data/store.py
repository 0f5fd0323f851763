"""Stores: where the samples of a data set lie, and the one way to read them, whatever the format.

Any class with the members of `Store` is a store; the stores of this package are `HDF5`, `Zarr` and `Memmap`.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from trimtab.errors import BackendUnavailable, UsageError

_CLASSES = {".h5": "HDF5", ".hdf5": "HDF5", ".nc": "HDF5", ".nc4": "HDF5", ".zarr": "Zarr", ".npy": "Memmap"}
_HOMES = {"HDF5": ("hdf5", "h5py"), "Zarr": ("zarr", "zarr"), "Memmap": ("memmap", "")}


class Field(NamedTuple):
    """What one array holds of each sample."""

    shape: tuple[int, ...]
    """Of one sample; empty where it is a number."""
    dtype: np.dtype
    """In the byte order of this machine, whatever that of the file."""


@runtime_checkable
class Store(Protocol):
    """Samples that can be read by number, each with the same fields.

    A store pickles to a recipe, a path and names, and opens its files in each process when it is first read there.
    """

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields of a sample; a store of one array has one, called ``x`` or by the name of the array."""
        ...

    @property
    def num_samples(self) -> int:
        """Samples are numbered from 0."""
        ...

    def read(self, samples: np.ndarray, out: Mapping[str, np.ndarray]) -> int:
        """Read samples into `out` and return how many bytes came from storage.

        `samples` is int64[n], in any order, repeats allowed. ``out[name]`` is [n, *shape] of the field's dtype, and
        each of its rows is C-contiguous; fields that `out` lacks are not read. Threads may read at the same time.

        Raises:
            UsageError: there is no such sample or field, or `out` does not fit.
            Truncated: a file is shorter than it was.
            Corrupt: a file was replaced, or contradicts itself.
        """
        ...

    def close(self) -> None:
        """Close the files. A store that is read again opens them again."""
        ...


def sample_bytes(store: Store) -> int:
    """Return the bytes of one sample, all fields together, as they lie in memory."""
    return sum(math.prod(field.shape) * field.dtype.itemsize for field in store.fields.values())


def open_store(source: Any, **options: Any) -> Store:
    """Return the store of a source: its path, several paths by the names of fields, or a store as it is.

    A path is that of an HDF5 file (``data.h5``, ``data.h5::x``, ``data.h5::x,y``; without names all data sets that have
    as many rows as the largest), of a Zarr array or group, or of a ``.npy`` file. `options` are those of `HDF5`, `Zarr`
    and `Memmap`, such as ``num_threads``.

    Raises:
        UsageError: it is none of these, or fields differ in their number of samples.
        BackendUnavailable: the package that reads it is not installed.
        FormatError: the file is damaged.
        OSError: it cannot be opened.

    >>> store = open_store("scans.h5::diffraction,phase")  # doctest: +SKIP
    >>> store = open_store({"x": "images.npy", "y": "labels.npy"})  # doctest: +SKIP
    """
    if isinstance(source, Mapping):
        return Joined({name: open_store(part, **options) for name, part in source.items()})
    if isinstance(source, (str, os.PathLike)):
        text, _, names = os.fspath(source).partition("::")
        path = Path(text)
        kind = _CLASSES.get(path.suffix.lower()) or ("Zarr" if _is_zarr(path) else None)
        if kind is None:
            raise UsageError(f"cannot tell from the name {path} what it is; expected one of {', '.join(_CLASSES)}")
        if names and kind == "Memmap":
            raise UsageError(f"{path} holds one array, which has no name; leave out '::{names}'")
        return _load(path, kind)(path, tuple(names.split(",")) if names else None, **options)
    if isinstance(source, Store):
        return source
    raise UsageError(f"{type(source).__name__} is no store; give a path, paths by the names of fields, or a Store")


class Joined:
    """Stores of one field each, as one store whose fields have the names given here.

    Raises:
        UsageError: a store has more than one field, or they differ in their number of samples, or none is given.
    """

    def __init__(self, parts: Mapping[str, Store]) -> None:
        if not parts:
            raise UsageError("there is no store to join; name at least one field")
        self._parts = dict(parts)
        self._names = {}
        for name, part in self._parts.items():
            if len(part.fields) != 1:
                raise UsageError(f"the store of {name!r} has {len(part.fields)} fields; name one of {[*part.fields]}")
            (self._names[name],) = part.fields
        counts = {name: part.num_samples for name, part in self._parts.items()}
        if len(set(counts.values())) > 1:
            raise UsageError(f"fields must have equally many samples, got {counts}")
        self.num_samples = next(iter(counts.values()))
        self.fields = {name: part.fields[self._names[name]] for name, part in self._parts.items()}

    def read(self, samples: np.ndarray, out: Mapping[str, np.ndarray]) -> int:
        """Read samples, one field after the other; see `Store.read`."""
        for name in out:
            if name not in self._parts:
                raise UsageError(f"there is no field {name!r}; expected some of {[*self._parts]}")
        return sum(self._parts[name].read(samples, {self._names[name]: x}) for name, x in out.items())

    def close(self) -> None:
        for part in self._parts.values():
            part.close()


def _is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


def _load(path: Path, kind: str) -> Any:
    """Return the class of a store, from its module."""
    module, package = _HOMES[kind]
    try:
        return getattr(importlib.import_module(f"trimtab.data.{module}"), kind)
    except ModuleNotFoundError as error:
        if not package or error.name != package:
            raise
        extra = "hdf5" if package == "h5py" else package
        raise BackendUnavailable(
            f"{path} needs {package}, which is not installed; pip install 'trimtab[{extra}]'"
        ) from None
