"""safetensors files. Its library checks the header; elements are read and written here, one array at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from trimtab.dtypes import SAFETENSORS_NAMES, numpy_dtype
from trimtab.errors import Corrupt
from trimtab.sources.npy import fill
from trimtab.sources.source import Source, Spec
from trimtab.sources.target import Target

_DTYPES = {stored: name for name, stored in SAFETENSORS_NAMES.items()}


class SafetensorsSource(Source):
    """A safetensors file, its arrays in the order of their bytes."""

    kind = "safetensors"

    def __init__(self, path: Path, *, tensors_only: bool) -> None:
        super().__init__(path, tensors_only=tensors_only)
        try:
            with safe_open(path, "np"):  # checks the whole header
                pass
        except SafetensorError as error:
            raise Corrupt(f"{path} is a damaged safetensors file: {error}") from None
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            spans = json.loads(file.read(length))
        self.metadata = spans.pop("__metadata__", None) or {}
        self._starts: dict[str, int] = {}
        for name, span in sorted(spans.items(), key=lambda item: item[1]["data_offsets"]):
            if self.admit(name, _DTYPES.get(span["dtype"], span["dtype"]), tuple(span["shape"])):
                self._starts[name] = 8 + length + span["data_offsets"][0]

    def _read(self, name: str) -> np.ndarray:
        x = np.empty(self.specs[name].shape, numpy_dtype(self.specs[name].dtype))
        with self.path.open("rb") as file:
            file.seek(self._starts[name])
            fill(self.path, file, x)
        return x


class SafetensorsTarget(Target):
    """A safetensors file. Wide elements come first, so that all are aligned, as its readers expect."""

    kind = "safetensors"
    dtypes = tuple(SAFETENSORS_NAMES)
    keeps_metadata = True

    def __init__(self, path: Path, specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> None:
        super().__init__(path, specs, metadata)
        self.order.sort(key=lambda name: -numpy_dtype(specs[name].dtype).itemsize)

    def open(self) -> None:
        self._file = self.partial.open("wb")
        header: dict[str, object] = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        end = 0
        for name in self.order:
            dtype, shape = self.specs[name]
            start, end = end, end + self.specs[name].num_bytes
            header[name] = {"dtype": SAFETENSORS_NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def add(self, name: str, x: np.ndarray) -> None:
        self._file.write(x.reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        self._file.close()
