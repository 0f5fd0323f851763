"""Timeline: the operations of some ranks around a fault on one common time, for pictures and trace viewers.

Clocks of hosts are not compared. Ranks leave an operation at about the same time, so each clock is shifted until the
operations that ranks have in common end together; ranks with one clock are shifted together. What is left of
differences is the time by which members leave one after the other, and is no measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trimtab.diagnose.look import Look
from trimtab.diagnose.standing import ABSENT, Standing
from trimtab.diagnose.trace import Trace
from trimtab.diagnose.verdict import Verdict, ranks_in_words

SPAN = np.dtype(
    [
        ("rank", "<i4"),
        ("communicator", "<i4"),
        ("seq", "<i8"),
        ("begin", "<f8"),  # seconds from the beginning of the window
        ("end", "<f8"),  # the window's end while `is_open`
        ("waited", "<f8"),  # seconds waited for data just before
        ("op", "u1"),
        ("bits", "u1"),  # of the number of bytes
        ("lane", "u1"),  # operations of one communicator and lane do not overlap
        ("is_open", "?"),
        ("step", "<u4"),
        ("site", "<u4"),
    ]
)
_COMMON = 16  # operations by which two clocks are compared
_MOST = 512  # operations of a rank that are shown
_LANES = 8
_BEFORE, _AFTER = 20, 0.3  # operations before the fault, and the share of their time after it


@dataclass(frozen=True)
class Timeline:
    """What some ranks did around a fault."""

    look: Look
    verdict: Verdict
    ranks: tuple[int, ...]
    num_left_out: int
    """Ranks of the job that are not shown."""
    seconds: float
    """Length of the window."""
    focus: float
    """When the fault shows, in seconds from the window's beginning."""
    spans: np.ndarray
    """`SPAN`, by rank and begin."""
    ended: np.ndarray
    """float64 [ranks shown]: when each left its last operation, NaN if it did not."""
    notes: tuple[str, ...]

    @classmethod
    def of(cls, look: Look, verdict: Verdict, *, limit: int = 24, num_before: int = _BEFORE) -> Timeline | None:
        """Return the window around the fault, or the last operations of a healthy job; None where there are none.

        Shown are the ranks of the verdict, then those that it tells about, then those furthest behind, `limit` in all.
        """
        trace = look.trace
        if trace is None or not trace.num_records:
            return None
        shift, is_aligned, notes = align(trace, look.clocks)
        ranks = _chosen(look, verdict, limit)
        taken = shift[trace.groups.ranks]
        spans = np.concatenate([np.zeros(0, SPAN), *(_spans(trace, rank, taken) for rank in ranks)])
        if not spans.size:
            return None
        stray = ~is_aligned[spans["rank"]]
        latest = spans[~stray]["begin"].max() if not stray.all() else 0.0
        for rank in np.unique(spans["rank"][stray]).tolist():
            mine = spans["rank"] == rank
            move = latest - spans["begin"][mine].max()
            spans["begin"][mine] += move
            spans["end"][mine] += move
        focus = _focus(trace, verdict, taken, is_aligned)
        is_hang = focus is not None
        last = float(np.nanmax(np.fmax(spans["begin"], spans["end"])))
        focus = last if focus is None else focus
        starts = []
        for rank in ranks:
            mine = np.sort(spans["begin"][(spans["rank"] == rank) & (spans["begin"] <= focus)])
            if mine.size:
                starts.append(mine[max(mine.size - num_before, 0)])
        begin = float(np.median(starts)) if starts else float(spans["begin"].min())
        length = max(focus - begin, 1e-6)
        end = max(focus + _AFTER * length, begin + 1e-6) if is_hang else last + 0.02 * length
        spans["is_open"] = np.isnan(spans["end"])
        spans["end"] = np.where(spans["is_open"], end, spans["end"])
        ended = np.full(len(ranks), np.nan)
        for i, rank in enumerate(ranks):
            mine = spans[spans["rank"] == rank]
            if mine.size and not mine["is_open"].any():
                ended[i] = mine["end"].max() - begin
        spans = spans[(spans["begin"] <= end) & (spans["end"] >= begin)]
        spans["begin"] -= begin
        spans["end"] -= begin
        spans = spans[np.lexsort((spans["begin"], spans["rank"]))]
        _fill_lanes(spans)
        return cls(
            look=look,
            verdict=verdict,
            ranks=tuple(ranks),
            num_left_out=look.snapshot.groups.num_ranks - len(ranks),
            seconds=end - begin,
            focus=focus - begin,
            spans=spans,
            ended=ended,
            notes=tuple(notes),
        )


