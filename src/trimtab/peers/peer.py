"""What a peer is: another compressor, with its name, version and setting."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar

import numpy as np

from trimtab.bounds import Bound, Lossless


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a peer made of one array: its bytes, and what they leave out about the array."""

    data: Any
    num_bytes: int
    dtype: np.dtype
    shape: tuple[int, ...]


class Peer(ABC):
    """A compressor of someone else, run on one thread."""

    package: ClassVar[str]
    """Name on the Python package index."""
    module: ClassVar[str]
    """Name to import."""
    lossless: ClassVar[bool]
    """Whether every bit comes back; else the peer keeps an absolute error bound."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The short name that tables and the command line use."""

    @property
    @abstractmethod
    def setting(self) -> str:
        """How it is run, in words."""

    def version(self) -> str:
        """Return the version of the installed package.

        Raises:
            importlib.metadata.PackageNotFoundError: it is not installed; see `unavailable`.
        """
        return metadata.version(self.package)

    def unavailable(self) -> str | None:
        """Return why this peer cannot run here, or None where it can."""
        try:
            self.load()
        except ImportError as error:
            return f"{error}; pip install {self.package}"
        return None

    def load(self) -> Any:
        """Import and return the peer's module.

        Raises:
            ImportError: it is not installed, or does not load.
        """
        return importlib.import_module(self.module)

    @abstractmethod
    def refuses(self, x: np.ndarray, bound: Bound = Lossless()) -> str | None:
        """Return why this peer cannot take `x` under `bound`, or None where it can."""

    @abstractmethod
    def compress(self, x: np.ndarray, bound: Bound = Lossless()) -> Encoded:
        """Compress an array that the peer does not refuse; whatever the peer raises passes through."""

    @abstractmethod
    def decompress(self, encoded: Encoded) -> np.ndarray:
        """Return the array, in its dtype and shape; it may be read-only."""

    def __repr__(self) -> str:
        return f"{self.name} ({self.setting})"


def words(x: np.ndarray) -> np.ndarray:
    """Return the elements of `x` as flat unsigned integers, without a copy where `x` is contiguous."""
    return np.ascontiguousarray(x).reshape(-1).view(f"u{min(x.dtype.itemsize, 8)}")


def array(data: Any, encoded: Encoded) -> np.ndarray:
    """Return decoded bytes as the array that was encoded, without a copy."""
    return np.frombuffer(data, np.uint8).view(encoded.dtype).reshape(encoded.shape)
