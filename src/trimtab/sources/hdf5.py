"""HDF5 and NetCDF-4 files, through h5py. Arrays are called by their path, such as ``group/temperature``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from trimtab.dtypes import NAMES
from trimtab.errors import Corrupt, UsageError
from trimtab.sources.npy import native
from trimtab.sources.source import Source
from trimtab.sources.target import Target


class HDF5Source(Source):
    """The datasets of an HDF5 file, in the order of their paths."""

    kind = "HDF5"

    def __init__(self, path: Path, *, tensors_only: bool) -> None:
        super().__init__(path, tensors_only=tensors_only)
        self._file = h5py.File(path, "r")
        num_attributes = len(self._file.attrs)
        found: list[tuple[str, Any]] = []
        self._file.visititems(lambda name, item: found.append((name, item)))
        for name, item in found:
            num_attributes += len(item.attrs)
            if isinstance(item, h5py.Group):
                continue
            if not isinstance(item, h5py.Dataset) or item.shape is None:
                self.refuse(name, "is not an array")
            else:
                self.admit(name, item.dtype, item.shape)
        if num_attributes:
            self.not_kept = f"attributes ({num_attributes} in the HDF5 file)"

    def _read(self, name: str) -> np.ndarray:
        dataset = self._file[name]
        x = np.empty(dataset.shape, dataset.dtype)
        try:
            if x.size:
                dataset.read_direct(x)
        except (OSError, RuntimeError) as error:
            raise Corrupt(
                f"{self.path}: dataset {name!r} cannot be read: {error}. "
                "If a plugin compressed it, set HDF5_PLUGIN_PATH; else the file is damaged"
            ) from None
        return native(x)

    def close(self) -> None:
        self._file.close()


class HDF5Target(Target):
    """An HDF5 file; a slash in a name makes a group."""

    kind = "HDF5"
    dtypes = tuple(name for name in NAMES if not name.startswith(("bfloat16", "float8")))

    def open(self) -> None:
        self._file = h5py.File(self.partial, "w")

    def add(self, name: str, x: np.ndarray) -> None:
        try:
            self._file.create_dataset(name, data=x)
        except (ValueError, OSError, TypeError) as error:  # empty, "." or both an array and a group
            raise UsageError(f"{self.path}: an HDF5 file cannot hold an array called {name!r}: {error}") from None

    def close(self) -> None:
        self._file.close()
