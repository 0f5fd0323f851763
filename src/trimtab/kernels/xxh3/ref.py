"""XXH3-64 digests of pieces of equal size, of which an entry's checksum is made: those of the xxhash library."""

from __future__ import annotations

import numpy as np
import xxhash


def digests(pieces: np.ndarray) -> list[int]:
    """Return the XXH3-64 digest (no seed) of each row of `pieces` (uint8[n, size])."""
    return [xxhash.xxh3_64_intdigest(np.ascontiguousarray(piece)) for piece in pieces]
