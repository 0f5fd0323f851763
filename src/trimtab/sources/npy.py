"""NumPy's own files: .npy with one array, .npz with several."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
from numpy.lib import format as npy

from trimtab.dtypes import NAMES
from trimtab.errors import Corrupt, Truncated
from trimtab.sources.source import Source, Spec
from trimtab.sources.target import Target, one_spec

_PIECE = 1 << 24  # bytes read at a time where elements are put into another order
_DTYPES = tuple(name for name in NAMES if not name.startswith(("bfloat16", "float8")))


class NpySource(Source):
    """A .npy file; its array is called by the file's stem."""

    kind = "NumPy .npy"
    named = False

    def __init__(self, path: Path, *, tensors_only: bool) -> None:
        super().__init__(path, tensors_only=tensors_only)
        with path.open("rb") as file:
            dtype, shape, _ = read_header(path, file)
            have = path.stat().st_size - file.tell()
        if self.admit(path.stem, dtype, shape) and have < math.prod(shape) * dtype.itemsize:
            raise Truncated(f"{path}: the elements need {math.prod(shape) * dtype.itemsize} bytes, the file has {have}")

    def _read(self, name: str) -> np.ndarray:
        with self.path.open("rb") as file:
            return _read_array(self.path, file)


class NpzSource(Source):
    """A .npz file; members are decompressed one at a time."""

    kind = "NumPy .npz"

    def __init__(self, path: Path, *, tensors_only: bool) -> None:
        super().__init__(path, tensors_only=tensors_only)
        self._zip = zipfile.ZipFile(path)
        for member in self._zip.namelist():
            name = member.removesuffix(".npy")
            if name == member:
                self.refuse(member, "is not an array")
                continue
            with self._open(member) as file:
                dtype, shape, _ = read_header(path, file)
            self.admit(name, dtype, shape)

    def _read(self, name: str) -> np.ndarray:
        with self._open(f"{name}.npy") as file:
            return _read_array(self.path, file)

    def close(self) -> None:
        self._zip.close()

    def _open(self, member: str) -> BinaryIO:
        return self._zip.open(member)  # type: ignore[return-value]


class NpyTarget(Target):
    """A .npy file of one array."""

    kind = "NumPy .npy"
    dtypes = _DTYPES

    def __init__(self, path: Path, specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> None:
        one_spec(path, specs)
        super().__init__(path, specs, metadata)

    def add(self, name: str, x: np.ndarray) -> None:
        with self.partial.open("wb") as file:
            npy.write_array(file, x, allow_pickle=False)


class NpzTarget(Target):
    """A .npz file, not compressed, written member by member."""

    kind: ClassVar[str] = "NumPy .npz"
    dtypes = _DTYPES

    def open(self) -> None:
        self._zip = zipfile.ZipFile(self.partial, "w")

    def add(self, name: str, x: np.ndarray) -> None:
        with self._zip.open(f"{name}.npy", "w", force_zip64=True) as file:
            npy.write_array(file, x, allow_pickle=False)

    def close(self) -> None:
        self._zip.close()


def fill(path: Path, file: BinaryIO, out: np.ndarray) -> None:
    """Fill a contiguous array with the next bytes of `file`, which come from `path`.

    Raises:
        Truncated: the file ends before the array is full.
        Corrupt: the bytes cannot be decompressed.
    """
    view = memoryview(out.reshape(-1).view(np.uint8)) if out.size else memoryview(b"")
    done = 0
    while done < len(view):
        try:
            count = file.readinto(view[done : done + _PIECE])  # type: ignore[attr-defined]
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise Corrupt(f"{path}: the elements cannot be read: {error}") from None
        if not count:
            raise Truncated(f"{path}: the file ends {len(view) - done} bytes too early")
        done += count


def native(x: np.ndarray) -> np.ndarray:
    """Return `x` in this machine's byte order; its memory is reused."""
    return x if x.dtype.isnative else x.byteswap(inplace=True).view(x.dtype.newbyteorder())


def read_header(path: Path, file: BinaryIO) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Return dtype, shape, and whether the order is Fortran's; `file` then stands where the elements begin.

    Raises:
        Corrupt: this is not the header of a .npy file.
    """
    try:
        version = npy.read_magic(file)
        # versions 2 and 3 differ only in how field names are written, and records are refused anyway
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise Corrupt(f"{path}: bad .npy header: {error}") from None
    if any(n < 0 for n in shape) or math.prod(n for n in shape if n) * max(dtype.itemsize, 1) > 2**62:
        raise Corrupt(f"{path}: bad .npy header: shape {shape}")
    return dtype, shape, fortran


def _read_array(path: Path, file: BinaryIO) -> np.ndarray:
    dtype, shape, fortran = read_header(path, file)
    x = np.empty(shape, dtype)
    if not fortran or x.ndim < 2 or not x.size:
        fill(path, file, x)
        return native(x)
    # the file holds the transposed array; read it in slabs, so that memory holds the elements only once
    transposed = x.T
    slab = max(1, _PIECE // max(1, transposed[0].nbytes))
    for start in range(0, len(transposed), slab):
        piece = np.empty_like(transposed[start : start + slab], order="C")
        fill(path, file, piece)
        transposed[start : start + slab] = piece
    return native(x)
