"""Floats split into their leading bits, as symbols for an entropy coder, and the trailing ones: the specification.

The exponent of a trained weight is far from random, and so are the first bits of its mantissa: within a binade small
magnitudes are more frequent than large ones. An element of 16 bits with `low` = 5 or 7 trailing bits, or of 32 bits
with 21, splits into

- its top, ``magnitude >> low``: exponent and first mantissa bits. The symbol is ``top - base`` where that is 0 to
  ``span - 1``, 122 for a top of zero, and else 123, an escape; the tops of escapes form a list of uint16.
- its rest, ``sign << low | magnitude mod 2**low``, of `low` + 1 bits, a multiple of 8 or 6 more. Byte k of all
  rests forms plane k. Six bits that are left over stand last, in blocks of 4096 elements: with q = ceil(n / 4) for the
  n elements of a block, bytes i, q + i and 2 q + i hold the six bits of elements i, q + i and 2 q + i, and above them
  bits 0 and 1, 2 and 3, 4 and 5 of element 3 q + i. Elements beyond the last one have bits 0.
"""

from __future__ import annotations

import numpy as np

BLOCK = 4096
RUN = 64
MAX_SPAN = 122
ZERO, ESCAPE = 122, 123
WORTH = 21845  # a code of 11 bits takes more from the others than escapes cost that are rarer than one in so many


def rest_bytes(num_elements: int, low: int) -> int:
    """Return how many bytes the rests of `num_elements` elements take."""
    whole, rest = divmod(num_elements, BLOCK)
    sixes = 3 * (whole * (BLOCK // 4) + -(-rest // 4)) if (low + 1) % 8 else 0
    return (low + 1) // 8 * num_elements + sixes


def survey(words: np.ndarray, low: int, step: int) -> tuple[int, int]:
    """Return the best (base, span) for `words` (uint16 or uint32), by runs of 64 elements, one every `step` elements.

    The tops from base on, `span` of them, are those that are not rare. Span is 0 where six bits left over of the rests
    are not close to random, so that storing them plainly is a waste.
    """
    sample = words[np.arange(words.size) % max(step, RUN) < RUN].astype(np.uint64)
    if (low + 1) % 8:
        sixes = np.bincount(_rests(sample, words, low) >> np.uint64((low + 1) // 8 * 8), minlength=64).astype(np.int64)
        if 256 * int((sixes * sixes).sum()) > 5 * sample.size * sample.size + 256 * sample.size:
            return 1, 0
    tops = np.bincount((sample & _magnitude(words)) >> np.uint64(low), minlength=1024)
    tops[0] = 0
    frequent = np.flatnonzero(tops * WORTH > sample.size)
    if not frequent.size:
        return 1, 1
    first, last = int(frequent[0]), int(frequent[-1])
    if last - first < MAX_SPAN:
        return first, last - first + 1
    inside = [int(tops[base : base + MAX_SPAN].sum()) for base in range(1, 1024 - MAX_SPAN + 1)]
    return 1 + inside.index(max(inside)), MAX_SPAN


def split(
    words: np.ndarray, low: int, base: int, span: int, symbols: np.ndarray, rests: np.ndarray, escaped: np.ndarray
) -> int:
    """Split `words` (uint16 or uint32) into `symbols` (uint8) and `rests` (uint8); return the number of escapes.

    Their tops go to the start of `escaped` (uint16, as long as `words`).
    """
    values = words.astype(np.uint64)
    tops = ((values & _magnitude(words)) >> np.uint64(low)).astype(np.int64)
    inside = (tops >= base) & (tops < base + span)
    symbols[...] = np.where(tops == 0, ZERO, np.where(inside, tops - base, ESCAPE))
    outside = tops[symbols == ESCAPE]
    escaped[: outside.size] = outside
    rest = _rests(values, words, low)
    num_planes = (low + 1) // 8
    for k in range(num_planes):
        rests[k * words.size : (k + 1) * words.size] = rest >> np.uint64(8 * k) & np.uint64(255)
    at = num_planes * words.size
    for start in range(0, words.size if (low + 1) % 8 else 0, BLOCK):
        six = (rest[start : start + BLOCK] >> np.uint64(8 * num_planes)).astype(np.uint8)
        a, b, c, d = np.pad(six, (0, -six.size % 4)).reshape(4, -1)
        packed = np.concatenate([a | (d & 3) << 6, b | (d >> 2 & 3) << 6, c | (d >> 4) << 6])
        rests[at : at + packed.size] = packed
        at += packed.size
    return outside.size


def merge(symbols: np.ndarray, rests: np.ndarray, escaped: np.ndarray, low: int, base: int, words: np.ndarray) -> int:
    """Fill `words` from what `split` made of them; return -1 if `escaped` (uint16) has more or fewer tops than needed.

    `base` is below 1024. Tops too large for a word lose their high bits.
    """
    if np.count_nonzero(symbols == ESCAPE) != escaped.size:
        return -1
    tops = symbols.astype(np.uint64) + np.uint64(base)
    tops[symbols == ZERO] = 0
    tops[symbols == ESCAPE] = escaped
    num_planes = (low + 1) // 8
    rest = np.zeros(words.size, np.uint64)
    for k in range(num_planes):
        rest |= rests[k * words.size : (k + 1) * words.size].astype(np.uint64) << np.uint64(8 * k)
    at = num_planes * words.size
    for start in range(0, words.size if (low + 1) % 8 else 0, BLOCK):
        num = min(BLOCK, words.size - start)
        quarter = -(-num // 4)
        a, b, c = rests[at : at + 3 * quarter].reshape(3, -1)
        six = np.concatenate([a & 63, b & 63, c & 63, a >> 6 | b >> 6 << 2 | c >> 6 << 4])
        rest[start : start + num] |= six[:num].astype(np.uint64) << np.uint64(8 * num_planes)
        at += 3 * quarter
    sign = rest >> np.uint64(low) << np.uint64(8 * words.itemsize - 1)
    words[...] = sign | (tops << np.uint64(low)) & _magnitude(words) | rest & np.uint64((1 << low) - 1)
    return 0


def _magnitude(words: np.ndarray) -> np.uint64:
    return np.uint64((1 << (8 * words.itemsize - 1)) - 1)


def _rests(values: np.ndarray, words: np.ndarray, low: int) -> np.ndarray:
    """Return sign and trailing bits of elements, widened to uint64, of words like these."""
    sign = values >> np.uint64(8 * words.itemsize - 1)
    return sign << np.uint64(low) | values & np.uint64((1 << low) - 1)
