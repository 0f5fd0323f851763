"""One tile of an SZ array: floats to a payload of bytes and back."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trimtab import kernels
from trimtab.codecs.prediction import fit, lorenzo_weights, sampled_bits
from trimtab.codecs.sections import deflate, inflate
from trimtab.codecs.sz_interpolated import INTERPOLATED, decode_interpolated, encode_interpolated
from trimtab.codecs.sz_tokens import Level, decode_tokens, encode_tokens
from trimtab.codecs.tiling import Tile
from trimtab.errors import Corrupt
from trimtab.kernels.predictor.ref import NUM_TAPS
from trimtab.packed import digest

Scale = Literal["linear", "log2"]
"""What the quantiser's integers are uniform in: the values, or the logarithms of their magnitudes."""

_HEAD = struct.Struct("<BB7I")
_MAX_SHIFT = 16
_HOPELESS = 3.0  # contexts, and rows emptier than a sample, save less than this factor
_MAX_FILL_VALUES = 4  # different outliers that may be many: they take few bytes


@dataclass(frozen=True)
class TileCoder:
    """Packs and unpacks one tile; `dtype` (float32 or float64) is what it is quantised in."""

    tile: Tile
    scale: Scale
    step: float
    dtype: np.dtype

    def encode(
        self, flat: np.ndarray, limit: float, largest: int, level: Level, rival: int | None = None
    ) -> tuple[np.ndarray, int] | None:
        """Return the payload (uint8) and the digest of what it decodes to; None if too many elements miss the limit.

        None also where a sample shows that it would be far longer than `rival` bytes.

        `flat` is the whole array in C order. No integer that an element quantises to exceeds `largest` in magnitude.
        """
        if level == "ratio":
            return self._encode_shorter(flat, limit, largest)
        tile = self.tile
        q, outliers, signs, zeros = self.quantise(flat, limit)
        values = tile.take(flat, outliers)
        if outliers.size > tile.num_elements // 64 and _num_distinct(values) > _MAX_FILL_VALUES:
            return None
        y = self._stand_in(q, signs, zeros, flat.dtype)
        y[outliers] = values
        predictor = kernels.load("predictor")
        edges = predictor.band_edges(tile.num_rows, tile.rows_per_plane)
        predictor.fill_margins(q, edges, tile.rows_per_plane, tile.lane, tile.linear)
        weights, shift = (lorenzo_weights(len(tile.shape)), 0) if level == "fast" else fit(q, tile, largest)
        if rival is not None and sampled_bits(q, tile, weights, shift) * tile.num_elements > _HOPELESS * 8 * rival:
            return None
        residual = np.empty((tile.num_rows, tile.row_length), np.int32)
        predictor.encode(q, edges, tile.rows_per_plane, tile.lane, weights, shift, residual)
        coder = kernels.load("tokens")
        tokens = np.empty((tile.num_rows, tile.row_length), np.uint8)
        extra = np.empty(coder.max_extra_size(tokens.size), np.uint8)
        extra_size = coder.encode(residual, 0, tokens, extra)
        coding, block = encode_tokens(tokens, tile.context_distance, level)
        gaps = np.diff(outliers, prepend=np.uint32(0)).astype("<u4")
        packed = [deflate(section) for section in (gaps, values, signs, zeros)]
        head = _HEAD.pack(shift, coding, block.size, extra_size, outliers.size, *map(len, packed))
        sections = [head + weights.astype("<i2").tobytes(), block, extra[:extra_size], *packed]
        return np.concatenate([np.frombuffer(section, np.uint8) for section in sections]), digest(y)

    def decode(self, payload: np.ndarray, flat: np.ndarray) -> None:
        """Write the tile's elements into `flat`, the whole array in C order.

        Raises:
            Corrupt: the payload contradicts itself.
        """
        tile = self.tile
        if payload.size and payload[0] == INTERPOLATED:
            if self.scale != "linear":
                raise Corrupt(f"a tile is interpolated with scale {self.scale!r}")
            decode_interpolated(payload, tile, self.dtype, flat)
            return
        num_weights = NUM_TAPS[len(tile.shape) - 1]
        start = _HEAD.size + 2 * num_weights
        if payload.size < start:
            raise Corrupt(f"a tile of {payload.size} bytes has no room for its head of {start}")
        shift, coding, *lengths = _HEAD.unpack(payload[: _HEAD.size].tobytes())
        num_outliers = lengths.pop(2)
        if shift > _MAX_SHIFT or num_outliers > tile.num_elements or start + sum(lengths) != payload.size:
            raise Corrupt(
                f"a tile's head does not fit it: shift {shift}, {num_outliers} outliers among {tile.num_elements} "
                f"elements, sections of {lengths} bytes after {start} in {payload.size}"
            )
        weights = payload[_HEAD.size : start].copy().view("<i2").astype(np.int32)
        ends = np.cumsum([start, *lengths])
        block, extra, gaps, values, signs, zeros = (payload[a:b] for a, b in itertools.pairwise(ends))
        q = self._decode_integers(coding, block, extra, weights, shift)
        positions = inflate(gaps, "<u4", num_outliers).astype(np.int64).cumsum()
        if num_outliers and positions[-1] >= tile.num_elements:
            raise Corrupt(f"an outlier stands at {positions[-1]} in a tile of {tile.num_elements} elements")
        if self.scale == "linear" and flat.dtype == self.dtype:
            kernels.load("quantiser").dequantise(q, tile.starts(), self.step, tile.margin, tile.clip(flat))
        else:
            bitmap_size = (tile.num_elements + 7) // 8
            signs, zeros = (inflate(mask, "u1", bitmap_size if mask.size else 0) for mask in (signs, zeros))
            tile.view(flat)[...] = self._stand_in(q, signs, zeros, flat.dtype).reshape(tile.extents)
        tile.put(flat, positions, inflate(values, flat.dtype, num_outliers))

    def _encode_shorter(self, flat: np.ndarray, limit: float, largest: int) -> tuple[np.ndarray, int] | None:
        """Encode in both ways that there are, and return the shorter payload."""
        if self.scale != "linear":
            return self.encode(flat, limit, largest, "balanced")
        # a limit beyond the step stands for a limit to the sum of squares, which the quantiser's own errors show
        most = self.squared_error(flat) if limit >= self.step else math.inf
        interpolated = encode_interpolated(self.tile, self.dtype, flat, self.step, limit, most)
        rival = interpolated[0].size if interpolated else None
        predicted = self.encode(flat, limit, largest, "balanced", rival)
        if predicted is None or (interpolated and interpolated[0].size < predicted[0].size):
            return interpolated
        return predicted

    def squared_error(self, flat: np.ndarray) -> float:
        """Return the sum over finite elements of the squared error that quantisation alone makes."""
        q, outliers, *_ = self.quantise(flat, self.step)
        x = self.tile.view(flat).reshape(-1)
        error = self._stand_in(q, _NO_MASK, _NO_MASK, flat.dtype).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # infinities are outliers, and these are kept exactly
            error -= x
            error[outliers] = 0
            return float(np.square(error, out=error).sum())

    def quantise(self, flat: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the integers (int32 rows with margins), the outliers' positions (uint32), sign and zero bitmaps.

        An outlier is an element whose stand-in, in the array's own dtype, misses the limit. The bitmaps are empty where
        nothing is in them.
        """
        tile = self.tile
        quantise = kernels.load("quantiser").quantise
        q = np.empty((tile.num_rows, tile.row_length + 2 * tile.margin), np.int32)
        outliers = np.empty(tile.num_rows * tile.row_length, np.uint32)
        if self.scale == "linear" and flat.dtype == self.dtype:
            count = quantise(tile.clip(flat), tile.starts(), self.step, limit, tile.margin, q, outliers)
            return q, outliers[:count].copy(), _NO_MASK, _NO_MASK
        x = np.ascontiguousarray(tile.view(flat)).reshape(-1)
        exact = x.astype(np.float64)
        signs = zeros = _NO_MASK
        if self.scale == "linear":
            quantise(
                x.astype(self.dtype),
                tile.local_starts(),
                self.step,
                limit,
                tile.margin,
                q,
                outliers,
            )
            allowed: np.ndarray | float = limit
        else:
            with np.errstate(divide="ignore"):
                quantise(np.log2(np.abs(exact)), tile.local_starts(), self.step, np.inf, tile.margin, q, outliers)
            signs, zeros = _bitmap(np.signbit(x)), _bitmap(x == 0)
            allowed = limit * np.abs(exact)
        with np.errstate(invalid="ignore"):
            good = np.abs(self._stand_in(q, signs, zeros, flat.dtype).astype(np.float64) - exact) <= allowed
        good &= np.isfinite(exact)
        return q, np.flatnonzero(~good).astype(np.uint32), signs, zeros

    def _stand_in(self, q: np.ndarray, signs: np.ndarray, zeros: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return what the decoder makes of the integers, outliers aside: the tile's elements, flat, in `dtype`."""
        tile = self.tile
        y = np.empty(tile.num_elements, self.dtype)
        quantiser = kernels.load("quantiser")
        dequantise = quantiser.dequantise if self.scale == "linear" else quantiser.dequantise_exp2
        dequantise(q, tile.local_starts(), self.step, tile.margin, y)
        if zeros.size:
            y[np.unpackbits(zeros, count=y.size).view(bool)] = 0
        if signs.size:
            np.negative(y, out=y, where=np.unpackbits(signs, count=y.size).view(bool))
        with np.errstate(over="ignore"):
            return y.astype(dtype, copy=False)

    def _decode_integers(
        self, coding: int, block: np.ndarray, extra: np.ndarray, weights: np.ndarray, shift: int
    ) -> np.ndarray:
        tile = self.tile
        tokens = np.empty((tile.num_rows, tile.row_length), np.uint8)
        decode_tokens(coding, block, tile.context_distance, tokens)
        q = np.empty((tile.num_rows, tile.row_length + 2 * tile.margin), np.int32)
        if kernels.load("tokens").decode(tokens, extra, tile.margin, q) != 0:
            raise Corrupt("a tile's extra bits do not match its tokens")
        predictor = kernels.load("predictor")
        edges = predictor.band_edges(tile.num_rows, tile.rows_per_plane)
        predictor.decode(q, edges, tile.rows_per_plane, tile.lane, tile.linear, weights, shift)
        return q


_NO_MASK = np.empty(0, np.uint8)


def _num_distinct(values: np.ndarray) -> int:
    """Return how many different finite values there are in a sample."""
    sample = values[:: max(values.size // 1024, 1)]
    return np.unique(sample[np.isfinite(sample)]).size


def _bitmap(mask: np.ndarray) -> np.ndarray:
    return np.packbits(mask) if mask.any() else _NO_MASK
