"""Sparse: arrays of which most elements are zero, such as pruned weights (DeepSZ: Jin et al., HPDC 2019).

Where the elements stand that are not zero, and what they are, is coded in adaptive contexts; nothing is predicted,
since neighbouring weights do not foretell each other. Without loss, under `PointwiseRel`, and of integers, places and
elements are coded apart: the elements are packed by codec "enec" or "sz" as an array of their own. Differences from
DeepSZ:

- places are coded in contexts (the run of zeros before, how dense the row and the column have been, and what stands
  one and two *lags* before, a lag being an image row or a kernel, whatever the array repeats itself by), where DeepSZ
  packs gaps of 8 bits by zstd;
- elements are quantised without a predictor and coded in contexts of signs, of the last ones and of those in the
  column, and of magnitudes, where DeepSZ uses SZ;
- what the bound allows to be zero becomes zero, and costs no place;
- arrays are read along rows or along columns, and with the lag that makes the result shorter.

The entry
=========
Arrays below 64 elements, and those that codec "enec" (without loss) or "sz" (within a bound) packs shorter, are stored
by that codec. A zero is an element all of whose bits are zero. Numbers are little-endian.

params: ``lag`` (0 unless there); ``order``, "rows" (the default) or "columns": elements in C order, or those of the
array as a matrix, its first axis the rows and the others joined the columns, transposed, in C order. An array of one
axis is a matrix of one row. Chunks are 2^19 elements in this order, the last one shorter; rows in a block, which are as
long as those of the matrix or of its transpose, begin with the chunk.

- ``data``: for each chunk but the last a uint32, the bytes of its block; then the blocks, the last one to the end.

With ``step`` in params, a positive float64, the blocks are those of `trimtab.kernels.sparse` with signs, and an element
is q x step in float64, rounded to the array's dtype, for 2-byte dtypes by way of float32. Elements that the bound would
not allow to be so are kept: ``outliers``, uint64, are their places in C order, ascending, and ``exact`` the elements;
both buffers are absent where there are none.

With ``values`` in params instead, the blocks are without signs; one that takes as many bytes as the chunk's bits need
is these bits, the lowest first, 1 for an element that is not zero. ``values`` holds ``codec``, ``params`` and ``count``
of an entry of codec "raw", "enec" or "sz" whose shape is [count]: these elements, in C order of the array whatever the
order of the chunks. Its buffers stand beside `data`, with "values." before their names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.bounds import PSNR, Abs, Bound, Lossless, Rel
from trimtab.codecs.codec import describe, make_codec
from trimtab.codecs.enec import ENEC
from trimtab.codecs.sz import SZ
from trimtab.codecs.sz_plan import Plan, plans
from trimtab.codecs.sz_tile import narrowed, widened
from trimtab.codecs.tiling import Fold
from trimtab.dtypes import FLOATS, dtype_name, numpy_dtype
from trimtab.errors import Corrupt, UnknownCodec
from trimtab.kernels.quantiser.ref import BFLOAT16, FLOAT16, NONE
from trimtab.kernels.sparse.ref import MAX_LAG
from trimtab.packed import Count, Header, Packed, digest

_SMALL = 64
_CHUNK = 1 << 19
_SAMPLE = 1 << 18  # elements that order and lag are chosen on
_DENSE = 0.9  # the share of elements that are not zero from which places are not worth telling
_MANY = 64  # one outlier in so many elements is too many
_NESTED = ("raw", "enec", "sz")
_ROUNDINGS = {"float16": FLOAT16, "bfloat16": BFLOAT16}

Order = Literal["rows", "columns"]


class _Values(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The entry of the elements that are not zero."""

    codec: dict[str, Any]
    params: dict[str, Any] = {}
    count: Count


class SparseParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the decoder has to know: either `step` or `values` is there."""

    lag: Annotated[int, msgspec.Meta(ge=0, le=MAX_LAG)] = 0
    order: Order = "rows"
    step: Annotated[float, msgspec.Meta(gt=0)] | None = None
    values: _Values | None = None

    def __post_init__(self) -> None:
        if self.lag == 1 or (self.step is None) == (self.values is None):
            raise ValueError("lag cannot be 1, and there is either a step or an entry of values")


class Sparse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="id", tag="sparse"):
    """Pack an array with many zeros, without loss or within any bound; a denser one comes back packed as usual.

    >>> x = np.where(np.arange(9000) % 11 < 10, 0, np.random.default_rng(0).standard_normal(9000)).astype(np.float32)
    >>> packed = Sparse().encode(x, Abs(0.1))
    >>> packed.num_bytes < x.nbytes / 50, Abs(0.1).allows(x, Sparse().decode(packed))
    (True, True)
    """

    id: ClassVar[str] = "sparse"
    fixed_size: ClassVar[bool] = False

    @np.errstate(invalid="ignore")  # signalling NaN only pass through
    def encode(self, x: np.ndarray, bound: Bound = Lossless()) -> Packed:
        """Pack an array of any shape and strides, and of any dtype that codec "enec" or, with a bound, "sz" takes.

        Raises:
            ShapeError: arrays of this dtype cannot be stored, or not within a bound.
        """
        if isinstance(bound, Lossless):
            return _lossless(x)
        usual = SZ().encode(x, bound)
        if x.size < _SMALL:
            return usual
        name = dtype_name(x.dtype)
        flat = np.ascontiguousarray(x, numpy_dtype(name)).reshape(-1)
        if name in FLOATS and isinstance(bound, Abs | Rel | PSNR):
            found = _quantised(flat, x.shape, bound)
            packed = found[0] if found else None
        elif not isinstance(bound, PSNR):  # the ratio to noise is one of all elements, zeros among them
            packed = _exact(flat, x.shape, bound)
        else:
            return usual
        return packed if packed is not None and packed.num_bytes < usual.num_bytes else usual

    def decode(self, packed: Packed, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return the array; every machine, back end and number of threads gives the same bits.

        Raises:
            Corrupt: the buffers or params contradict themselves or the header.
            ShapeError: `out` does not fit.
        """
        header = packed.header
        params = packed.params(SparseParams)
        blocks = _blocks(packed)
        if params.values is not None:
            return _decode_exact(packed, params, params.values, blocks, out)
        if header.dtype not in FLOATS or not math.isfinite(params.step or 0):
            raise Corrupt(f"{header.dtype} cannot have step {params.step}, at $.params.step")
        places, exact = _outliers(packed)
        y = packed.output(out)
        layout = _Layout(header.shape, params.order)
        flat = y.reshape(-1) if layout.in_place else np.empty(y.size, y.dtype)

        def decode_chunk(index: int) -> None:
            start, stop = index * _CHUNK, min((index + 1) * _CHUNK, flat.size)
            q = np.empty(stop - start, np.int32)
            if kernels.load("sparse").decode(blocks[index], layout.width, params.lag, True, q) != 0:
                raise Corrupt(f"block {index} is damaged")
            _stand_in(q, params.step or 0, flat[start:stop])

        kernels.for_each(decode_chunk, len(blocks))
        layout.restore(flat, y)
        y.reshape(-1)[places] = exact
        return y

    def pieces(self, y: np.ndarray) -> list[np.ndarray]:
        """Return the array as its only piece."""
        return [y]


@dataclass(frozen=True)
class _Coded:
    """The chunks of an array, coded, with the order and lag that they are coded in."""

    data: np.ndarray
    order: Order
    lag: int


