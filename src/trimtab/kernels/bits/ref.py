"""One bit an element, for the masks that a ReLU's backward pass needs: the specification.

Bit i % 8 of byte i // 8, from the lowest on, is that of element i; bits behind the last element are clear. Integers of
a few bits, such as positions inside a pooling window, are packed by `trimtab.kernels.halving`.
"""

from __future__ import annotations

import numpy as np


def mask_bytes(num_elements: int) -> int:
    """Return the bytes of the mask of so many elements."""
    return -(-num_elements // 8)


def mask(words: np.ndarray, infinity: int, out: np.ndarray) -> None:
    """Set in `out` (uint8, `mask_bytes`) the bits of the elements that are not <= 0: positive ones, and NaN.

    `words` (int32 or int16) are the bits of floats, and `infinity` are those of the positive infinity among them.
    """
    magnitudes = words & np.iinfo(words.dtype).max
    out[...] = np.packbits((words > 0) | (magnitudes > infinity), bitorder="little")


def unmask(mask: np.ndarray, one: int, words: np.ndarray) -> None:
    """Fill `words` (int32 or int16): `one` where a bit of `mask` is set, else 0."""
    bits = np.unpackbits(mask, count=words.size, bitorder="little")
    words[...] = np.where(bits == 1, words.dtype.type(one), words.dtype.type(0))
