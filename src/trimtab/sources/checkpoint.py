"""PyTorch checkpoints, read without running any code that they hold. Nested names are joined with dots."""

from __future__ import annotations

import ctypes
import mmap
import pickle
import re
import struct
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.arrays import as_numpy
from trimtab.dtypes import NAMES
from trimtab.errors import UsageError
from trimtab.sources.source import Source
from trimtab.sources.target import Target

_PIECE = 1 << 26  # bytes
_ALIGNMENT = 64  # bytes, as torch.save aligns the elements, so that mapped tensors are aligned


class CheckpointSource(Source):
    """A .pt or .pth file, mapped into memory; files from before PyTorch 1.6 are loaded whole."""

    kind = "PyTorch"

    def __init__(self, path: Path, *, tensors_only: bool) -> None:
        super().__init__(path, tensors_only=tensors_only)
        self._mapped = zipfile.is_zipfile(path)
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=self._mapped)
        except pickle.UnpicklingError as error:
            raise UsageError(
                f"{path} holds more than tensors and plain values ({_first_line(error)}), and loading it could run "
                "code; save model.state_dict() instead"
            ) from None
        self._tensors: dict[str, Any] = {}
        for name, leaf in _leaves(loaded, ""):
            name = name or path.stem
            if not isinstance(leaf, torch.Tensor):
                self.refuse(name, f"is of type {type(leaf).__name__}, not a tensor")
            elif leaf.layout is not torch.strided or leaf.is_quantized:
                self.refuse(name, "is a sparse or quantised tensor")
            elif self.admit(name, str(leaf.dtype).removeprefix("torch."), tuple(leaf.shape)):
                self._tensors[name] = leaf

    def _read(self, name: str) -> np.ndarray:
        x = as_numpy(self._tensors[name])
        if not (self._mapped and x.flags.c_contiguous):
            return np.array(x, order="C")
        # mapped pages are given back piece by piece, so that memory holds the elements only once
        y = np.empty(x.shape, x.dtype)
        flat_x, flat_y = x.reshape(-1), y.reshape(-1)
        step = max(1, _PIECE // x.itemsize)
        for start in range(0, x.size, step):
            piece = flat_x[start : start + step]
            flat_y[start : start + step] = piece
            _release(piece)
        return y

    def close(self) -> None:
        self._tensors.clear()


class CheckpointTarget(Target):
    """A .pt file of a dict of tensors, as torch.save writes it, but with one tensor in memory at a time."""

    kind = "PyTorch"
    dtypes = NAMES

    def open(self) -> None:
        # torch writes a skeleton, all but the elements; the memory of these tensors is never touched
        empty = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in self.specs.items()}
        self._skeleton = tempfile.TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.")
        skeleton = Path(self._skeleton.name) / "archive.pt"
        with torch.serialization.skip_data():
            torch.save(empty, skeleton)
        self._zip = zipfile.ZipFile(self.partial, "w")
        with zipfile.ZipFile(skeleton) as made:
            records = {Path(member).name: member for member in made.namelist() if "/data/" in member}
            self._members = {name: records[str(position)] for position, name in enumerate(self.specs)}
            for member in made.namelist():
                if "/data/" not in member:
                    self._zip.writestr(member, made.read(member))

    def add(self, name: str, x: np.ndarray) -> None:
        member = zipfile.ZipInfo(self._members[name])
        # local header 30 bytes, name, zip64 field 20 bytes, then our padding field of at least 4 bytes
        assert self._zip.fp is not None
        start = self._zip.fp.tell() + 30 + len(member.filename.encode()) + 20 + 4
        padding = -start % _ALIGNMENT
        member.extra = struct.pack("<HH", 0x4246, padding) + bytes(padding)
        with self._zip.open(member, "w", force_zip64=True) as file:
            file.write(x.reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        self._zip.close()
        self._skeleton.cleanup()


def _leaves(item: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield what stands at the ends of nested dicts, lists and tuples, with its joined name."""
    if isinstance(item, Mapping):
        children = [(str(key), child) for key, child in item.items()]
    elif isinstance(item, (list, tuple)):
        children = [(str(position), child) for position, child in enumerate(item)]
    else:
        yield name, item
        return
    for key, child in children:
        yield from _leaves(child, f"{name}.{key}" if name else key)


def _release(x: np.ndarray) -> None:
    """Tell the system that the mapped pages under `x` are not needed now; they are read again if touched."""
    if not sys.platform.startswith("linux"):
        return
    address = x.__array_interface__["data"][0]
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + x.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _first_line(error: Exception) -> str:
    """Return what a PyTorch error says is wrong, without its advice."""
    text = str(error)
    unsupported = re.search(r"Unsupported \w+: \w+ ([\w.]+)", text)
    if unsupported:
        return unsupported[1]
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:200]
