"""One tile of an SZ array: floats to a payload of bytes and back."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
import zstandard

from trimtab import kernels
from trimtab.codecs.prediction import fit
from trimtab.codecs.sz_chunks import ChunkCoder
from trimtab.codecs.sz_tokens import CHUNKS, CONTEXTS, Level, decode_tokens, encode_tokens
from trimtab.codecs.tiling import Tile
from trimtab.errors import Corrupt
from trimtab.kernels.predictor.ref import NUM_TAPS
from trimtab.packed import Digest, digest

Scale = Literal["linear", "log2"]
"""What the quantiser's integers are uniform in: the values, or the logarithms of their magnitudes."""

_HEAD = struct.Struct("<BB7I")
_MAX_SHIFT = 16
_MAX_FILL_VALUES = 4  # different outliers that may be many: they take few bytes


@dataclass(frozen=True)
class _Coded:
    """A tile's integers and outliers, coded."""

    shift: int
    coding: int
    weights: np.ndarray
    block: list[bytes | np.ndarray]
    extra: np.ndarray
    outliers: np.ndarray
    values: np.ndarray
    signs: np.ndarray
    zeros: np.ndarray
    digest: int


@dataclass(frozen=True)
class TileCoder:
    """Packs and unpacks one tile; `dtype` (float32 or float64) is what it is quantised in."""

    tile: Tile
    scale: Scale
    step: float
    dtype: np.dtype

    def encode(self, flat: np.ndarray, limit: float, largest: int, level: Level) -> tuple[list[np.ndarray], int] | None:
        """Return the payload, in parts (uint8), and the digest of what it decodes to.

        None if too many elements miss the limit. `flat` is the whole array in C order. No integer that an element
        quantises to exceeds `largest` in magnitude.
        """
        if level == "fast":
            coded = self._encode_direct(flat, limit) if self._is_direct(flat) else self._encode_indirect(flat, limit)
        else:
            coded = self._encode_fitted(flat, limit, largest)
        if coded is None:
            return None
        gaps = np.diff(coded.outliers, prepend=np.uint32(0)).astype("<u4")
        packed = [_deflate(section) for section in (gaps, coded.values, coded.signs, coded.zeros)]
        lengths = sum(map(len, coded.block)), coded.extra.size, coded.outliers.size, *map(len, packed)
        head = _HEAD.pack(coded.shift, coded.coding, *lengths) + coded.weights.astype("<i2").tobytes()
        sections = [head, *coded.block, coded.extra, *packed]
        return [np.frombuffer(section, np.uint8) for section in sections], coded.digest

    def _encode_fitted(self, flat: np.ndarray, limit: float, largest: int) -> _Coded | None:
        tile = self.tile
        q, outliers, signs, zeros = self.quantise(flat, limit)
        values = tile.take(flat, outliers)
        if self._too_many(values):
            return None
        y = self._stand_in(q, signs, zeros, flat.dtype)
        y[outliers] = values
        predictor = kernels.load("predictor")
        edges = predictor.band_edges(tile.num_rows, tile.rows_per_plane)
        predictor.fill_margins(q, edges, tile.rows_per_plane, tile.lane, tile.linear)
        weights, shift = fit(q, tile, largest)
        residual = np.empty((tile.num_rows, tile.row_length), np.int32)
        predictor.encode(q, edges, tile.rows_per_plane, tile.lane, weights, shift, residual)
        coder = kernels.load("tokens")
        tokens = np.empty((tile.num_rows, tile.row_length), np.uint8)
        extra = np.empty(coder.max_extra_size(tokens.size), np.uint8)
        extra = extra[: coder.encode(residual, 0, tokens, extra)]
        block: list[bytes | np.ndarray] = [encode_tokens(tokens, tile.context_distance)]
        return _Coded(shift, CONTEXTS, weights, block, extra, outliers, values, signs, zeros, digest(y))

    def _encode_indirect(self, flat: np.ndarray, limit: float) -> _Coded | None:
        """Quantise and check the whole tile, then code it in chunks."""
        tile, coder = self.tile, ChunkCoder(self.tile)
        q, outliers, signs, zeros = self.quantise(flat, limit)
        values = tile.take(flat, outliers)
        if self._too_many(values):
            return None
        y = self._stand_in(q, signs, zeros, flat.dtype)
        y[outliers] = values
        integers = q[:, tile.margin : tile.margin + tile.row_length].reshape(-1)
        block = [part for start, stop in coder.ranges for part in coder.encode(coder.rows(integers[start:stop]))]
        return _Coded(0, CHUNKS, _NO_WEIGHTS, block, _NO_MASK, outliers, values, signs, zeros, digest(y))

    def _encode_direct(self, flat: np.ndarray, limit: float) -> _Coded | None:
        """Quantise, check and code chunk by chunk, so that nothing leaves the cache in between."""
        tile, coder, checksum = self.tile, ChunkCoder(self.tile), Digest()
        quantiser, starts = kernels.load("quantiser"), tile.starts()
        room, y = np.empty(coder.size, np.int32), np.empty(coder.size, flat.dtype)
        places = np.empty(coder.size, np.uint32)
        block: list[bytes | np.ndarray] = []
        found = [np.empty(0, np.uint32)]
        for start, stop in coder.ranges:
            q, part = coder.rows(room[: stop - start]), y[: stop - start]
            count = quantiser.quantise(flat, coder.starts(starts, start, stop), self.step, limit, 0, q, places)
            quantiser.dequantise(q, np.arange(len(q)) * q.shape[1], self.step, 0, part)
            if count:
                found.append(places[:count] + np.uint32(start))
                part[places[:count]] = tile.take(flat, found[-1])
                if self._too_many(tile.take(flat, np.concatenate(found))):
                    return None
            checksum.add(part)
            block += coder.encode(q)
        outliers = np.concatenate(found)
        values = tile.take(flat, outliers)
        return _Coded(0, CHUNKS, _NO_WEIGHTS, block, _NO_MASK, outliers, values, _NO_MASK, _NO_MASK, checksum.value)

    def _too_many(self, outliers: np.ndarray) -> bool:
        """Whether so many elements, of these values, are better not kept as they are."""
        return outliers.size > self.tile.num_elements // 64 and _num_distinct(outliers) > _MAX_FILL_VALUES

    def decode(self, payload: np.ndarray, flat: np.ndarray) -> None:
        """Write the tile's elements into `flat`, the whole array in C order.

        Raises:
            Corrupt: the payload contradicts itself.
        """
        tile = self.tile
        if payload.size < _HEAD.size:
            raise Corrupt(f"a tile of {payload.size} bytes has no room for its head of {_HEAD.size}")
        shift, coding, *lengths = _HEAD.unpack(payload[: _HEAD.size].tobytes())
        start = _HEAD.size + (2 * NUM_TAPS[len(tile.shape) - 1] if coding == CONTEXTS else 0)
        num_outliers = lengths.pop(2)
        fits = shift <= _MAX_SHIFT if coding == CONTEXTS else coding == CHUNKS and shift == lengths[1] == 0
        if not fits or num_outliers > tile.num_elements or start + sum(lengths) != payload.size:
            raise Corrupt(
                f"a tile's head does not fit it: coding {coding}, shift {shift}, {num_outliers} outliers among "
                f"{tile.num_elements} elements, sections of {lengths} bytes after {start} in {payload.size}"
            )
        weights = payload[_HEAD.size : start].copy().view("<i2").astype(np.int32)
        ends = np.cumsum([start, *lengths])
        block, extra, gaps, values, signs, zeros = (payload[a:b] for a, b in itertools.pairwise(ends))
        positions = _inflate(gaps, "<u4", num_outliers).astype(np.int64).cumsum()
        if num_outliers and positions[-1] >= tile.num_elements:
            raise Corrupt(f"an outlier stands at {positions[-1]} in a tile of {tile.num_elements} elements")
        if self._is_direct(flat):
            self._decode_linear(coding, block, extra, weights, shift, flat)
        else:
            bitmap_size = (tile.num_elements + 7) // 8
            signs, zeros = (_inflate(mask, "u1", bitmap_size if mask.size else 0) for mask in (signs, zeros))
            q = self._decode_integers(coding, block, extra, weights, shift)
            tile.view(flat)[...] = self._stand_in(q, signs, zeros, flat.dtype).reshape(tile.extents)
        tile.put(flat, positions, _inflate(values, flat.dtype, num_outliers))

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
        if self._is_direct(flat):
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

    def _decode_linear(
        self, coding: int, block: np.ndarray, extra: np.ndarray, weights: np.ndarray, shift: int, flat: np.ndarray
    ) -> None:
        tile, dequantise = self.tile, kernels.load("quantiser").dequantise
        if coding != CHUNKS:
            q = self._decode_integers(coding, block, extra, weights, shift)
            dequantise(q, tile.starts(), self.step, tile.margin, tile.clip(flat))
            return
        coder, starts = ChunkCoder(tile), tile.starts()
        for start, stop, q in coder.decode(block):
            dequantise(q, coder.starts(starts, start, stop), self.step, 0, flat)

    def _decode_integers(
        self, coding: int, block: np.ndarray, extra: np.ndarray, weights: np.ndarray, shift: int
    ) -> np.ndarray:
        """Return the integers in rows with margins, in which there may be anything."""
        tile = self.tile
        q = np.empty((tile.num_rows, tile.row_length + 2 * tile.margin), np.int32)
        if coding == CHUNKS:
            integers = np.empty(tile.num_rows * tile.row_length, np.int32)
            for start, stop, rows in ChunkCoder(tile).decode(block):
                integers[start:stop] = rows.reshape(-1)
            q[:, tile.margin : tile.margin + tile.row_length] = integers.reshape(tile.num_rows, -1)
            return q
        tokens = np.empty((tile.num_rows, tile.row_length), np.uint8)
        decode_tokens(block, tile.context_distance, tokens)
        if kernels.load("tokens").decode(tokens, extra, tile.margin, q) != 0:
            raise Corrupt("a tile's extra bits do not match its tokens")
        predictor = kernels.load("predictor")
        edges = predictor.band_edges(tile.num_rows, tile.rows_per_plane)
        predictor.decode(q, edges, tile.rows_per_plane, tile.lane, tile.linear, weights, shift)
        return q

    def _is_direct(self, flat: np.ndarray) -> bool:
        """Whether elements and integers become one another without a step between."""
        return self.scale == "linear" and flat.dtype == self.dtype


