"""The byte-plane layouts of ENEC: elements split into planes, every plane stored plainly or coded, chunk by chunk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Annotated

import msgspec
import numpy as np
import zstandard

from trimtab import kernels
from trimtab.codecs.enec_escape import sampling_step
from trimtab.codecs.stream import Stream
from trimtab.dtypes import FLOATS, numpy_dtype
from trimtab.errors import Corrupt
from trimtab.packed import Packed

CHUNK = 1 << 18
"""Elements that are coded on their own."""

_CHUNKS_A_THREAD = 4
_SAMPLE = 1 << 14  # bytes of a plane to look at before all of them are counted
_TRIED = 1 << 12  # bytes of a plane up to which coding it takes no longer than the estimate
_WORTH = {False: 0.97, True: 0.995}  # a plane is coded where its entropy is below this part of its size
_PLAIN, _ANS, _ZSTD = 0, 1 << 30, 2 << 30  # how a plane is coded, in the table beside its size
_CODING, _SIZE = 3 << 30, (1 << 30) - 1
_ZSTD_LEVEL = 9
_ZSTD_WORTH = 0.9  # zstd, slow beside Huffman coding, is taken where it makes a sample smaller than this part
_LOW = {"bfloat16": 5, "float16": 7, "float32": 21}  # trailing bits of the magnitude, which are next to random


class _Scratch(threading.local):
    """Memory that a thread keeps for its next call: fresh memory costs a page fault for every 4 KiB."""

    _data = np.empty(0, np.uint8)

    def take(self, size: int) -> np.ndarray:
        """Return `size` bytes, aligned; the next call returns the same ones."""
        if self._data.size < size:
            self._data = np.empty(size, np.uint8)
        return self._data[:size]


_SCRATCH = _Scratch()


class PlaneParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="layout", tag="planes"
):
    """Marks the layout; the dtype in the header says the rest."""


class LeadingParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="layout", tag="leading"
):
    """What the decoder needs beside the buffer; see `trimtab.codecs.enec` for the meaning."""

    base: Annotated[int, msgspec.Meta(ge=1, lt=1024)]
    span: Annotated[int, msgspec.Meta(ge=1, le=122)]


class _Bytes:
    """Splits elements into their bytes."""

    has_symbols = False

    def __init__(self, dtype: np.dtype) -> None:
        self.num_planes = _words(np.empty(0, dtype)).itemsize
        self.signed_float = _is_float(dtype)

    def tail_bytes(self, num_elements: int) -> int:
        """Return how many bytes stand after the planes at least."""
        return 0

    def split(self, chunk: np.ndarray, room: np.ndarray, tops: np.ndarray) -> int:
        """Write the planes and the tail of a chunk into `room`; return the size of the tail.

        `tops` (uint16, as long as the chunk) is scratch memory.
        """
        if self.num_planes == 1:
            room[: chunk.size] = chunk
        else:
            kernels.load("planes").split(chunk, self.signed_float, room)
        return 0

    def merge(self, room: np.ndarray, others: np.ndarray, chunk: np.ndarray) -> bool:
        """Fill a chunk from the planes and the tail in `room`; return whether they fit together."""
        if self.num_planes == 1:
            chunk[...] = room
        else:
            kernels.load("planes").merge(room, self.signed_float, chunk)
        return True


class _Leading:
    """Splits floats into symbols for their leading bits, whole bytes of their trailing ones, and a tail.

    The tail is the six bits left over of each element, if any, and the tops of the escapes.
    """

    has_symbols = True

    def __init__(self, dtype: np.dtype, params: LeadingParams) -> None:
        self.low, self.params, self._kernels = _LOW[dtype.name], params, kernels.load("leading")
        self.num_planes = 1 + (self.low + 1) // 8

    def tail_bytes(self, num_elements: int) -> int:
        """Return how many bytes stand after the planes at least."""
        return self._kernels.rest_bytes(num_elements, self.low) - (self.num_planes - 1) * num_elements

    def split(self, chunk: np.ndarray, room: np.ndarray, tops: np.ndarray) -> int:
        """Write the planes and the tail of a chunk into `room`; return the size of the tail.

        `tops` (uint16, as long as the chunk) is scratch memory.
        """
        leading = self._kernels
        end = chunk.size + leading.rest_bytes(chunk.size, self.low)
        base, span = self.params.base, self.params.span
        count = leading.split(chunk, self.low, base, span, room[: chunk.size], room[chunk.size : end], tops)
        room[end : end + 2 * count] = tops[:count].view(np.uint8)
        return end + 2 * count - self.num_planes * chunk.size

    def merge(self, room: np.ndarray, others: np.ndarray, chunk: np.ndarray) -> bool:
        """Fill a chunk from the symbols in `room` and the `others`, planes and tail; return whether they fit."""
        leading = self._kernels
        end = leading.rest_bytes(chunk.size, self.low)
        if (others.size - end) % 2:
            return False
        tops = others[end:].copy().view("<u2")
        return leading.merge(room[: chunk.size], others[:end], tops, self.low, self.params.base, chunk) == 0


def encode_leading(x: np.ndarray, thorough: bool) -> tuple[LeadingParams, dict[str, np.ndarray]] | None:
    """Encode flat contiguous elements by their leading bits; None where this does not suit them.

    It suits trained weights of 2 or 4 bytes: the trailing bits are next to random. `thorough` as in `encode_planes`.
    """
    if x.dtype.name not in _LOW:
        return None
    words = _words(x)
    base, span = kernels.load("leading").survey(words, _LOW[x.dtype.name], sampling_step(words.size))
    if span == 0:
        return None
    params = LeadingParams(base=base, span=span)
    # of bfloat16, symbols are a large part: the slower code would halve the speed to gain half a percent
    with_ans = thorough and x.dtype.name != "bfloat16"
    return params, {"planes": _encode(words, _Leading(x.dtype, params), thorough, with_ans=with_ans)}


def encode_planes(x: np.ndarray, thorough: bool) -> tuple[PlaneParams, dict[str, np.ndarray]]:
    """Encode flat contiguous elements of any dtype, at least one, byte by byte.

    `thorough` packs planes with zstd where that is smaller than Huffman coding, and spends the time to find out.
    """
    return PlaneParams(), {"planes": _encode(_words(x), _Bytes(x.dtype), thorough)}


def _encode(words: np.ndarray, splitter: _Bytes | _Leading, thorough: bool, *, with_ans: bool = False) -> np.ndarray:
    """Return the table of all planes and tails, and these; `with_ans` codes symbols by ANS, in place of Huffman."""
    huffman = kernels.load("huffman")
    num_planes, most = splitter.num_planes, min(CHUNK, words.size)
    num_chunks = -(-words.size // CHUNK)
    table = np.empty((num_chunks, num_planes + splitter.has_symbols), "<u4")
    room_size = num_planes * most + splitter.tail_bytes(most) + 2 * most * splitter.has_symbols
    stream = Stream(num_chunks * room_size, table.nbytes)  # no coded plane is longer than a plain one

    def encode_chunks(group: int) -> None:
        scratch = _SCRATCH.take(2 * most + 2 * room_size + huffman.max_block_size(most) + _MAX_ANS_TABLE)
        tops, room, blocks = scratch[: 2 * most].view(np.uint16), scratch[2 * most :], scratch[2 * most + room_size :]
        for i in range(group * _CHUNKS_A_THREAD, min((group + 1) * _CHUNKS_A_THREAD, num_chunks)):
            chunk = words[i * CHUNK : (i + 1) * CHUNK]
            num = chunk.size
            tail_size = splitter.split(chunk, room, tops[:num])
            used = 0
            for k in range(num_planes):
                plane = room[k * num : (k + 1) * num]
                if k == 0 and splitter.has_symbols:
                    entry = _encode_symbols(plane, blocks, with_ans)
                else:
                    entry = _encode_plane(huffman, plane, blocks[used:], thorough)
                table[i, k] = entry
                used += entry & _SIZE
            if splitter.has_symbols:
                table[i, num_planes] = tail_size
                blocks[used : used + tail_size] = room[num_planes * num :][:tail_size]
                used += tail_size
            stream.put(i, blocks[:used])

    kernels.for_each(encode_chunks, -(-num_chunks // _CHUNKS_A_THREAD))
    return stream.finish(table)


def planes_decoder(packed: Packed, params: PlaneParams | LeadingParams) -> Callable[[np.ndarray], None]:
    """Check the buffer against the shape, and return what decodes it into flat contiguous elements.

    Raises:
        Corrupt: the buffer has the wrong size, or a plane is not what the table says.
    """
    dtype = numpy_dtype(packed.header.dtype)
    if isinstance(params, LeadingParams) and dtype.name not in _LOW:
        raise Corrupt(f"the leading layout holds {', '.join(_LOW)}; the header says {packed.header.dtype}")
    splitter = _Leading(dtype, params) if isinstance(params, LeadingParams) else _Bytes(dtype)
    num_planes, num_columns = splitter.num_planes, splitter.num_planes + splitter.has_symbols
    num_words = packed.header.num_bytes // _words(np.empty(0, dtype)).itemsize
    num_chunks = -(-num_words // CHUNK)
    data = packed.buffer("planes")
    table_end = 4 * num_chunks * num_columns
    if data.size < table_end:
        raise Corrupt(f"buffer 'planes' holds {data.size} bytes; its table alone takes {table_end}")
    table = np.frombuffer(data[:table_end].tobytes(), "<u4").astype(np.int64).reshape(num_chunks, num_columns)
    sizes = table & _SIZE
    bounds = [table_end, *(table_end + np.cumsum(sizes)).tolist()]
    if bounds[-1] != data.size:
        raise Corrupt(f"the blocks of buffer 'planes' end at byte {bounds[-1]} of {data.size}")

    def decode(y: np.ndarray) -> None:
        words = _words(y)

        def decode_chunks(group: int) -> None:
            for i in range(group * _CHUNKS_A_THREAD, min((group + 1) * _CHUNKS_A_THREAD, num_chunks)):
                chunk = words[i * CHUNK : (i + 1) * CHUNK]
                first = i * num_columns
                tail = data[bounds[first + num_planes] : bounds[first + num_columns]]
                if tail.size < splitter.tail_bytes(chunk.size) or tail.size > chunk.nbytes + 2 * chunk.size:
                    raise Corrupt(f"chunk {i} of {num_chunks} has a tail of {tail.size} bytes, which does not fit it")
                room = _SCRATCH.take(num_planes * chunk.size + tail.size)
                # all that follows the first plane is often stored as it is, and read where it stands
                plain = splitter.has_symbols and bool((table[i, 1:num_planes] == chunk.size).all())
                others = room[chunk.size :]
                if plain:
                    others = data[bounds[first + 1] : bounds[first + num_columns]]
                else:
                    room[num_planes * chunk.size :] = tail
                for k in range(1 if plain else num_planes):
                    plane = room[k * chunk.size : (k + 1) * chunk.size]
                    block = data[bounds[first + k] : bounds[first + k + 1]]
                    if not _decode_plane(block, int(table[i, k]) & _CODING, plane):
                        raise Corrupt(f"plane {k} of chunk {i} does not hold {plane.size} bytes")
                if not splitter.merge(room, others, chunk):
                    raise Corrupt(f"chunk {i} of {num_chunks} has more or fewer escapes than its tail tells")

        kernels.for_each(decode_chunks, -(-num_chunks // _CHUNKS_A_THREAD))

    return decode


def _encode_symbols(symbols: np.ndarray, block: np.ndarray, with_ans: bool) -> int:
    """Write symbols into `block`, coded where that is smaller; return their entry in the table."""
    if with_ans:
        size, coding = kernels.load("ans").encode_block(symbols.reshape(1, -1), 1, block), _ANS
    else:
        huffman, counts = kernels.load("huffman"), np.empty(256, np.int64)
        huffman.histogram(symbols, counts)
        size, coding = huffman.encode_block(symbols, counts, block), _PLAIN
    if size >= symbols.size:
        size, coding = symbols.size, _PLAIN
        block[:size] = symbols
    return size | coding


def _encode_plane(huffman: ModuleType, plane: np.ndarray, block: np.ndarray, thorough: bool) -> int:
    """Write a plane into `block` in the smallest of its forms; return its entry in the table."""
    counts = np.empty(256, np.int64)
    if plane.size > 2 * _SAMPLE:
        step = plane.size // _SAMPLE | 1  # odd, so that the sample does not hit the same columns of a matrix only
        huffman.histogram(np.ascontiguousarray(plane[::step]), counts)
        entropy = _entropy(counts)
        if thorough and _zstd_pays(plane, entropy):
            frame = np.frombuffer(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(plane.data), np.uint8)
            if frame.size < plane.size * min(entropy / 8, 1):
                block[: frame.size] = frame
                return frame.size | _ZSTD
        if entropy > 8 * _WORTH[thorough]:
            block[: plane.size] = plane
            return plane.size
    huffman.histogram(plane, counts)
    size = plane.size
    if size <= _TRIED or _entropy(counts) <= 8 * _WORTH[thorough]:
        size = huffman.encode_block(plane, counts, block)
    if size >= plane.size:
        size = plane.size
        block[:size] = plane
    return size


def _zstd_pays(plane: np.ndarray, entropy: float) -> bool:
    """Whether a stretch of a plane repeats itself, beyond what its entropy (bits a byte) tells."""
    start = (plane.size - _SAMPLE) // 2
    size = len(zstandard.ZstdCompressor(level=1).compress(plane[start : start + _SAMPLE].data))
    return size < _ZSTD_WORTH * _SAMPLE * min(entropy / 8, 1)


def _decode_plane(block: np.ndarray, coding: int, plane: np.ndarray) -> bool:
    """Fill a plane from its block; return whether the block is one of a plane of this size."""
    if coding == _ZSTD:
        try:
            # the size is compared first: the library would allocate what the frame claims
            if zstandard.frame_content_size(block.data) != plane.size:
                return False
            plane[...] = np.frombuffer(zstandard.ZstdDecompressor().decompress(block.data), np.uint8)
        except zstandard.ZstdError:
            return False
        return True
    if coding == _ANS:
        return kernels.load("ans").decode_block(block, 1, plane.reshape(1, -1)) == 0
    if block.size == plane.size:
        plane[...] = block
        return coding == _PLAIN
    return coding == _PLAIN and block.size < plane.size and kernels.load("huffman").decode_block(block, plane) == 0


def _entropy(counts: np.ndarray) -> float:
    """Return the entropy in bits a symbol."""
    seen = counts[counts > 0]
    total = int(seen.sum())
    return float(np.log2(total) - np.dot(seen, np.log2(seen)) / total)


def _words(x: np.ndarray) -> np.ndarray:
    """Return the elements, or the parts of complex ones, as unsigned words."""
    size = x.itemsize // 2 if x.dtype.kind == "c" else x.itemsize
    return x.view(np.uint8 if size == 1 else f"<u{size}")


def _is_float(dtype: np.dtype) -> bool:
    """Whether the words are floats with the sign on top of nine bits that tell more together."""
    return dtype.kind == "c" or dtype.name in FLOATS


_MAX_ANS_TABLE = 4096  # bytes that an ANS block may be longer than a Huffman block
_NOTHING = np.empty(0, np.uint8)
