"""The byte-plane layout of ENEC: every plane raw or Huffman coded, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.dtypes import FLOATS, numpy_dtype
from trimtab.errors import Corrupt
from trimtab.packed import Packed

CHUNK = 1 << 18
"""Elements that are coded on their own."""

_CHUNKS_A_THREAD = 4
_SAMPLE = 1 << 14  # bytes of a plane to look at before all of them are counted
_TRIED = 1 << 12  # bytes of a plane up to which coding it takes no longer than the estimate
_WORTH = 0.97  # a plane is coded where its entropy is below this part of its size


class PlaneParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="layout", tag="planes"
):
    """Marks the layout; the dtype in the header says the rest."""


def encode_planes(x: np.ndarray) -> tuple[PlaneParams, dict[str, np.ndarray]]:
    """Encode flat contiguous elements of any dtype, at least one."""
    huffman = kernels.load("huffman")
    words, signed_float = _words(x)
    num_planes = words.itemsize
    num_chunks = -(-words.size // CHUNK)
    table = np.empty((num_chunks, num_planes), "<u4")
    room = num_planes * CHUNK
    stream = np.empty(table.nbytes + words.nbytes, np.uint8)  # no block is larger than its plane

    def encode_chunks(group: int) -> None:
        for i in range(group * _CHUNKS_A_THREAD, min((group + 1) * _CHUNKS_A_THREAD, num_chunks)):
            chunk = words[i * CHUNK : (i + 1) * CHUNK]
            planes = chunk if num_planes == 1 else np.empty(chunk.nbytes, np.uint8)
            if num_planes > 1:
                kernels.load("planes").split(chunk, signed_float, planes)
            blocks = np.empty(num_planes * huffman.max_block_size(chunk.size), np.uint8)
            used = 0
            for k in range(num_planes):
                plane = planes[k * chunk.size : (k + 1) * chunk.size]
                size = _encode_plane(huffman, plane, blocks[used:])
                table[i, k] = size
                used += size
            stream[table.nbytes + i * room :][:used] = blocks[:used]

    kernels.for_each(encode_chunks, -(-num_chunks // _CHUNKS_A_THREAD))
    stream[: table.nbytes] = table.view(np.uint8).reshape(-1)
    end = table.nbytes
    for i, size in enumerate(table.sum(axis=1).tolist()):  # moved together in place: a list of pieces would be a copy
        start = table.nbytes + i * room
        stream[end : end + size] = stream[start : start + size]
        end += size
    stream.resize(end, refcheck=False)
    return PlaneParams(), {"planes": stream}


def planes_decoder(packed: Packed) -> Callable[[np.ndarray], None]:
    """Check the buffer against the shape, and return what decodes it into flat contiguous elements.

    Raises:
        Corrupt: the buffer has the wrong size, or a block is not a Huffman block of its plane.
    """
    huffman = kernels.load("huffman")
    num_planes = _words(np.empty(0, numpy_dtype(packed.header.dtype)))[0].itemsize
    num_chunks = -(-packed.header.num_bytes // num_planes // CHUNK)
    data = packed.buffer("planes")
    table_end = 4 * num_chunks * num_planes
    if data.size < table_end:
        raise Corrupt(f"buffer 'planes' holds {data.size} bytes; its table alone takes {table_end}")
    sizes = np.frombuffer(data[:table_end].tobytes(), "<u4").astype(np.int64)
    bounds = [table_end, *(table_end + np.cumsum(sizes)).tolist()]
    if bounds[-1] != data.size:
        raise Corrupt(f"the blocks of buffer 'planes' end at byte {bounds[-1]} of {data.size}")

    def decode(y: np.ndarray) -> None:
        words, signed_float = _words(y)

        def decode_chunks(group: int) -> None:
            for i in range(group * _CHUNKS_A_THREAD, min((group + 1) * _CHUNKS_A_THREAD, num_chunks)):
                chunk = words[i * CHUNK : (i + 1) * CHUNK]
                planes = chunk if num_planes == 1 else np.empty(chunk.nbytes, np.uint8)
                for k in range(num_planes):
                    plane = planes[k * chunk.size : (k + 1) * chunk.size]
                    block = data[bounds[i * num_planes + k] : bounds[i * num_planes + k + 1]]
                    if block.size == plane.size:
                        plane[...] = block
                    elif block.size > plane.size or huffman.decode_block(block, plane) != 0:
                        raise Corrupt(f"plane {k} of chunk {i} is not a Huffman block of {plane.size} bytes")
                if num_planes > 1:
                    kernels.load("planes").merge(planes, signed_float, chunk)

        kernels.for_each(decode_chunks, -(-num_chunks // _CHUNKS_A_THREAD))

    return decode


def _encode_plane(huffman: ModuleType, plane: np.ndarray, block: np.ndarray) -> int:
    """Write a plane into `block`, coded if that is smaller, else as it is; return the size, which tells which."""
    counts = np.empty(256, np.int64)
    if plane.size > 2 * _SAMPLE:
        step = plane.size // _SAMPLE | 1  # odd, so that the sample does not hit the same columns of a matrix only
        huffman.histogram(np.ascontiguousarray(plane[::step]), counts)
        if _entropy(counts) > 8 * _WORTH:
            block[: plane.size] = plane
            return plane.size
    huffman.histogram(plane, counts)
    size = plane.size
    if size <= _TRIED or _entropy(counts) <= 8 * _WORTH:
        size = huffman.encode_block(plane, counts, block)
    if size >= plane.size:
        size = plane.size
        block[:size] = plane
    return size


def _entropy(counts: np.ndarray) -> float:
    """Return the entropy in bits a symbol."""
    seen = counts[counts > 0]
    total = int(seen.sum())
    return float(np.log2(total) - np.dot(seen, np.log2(seen)) / total)


def _words(x: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the elements as unsigned words, and whether they are floats with the sign on top of nine bits."""
    if x.dtype.kind == "c":
        x = x.view(f"<f{x.itemsize // 2}")
    signed_float = x.dtype.name in FLOATS
    return x.view(np.uint8 if x.itemsize == 1 else f"<u{x.itemsize}"), signed_float
