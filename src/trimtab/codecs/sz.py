"""SZ: error-bounded lossy arrays by dual quantisation, linear prediction and context coding."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.bounds import PSNR, Abs, Bound, Lossless, PointwiseRel, Rel
from trimtab.codecs.codec import describe
from trimtab.codecs.enec import ENEC
from trimtab.codecs.sz_tile import Scale, TileCoder
from trimtab.codecs.tiling import Fold, Tile
from trimtab.dtypes import FLOATS, dtype_name, numpy_dtype
from trimtab.errors import BoundError, BoundViolated, Corrupt, ShapeError
from trimtab.packed import Header, Packed

_WORKING_DTYPES = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}
_SMALL = 64
_LATTICE_SAMPLE = 4096


class _Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    scale: Scale
    step: Annotated[float, msgspec.Meta(gt=0)]


class SZ(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="id", tag="sz"):
    """Pack floating-point arrays within an error bound that is verified on every element."""

    id: ClassVar[str] = "sz"
    fixed_size: ClassVar[bool] = False

    def encode(self, x: np.ndarray, bound: Bound = Lossless()) -> Packed:
        name = dtype_name(x.dtype)
        if isinstance(bound, Lossless):
            raise BoundError("SZ is lossy and cannot promise Lossless() at $.bound; use codec ENEC for lossless packing")
        if name not in FLOATS:
            raise ShapeError(
                f"SZ packs {', '.join(FLOATS)}, got {name}; convert with astype(), or pack it without loss (codec ENEC)"
            )
        flat = np.ascontiguousarray(x, numpy_dtype(name)).reshape(-1)
        lossless = ENEC()
        if flat.size < _SMALL:
            return lossless.encode(x, bound)
        wide = flat if flat.dtype.itemsize > 2 else flat.astype(np.float32)
        fold = Fold.of(x.shape)
        tiles = fold.tiles()
        for params, limit in _plans(flat, wide, tiles, bound):
            payloads = _encode_tiles(flat, wide, tiles, params, limit)
            if payloads is None:
                continue
            sizes = np.array([payload.size for payload in payloads], np.uint64)
            if sizes.sum() + sizes.nbytes >= 0.9 * flat.nbytes:
                break
            header = Header(
                codec=describe(self), bound=bound, dtype=name, shape=x.shape, params=msgspec.to_builtins(params)
            )
            return Packed(header, {"tiles": sizes, "data": np.concatenate(payloads)})
        return lossless.encode(x, bound)

    def decode(self, packed: Packed, *, out: np.ndarray | None = None) -> np.ndarray:
        header = packed.header
        if header.dtype not in FLOATS:
            raise Corrupt(f"codec sz cannot hold {header.dtype}; expected one of {', '.join(FLOATS)}")
        params = packed.params(_Params)
        if not math.isfinite(params.step):
            raise Corrupt(f"step {params.step} is not finite, at $.params.step")
        fold = Fold.of(header.shape)
        sizes = packed.buffer("tiles", "uint64", fold.num_tiles)
        data = packed.buffer("data", "uint8")
        if any(int(size) > data.size for size in sizes) or sum(map(int, sizes)) != data.size:
            raise Corrupt(f"the tiles' sizes sum to {sum(map(int, sizes))}; buffer 'data' holds {data.size} bytes")
        tiles = fold.tiles()
        ends = np.cumsum(sizes, dtype=np.uint64)
        y = packed.output(out)
        flat = y.reshape(-1)

        def decode_tile(index: int) -> None:
            payload = data[int(ends[index] - sizes[index]) : int(ends[index])]
            TileCoder(tiles[index], params.scale, params.step, _working(header.dtype)).decode(payload, flat)

        kernels.for_each(decode_tile, len(tiles))
        return y


def _working(name: str) -> np.dtype:
    """Return the dtype that arrays of dtype `name` are quantised in."""
    return np.dtype(_WORKING_DTYPES[name])


def _encode_tiles(
    flat: np.ndarray, wide: np.ndarray, tiles: list[Tile], params: _Params, limit: float
) -> list[np.ndarray] | None:
    """Return the payload of every tile, or None if too many elements do not fit the plan."""
    payloads: list[np.ndarray | None] = [None] * len(tiles)

    def encode_tile(index: int) -> None:
        coder = TileCoder(tiles[index], params.scale, params.step, wide.dtype)
        payloads[index] = coder.encode(flat, wide, limit)

    kernels.for_each(encode_tile, len(tiles))
    return [payload for payload in payloads if payload is not None]
