"""An SZ tile whose elements are interpolated: floats to a payload of bytes and back.

Only tiles of lane 1 and scale "linear" are interpolated, seen as three axes, the leading ones of length 1 where there
are fewer. With fewer than 8 elements, or where the grids of the finest level (`trimtab.codecs.pyramid`) had more than
2^16 places and more than four for each element, a tile is not interpolated. The payload, numbers little-endian:

- uint8 255; float64, the step, positive; four uint32: number of outliers K, bytes of the body, of the gaps and of the
  values
- the body (`trimtab.codecs.interpolation`)
- gaps and values, as in other payloads

The points that the body gives, float32 for 2-byte dtypes and else of the array's dtype, are rounded to that. Outliers
are put in last.
"""

from __future__ import annotations

import itertools
import math
import struct

import numpy as np

from trimtab import kernels
from trimtab.codecs.interpolation import Interpolation, Prior, Target, applies
from trimtab.codecs.pyramid import Point
from trimtab.codecs.sections import deflate, inflate
from trimtab.codecs.tiling import Tile
from trimtab.errors import Corrupt
from trimtab.packed import digest

INTERPOLATED = 255
"""The first byte of an interpolated tile's payload."""

_HEAD = struct.Struct("<Bd4I")
_MAX_OUTLIERS = 64  # one element in so many may be one
_ATTEMPTS = 3


def encode_interpolated(
    tile: Tile,
    dtype: np.dtype,
    flat: np.ndarray,
    step: float,
    limit: float,
    most: float,
    prior: Prior | None = None,
) -> tuple[np.ndarray, int] | None:
    """Return the payload (uint8) and the digest of what it decodes to; None if too many elements miss the limit.

    The squared errors sum to at most `most`: the step is changed until they do, and nearly so where `most` is finite.
    """
    extents = three_axes(tile)
    if tile.lane != 1 or not applies(extents):
        return None
    exact = np.ascontiguousarray(tile.view(flat))
    x = exact.astype(dtype, copy=False).reshape(extents)
    found = None
    for _ in range(_ATTEMPTS if most < math.inf else 1):
        if not 0 < step < math.inf:
            break
        body, y = Interpolation(extents, step, dtype).encode(x, 2 * limit <= step, prior)
        with np.errstate(over="ignore"):
            y = y.reshape(-1).astype(flat.dtype, copy=False)
        outliers = _misses(exact.reshape(-1), y, limit, dtype)
        if outliers.size > x.size // _MAX_OUTLIERS:
            break
        values = exact.reshape(-1)[outliers]
        y[outliers] = values
        error = _squared_error(exact.reshape(-1), y) if most < math.inf else 0.0
        if error <= most:
            gaps = np.diff(outliers, prepend=np.uint32(0)).astype("<u4")
            packed = [body, deflate(gaps), deflate(values)]
            head = _HEAD.pack(INTERPOLATED, step, outliers.size, *map(len, packed))
            payload = np.frombuffer(b"".join([head, *packed]), np.uint8)
            if found is None or payload.size < found[0].size:
                found = payload, digest(y)
        if most == 0 or error == 0:
            break
        step = min(step * math.sqrt(most / error) * 0.998, 2 * limit)
    return found


def decode_interpolated(
    payload: np.ndarray, tile: Tile, dtype: np.dtype, flat: np.ndarray, prior: Prior | None = None
) -> None:
    """Write the tile's elements into `flat`, the whole array in C order.

    Raises:
        Corrupt: the payload contradicts itself.
    """
    if tile.lane != 1 or not applies(three_axes(tile)):
        raise Corrupt(f"a tile of extents {tile.extents} and lane {tile.lane} is never interpolated")
    if payload.size < _HEAD.size:
        raise Corrupt(f"an interpolated tile of {payload.size} bytes has no room for its head of {_HEAD.size}")
    _, step, num_outliers, *lengths = _HEAD.unpack(payload[: _HEAD.size].tobytes())
    if not 0 < step < math.inf or num_outliers > tile.num_elements or _HEAD.size + sum(lengths) != payload.size:
        raise Corrupt(
            f"an interpolated tile's head does not fit it: step {step}, {num_outliers} outliers among "
            f"{tile.num_elements} elements, sections of {lengths} bytes after {_HEAD.size} in {payload.size}"
        )
    ends = np.cumsum([_HEAD.size, *lengths])
    body, gaps, values = (payload[a:b] for a, b in itertools.pairwise(ends))
    interpolation = Interpolation(three_axes(tile), step, dtype)
    if flat.dtype == dtype:
        interpolation.decode(body, _target(tile, flat), prior)
    else:
        y = np.empty(three_axes(tile), dtype)
        interpolation.decode(body, Target.whole(y), prior)
        with np.errstate(over="ignore"):
            tile.view(flat)[...] = y.reshape(tile.extents).astype(flat.dtype)
    positions = inflate(gaps, "<u4", num_outliers).astype(np.int64).cumsum()
    if num_outliers and positions[-1] >= tile.num_elements:
        raise Corrupt(f"an outlier stands at {positions[-1]} in a tile of {tile.num_elements} elements")
    tile.put(flat, positions, inflate(values, flat.dtype, num_outliers))


def _target(tile: Tile, flat: np.ndarray) -> Target:
    """Return where the tile is in the flat array."""
    shape = (1,) * (3 - len(tile.shape)) + tile.shape
    starts = (0,) * (3 - len(tile.shape)) + tuple(start for start, _ in tile.ranges)
    strides = np.array([shape[1] * shape[2], shape[2], 1], np.int64)
    return Target(flat, int(np.array(starts) @ strides), strides)


def three_axes(tile: Tile) -> Point:
    """Return the lengths of a tile's axes, with leading ones of 1."""
    a, b, c = (1,) * (3 - len(tile.extents)) + tile.extents
    return a, b, c


def _misses(x: np.ndarray, y: np.ndarray, limit: float, dtype: np.dtype) -> np.ndarray:
    """Return the positions (uint32) of elements that are not finite or that `y` is further from than the limit."""
    outliers = np.empty(x.size, np.uint32)
    count = kernels.load("interpolation").misses(
        x.astype(dtype, copy=False), y.astype(dtype, copy=False), limit, outliers
    )
    return outliers[:count].copy()


def _squared_error(x: np.ndarray, y: np.ndarray) -> float:
    finite = np.isfinite(x)
    return float(np.square(y[finite].astype(np.float64) - x[finite].astype(np.float64)).sum())
