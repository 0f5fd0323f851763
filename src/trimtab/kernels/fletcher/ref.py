"""Fletcher's checksum of 32 bits, as HDF5's filter 3 makes it, the specification.

The bytes are words of 16 bits, the first byte of each the higher; a single last byte is the higher one of a word. With
words w_0 ... w_(n-1), the sums are ``a = w_0 + ... + w_(n-1)`` and ``b = n w_0 + (n - 1) w_1 + ... + w_(n-1)``. The
checksum is ``b' << 16 | a'``, where the prime is the remainder of a division by 65,535, but 65,535 in place of 0 unless
the sum itself is 0.
"""

from __future__ import annotations

import numpy as np


def checksum(data: np.ndarray) -> int:
    """Return the checksum of `data` (uint8)."""
    words = np.append(data, np.zeros(len(data) % 2, np.uint8)).view(">u2").astype(object)
    a = int(sum(words))
    b = int(sum(words * np.arange(len(words), 0, -1).astype(object)))
    return _rest(b) << 16 | _rest(a)


def _rest(total: int) -> int:
    return (total - 1) % 65_535 + 1 if total else 0
