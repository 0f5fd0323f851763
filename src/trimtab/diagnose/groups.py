"""Who is a member of which communicator, over all ranks of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trimtab.diagnose.frame import RankFile
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
        index: dict[int, int] = {}
        members: list[np.ndarray | None] = []
        seen: list[list[int]] = []
        names, p2p, notes = [], [], []
        local: list[list[int]] = []
        total = 0
        for file in files:
            mine = []
            for i, uid in enumerate(file.frames["uid"].tolist()):
                c = index.get(uid)
                if c is None:
                    try:
                        found = file.communicator(i)
                    except FormatError as error:
                        notes.append(str(error))
                        mine.append(-1)
                        continue
                    total += 0 if found.members is None else found.members.size
                    if total > _MAX_MEMBERS:
                        raise FormatError(f"{file.path}: more than {_MAX_MEMBERS} members of communicators")
                    c = index[uid] = len(names)
                    members.append(found.members)
                    names.append(found.name)
                    p2p.append(found.p2p)
                    seen.append([])
                mine.append(c)
                seen[c].append(file.rank)
            local.append(mine)
        guessed = [ranks is None for ranks in members]
        filled = [np.unique(seen[c]).astype(np.int32) if ranks is None else ranks for c, ranks in enumerate(members)]
        num_ranks = max((file.world_size for file in files), default=0)
        groups = cls.build(num_ranks, filled, names, p2p, guessed)
        places = [groups._places(file, mine, notes) for file, mine in zip(files, local, strict=True)]
        return groups, places, notes

    def _places(self, file: RankFile, local: list[int], notes: list[str]) -> np.ndarray:
        c = np.array(local, np.int64)
        position = file.frames["position"].astype(np.int64)
        known = c >= 0
        places = np.full(c.size, -1, np.int64)
        inside = np.flatnonzero(known)
        inside = inside[~self.guessed[c[inside]]]
        inside = inside[position[inside] < self.start[c[inside] + 1] - self.start[c[inside]]]
        at = self.start[c[inside]] + position[inside]
        places[inside] = np.where(self.ranks[at] == file.rank, at, -1)
        for i in np.flatnonzero(known).tolist() if self.guessed.any() else ():
            if self.guessed[c[i]]:
                members = self.members(int(c[i]))
                places[i] = members.start + np.searchsorted(self.ranks[members], file.rank)
        used = places[places >= 0].tolist()
        if len(set(used)) < len(used):
            places[[used.count(place) > 1 for place in places.tolist()]] = -1
        if (bad := np.flatnonzero(known & (places < 0))).size:
            notes.append(f"rank {file.rank} contradicts other ranks about communicator {self.names[c[bad[0]]]!r}")
        return places
