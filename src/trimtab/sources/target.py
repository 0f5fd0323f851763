"""Target: a file of arrays in the making, which appears under its name only when all is written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import numpy as np

from trimtab.dtypes import NAMES
from trimtab.errors import ShapeError, UsageError
from trimtab.files import umask
from trimtab.sources.source import Spec


class Target:
    """A writable file of arrays, used as a context manager; `add` every name of `order`, in that order.

    It is written under a temporary name in the same folder and renamed at the end.
    """

    kind: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]] = NAMES
    """The dtypes that this kind of file can name."""
    keeps_metadata: ClassVar[bool] = False

    def __init__(self, path: Path, specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> None:
        for name, spec in specs.items():
            if spec.dtype not in self.dtypes:
                raise ShapeError(
                    f"{path}: {name!r} is {spec.dtype}, which {self.kind} files cannot name; "
                    f"unpack to {'.npz' if spec.dtype == 'complex128' else '.safetensors'} instead"
                )
        self.path = path
        self.specs = specs
        self.metadata = metadata
        self.order = list(specs)
        self.partial = self._create()

    def add(self, name: str, x: np.ndarray) -> None:
        """Write the next array."""
        raise NotImplementedError

    def open(self) -> None:
        """Open the file at ``self.partial``."""

    def close(self) -> None:
        """Write what stands at the end and close the file."""

    def __enter__(self) -> Target:
        try:
            self.open()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
            if kind is None:
                self._appear()
        finally:
            self._discard()

    def _create(self) -> Path:
        file = tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}.", delete=False)
        file.close()
        return Path(file.name)

    def _appear(self) -> None:
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.partial.chmod(0o666 & ~umask())
        self.partial.replace(self.path)

    def _discard(self) -> None:
        self.partial.unlink(missing_ok=True)


class FolderTarget(Target):
    """A target that is a folder."""

    def _create(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name}."))

    def _appear(self) -> None:
        self.partial.chmod(0o777 & ~umask())
        if self.path.exists():
            old = Path(tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name}."))
            self.path.rename(old / "old")
            self.partial.rename(self.path)
            shutil.rmtree(old)
        else:
            self.partial.rename(self.path)

    def _discard(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)


def one_spec(path: Path, specs: Mapping[str, Spec]) -> None:
    """Check that there is one array only.

    Raises:
        UsageError: there are several, or none.
    """
    if len(specs) != 1:
        raise UsageError(f"{path} can hold one array, not {len(specs)}; choose one with --entry, or unpack to .npz")
