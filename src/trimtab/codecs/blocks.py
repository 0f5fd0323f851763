"""Blocks: activations within an error bound, at the speed of memory; zeros and signs stay exact.

What waits in memory between a forward and a backward pass is packed and unpacked once each, so time counts as much as
bytes. Block coders of this kind (SZx, cuSZp) take codes of a fixed length in small blocks. Here a block is coded in
rounds, a bit for each element still in play: Rice codes, transposed, so that words of 64 bits take the place of single
codes. Normal elements, and what a ReLU leaves of them, take about a tenth of a bit more than their entropy, and a whole
bit or more less than with fixed lengths.

No element becomes zero or changes its sign, so a ReLU's backward pass can read its mask off the decoded array.

Rounding errors are a function of the elements: where these are smooth, so are the errors, and sums over many elements
have more error than independent errors would make. With `dither` they have not: the edges of the bins move from element
to element, in a way that both sides compute from the element's place and a number, `start` (subtractive dither,
Roberts, IRE Transactions on Information Theory, 1962). Bound, zeros and signs hold all the same.

The entry
=========
Elements are float32, float16 or bfloat16, in C order. Numbers are little-endian. params: ``error``, a float64 that
float32 holds too: the e of `trimtab.kernels.blocks`, which defines the chunks of 1024 elements; and ``start``, from 0
to 2^32 - 1, that of its dither, which is left out where there is none. Decoded float32 are rounded to the dtype of the
array; elements of kept blocks are as they are.

- ``sizes``: for each chunk a uint16, its bytes
- ``data``: the chunks, one after another
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, NamedTuple

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.bounds import Abs, Bound, Lossless, Rel
from trimtab.codecs.codec import describe
from trimtab.codecs.embedding import absolute_limit
from trimtab.codecs.stream import Stream
from trimtab.dtypes import dtype_name, numpy_dtype
from trimtab.errors import BoundError, Corrupt, ShapeError
from trimtab.kernels.blocks.ref import BFLOAT16, CHUNK, FLOAT16, NONE, PLAIN, most_bytes
from trimtab.packed import Header, Packed

SLICE = 1 << 18
"""Elements that one thread takes at a time: whole chunks that stay in its cache."""

_SAMPLE = 256
"""Chunks that estimates are made from."""

_ROUNDING = {"float32": NONE, "float16": FLOAT16, "bfloat16": BFLOAT16}
_DIGITS = {"float32": 18, "float16": 5, "bfloat16": 4}  # of e in binary, so that few multiples of it need rounding
_EXPONENTS = {"float32": (-149, 127), "float16": (-24, 15), "bfloat16": (-133, 127)}  # of the powers of 2 in a dtype


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the decoder multiplies codes with."""

    error: Annotated[float, msgspec.Meta(ge=0)]
    start: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.error) or self.error > 2.0**127 or float(np.float32(self.error)) != self.error:
            raise ValueError(f"error {self.error} is not a float32 of at most 2^127")


class Estimate(NamedTuple):
    """What an array would take within some bound."""

    num_bytes: float
    squared_error: float
    """The sum over all elements."""


