"""Snapshot: the latest state of all ranks in all communicators, one moment of the job."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trimtab.diagnose.frame import ASYNC, AWAITED, FRAME, RECORD, UNSEEN, RankFile, boot_id, read_folder, texts_in
from trimtab.diagnose.groups import Groups
from trimtab.diagnose.verdict import ranks_in_words


@dataclass
class Snapshot:
    """Where every rank is. Arrays have a place for each membership of `groups`, or for each rank.

    Times are ages on the clock of the rank's own host; no two hosts' clocks are compared.
    """

    groups: Groups
    # of memberships
    seen: np.ndarray
    """bool: the rank's file knows the communicator. Where it does not, the rank has entered nothing there."""
    seq: np.ndarray
    """int64: the latest operation that the rank has entered; 0 none."""
    done: np.ndarray
    """int64: how many operations it has completed."""
    age: np.ndarray
    """float64: seconds since it entered the latest; NaN unknown."""
    signature: np.ndarray
    """uint32, of the latest operation, as `site`, `step` (uint32) and `op` (uint8); 0 unknown."""
    site: np.ndarray
    step: np.ndarray
    op: np.ndarray
    blocking: np.ndarray
    """bool: the program waits for the latest operation, if that is not complete."""
    # of ranks
    present: np.ndarray
    """bool: there is a state of this rank at all."""
    finished: np.ndarray
    """bool: it came to its end and said so."""
    waiting: np.ndarray
    """float64: seconds for which it has been waiting for data; 0 if it is not."""
    paused: np.ndarray
    """float64: seconds for which it has announced to be away still; 0 if it has not."""
    lost: np.ndarray
    """int64: operations that could not be recorded."""
    texts: Mapping[int, str] = field(default_factory=dict)
    """Call sites and the like by hash."""
    where: Mapping[int, str] = field(default_factory=dict)
    """Host and process of ranks."""
    notes: Sequence[str] = ()
    """What could not be read."""
    all_asked: bool = False
    """Whether all ranks were asked for their state, so that one which gave none could not."""

    @classmethod
    def empty(cls, groups: Groups, *, notes: Sequence[str] = ()) -> Snapshot:
        """Return the state in which no rank has been seen."""
        num, ranks = groups.ranks.size, groups.num_ranks
        return cls(
            groups=groups,
            seen=np.zeros(num, bool),
            seq=np.zeros(num, np.int64),
            done=np.zeros(num, np.int64),
            age=np.full(num, np.nan),
            signature=np.zeros(num, np.uint32),
            site=np.zeros(num, np.uint32),
            step=np.zeros(num, np.uint32),
            op=np.zeros(num, np.uint8),
            blocking=np.ones(num, bool),
            present=np.zeros(ranks, bool),
            finished=np.zeros(ranks, bool),
            waiting=np.zeros(ranks),
            paused=np.zeros(ranks),
            lost=np.zeros(ranks, np.int64),
            notes=notes,
        )

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str]) -> Snapshot:
        """Read the files of all ranks.

        Raises:
            FormatError: there is no file that can be used.
        """
        files, notes = read_folder(folder)
        groups, places, more = Groups.of_files(files)
        return cls.of_files(files, groups, places, notes=[*notes, *more])

    @classmethod
    def of_files(
        cls, files: Sequence[RankFile], groups: Groups, places: Iterable[np.ndarray], *, notes: Sequence[str] = ()
    ) -> Snapshot:
        """Return the state in files that were read (`frame.read_folder`) and joined (`Groups.of_files`)."""
        state, here, num_foreign = cls.empty(groups), boot_id(), 0
        texts: dict[int, str] = {}
        where: dict[int, str] = {}
        now = np.zeros(len(files), np.int64)  # 0: the clock is another host's
        for i, file in enumerate(files):
            rank = file.rank
            state.present[rank], state.finished[rank], state.lost[rank] = True, file.finished, min(file.lost, 1 << 62)
            where[rank] = f"{file.host}, process {file.pid}"
            if not here or file.boot != here:
                num_foreign += 1
                continue
            now[i] = file.read_at
            state.waiting[rank] = max(file.read_at - file.waiting_since, 0) / 1e9 if file.waiting_since else 0
            state.paused[rank] = max(file.pause_until - file.read_at, 0) / 1e9
        for data in {file.raw_texts for file in files}:
            texts.update(texts_in(data))
        place = np.concatenate([np.zeros(0, np.int64), *places])
        good = place >= 0
        at = place[good]
        frames = np.frombuffer(b"".join([file.frames.tobytes() for file in files]), FRAME)[good]
        latest = np.frombuffer(b"".join([file.latest.tobytes() for file in files]), RECORD)[good]
        state.seen[at] = True
        state.seq[at] = np.minimum(frames["seq"], np.uint64(1 << 62))
        state.done[at] = np.minimum(frames["done"], frames["seq"])  # a reader may see the later of the two first
        for name in ("signature", "site", "step", "op"):
            getattr(state, name)[at] = latest[name]
        state.blocking[at] = latest["flags"] & (ASYNC | AWAITED) != ASYNC
        nows = np.repeat(now, [file.frames.size for file in files])[good]
        entered = latest["enter"].astype(np.float64)
        # a record that was being written just now is new
        ages = np.where(latest["enter"] > 0, np.maximum(nows - entered, 0) / 1e9, 0.0)
        state.age[at] = np.where(nows > 0, ages, np.nan)
        more = list(notes)
        if num_foreign:
            more.append(f"the clock of {num_foreign} ranks cannot be read here: how long they wait is not known")
        if blind := [file.rank for file in files if file.blind]:
            state._follow(blind)
            more.append(f"what {ranks_in_words(blind)} did since the probe there gave up")
        for bit, what in enumerate(UNSEEN):
            if blind := [file.rank for file in files if file.unseen >> bit & 1]:
                more.append(f"{what} ({ranks_in_words(blind)})")
        state.texts, state.where, state.notes = texts, where, more
        return state

    def _follow(self, ranks: Sequence[int]) -> None:
        """Take ranks of which nothing is known any more to go along with the others."""
        c = self.groups.communicator
        front = np.zeros(len(self.groups.names), np.int64)
        np.maximum.at(front, c, self.seq)
        theirs = np.isin(self.groups.ranks, ranks)
        self.seq[theirs] = self.done[theirs] = front[c[theirs]]
        self.signature[theirs] = self.site[theirs] = self.step[theirs] = 0
