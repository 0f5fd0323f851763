"""Stores of .npy files, one a field, as np.save writes them and np.memmap maps them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from trimtab.data.arrays import Array, Arrays, Plain, is_number
from trimtab.data.reading import Costs, File, Identity
from trimtab.data.throttle import Throttle
from trimtab.errors import ShapeError, UsageError
from trimtab.sources.npy import read_header


class Memmap(Arrays):
    """The rows of one .npy file as the field ``x``, or of several by the names of the fields.

    They are read, not mapped: a mapped file that is cut short ends the process, and each page of it that is touched is
    a request of its own. `num_threads` requests are in flight at a time; `costs` of a request are measured where they
    are not given; `throttle` makes the store slower. For what the methods do, see `Store`.

    Raises:
        UsageError: files differ in their number of rows, or `fields` is given.
        ShapeError: an array has no axes, or is stored by columns, or is not of numbers.
        FormatError: a file is damaged or too short.
        OSError: a file cannot be opened.

    >>> store = Memmap({"x": "images.npy", "y": "labels.npy"})  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
        fields: None = None,
        *,
        num_threads: int = 4,
        costs: Costs | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        if fields is not None:
            raise UsageError("a .npy file holds one array, which has no name; give a dict of paths to name fields")
        paths = path if isinstance(path, Mapping) else {"x": path}
        self._paths = {name: Path(one) for name, one in paths.items()}
        if not self._paths:
            raise UsageError("there is no file; name at least one")
        self._identities: dict[str, Identity] = {}
        super().__init__(num_threads, costs, throttle)

    def __repr__(self) -> str:
        return f"Memmap({', '.join(map(str, self._paths.values()))})"

    def _open(self) -> dict[str, Array]:
        arrays = {}
        for name, path in self._paths.items():
            file = File(path, self._identities.get(name))
            self._identities[name] = file.identity
            with path.open("rb") as header:
                dtype, shape, fortran = read_header(path, header)
                start = header.tell()
            if not shape or not is_number(dtype):
                raise ShapeError(f"{path} holds {dtype} of shape {shape}; expected numbers, with samples along axis 0")
            if fortran and len(shape) > 1:
                raise ShapeError(f"{path} is stored by columns, so no sample is in one piece; save it in C order")
            arrays[name] = Array(shape, dtype, _OwnFile(self._reader, file, start, shape, dtype))
        return arrays


class _OwnFile(Plain):
    """Rows in a file that has no other array."""

    def close(self) -> None:
        self._file.close()