@dataclass(frozen=True)
class _Layout:
    """An array and the order in which its elements are coded."""

    shape: tuple[int, ...]
    order: Order

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def width(self) -> int:
        """How many elements a row of the order of coding has, at least 1."""
        if self.order == "columns":
            return max(self.rows, 1)
        return max(math.prod(self.shape) // max(self.rows, 1), 1)

    @property
    def in_place(self) -> bool:
        """Whether the order is that of the array."""
        return self.order == "rows" or self.rows <= 1 or math.prod(self.shape) == 0

    def arrange(self, flat: np.ndarray) -> np.ndarray:
        """Return elements in C order (flat) in the order of coding."""
        return flat if self.in_place else np.ascontiguousarray(flat.reshape(self.rows, -1).T).reshape(-1)

    def restore(self, coded: np.ndarray, y: np.ndarray) -> None:
        """Write elements in the order of coding to an array."""
        if not self.in_place:
            y.reshape(self.rows, -1)[...] = coded.reshape(-1, self.rows).T


class SparseTrials:
    """One array of floats under many absolute bounds, or none, for searches: order and lag are chosen only once.

    The array has at least 1 element, and one that is finite and not zero.
    """

    def __init__(self, x: np.ndarray) -> None:
        self._shape = x.shape
        self._flat = np.ascontiguousarray(x, numpy_dtype(dtype_name(x.dtype))).reshape(-1)
        self._places = _choose_places(_nonzero(self._flat).astype(np.int32), x.shape, False)

    @np.errstate(invalid="ignore")
    def pack(self, bound: Abs) -> tuple[Packed, np.ndarray] | None:
        """Return the entry that codec "sparse" makes, and the array that a decoder returns; None if it cannot."""
        found = _quantised(self._flat, self._shape, bound, self._places)
        return (found[0], found[1].reshape(self._shape)) if found else None

    @np.errstate(invalid="ignore")
    def pack_exactly(self) -> Packed:
        """Return the entry that codec "sparse" makes without loss."""
        return _lossless(self._flat.reshape(self._shape), self._places)


def _lossless(x: np.ndarray, places: tuple[Order, int] | None = None) -> Packed:
    """Return the shorter of the entry of this codec and that of codec "enec"."""
    usual = ENEC(mode="ratio").encode(x)
    if x.size < _SMALL:
        return usual
    flat = np.ascontiguousarray(x, numpy_dtype(dtype_name(x.dtype))).reshape(-1)
    packed = _exact(flat, x.shape, Lossless(), places)
    return packed if packed is not None and packed.num_bytes < usual.num_bytes else usual


def _quantised(
    flat: np.ndarray, shape: tuple[int, ...], bound: Bound, places: tuple[Order, int] | None = None
) -> tuple[Packed, np.ndarray] | None:
    """Return the shortest entry with quantised elements, and what a decoder makes of it (flat).

    None if too many elements are beyond quantisation.
    """
    tiles = Fold.of(shape).tiles()
    best = None
    for plan in plans(flat, tiles, bound):
        if not plan.exact:
            plan = _with_short_step(plan)
        found = _quantise(flat, plan)
        coded = found and _encode_places(found[0], shape, True, flat.itemsize, places)
        if not found or not coded:
            continue
        _, outliers, y = found
        params = SparseParams(lag=coded.lag, order=coded.order, step=plan.params.step)
        buffers = {"data": coded.data}
        if outliers.size:
            buffers |= {"outliers": outliers.astype("<u8"), "exact": flat[outliers]}
        packed = Packed(_header(flat, shape, bound, params), buffers, [digest(y)])
        best = (packed, y) if best is None or packed.num_bytes < best[0].num_bytes else best
    return best


def _with_short_step(plan: Plan) -> Plan:
    """Return a plan whose step has few digits, which the file spells out; it is no larger."""
    step = plan.params.step
    unit = 10.0 ** (math.floor(math.log10(step)) - 4)
    short = float(f"{math.floor(step / unit) * unit:.5g}")
    return replace(plan, params=msgspec.structs.replace(plan.params, step=short)) if 0 < short <= step else plan


def _exact(
    flat: np.ndarray, shape: tuple[int, ...], bound: Bound, places: tuple[Order, int] | None = None
) -> Packed | None:
    """Return the entry whose elements are packed apart, or None if few are zero."""
    mask = _nonzero(flat)
    count = int(np.count_nonzero(mask))
    if count > _DENSE * flat.size:
        return None
    coded = _encode_places(mask.astype(np.int32), shape, False, flat.itemsize, places)
    if coded is None:
        return None
    values, digests = flat[mask], None
    if isinstance(bound, Lossless):
        nested = ENEC(mode="ratio").encode(values)
    else:
        if isinstance(bound, Rel):  # relative to all elements, of which zero is one
            span = float(int(flat.max()) - int(flat.min()))
            bound_of_values: Bound = Abs(max(bound.value * span, 0.25))
        else:
            bound_of_values = bound
        nested = SZ().encode(values, bound_of_values)
        y = np.zeros_like(flat)
        y[mask] = make_codec(nested.header.codec).decode(nested)
        digests = [digest(y)]
    entry = _Values(codec=nested.header.codec, params=nested.header.params, count=count)
    params = SparseParams(lag=coded.lag, order=coded.order, values=entry)
    buffers = {"data": coded.data, **{f"values.{role}": buffer for role, buffer in nested.buffers.items()}}
    return Packed(_header(flat, shape, bound, params), buffers, digests)


def _header(flat: np.ndarray, shape: tuple[int, ...], bound: Bound, params: SparseParams) -> Header:
    codec, name = describe(Sparse()), dtype_name(flat.dtype)
    return Header(codec=codec, bound=bound, dtype=name, shape=shape, params=msgspec.to_builtins(params))


def _quantise(flat: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return integers (int32), the places of outliers, and what a decoder makes of all; None if outliers are many."""
    q, y = np.empty(flat.size, np.int32), np.empty_like(flat)
    found: list[np.ndarray] = [np.empty(0, np.int64)] * -(-flat.size // _CHUNK)
    rounding = _ROUNDINGS.get(flat.dtype.name, NONE)

    def quantise_chunk(index: int) -> None:
        start, stop = index * _CHUNK, min((index + 1) * _CHUNK, flat.size)
        x, part = widened(flat[start:stop]), q[start:stop]
        places = np.empty(x.size, np.uint32)
        quantise = kernels.load("quantiser").quantise
        begin = np.zeros(1, np.int64)
        count = quantise(x, begin, plan.params.step, plan.limit, rounding, 0, part.reshape(1, -1), places)
        part[places[:count]] = 0
        found[index] = places[:count].astype(np.int64) + start
        _stand_in(part, plan.params.step, y[start:stop])

    kernels.for_each(quantise_chunk, len(found))
    outliers = np.concatenate(found)
    if outliers.size * _MANY > flat.size:
        return None
    y[outliers] = flat[outliers]
    return q, outliers, y


def _stand_in(q: np.ndarray, step: float, y: np.ndarray) -> None:
    """Write what the integers stand for, outliers aside."""
    wide = y if y.dtype.itemsize > 2 else np.empty(q.size, np.float32)
    kernels.load("quantiser").dequantise(q.reshape(1, -1), np.zeros(1, np.int64), step, 0, wide)
    if wide is not y:
        y[...] = narrowed(wide, y.dtype)


def _nonzero(flat: np.ndarray) -> np.ndarray:
    """Return where elements have a bit that is not zero (bool)."""
    if flat.itemsize <= 8:
        return flat.view(f"u{flat.itemsize}") != 0
    return (flat.view(np.uint64).reshape(-1, 2) != 0).any(axis=1)


def _encode_places(
    q: np.ndarray, shape: tuple[int, ...], signed: bool, itemsize: int, places: tuple[Order, int] | None = None
) -> _Coded | None:
    """Code integers (int32, in C order) in an order and lag, by default the best; None if they would not shrink."""
    encode = kernels.load("sparse").encode
    order, lag = places or _choose_places(q, shape, signed)
    layout = _Layout(shape, order)
    coded = layout.arrange(q)
    num_chunks = -(-coded.size // _CHUNK)
    blocks: list[np.ndarray | None] = [None] * num_chunks

    def encode_chunk(index: int) -> None:
        part = coded[index * _CHUNK : (index + 1) * _CHUNK]
        room = np.empty(part.size * itemsize if signed else -(-part.size // 8) - 1, np.uint8)
        size = encode(part, layout.width, lag, signed, room)
        if size >= 0:
            blocks[index] = room[:size].copy()
        elif not signed:
            blocks[index] = np.packbits(part != 0, bitorder="little")

    kernels.for_each(encode_chunk, num_chunks)
    done = [block for block in blocks if block is not None]
    if len(done) < num_chunks:
        return None
    sizes = np.array([block.size for block in done[:-1]], "<u4")
    return _Coded(np.concatenate([sizes.view(np.uint8), *done]), order, lag)


def _choose_places(q: np.ndarray, shape: tuple[int, ...], signed: bool) -> tuple[Order, int]:
    """Return the order and lag in which a sample of the integers takes the fewest bytes."""
    encode = kernels.load("sparse").encode
    candidates: list[tuple[int, Order, int]] = []
    orders: tuple[Order, ...] = ("rows", "columns")
    for order in orders:
        layout = _Layout(shape, order)
        if order == "columns" and layout.in_place:
            continue
        sample = np.ascontiguousarray(layout.arrange(q)[:_SAMPLE])
        room = np.empty(sample.size * 8 + 64, np.uint8)
        lags = sorted(_lags(sample, layout.width))
        candidates += [(encode(sample, layout.width, lag, signed, room), order, lag) for lag in lags]
    _, order, lag = min(candidates, key=lambda candidate: (candidate[0], candidate[1] != "rows"))
    return order, lag


def _lags(sample: np.ndarray, row_length: int) -> set[int]:
    """Return lags worth trying: none, a row, and that at which nonzeros most often stand two by two."""
    lags = {0}
    if 2 <= row_length <= min(MAX_LAG, sample.size // 2):
        lags.add(row_length)
    longest = sample.size // 4
    if longest > 3:
        nonzero = (sample != 0).astype(np.float32)
        spectrum = np.fft.rfft(nonzero - nonzero.mean(), 2 * sample.size)
        together = np.fft.irfft(np.abs(spectrum) ** 2)[:longest]
        lags.add(3 + int(np.argmax(together[3:])))  # runs tell of what is closer
    return lags


def _blocks(packed: Packed) -> list[np.ndarray]:
    """Return the blocks of all chunks.

    Raises:
        Corrupt: their sizes do not fit the buffer.
    """
    data = packed.buffer("data", "uint8")
    num_sizes = max(-(-packed.header.num_elements // _CHUNK) - 1, 0)
    if data.size < 4 * num_sizes:
        raise Corrupt(f"buffer 'data' holds {data.size} bytes; the sizes of {num_sizes} blocks need {4 * num_sizes}")
    sizes = data[: 4 * num_sizes].copy().view("<u4").tolist()
    last = data.size - 4 * num_sizes - sum(sizes)
    if last < 0:
        raise Corrupt(f"the blocks' sizes sum to {sum(sizes)}; buffer 'data' holds {data.size - 4 * num_sizes}")
    start, blocks = 4 * num_sizes, []
    for size in [*sizes, last]:
        blocks.append(data[start : start + size])
        start += size
    return blocks


def _outliers(packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    """Return the places (int64) and elements that are kept exactly.

    Raises:
        Corrupt: the places are not ascending, or beyond the array.
    """
    header = packed.header
    if "outliers" not in packed.buffers:
        return np.empty(0, np.int64), np.empty(0, numpy_dtype(header.dtype))
    places = packed.buffer("outliers", "uint64")
    exact = packed.buffer("exact", header.dtype, places.size)
    if places.size and (int(places[-1]) >= header.num_elements or not (places[1:] > places[:-1]).all()):
        raise Corrupt(f"outliers' places are not ascending, or beyond {header.num_elements} elements")
    return places.astype(np.int64), exact


def _decode_exact(
    packed: Packed, params: SparseParams, values: _Values, blocks: list[np.ndarray], out: np.ndarray | None
) -> np.ndarray:
    """Return the array whose elements are packed apart."""
    header = packed.header
    if values.count > header.num_elements:
        raise Corrupt(f"{values.count} values among {header.num_elements} elements, at $.params.values.count")
    if values.codec.get("id") not in _NESTED:
        raise Corrupt(f"values of codec {values.codec.get('id')!r}; expected one of {', '.join(_NESTED)}")
    mask = np.empty(header.num_elements, np.uint8)
    layout = _Layout(header.shape, params.order)

    def decode_chunk(index: int) -> None:
        part = mask[index * _CHUNK : (index + 1) * _CHUNK]
        if blocks[index].size == -(-part.size // 8):
            part[:] = np.unpackbits(blocks[index], count=part.size, bitorder="little")
            return
        q = np.empty(part.size, np.int32)
        if kernels.load("sparse").decode(blocks[index], layout.width, params.lag, False, q) != 0:
            raise Corrupt(f"block {index} is damaged")
        part[:] = q

    kernels.for_each(decode_chunk, len(blocks))
    if not layout.in_place:
        coded, mask = mask, np.empty(mask.size, np.uint8)
        layout.restore(coded, mask)
    if int(np.count_nonzero(mask)) != values.count:
        raise Corrupt(f"{np.count_nonzero(mask)} elements are not zero; expected {values.count}")
    nested = Packed(
        Header(codec=values.codec, bound=header.bound, dtype=header.dtype, shape=(values.count,), params=values.params),
        dict(_without_prefix(packed)),
    )
    try:
        elements = make_codec(values.codec).decode(nested)
    except UnknownCodec as error:
        raise Corrupt(str(error)) from None
    y = packed.output(out)
    flat = y.reshape(-1)
    flat.view(np.uint8)[...] = 0
    flat[mask.view(bool)] = elements
    return y


def _without_prefix(packed: Packed) -> Iterator[tuple[str, np.ndarray]]:
    for name, buffer in packed.buffers.items():
        if name.startswith("values."):
            yield name.removeprefix("values."), buffer
