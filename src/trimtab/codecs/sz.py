"""SZ: arrays within an error bound (SZ: Di and Cappello, IPDPS 2016; dual quantisation: Tian et al., cuSZ, PACT 2020).

Elements become integers first, so that prediction is exact and its decoder a running sum: the integers are predicted
from their neighbours, and what remains is coded in contexts. Every element is decoded once while encoding; those that
miss the bound, NaN and infinities are kept as they are. Differences from the published SZ family:

- weights of up to 22 neighbours are fitted to each tile by least squares, where SZ takes Lorenzo prediction or
  regression over blocks; Lorenzo stays in where it is as good;
- level "ratio" also interpolates each tile from neighbours on all sides, with fitted weights and with contexts from all
  sides (`trimtab.codecs.interpolation`), and keeps the shorter payload. Under PSNR it also rounds codes towards zero
  where that saves bits, and gives coarser levels finer steps;
- tabled asymmetric numeral systems with contexts, where SZ takes Huffman coding and zstd: they do not stop at a bit a
  value;
- where a sample of the elements are whole multiples of a number g (integers, or floats that hold such), the step is a
  whole odd multiple of g, for an error limit e about g (2 floor(e / g) + 1): g itself, and nothing is lost, for e < g;
- integers are taken as they are: of those beyond the quantiser's reach an offset is taken first;
- four axes and more are predicted as three, the leading ones joined: the eight rounding errors that the fourth axis
  adds to a Lorenzo prediction cost more than it tells, except on very smooth fields;
- PSNR is measured and the step corrected, where SZ relies on an assumed distribution of errors;
- the point-wise relative bound quantises log2 of the magnitude, in steps as wide as the two sides of the bound allow
  together; signs and zeros are coded in contexts. Of integers it becomes the error limit of the smallest one but zero.

The entry
=========
Arrays below 64 elements, and those that would not shrink by a tenth, are stored by codec "enec" (or "raw").
Numbers are little-endian. params: ``scale``, "linear" or "log2", the latter for floats only; ``step``, a positive
float64; and for integers ``offset``, an int64, where it is not 0.

The array is folded and cut into tiles (`trimtab.codecs.tiling`): axes of length 1 vanish; a last axis shorter than 16
joins the one before it, and its length is the lane (else 1); leading axes join until three are left. The axis with the
longest part, the first of several, is halved until no part of the array has more than 2^21 elements; part i of n of an
axis of length N is i N // n to (i + 1) N // n. Tiles come in C order. A tile of one axis and n elements stands in
ceil(n / 256) rows of ceil(n / rows) elements, the last one filled up with anything; else a row is the last axis, and
a plane the last two of three.

- ``tiles``: for each tile a uint64, the bytes of its payload.
- ``data``: the payloads, one after another. One that begins with the byte 255 is that of an interpolated tile
  (`trimtab.codecs.sz_interpolated`). Any other payload:

  - uint8 shift (at most 16); uint8 coding; seven uint32: bytes of the integers B, bytes of their extra bits E, number
    of outliers K, bytes of the gaps, of the values, of the signs and of the zeros
  - coding 0: the weights, int16, 2, 9 or 22 for a tile of one, two or three axes (`trimtab.kernels.predictor` defines
    the taps, the bands and the order of decoding); B bytes, the tokens of all rows (`trimtab.kernels.ans`, where
    ``back`` is the rows in a plane with three axes, else 2); E bytes, extra bits (`trimtab.kernels.tokens` defines how
    both give the residuals, in C order)
  - coding 1: B bytes, the chunks (below); shift and E are 0
  - gaps: K uint32, the first outlier's position in the tile in C order, then differences to the one before
  - values: K elements as they are
  - signs, zeros: with scale "log2", a mask of the tile's elements; absent where no bit is set. Else one token for four
    bits of a row, most significant bit first, coded as with coding 0; a row, padded to a multiple of eight bits, is
    exclusive-ored with the one before

  Gaps and values are each a zstd frame that states its content size; they have no bytes where they are empty.

With q an integer of the tile, an element of floats is q x step in float64, rounded to the array's dtype, for 2-byte
dtypes by way of float32. With scale "log2" it is 2^(q step) (`trimtab.kernels.quantiser` defines this to the bit),
rounded likewise to float32 or float64, then zero where its bit in zeros is set, then negated where that in signs is
set, then rounded to a 2-byte dtype. An integer element is q x step in float64, held within -2^50 and 2^50, rounded to
the nearest integer, ties to even, plus the offset modulo 2^64, and, where it has fewer than 64 bits, held within the
range of its dtype. Outliers are put in last.

A chunk is max(2^18 // n, 1) whole rows of n elements, or 2^18 elements of a tile of one axis; the last one has what is
left. `trimtab.kernels.lorenzo` defines how its integers z give those of the tile; in a tile of one axis each chunk is
a row and a plane of its own, so that nothing is carried on. It holds:

- uint8 shift (at most 24); uint8 coding of the symbols; four uint32: number of symbols, bytes of their block, number of
  listed integers L, bytes of their extra bits
- the block, of `trimtab.kernels.huffman`: with coding 0 it holds the chunk's symbols, with coding 1 those that
  `trimtab.kernels.runs` makes of them. `trimtab.kernels.symbols` defines how symbols, low bits and list give z
- for each plane of low bits, lowest first, the pack of `trimtab.kernels.halving`, of the bits that the plane has
- L tokens, a byte each, and their extra bits (`trimtab.kernels.tokens`): the list
"""

from __future__ import annotations

