"""What kind of file a path is, by its content, and the module that reads or writes it."""

from __future__ import annotations

import importlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.errors import BackendUnavailable, Corrupt, FormatError, UsageError
from trimtab.sources.source import Source, Spec, damage_told
from trimtab.sources.target import Target

_READERS = {
    "npy": "npy:NpySource",
    "npz": "npy:NpzSource",
    "safetensors": "safetensors:SafetensorsSource",
    "checkpoint": "checkpoint:CheckpointSource",
    "hdf5": "hdf5:HDF5Source",
    "zarr": "zarr:ZarrSource",
}
_WRITERS = {
    ".npy": "npy:NpyTarget",
    ".npz": "npy:NpzTarget",
    ".safetensors": "safetensors:SafetensorsTarget",
    ".pt": "checkpoint:CheckpointTarget",
    ".pth": "checkpoint:CheckpointTarget",
    ".h5": "hdf5:HDF5Target",
    ".hdf5": "hdf5:HDF5Target",
    ".nc": "hdf5:HDF5Target",
    ".nc4": "hdf5:HDF5Target",
    ".zarr": "zarr:ZarrTarget",
}
_EXTRAS = {"torch": "torch", "h5py": "hdf5", "zarr": "zarr"}
_READABLE = "NumPy .npy and .npz, safetensors, PyTorch .pt and .pth, HDF5, NetCDF-4 and Zarr"
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


def open_source(path: str | os.PathLike[str], *, tensors_only: bool = False) -> Source:
    """Open a file of arrays; its kind is told by its content, not by its name.

    Raises:
        UsageError: the file is packed already, or of no kind that can be read.
        ShapeError: it holds something that is no array, and `tensors_only` is off.
        FormatError: it is damaged.
        BackendUnavailable: the package that reads it is not installed.
        OSError: it cannot be opened.
    """
    path = Path(path)
    kind = sniff(path)
    if kind == "packed":
        raise UsageError(f"{path} is already packed; look at it with 'trimtab inspect', or unpack it")
    reader = _load(path, _READERS[kind])
    with damage_told(path):
        return reader(path, tensors_only=tensors_only)


def create_target(path: str | os.PathLike[str], specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> Target:
    """Begin a file of arrays, whose kind is told by the suffix of `path`.

    Raises:
        UsageError: the suffix is unknown, or this kind of file cannot hold so many arrays.
        ShapeError: this kind of file cannot name a dtype.
        BackendUnavailable: the package that writes it is not installed.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    target = _WRITERS.get(path.suffix.lower())
    if target is None:
        raise UsageError(f"cannot tell from the name {path} what to write; end it in one of {', '.join(_WRITERS)}")
    return _load(path, target)(path, specs, metadata)


def sniff(path: Path) -> str:
    """Return the kind of a file by its first bytes: ``packed``, or a kind that `open_source` reads.

    Raises:
        UsageError: it is of no known kind.
        FormatError: it is empty or damaged.
        OSError: it cannot be opened.
    """
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray")):
            return "zarr"
        raise UsageError(f"{path} is a folder, and not a Zarr one; name a file")
    with path.open("rb") as file:
        start = file.read(16)
        if not start:
            raise FormatError(f"{path} is empty")
        # first, since the length may look like any other kind's first bytes
        length = int.from_bytes(start[:8], "little")
        if start[8:9] == b"{" and length <= _MAX_HEADER:
            file.seek(8)
            return _sniff_header(path, file.read(length))
        if start.startswith(b"\x93NUMPY"):
            return "npy"
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return _sniff_zip(path)
        if start.startswith(b"\x89HDF\r\n\x1a\n"):
            return "hdf5"
        if start.startswith(b"\x80\x02"):
            return "checkpoint"  # the pickles of torch.save before zip files; read without running code
        if start.startswith((b"\x80\x03", b"\x80\x04", b"\x80\x05")):
            raise UsageError(
                f"{path} is a Python pickle, and loading it could run code; save arrays with np.savez instead"
            )
    if start.startswith(b"CDF"):
        raise UsageError(f"{path} is a classic NetCDF file; convert it first: nccopy -k nc4 {path} new.nc")
    raise UsageError(f"{path} is of no kind that can be read; expected {_READABLE}")


def _load(path: Path, target: str) -> Any:
    """Return the class ``module:name`` of this package."""
    module, name = target.split(":")
    try:
        return getattr(importlib.import_module(f"trimtab.sources.{module}"), name)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "")
        if extra is None:
            raise
        raise BackendUnavailable(
            f"{path} needs {error.name}, which is not installed; pip install 'trimtab[{extra}]'"
        ) from None


def _sniff_zip(path: Path) -> str:
    with damage_told(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/data.pkl") for name in names):
        return "checkpoint"
    if not names or any(name.endswith(".npy") for name in names):
        return "npz"
    raise UsageError(f"{path} is a zip file with neither NumPy arrays nor a PyTorch checkpoint in it")


def _sniff_header(path: Path, text: bytes) -> str:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise Corrupt(f"{path} is a damaged safetensors file: its header is not JSON") from None
    metadata = header.get("__metadata__")
    return "packed" if isinstance(metadata, dict) and "trimtab" in metadata else "safetensors"
