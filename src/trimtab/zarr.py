"""trimtab as zarr codecs (format 3): they turn an array's chunks into bytes, in place of the codec ``bytes``.

Installing trimtab registers ``trimtab.enec`` and ``trimtab.sz`` as entry points, so that zarr, xarray and dask read
such arrays without an import. A chunk is a packed file of its own, checksum included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec
import numpy as np
from zarr.abc.codec import ArrayBytesCodec

from trimtab import store
from trimtab.bounds import Bound, Lossless, make_bound
from trimtab.codecs import Codec, make_codec
from trimtab.codecs.codec import describe
from trimtab.dtypes import REALS, dtype_name
from trimtab.errors import Corrupt, ShapeError

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer


@dataclass(frozen=True, init=False)
class _Chunks(ArrayBytesCodec):
    """A codec of trimtab that packs each chunk as a file of its own."""

    name: ClassVar[str]
    is_fixed_size: ClassVar[bool] = False
    codec: Codec
    bound: Bound

    def __init__(self, codec: Codec, bound: Bound) -> None:
        object.__setattr__(self, "codec", codec)
        object.__setattr__(self, "bound", bound)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "configuration": self._configuration()}

    def _configuration(self) -> dict[str, Any]:
        return {key: value for key, value in describe(self.codec).items() if key != "id"}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Refuse an array whose dtype cannot be packed when it is created, not when it is written.

        Raises:
            ShapeError: the dtype cannot be packed.
        """
        dtype_name(dtype.to_native_dtype())

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("the packed size depends on the values")

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        blob = await asyncio.to_thread(store.compress, chunk_data.as_numpy_array(), self.bound, codec=self.codec)
        return chunk_spec.prototype.buffer.from_bytes(blob)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        x = await asyncio.to_thread(_decode, chunk_data.as_numpy_array(), chunk_spec)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(x)


class ENEC(_Chunks):
    """Lossless packing of any dtype with `trimtab.codecs.ENEC`, whose settings it takes.

    >>> import numpy as np, trimtab.zarr, zarr
    >>> z = zarr.create_array({}, data=np.ones((8, 8), "f4"), serializer=trimtab.zarr.ENEC(), compressors=None)
    >>> float(z[2, 3])
    1.0
    """

    name = "trimtab.enec"

    def __init__(self, **settings: Any) -> None:
        super().__init__(make_codec({**settings, "id": "enec"}), Lossless())


class SZ(_Chunks):
    """Error-bounded packing of chunks of floats or integers with `trimtab.codecs.SZ`, whose settings it takes.

    `bound` is a bound or its plain form, such as ``{"kind": "abs", "value": 0.1}``. `Rel` and `PSNR` refer to each
    chunk's own range of values.

    >>> import numpy as np, trimtab as tt, trimtab.zarr, zarr
    >>> x = np.linspace(0, 1, 1000, dtype="f4").reshape(10, 100)
    >>> z = zarr.create_array({}, data=x, serializer=trimtab.zarr.SZ(tt.Abs(0.01)), compressors=None)
    >>> tt.Abs(0.01).allows(x, z[:])
    True
    """

    name = "trimtab.sz"

    def __init__(self, bound: Bound | Mapping[str, Any], **settings: Any) -> None:
        super().__init__(make_codec({**settings, "id": "sz"}), make_bound(bound))

    def _configuration(self) -> dict[str, Any]:
        return {"bound": msgspec.to_builtins(self.bound), **super()._configuration()}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Refuse an array that is not of floats or integers.

        Raises:
            ShapeError: the dtype cannot be packed within an error bound.
        """
        name = dtype_name(dtype.to_native_dtype())
        if name not in REALS:
            raise ShapeError(f"{self.name} packs {', '.join(REALS)}, not {name}; use trimtab.enec for this array")


def _decode(blob: np.ndarray, chunk_spec: ArraySpec) -> np.ndarray:
    """Return a chunk, which must be what the array's metadata says."""
    x = np.asarray(store.decompress(blob))
    dtype = chunk_spec.dtype.to_native_dtype()
    if x.shape != chunk_spec.shape or x.dtype != dtype.newbyteorder("<"):
        raise Corrupt(f"a chunk holds {x.dtype} of shape {x.shape}; expected {dtype} of shape {chunk_spec.shape}")
    return x.astype(dtype, copy=False)
