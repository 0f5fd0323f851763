"""trimtab as numcodecs codecs, for zarr arrays of format 2, kerchunk and HDF5-like stores built on numcodecs.

Installing trimtab registers ``trimtab.enec``, ``trimtab.sz`` and ``trimtab.raw`` as entry points, so that
``numcodecs.get_codec({"id": "trimtab.enec"})`` finds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import msgspec
import numcodecs.abc
import numpy as np
from numcodecs.compat import ensure_contiguous_ndarray, ndarray_copy

from trimtab import store
from trimtab.bounds import Bound, Lossless, make_bound
from trimtab.codecs import Codec, make_codec
from trimtab.codecs.codec import describe
from trimtab.dtypes import REALS
from trimtab.errors import ShapeError


class _Chunks(numcodecs.abc.Codec):
    """A codec of trimtab that packs each chunk as a file of its own."""

    codec_id: ClassVar[str]
    _packer: Codec
    _bound: Bound = Lossless()

    def encode(self, buf: Any) -> bytes:
        """Return the chunk `buf` packed: a C- or Fortran-contiguous array, or any contiguous buffer (as bytes).

        Raises:
            ShapeError, BoundError: as in `trimtab.compress`.
        """
        x = buf if isinstance(buf, np.ndarray) else ensure_contiguous_ndarray(buf)
        if x.dtype.kind in "mM":  # dates are counts
            x = x.view("i8")
        if x.flags.f_contiguous:  # numcodecs keeps the order in memory, and knows of no other
            x = x.T
        return store.compress(x, self._bound, codec=self._packer)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Return the chunk as an array whose elements lie in memory as they did in `encode`.

        Raises:
            FormatError: the bytes are damaged.
        """
        x = store.decompress(ensure_contiguous_ndarray(buf).view("u1"))
        return x if out is None else ndarray_copy(x, out)

    def get_config(self) -> dict[str, Any]:
        return {**describe(self._packer), "id": self.codec_id}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(**{key: value for key, value in config.items() if key != "id"})

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items() if key != "id")
        return f"{type(self).__name__}({settings})"


class ENEC(_Chunks):
    """Lossless packing of any dtype with `trimtab.codecs.ENEC`, whose settings it takes."""

    codec_id = "trimtab.enec"

    def __init__(self, **settings: Any) -> None:
        self._packer = make_codec({**settings, "id": "enec"})


class Raw(_Chunks):
    """No packing, only the checksum: `trimtab.codecs.Raw`."""

    codec_id = "trimtab.raw"

    def __init__(self) -> None:
        self._packer = make_codec({"id": "raw"})


class SZ(_Chunks):
    """Error-bounded packing of chunks of floats or integers with `trimtab.codecs.SZ`, whose settings it takes.

    `bound` is a bound or its plain form, such as ``{"kind": "abs", "value": 0.1}``. `Rel` and `PSNR` refer to each
    chunk's own range of values.
    """

    codec_id = "trimtab.sz"

    def __init__(self, bound: Bound | Mapping[str, Any], **settings: Any) -> None:
        self._bound = make_bound(bound)
        self._packer = make_codec({**settings, "id": "sz"})

    def encode(self, buf: Any) -> bytes:
        """Return the chunk `buf` packed.

        Raises:
            ShapeError: it is not an array of floats or integers; the bytes of any other buffer must not change.
        """
        dtype = getattr(buf, "dtype", None)
        if not isinstance(dtype, np.dtype) or dtype.name not in REALS:
            raise ShapeError(
                f"{self.codec_id} packs arrays of floats and integers, got {type(buf).__name__} of {dtype}; "
                "use trimtab.enec for this array"
            )
        return super().encode(buf)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bound": msgspec.to_builtins(self._bound)}
