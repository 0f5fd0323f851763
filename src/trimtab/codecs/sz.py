"""SZ: arrays within an error bound (SZ: Di and Cappello, IPDPS 2016; dual quantisation: Tian et al., cuSZ, PACT 2020).

Elements become integers first, so that prediction is exact and its decoder a running sum: the integers are predicted
from their neighbours, and what remains is coded in contexts. Every element is decoded once while encoding; those that
miss the bound, NaN and infinities are kept as they are. Differences from the published SZ family:

- weights of up to 22 neighbours are fitted to each tile by least squares, where SZ takes Lorenzo prediction or
  regression over blocks; Lorenzo stays in where it is as good;
- tabled asymmetric numeral systems with contexts, where SZ takes Huffman coding and zstd: they do not stop at a bit a
  value;
- where a sample of the elements are whole multiples of a power of two that is at least twice the bound (integers kept
  as floats, say), that is the step, and nothing is lost;
- four axes and more are predicted as three, the leading ones joined: the eight rounding errors that the fourth axis
  adds to a Lorenzo prediction cost more than it tells, except on very smooth fields;
- PSNR is measured and the step corrected, where SZ relies on an assumed distribution of errors;
- the point-wise relative bound quantises log2 of the magnitude.

The entry
=========
Arrays below 64 elements, and those that would not shrink by a tenth, are stored by codec "enec" (or "raw").
Numbers are little-endian. params: ``scale``, "linear" or "log2", and ``step``, a positive float64.

The array is folded and cut into tiles (`trimtab.codecs.tiling`): axes of length 1 vanish; a last axis shorter than 16
joins the one before it, and its length is the lane (else 1); leading axes join until three are left. The axis with the
longest part, the first of several, is halved until no part of the array has more than 2^21 elements; part i of n of an
axis of length N is i N // n to (i + 1) N // n. Tiles come in C order. A tile of one axis and n elements stands in
ceil(n / 256) rows of ceil(n / rows) elements, the last one filled up with anything; else a row is the last axis, and
a plane the last two of three.

- ``tiles``: for each tile a uint64, the bytes of its payload.
- ``data``: the payloads, one after another. A payload:

  - uint8 shift (at most 16); uint8 coding; seven uint32: bytes of the integers B, bytes of their extra bits E, number
    of outliers K, bytes of the gaps, of the values, of the signs and of the zeros
  - coding 0: the weights, int16, 2, 9 or 22 for a tile of one, two or three axes (`trimtab.kernels.predictor` defines
    the taps, the bands and the order of decoding); B bytes, the tokens of all rows (`trimtab.kernels.ans`, where
    ``back`` is the rows in a plane with three axes, else 2); E bytes, extra bits (`trimtab.kernels.tokens` defines how
    both give the residuals, in C order)
  - coding 1: B bytes, the chunks (below); shift and E are 0
  - gaps: K uint32, the first outlier's position in the tile in C order, then differences to the one before
  - values: K elements as they are
  - signs, zeros: with scale "log2", bitmaps of the tile in C order, most significant bit first, padded to a byte;
    absent where no bit is set

  Gaps, values, signs and zeros are each a zstd frame that states its content size; they have no bytes where they are
  empty.

A chunk is max(2^18 // n, 1) whole rows of n elements, or 2^18 elements of a tile of one axis; the last one has what is
left. `trimtab.kernels.lorenzo` defines how its integers z give those of the tile; in a tile of one axis each chunk is
a row and a plane of its own, so that nothing is carried on. It holds:

- uint8 shift (at most 24); uint8 coding of the symbols; four uint32: number of symbols, bytes of their block, number of
  listed integers L, bytes of their extra bits
- the block, of `trimtab.kernels.huffman`: with coding 0 it holds the chunk's symbols, with coding 1 those that
  `trimtab.kernels.runs` makes of them. `trimtab.kernels.symbols` defines how symbols, low bits and list give z
- for each plane of low bits, lowest first, the pack of `trimtab.kernels.halving`, of the bits that the plane has
- L tokens, a byte each, and their extra bits (`trimtab.kernels.tokens`): the list

With q an integer of the tile, an element is q x step in float64, rounded to the array's dtype, for 2-byte dtypes by way
of float32. With scale "log2" it is 2^(q step) (`trimtab.kernels.quantiser` defines this to the bit), rounded likewise
to float32 or float64, then zero where its bit in zeros is set, then negated where that in signs is set, then rounded
to a 2-byte dtype. Outliers are put in last.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.bounds import PSNR, Abs, Bound, Lossless, PointwiseRel, Rel
from trimtab.codecs.codec import describe
from trimtab.codecs.enec import ENEC
from trimtab.codecs.sz_tile import Scale, TileCoder
from trimtab.codecs.sz_tokens import Level
from trimtab.codecs.tiling import MAX_TILE_SIZE, Fold, Tile
from trimtab.dtypes import FLOATS, dtype_name, numpy_dtype
from trimtab.errors import BoundError, Corrupt, ShapeError
from trimtab.packed import Header, Packed

_WORKING_DTYPES = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}
_SMALL = 64
_WORTH = 0.9  # packed arrays are at most this part of the plain ones
_LATTICE_SAMPLE = 4096
_PSNR_ATTEMPTS = 8
_PSNR_SLACK = 1e-6  # dB, for sums in another order
_SIGNIFICANT_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
_MIN_EXPONENTS = {"float16": -13, "bfloat16": -125, "float32": -125, "float64": -1021}


class _Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    scale: Scale
    step: Annotated[float, msgspec.Meta(gt=0)]


class SZ(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="id", tag="sz"):
    """Pack floating-point arrays within an error bound that is verified on every element.

    Level "fast" predicts with Lorenzo's weights and codes with Huffman's, in chunks that stay in the cache; "balanced"
    fits the weights to the data and codes in contexts, for a better ratio. Either decodes what the other packed.
    """

    id: ClassVar[str] = "sz"
    fixed_size: ClassVar[bool] = False

    level: Level = "balanced"

    @np.errstate(invalid="ignore")  # signalling NaN only pass through
    def encode(self, x: np.ndarray, bound: Bound = Lossless()) -> Packed:
        """Pack a float16, bfloat16, float32 or float64 array of any shape and strides.

        Raises:
            BoundError: `bound` is lossless.
            ShapeError: the dtype is none of these.
        """
        name = dtype_name(x.dtype)
        if isinstance(bound, Lossless):
            raise BoundError(
                "SZ is lossy and cannot promise Lossless() at $.bound; use codec ENEC for lossless packing"
            )
        if name not in FLOATS:
            raise ShapeError(
                f"SZ packs {', '.join(FLOATS)}, got {name}; convert with astype(), or pack it without loss (codec ENEC)"
            )
        flat = np.ascontiguousarray(x, numpy_dtype(name)).reshape(-1)
        lossless = ENEC()
        if flat.size < _SMALL:
            return lossless.encode(x, bound)
        fold = Fold.of(x.shape)
        tiles = fold.tiles()
        for params, limit, largest in _plans(flat, tiles, bound):
            encoded = _encode_tiles(flat, tiles, params, limit, largest, self.level)
            if encoded is None:
                continue
            sizes, data, digests = encoded
            header = Header(
                codec=describe(self), bound=bound, dtype=name, shape=x.shape, params=msgspec.to_builtins(params)
            )
            return Packed(header, {"tiles": sizes, "data": data}, digests)
        return lossless.encode(x, bound)

    def decode(self, packed: Packed, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return the array; every machine, back end and number of threads gives the same bits.

        Raises:
            Corrupt: the buffers or params contradict themselves or the header.
            ShapeError: `out` does not fit.
        """
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

    def pieces(self, y: np.ndarray) -> list[np.ndarray]:
        """Return the tiles of an array."""
        flat = y.reshape(-1)
        return [tile.view(flat) for tile in Fold.of(y.shape).tiles()]


