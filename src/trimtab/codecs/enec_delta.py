"""The layout "delta" of ENEC: an array as its difference from a base, such as the weights that it was tuned from.

Tuned weights differ from their base by steps of like size, so that a weight of a small exponent moves by more of its
own last places than one of a large exponent. The difference of the bit patterns, taken as integers in the order of the
floats, is therefore coded with tables of its own for each of the frequent exponents of the base. What did not move is
left out.

The base has the dtype and shape of the array; the entry's `base` is its checksum, made like that of an entry of codec
"enec". No params. Elements, or the parts of complex numbers, are words (`trimtab.kernels.differences` defines blocks,
differences and classes, of floats with `signed_float`; float8 counts as integers). Chunks are 2**18 words, the last one
shorter.

- ``differences``: for each chunk a uint32, the bytes that it takes, below 2**30, and its flags; then the chunks. One of
  no bytes is equal to the base's. Another begins, if it has flag 2**31, with a bit for each block, lowest bit first,
  which is set where the block is kept, and zeros that fill the last byte; without the flag all blocks are kept. The
  rest of the chunk holds the differences of the kept words. With flag 2**30 it is what layout "planes" would store of
  them as integers, folded so that small ones of either sign are small, ``2 d`` for d >= 0 and ``-2 d - 1`` below.
  Without that flag, which only words of 16 and 32 bits can lack, they stand as tokens (`trimtab.kernels.tokens`): a
  uint32, the size of the tokens' block; this block of `trimtab.kernels.ans`, of one row, whose activities are the
  classes; and the extra bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import DTypeLike

from trimtab import kernels
from trimtab.bounds import Lossless
from trimtab.codecs.enec_escape import CHUNK
from trimtab.codecs.enec_planes import PlaneParams, encode_planes, planes_decoder
from trimtab.codecs.stream import Stream
from trimtab.dtypes import FLOATS, numpy_dtype
from trimtab.errors import Corrupt
from trimtab.packed import Header, Packed

_CHUNKS_A_THREAD = 8
_PLANES, _SPARSE, _SIZE = 1 << 30, 2 << 30, (1 << 30) - 1  # flags and size of a chunk, in the table
_SAMPLE = 1 << 12  # words to look at before the byte planes of a chunk are coded
_WORTH = 0.98  # byte planes are coded where a sample of them takes less than this part of what tokens take
_RARE = 128  # a class that is rarer than one word in so many has no context of its own
_ROW = 1 << 12  # tokens that are coded in one go, a multiple of the number of states: the block is that of one row
_FEW = 1024  # words that a context needs at least to be worth its table

_held = threading.local()


class DeltaParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="layout", tag="delta"
):
    """Marks the layout; the dtype in the header says the rest."""


def encode_delta(x: np.ndarray, base: np.ndarray, thorough: bool) -> tuple[DeltaParams, dict[str, np.ndarray]]:
    """Encode the difference of flat contiguous arrays of one dtype and size, at least one element.

    `thorough` packs byte planes with zstd where that is smaller, and spends the time to find out.
    """
    words, base_words = _words(x), _words(base)
    num_chunks = -(-words.size // CHUNK)
    table = np.zeros(num_chunks, "<u4")
    stream = Stream(num_chunks * _max_size(min(words.size, CHUNK), words.itemsize), table.nbytes)

    def encode_chunks(group: int) -> None:
        coder = _Coder(min(words.size, CHUNK), words.dtype, _is_float(x.dtype), thorough)
        for i in range(group * _CHUNKS_A_THREAD, min((group + 1) * _CHUNKS_A_THREAD, num_chunks)):
            span = slice(i * CHUNK, (i + 1) * CHUNK)
            flags, parts = coder.encode(words[span], base_words[span])
            table[i] = flags | sum(part.size for part in parts)
            stream.put(i, *parts)

    kernels.for_each(encode_chunks, -(-num_chunks // _CHUNKS_A_THREAD))
    return DeltaParams(), {"differences": stream.finish(table)}


def delta_decoder(packed: Packed) -> Callable[[np.ndarray, np.ndarray], None]:
    """Check the buffer against the shape, and return what decodes it: a function of the elements to fill and the base.

    Both are flat, contiguous, and as the header says.

    Raises:
        Corrupt: the buffer has the wrong size, or a chunk is not what the table says.
    """
    dtype = numpy_dtype(packed.header.dtype)
    num_words = packed.header.num_bytes // _words(np.empty(0, dtype)).itemsize
    num_chunks = -(-num_words // CHUNK)
    data = packed.buffer("differences")
    if data.size < 4 * num_chunks:
        raise Corrupt(f"buffer 'differences' holds {data.size} bytes; its table alone takes {4 * num_chunks}")
    table = np.frombuffer(data[: 4 * num_chunks].tobytes(), "<u4").astype(np.int64)
    bounds = [4 * num_chunks, *(4 * num_chunks + np.cumsum(table & _SIZE)).tolist()]
    if bounds[-1] != data.size:
        raise Corrupt(f"the chunks of buffer 'differences' end at byte {bounds[-1]} of {data.size}")

    def decode(y: np.ndarray, base: np.ndarray) -> None:
        words, base_words = _words(y), _words(base)

        def decode_chunks(group: int) -> None:
            coder = _Coder(min(words.size, CHUNK), words.dtype, _is_float(dtype))
            for i in range(group * _CHUNKS_A_THREAD, min((group + 1) * _CHUNKS_A_THREAD, num_chunks)):
                span = slice(i * CHUNK, (i + 1) * CHUNK)
                body = data[bounds[i] : bounds[i + 1]]
                if not coder.decode(body, int(table[i]) & ~_SIZE, base_words[span], words[span]):
                    raise Corrupt(
                        f"chunk {i} of {num_chunks} does not hold the differences of {words[span].size} words"
                    )

        kernels.for_each(decode_chunks, -(-num_chunks // _CHUNKS_A_THREAD))

    return decode


class _Coder:
    """Codes chunks of up to `most` words one after another; a thread has one at a time."""

    def __init__(self, most: int, dtype: np.dtype, signed_float: bool, thorough: bool = False) -> None:
        self.signed_float, self.thorough = signed_float, thorough
        self._kernels = kernels.load("differences")
        self._has_tokens = dtype.itemsize in (2, 4)
        self._differences = _room("differences", most, dtype)
        self._classes = _room("classes", most)
        self._kept = _room("kept", -(-most // self._kernels.BLOCK), np.bool_)
        self._tokens = _room("tokens", most)
        if self._has_tokens:
            self._signed = _room("signed", most, np.int32)
            self._contexts = _room("contexts", most)
            self._extra = _room("extra", kernels.load("tokens").max_extra_size(most))
            self._block = _room("block", kernels.load("ans").max_block_size(most))

    def encode(self, words: np.ndarray, base: np.ndarray) -> tuple[int, list[np.ndarray]]:
        """Return flags and bytes of a chunk, the latter in parts whose memory is used again for the next chunk."""
        kept = self._kept[: -(-words.size // self._kernels.BLOCK)]
        count = self._kernels.subtract(words, base, self.signed_float, kept, self._differences, self._classes)
        if count == 0:
            return 0, [self._tokens[:0]]
        flags, parts = 0, []
        if count < words.size:
            flags, parts = _SPARSE, [np.packbits(kept, bitorder="little")]
        differences = self._differences[:count]
        planes = None
        if self._has_tokens:
            num_bytes = self._encode_tokens(differences, self._classes[:count])
            if _plane_entropy(differences) < _WORTH * 8 * num_bytes:
                planes = self._encode_planes(differences)
            if planes is None or planes.size >= num_bytes:
                return flags, [*parts, *self._parts]
        else:
            planes = self._encode_planes(differences)
        return flags | _PLANES, [*parts, planes]

    def decode(self, body: np.ndarray, flags: int, base: np.ndarray, words: np.ndarray) -> bool:
        """Fill `words` from the bytes of a chunk; return whether they are those of a chunk of this size."""
        kept = self._kept[: -(-words.size // self._kernels.BLOCK)]
        kept[:] = body.size > 0
        if body.size == 0 and flags:
            return False
        if flags & _SPARSE:
            mask = body[: -(-kept.size // 8)]
            if 8 * mask.size < kept.size:
                return False
            bits = np.unpackbits(mask, bitorder="little")
            kept[:] = bits[: kept.size]
            if bits[kept.size :].any() or kept.all() or not kept.any():
                return False
            body = body[mask.size :]
        count = self._kernels.classify(base, self.signed_float, kept, self._classes)
        differences = self._differences[:count]
        if flags & _PLANES:
            if not self._decode_planes(body, differences):
                return False
        elif count and not (self._has_tokens and self._decode_tokens(body, self._classes[:count], differences)):
            return False
        self._kernels.add(differences, base, self.signed_float, kept, words)
        return True

    def _encode_tokens(self, differences: np.ndarray, classes: np.ndarray) -> int:
        """Code differences as tokens, as the `_parts` of a chunk; return how many bytes these are."""
        ans, coder, tokens = kernels.load("ans"), kernels.load("tokens"), self._tokens[: differences.size]
        signed = self._signed[: tokens.size]
        signed[...] = differences.view(f"i{differences.itemsize}")
        num_extra = coder.encode(signed.reshape(1, -1), 0, tokens.reshape(1, -1), self._extra)
        thresholds, contexts = _thresholds(classes), self._contexts[: tokens.size]
        counts = np.empty((thresholds.size + 1, 128), np.int64)
        self._kernels.tally(tokens, classes, thresholds, contexts, counts)
        rows = np.array([[tokens.size // _ROW, _ROW], [1, tokens.size % _ROW]])
        size = ans.encode_mixed(tokens, contexts, rows, counts, thresholds, self._block)
        head = np.array([size], "<u4").view(np.uint8)
        self._parts = [head, self._block[:size], self._extra[:num_extra]]
        return 4 + size + num_extra

    def _decode_tokens(self, body: np.ndarray, classes: np.ndarray, differences: np.ndarray) -> bool:
        size = int.from_bytes(body[:4].tobytes(), "little")
        if body.size < 4 + size:
            return False
        tokens = self._tokens[: differences.size]
        if kernels.load("ans").decode_given(body[4 : 4 + size], classes, tokens) != 0:
            return False
        signed = self._signed[: tokens.size]
        if kernels.load("tokens").decode(tokens.reshape(1, -1), body[4 + size :], 0, signed.reshape(1, -1)) != 0:
            return False
        differences[...] = signed.view(np.uint32)  # of 16 bits the upper half says nothing
        return True

    def _encode_planes(self, differences: np.ndarray) -> np.ndarray:
        _, buffers = encode_planes(_folded(differences), self.thorough)
        return buffers["planes"]

    def _decode_planes(self, body: np.ndarray, differences: np.ndarray) -> bool:
        header = Header(codec={}, bound=Lossless(), dtype=differences.dtype.name, shape=differences.shape)
        if not differences.size:
            return False
        planes_decoder(Packed(header, {"planes": body}), PlaneParams())(differences)
        differences[...] = differences >> 1 ^ (0 - (differences & 1))
        return True


def _room(use: str, size: int, dtype: DTypeLike = np.uint8) -> np.ndarray:
    """Return an array of this thread's, with anything in it: new memory would cost half as much time as the coding."""
    num_bytes = size * np.dtype(dtype).itemsize
    held = getattr(_held, use, None)
    if held is None or held.size < num_bytes:
        held = np.empty(num_bytes, np.uint8)
        setattr(_held, use, held)
    return held[:num_bytes].view(dtype)


