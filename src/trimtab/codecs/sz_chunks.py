"""The integers of an SZ tile in chunks of rows, coded for speed: differences, byte symbols, Huffman's code.

A chunk is small enough to stay in the cache from the first step to the last.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from trimtab import kernels
from trimtab.codecs.tiling import Tile
from trimtab.errors import Corrupt
from trimtab.kernels.symbols.ref import MAX_SAMPLE, MAX_SHIFT, num_planes

_CHUNK_SIZE = 1 << 17
_HEAD = struct.Struct("<BB4I")
_SYMBOLS, _RUNS = 0, 1
_RUNS_PAY = 0.6  # share of zeros from which runs make a Huffman code shorter, and quicker


class ChunkCoder:
    """Codes the chunks of one tile, in order; an object either encodes or decodes.

    `ranges` are the elements of each chunk: whole rows, but of a linear tile, whose chunks are rows of their own, any
    elements. The first is the largest, of `size` elements.
    """

    def __init__(self, tile: Tile) -> None:
        self._tile = tile
        size = _CHUNK_SIZE if tile.linear else max(_CHUNK_SIZE // tile.row_length, 1) * tile.row_length
        num = tile.num_elements
        self.ranges = [(start, min(start + size, num)) for start in range(0, num, size)]
        self.size = self.ranges[0][1]
        self._row = 0
        length = self.size if tile.linear else tile.row_length
        self._above = np.zeros(length, np.int32)
        self._before = np.zeros((tile.rows_per_plane if len(tile.shape) == 3 else 0, length), np.int32)
        self._symbols = np.empty(self.size, np.uint8)
        self._folded = np.empty(self.size + 8, np.uint8)
        self._low = np.empty(num_planes(MAX_SHIFT) * self.size, np.uint8)

    def rows(self, integers: np.ndarray) -> np.ndarray:
        """Return the integers of a chunk as rows."""
        return integers.reshape(1, -1) if self._tile.linear else integers.reshape(-1, self._tile.row_length)

    def starts(self, starts: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Return where the rows of a chunk start in the flat array, given where those of the tile do."""
        if self._tile.linear:
            return starts[:1] + start
        return starts[start // self._tile.row_length : stop // self._tile.row_length]

    def encode(self, q: np.ndarray) -> Iterator[bytes | np.ndarray]:
        """Yield the parts of a chunk's code; its integers (int32 rows) are overwritten."""
        self._difference("encode", q)
        z = q.reshape(-1).view(np.uint32)
        coder = kernels.load("symbols")
        shift = coder.choose_shift(z[:: z.size // MAX_SAMPLE + 1 | 1].copy())
        symbols, low = self._symbols[: z.size], self._planes(shift, z.size)
        listed = np.empty(z.size, np.int32)
        num_listed, num_zeros = coder.split(z, shift, symbols, low, listed)
        coding = _RUNS if num_zeros >= _RUNS_PAY * z.size else _SYMBOLS
        if coding == _RUNS:
            symbols = self._folded[: kernels.load("runs").fold(symbols, self._folded)]
        huffman = kernels.load("huffman")
        counts = np.empty(256, np.int64)
        huffman.histogram(symbols, counts)
        block = np.empty(huffman.max_block_size(symbols.size), np.uint8)
        block = block[: huffman.encode_block(symbols, counts, block)]
        tokens = np.empty((1, num_listed), np.uint8)
        extra = np.empty(kernels.load("tokens").max_extra_size(num_listed), np.uint8)
        extra = extra[: kernels.load("tokens").encode(listed[None, :num_listed], 0, tokens, extra)]
        yield _HEAD.pack(shift, coding, symbols.size, block.size, num_listed, extra.size)
        yield block
        for width, plane in zip(_widths(shift), low, strict=True):
            packed = np.empty(kernels.load("halving").packed_bytes(z.size, width), np.uint8)
            kernels.load("halving").pack(plane, width, packed)
            yield packed
        yield tokens[0]
        yield extra

    def decode(self, code: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield the range and the integers (int32 rows, soon overwritten) of each chunk of a tile's `code` (uint8).

        Raises:
            Corrupt: the code contradicts itself.
        """
        room = np.empty(self.size, np.int32)
        for start, stop in self.ranges:
            q = self.rows(room[: stop - start])
            code = code[self._decode_chunk(code, q) :]
            yield start, stop, q
        if code.size:
            raise Corrupt(f"{code.size} bytes follow the last chunk of a tile")

    def _decode_chunk(self, code: np.ndarray, q: np.ndarray) -> int:
        """Fill `q` (int32 rows) from the chunk at the start of `code`, and return the chunk's bytes."""
        z = q.reshape(-1).view(np.uint32)
        if code.size < _HEAD.size:
            raise Corrupt(f"{code.size} bytes are left for a chunk, which has a head of {_HEAD.size}")
        shift, coding, num_symbols, *sizes = _HEAD.unpack(code[: _HEAD.size].tobytes())
        halving = kernels.load("halving")
        if shift > MAX_SHIFT or num_symbols > z.size or (coding == _SYMBOLS and num_symbols != z.size):
            raise Corrupt(f"a chunk of {z.size} elements has {num_symbols} symbols and a shift of {shift}")
        sizes[1:1] = [halving.packed_bytes(z.size, width) for width in _widths(shift)]
        if _HEAD.size + sum(sizes) > code.size:
            raise Corrupt(f"a chunk's sections of {sizes} bytes do not fit in {code.size}")
        sections, end = [], _HEAD.size
        for size in sizes:
            sections.append(code[end : end + size])
            end += size
        block, *planes, tokens, extra = sections
        symbols, low = self._symbols[: z.size], self._planes(shift, z.size)
        if coding == _SYMBOLS:
            good = kernels.load("huffman").decode_block(block, symbols) == 0
        else:
            folded = self._folded[:num_symbols]
            good = coding == _RUNS and kernels.load("huffman").decode_block(block, folded) == 0
            good = good and kernels.load("runs").unfold(folded, symbols) == 0
        listed = np.empty((1, tokens.size), np.int32)
        coder = kernels.load("tokens")
        good = good and (not tokens.size or int(tokens.max()) < coder.NUM_TOKENS)
        if not good or coder.decode(tokens[None], extra, 0, listed) != 0:
            raise Corrupt(f"a chunk's block of {block.size} bytes, coding {coding}, or its list is damaged")
        for width, plane, packed in zip(_widths(shift), low, planes, strict=True):
            halving.unpack(packed, width, plane)
        if kernels.load("symbols").merge(symbols, low, listed[0], shift, z) != 0:
            raise Corrupt(f"a chunk's symbols do not list {tokens.size} integers")
        self._difference("decode", q)
        return end

    def _difference(self, way: str, q: np.ndarray) -> None:
        tile = self._tile
        along = getattr(kernels.load("lorenzo"), way)
        per_plane = 1 if tile.linear else tile.rows_per_plane
        along(q, self._above[: q.shape[1]], self._before, self._row, per_plane, tile.lane)
        self._row += len(q)

    def _planes(self, shift: int, size: int) -> np.ndarray:
        return self._low[: num_planes(shift) * size].reshape(-1, size)


def _widths(shift: int) -> list[int]:
    """Return the bits of each plane of low bits."""
    return [min(shift - start, 8) for start in range(0, shift, 8)]
