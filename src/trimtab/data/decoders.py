"""Decoders of the chunks of HDF5 and Zarr: stored bytes in, chunks out, in the thread that read them.

None of them makes more bytes than it is told to expect, whatever the stored bytes claim.
"""

from __future__ import annotations

import importlib
import importlib.util
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import zstandard

from trimtab import kernels
from trimtab.errors import Corrupt, Truncated
from trimtab.kernels.threads import threads

Step = Callable[[memoryview, int], Any]
"""(bytes, how many they were before at most) -> the bytes before; a step that knows better raises Corrupt."""

_HDF5_NAMES = {4: "szip", 5: "nbit", 6: "scaleoffset", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32017: "sz",
               32024: "sz3", 32026: "blosc2"}  # fmt: skip
_OVERHEAD = 1 << 12  # bytes that a filter may add, beside an eighth


def hdf5_decoder(filters: Sequence[tuple[int, tuple[int, ...]]], num_bytes: int, itemsize: int) -> Any:
    """Return the decoder of HDF5 chunks of `num_bytes`, or words for the filter that is not known here.

    `filters` are those that made the chunk, in order: number, and its settings.
    """
    steps: list[tuple[Step, int]] = []
    size, exact = num_bytes, True
    for number, settings in filters:
        step, added = _hdf5_step(number, settings, itemsize)
        if step is None:
            return f"filter {_HDF5_NAMES.get(number, number)} is not known"
        steps.append((step, size))
        exact = exact and added is not None
        size = size + added if added is not None else size + size // 8 + _OVERHEAD
    return partial(_undo, steps)


def _undo(steps: list[tuple[Step, int]], data: memoryview, mask: int) -> memoryview:
    for k in range(len(steps) - 1, -1, -1):
        if not mask >> k & 1:
            step, size = steps[k]
            data = memoryview(step(data, size)).cast("B")
    return data


def _hdf5_step(number: int, settings: tuple[int, ...], itemsize: int) -> tuple[Step | None, int | None]:
    """Return a step, and the bytes that its filter adds; None where that depends on the values."""
    if number == 2:
        return partial(unshuffle, settings[0] if settings else itemsize), 0
    if number == 3:
        return fletcher32, 4
    plain = {1: inflate, 32000: lzf, 32015: unzstd, 32001: unblosc if _has("numcodecs") else None}
    return plain.get(number), None


def zarr_decoder(codecs: Sequence[dict[str, Any]], num_bytes: int) -> Any:
    """Return the decoder of Zarr chunks of `num_bytes`, or words for what is not known here; None: nothing to decode.

    `codecs` are dicts of ``name`` and ``configuration``, as in ``zarr.json``, in the order of encoding; of those for
    arrays, ``bytes`` and trimtab's own are known.
    """
    steps: list[tuple[Step, int]] = []
    size = num_bytes
    for codec in codecs:
        name = codec["name"].removeprefix("numcodecs.")
        if name == "bytes":
            continue
        if name in ("trimtab.enec", "trimtab.sz", "trimtab.raw"):
            steps.append((partial(unpack, num_bytes), size))
        elif name in _ZARR_STEPS and (name != "blosc" or _has("numcodecs")):
            steps.append((_ZARR_STEPS[name], size))
        elif name == "crc32c" and _has("google_crc32c"):
            steps.append((crc32c, size))
            size += 4
            continue
        else:
            return f"codec {name} is not known"
        size += size // 8 + _OVERHEAD
    return partial(_undo, steps) if steps else None


def inflate(data: memoryview, most: int, *, bits: int = zlib.MAX_WBITS) -> bytes:
    """Undo deflate with the header of zlib.

    Raises:
        Corrupt: the bytes are damaged, or hold more than `most`.
        Truncated: they end too early.
    """
    stream = zlib.decompressobj(bits)
    try:
        found = stream.decompress(data, most)
        if not stream.eof and stream.decompress(stream.unconsumed_tail, 1):
            raise Corrupt(f"the deflated bytes hold more than the {most} that were expected")
    except zlib.error as error:
        raise Corrupt(f"the deflated bytes are damaged: {error}") from None
    if not stream.eof:
        raise Truncated("the deflated bytes end too early")
    return found


def gunzip(data: memoryview, most: int) -> bytes:
    """Undo gzip; errors as in `inflate`."""
    return inflate(data, most, bits=16 + zlib.MAX_WBITS)


