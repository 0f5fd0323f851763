"""Plain: the arrays of an ordinary safetensors file, each read when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from trimtab.dtypes import SAFETENSORS_NAMES, numpy_dtype
from trimtab.errors import Truncated
from trimtab.files import map_file, read_header

_DTYPES = {stored: name for name, stored in SAFETENSORS_NAMES.items()}


class Plain(Mapping[str, np.ndarray]):
    """The arrays of a safetensors file by name. Each look-up reads anew; nothing is kept.

    Raises:
        FormatError: this is not a safetensors file, or its header contradicts itself or the file's length.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._spans, self._start, self.metadata = read_header(map_file(self.path))

    def __getitem__(self, name: str) -> np.ndarray:
        span = self._spans[name]
        start, end = span.data_offsets
        data = np.fromfile(self.path, np.uint8, end - start, offset=self._start + start)
        if data.size < end - start:
            raise Truncated(f"{self.path} was cut short: {name!r} needs {end - start} bytes, {data.size} are left")
        return data.view(numpy_dtype(_DTYPES[span.dtype])).reshape(span.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, name: object) -> bool:
        return name in self._spans
