"""A slice of looked-up vectors, which is what travels: a matrix of rows (vectors) and columns, as one payload.

A payload, little-endian: a head of 40 bytes, then the sections ``index``, ``extra`` and ``rows``, then the places
(uint32, ascending, in C order) and the values (in the dtype of the matrix) of elements that are kept exactly. A byte
section that is as long as what it holds is that; a shorter one is a block of `trimtab.kernels.huffman`. The head::

    encoder     uint8   0 exact, 1 unique, 2 entropy, 3 vector-LZ, 4 dedup
    dtype       uint8   0 float32, 1 float16, 2 bfloat16
    bits        uint8   of a packed code: 0, 1, 2, 4, 8 or 16
    zero        uint8
    step        float32 a code q stands for (q + low) * step in float32, rounded to the dtype
    low         int32
    rows        uint32  of the matrix
    columns     uint32
    distinct    uint32  rows that rows holds
    exact       uint32  elements kept exactly
    index_size  uint32  bytes of index
    extra_size  uint32  bytes of extra
    rows_size   uint32  bytes of rows; with 16 bits those of the low bytes, and the high bytes take what is left

"exact" has all rows as they are, "entropy" packed codes of all rows (`trimtab.kernels.vectors`), as a byte section or,
with 16 bits, as two. The others hold only some rows, and what every row of the matrix is:

- "unique" and "dedup" have each different row once. ``index`` is a block of `trimtab.kernels.ans` with one row of
  tokens (`trimtab.kernels.tokens`), a reference for every row; ``extra`` are the bits that these leave out. Rows are as
  they are, or packed codes in byte sections.
- "vector-LZ" has rows that do not stand among the 255 before. ``index`` has a bit for every step, lowest first, 1 for a
  match, ``extra`` the length and the offset of each match. Rows are packed codes, which no entropy coder touches; with
  16 bits both planes are in ``rows``.
"""

from __future__ import annotations

import itertools
import math
import struct
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np

from trimtab import kernels
from trimtab.dtypes import dtype_name, numpy_dtype
from trimtab.errors import Corrupt, ShapeError
from trimtab.kernels.vectors.ref import BITS

Encoder = Literal["exact", "unique", "entropy", "vector_lz", "dedup"]
ENCODERS: tuple[Encoder, ...] = ("exact", "unique", "entropy", "vector_lz", "dedup")
LOSSLESS: tuple[Encoder, ...] = ("exact", "unique")
DTYPES = ("float32", "float16", "bfloat16")
MAX_ELEMENTS = 2**31 - 1
_HEAD = struct.Struct("<BBBBfiIIIIIII")
_MANY = 32  # one element in so many that is kept exactly is too many
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100  # limits between which steps and their inverses are normal float32


class _Codes(NamedTuple):
    """A matrix within a bound: ``(codes * step)`` but for the elements at `places`."""

    codes: np.ndarray
    """int16[rows, columns]."""
    step: np.float32
    low: int
    bits: int
    places: np.ndarray


class Groups(NamedTuple):
    """Which rows of a matrix are alike."""

    numbers: np.ndarray
    firsts: np.ndarray