def unzstd(data: memoryview, most: int) -> bytes:
    """Undo Zstandard.

    Raises:
        Corrupt: the bytes are damaged, or hold more than `most`.
    """
    try:
        # the size is compared first: the library would allocate what the frame claims
        claimed = zstandard.frame_content_size(data)
        if claimed > most:
            raise Corrupt(f"the zstd frame claims {claimed} bytes; at most {most} were expected")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=most)
    except zstandard.ZstdError as error:
        raise Corrupt(f"the zstd frame is damaged: {error}") from None


def unblosc(data: memoryview, most: int) -> bytes:
    """Undo Blosc 1.

    Raises:
        Corrupt: the bytes are damaged, or hold more than `most`.
    """
    head = np.frombuffer(data[4:16], "<u4") if len(data) >= 16 else np.zeros(3, "<u4")
    if len(data) < 16 or head[0] > most or head[2] != len(data):
        raise Corrupt(f"the blosc frame claims {head[0]} bytes in {head[2]}; expected at most {most} in {len(data)}")
    try:
        return importlib.import_module("numcodecs.blosc").decompress(bytes(data))
    except RuntimeError as error:
        raise Corrupt(f"the blosc frame is damaged: {error}") from None


def lzf(data: memoryview, most: int) -> np.ndarray:
    """Undo LZF, h5py's own filter.

    Raises:
        Corrupt: the bytes are damaged, or hold more than `most`.
    """
    found = np.empty(most, np.uint8)
    size = kernels.load("lzf").decode(np.frombuffer(data, np.uint8), found)
    if size < 0:
        raise Corrupt(f"the LZF stream is damaged, or holds more than {most} bytes")
    return found[:size]


def unshuffle(itemsize: int, data: memoryview, _most: int) -> Any:
    """Put the bytes of elements together again, which HDF5 stores by their places in the element."""
    planes = np.frombuffer(data, np.uint8)
    num = len(planes) // itemsize if itemsize else 0
    if itemsize < 2 or num < 2:
        return data
    found = np.empty(len(planes), np.uint8)
    body = num * itemsize
    if itemsize in (2, 4, 8):
        kernels.load("planes").merge(planes[:body], False, found[:body].view(f"u{itemsize}"))
    else:
        found[:body].reshape(num, itemsize)[:] = planes[:body].reshape(itemsize, num).T
    found[body:] = planes[body:]
    return found


def fletcher32(data: memoryview, _most: int) -> memoryview:
    """Check and remove HDF5's checksum; raises as `_checked` does."""
    return _checked(data, lambda body: int(kernels.load("fletcher").checksum(np.frombuffer(body, np.uint8))))


def crc32c(data: memoryview, _most: int) -> memoryview:
    """Check and remove Zarr's checksum; raises as `_checked` does."""
    return _checked(data, lambda body: importlib.import_module("google_crc32c").value(bytes(body)))


def _checked(data: memoryview, checksum: Callable[[memoryview], int]) -> memoryview:
    """Return the data without the checksum of four bytes behind it.

    Raises:
        Truncated: there is none.
        Corrupt: it does not match.
    """
    if len(data) < 4:
        raise Truncated(f"the chunk has {len(data)} bytes, fewer than its checksum")
    body, stored = data[:-4], int.from_bytes(data[-4:], "little")
    found = checksum(body)
    if found != stored:
        raise Corrupt(f"the checksum is {found:08x}, and {stored:08x} is stored")
    return body


def unpack(num_bytes: int, data: memoryview, _most: int) -> Any:
    """Undo a codec of trimtab.

    Raises:
        FormatError: the bytes are damaged, or do not hold `num_bytes`.
    """
    from trimtab.files import Reader
    from trimtab.store import decompress

    reader = Reader(data)
    if sum(reader.header(name).num_bytes for name in reader) != num_bytes or len(reader) != 1:
        raise Corrupt(f"a packed chunk must hold one array of {num_bytes} bytes")
    with threads(1):
        return np.ascontiguousarray(decompress(data)).reshape(-1).view(np.uint8)


_ZARR_STEPS: dict[str, Step] = {"gzip": gunzip, "zlib": inflate, "zstd": unzstd, "blosc": unblosc}


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