def align(trace: Trace, clocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return what to take from each rank's clock (int64 ns), for which ranks that is known, and words about it.

    `clocks` is that of `Look`. Times are then those of the first rank that has recorded anything.
    """
    groups = trace.groups
    shift, is_aligned = np.zeros(groups.num_ranks, np.int64), np.zeros(groups.num_ranks, bool)
    has = np.zeros(groups.num_ranks, bool)
    has[groups.ranks[trace.count > 0]] = True
    if not has.any():
        return shift, is_aligned, []
    first = int(np.flatnonzero(has)[0])
    is_aligned[_same_clock(clocks, first)] = True
    sizes = np.diff(groups.start)
    order = [c for c in np.argsort(-sizes, kind="stable").tolist() if sizes[c] > 1]
    order.sort(key=lambda c: bool(groups.p2p[c]))
    is_moving = True
    while is_moving and not is_aligned[has].all():
        is_moving = False
        for c in order:
            ranks = groups.ranks[groups.members(c)]
            if is_aligned[ranks].all() or not is_aligned[ranks].any():
                continue
            exits = _exits(trace, c)
            known = np.flatnonzero(is_aligned[ranks] & ~np.isnan(exits).all(1))
            if not known.size:
                continue
            base = exits[known[0]] - shift[ranks[known[0]]]
            for member in np.flatnonzero(~is_aligned[ranks]).tolist():
                apart = exits[member] - base
                apart = apart[~np.isnan(apart)]
                rank = int(ranks[member])
                if not apart.size or is_aligned[rank]:
                    continue
                together = _same_clock(clocks, rank)
                shift[together], is_aligned[together] = np.int64(np.median(apart)), True
                is_moving = True
    notes = []
    if np.unique(clocks[has]).size > 1 or not clocks[has].all():
        notes.append("clocks are not compared: ranks are aligned by the ends of the operations that they share")
    if not is_aligned[has].all():
        notes.append(f"{ranks_in_words(np.flatnonzero(has & ~is_aligned))}: no operation to align by; ends together")
    return shift, is_aligned, notes


def _same_clock(clocks: np.ndarray, rank: int) -> np.ndarray:
    return np.flatnonzero(clocks == clocks[rank]) if clocks[rank] else np.array([rank])


def _exits(trace: Trace, c: int) -> np.ndarray:
    """When members left the last operations that they share, ns of their own clocks, [members, `_COMMON`]; NaN none.

    A float64 holds nanoseconds of a hundred days exactly; of wall clocks, to a quarter of a microsecond.
    """
    start, first, count = trace.blocks(c)
    known = count > 0
    out = np.full((start.size, _COMMON), np.nan)
    if np.count_nonzero(known) < 2:
        return out
    # members that are far behind, or whose rings begin later, share none and are left out
    ends = first + count
    high = int(np.median(ends[known]))
    high = min(high, int(ends[known & (ends > high - _COMMON)].min()))
    seqs = np.arange(max(high - _COMMON, 1), high)
    for member in np.flatnonzero(known).tolist():
        there = (seqs >= first[member]) & (seqs < ends[member])
        at = start[member] + seqs[there] - first[member]
        enter, inside = trace.columns["enter"][at], trace.columns["inside"][at].astype(np.float64)
        out[member, : seqs.size][there] = np.where(enter > 0, enter + inside * 1e9, np.nan)
    return out


def _chosen(look: Look, verdict: Verdict, limit: int) -> list[int]:
    told = [rank for ranks in verdict.sets.values() for rank in ranks[: limit // 3]]
    standing = Standing.of(look)
    neighbours: list[int] = []
    groups = look.snapshot.groups
    for rank in verdict.ranks[:4]:
        mine = groups.communicator[groups.ranks == rank]
        sizes = np.diff(groups.start)[mine]
        for c in mine[np.argsort(sizes)].tolist():
            neighbours += groups.ranks[groups.members(c)][: limit // 3].tolist()
    first = [*verdict.ranks[: limit // 2], *told, *neighbours]
    ranks = standing.most_telling(limit, first)
    return [rank for rank in ranks if standing.state[rank] != ABSENT or rank in verdict.ranks]


def _spans(trace: Trace, rank: int, taken: np.ndarray) -> np.ndarray:
    """The latest operations of one rank; times in seconds, `end` NaN while inside."""
    groups = trace.groups
    parts = []
    for m in np.flatnonzero((groups.ranks == rank) & (trace.count > 0)).tolist():
        num = int(min(trace.count[m], _MOST))
        at = np.arange(trace.start[m] + trace.count[m] - num, trace.start[m] + trace.count[m])
        part = np.zeros(num, SPAN)
        columns = {name: column[at] for name, column in trace.columns.items()}
        part["rank"], part["communicator"] = rank, groups.communicator[m]
        part["seq"] = trace.first[m] + trace.count[m] - num + np.arange(num)
        part["begin"] = (columns["enter"] - taken[m]) / 1e9
        part["end"] = part["begin"] + columns["inside"]
        part["waited"], part["op"], part["bits"] = columns["waited"], columns["kind"] >> 8, columns["kind"] & 0xFF
        part["step"], part["site"] = columns["step"], columns["site"]
        parts.append(part[columns["enter"] > 0])
    spans = np.concatenate([np.zeros(0, SPAN), *parts])
    return spans[np.argsort(spans["begin"], kind="stable")[-_MOST:]]


def _focus(trace: Trace, verdict: Verdict, taken: np.ndarray, is_aligned: np.ndarray) -> float | None:
    """When the operation of the verdict was entered first, in seconds; None where it is of no operation."""
    if verdict.communicator is None or verdict.seq is None:
        return None
    groups = trace.groups
    named = [c for c, name in enumerate(groups.names) if name == verdict.communicator]
    named.sort(key=lambda c: not np.isin(groups.ranks[groups.members(c)], verdict.ranks).any())
    for c in named:
        members, enter = trace.at("enter", c, verdict.seq)
        at = groups.members(c).start + members
        good = (enter > 0) & is_aligned[groups.ranks[at]]
        if good.any():
            return float((enter[good] - taken[at[good]]).min() / 1e9)
    return None


def _fill_lanes(spans: np.ndarray) -> None:
    """Give operations of one communicator that overlap, as asynchronous ones may, different lanes."""
    free: dict[tuple[int, int], list[float]] = {}
    for i, (rank, c, begin, end) in enumerate(
        zip(*(spans[name].tolist() for name in ("rank", "communicator", "begin", "end")), strict=True)
    ):
        lanes = free.setdefault((rank, c), [])
        lane = next((k for k, until in enumerate(lanes) if until <= begin), len(lanes))
        if lane == len(lanes) and lane < _LANES:
            lanes.append(end)
        lane = min(lane, _LANES - 1)
        lanes[lane] = end
        spans["lane"][i] = lane
