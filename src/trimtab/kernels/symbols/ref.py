"""Unsigned integers as byte symbols, the specification.

With a shift of 0 to `MAX_SHIFT`, the symbol of an integer z is ``z >> shift`` where that is below `ESCAPE`, and
`ESCAPE` where it is not; then z itself is listed, as the signed integer that it was folded from: ``z / 2`` where z is
even, else ``-(z + 1) / 2``. The low `shift` bits of every integer, listed ones among them, stand apart: plane p holds
bits 8 p to 8 p + 7, as far as there are any.
"""

from __future__ import annotations

import numpy as np

ESCAPE = 240
MAX_SHIFT = 24
MAX_SAMPLE = 1024
_LISTED_BITS = 20  # about what a listed integer takes
_ONE = 1 << 16
_LOG2 = np.round(np.log2(np.maximum(np.arange(MAX_SAMPLE + 1), 1)) * _ONE).astype(np.int64)


def num_planes(shift: int) -> int:
    """Return how many planes the low bits take."""
    return -(-shift // 8)


def choose_shift(sample: np.ndarray) -> int:
    """Return the shift that makes the symbols' entropy, the low bits and the list shortest for a sample (uint32).

    The sample has at most `MAX_SAMPLE` integers. The search begins where at most an eighth of them is listed, and ends
    where a longer shift is no gain.
    """
    best, least = MAX_SHIFT, None
    for shift in range(MAX_SHIFT + 1):
        counts = np.bincount(np.minimum(sample >> np.uint32(shift), ESCAPE), minlength=ESCAPE + 1)
        if counts[ESCAPE] * 8 > sample.size:
            continue
        bits = (shift * sample.size + _LISTED_BITS * int(counts[ESCAPE])) * _ONE
        bits += int((counts * (_LOG2[sample.size] - _LOG2[counts])).sum())
        if least is not None and bits >= least:
            break
        best, least = shift, bits
    return best


def split(z: np.ndarray, shift: int, symbols: np.ndarray, low: np.ndarray, listed: np.ndarray) -> tuple[int, int]:
    """Fill `symbols` (uint8[n]) and `low` (uint8[planes, n]) from `z` (uint32[n]), and list what is large.

    Returns how many integers were listed in `listed` (int32, room for n), and how many symbols are zero.
    """
    symbols[:] = np.minimum(z >> np.uint32(shift), ESCAPE)
    for p in range(num_planes(shift)):
        low[p] = (z & ((1 << shift) - 1)) >> 8 * p & 255
    large = z[symbols == ESCAPE]
    listed[: large.size] = (large >> 1).view(np.int32) ^ -(large & 1).view(np.int32)
    return large.size, int((symbols == 0).sum())


def merge(symbols: np.ndarray, low: np.ndarray, listed: np.ndarray, shift: int, z: np.ndarray) -> int:
    """Fill `z` (uint32[n]) from what `split` made of it; return 0, or -1 if the list is not as long as it should be."""
    large = symbols == ESCAPE
    if (symbols.size and symbols.max() > ESCAPE) or large.sum() != listed.size:
        return -1
    z[:] = symbols.astype(np.uint32) << np.uint32(shift)
    for p in range(num_planes(shift)):
        z |= low[p].astype(np.uint32) << np.uint32(8 * p)
    z[large] = ((listed << 1) ^ (listed >> 31)).view(np.uint32)
    return 0