_NO_MASK = np.empty(0, np.uint8)
_NO_WEIGHTS = np.empty(0, np.int32)


def _num_distinct(values: np.ndarray) -> int:
    """Return how many different finite values there are in a sample."""
    sample = values[:: max(values.size // 1024, 1)]
    return np.unique(sample[np.isfinite(sample)]).size


def _bitmap(mask: np.ndarray) -> np.ndarray:
    return np.packbits(mask) if mask.any() else _NO_MASK


def _deflate(section: np.ndarray) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(section.tobytes()) if section.size else b""


def _inflate(section: np.ndarray, dtype: np.dtype | str, count: int) -> np.ndarray:
    """Return the `count` elements in a compressed section.

    Raises:
        Corrupt: it holds something else.
    """
    dtype = np.dtype(dtype)
    data = section.tobytes()
    try:
        # the size is compared first: the library would allocate what the frame claims
        if (zstandard.frame_content_size(data) if data else 0) != count * dtype.itemsize:
            raise Corrupt(f"a tile's section does not hold {count} elements of {dtype}")
        data = zstandard.ZstdDecompressor().decompress(data) if data else data
    except zstandard.ZstdError as error:
        raise Corrupt(f"a tile's section does not decompress: {error}") from None
    return np.frombuffer(data, dtype)
