"""Packed: named flat buffers and a small header, what every codec returns.

It is where the layers meet: `files` writes it, `comm` sends its buffers, `train` keeps it between
the forward and the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import xxhash

from trimtab.bounds import Bound
from trimtab.dtypes import NAMES, numpy_dtype
from trimtab.errors import Corrupt, ShapeError

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A size, length or count: not negative, and fits in 64 bits."""

Params = TypeVar("Params", bound=msgspec.Struct)


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a decoder has to know beside the buffers.

    `codec` is the codec struct as plain data (its ``id`` and settings), `params` the numbers that the
    encoder chose for this one array. `base` is the checksum of the array of which the difference was packed, if so.
    """

    codec: dict[str, Any]
    bound: Bound
    dtype: str
    shape: tuple[Count, ...]
    params: dict[str, Any] = {}
    base: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in NAMES:
            raise ValueError(f"unknown dtype {self.dtype!r}")
        if len(self.shape) > 64:  # NumPy's own limit
            raise ValueError(f"{len(self.shape)} axes; at most 64 are possible")
        if math.prod(n for n in self.shape if n) * numpy_dtype(self.dtype).itemsize > 2**62:
            raise ValueError(f"shape {list(self.shape)} does not fit in memory")

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size of the decoded array in bytes."""
        return self.num_elements * numpy_dtype(self.dtype).itemsize


def digest(piece: np.ndarray) -> int:
    """Return the XXH3-64 digest of the elements of `piece` in C order, little-endian."""
    return xxhash.xxh3_64_intdigest(_plain_bytes(piece))


class Digest:
    """The digest of a piece that comes in parts."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_64()

    def add(self, part: np.ndarray) -> None:
        """Go on with the elements of `part` in C order."""
        self._state.update(_plain_bytes(part))

    @property
    def value(self) -> int:
        """What `digest` returns for all parts in one."""
        return self._state.intdigest()


def _plain_bytes(piece: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """An encoded array: a `Header` and its buffers (1-D, contiguous, little-endian).

    A codec that loses something adds the `digests` of what a decoder will return, piece by piece (`Codec.pieces`).
    """

    header: Header
    buffers: Mapping[str, np.ndarray]
    digests: list[int] | None = None

    @property
    def num_bytes(self) -> int:
        """Size of all buffers together in bytes."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.header.shape)) or "scalar"
        codec = self.header.codec.get("id")
        return f"Packed({codec}, {self.header.dtype} {shape}, {self.header.num_bytes} -> {self.num_bytes} bytes)"

    def buffer(self, name: str, dtype: str = "uint8", size: int | None = None) -> np.ndarray:
        """Return the buffer called `name`, checked to be of this dtype and number of elements.

        Raises:
            Corrupt: it is missing, or of another dtype or size.
        """
        buffer = self.buffers.get(name)
        if buffer is None:
            raise Corrupt(f"buffer {name!r} is missing; the entry has {sorted(self.buffers)}")
        expected = numpy_dtype(dtype)
        if buffer.dtype != expected or buffer.ndim != 1:
            raise Corrupt(f"buffer {name!r} holds {buffer.dtype} of shape {buffer.shape}; expected flat {dtype}")
        if size is not None and buffer.size != size:
            raise Corrupt(f"buffer {name!r} holds {buffer.size} elements; expected {size}")
        return buffer if buffer.flags.aligned else buffer.copy()

    def params(self, kind: type[Params]) -> Params:
        """Return the header's params as the codec's own struct.

        Raises:
            Corrupt: a field is missing, unknown, or out of its range.
        """
        try:
            return msgspec.convert(self.header.params, type=kind)
        except (msgspec.ValidationError, OverflowError) as error:
            raise Corrupt(f"bad params of codec {self.header.codec.get('id')!r}: {error}") from None

    def output(self, out: np.ndarray | None) -> np.ndarray:
        """Return the array to decode into: `out` if it fits, else a new one.

        Raises:
            ShapeError: `out` has another dtype or shape, is read-only, or is not C-contiguous.
        """
        dtype = numpy_dtype(self.header.dtype)
        if out is None:
            return np.empty(self.header.shape, dtype)
        if out.dtype != dtype or out.shape != self.header.shape:
            raise ShapeError(
                f"out is {out.dtype} of shape {out.shape}; expected {self.header.dtype} of shape {self.header.shape}"
            )
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise ShapeError("out must be writeable and C-contiguous; pass np.empty(shape, dtype)")
        return out
