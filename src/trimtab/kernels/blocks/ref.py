"""Floats within an absolute error bound, in blocks of bit planes: the specification.

Code 0 stands for zero (of either sign, decoded as +0.0), code c from 1 up for the magnitudes from 2 (c - 1) e to 2 c e,
and decodes to (2 c - 1) e in float32, with the sign of the element. So no error exceeds e, zeros stay zeros and signs
stay signs. The code of a magnitude m is floor(m x (1 / (2 e))) + 1 in float32. An element cannot be coded where the
floor is not below 2^22, or where what it decodes to, rounded to the dtype of the elements, misses the bound or is zero.

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
``q = (c - 1) >> r``, at most 30. Round j, from 0 up, has a bit for each element with q >= j: whether q > j. The round
without a set bit is the last, and is written.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

CHUNK = 1024
BLOCK = 64
NONE, FLOAT16, BFLOAT16 = range(3)
"""What decoded float32 are rounded to further."""

LARGEST = 30
"""The largest q."""

_LIMIT = np.float32(1 << 22)
_ZERO, _MIXED, _FULL, _KEPT = range(4)
_SIGNED = 32
_CHOICES = 5
_LARGEST_SHIFT = 22
_ROUNDED = {FLOAT16: np.float16, BFLOAT16: ml_dtypes.bfloat16}


def most_bytes(num_elements: int, itemsize: int) -> int:
    """Return the size of a buffer that holds any encoding of so many elements, and 8 bytes that encoders may write."""
    return num_elements * itemsize + -(-num_elements // CHUNK) * (1 + CHUNK // BLOCK // 4) + 8


def encode(
    x: np.ndarray, words: np.ndarray, error: float, rounding: int, sizes: np.ndarray, out: np.ndarray
) -> tuple[int, float]:
    """Encode `x` (float32); return the number of bytes, and the sum of the squared errors.

    `words` (uint8) are the bytes of the elements in their own dtype, and `rounding` is what that does to float32.
    `sizes` (uint16) receives the bytes of each chunk, and `out` (uint8, `most_bytes`) the chunks one after another.
    """
    itemsize = words.size // max(x.size, 1)
    at, total = 0, 0.0
    for k, start in enumerate(range(0, x.size, CHUNK)):
        values = x[start : start + CHUNK]
        bytes_ = words[itemsize * start : itemsize * (start + values.size)]
        chunk, errors = _encode_chunk(values, bytes_, np.float32(error), rounding)
        sizes[k] = len(chunk)
        out[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
        at += len(chunk)
        total += _sum_of_squares(errors)
    return at, total


def decode(data: np.ndarray, sizes: np.ndarray, error: float, itemsize: int, y: np.ndarray) -> int:
    """Fill `y` (float32) from the chunks in `data`; return the number of kept blocks, which are left zero.

    Returns -1 where a chunk contradicts itself. The `sizes` (uint16) of the chunks have to add up to that of `data`,
    and be as many as `y` has chunks. `itemsize` is that of the elements.
    """
    ends = np.cumsum(sizes.astype(np.int64))
    num_kept = 0
    for k, start in enumerate(range(0, y.size, CHUNK)):
        kept = _decode_chunk(data[ends[k] - sizes[k] : ends[k]], np.float32(error), itemsize, y[start : start + CHUNK])
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


def _num_blocks(num_elements: int) -> int:
    return -(-num_elements // BLOCK)


def _encode_chunk(x: np.ndarray, words: np.ndarray, error: np.float32, rounding: int) -> tuple[bytes, np.ndarray]:
    """Return the chunk, and the errors (float32) of its elements, 0 for those that are kept."""
    itemsize, block_bytes = words.size // x.size, BLOCK * (words.size // x.size)
    x = np.append(x, np.zeros(-x.size % BLOCK, np.float32)).reshape(-1, BLOCK)
    codes, errors = _codes(x, error, rounding)
    kinds = np.where((codes == 0).any(1), _MIXED, _FULL)
    kinds[(codes == 0).all(1)] = _ZERO
    kinds[(errors < 0).any(1)] = _KEPT
    if not kinds.any():
        return b"", errors
    codes[kinds == _KEPT] = 0
    signed = bool((x[kinds != _KEPT] < 0).any())
    rest = np.maximum(codes - 1, 0)
    r = _choose(rest, kinds, int((codes > 0).sum()), itemsize)
    bits: list[np.ndarray] = [np.empty(0, bool)]
    for b in np.flatnonzero((kinds == _MIXED) | (kinds == _FULL)):
        mask = codes[b] > 0
        q = rest[b][mask] >> r
        parts = [mask] * int(kinds[b] == _MIXED) + [x[b][mask] < 0] * signed
        parts += [rest[b][mask] >> plane & 1 == 1 for plane in range(r)]
        parts += [q[q >= j] > j for j in range(q.max() + 1)]
        plain_bytes = words[b * block_bytes : (b + 1) * block_bytes].size
        if q.max() > LARGEST or sum(part.size for part in parts) >= 8 * plain_bytes:
            kinds[b] = _KEPT
        else:
            bits += parts
    errors[kinds == _KEPT] = 0
    kept = [words[b * block_bytes : (b + 1) * block_bytes].tobytes() for b in np.flatnonzero(kinds == _KEPT)]
    fours = np.append(kinds, np.zeros(-kinds.size % 4, np.int64)).reshape(-1, 4) << [0, 2, 4, 6]
    head = bytes([r | _SIGNED * signed, *fours.sum(1).tolist()])
    return head + np.packbits(np.concatenate(bits), bitorder="little").tobytes() + b"".join(kept), errors


def _codes(x: np.ndarray, error: np.float32, rounding: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes (int64) of elements, and their errors (float32): -1 where they cannot be coded."""
    with np.errstate(all="ignore"):
        magnitude = np.abs(x)
        scaled = magnitude * (np.float32(1) / (error + error))
        floor = np.where(scaled < _LIMIT, scaled, _LIMIT).astype(np.int32)
        y = (2 * floor + 1).astype(np.float32) * error
        if rounding != NONE:
            y = y.astype(_ROUNDED[rounding]).astype(np.float32)
        errors = np.abs(y - magnitude)
        good = (errors <= error) & (floor < _LIMIT) & (y > 0)
    zero = magnitude == 0
    errors = np.where(zero, np.float32(0), np.where(good, errors, np.float32(-1)))
    return np.where(zero, 0, floor + 1).astype(np.int64), errors


