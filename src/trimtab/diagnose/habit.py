"""What a rank did in the step before, against what it does in this one: it tells who is wrong where two ranks disagree.

Training repeats its steps. Of two ranks that wait for each other, or called different operations, the one that went
another way than in its own last step is the one to look at. Where steps were not announced, its latest operations take
their place: whether it has ever made these, in this order, before.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from trimtab.diagnose.trace import Trace

_LATEST = 24  # operations that are compared where steps are not known


def changed(trace: Trace | None, ranks: Iterable[int]) -> tuple[int, ...]:
    """Return which of these ranks leave the way of their own step before; none where that is not known for all."""
    if trace is None:
        return ()
    verdicts = {rank: _has_changed(trace, rank) for rank in ranks}
    if None in verdicts.values():
        return ()
    return tuple(rank for rank, is_changed in verdicts.items() if is_changed)


def _has_changed(trace: Trace, rank: int) -> bool | None:
    """Whether the operations of the latest step are no beginning of the ones in the step before; None: unknown."""
    mine = np.flatnonzero((trace.groups.ranks == rank) & (trace.count > 0))
    if not mine.size:
        return None
    at = np.concatenate([np.arange(trace.start[m], trace.start[m] + trace.count[m]) for m in mine])
    communicator = np.repeat(trace.groups.communicator[mine], trace.count[mine])
    columns = {name: trace.columns[name][at] for name in ("enter", "signature", "site", "step", "kind")}
    order = np.argsort(columns["enter"], kind="stable")
    step = columns["step"][order]
    rows = np.stack([communicator, columns["signature"], columns["site"], columns["kind"]], 1)[order].astype(np.int64)
    if not step.all():
        return _is_new(rows)
    numbers = np.unique(step)
    if numbers.size < 3:  # the oldest may have been overwritten in part
        return None
    now, before = rows[step == numbers[-1]], rows[step == numbers[-2]]
    num = min(len(now), len(before))
    # a step that has become longer has changed; one that is shorter may just not be over
    return len(now) > len(before) or not np.array_equal(now[:num], before[:num])


def _is_new(rows: np.ndarray) -> bool | None:
    """Whether the latest operations never came in this order before; None where there is too little before them."""
    num = min(_LATEST, len(rows) // 3)
    if num < 2:
        return None
    keys = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    before = np.lib.stride_tricks.sliding_window_view(keys[:-1], num)
    return not (before == keys[-num:]).all(1).any()
