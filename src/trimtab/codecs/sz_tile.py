"""One tile of an SZ array: numbers to a payload of bytes and back."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trimtab import kernels
from trimtab.codecs.prediction import fit, sampled_bits
from trimtab.codecs.sections import deflate, inflate
from trimtab.codecs.sz_chunks import ChunkCoder
from trimtab.codecs.sz_interpolated import (
    INTERPOLATED,
    decode_interpolated,
    encode_interpolated,
    encode_interpolated_by_error,
)
from trimtab.codecs.sz_tokens import CHUNKS, CONTEXTS, Level, decode_tokens, encode_tokens
from trimtab.codecs.tiling import Tile
from trimtab.dtypes import INTEGERS
from trimtab.errors import Corrupt
from trimtab.kernels.predictor.ref import NUM_TAPS
from trimtab.kernels.quantiser.ref import BFLOAT16, FLOAT16, INTEGER, LARGEST_INTEGER, NONE
from trimtab.packed import Digest, digest

Scale = Literal["linear", "log2"]
"""What the quantiser's integers are uniform in: the values, or the logarithms of their magnitudes."""

WORKING_DTYPES = {
    **dict.fromkeys(("float16", "bfloat16", "float32", "int8", "uint8", "int16", "uint16"), np.dtype(np.float32)),
    **dict.fromkeys(("float64", "int32", "uint32", "int64", "uint64"), np.dtype(np.float64)),
}
"""What elements are quantised in. It holds all of them exactly but 64-bit integers, of which the offset is taken."""