def _choose(rest: np.ndarray, kinds: np.ndarray, num: int, itemsize: int) -> int:
    """Return r: of five, the first that seems to take the fewest bits for `num` elements.

    The five start four below the mean bit length of the largest ``c - 1`` of each block that is to be coded.
    """
    largest = rest[(kinds == _MIXED) | (kinds == _FULL)].max(1, initial=0)
    mean = sum(int(value).bit_length() for value in largest) // max(largest.size, 1)
    lowest = max(mean - _CHOICES + 1, 0)

    def cost(r: int) -> int:
        num_kept = int((largest >> r > LARGEST).sum())
        return num * (r + 1) + int(np.minimum(rest >> r, LARGEST + 1).sum()) + num_kept * 8 * BLOCK * itemsize

    return min(range(lowest, lowest + _CHOICES), key=cost)


def _sum_of_squares(errors: np.ndarray) -> float:
    """Return the sum of the squares, made in float32 for each place in a block, then in float64."""
    parts = np.zeros(BLOCK, np.float32)
    for row in errors.reshape(-1, BLOCK):
        parts += row * row
    total = 0.0
    for part in parts.tolist():
        total += part
    return total


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


def _decode_chunk(chunk: np.ndarray, error: np.float32, itemsize: int, y: np.ndarray) -> int:
    """Fill `y` and return the number of kept blocks, or -1."""
    y[...] = 0
    if chunk.size == 0:
        return 0
    num_blocks = _num_blocks(y.size)
    head = 1 + -(-num_blocks // 4)
    if chunk.size < head or chunk[0] >= 2 * _SIGNED or chunk[0] % _SIGNED > _LARGEST_SHIFT:
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
        while alive.size:
            if bits.passed or rounds > LARGEST:
                return -1
            alive = alive[bits.take(alive.size)]
            rest[alive] += 1 << r
            rounds += 1
        if bits.passed:
            return -1
        magnitudes = (2 * rest + 1).astype(np.float32) * error
        row = np.zeros(BLOCK, np.float32)
        row[mask] = np.where(negative, -magnitudes, magnitudes)
        part = y[b * BLOCK : (b + 1) * BLOCK]
        part[...] = row[: part.size]
    return len(kept) if head + -(-bits.at // 8) + sum(kept) == chunk.size else -1
