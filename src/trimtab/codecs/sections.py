"""Sections of a payload: zstd frames that state how much they hold."""

from __future__ import annotations

import numpy as np
import zstandard

from trimtab.errors import Corrupt


def deflate(section: np.ndarray) -> bytes:
    """Return the section as a zstd frame; nothing where it is empty."""
    return zstandard.ZstdCompressor(level=3).compress(section.tobytes()) if section.size else b""


def inflate(section: np.ndarray, dtype: np.dtype | str, count: int) -> np.ndarray:
    """Return the `count` elements in a compressed section.

    Raises:
        Corrupt: it holds something else.
    """
    dtype = np.dtype(dtype)
    data = section.tobytes()
    try:
        # the size is compared first: the library would allocate what the frame claims
        if (zstandard.frame_content_size(data) if data else 0) != count * dtype.itemsize:
            raise Corrupt(f"a tile's section does not hold {count} elements of {dtype}")
        data = zstandard.ZstdDecompressor().decompress(data) if data else data
    except zstandard.ZstdError as error:
        raise Corrupt(f"a tile's section does not decompress: {error}") from None
    return np.frombuffer(data, dtype)
