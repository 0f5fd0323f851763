"""Trace: the operations of all ranks side by side, decoded from rings into columns."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trimtab.diagnose.frame import RECORD, RankFile, read_folder
from trimtab.diagnose.groups import Groups
from trimtab.errors import FormatError
from trimtab.kernels import load

Ring = tuple[int, np.ndarray, np.ndarray]
"""A rank, its ring (`RECORD` [capacity]), and the membership of each of its communicators (int64; -1 unknown)."""


@dataclass
class Trace:
    """Columns over all operations that the rings still hold.

    The operations of membership m have consecutive sequence numbers, from ``first[m]`` on; the one with number s stands
    at ``start[m] + s - first[m]`` in every column, if ``0 <= s - first[m] < count[m]``. No number is stored, so that 40
    million records take 34 bytes each.
    """

    COLUMNS: ClassVar[dict[str, str]] = {
        "enter": "i8",  # ns on the clock of the rank's host
        "inside": "f4",  # seconds; NaN while it goes on
        "outside": "f4",  # seconds since the rank was last inside anything
        "waited": "f4",  # seconds of these waited for data
        "signature": "u4",
        "site": "u4",
        "step": "u4",
        "kind": "u2",  # op * 256 + bits of the number of bytes
    }

    groups: Groups
    start: np.ndarray
    """int64 [memberships], as are `first` and `count`."""
    first: np.ndarray
    count: np.ndarray
    columns: dict[str, np.ndarray]
    torn: np.ndarray
    """int64 [ranks]: records that were being written while they were read, or were damaged."""
    notes: tuple[str, ...] = ()

    @property
    def num_records(self) -> int:
        """Operations in the columns, over all ranks."""
        return int(self.count.sum())

    def blocks(self, communicator: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `start`, `first` and `count` of the members of a communicator."""
        members = self.groups.members(communicator)
        return self.start[members], self.first[members], self.count[members]

    def at(self, column: str, communicator: int, seq: int) -> tuple[np.ndarray, np.ndarray]:
        """Return one column of one operation: which members (positions) are known, and their values."""
        start, first, count = self.blocks(communicator)
        known = np.flatnonzero((seq >= first) & (seq < first + count))
        return known, self.columns[column][start[known] + seq - first[known]]

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str]) -> Trace:
        """Read the rings of all ranks.

        Raises:
            FormatError: there is no file that can be used.
        """
        files, notes = read_folder(folder)
        groups, places, more = Groups.of_files(files)
        return cls.of_files(files, groups, places, notes=(*notes, *more))

    @classmethod
    def of_files(
        cls, files: Iterable[RankFile], groups: Groups, places: Iterable[np.ndarray], *, notes: tuple[str, ...] = (),
        columns: Sequence[str] | None = None,
    ) -> Trace:  # fmt: skip
        """Read the rings of files, one at a time: beside the columns, no more than one ring is in memory.

        `columns` names those that are wanted; by default all are, and verdicts need all.
        """
        files = list(files)
        problems: list[str] = []

        def rings() -> Iterable[Ring]:
            buffer = np.empty(max((file.capacity for file in files), default=0), RECORD)
            for file, place in zip(files, places, strict=True):
                try:
                    yield file.rank, file.ring(buffer), place
                except (FormatError, OSError) as error:
                    problems.append(f"the ring of rank {file.rank} could not be read: {error}")

        trace = cls.of_rings(rings(), groups, room=sum(file.capacity for file in files), columns=columns)
        trace.notes = (*notes, *trace.notes, *problems)
        return trace

    @classmethod
    def of_rings(
        cls, rings: Iterable[Ring], groups: Groups, *, room: int, columns: Sequence[str] | None = None
    ) -> Trace:
        """Decode rings; `room` is the sum of their capacities. Memory that stays empty is never touched."""
        kernels = load("rings")
        wanted = cls.COLUMNS if columns is None else columns
        filled = {name: np.empty(room if name in wanted else 0, dtype) for name, dtype in cls.COLUMNS.items()}
        num = groups.ranks.size
        start, first, count = np.zeros(num, np.int64), np.zeros(num, np.int64), np.zeros(num, np.int64)
        torn, notes, used = np.zeros(groups.num_ranks, np.int64), [], 0
        found, columns_in_order = np.zeros(2, np.int64), tuple(filled.values())
        for rank, ring, place in rings:
            words = ring.view("<u8").reshape(-1, 8)
            if sys.byteorder == "big":
                words = words.astype(np.uint64)
            low, high = np.empty(place.size, np.int64), np.empty(place.size, np.int64)
            newest = kernels.scan(words, low, high, found)
            num_valid, torn[rank] = found.tolist()
            if newest < 0:
                continue
            lengths = high - low + (low > 0)
            # numbers of 2^62 fit, but their sum might not; floats are exact enough to refuse
            if lengths.sum(dtype=np.float64) > ring.size:
                notes.append(f"the ring of rank {rank} is damaged: its numbers leave gaps")
                continue
            ends = lengths.cumsum()
            starts, total = used + ends - lengths, int(ends[-1])
            if total > num_valid:  # torn records leave gaps; 0 and NaN stand for unknown
                for column in columns_in_order:
                    column[used : used + total] = np.nan if column.dtype.kind == "f" else 0
            kernels.place(words, newest, low, high, starts, *columns_in_order)
            good = place >= 0
            at = place[good]
            start[at], first[at], count[at] = starts[good], low[good], lengths[good]
            used += total
        if torn.any():
            notes.append(f"{int(torn.sum())} records on {np.count_nonzero(torn)} ranks were torn, and left out")
        return cls(
            groups=groups,
            start=start,
            first=first,
            count=count,
            columns={name: filled[name][:used] for name in wanted},
            torn=torn,
            notes=tuple(notes),
        )
