"""What a rank did in the step before, against what it does in this one: it tells who is wrong where two ranks disagree.

Training repeats its steps. Of two ranks that wait for each other, or called different operations, the one that went
another way than in its own last step is the one to look at. Where steps were not announced, its latest operations take
their place: whether it has ever made these, in this order, before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from trimtab.diagnose.trace import Trace

_LATEST = 24  # operations that are compared where steps are not known


def changed(trace: Trace | None, ranks: Iterable[int], since: int = 0) -> tuple[int, ...]:
    """Return which of these ranks leave the way of their own step before; none where that is not known for all.

    Looked at is the latest step; with `since`, all from this one on, each against the one before it.
    """
    if trace is None:
        return ()
    verdicts = {rank: _has_changed(trace, rank, since) for rank in ranks}
    if None in verdicts.values():
        return ()
    return tuple(rank for rank, is_changed in verdicts.items() if is_changed)


def _has_changed(trace: Trace, rank: int, since: int) -> bool | None:
    """Whether a step is not what the one before it was, or is missing; None: unknown."""
    mine = np.flatnonzero((trace.groups.ranks == rank) & (trace.count > 0))
    if not mine.size:
        return None
    at = np.concatenate([np.arange(trace.start[m], trace.start[m] + trace.count[m]) for m in mine])
    communicator = np.repeat(trace.groups.communicator[mine], trace.count[mine])
    columns = {name: trace.columns[name][at] for name in ("enter", "signature", "site", "step", "kind")}
    order = np.argsort(columns["enter"], kind="stable")
    step = columns["step"][order]
    rows = np.stack([communicator, columns["signature"], columns["site"], columns["kind"]], 1)[order].astype(np.int64)
    if not step.any():
        return _is_new(rows)
    numbers = np.unique(step[step > 0]).tolist()  # 0: before the first
    if len(numbers) < 3:  # the oldest may have been overwritten in part
        return None
    return any(
        now > before + 1 or _differs(rows[step == now], rows[step == before], is_over=now < numbers[-1])
        for before, now in itertools.pairwise(numbers[1:])
        if now == numbers[-1] or 0 < since <= now
    )


def _differs(now: np.ndarray, before: np.ndarray, *, is_over: bool) -> bool:
    """Whether a step has other operations; one that is not over may have fewer."""
    num = len(before) if is_over else min(len(now), len(before))
    return len(now) > len(before) or not np.array_equal(now[:num], before[:num])


def _is_new(rows: np.ndarray) -> bool | None:
    """Whether the latest operations never came in this order before; None where there is too little before them."""
    num = min(_LATEST, len(rows) // 3)
    if num < 2:
        return None
    keys = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    before = np.lib.stride_tricks.sliding_window_view(keys[:-1], num)
    return not (before == keys[-num:]).all(1).any()
