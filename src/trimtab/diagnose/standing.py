"""Standing: what each rank is doing now, for tables of people and of monitoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.diagnose.divergence import op_name
from trimtab.diagnose.look import Look

STATES = ("absent", "finished", "paused", "waits for data", "inside", "outside")
"""No file; came to its end; announced to be away; waits for a batch; is in an operation; computes or does anything
else."""
ABSENT, FINISHED, PAUSED, DATA, INSIDE, OUTSIDE = range(len(STATES))


@dataclass(frozen=True)
class Standing:
    """One value a rank in every array."""

    look: Look
    state: np.ndarray
    """uint8, index into `STATES`."""
    membership: np.ndarray
    """int64: in which communicator it is inside an operation, or was last; -1 none."""
    seconds: np.ndarray
    """float64: how long it has been inside, or has waited for data; NaN unknown, 0 where it does neither."""
    lag: np.ndarray
    """int64: by how many operations it is behind the first in one of its communicators (none between two ranks)."""
    num_done: np.ndarray
    """int64: operations completed, in all communicators."""

    @classmethod
    def of(cls, look: Look) -> Standing:
        """Return where the ranks of a look stand."""
        snapshot = look.snapshot
        groups = snapshot.groups
        num, c, ranks = groups.num_ranks, groups.communicator, groups.ranks
        pending = snapshot.seen & (snapshot.seq > snapshot.done)
        front = np.zeros(len(groups.names), np.int64)
        np.maximum.at(front, c, snapshot.seq)
        behind = np.where(groups.p2p[c] | ~snapshot.present[ranks], 0, front[c] - snapshot.seq)
        lag, num_done = np.zeros(num, np.int64), np.zeros(num, np.int64)
        np.maximum.at(lag, ranks, behind)
        np.add.at(num_done, ranks, np.minimum(snapshot.done, 1 << 40))
        # what the program waits for goes first, then what is pending, then what was last; of these the youngest
        order = np.lexsort((-np.nan_to_num(snapshot.age, nan=np.inf), snapshot.blocking & pending, pending))
        order = order[snapshot.seq[order] > 0]
        membership = np.full(num, -1, np.int64)
        membership[ranks[order]] = order  # the last of a rank's counts
        known = membership >= 0
        inside = np.zeros(num, bool)
        inside[known] = pending[membership[known]]
        seconds = np.zeros(num)
        seconds[inside] = snapshot.age[membership[inside]]
        waits = snapshot.waiting > 0
        seconds = np.where(waits & ~inside, snapshot.waiting, seconds)
        state = np.select(
            [~snapshot.present, snapshot.finished, inside, snapshot.paused > 0, waits],
            [ABSENT, FINISHED, INSIDE, PAUSED, DATA],
            OUTSIDE,
        ).astype(np.uint8)
        return cls(look, state, membership, seconds, lag, num_done)

    def counts(self) -> dict[str, int]:
        """Return how many ranks are in each state that occurs."""
        found = np.bincount(self.state, minlength=len(STATES)).tolist()
        return {name: count for name, count in zip(STATES, found, strict=True) if count}

    def most_telling(self, limit: int, first: Sequence[int] = ()) -> list[int]:
        """Return at most `limit` ranks, in order: those of `first`, then those furthest behind, or away for longest."""
        lag = np.where(self.state == ABSENT, np.int64(1) << 62, self.lag)
        order = np.lexsort((-np.nan_to_num(self.seconds), -lag)).tolist()
        named = [rank for rank in first if 0 <= rank < lag.size]
        return sorted(list(dict.fromkeys([*named, *order]))[:limit])

    def row(self, rank: int) -> dict[str, Any]:
        """Return what is known of one rank, as plain values; units are in the keys."""
        snapshot, groups, at = self.look.snapshot, self.look.snapshot.groups, int(self.membership[rank])
        row: dict[str, Any] = {
            "rank": rank,
            "state": STATES[self.state[rank]],
            "operation": None,
            "communicator": None,
            "seq": None,
            "step": None,
            "site": None,
            "seconds": None if np.isnan(self.seconds[rank]) else round(float(self.seconds[rank]), 3),
            "lag_operations": int(self.lag[rank]),
            "completed_operations": int(self.num_done[rank]),
            "waited_for_data_seconds": round(float(self.look.waited[rank]), 3),
            "where": snapshot.where.get(rank),
        }
        if at >= 0:
            site = int(snapshot.site[at])
            row |= {
                "operation": op_name(int(snapshot.op[at])),
                "communicator": groups.names[groups.communicator[at]],
                "seq": int(snapshot.seq[at]),
                "step": int(snapshot.step[at]) or None,
                "site": snapshot.texts.get(site) if site else None,
            }
        return row
