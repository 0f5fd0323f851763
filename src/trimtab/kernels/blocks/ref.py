"""Floats within an absolute error bound, in blocks of bit planes: the specification.

Code 0 stands for zero (of either sign, decoded as +0.0), code c from 1 up for the magnitudes from 2 (c - 1) e to 2 c e,
and decodes to (2 c - 1) e in float32, with the sign of the element. So no error exceeds e, zeros stay zeros and signs
stay signs; e is a number of the elements' dtype, or 0. The code of a magnitude m is floor(m x (1 / (2 e))) + 1 in
float32, and 2^22 at most. An element cannot be coded where what it decodes to, rounded to its dtype, misses the bound.

With dither, the edges of those bins move from element to element, so that errors depend on the place and hardly on the
magnitude: those of neighbours, and of an array that is coded again elsewhere, are like independent ones. Element i has
a number d of 24 bits, made of start + i, all modulo 2^32: that times 0x9E3779B9; then the exclusive or of this and this
shifted right by 14; times 0xF9A8CB5D; shifted right by 8. With u = d / 2^24, all in float32, the code of m is
floor(m x (1 / (2 e)) + u) + 1 and decodes to max((2 c - 1) - 2 u, 1/128) e. An element that decodes to zero in its
dtype cannot be coded, nor a float32 whose error, as float32 computes it, is not below e, for it may be rounded.

Elements come in chunks of 1024, of 16 blocks of 64; the last chunk has the blocks it needs, and its last block is
filled up with zeros. A chunk of nothing but zeros has no bytes. Any other chunk is:

- a byte: bits 0 to 4 are r, at most 22; bit 5 says whether blocks tell signs; the others are clear
- a byte for each four of its blocks, two bits a block, lowest first: 0, zeros only; 1, coded, with zeros; 2, coded,
  without; 3, kept as it is
- the bits of its coded blocks, block by block, filled up with zero bits to whole bytes; bits fill a byte from its
  lowest on
- the elements of its kept blocks as they are, without those that were filled in

The bits of a coded block: for kind 1, 64 that tell which elements are not zero, n of them; with bit 5, n that tell
which of these are negative; then n bits for each of the r lowest bits of ``c - 1``, lowest first; then rounds for
``q = (c - 1) >> r``. Round j, from 0 up, has a bit for each element with q >= j: whether q > j. The round without a set
bit is the last, and is written. There are at most 16; the elements that are left then have a bit for each of the bits
r to 21 of ``c - 1``, lowest first.

A block is kept where an element cannot be coded, or where its bits are not fewer than those of its elements. r is the
mean, halves rounded up, of what suits each block that can be coded: of the numbers ``c - 1`` of its elements that are
not zero, with mean m and mean bit length l, the largest r with 2^r <= m + 1/2 and r <= l + 1/2, or 0.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

CHUNK = 1024
BLOCK = 64
NONE, FLOAT16, BFLOAT16 = range(3)
"""What decoded float32 are rounded to further."""
PLAIN = -1
"""Stands for the start where there is no dither."""
DITHER_FACTORS, DITHER_SHIFT, DITHER_BITS = (0x9E3779B9, 0xF9A8CB5D), 14, 24
LEAST = 1 / 128
"""Of what e is multiplied with."""

ROUNDS = 16

_LIMIT = np.float32((1 << 22) - 1)
_ZERO, _MIXED, _FULL, _KEPT = range(4)
_SIGNED = 32
_CODE_BITS = 22
_SLACK = 1024
_ROUNDED = {FLOAT16: np.float16, BFLOAT16: ml_dtypes.bfloat16}


def most_bytes(num_elements: int, itemsize: int) -> int:
    """Return the size of a buffer to encode so many elements into: that of the longest encoding, and space to try."""
    return num_elements * itemsize + -(-num_elements // CHUNK) * (1 + CHUNK // BLOCK // 4) + _SLACK


def encode(
    x: np.ndarray,
    words: np.ndarray,
    error: float,
    rounding: int,
    start: int,
    sizes: np.ndarray,
    out: np.ndarray,
) -> tuple[int, float]:
    """Encode `x` (float32); return the number of bytes, and the sum of the squared errors.

    `words` (uint8) are the bytes of the elements in their own dtype, and `rounding` is what that does to float32.
    `start` is that of the dither of `x`, or `PLAIN`.
    `sizes` (uint16) receives the bytes of each chunk, and `out` (uint8, `most_bytes`) the chunks one after another.
    """
    itemsize = words.size // max(x.size, 1)
    at, total = 0, 0.0
    for k, first in enumerate(range(0, x.size, CHUNK)):
        values = x[first : first + CHUNK]
        bytes_ = words[itemsize * first : itemsize * (first + values.size)]
        noise = _dither(start, first)
        chunk, squares = _encode_chunk(values, bytes_, np.float32(error), rounding, noise)
        sizes[k] = len(chunk)
        out[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
        at += len(chunk)
        for square in squares:
            total += float(square)
    return at, total


def decode(data: np.ndarray, sizes: np.ndarray, error: float, start: int, itemsize: int, y: np.ndarray) -> int:
    """Fill `y` (float32) from the chunks in `data`; return the number of kept blocks, which are left zero.

    Returns -1 where a chunk contradicts itself. The `sizes` (uint16) of the chunks have to add up to that of `data`,
    and be as many as `y` has chunks. `start` is that of the dither, or `PLAIN`; `itemsize` is that of the elements.
    """
    ends = np.cumsum(sizes.astype(np.int64))
    num_kept = 0
    for k, first in enumerate(range(0, y.size, CHUNK)):
        chunk, part = data[ends[k] - sizes[k] : ends[k]], y[first : first + CHUNK]
        kept = _decode_chunk(chunk, np.float32(error), _dither(start, first), itemsize, part)
        if kept < 0:
            return -1
        num_kept += kept
    return num_kept


def restore(data: np.ndarray, sizes: np.ndarray, itemsize: int, words: np.ndarray) -> None:
    """Write the elements of kept blocks into `words` (uint8, the bytes of all elements), from what `decode` accepts."""
    ends = np.cumsum(sizes.astype(np.int64))
    for k, start in enumerate(range(0, words.size, CHUNK * itemsize)):
        part = words[start : start + CHUNK * itemsize]
        chunk = data[ends[k] - sizes[k] : ends[k]]
        at = chunk.size
        for b in reversed(np.flatnonzero(_kinds(chunk, _num_blocks(part.size // itemsize)) == _KEPT)):
            block = part[b * BLOCK * itemsize : (b + 1) * BLOCK * itemsize]
            at -= block.size
            block[...] = chunk[at : at + block.size]


def _dither(start: int, first: int) -> np.ndarray | None:
    """Return u (float32) of a chunk, in rows of a block each, whose first element is number `first`; None if plain."""
    if start == PLAIN:
        return None
    numbers = (start + first + np.arange(CHUNK, dtype=np.uint64)).astype(np.uint32)
    numbers *= np.uint32(DITHER_FACTORS[0])
    numbers ^= numbers >> np.uint32(DITHER_SHIFT)
    numbers *= np.uint32(DITHER_FACTORS[1])
    numbers >>= np.uint32(32 - DITHER_BITS)
    return (numbers.astype(np.float32) * np.float32(2.0**-DITHER_BITS)).reshape(-1, BLOCK)


def _num_blocks(num_elements: int) -> int:
    return -(-num_elements // BLOCK)


def _encode_chunk(
    x: np.ndarray, words: np.ndarray, error: np.float32, rounding: int, noise: np.ndarray | None
) -> tuple[bytes, np.ndarray]:
    """Return the chunk, and the sums of the squared errors (float32) of its coded blocks."""
    block_bytes = BLOCK * (words.size // x.size)
    x = np.append(x, np.zeros(-x.size % BLOCK, np.float32)).reshape(-1, BLOCK)
    codes, errors = _codes(x, error, rounding, None if noise is None else noise[: len(x)])
    kinds = np.where((codes == 0).any(1), _MIXED, _FULL)
    kinds[(codes == 0).all(1)] = _ZERO
    kinds[(errors < 0).any(1)] = _KEPT
    if not kinds.any():
        return b"", np.empty(0, np.float32)
    rest = codes - 1
    coded = np.flatnonzero((kinds == _MIXED) | (kinds == _FULL))
    signed = bool((x[coded] < 0).any())
    shifts = [_suiting_shift(rest[b][codes[b] > 0]) for b in coded]
    r = (2 * sum(shifts) + coded.size) // max(2 * coded.size, 1)
    bits: list[np.ndarray] = [np.empty(0, bool)]
    for b in coded:
        mask = codes[b] > 0
        q = rest[b][mask] >> r
        parts = [mask] * int(kinds[b] == _MIXED) + [x[b][mask] < 0] * signed
        parts += [rest[b][mask] >> plane & 1 == 1 for plane in range(r)]
        parts += [q[q >= j] > j for j in range(min(q.max() + 1, ROUNDS))]
        parts += [rest[b][mask][q >= ROUNDS] >> plane & 1 == 1 for plane in range(r, _CODE_BITS)]
        plain_bytes = words[b * block_bytes : (b + 1) * block_bytes].size
        if sum(part.size for part in parts) >= 8 * plain_bytes:
            kinds[b] = _KEPT
        else:
            bits += parts
    kept = [words[b * block_bytes : (b + 1) * block_bytes].tobytes() for b in np.flatnonzero(kinds == _KEPT)]
    fours = np.append(kinds, np.zeros(-kinds.size % 4, np.int64)).reshape(-1, 4) << [0, 2, 4, 6]
    head = bytes([r | _SIGNED * signed, *fours.sum(1).tolist()])
    chunk = head + np.packbits(np.concatenate(bits), bitorder="little").tobytes() + b"".join(kept)
    return chunk, _sums_of_squares(errors[(kinds == _MIXED) | (kinds == _FULL)])


def _codes(x: np.ndarray, error: np.float32, rounding: int, noise: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes (int64) of elements, and their errors (float32): -1 where they cannot be coded."""
    with np.errstate(all="ignore"):
        magnitude = np.abs(x)
        scaled = magnitude * (np.float32(1) / (error + error))
        if noise is not None:
            scaled += noise
        floor = np.where(scaled < _LIMIT, scaled, _LIMIT).astype(np.int32)
        y = _magnitudes(floor, error, noise)
        if rounding != NONE:
            y = y.astype(_ROUNDED[rounding]).astype(np.float32)
        errors = np.abs(y - magnitude)
        good = errors <= error
        if noise is not None:
            good &= (y > 0) & ((errors < error) | (rounding != NONE))
    zero = magnitude == 0
    errors = np.where(zero, np.float32(0), np.where(good, errors, np.float32(-1)))
    return np.where(zero, 0, floor + 1).astype(np.int64), errors