def _working(name: str) -> np.dtype:
    """Return the dtype that arrays of dtype `name` are quantised in."""
    return np.dtype(_WORKING_DTYPES[name])


def _encode_tiles(
    flat: np.ndarray,
    tiles: list[Tile],
    params: _Params,
    limit: float,
    largest: int,
    level: Level,
) -> tuple[np.ndarray, np.ndarray, list[int]] | None:
    """Return the sizes of all payloads, the payloads, and the digests of the tiles.

    None if too many elements do not fit the plan, or if the array would not shrink by a tenth.
    """
    sizes, digests = np.zeros(len(tiles), np.uint64), [0] * len(tiles)
    data = np.empty(int(_WORTH * flat.nbytes) - sizes.nbytes, np.uint8)
    waiting: dict[
        int, list[np.ndarray]
    ] = {}  # payloads whose turn it is not yet: no more than there are threads, about
    num_done = end = 0
    failed = False
    lock = threading.Lock()

    def encode_tile(index: int) -> None:
        nonlocal num_done, end, failed
        if failed:
            return
        coder = TileCoder(tiles[index], params.scale, params.step, _working(flat.dtype.name))
        encoded = coder.encode(flat, limit, largest, level)
        with lock:
            if encoded is None:
                failed = True
                return
            waiting[index], digests[index] = encoded
            while num_done in waiting and not failed:
                parts = waiting.pop(num_done)
                size = sum(part.size for part in parts)
                failed = end + size > data.size
                if not failed:
                    np.concatenate(parts, out=data[end : end + size])
                    sizes[num_done] = size
                    num_done, end = num_done + 1, end + size

    kernels.for_each(encode_tile, len(tiles))
    if failed:
        return None
    data.resize(end, refcheck=False)
    return sizes, data, digests


