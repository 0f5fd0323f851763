"""Source: the arrays of a file, listed at once and read one at a time."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NamedTuple

import numpy as np

from trimtab.dtypes import dtype_name, numpy_dtype
from trimtab.errors import Corrupt, ShapeError, TrimtabError, UsageError


class Spec(NamedTuple):
    """What is known of an array before its elements are read. `dtype` is a name of `trimtab.dtypes.NAMES`."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Raise Corrupt for whatever a library raises inside the ``with`` block: on damaged files that can be anything."""
    try:
        yield
    except (TrimtabError, MemoryError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the system's word about the file, not about what is in it
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise Corrupt(f"{path} cannot be read, or is damaged: {text[:200]}") from error


class Source:
    """A readable file of arrays. Memory holds what `read` returned last, and little else.

    With `tensors_only`, what cannot be stored (texts, objects, records) is left out and listed in `left_out`;
    without, it raises ShapeError when the file is opened.
    """

    kind: ClassVar[str]
    named: ClassVar[bool] = True
    """Whether the names of the arrays stand in the file; else there is one array, called after the file."""
    metadata: Mapping[str, str] = {}
    """Text that belongs to the whole file and that a packed file can carry."""
    not_kept: str | None = None
    """What the file holds beside arrays and a packed file cannot carry, in words."""

    def __init__(self, path: Path, *, tensors_only: bool) -> None:
        self.path = path
        self.tensors_only = tensors_only
        self.specs: dict[str, Spec] = {}
        self.left_out: list[str] = []

    def read(self, name: str) -> np.ndarray:
        """Return an array: C-contiguous, in this machine's byte order.

        Raises:
            FormatError: the file is damaged.
        """
        with damage_told(self.path):
            return self._read(name)

    def _read(self, name: str) -> np.ndarray:
        raise NotImplementedError

    def rename(self, name: str) -> None:
        """Call the one array of a file without names `name`."""
        assert not self.named
        self.specs = dict(zip((name,), self.specs.values(), strict=True))

    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def admit(self, name: str, dtype: np.dtype | str, shape: tuple[int, ...]) -> bool:
        """List an array, or leave it out; return whether it is listed.

        Raises:
            ShapeError: its dtype cannot be stored, and `tensors_only` is off.
            UsageError: another array has this name.
        """
        try:
            spec = Spec(dtype_name(numpy_dtype(dtype) if isinstance(dtype, str) else dtype), shape)
        except ShapeError:
            self.refuse(name, f"has dtype {dtype}, which cannot be stored")
            return False
        if name in self.specs:
            raise UsageError(f"{self.path} has two arrays called {name!r}; rename one")
        self.specs[name] = spec
        return True

    def refuse(self, name: str, reason: str) -> None:
        """Leave an item out.

        Raises:
            ShapeError: `tensors_only` is off.
        """
        if not self.tensors_only:
            raise ShapeError(f"{self.path}: {name!r} {reason}; --tensors-only leaves such items out")
        self.left_out.append(name)