def _magnitudes(rest: np.ndarray, error: np.float32, noise: np.ndarray | None) -> np.ndarray:
    """Return what the numbers c - 1 of elements that are not zero decode to, without the sign."""
    odd = (2 * rest + 1).astype(np.float32)
    return (odd if noise is None else np.maximum(odd - 2 * noise, np.float32(LEAST))) * error


def _suiting_shift(rest: np.ndarray) -> int:
    num, lengths = rest.size, sum(int(value).bit_length() for value in rest)
    return min(max(((2 * int(rest.sum()) + num) // (2 * num)).bit_length() - 1, 0), (2 * lengths + num) // (2 * num))


def _sums_of_squares(errors: np.ndarray) -> np.ndarray:
    """Return the sum of the squares of each row, made in float32, halves of the row added up until one is left."""
    with np.errstate(over="ignore"):
        squares = errors * errors
        while squares.shape[1] > 1:
            half = squares.shape[1] // 2
            squares = squares[:, :half] + squares[:, half:]
    return squares[:, 0]


def _kinds(chunk: np.ndarray, num_blocks: int) -> np.ndarray:
    if chunk.size == 0:
        return np.zeros(num_blocks, np.int64)
    fours = chunk[1 : 1 + -(-num_blocks // 4)].astype(np.int64)
    return (fours[:, None] >> [0, 2, 4, 6] & 3).reshape(-1)


class _Bits:
    """The bits of a chunk; what is read past their end is not set."""

    def __init__(self, data: np.ndarray) -> None:
        self._bits = np.append(np.unpackbits(data, bitorder="little").astype(bool), np.zeros(BLOCK, bool))
        self.at = 0

    @property
    def passed(self) -> bool:
        return self.at > self._bits.size - BLOCK

    def take(self, num: int) -> np.ndarray:
        self.at += num
        return self._bits[self.at - num : self.at]


def _decode_chunk(chunk: np.ndarray, error: np.float32, noise: np.ndarray | None, itemsize: int, y: np.ndarray) -> int:
    """Fill `y` and return the number of kept blocks, or -1."""
    y[...] = 0
    if chunk.size == 0:
        return 0
    num_blocks = _num_blocks(y.size)
    head = 1 + -(-num_blocks // 4)
    if chunk.size < head or chunk[0] >= 2 * _SIGNED or chunk[0] % _SIGNED > _CODE_BITS:
        return -1
    r, signed = int(chunk[0]) % _SIGNED, chunk[0] >= _SIGNED
    kinds = _kinds(chunk, num_blocks)
    if kinds[num_blocks:].any():
        return -1
    kept = [y[b * BLOCK : (b + 1) * BLOCK].size * itemsize for b in np.flatnonzero(kinds == _KEPT)]
    if chunk.size < head + sum(kept):
        return -1
    bits = _Bits(chunk[head : chunk.size - sum(kept)])
    for b in np.flatnonzero((kinds == _MIXED) | (kinds == _FULL)):
        mask = bits.take(BLOCK) if kinds[b] == _MIXED else np.ones(BLOCK, bool)
        num = int(mask.sum())
        if bits.passed:
            return -1
        negative = bits.take(num) if signed else np.zeros(num, bool)
        rest = np.zeros(num, np.int64)
        for plane in range(r):
            if bits.passed:
                return -1
            rest += bits.take(num).astype(np.int64) << plane
        alive, rounds = np.arange(num), 0
        while alive.size and rounds < ROUNDS:
            if bits.passed:
                return -1
            alive = alive[bits.take(alive.size)]
            rest[alive] += 1 << r
            rounds += 1
        if alive.size:
            rest[alive] &= (1 << r) - 1
            for plane in range(r, _CODE_BITS):
                if bits.passed:
                    return -1
                rest[alive] += bits.take(alive.size).astype(np.int64) << plane
        if bits.passed:
            return -1
        magnitudes = _magnitudes(rest, error, None if noise is None else noise[b][mask])
        row = np.zeros(BLOCK, np.float32)
        row[mask] = np.where(negative, -magnitudes, magnitudes)
        part = y[b * BLOCK : (b + 1) * BLOCK]
        part[...] = row[: part.size]
    return len(kept) if head + -(-bits.at // 8) + sum(kept) == chunk.size else -1
