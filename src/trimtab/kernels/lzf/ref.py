"""LZF streams (Marc Lehmann's format, which h5py's filter 32000 uses), the specification.

A stream is a row of items. The first byte of an item is its control byte c:

- c < 32: the next c + 1 bytes are literal.
- else a copy of bytes that stand further back in the output. Its length is ``(c >> 5) + 2``, but where c >> 5 is 7, one
  more byte is added to that. Another byte follows, b: the copy begins ``((c & 31) << 8 | b) + 1`` bytes back. It may
  overlap what it makes.
"""

from __future__ import annotations

import numpy as np


def decode(data: np.ndarray, found: np.ndarray) -> int:
    """Write what the stream `data` (uint8) holds to `found` (uint8) and return its size.

    Returns -1 where the stream ends inside an item, refers to what lies before the output, or holds more than fits.
    """
    at = size = 0
    while at < len(data):
        control = int(data[at])
        at += 1
        if control < 32:
            length = control + 1
            if at + length > len(data) or size + length > len(found):
                return -1
            found[size : size + length] = data[at : at + length]
            at += length
        else:
            length = (control >> 5) + 2
            if length == 9:
                if at >= len(data):
                    return -1
                length += int(data[at])
                at += 1
            if at >= len(data):
                return -1
            start = size - ((control & 31) << 8) - int(data[at]) - 1
            at += 1
            if start < 0 or size + length > len(found):
                return -1
            for k in range(length):
                found[size + k] = found[start + k]
        size += length
    return size