_ROUNDINGS = {"float16": FLOAT16, "bfloat16": BFLOAT16} | dict.fromkeys(INTEGERS, INTEGER)
_HEAD = struct.Struct("<BB7I")
_MAX_SHIFT = 16
_HOPELESS = 3.0  # contexts, and rows emptier than a sample, save less than this factor
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
    """Packs and unpacks one tile; of integers, `offset` (an int64) is taken first."""

    tile: Tile
    scale: Scale
    step: float
    offset: int = 0

    def encode(
        self, flat: np.ndarray, limit: float, largest: int, level: Level, error_share: float = 0.0
    ) -> tuple[list[np.ndarray], int] | None:
        """Return the payload, in parts (uint8), and the digest of what it decodes to.

        None if too many elements miss the limit. `flat` is the whole array in C order. No integer that an element
        quantises to exceeds `largest` in magnitude. Where `error_share` is not 0 the limit need not be kept, as long as
        the squared errors sum to at most so many times those that quantisation alone makes.
        """
        if level == "fast":
            encode = self._encode_direct if self._is_direct(flat) else self._encode_indirect
            return self._joined(encode(flat, limit))
        # integers are not interpolated
        interpolates = level == "ratio" and self.scale == "linear" and flat.dtype.kind not in "iu"
        interpolated = self._interpolated(flat, limit, error_share) if interpolates else None
        rival = interpolated[0].size if interpolated else None
        predicted = self._joined(self._encode_fitted(flat, limit, largest, rival))
        if interpolated and (predicted is None or interpolated[0].size < sum(part.size for part in predicted[0])):
            return [interpolated[0]], interpolated[1]
        return predicted

    def _joined(self, coded: _Coded | None) -> tuple[list[np.ndarray], int] | None:
        """Return a payload, in parts, and the digest."""
        if coded is None:
            return None
        gaps = np.diff(coded.outliers, prepend=np.uint32(0)).astype("<u4")
        masks = self._encode_mask(coded.signs), self._encode_mask(coded.zeros)
        packed = [deflate(gaps), deflate(coded.values), *masks]
        lengths = sum(map(len, coded.block)), coded.extra.size, coded.outliers.size, *map(len, packed)
        head = _HEAD.pack(coded.shift, coded.coding, *lengths) + coded.weights.astype("<i2").tobytes()
        sections = [head, *coded.block, coded.extra, *packed]
        return [np.frombuffer(section, np.uint8) for section in sections], coded.digest

    def _interpolated(self, flat: np.ndarray, limit: float, error_share: float) -> tuple[np.ndarray, int] | None:
        """Return the payload of the tile, interpolated, and the digest."""
        dtype = WORKING_DTYPES[flat.dtype.name]
        if not error_share:
            return encode_interpolated(self.tile, dtype, flat, self.step, limit)
        most = self.squared_error(flat)[0] * error_share
        return encode_interpolated_by_error(self.tile, dtype, flat, self.step, most)

    def _encode_fitted(self, flat: np.ndarray, limit: float, largest: int, rival: int | None) -> _Coded | None:
        """Predict with fitted weights; None also where a sample shows far more than `rival` bytes."""
        tile = self.tile
        q, outliers, signs, zeros, y = self.quantise(flat, limit)
        values = tile.take(flat, outliers)
        if self._too_many(values):
            return None
        y[outliers] = values
        predictor = kernels.load("predictor")
        edges = predictor.band_edges(tile.num_rows, tile.rows_per_plane)
        predictor.fill_margins(q, edges, tile.rows_per_plane, tile.lane, tile.linear)
        weights, shift = fit(q, tile, largest)
        if rival is not None and sampled_bits(q, tile, weights, shift) * tile.num_elements > _HOPELESS * 8 * rival:
            return None
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
        q, outliers, signs, zeros, y = self.quantise(flat, limit)
        values = tile.take(flat, outliers)
        if self._too_many(values):
            return None
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
            rows = coder.starts(starts, start, stop)
            count = quantiser.quantise(flat, rows, self.step, limit, NONE, 0, q, places)
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
        if payload.size and payload[0] == INTERPOLATED:
            if self.scale != "linear" or flat.dtype.kind in "iu":
                raise Corrupt(f"a tile of {flat.dtype} with scale {self.scale!r} is interpolated")
            decode_interpolated(payload, tile, WORKING_DTYPES[flat.dtype.name], flat)
            return
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
        positions = inflate(gaps, "<u4", num_outliers).astype(np.int64).cumsum()
        if num_outliers and positions[-1] >= tile.num_elements:
            raise Corrupt(f"an outlier stands at {positions[-1]} in a tile of {tile.num_elements} elements")
        if self._is_direct(flat):
            self._decode_linear(coding, block, extra, weights, shift, flat)
        else:
            q = self._decode_integers(coding, block, extra, weights, shift)
            self._decode_indirect(q, self._decode_mask(signs), self._decode_mask(zeros), flat)
        tile.put(flat, positions, inflate(values, flat.dtype, num_outliers))

    def _decode_indirect(self, q: np.ndarray, signs: np.ndarray, zeros: np.ndarray, flat: np.ndarray) -> None:
        """Write what integers and masks stand for."""
        tile = self.tile
        view = tile.view(flat)
        if flat.dtype.kind in "iu":
            dequantise = kernels.load("quantiser").dequantise_integers
            dequantise(q, tile.starts(), self.step, self.offset, tile.margin, tile.clip(flat))
        elif flat.dtype.itemsize > 2 and view.flags.c_contiguous:
            self._expand(q, signs, zeros, view.reshape(-1))
        else:
            view[...] = self._stand_in(q, signs, zeros, flat.dtype).reshape(tile.extents)

    def squared_error(self, flat: np.ndarray, stride: int = 1) -> tuple[float, int]:
        """Return the sum of the squared errors that quantisation alone makes in every `stride`-th row of the tile.

        The second number is how many elements there are finite. What misses by more than a step is an outlier, without
        error.
        """
        x, starts = self._rows(flat, self.step, stride)
        rounding = _ROUNDINGS.get(flat.dtype.name, NONE)
        squared_error = kernels.load("quantiser").squared_error
        return squared_error(x, starts, self.tile.row_length, self.step, self.step, rounding)

    def quantise(
        self, flat: np.ndarray, limit: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the integers (int32 rows with margins), the outliers' positions (uint32), masks of signs and zeros.

        The masks (bool as uint8) are empty where the scale needs none. The last array is what the decoder makes of all
        this, outliers aside: the tile's elements, flat. An outlier is an element whose stand-in, in the array's own
        dtype, misses the limit.
        """
        tile = self.tile
        quantiser = kernels.load("quantiser")
        q = np.empty((tile.num_rows, tile.row_length + 2 * tile.margin), np.int32)
        outliers = np.empty(tile.num_rows * tile.row_length, np.uint32)
        x, starts = self._rows(flat, limit)
        rounding = _ROUNDINGS.get(flat.dtype.name, NONE)
        if self.scale == "linear":
            count = quantiser.quantise(x, starts, self.step, limit, rounding, tile.margin, q, outliers)
            y = self._stand_in(q, _NO_MASK, _NO_MASK, flat.dtype)
            return q, outliers[:count].copy(), _NO_MASK, _NO_MASK, y
        # what an integer stands for is the mean of the least and the largest magnitude, its logarithm is not
        centre = math.log2(math.cosh(self.step * math.log(2) / 2))
        negative, zero = np.empty(tile.num_elements, np.uint8), np.empty(tile.num_elements, np.uint8)
        y = np.empty(tile.num_elements, x.dtype)
        count = quantiser.quantise_log2(
            x, starts, self.step, centre, limit, rounding, tile.margin, q, outliers, negative, zero, y
        )
        return q, outliers[:count].copy(), negative, zero, narrowed(y, flat.dtype)

    def _rows(self, flat: np.ndarray, limit: float, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return every `stride`-th row of the tile in the dtype that it is quantised in, and where in it they start.

        Of integers the offset is taken. NaN stand for those that come out too large, and for 64-bit integers so close
        to an end of their range that an error of `limit` might take them beyond.
        """
        tile = self.tile
        starts = tile.starts()[::stride].copy()
        if flat.dtype == WORKING_DTYPES[flat.dtype.name]:
            return tile.clip(flat), starts
        if stride == 1:
            x, starts = np.ascontiguousarray(tile.view(flat)).reshape(-1), tile.local_starts()
        else:
            starts = starts[starts + tile.row_length <= tile.clip(flat).size]
            x = flat[starts[:, None] + np.arange(tile.row_length)].reshape(-1)
            starts = np.arange(starts.size, dtype=np.int64) * tile.row_length
        reach = LARGEST_INTEGER / 2
        if not self.offset and (x.dtype.itemsize < 8 or -reach < int(x.min()) <= int(x.max()) < reach):
            return widened(x), starts
        ends, unsigned = np.iinfo(x.dtype), x.dtype.kind == "u"
        with np.errstate(over="ignore"):  # modulo 2^64, as in the decoder
            difference = x.astype(np.int64) - np.int64(self.offset)
        wide = difference.astype(np.float64)
        wide[np.abs(wide) >= reach] = np.nan
        if x.dtype.itemsize == 8:
            largest_error = min(math.ceil(limit), int(LARGEST_INTEGER))
            wide[x > ends.max - largest_error] = np.nan
            if self.offset or not unsigned:  # with no offset, none but zero stands for what is next to zero
                wide[x < ends.min + largest_error] = np.nan
        return wide, starts

    def _stand_in(self, q: np.ndarray, signs: np.ndarray, zeros: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return what the decoder makes of the integers, outliers aside: the tile's elements, flat, in `dtype`."""
        tile = self.tile
        quantiser = kernels.load("quantiser")
        if dtype.kind in "iu":
            y = np.empty(tile.num_elements, dtype)
            quantiser.dequantise_integers(q, tile.local_starts(), self.step, self.offset, tile.margin, y)
            return y
        y = np.empty(tile.num_elements, WORKING_DTYPES[dtype.name])
        self._expand(q, signs, zeros, y)
        return narrowed(y, dtype)

    def _expand(self, q: np.ndarray, signs: np.ndarray, zeros: np.ndarray, y: np.ndarray) -> None:
        """Write what the decoder makes of the integers to `y`: the tile's elements, flat, not yet narrowed."""
        quantiser = kernels.load("quantiser")
        dequantise = quantiser.dequantise if self.scale == "linear" else quantiser.dequantise_exp2
        dequantise(q, self.tile.local_starts(), self.step, self.tile.margin, y)
        quantiser.restore(y, signs, zeros)

    def _encode_mask(self, mask: np.ndarray) -> bytes | np.ndarray:
        """Return the section of a mask: where rows differ from those before, in fours, coded as tokens are.

        Nothing where no bit is set.
        """
        if not mask.any():
            return b""
        tile = self.tile
        rows = np.zeros(tile.num_rows * tile.row_length, np.uint8)
        rows[: mask.size] = mask
        packed = np.packbits(rows.reshape(tile.num_rows, -1), axis=1)
        packed[1:] ^= packed[:-1].copy()
        tokens = np.stack([packed >> 4, packed & 15], axis=2).reshape(tile.num_rows, -1)
        return encode_tokens(tokens, tile.context_distance)

    def _decode_mask(self, section: np.ndarray) -> np.ndarray:
        """Return the mask (bool as uint8, one an element) in a section, empty where that is.

        Raises:
            Corrupt: it holds something else.
        """
        tile = self.tile
        if not section.size:
            return _NO_MASK
        tokens = np.empty((tile.num_rows, (tile.row_length + 7) // 8 * 2), np.uint8)
        decode_tokens(section, tile.context_distance, tokens)
        if tokens.max() > 15:
            raise Corrupt(f"a token of four bits is {tokens.max()}")
        packed = np.bitwise_xor.accumulate(tokens[:, 0::2] << 4 | tokens[:, 1::2], axis=0).astype(np.uint8)
        return np.unpackbits(packed, axis=1, count=tile.row_length).reshape(-1)[: tile.num_elements]

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
        floats = flat.dtype.kind not in "iu"
        return self.scale == "linear" and floats and flat.dtype == WORKING_DTYPES[flat.dtype.name]


def widened(x: np.ndarray) -> np.ndarray:
    """Return `x` (flat) in the dtype that it is quantised in."""
    dtype = WORKING_DTYPES[x.dtype.name]
    if x.dtype.kind in "iu" or x.dtype.itemsize > 2:
        return x.astype(dtype, copy=False)
    wide = np.empty(x.size, dtype)
    kernels.load("half").widen(x.view(np.uint16), x.dtype.name, wide)
    return wide


def narrowed(y: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return `y` (float32 or float64, flat) in a floating-point dtype that is quantised in it."""
    if dtype == y.dtype:
        return y
    bits = np.empty(y.size, np.uint16)
    kernels.load("half").narrow(y, dtype.name, bits)
    return bits.view(dtype)


_NO_MASK = np.empty(0, np.uint8)
_NO_WEIGHTS = np.empty(0, np.int32)


def _num_distinct(values: np.ndarray) -> int:
    """Return how many different finite values there are in a sample."""
    sample = values[:: max(values.size // 1024, 1)]
    return np.unique(sample[np.isfinite(sample)]).size
