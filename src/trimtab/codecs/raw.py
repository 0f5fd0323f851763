"""Raw: the elements as they are, for arrays too small or too random to shrink."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from trimtab.bounds import Bound, Lossless
from trimtab.codecs.codec import describe
from trimtab.dtypes import dtype_name, numpy_dtype
from trimtab.packed import Header, Packed


class Raw(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="id", tag="raw"):
    """Store the elements unchanged. Every bound holds, since nothing is lost."""

    id: ClassVar[str] = "raw"
    fixed_size: ClassVar[bool] = True

    def encode(self, x: np.ndarray, bound: Bound = Lossless()) -> Packed:
        """Pack any array; the buffer ``data`` holds its elements in C order, little-endian.

        complex128, which safetensors has no name for, is stored as float64: real, imaginary, real, ...
        """
        name = dtype_name(x.dtype)
        data = np.ascontiguousarray(x, numpy_dtype(name)).reshape(-1)
        if name == "complex128":
            data = data.view("<f8")
        return Packed(Header(codec=describe(self), bound=bound, dtype=name, shape=x.shape), {"data": data})

    def decode(self, packed: Packed, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return a copy of the elements."""
        header = packed.header
        if header.dtype == "complex128":
            data = packed.buffer("data", "float64", 2 * header.num_elements).view("<c16")
        else:
            data = packed.buffer("data", header.dtype, header.num_elements)
        y = packed.output(out)
        y.reshape(-1)[...] = data
        return y

    def pieces(self, y: np.ndarray) -> list[np.ndarray]:
        """Return the array as its only piece."""
        return [y]