class Blocks(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="id",
    tag="blocks",
):
    """Pack activations within `Abs` or `Rel`, fast; zeros stay zeros and signs stay signs.

    Attributes:
        dither: whether errors are like independent random numbers, so that they average out. The same array makes the
            same bytes nevertheless.

    >>> x = np.maximum(np.random.default_rng(0).standard_normal((64, 4096), dtype=np.float32), 0)
    >>> packed = Blocks().encode(x, Abs(0.25))
    >>> y = Blocks().decode(packed)
    >>> x.nbytes / packed.num_bytes > 15, Abs(0.25).allows(x, y), np.array_equal(x > 0, y > 0)
    (True, True, True)
    """

    dither: bool = False

    id: ClassVar[str] = "blocks"
    fixed_size: ClassVar[bool] = False
    keeps_signs: ClassVar[bool] = True
    """Whether a decoded element is positive, negative or zero just where the element was."""

    def encode(self, x: np.ndarray, bound: Bound = Lossless()) -> Packed:
        """Pack float32, float16 or bfloat16 of any shape and strides.

        Raises:
            BoundError: the bound is neither `Abs` nor `Rel`.
            ShapeError: the dtype is another one.
        """
        return self.encode_measured(x, bound)[0]

    def encode_measured(self, x: np.ndarray, bound: Bound, *, start: int = 0) -> tuple[Packed, float]:
        """Pack as `encode` does; return also the sum of the squared errors of all elements, which costs nothing.

        Dither begins at `start`, modulo 2^32, as with `encode` at 0: arrays whose errors are to be independent of each
        other need starts that are far apart, such as multiples of a large odd number.
        """
        if not isinstance(bound, Abs | Rel):
            raise BoundError(f"codec 'blocks' promises Abs or Rel; got {bound} at $.bound")
        flat = _flat(x)
        name = dtype_name(flat.dtype)
        error = error_step(absolute_limit(bound, flat), name)
        start = start % 2**32 if self.dither else PLAIN
        sizes = np.empty(-(-flat.size // CHUNK), np.uint16)
        num_slices = -(-flat.size // SLICE)
        stream, totals = Stream(most_bytes(flat.size, flat.itemsize)), [0.0] * num_slices

        def work(index: int) -> None:
            part_sizes = sizes[index * SLICE // CHUNK :][: SLICE // CHUNK]
            part = flat[index * SLICE : (index + 1) * SLICE]
            data, totals[index] = _encode_slice(part, error, _start_of(start, index), part_sizes)
            stream.put(index, data)

        kernels.for_each(work, num_slices)
        params = {"error": error, "start": start} if self.dither else {"error": error}
        header = Header(codec=describe(self), bound=bound, dtype=name, shape=x.shape, params=params)
        return Packed(header, {"sizes": sizes, "data": stream.finish()}), math.fsum(totals)

    def estimate(self, x: np.ndarray, bounds: Sequence[Abs | Rel]) -> list[Estimate]:
        """Return about what `encode` would make of `x` within each bound, from a sample of up to 2^18 elements."""
        flat = _flat(x)
        name = dtype_name(flat.dtype)
        sample = _sample(flat)
        sizes = np.empty(-(-sample.size // CHUNK), np.uint16)
        scale = flat.size / max(sample.size, 1)
        estimates = []
        for bound in bounds:
            error = error_step(absolute_limit(bound, flat), name)
            data, squared_error = _encode_slice(sample, error, 0 if self.dither else PLAIN, sizes)
            estimates.append(Estimate(scale * (data.size + sizes.nbytes), scale * squared_error))
        return estimates

    def decode(self, packed: Packed, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return the array.

        Raises:
            Corrupt: the buffers are not those of such an array.
            ShapeError: `out` does not fit.
        """
        header = packed.header
        if header.dtype not in _ROUNDING:
            raise Corrupt(f"codec 'blocks' holds {', '.join(_ROUNDING)}; got {header.dtype}")
        params = packed.params(Params)
        error, start = np.float32(params.error), PLAIN if params.start is None else params.start
        num_elements, itemsize = header.num_elements, numpy_dtype(header.dtype).itemsize
        sizes, data = packed.buffer("sizes", "uint16", -(-num_elements // CHUNK)), packed.buffer("data")
        ends = np.append(0, np.add.reduceat(sizes, range(0, sizes.size, SLICE // CHUNK), dtype=np.int64).cumsum())
        if ends[-1] != data.size:
            raise Corrupt(f"chunks of {ends[-1]} bytes in all; there are {data.size}")
        y = packed.output(out)
        flat = y.reshape(-1)
        kernel = kernels.load("blocks")

        def work(index: int) -> None:
            part = flat[index * SLICE : (index + 1) * SLICE]
            part_sizes = sizes[index * SLICE // CHUNK :][: -(-part.size // CHUNK)]
            part_data = data[ends[index] : ends[index + 1]]
            wide = part if part.dtype == np.float32 else np.empty(part.size, np.float32)
            num_kept = kernel.decode(part_data, part_sizes, error, _start_of(start, index), itemsize, wide)
            if num_kept < 0:
                raise Corrupt(f"a chunk in elements {index * SLICE} to {index * SLICE + part.size} is damaged")
            if part is not wide:
                kernels.load("half").narrow(wide, header.dtype, part.view(np.uint16))
            if num_kept:
                kernel.restore(part_data, part_sizes, itemsize, part.view(np.uint8))

        kernels.for_each(work, ends.size - 1)
        return y

    def pieces(self, y: np.ndarray) -> list[np.ndarray]:
        """Return the slices of an array."""
        flat = y.reshape(-1)
        return [flat[start : start + SLICE] for start in range(0, max(flat.size, 1), SLICE)]


def error_step(limit: float, dtype: str) -> float:
    """Return the e to use for elements of a dtype: `limit`, rounded down to few digits; 0 for very small ones.

    Its multiples by small numbers are then exact in the dtype.
    """
    lowest, highest = _EXPONENTS[dtype]
    if limit >= 2.0**highest:
        return 2.0**highest
    grain = max(math.frexp(limit)[1] - _DIGITS[dtype], lowest)
    return math.ldexp(math.floor(math.ldexp(limit, -grain)), grain)


def _flat(x: np.ndarray) -> np.ndarray:
    name = dtype_name(x.dtype)
    if name not in _ROUNDING:
        raise ShapeError(f"codec 'blocks' takes {', '.join(_ROUNDING)}; got {name}")
    return np.ascontiguousarray(x, numpy_dtype(name)).reshape(-1)


def _sample(flat: np.ndarray) -> np.ndarray:
    """Return some whole chunks, one from anywhere in each of equal stretches: channels come by turns, too."""
    stretch = flat.size // (_SAMPLE * CHUNK)
    if stretch < 2:
        return flat[:SLICE]
    chunks = flat[: _SAMPLE * stretch * CHUNK].reshape(_SAMPLE, stretch, CHUNK)
    golden = np.arange(_SAMPLE) * ((math.sqrt(5) - 1) / 2) % 1
    return chunks[np.arange(_SAMPLE), (golden * stretch).astype(np.int64)].reshape(-1)


def _start_of(start: int, index: int) -> int:
    """Return the start of the dither in a slice; `PLAIN` where there is none."""
    return start if start == PLAIN else (start + index * SLICE) % 2**32


def _encode_slice(x: np.ndarray, error: float, start: int, sizes: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the chunks of up to `SLICE` elements and the sum of the squared errors; fill in the chunks' `sizes`."""
    out = np.empty(most_bytes(x.size, x.itemsize), np.uint8)
    rounding = _ROUNDING[dtype_name(x.dtype)]
    num_bytes, squared_error = kernels.load("blocks").encode(
        _widened(x), x.view(np.uint8), np.float32(error), rounding, start, sizes, out
    )
    return out[:num_bytes], squared_error


def _widened(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.float32:
        return x
    y = np.empty(x.size, np.float32)
    kernels.load("half").widen(x.view(np.uint16), dtype_name(x.dtype), y)
    return y
