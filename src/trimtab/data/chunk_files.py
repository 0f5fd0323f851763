"""Rows in many files: a chunk of an array is a file, or a shard of chunks is one, as in Zarr."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from trimtab.data.chunks import Chunked, Decoder, Grid, Table, Wanted, scatter, wanted
from trimtab.data.decoders import crc32c
from trimtab.data.reading import USUAL, Costs, File, Identity, Parts, Reader, Rows, Tasks, measure
from trimtab.errors import Corrupt, FormatError, Truncated, UsageError

MOST_INDEX = 1 << 20
"""Chunks that a shard may have."""

_ROOM = 1 << 20  # bytes by which a packed chunk may be larger than a plain one
_MISSING = 2**64 - 1  # offset and size of a chunk of a shard that was never written

Key = Callable[[tuple[int, ...]], str]
"""The coordinates of a chunk -> the path of its file."""


class ChunkFiles:
    """Rows in chunks that are a file each. A chunk without a file holds `fill`."""

    def __init__(
        self,
        reader: Reader,
        grid: Grid,
        key: Key,
        fill: Any,
        decode: Decoder | None,
        note: str,
    ) -> None:
        self._reader, self._grid, self._key, self._fill = reader, grid, key, fill
        self._decode, self.note = decode, note

    def tasks(self, rows: Rows) -> Tasks:
        grid = self._grid
        costs = self._costs()
        layers, wants = wanted(rows.samples, grid.depth)
        whole = grid.num_cuts == 1 and grid.is_straight and grid.piece_bytes == rows.row_bytes
        plain = whole and self._decode is None and grid.dtype.isnative and grid.dtype.kind != "b"
        places = rows.places() if plain else []
        tasks = [
            partial(self._read, int(layer), cut, want, rows, places)
            for layer, want in zip(layers, wants, strict=True)
            for cut in range(grid.num_cuts)
        ]
        num_bytes = len(rows) * rows.row_bytes if self._decode is None else len(tasks) * grid.chunk_bytes
        return Tasks(tasks, self._reader.useful_threads(len(tasks), num_bytes, costs))

    def close(self) -> None:
        """Files are open only while they are read."""

    def _read(self, layer: int, cut: int, want: Wanted, rows: Rows, places: list[memoryview]) -> int:
        """Read what is wanted of one chunk; straight into its place, where `places` are given."""
        grid, corner = self._grid, self._grid.corner(cut)
        file = _opened(self._key((layer, *corner)))
        if file is None:
            into, _ = grid.box(corner)
            for row in want.rows.tolist():
                rows.array[(row, *into)] = self._fill
            return 0
        try:
            if self._decode is not None:
                return self._read_packed(file, cut, want, rows, self._decode)
            if file.num_bytes != grid.chunk_bytes:
                kind = Truncated if file.num_bytes < grid.chunk_bytes else Corrupt
                raise kind(
                    f"{file.path}: the chunk of {rows.what(int(want.rows[0]))} has {file.num_bytes} bytes, expected "
                    f"{grid.chunk_bytes}"
                )
            offsets = want.places * grid.piece_bytes
            if places and len(offsets) == 1:
                row = int(want.rows[0])
                what = partial(_what, rows, row)
                return self._reader.fetch(file, [places[row]], int(offsets[0]), grid.piece_bytes, what)
            parts = Parts(file, offsets, np.full(len(offsets), grid.piece_bytes), want.rows)
            if places:
                tasks = self._reader.fill(parts, rows, [places[row] for row in want.rows.tolist()], None)
            else:
                tasks = self._reader.hand(parts, rows, partial(self._use_piece, cut, want, rows, str(file.path)))
            return sum(task() for task in tasks.tasks)
        finally:
            file.close()

    def _use_piece(self, cut: int, want: Wanted, rows: Rows, where: str, part: int, data: memoryview) -> None:
        grid = self._grid
        piece = Grid((1, *grid.shape[1:]), (1, *grid.chunks[1:]), grid.dtype)
        scatter(piece, cut, data, Wanted(want.rows[part : part + 1], np.zeros(1, np.int64)), rows, where)

    def _read_packed(self, file: File, cut: int, want: Wanted, rows: Rows, decode: Decoder) -> int:
        row = int(want.rows[0])
        if file.num_bytes > 2 * self._grid.chunk_bytes + _ROOM:
            raise Corrupt(f"{file.path}: the chunk of {rows.what(row)} has {file.num_bytes} bytes, which is too many")
        data = memoryview(np.empty(file.num_bytes, np.uint8))
        if len(data):
            self._reader.fetch(file, [data], 0, len(data), partial(_what, rows, row))
        try:
            decoded = decode(data, 0)
        except FormatError as error:
            raise type(error)(f"{file.path}: the chunk of {rows.what(row)}: {error}") from None
        scatter(self._grid, cut, decoded, want, rows, str(file.path))
        return len(data)

    def _costs(self) -> Costs:
        """Return what opening and reading a file costs, measured on chunks drawn at random if it was not given."""
        reader, grid = self._reader, self._grid
        if reader.costs is None:
            random, memory = np.random.default_rng(0), memoryview(bytearray(1 << 20))

            def read(size: int) -> None:
                file = _opened(self._key(tuple(int(random.integers(0, n)) for n in grid.counts)))
                if file is not None:
                    size = min(size, file.num_bytes)
                    reader.fetch(file, [memory[:size]], 0, size, lambda at: f"byte {at}")
                    file.close()

            reader.costs = measure(read, grid.chunk_bytes)
        return reader.costs


def _opened(path: str) -> File | None:
    """Return the file of a chunk; None if it was never written."""
    try:
        return File(path)
    except FileNotFoundError:
        return None
    except (UsageError, NotADirectoryError, ValueError):
        raise Corrupt(f"{path} is not a file, and should hold a chunk") from None


def _what(rows: Rows, row: int, offset: int) -> str:
    return f"{rows.what(row)}, at byte {offset},"


class Shards:
    """Rows in shards that are a file each, of whole samples, and have their chunks listed at one end.

    The list is little-endian uint64[num_chunks, 2], the offset and size of each chunk in C order, both 2^64 - 1 where
    it was never written; with `is_checked`, a CRC32C of 4 bytes follows.
    """

    def __init__(
        self,
        reader: Reader,
        grid: Grid,
        shard: Grid,
        key: Key,
        fill: Any,
        decode: Decoder | None,
        note: str,
        *,
        is_checked: bool,
        at_end: bool,
    ) -> None:
        self._reader, self._grid, self._shard, self._key, self._fill = reader, grid, shard, key, fill
        self._decode, self.note, self._is_checked, self._at_end = decode, note, is_checked, at_end
        self._tables: dict[int, tuple[Identity, Table]] = {}

    def tasks(self, rows: Rows) -> Tasks:
        layers, wants = wanted(rows.samples, self._grid.depth)
        tasks = [partial(self._read, int(layer), want, rows) for layer, want in zip(layers, wants, strict=True)]
        costs = self._reader.costs or USUAL
        return Tasks(tasks, self._reader.useful_threads(len(rows), len(rows) * rows.row_bytes, costs))

    def close(self) -> None:
        """Files are open only while they are read."""

    def _read(self, layer: int, want: Wanted, rows: Rows) -> int:
        file = _opened(self._key((layer, *(0 for _ in self._grid.counts[1:]))))
        if file is None:
            rows.array[want.rows] = self._fill
            return 0
        try:
            table, num_bytes = self._table(layer, file)
            chunks = Chunked(self._reader, file, self._shard, table, self._fill, self._decode, "")
            some = np.empty((len(want.rows), *rows.array.shape[1:]), rows.array.dtype)
            inner = Rows(want.places, some, rows.samples[want.rows])
            num_bytes += sum(task() for task in chunks.tasks(inner).tasks)
            rows.array[want.rows] = some
            return num_bytes
        finally:
            file.close()

    def _table(self, layer: int, file: File) -> tuple[Table, int]:
        """Return where the chunks of a shard lie, and the bytes that were read to know it."""
        known = self._tables.get(layer)
        if known is not None and known[0] == file.identity:
            return known[1], 0
        shard = self._shard
        size = 16 * shard.num_chunks + 4 * self._is_checked
        if file.num_bytes < size:
            raise Truncated(f"{file.path} has {file.num_bytes} bytes; the list of its chunks needs {size}")
        data = memoryview(np.empty(size, np.uint8))
        start = file.num_bytes - size if self._at_end else 0
        self._reader.fetch(file, [data], start, size, lambda at: f"the list of chunks, at byte {at},")
        listed = data
        if self._is_checked:
            try:
                listed = crc32c(data, size)
            except FormatError as error:
                raise type(error)(f"{file.path}: the list of chunks: {error}") from None
        numbers = np.frombuffer(listed, "<u8").reshape(-1, 2)
        keys = np.flatnonzero((numbers != _MISSING).any(axis=1))
        places = np.minimum(numbers[keys], 2**63 - 1).astype(np.int64)
        table = Table(file, shard.num_chunks, keys, places[:, 0], places[:, 1], np.zeros(len(keys), np.int64))
        if self._decode is None and (table.sizes != shard.chunk_bytes).any():
            raise Corrupt(f"{file.path}: chunks that are not packed must have {shard.chunk_bytes} bytes, some have not")
        self._tables[layer] = file.identity, table
        return table, size
