"""Chunks: an array cut into boxes of one size, and how the rows of a sample come out of them.

The chunk shape is (c_0, c_1, ...): a chunk has parts of c_0 samples. Along the other axes a sample is cut into
`num_cuts` boxes, numbered in C order. Chunks at the edge reach beyond the array.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from trimtab.data.arrays import check_bools
from trimtab.data.reading import File, Parts, Reader, Rows, Tasks
from trimtab.errors import Corrupt

MOST_CUTS = 1 << 20
"""Boxes of a sample that are read one by one."""

MOST_CHUNK = 1 << 24
"""Bytes that a chunk to be decoded may have even where the whole array has fewer."""

Decoder = Callable[[memoryview, int], memoryview]
"""(stored bytes, HDF5's mask of filters that were left out) -> the bytes of the chunk, as many as it has."""


class Grid:
    """The geometry of chunks; everything is counted from the shapes."""

    def __init__(self, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.chunks, self.dtype = shape, chunks, dtype
        self.depth = chunks[0]
        """Samples of a chunk."""
        self.counts = tuple(-(-n // c) for n, c in zip(shape, chunks, strict=True))
        self.num_cuts = math.prod(self.counts[1:])
        self.num_chunks = math.prod(self.counts)
        self.piece_bytes = math.prod(chunks[1:]) * dtype.itemsize
        """What one chunk holds of one sample."""
        self.chunk_bytes = self.depth * self.piece_bytes
        self.array_bytes = math.prod(shape) * dtype.itemsize
        self.is_straight = chunks[2:] == shape[2:]
        """Whether what a chunk holds of a sample is in one piece there, too."""

    def box(self, corner: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the slices of a sample that a box holds, and the slices of the box that lie in the array."""
        inside = [(k * c, min(c, n - k * c)) for k, c, n in zip(corner, self.chunks[1:], self.shape[1:], strict=True)]
        return tuple(slice(a, a + n) for a, n in inside), tuple(slice(0, n) for _, n in inside)

    def corner(self, cut: int) -> tuple[int, ...]:
        """Return the coordinates of a box."""
        return tuple(int(k) for k in np.unravel_index(cut, self.counts[1:])) if self.counts[1:] else ()

    def fits(self) -> bool:
        """Whether a decoded chunk takes no more memory than the array would, or little."""
        return self.chunk_bytes <= max(self.array_bytes, MOST_CHUNK)


class Wanted(NamedTuple):
    """What is wanted of one chunk: these rows, which hold the samples at these places of the chunk."""

    rows: np.ndarray
    places: np.ndarray


def wanted(samples: np.ndarray, depth: int) -> tuple[np.ndarray, list[Wanted]]:
    """Return the layers of chunks that samples lie in, int64, each once, and what is wanted of each."""
    layers, places = np.divmod(samples, depth)
    if depth == 1 and len(samples) < 2:
        return layers, [Wanted(np.zeros(1, np.int64), places)]
    order = np.argsort(layers, kind="stable")
    sorted_layers = layers[order]
    ends = np.append(np.flatnonzero(np.diff(sorted_layers)) + 1, len(order)).tolist()
    starts = [0, *ends[:-1]]
    return sorted_layers[starts], [Wanted(order[a:b], places[order[a:b]]) for a, b in zip(starts, ends, strict=True)]


def scatter(grid: Grid, cut: int, data: memoryview, want: Wanted, rows: Rows, where: str) -> None:
    """Copy the wanted rows of a decoded chunk to where they belong.

    Raises:
        Corrupt: the chunk has another size than it must, or bools are not 0 or 1.
    """
    what = rows.what(int(want.rows[0]))
    if len(data) != grid.chunk_bytes:
        raise Corrupt(f"{where}: the chunk of {what} has {len(data)} bytes, expected {grid.chunk_bytes}")
    chunk = np.frombuffer(data, grid.dtype).reshape(grid.chunks)
    into, inside = grid.box(grid.corner(cut))
    if grid.dtype.kind == "b":
        check_bools(chunk[(want.places, *inside)], where, what)
    for row, place in zip(want.rows.tolist(), want.places.tolist(), strict=True):
        rows.array[(row, *into)] = chunk[(place, *inside)]


class Table:
    """Where the chunks of an array lie in a file: int64 offsets and sizes in bytes, and HDF5's masks of filters.

    Raises:
        Corrupt: a chunk is listed twice, or lies outside the array or the file.
    """

    def __init__(
        self, file: File, num_chunks: int, keys: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, masks: np.ndarray
    ) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self.offsets, self.sizes, self.masks = keys[order], offsets[order], sizes[order], masks[order]
        if len(keys) and (self._keys[0] < 0 or self._keys[-1] >= num_chunks or (np.diff(self._keys) == 0).any()):
            raise Corrupt(f"{file.path}: chunks are listed twice, or outside the array")
        beyond = (self.offsets < 0) | (self.sizes <= 0) | (self.sizes > file.num_bytes - self.offsets)
        if beyond.any():
            k = int(beyond.argmax())
            raise Corrupt(
                f"{file.path}: chunk {self._keys[k]} lies at bytes {self.offsets[k]} to "
                f"{self.offsets[k] + self.sizes[k]}, and the file has {file.num_bytes}"
            )
        self._is_full = len(keys) == num_chunks

    def find(self, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where chunks stand in this table, and which of them do, bool."""
        if self._is_full:
            return chunks, np.ones(chunks.shape, bool)
        if not len(self._keys):
            return np.zeros_like(chunks), np.zeros(chunks.shape, bool)
        places = np.minimum(np.searchsorted(self._keys, chunks), len(self._keys) - 1)
        return places, self._keys[places] == chunks


class Chunked:
    """Rows in chunks of one file. Chunks that were never written hold `fill`.

    Without `decode`, chunks lie in the file as they are, and only what is wanted of them is read.
    """

    def __init__(
        self, reader: Reader, file: File, grid: Grid, table: Table, fill: Any, decode: Decoder | None, note: str
    ) -> None:
        self._reader, self._file, self._grid, self._table = reader, file, grid, table
        self._fill, self._decode, self.note = fill, decode, note

    def tasks(self, rows: Rows) -> Tasks:
        return self._pieces(rows) if self._decode is None else self._chunks(rows, self._decode)

    def close(self) -> None:
        """The store closes the file, which other arrays have too."""

    def _pieces(self, rows: Rows) -> Tasks:
        """Read what chunks hold of each sample."""
        grid = self._grid
        layers, places = np.divmod(rows.samples, grid.depth)
        chunks = (layers[:, None] * grid.num_cuts + np.arange(grid.num_cuts)).reshape(-1)
        found, is_there = self._table.find(chunks)
        for piece in np.flatnonzero(~is_there).tolist():
            self._clear(rows, [piece // grid.num_cuts], piece % grid.num_cuts)
        pieces = np.flatnonzero(is_there)
        owner, cut = np.divmod(pieces, grid.num_cuts)
        offsets = self._table.offsets[found[pieces]] + places[owner] * grid.piece_bytes
        if not grid.is_straight or not grid.dtype.isnative or grid.dtype.kind == "b":
            parts = Parts(self._file, offsets, np.full(len(pieces), grid.piece_bytes), owner)
            return self._reader.hand(parts, rows, partial(self._use_piece, rows, owner, cut))
        starts = cut * grid.piece_bytes
        sizes = np.minimum(grid.piece_bytes, rows.row_bytes - starts)
        parts = Parts(self._file, offsets, sizes, owner)
        whole = rows.places()
        if grid.num_cuts == 1:
            into = whole if len(pieces) == len(whole) else [whole[row] for row in owner.tolist()]
        else:
            ranges = zip(owner.tolist(), starts.tolist(), (starts + sizes).tolist(), strict=True)
            into = [whole[row][start:end] for row, start, end in ranges]
        return self._reader.fill(parts, rows, into, None)

    def _clear(self, rows: Rows, chosen: list[int], cut: int) -> None:
        """Write the fill value to the box of chosen rows."""
        into, _ = self._grid.box(self._grid.corner(cut))
        for row in chosen:
            rows.array[(row, *into)] = self._fill

    def _use_piece(self, rows: Rows, owner: np.ndarray, cut: np.ndarray, part: int, data: memoryview) -> None:
        grid, row = self._grid, int(owner[part])
        piece = np.frombuffer(data, grid.dtype).reshape(grid.chunks[1:])
        into, inside = grid.box(grid.corner(int(cut[part])))
        if grid.dtype.kind == "b":
            check_bools(piece[inside], str(self._file.path), rows.what(row))
        rows.array[(row, *into)] = piece[inside]

    def _chunks(self, rows: Rows, decode: Decoder) -> Tasks:
        """Read whole chunks, each once, and decode them."""
        grid = self._grid
        layers, wants = wanted(rows.samples, grid.depth)
        chunks = (layers[:, None] * grid.num_cuts + np.arange(grid.num_cuts)).reshape(-1)
        found, is_there = self._table.find(chunks)
        for part in np.flatnonzero(~is_there).tolist():
            self._clear(rows, wants[part // grid.num_cuts].rows.tolist(), part % grid.num_cuts)
        there = np.flatnonzero(is_there)
        found = found[there]
        owner = np.array([want.rows[0] for want in wants], np.int64)[there // grid.num_cuts]
        parts = Parts(self._file, self._table.offsets[found], self._table.sizes[found], owner)

        def use(part: int, data: memoryview) -> None:
            layer, cut = divmod(int(there[part]), grid.num_cuts)
            where = str(self._file.path)
            try:
                decoded = decode(data, int(self._table.masks[found[part]]))
            except Corrupt as error:
                raise Corrupt(f"{where}: the chunk of {rows.what(int(owner[part]))}: {error}") from None
            scatter(grid, cut, decoded, wants[layer], rows, where)

        return self._reader.hand(parts, rows, use)