def _plans(flat: np.ndarray, tiles: list[Tile], bound: Bound) -> Iterator[tuple[_Params, float, int]]:
    """Yield ways to quantise, best first, with the limit for every element and the largest integer."""
    low, high = _extent(flat)
    if low > high or not math.isfinite(high - low):
        return
    if isinstance(bound, PointwiseRel):
        margin = bound.value - math.ldexp(1.0, -_SIGNIFICANT_BITS[flat.dtype.name])
        if margin > 0:
            step = 2 * math.log2(1 + margin)
            yield _Params(scale="log2", step=step), bound.value, min(math.ceil(1100 / step), 2**30)
        return
    if isinstance(bound, PSNR):
        limit = _psnr_limit(bound.value, high - low)
    else:
        assert isinstance(bound, Abs | Rel)
        limit = bound.value * (high - low) if isinstance(bound, Rel) else bound.value
    largest = max(abs(low), abs(high))
    if largest >= limit * 2**31:  # no integer reaches that far: fill values such as 1e20, which are kept as they are
        largest = _largest_below(flat, limit * 2**31)
    ulp = math.ldexp(
        1.0, max(math.frexp(largest)[1], _MIN_EXPONENTS[flat.dtype.name]) - _SIGNIFICANT_BITS[flat.dtype.name]
    )
    lattice = _lattice(flat, low, high)
    if lattice >= 2 * limit and largest < lattice * 2**30:
        # a sum of errors is not measured here: what the sample did not show is kept exactly
        lattice_limit = 0.0 if isinstance(bound, PSNR) else limit
        yield _Params(scale="linear", step=lattice), lattice_limit, math.ceil(largest / lattice)
    step = 2 * max(limit - ulp, limit / 2 if flat.dtype.itemsize == 2 else 0.0)
    if isinstance(bound, PSNR):
        step = _psnr_step(flat, tiles, bound.value, high - low, 2 * limit)
        limit = step  # as in the measurement: what misses it by far, or overflows the output dtype, is kept exactly
    if step > 0 and largest < step * 2**30:
        yield _Params(scale="linear", step=step), limit, math.ceil(largest / step) + 1


def _widened(flat: np.ndarray) -> Iterator[np.ndarray]:
    """Yield pieces of `flat` in the dtype that it is quantised in."""
    for start in range(0, flat.size, MAX_TILE_SIZE):
        yield flat[start : start + MAX_TILE_SIZE].astype(_working(flat.dtype.name), copy=False)


def _extent(flat: np.ndarray) -> tuple[float, float]:
    """Return the least and the largest finite element; (inf, -inf) where there is none."""
    lows, highs = zip(*map(kernels.load("quantiser").extent, _widened(flat)), strict=True)
    return min(lows), max(highs)


def _largest_below(flat: np.ndarray, reach: float) -> float:
    """Return the largest magnitude below `reach`; 0 where there is none."""
    magnitudes = map(np.abs, _widened(flat))
    return float(max(np.max(piece, where=piece < reach, initial=0) for piece in magnitudes))


def _lattice(flat: np.ndarray, low: float, high: float) -> float:
    """Return the largest power of two, or the one value there is, that a sample consists of whole multiples of."""
    if low == high:
        return abs(low) or 1.0
    sample = flat[:: max(flat.size // _LATTICE_SAMPLE, 1)].astype(np.float64)
    fractions, exponents = np.frexp(sample[np.isfinite(sample) & (sample != 0)])
    if not fractions.size:
        return 0.0
    digits = np.abs(np.ldexp(fractions, 53).astype(np.int64))
    lowest_bits = np.frexp((digits & -digits).astype(np.float64))[1] - 1
    return math.ldexp(1.0, int((exponents - 53 + lowest_bits).min()))


def _psnr_limit(decibels: float, value_range: float) -> float:
    """Return the absolute bound whose error, uniform between its limits, has this PSNR."""
    return math.sqrt(3) * value_range * 10 ** (-decibels / 20)


def _psnr_step(flat: np.ndarray, tiles: list[Tile], decibels: float, value_range: float, step: float) -> float:
    """Return a step, near the largest, whose measured PSNR is at least `decibels`; 0.0 if none was found."""
    found = 0.0
    for attempt in range(_PSNR_ATTEMPTS):
        if not step > 0:
            break
        measured = _measured_psnr(flat, tiles, step, value_range)
        surplus = measured - decibels - _PSNR_SLACK
        if surplus >= 0:
            found = step
            if attempt > 0 or surplus < 0.1:
                break
            surplus = min(surplus - 0.05, 20.0)  # the error was not uniform: one bolder step, kept if it holds
        elif found:
            break
        else:
            surplus -= 0.05
        step *= 10 ** (surplus / 20)
    return found


def _measured_psnr(flat: np.ndarray, tiles: list[Tile], step: float, value_range: float) -> float:
    errors = np.zeros(len(tiles))

    def measure(index: int) -> None:
        coder = TileCoder(tiles[index], "linear", step, _working(flat.dtype.name))
        errors[index] = coder.squared_error(flat)

    kernels.for_each(measure, len(tiles))
    total = float(errors.sum())
    if total == 0:
        return math.inf
    return 20 * math.log10(value_range) - 10 * math.log10(total / int(np.isfinite(flat).sum()))
