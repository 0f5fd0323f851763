"""Put large `bytes` together without a page fault for every 4 KiB, which would take longer than the packing."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence

import numpy as np

_LARGE = 1 << 22  # bytes; NumPy asks for huge pages from the same size on
_HUGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)


def join(parts: Sequence[bytes | memoryview]) -> bytes:
    """Return the parts (contiguous bytes) one after another.

    From 4 MiB on, Linux is asked for huge pages under the result, as NumPy does for its arrays. The result is made by
    ``PyBytes_FromStringAndSize(NULL, size)``, which CPython documents as a `bytes` to be filled before it is shared.
    """
    size = sum(len(part) for part in parts)
    if size < _LARGE or _HUGE_PAGES is None or sys.implementation.name != "cpython":
        return b"".join(parts)
    # functions of our own: types set on those of `ctypes.pythonapi` would hold for the whole process
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)
    locate = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)
    joined = make(("PyBytes_FromStringAndSize", ctypes.pythonapi))(None, size)
    address = locate(("PyBytes_AsString", ctypes.pythonapi))(joined)
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _HUGE_PAGES)
    for part in parts:
        ctypes.memmove(address, np.frombuffer(part, np.uint8).ctypes.data, len(part))
        address += len(part)
    return joined
