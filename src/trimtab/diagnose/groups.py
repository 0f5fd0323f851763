"""Who is a member of which communicator, over all ranks of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trimtab.diagnose.frame import FRAME, RankFile
from trimtab.errors import FormatError

_MAX_MEMBERS = 1 << 24


@dataclass(frozen=True)
class Groups:
    """The communicators of a job. A **membership** is one rank in one communicator.

    Memberships are counted through all communicators: those of communicator c are ``start[c]`` to ``start[c + 1]``, in
    the communicator's own order. States and traces have a place for each.
    """

    num_ranks: int
    names: tuple[str, ...]
    p2p: np.ndarray
    """bool [communicators]: one direction between two ranks, sender first."""
    guessed: np.ndarray
    """bool [communicators]: the members are those that were seen, since nothing says who they are."""
    start: np.ndarray
    """int64 [communicators + 1]."""
    ranks: np.ndarray
    """int32 [memberships]."""

    @cached_property
    def communicator(self) -> np.ndarray:
        """The communicator of each membership, int32."""
        return np.repeat(np.arange(len(self.names), dtype=np.int32), np.diff(self.start))

    def members(self, communicator: int) -> slice:
        """Return the memberships of a communicator."""
        return slice(int(self.start[communicator]), int(self.start[communicator + 1]))

    @classmethod
    def build(
        cls, num_ranks: int, members: Sequence[np.ndarray], names: Sequence[str], p2p: Sequence[bool],
        guessed: Sequence[bool] = (),
    ) -> Groups:  # fmt: skip
        """Return the groups with these members (ranks of the job), one array a communicator."""
        sizes = np.array([len(ranks) for ranks in members], np.int64)
        return cls(
            num_ranks=num_ranks,
            names=tuple(names),
            p2p=np.array(p2p, bool),
            guessed=np.array(guessed or [False] * len(names), bool),
            start=np.concatenate([[0], sizes.cumsum()]).astype(np.int64),
            ranks=np.concatenate([*members, np.zeros(0, np.int32)]).astype(np.int32),
        )

    @classmethod
    def of_files(cls, files: Sequence[RankFile]) -> tuple[Groups, list[np.ndarray], list[str]]:
        """Join what the files say.

        Returns the groups, for each file the membership of each of its frames (int64; -1 where it contradicts the
        others or itself), and what was wrong in words.
        """
        sizes = np.array([file.frames.size for file in files], np.int64)
        offsets = np.concatenate([[0], sizes.cumsum()])
        owner = np.repeat(np.arange(len(files)), sizes)
        frames = np.frombuffer(b"".join([file.frames.tobytes() for file in files]), FRAME)
        _, firsts, kinds = np.unique(frames["uid"], return_index=True, return_inverse=True)
        c = np.full(frames.size, -1, np.int64)
        members: list[np.ndarray | None] = []
        names, p2p, notes = [], [], []
        total = 0
        order = np.argsort(kinds, kind="stable")
        ends = np.bincount(kinds, minlength=firsts.size).cumsum()
        for kind in np.argsort(firsts).tolist():  # in the order of appearing
            begin, end = int(ends[kind - 1]) if kind else 0, int(ends[kind])
            for position in range(begin, end):  # what one file says badly, another may say well
                entry = int(order[position])
                file = files[owner[entry]]
                try:
                    found = file.communicator(entry - int(offsets[owner[entry]]))
                except FormatError as error:
                    notes.append(str(error))
                    continue
                total += 0 if found.members is None else found.members.size
                if total > _MAX_MEMBERS:
                    raise FormatError(f"{file.path}: more than {_MAX_MEMBERS} members of communicators")
                c[order[position:end]] = len(names)
                members.append(found.members)
                names.append(found.name)
                p2p.append(found.p2p)
                break
        ranks = np.array([file.rank for file in files], np.int32)[owner]
        guessed = [one is None for one in members]
        filled = [np.unique(ranks[c == i]) if one is None else one for i, one in enumerate(members)]
        num_ranks = max((file.world_size for file in files), default=0)
        groups = cls.build(num_ranks, filled, names, p2p, guessed)
        places = groups._places(c, frames["position"].astype(np.int64), ranks)
        bad = np.flatnonzero((c >= 0) & (places < 0))
        for entry in bad[np.unique(owner[bad], return_index=True)[1]].tolist():
            notes.append(f"rank {ranks[entry]} contradicts other ranks about communicator {names[c[entry]]!r}")
        return groups, np.split(places, offsets[1:-1]) if files else [], notes

    def _places(self, c: np.ndarray, position: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """The membership of each frame: at this position of the members of communicator `c`, in a file of a rank."""
        places = np.full(c.size, -1, np.int64)
        inside = np.flatnonzero(c >= 0)
        inside = inside[~self.guessed[c[inside]]]
        inside = inside[position[inside] < self.start[c[inside] + 1] - self.start[c[inside]]]
        at = self.start[c[inside]] + position[inside]
        places[inside] = np.where(self.ranks[at] == ranks[inside], at, -1)
        for i in np.flatnonzero(self.guessed).tolist():
            mine, members = np.flatnonzero(c == i), self.members(i)
            places[mine] = members.start + np.searchsorted(self.ranks[members], ranks[mine])
        used, counts = np.unique(places, return_counts=True)
        places[np.isin(places, used[counts > 1])] = -1  # a file that names one communicator twice
        return places