def _thresholds(classes: np.ndarray) -> np.ndarray:
    """Return those classes (uint8) at which another context begins."""
    counts = np.empty(256, np.int64)
    kernels.load("huffman").histogram(classes, counts)
    frequent = np.flatnonzero(counts > max(classes.size // _RARE, _FEW))
    # the largest exponents are the most frequent ones, and the rarest classes are those below them
    return frequent[frequent > 0][1 - kernels.load("ans").MAX_CONTEXTS :].astype(np.uint8)


def _plane_entropy(differences: np.ndarray) -> float:
    """Estimate the bits that the byte planes of folded differences take, by a sample."""
    step = max(differences.size // _SAMPLE, 1) | 1
    sample = _folded(np.ascontiguousarray(differences[::step]))
    bits = 0.0
    for k in range(sample.itemsize):
        counts = np.bincount(sample.view(np.uint8)[k :: sample.itemsize])
        seen = counts[counts > 0]
        bits += float(seen @ np.log2(sample.size / seen))
    return bits * differences.size / sample.size


def _folded(differences: np.ndarray) -> np.ndarray:
    """Return 2 d for differences d >= 0 and -2 d - 1 below, of words that stand for signed ones."""
    return differences << 1 ^ (0 - (differences >> 8 * differences.itemsize - 1))


def _max_size(num_words: int, itemsize: int) -> int:
    """Return how many bytes a chunk may take at most."""
    planes = (itemsize * num_words + 4 * itemsize) + num_words
    tokens = kernels.load("ans").max_block_size(num_words) + kernels.load("tokens").max_extra_size(num_words) + 4
    return num_words // 8 + 1 + max(planes, tokens)


def _words(x: np.ndarray) -> np.ndarray:
    """Return the elements, or the parts of complex ones, as unsigned words."""
    return x.view(f"<u{x.itemsize // 2 if x.dtype.kind == 'c' else x.itemsize}")


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "c" or dtype.name in FLOATS
