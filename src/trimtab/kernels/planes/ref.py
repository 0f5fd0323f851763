"""Elements taken apart into byte planes, the specification.

Plane k holds byte k of every element, from the least significant byte up. With `signed_float` the top nine bits of an
element are first rotated left by one place: the sign drops from the top of the last byte to the top of the one before,
so that the last plane of a bfloat16, float32 or float64 holds eight bits of its exponent and nothing else.
"""

from __future__ import annotations

import numpy as np


def split(words: np.ndarray, signed_float: bool, planes: np.ndarray) -> None:
    """Write the planes of `words` (uint16, uint32 or uint64) one after another into `planes` (uint8)."""
    bits = 8 * words.itemsize
    values = words.astype(np.uint64)
    if signed_float:
        values = _rotate(values, bits - 9, 1)
    for k in range(words.itemsize):
        planes[k * words.size : (k + 1) * words.size] = values >> np.uint64(8 * k) & np.uint64(255)


def merge(planes: np.ndarray, signed_float: bool, words: np.ndarray) -> None:
    """Fill `words` (uint16, uint32 or uint64) from its planes: the inverse of `split`."""
    bits = 8 * words.itemsize
    values = np.zeros(words.size, np.uint64)
    for k in range(words.itemsize):
        values |= planes[k * words.size : (k + 1) * words.size].astype(np.uint64) << np.uint64(8 * k)
    words[...] = _rotate(values, bits - 9, 8) if signed_float else values


def _rotate(values: np.ndarray, low: int, places: int) -> np.ndarray:
    """Rotate the nine bits from bit `low` up to the left."""
    field = values >> np.uint64(low) & np.uint64(511)
    field = (field << np.uint64(places) | field >> np.uint64(9 - places)) & np.uint64(511)
    return values & ~np.uint64(511 << low) | field << np.uint64(low)
