"""Verdict: what is wrong with a job, which ranks cause it, why, how sure that is, and what could not be seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

Kind = Literal["healthy", "H1", "H2", "H3", "S1", "S2", "S3"]

MEANINGS: dict[str, str] = {
    "healthy": "nothing is wrong",
    "H1": "hang: some ranks never reached the operation that the others wait in",
    "H2": "hang by different operations: ranks did not call the same",
    "H3": "hang inside an operation: all have entered the same one, and it does not end",
    "S1": "slow computation: some ranks come late, and the others wait for them",
    "S2": "slow communication: all are there, and the transfer takes long",
    "S3": "slow computation and slow communication together",
}
"""The six classes of CCL-D in words."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From when on something counts as wrong. The paper's values are not public; the defaults are ours."""

    hang_seconds: float | None = None
    """A wait as long is a hang. None: 30 s, or more where the history has long pauses (`analyze.hang_limit`)."""
    window_seconds: float = 60.0
    """Slowness is judged over so much time, and compared with what was before."""
    times: float = 3.0
    """An operation is slow from so many times its usual duration on (theta)."""
    share: float = 0.05
    """What costs a smaller share of the time does not count."""
    min_cost: float = 0.1
    """Seconds of the window that must be lost."""
    min_window: float = 1.0
    """Seconds that the window must have: of a job that has only begun, slowness tells nothing."""
    alpha: float = 0.2
    """Below this share of lateness in what is lost, slowness is S2."""
    beta: float = 0.8
    """Above this share of lateness, slowness is S1; between the two, S3."""
    deviations: float = 6.0
    """A rank stands out from so many (robust) standard deviations of the others on."""
    min_ops: int = 8
    """Fewer operations in the window tell nothing."""


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operating system of a rank's host says about its process. All of it is optional."""

    state: str | None = None
    """As in ``/proc/<pid>/stat``: T stopped, D waiting for a disk, Z or X dead (X also where it is gone)."""
    cpu_share: float | None = None
    """Processor time per time, since the last look: about 1 in a busy loop, 0 asleep."""
    delay_share: float | None = None
    """Time that its threads were ready to run and waited for a processor, per time; above 1 where several did."""
    stack: tuple[str, ...] = ()
    """The Python functions that it is in, the innermost last."""

    @property
    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return self.state in ("Z", "X", "x")

    @property
    def is_out(self) -> bool:
        """Whether the process cannot take part in anything."""
        return self.is_dead or self.state in ("T", "t")


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer. All fields are plain; `report` gives them as a dict for JSON."""

    kind: Kind
    ranks: tuple[int, ...] = ()
    """The ranks that cause it; empty where none can be named."""
    confidence: float
    """From 0 to 1: a rule of thumb that orders verdicts, not a probability that was fitted."""
    summary: str
    communicator: str | None = None
    """Where it shows first."""
    seq: int | None = None
    """The operation of that communicator."""
    sets: dict[str, tuple[int, ...]] = {}
    """Ranks by what they do there, such as ``inside``, ``missing``, ``left``."""
    measures: dict[str, float] = {}
    """Numbers behind the verdict, units in the names."""
    evidence: tuple[str, ...] = ()
    not_seen: tuple[str, ...] = ()
    """What could not be observed, and could change the verdict."""

    @property
    def is_healthy(self) -> bool:
        """Whether nothing wrong was found."""
        return self.kind == "healthy"

    @property
    def report(self) -> dict[str, Any]:
        """All of it as plain values for JSON, with the meaning of the kind."""
        return {**msgspec.to_builtins(self), "meaning": MEANINGS[self.kind]}

    def __repr__(self) -> str:
        who = f", {ranks_in_words(self.ranks)}" if self.ranks else ""
        return f"<{self.kind}{who}, confidence {self.confidence:.2f}: {self.summary}>"

    def __str__(self) -> str:
        lines = [f"{self.kind} ({MEANINGS[self.kind]}), confidence {self.confidence:.2f}", self.summary]
        lines += [f"  because {line}" for line in self.evidence]
        lines += [f"  not seen: {line}" for line in self.not_seen]
        return "\n".join(lines)


def ranks_in_words(ranks: Sequence[int] | np.ndarray, *, limit: int = 6) -> str:
    """Return ranks as words: ``rank 3``, ``ranks 0-7, 12``; beyond `limit` runs only how many.

    >>> ranks_in_words([0, 1, 2, 5])
    'ranks 0-2, 5'
    """
    values = sorted({int(rank) for rank in ranks})
    if len(values) == 1:
        return f"rank {values[0]}"
    if not values:
        return "no rank"
    edges = [i for i in range(1, len(values)) if values[i] != values[i - 1] + 1]
    runs = [values[a:b] for a, b in zip([0, *edges], [*edges, len(values)], strict=True)]
    words = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:limit]]
    return f"ranks {', '.join(words)}{f' and more, {len(values)} in all' if len(runs) > limit else ''}"
