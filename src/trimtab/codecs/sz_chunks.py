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
from trimtab.kernels.halving.ref import packed_bytes
from trimtab.kernels.symbols.ref import MAX_SAMPLE, MAX_SHIFT, num_planes

_CHUNK_SIZE = 1 << 18
_HEAD = struct.Struct("<BB4I")
_SYMBOLS, _RUNS = 0, 1
_NOTHING = np.empty(0, np.uint8)
_RUNS_PAY = 0.6  # share of zeros from which runs make a Huffman code shorter, and quicker


class ChunkCoder:
    """Codes the chunks of one tile, in order; an object either encodes or decodes.

    `ranges` are the elements of each chunk: whole rows, but of a linear tile, whose chunks are rows of their own, any
    elements. The first is the largest, of `size` elements.
    """

    def __init__(self, tile: Tile) -> None:
        num, self._linear, self._row_length, self._lane = tile.num_elements, tile.linear, tile.row_length, tile.lane
        self._rows_per_plane = 1 if tile.linear else tile.rows_per_plane
        size = _CHUNK_SIZE if tile.linear else max(_CHUNK_SIZE // tile.row_length, 1) * tile.row_length
        self.ranges = [(start, min(start + size, num)) for start in range(0, num, size)]
        self.size = self.ranges[0][1]
        self._row = 0
        self._above = np.zeros(0 if tile.linear else tile.row_length, np.int32)
        self._before = np.zeros((tile.rows_per_plane if len(tile.shape) == 3 else 0, tile.row_length), np.int32)
        self._symbols = np.empty(self.size, np.uint8)
        self._folded = np.empty(self.size + 8, np.uint8)
        self._listed = np.empty(self.size, np.int32)
        self._low = np.empty(num_planes(MAX_SHIFT) * self.size, np.uint8)
        operations = "lorenzo", "symbols", "runs", "huffman", "tokens", "halving"
        self._lorenzo, self._bytes, self._runs, self._huffman, self._tokens, self._halving = map(
            kernels.load, operations
        )

    def rows(self, integers: np.ndarray) -> np.ndarray:
        """Return the integers of a chunk as rows."""
        return integers.reshape(1 if self._linear else -1, -1 if self._linear else self._row_length)

    def starts(self, starts: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Return where the rows of a chunk start in the flat array, given where those of the tile do."""
        if self._linear:
            return starts[:1] + start
        return starts[start // self._row_length : stop // self._row_length]

    def encode(self, q: np.ndarray) -> Iterator[bytes | np.ndarray]:
        """Yield the parts of a chunk's code; its integers (int32 rows) are overwritten."""
        self._lorenzo.encode(*self._along(q))
        z = q.reshape(-1).view(np.uint32)
        shift = self._bytes.choose_shift(z[:: z.size // MAX_SAMPLE + 1 | 1].copy())
        symbols, low = self._symbols[: z.size], self._planes(shift, z.size)
        listed = self._listed[: z.size]
        num_listed, num_zeros = self._bytes.split(z, shift, symbols, low, listed)
        coding = _RUNS if num_zeros >= _RUNS_PAY * z.size else _SYMBOLS
        if coding == _RUNS:
            symbols = self._folded[: kernels.load("runs").fold(symbols, self._folded)]
        counts = np.empty(256, np.int64)
        self._huffman.histogram(symbols, counts)
        block = np.empty(self._huffman.max_block_size(symbols.size), np.uint8)
        block = block[: self._huffman.encode_block(symbols, counts, block)]
        tokens, extra = _encode_list(listed[:num_listed])
        yield _HEAD.pack(shift, coding, symbols.size, block.size, num_listed, extra.size)
        yield block
        for width, plane in zip(_widths(shift), low, strict=True):
            packed = np.empty(packed_bytes(z.size, width), np.uint8)
            kernels.load("halving").pack(plane, width, packed)
            yield packed
        yield tokens
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
        if shift > MAX_SHIFT or num_symbols > z.size or (coding == _SYMBOLS and num_symbols != z.size):
            raise Corrupt(f"a chunk of {z.size} elements has {num_symbols} symbols and a shift of {shift}")
        sizes[1:1] = [packed_bytes(z.size, width) for width in _widths(shift)]
        if _HEAD.size + sum(sizes) > code.size:
            raise Corrupt(f"a chunk's sections of {sizes} bytes do not fit in {code.size}")
        sections, end = [], _HEAD.size
        for size in sizes:
            sections.append(code[end : end + size])
            end += size
        block, *planes, tokens, extra = sections
        symbols, low = self._symbols[: z.size], self._planes(shift, z.size)
        if coding == _SYMBOLS:
            good = self._huffman.decode_block(block, symbols) == 0
        else:
            folded = self._folded[:num_symbols]
            good = coding == _RUNS and self._huffman.decode_block(block, folded) == 0
            good = good and kernels.load("runs").unfold(folded, symbols) == 0
        if not good:
            raise Corrupt(f"a chunk's block of {block.size} bytes, coding {coding}, is damaged")
        listed = _decode_list(tokens, extra)
        for width, plane, packed in zip(_widths(shift), low, planes, strict=True):
            kernels.load("halving").unpack(packed, width, plane)
        if self._bytes.merge(symbols, low, listed, shift, z) != 0:
            raise Corrupt(f"a chunk's symbols do not list {tokens.size} integers")
        self._lorenzo.decode(*self._along(q))
        return end

    def _along(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int, int]:
        """Return what the kernel that takes differences of rows wants to know."""
        row = self._row
        self._row += len(q)
        return q, self._above, self._before, row, self._rows_per_plane, self._lane

    def _planes(self, shift: int, size: int) -> np.ndarray:
        return self._low[: num_planes(shift) * size].reshape(-1, size)


def _widths(shift: int) -> list[int]:
    """Return the bits of each plane of low bits."""
    return [min(shift - start, 8) for start in range(0, shift, 8)]


def _encode_list(listed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and extra bits (uint8) of listed integers (int32)."""
    if not listed.size:
        return _NOTHING, _NOTHING
    coder = kernels.load("tokens")
    tokens, extra = np.empty((1, listed.size), np.uint8), np.empty(coder.max_extra_size(listed.size), np.uint8)
    return tokens[0], extra[: coder.encode(listed[None], 0, tokens, extra)]


def _decode_list(tokens: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """Return the listed integers (int32).

    Raises:
        Corrupt: tokens and extra bits do not match.
    """
    listed = np.empty((1, tokens.size), np.int32)
    if tokens.size or extra.size:
        coder = kernels.load("tokens")
        good = tokens.max(initial=0) < coder.NUM_TOKENS and coder.decode(tokens[None], extra, 0, listed) == 0
        if not good:
            raise Corrupt(f"a chunk's list of {tokens.size} integers is damaged")
    return listed[0]