import math
from typing import ClassVar

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.bounds import PSNR, Bound, Lossless
from trimtab.codecs.codec import describe
from trimtab.codecs.enec import ENEC
from trimtab.codecs.stream import Stream
from trimtab.codecs.sz_plan import Params, Plan, plans
from trimtab.codecs.sz_tile import TileCoder
from trimtab.codecs.sz_tokens import Level
from trimtab.codecs.tiling import Fold, Tile, tile_payloads
from trimtab.dtypes import INTEGERS, REALS, dtype_name, numpy_dtype
from trimtab.errors import BoundError, Corrupt, ShapeError
from trimtab.packed import Header, Packed

_SMALL = 64
_WORTH = 0.9  # packed arrays are at most this part of the plain ones


class SZ(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="id", tag="sz"):
    """Pack arrays of floats or integers within an error bound that is verified on every element.

    Level "fast" predicts with Lorenzo's weights and codes with Huffman's, in chunks that stay in the cache; "balanced"
    fits the weights to the data and codes in contexts, for a better ratio; "ratio" tries interpolation as well, tile by
    tile, and takes the time for it. Each decodes what the others packed.
    """

    id: ClassVar[str] = "sz"
    fixed_size: ClassVar[bool] = False

    level: Level = "balanced"

    @np.errstate(invalid="ignore")  # signalling NaN only pass through
    def encode(self, x: np.ndarray, bound: Bound = Lossless()) -> Packed:
        """Pack an array of real floats or of integers, of any shape and strides.

        Raises:
            BoundError: `bound` is lossless, and the elements are floats.
            ShapeError: the elements are neither floats nor integers.
        """
        name = dtype_name(x.dtype)
        if name not in REALS:
            raise ShapeError(
                f"SZ packs {', '.join(REALS)}, got {name}; convert with astype(), or pack it without loss (codec ENEC)"
            )
        if isinstance(bound, Lossless) and name not in INTEGERS:
            raise BoundError(
                "SZ is lossy on floats and cannot promise Lossless() at $.bound; use codec ENEC for lossless packing"
            )
        flat = np.ascontiguousarray(x, numpy_dtype(name)).reshape(-1)
        lossless = ENEC()
        if flat.size < _SMALL:
            return lossless.encode(x, bound)
        fold = Fold.of(x.shape)
        tiles = fold.tiles()
        found = None
        for plan in plans(flat, tiles, bound):
            encoded = _encode_tiles(flat, tiles, plan, self.level)
            if encoded is None:
                continue
            sizes, data, digests = encoded
            header = Header(
                codec=describe(self), bound=bound, dtype=name, shape=x.shape, params=msgspec.to_builtins(plan.params)
            )
            packed = Packed(header, {"tiles": sizes, "data": data}, digests)
            if plan.exact and name in INTEGERS:  # labels, and whatever else neighbours do not foretell
                exact = lossless.encode(x, bound)
                return exact if exact.num_bytes < packed.num_bytes else packed
            if found is None or packed.num_bytes < found.num_bytes:
                found = packed
            if not (plan.exact and isinstance(bound, PSNR) and self.level == "ratio"):  # there loss may be shorter
                break
        return lossless.encode(x, bound) if found is None else found

    def decode(self, packed: Packed, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return the array; every machine, back end and number of threads gives the same bits.

        Raises:
            Corrupt: the buffers or params contradict themselves or the header.
            ShapeError: `out` does not fit.
        """
        header = packed.header
        if header.dtype not in REALS:
            raise Corrupt(f"codec sz cannot hold {header.dtype}; expected one of {', '.join(REALS)}")
        params = packed.params(Params)
        if not math.isfinite(params.step):
            raise Corrupt(f"step {params.step} is not finite, at $.params.step")
        if params.scale == "log2" if header.dtype in INTEGERS else params.offset != 0:
            raise Corrupt(f"{header.dtype} cannot have scale {params.scale!r} with offset {params.offset}, at $.params")
        fold = Fold.of(header.shape)
        payloads = tile_payloads(packed, fold.num_tiles)
        tiles = fold.tiles()
        y = packed.output(out)
        flat = y.reshape(-1)

        def decode_tile(index: int) -> None:
            TileCoder(tiles[index], params.scale, params.step, params.offset).decode(payloads[index], flat)

        kernels.for_each(decode_tile, len(tiles))
        return y

    def pieces(self, y: np.ndarray) -> list[np.ndarray]:
        """Return the tiles of an array."""
        flat = y.reshape(-1)
        return [tile.view(flat) for tile in Fold.of(y.shape).tiles()]


def _encode_tiles(
    flat: np.ndarray,
    tiles: list[Tile],
    plan: Plan,
    level: Level,
) -> tuple[np.ndarray, np.ndarray, list[int]] | None:
    """Return the sizes of all payloads, the payloads, and the digests of the tiles.

    None if too many elements do not fit the plan, or if the array would not shrink by a tenth.
    """
    sizes, digests = np.zeros(len(tiles), np.uint64), [0] * len(tiles)
    stream = Stream(int(_WORTH * flat.nbytes) - sizes.nbytes)
    failed = False

    def encode_tile(index: int) -> None:
        nonlocal failed
        if failed or stream.overflowed:
            return
        coder = TileCoder(tiles[index], plan.params.scale, plan.params.step, plan.params.offset)
        encoded = coder.encode(flat, plan.limit, plan.largest, level, plan.error_share)
        if encoded is None:
            failed = True
            return
        parts, digests[index] = encoded
        sizes[index] = sum(part.size for part in parts)
        stream.put(index, *parts)

    kernels.for_each(encode_tile, len(tiles))
    return None if failed or stream.overflowed else (sizes, stream.finish(), digests)