class Slice:
    """A matrix on its way into bytes; what several encoders need is worked out once.

    Args:
        x: float32, float16 or bfloat16 of shape [rows, columns].
        limit: the absolute error that each finite element may have in that dtype; 0 for none. NaN and infinities are
            kept bit for bit.

    Raises:
        ShapeError: the dtype is another one, or there are 2^31 elements or more.
    """

    def __init__(self, x: np.ndarray, limit: float) -> None:
        self.dtype = dtype_name(x.dtype)
        if self.dtype not in DTYPES or x.ndim != 2 or x.size > MAX_ELEMENTS:
            raise ShapeError(
                f"vectors are a matrix of {', '.join(DTYPES)} with less than 2^31 elements; got {x.dtype} of {x.shape}"
            )
        self.x = np.ascontiguousarray(x, numpy_dtype(self.dtype))
        self.limit = limit

    def encode(self, encoder: Encoder) -> np.ndarray:
        """Return the payload (uint8).

        Where a lossy encoder is no use, since the limit is too small or too many elements would be kept exactly,
        "entropy" becomes "exact", and the others become "unique".
        """
        if encoder not in LOSSLESS and self._codes is None:
            encoder = "exact" if encoder == "entropy" else "unique"
        if encoder in LOSSLESS:
            return self._whole(encoder)
        return self._coded(encoder)

    @property
    def num_distinct(self) -> int:
        """How many rows differ as they are."""
        return self._rows.firsts.size

    @property
    def num_distinct_codes(self) -> int:
        """How many rows differ within the limit; as they are, where a lossy encoder is no use."""
        return self._code_rows.firsts.size

    def _whole(self, encoder: Encoder) -> np.ndarray:
        sections = [np.empty(0, np.uint8)] * 2
        rows = self.x
        if encoder == "unique":
            sections = _encode_index(self._rows.numbers)
            rows = self.x[self._rows.firsts]
        return self._join(encoder, len(rows), [*sections, rows.reshape(-1).view(np.uint8)])

    def _coded(self, encoder: Encoder) -> np.ndarray:
        codes = self._codes
        assert codes is not None
        sections = [np.empty(0, np.uint8)] * 2
        if encoder == "entropy":
            taken = np.arange(len(self.x), dtype=np.int32)
        elif encoder == "dedup":
            sections = _encode_index(self._code_rows.numbers)
            taken = self._code_rows.firsts
        else:
            taken, sections = _encode_matches(self._code_rows.numbers)
        vectors = kernels.load("vectors")
        packed = np.empty(vectors.packed_size(taken.size * self.x.shape[1], codes.bits), np.uint8)
        vectors.pack(codes.codes, taken, codes.low, codes.bits, packed)
        planes = packed.reshape(2, -1) if codes.bits == 16 else [packed]
        coded = [packed] if encoder == "vector_lz" else [_squeeze(plane) for plane in planes]
        return self._join(encoder, taken.size, [*sections, *coded], codes)

    def _join(
        self, encoder: Encoder, num_rows: int, parts: list[np.ndarray], codes: _Codes | None = None
    ) -> np.ndarray:
        numbers = (codes.bits, 0, codes.step, codes.low) if codes else (0, 0, 0.0, 0)
        num_exact = codes.places.size if codes else 0
        head = _HEAD.pack(
            ENCODERS.index(encoder), DTYPES.index(self.dtype), *numbers, *self.x.shape, num_rows, num_exact,
            *(part.size for part in parts[:3]),
        )  # fmt: skip
        parts = [np.frombuffer(head, np.uint8), *parts]
        if codes and num_exact:
            exact = self.x.reshape(-1)[codes.places]
            parts += [codes.places.astype("<u4").view(np.uint8), exact.view(np.uint8)]
        return np.concatenate(parts)

    @cached_property
    def _codes(self) -> _Codes | None:
        """The codes; None where there are none worth having."""
        if not self.limit >= _SMALLEST or not self.x.size:
            return None
        limit, step, inverse = scale(self.limit)
        x = self.x.reshape(-1)
        if self.dtype != "float32":
            with np.errstate(invalid="ignore"):  # signalling NaN only pass through
                x = x.astype(np.float32)
        codes, places = np.empty(x.size, np.int16), np.empty(x.size // _MANY, np.int64)
        low, high, num = kernels.load("vectors").quantise(x, limit, step, inverse, codes, places)
        if num > places.size:
            return None
        places = places[:num]
        if self.dtype != "float32":
            places = np.union1d(places, _missed(x, codes, step, limit, self.x.dtype))
        if high - low > 255:
            far = _beyond(codes)
            if far.size * _MANY <= codes.size:
                places, codes[far] = np.union1d(places, far), codes[codes.size // 2]
                low, high = int(codes.min()), int(codes.max())
        if places.size * _MANY > x.size:
            return None
        bits = next(bits for bits in BITS if high - low < 1 << bits)
        return _Codes(codes.reshape(self.x.shape), step, low, bits, places)

    @cached_property
    def _rows(self) -> Groups:
        return _group(self.x)

    @cached_property
    def _code_rows(self) -> Groups:
        return self._rows if self._codes is None else _group(self._codes.codes)


def decode_slice(payload: np.ndarray, out: np.ndarray) -> None:
    """Fill `out` (float32, float16 or bfloat16 of shape [rows, columns], C-contiguous) from a payload (uint8).

    Raises:
        Corrupt: the payload is not that of such a matrix.
    """
    if payload.size < _HEAD.size:
        raise Corrupt(f"a slice of {payload.size} bytes is shorter than its head of {_HEAD.size}")
    head = _HEAD.unpack_from(payload)
    encoder_id, dtype_id, bits, zero, step, low, num_rows, num_columns, num_distinct, num_exact, *sizes = head
    dtype = dtype_name(out.dtype)
    if encoder_id >= len(ENCODERS) or dtype_id >= len(DTYPES) or bits not in BITS or zero:
        raise Corrupt(f"a slice has encoder {encoder_id}, dtype {dtype_id}, {bits} bits and {zero} where there is 0")
    if DTYPES[dtype_id] != dtype or (num_rows, num_columns) != out.shape:
        raise Corrupt(f"a slice is {DTYPES[dtype_id]}[{num_rows}, {num_columns}]; expected {dtype}{list(out.shape)}")
    encoder = ENCODERS[encoder_id]
    exact_size = num_exact * (4 + out.itemsize)
    rest = payload.size - _HEAD.size - sum(sizes) - exact_size
    if rest < 0 or (rest and not (bits == 16 and encoder in ("entropy", "dedup"))):
        raise Corrupt(f"a slice has {payload.size} bytes; its sections take {payload.size - rest}")
    if num_exact > out.size or not num_distinct <= num_rows or (encoder in LOSSLESS and num_exact):
        raise Corrupt(f"a slice of {num_rows} rows has {num_distinct} different ones and {num_exact} exact elements")
    if not -(2**16) <= low < 2**16 or not math.isfinite(step):
        raise Corrupt(f"a slice has codes from {low} in steps of {step}")
    ends = [*itertools.accumulate([_HEAD.size, *sizes, rest])]
    index, extra, *rows = (payload[a:b] for a, b in itertools.pairwise(ends))
    numbers = _decode_numbers(encoder, index, extra, num_distinct, num_rows)
    direct = numbers is None and dtype == "float32"
    if encoder in LOSSLESS:
        if rows[0].size != num_distinct * num_columns * out.itemsize:
            raise Corrupt(f"a slice of {num_distinct} rows of {num_columns} {dtype} has {rows[0].size} bytes of rows")
        values = rows[0].view(out.dtype).reshape(-1, num_columns) if num_columns else out[:num_distinct]
        values = values if values.flags.aligned else values.copy()
    else:
        num = num_distinct * num_columns
        packed = _stored(encoder, rows, bits, kernels.load("vectors").packed_size(num, bits))
        values = out.reshape(-1) if direct else np.empty(num, np.float32)
        kernels.load("vectors").unpack(packed, low, bits, np.float32(step), values)
        values = values.reshape(num_distinct, num_columns)
    if numbers is not None:
        if dtype != "float32":
            values = _narrowed(values, out.dtype)
        np.take(values, numbers, axis=0, out=out, mode="clip")  # in range; "raise" would make a copy first
    elif not (direct and encoder not in LOSSLESS):
        out[...] = values if encoder in LOSSLESS else _narrowed(values, out.dtype)
    if num_exact:
        at = payload.size - exact_size
        places = payload[at : at + 4 * num_exact].copy().view("<u4")
        if not (places[1:] > places[:-1]).all() or places[-1] >= out.size:
            raise Corrupt(f"a slice keeps elements at places that do not rise, or beyond {out.size}")
        out.reshape(-1)[places] = payload[at + 4 * num_exact :].copy().view(out.dtype)


@lru_cache(64)
def scale(limit: float) -> tuple[np.float32, np.float32, np.float32]:
    """Return the limit in float32, the step and its inverse.

    A difference of an element and its stand-in is exact in float32 wherever it is near the limit, but for one rounding
    where the code is 1; the limit is two float32 below, so what passes is strictly within. The step is a little less
    than twice the limit, so that rounding by the product with the inverse does not miss the limit.
    """
    below = np.float32(min(limit, _LARGEST))
    while float(below) > limit:
        below = np.nextafter(below, np.float32(0))
    below = np.nextafter(below, np.float32(0))
    step = np.float32(2 * float(below) * (1 - 2**-12))
    return below, step, np.float32(1) / step


def _missed(x: np.ndarray, codes: np.ndarray, step: np.float32, limit: np.float32, dtype: np.dtype) -> np.ndarray:
    """Return the places of elements that miss the limit once their stand-ins are rounded to a narrow dtype."""
    y = _narrowed(codes.astype(np.float32) * step, dtype).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(~(np.abs(x - y) <= float(limit)))


def _narrowed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):  # an overflow misses the limit
        return values.astype(dtype)


def _beyond(codes: np.ndarray) -> np.ndarray:
    """Return the places of codes outside the 256 around the middle one."""
    middle = int(np.median(codes[:: max(codes.size // 1024, 1)]))
    return np.flatnonzero((codes < middle - 127) | (codes > middle + 128))


def _group(rows: np.ndarray) -> Groups:
    numbers, firsts = np.empty(len(rows), np.int32), np.empty(len(rows), np.int32)
    width = rows.shape[1] * rows.itemsize
    bytes_of_rows = rows.view(np.uint8) if width else np.empty((len(rows), 0), np.uint8)
    count = kernels.load("vectors").distinct_rows(bytes_of_rows, numbers, firsts)
    return Groups(numbers, firsts[:count])


def _encode_index(numbers: np.ndarray) -> list[np.ndarray]:
    """Return the sections ``index`` and ``extra`` of references."""
    references = np.empty((1, numbers.size), np.int32)
    kernels.load("vectors").refer(numbers, references[0])
    coder = kernels.load("tokens")
    tokens, extra = np.empty((1, numbers.size), np.uint8), np.empty(coder.max_extra_size(numbers.size), np.uint8)
    used = coder.encode(references, 0, tokens, extra)
    ans = kernels.load("ans")
    block = np.empty(ans.max_block_size(numbers.size), np.uint8)
    return [block[: ans.encode_block(tokens, 1, block)], extra[:used]]


def _encode_matches(numbers: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the literal rows (int32), and the sections ``index`` and ``extra`` of vector-LZ."""
    flags, pairs = np.empty(numbers.size, np.uint8), np.empty(2 * numbers.size, np.uint8)
    literals = np.empty(numbers.size, np.int32)
    num_steps, num_matches, num_literals = kernels.load("vectors").find_matches(numbers, flags, pairs, literals)
    return literals[:num_literals], [np.packbits(flags[:num_steps], bitorder="little"), pairs[: 2 * num_matches]]


def _decode_numbers(
    encoder: Encoder, index: np.ndarray, extra: np.ndarray, num_distinct: int, num_rows: int
) -> np.ndarray | None:
    """Return which of the distinct rows each row is; None where they are all there."""
    if encoder in ("exact", "entropy"):
        if index.size or extra.size or num_distinct != num_rows:
            raise Corrupt(f"a slice that holds all {num_rows} rows has {num_distinct} of them, or an index")
        return None
    numbers = np.empty(num_rows, np.int32)
    if encoder == "vector_lz":
        flags = np.unpackbits(index, bitorder="little")
        ok = kernels.load("vectors").follow_matches(flags, extra, num_distinct, numbers) == 0
    else:
        coder = kernels.load("tokens")
        tokens, references = np.empty((1, num_rows), np.uint8), np.empty((1, num_rows), np.int32)
        ok = (
            kernels.load("ans").decode_block(index, 1, tokens) == 0
            and coder.decode(tokens, extra, 0, references) == 0
            and kernels.load("vectors").resolve(references[0], num_distinct, numbers) == 0
        )
    if not ok:
        raise Corrupt(f"a slice's index does not make {num_rows} rows of {num_distinct}")
    return numbers


def _stored(encoder: Encoder, rows: list[np.ndarray], bits: int, size: int) -> np.ndarray:
    """Return the packed codes of a slice."""
    if encoder == "vector_lz":
        if rows[0].size != size:
            raise Corrupt(f"a slice's rows take {size} bytes; it has {rows[0].size}")
        return rows[0]
    packed = np.empty(size, np.uint8)
    for section, plane in zip(rows, packed.reshape(2, -1) if bits == 16 else [packed], strict=False):
        _expand(section, plane)
    return packed


def _squeeze(data: np.ndarray) -> np.ndarray:
    """Return a byte section: a Huffman block if that is shorter, else the bytes (uint8) as they are."""
    huffman = kernels.load("huffman")
    counts, block = np.empty(256, np.int64), np.empty(huffman.max_block_size(data.size), np.uint8)
    huffman.histogram(data, counts)
    size = huffman.encode_block(data, counts, block)
    return block[:size] if size < data.size else data


def _expand(section: np.ndarray, data: np.ndarray) -> None:
    """Fill `data` (uint8) from a byte section."""
    if section.size == data.size:
        data[:] = section
    elif section.size > data.size or kernels.load("huffman").decode_block(section, data) != 0:
        raise Corrupt(f"a slice's section of {section.size} bytes does not hold {data.size}")
