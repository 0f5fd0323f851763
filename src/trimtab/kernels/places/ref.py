"""Indices into windows as places, packed: the specification.

Row r of `indices` has one index for each window: ``indices[r, j] = first[j] + offsets[place]``, where `first[j]` is
where window j begins and `offsets` are the same in all windows. A place takes 1, 2, 4 or 8 bits, the fewest that do. A
row begins with a new byte; places fill it from its lowest bits on, and bits that are left are clear.
"""

from __future__ import annotations

import numpy as np

MOST = 256
"""Places in a window."""


def bits_of(num_places: int) -> int:
    """Return the bits of a place."""
    return next(bits for bits in (1, 2, 4, 8) if num_places <= 1 << bits)


def row_bytes(num: int, bits: int) -> int:
    """Return the bytes of a row of so many places."""
    return -(-num * bits // 8)


def encode(indices: np.ndarray, first: np.ndarray, offsets: np.ndarray, bits: int, out: np.ndarray) -> bool:
    """Fill `out` (uint8[rows, `row_bytes`]) from `indices` (int64[rows, windows]); return whether all have a place.

    `first` (int64[windows]) and `offsets` (int64, at most `MOST`, each within int32) are as above. Of places with the
    same offset the last is taken.
    """
    match = (indices - first)[..., None] == offsets
    places = offsets.size - 1 - np.argmax(match[..., ::-1], axis=-1)
    planes = (places[..., None] >> np.arange(bits) & 1).astype(np.uint8)
    out[...] = np.packbits(planes.reshape(len(indices), -1), axis=1, bitorder="little")
    return bool(match.any(-1).all())


def decode(packed: np.ndarray, first: np.ndarray, offsets: np.ndarray, bits: int, indices: np.ndarray) -> None:
    """Fill `indices` from what `encode` made."""
    planes = np.unpackbits(packed, axis=1, count=first.size * bits, bitorder="little")
    places = (planes.reshape(*indices.shape, bits).astype(np.int64) << np.arange(bits)).sum(-1)
    indices[...] = first + offsets[places]
