"""Slowness: who comes late, or which transfer takes long.

Two durations are known of every operation on every rank, and neither needs clocks that agree: how long the rank was
inside, and how long it was outside of all operations before. Of one operation, the member that was inside for the
shortest time came last, and that time is the transfer; the longest less the shortest is what lateness cost.

A late rank is one that *works* longer than it used to, or than its peers do, measured outside of all operations: a rank
that is late because it waited elsewhere has not worked longer. So lateness is followed through any number of
communicators to the rank where it begins.

P is the share of lateness in all that is lost, as in the paper, where it is (Tmax - Tmin) / (Tmax - Tbase) of
one operation; here both parts are added up over the window, for noise makes some rank late in every operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from trimtab.diagnose.divergence import op_name
from trimtab.diagnose.frame import SYMMETRIC
from trimtab.diagnose.links import slow_ranks
from trimtab.diagnose.trace import Trace
from trimtab.diagnose.verdict import Host, Limits, Verdict, ranks_in_words
from trimtab.kernels import load

_LOW_QUANTILE = 0.1
_SCALE = 1.4826  # of the median deviation, to make it a standard deviation for normal noise
_EWMA = 0.1
_NOISE = 0.02  # of what a rank works: no deviation is taken to be smaller
_VOTES = 2 / 3  # of what slow operations lose must name the same ranks
_EXPLAINED = 0.5  # of what is lost, if a rank waited for a processor for as long, that is why
_PARTS = 4  # of the window: what holds in all but one of them lasts


@dataclass
class Baseline:
    """What is usual, kept from one look at a job to the next, for faults that are older than the rings.

    It learns only from looks that found nothing wrong.
    """

    transfers: dict[tuple[int, int], float] = field(default_factory=dict)
    """Seconds of an undisturbed operation by kind (`trace.kind`) and number of members."""
    work: dict[int, float] = field(default_factory=dict)
    """Seconds outside of operations, for each operation, by rank."""

    def learn(self, found: Timing) -> None:
        """Move by a tenth towards what was found (`time_trace`)."""
        for key, seconds in found.bases.items():
            self.transfers[key] = (1 - _EWMA) * self.transfers.get(key, seconds) + _EWMA * seconds
        for rank in np.flatnonzero(found.num_ops[:, 1] > 0).tolist():
            seconds = float(found.work[rank, 1] / found.num_ops[rank, 1])
            self.work[rank] = (1 - _EWMA) * self.work.get(rank, seconds) + _EWMA * seconds


@dataclass
class Timing:
    """The durations of a trace, before the window and in it."""

    window: float
    """Seconds; what came before is the history."""
    # of ranks: [ranks, 2], history and window
    num_ops: np.ndarray
    work: np.ndarray
    """Seconds outside of operations."""
    waited: np.ndarray
    """Seconds of these waited for data."""
    # of operations that all members have completed, in the window
    communicator: np.ndarray
    part: np.ndarray
    """In which quarter of the window it was."""
    kind: np.ndarray
    least: np.ndarray
    most: np.ndarray
    late: np.ndarray
    """The rank that was inside for the shortest time."""
    base: np.ndarray
    """Seconds that the transfer usually takes."""
    before: np.ndarray
    """The median of `most` before the window, in the same communicator; NaN where there were too few."""
    bases: dict[tuple[int, int], float]


def time_trace(trace: Trace, limits: Limits, baseline: Baseline | None = None) -> Timing | None:
    """Take the durations of a trace; None where it is too short to say anything."""
    kernels, groups, columns = load("rings"), trace.groups, trace.columns
    known = np.flatnonzero(trace.count)
    if not known.size:
        return None
    # the window ends with each rank's own last operation, on its own clock
    never = np.iinfo(np.int64).max
    ends, begins = np.full(groups.num_ranks, -1), np.full(groups.num_ranks, never)
    np.maximum.at(ends, groups.ranks[known], columns["enter"][trace.start[known] + trace.count[known] - 1])
    np.minimum.at(begins, groups.ranks[known], columns["enter"][trace.start[known]])
    spans = (ends - begins)[ends >= 0]
    # where operations are few, as slow ones are, the window is long enough for some
    room = np.full(groups.num_ranks, never)
    num = 2 * limits.min_ops  # the latest may not be over
    many = known[trace.count[known] >= num]
    last = trace.start[many] + trace.count[many]
    np.minimum.at(room, groups.ranks[many], ends[groups.ranks[many]] - columns["enter"][last - num])
    wanted = max(limits.window_seconds * 1e9, float(np.median(room[ends >= 0])))
    window = min(wanted, float(np.median(spans)) / 2)
    if window <= 0:
        return None
    sums, num_before = np.zeros((trace.count.size, 2, 4)), np.zeros(trace.count.size, np.int64)
    since = (ends - np.int64(window))[groups.ranks]
    kernels.totals(
        trace.start, trace.count, since, *(columns[name] for name in ("enter", "inside", "outside", "waited")),
        sums, num_before,
    )  # fmt: skip
    of_rank = np.zeros((groups.num_ranks, 2, 4))
    np.add.at(of_rank, groups.ranks, sums)
    operations = _operations(trace, num_before)
    if operations is None:
        return None
    is_new, c, kind, enter, least, most, late = operations
    quarter = (enter[is_new] - since[groups.start[c[is_new]]]) / window * _PARTS
    sizes = np.diff(groups.start)[c]
    keys, places = np.unique(kind.astype(np.int64) << 32 | sizes, return_inverse=True)
    order = np.argsort(places, kind="stable")
    cuts = np.searchsorted(places[order], np.arange(1, keys.size))
    base, bases = np.zeros(keys.size), {}
    for i, at in enumerate(np.split(order, cuts)):
        key = (int(keys[i]) >> 32, int(keys[i]) & 0xFFFFFFFF)
        old = least[at[~is_new[at]]]
        # what was usual before; where there is no before, what is never worse than the quickest
        found = np.median(old) if old.size >= limits.min_ops else np.quantile(least[at], _LOW_QUANTILE)
        bases[key] = base[i] = float(found)
        if baseline is not None:
            base[i] = min(base[i], baseline.transfers.get(key, base[i]))
    return Timing(
        window=window / 1e9,
        num_ops=of_rank[:, :, 0],
        work=of_rank[:, :, 2],
        waited=of_rank[:, :, 3],
        communicator=c[is_new],
        part=np.clip(quarter, 0, _PARTS - 1).astype(np.int64),
        kind=kind[is_new],
        least=least[is_new],
        most=most[is_new],
        late=late[is_new],
        base=base[places][is_new],
        before=_before(c[~is_new], most[~is_new], len(groups.names), limits)[c[is_new]],
        bases=bases,
    )


def _before(c: np.ndarray, most: np.ndarray, num: int, limits: Limits) -> np.ndarray:
    """The median of `most` by communicator, which `c` has in order; NaN where there are fewer than `limits.min_ops`."""
    found = np.full(num, np.nan)
    for part in np.split(np.arange(c.size), np.flatnonzero(np.diff(c)) + 1):
        if part.size >= limits.min_ops:
            found[c[part[0]]] = np.median(most[part])
    return found


def _operations(trace: Trace, num_before: np.ndarray) -> tuple[np.ndarray, ...] | None:
    """What all members have completed: is it in the window, communicator, kind, start (ns), least, most, late."""
    kernels, groups = load("rings"), trace.groups
    sizes, at = np.diff(groups.start), groups.start[:-1]
    if not sizes.size or not sizes.all():
        return None
    lows = np.maximum.reduceat(trace.first, at)
    highs = np.minimum.reduceat(trace.first + trace.count, at)
    splits = np.maximum.reduceat(trace.first + num_before, at)
    is_full = np.minimum.reduceat(trace.count, at) > 0
    lengths = np.where(is_full & (sizes > 1), np.maximum(highs - lows, 0), 0)
    offsets = np.concatenate([[0], lengths.cumsum()])
    total = int(offsets[-1])
    if not total:
        return None
    c = np.repeat(np.arange(sizes.size, dtype=np.int32), lengths)
    seq = np.arange(total) - np.repeat(offsets[:-1], lengths) + np.repeat(lows, lengths)
    least, most = np.empty(total, np.float32), np.empty(total, np.float32)
    who, num = np.empty(total, np.int32), np.empty(total, np.int32)
    inside = trace.columns["inside"]
    for k in np.flatnonzero(lengths).tolist():
        part = slice(offsets[k], offsets[k + 1])
        blocks = trace.blocks(k)
        kernels.spread(*blocks, inside, int(lows[k]), least[part], most[part], who[part], num[part])
    place = trace.start[at[c]] + seq - trace.first[at[c]]
    kind, enter = trace.columns["kind"][place], trace.columns["enter"][place]
    good = num == sizes[c]
    if not good.any():
        return None
    late = groups.ranks[groups.start[c] + np.maximum(who, 0)]
    is_new = seq >= splits[c]
    least, most = least.astype(float), most.astype(float)
    return tuple(x[good] for x in (is_new, c, kind, enter, least, most, late))


def slow(
    trace: Trace,
    timing: Timing | None,
    limits: Limits,
    baseline: Baseline | None,
    hosts: Mapping[int, Host],
    edges: np.ndarray | None,
    not_seen: list[str],
) -> Verdict | None:
    """Return the verdict on a job that runs but slowly; None where nothing is wrong. `timing` is from `time_trace`."""
    if timing is None:
        not_seen.append("how long operations take: there are too few that all members have completed")
        return None
    if not np.isfinite(timing.base).all() or timing.communicator.size < limits.min_ops:
        not_seen.append("how long operations take: there are too few in the window")
        return None
    if timing.window < limits.min_window:
        not_seen.append(f"slowness: there are only {2 * timing.window:.2g} s, of which half is for comparison")
        return None
    excess, deviation, is_known = _excess(trace, timing, limits, baseline)
    if not is_known:
        not_seen.append("how long ranks work usually: the rings hold no history, and no ranks do the same")
    late_ranks = _late_ranks(trace, timing, limits, excess, deviation)
    votes, vote_words, vote_measures = _votes(trace, timing, limits, late_ranks)
    if votes < _VOTES:
        late_ranks = late_ranks[:0]
    transfer, slow_groups = _transfers(trace, timing, limits)
    if not late_ranks.size and not slow_groups.size and edges is not None:
        transfer, slow_groups = _waits(trace, timing, limits, edges)
        slow_groups = slow_groups[transfer[slow_groups] > 2 * excess.max()]  # somebody may work longer, for all that
    if late_ranks.size or slow_groups.size:
        late_ranks, slow_groups = _not_starved(
            trace, timing, hosts, late_ranks, slow_groups, excess, transfer, not_seen
        )
    if not late_ranks.size and not slow_groups.size:
        return None
    lateness = float(excess[late_ranks].max()) if late_ranks.size else 0.0
    slowness = float(transfer[slow_groups].max()) if slow_groups.size else 0.0
    p = lateness / (lateness + slowness)
    measures = {
        "P": round(p, 4),
        "lateness_share_of_time": round(lateness / timing.window, 4),
        "transfer_share_of_time": round(slowness / timing.window, 4),
        "window_seconds": round(timing.window, 3),
    }
    late_words: list[str] = []
    if late_ranks.size:
        measures |= vote_measures
        late_words = [*_lateness_in_words(timing, late_ranks, excess), *vote_words]
    link_ranks, link_words, link_confidence = _links(trace, timing, limits, slow_groups, edges, not_seen)
    if p > limits.beta:
        kind, ranks, evidence = "S1", tuple(late_ranks.tolist()), late_words
        # strong where it stands out, and where the operations name it too
        strength = min(deviation[late_ranks].min() / (4 * limits.deviations), 1.0) if late_ranks.size else 0.0
        confidence = min(0.5 + 0.25 * strength + 0.24 * votes, 0.99)
        summary = f"{ranks_in_words(ranks)} slow: {_cause(timing, late_ranks, excess)}; the others wait for it"
    elif p < limits.alpha:
        kind, ranks, evidence, confidence = "S2", link_ranks, link_words, link_confidence
        who = f" of {ranks_in_words(ranks)}" if ranks else ""
        summary = f"transfers{who} are slow, though nobody comes late"
    else:
        kind = "S3"
        ranks = tuple(sorted({*late_ranks.tolist(), *link_ranks}))
        evidence, confidence = [*late_words, *link_words], min(0.7, link_confidence)
        summary = f"{ranks_in_words(late_ranks)} comes late, and transfers of {ranks_in_words(link_ranks)} are slow"
    worst = _costliest(timing, late_ranks if kind == "S1" else None, slow_groups)
    return Verdict(
        kind=kind,
        ranks=ranks,
        confidence=round(float(confidence), 3),
        summary=summary,
        communicator=trace.groups.names[worst] if worst is not None else None,
        sets={"late": tuple(late_ranks.tolist()), "slow transfers": link_ranks},
        measures=measures,
        evidence=tuple(evidence),
        not_seen=tuple(not_seen),
    )


def _excess(
    trace: Trace, timing: Timing, limits: Limits, baseline: Baseline | None
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Seconds in the window that each rank worked more than it used to, or than its peers.

    Returns them with how many robust standard deviations of the others they are, and whether there was anything to
    compare with.
    """
    groups = trace.groups
    before, ops = timing.num_ops[:, 0], timing.num_ops[:, 1]
    has = ops >= limits.min_ops
    each = np.where(has, timing.work[:, 1] / np.maximum(ops, 1), np.nan)
    usual = np.full(groups.num_ranks, np.inf)
    own = np.where(before >= limits.min_ops, timing.work[:, 0] / np.maximum(before, 1), np.nan)
    if baseline is not None:
        kept = np.array([baseline.work.get(rank, np.nan) for rank in range(groups.num_ranks)])
        own = np.fmin(own, kept)
    both = has & (own > 0)
    if np.count_nonzero(both) > 1:
        # where all ranks work longer than before, none of them is to blame
        growth = float(_lower_median(each[both] / own[both]))
        usual[both] = own[both] * max(growth, 1.0)
    peers = _usual_of_peers(trace, timing, each)
    usual = np.fmin(usual, peers)
    is_known = np.isfinite(usual) & has
    more = np.where(is_known, each - np.where(is_known, usual, 0), 0.0)
    # of two ranks one is half of all, so that the lower median counts; few ranks may be alike by chance
    spread = _SCALE * _lower_median(np.abs(more[is_known])) if is_known.any() else 0.0
    deviation = more / np.maximum(spread, np.where(is_known, _NOISE * usual, 1.0) + 1e-12)
    return np.maximum(more, 0) * ops, deviation, bool(is_known.any())


def _usual_of_peers(trace: Trace, timing: Timing, each: np.ndarray) -> np.ndarray:
    """For each rank, what its peers work an operation; NaN for one that has none.

    Peers are members of a communicator whose members all make equally many operations: they run the same program. Of
    several such communicators the one with the longest work counts, so that a stage with more to do is no fault.
    """
    groups, ops = trace.groups, timing.num_ops[:, 1]
    usual = np.full(groups.num_ranks, np.nan)
    for c in np.flatnonzero((np.diff(groups.start) > 1) & ~groups.p2p).tolist():
        ranks = groups.ranks[groups.members(c)]
        mine = each[ranks]
        if np.isnan(mine).any() or ops[ranks].max() > 1.05 * ops[ranks].min():
            continue
        usual[ranks] = np.fmax(usual[ranks], _lower_median(mine))
    return usual


def _late_ranks(trace: Trace, timing: Timing, limits: Limits, excess: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    cost = max(limits.share * timing.window, limits.min_cost)
    candidates = np.flatnonzero((excess >= cost) & (deviation >= limits.deviations))
    if not candidates.size:
        return candidates
    candidates = candidates[excess[candidates] >= 0.5 * excess[candidates].max()]
    # somebody must wait for it: lateness that costs others nothing is no fault
    lost = np.bincount(timing.communicator, timing.most - timing.least, len(trace.groups.names))
    worst = np.zeros(trace.groups.num_ranks)
    np.maximum.at(worst, trace.groups.ranks, lost[trace.groups.communicator])
    is_slow = timing.most > _slow_from(timing, limits)
    num_slow = np.bincount(timing.communicator[is_slow], minlength=len(trace.groups.names))
    slow_ops = np.zeros(trace.groups.num_ranks)
    np.maximum.at(slow_ops, trace.groups.ranks, num_slow[trace.groups.communicator])
    candidates = candidates[(worst[candidates] >= 0.5 * excess[candidates]) & (slow_ops[candidates] >= 2)]
    mine = np.isin(timing.late, candidates)
    lost = np.bincount(timing.part[mine], (timing.most - timing.least)[mine], _PARTS)
    return candidates if _lasts(lost) else candidates[:0]


def _not_starved(
    trace: Trace,
    timing: Timing,
    hosts: Mapping[int, Host],
    late_ranks: np.ndarray,
    slow_groups: np.ndarray,
    excess: np.ndarray,
    transfer: np.ndarray,
    not_seen: list[str],
) -> tuple[np.ndarray, np.ndarray]:
    """The late ranks and slow communicators but for those whose processes merely wait for a processor.

    Late ranks stay where others are on other hosts, for then their host is to blame.
    """
    groups = trace.groups
    found = [hosts.get(rank, Host()).delay_share for rank in range(groups.num_ranks)]
    delay = np.array([0.0 if share is None else share for share in found])
    seconds = delay * timing.window
    if None not in found and (seconds[late_ranks] > _EXPLAINED * excess[late_ranks]).any():
        late_ranks = late_ranks[:0]
    if slow_groups.size:
        most = np.array([seconds[groups.ranks[groups.members(c)]].max() for c in slow_groups.tolist()])
        slow_groups = slow_groups[most <= _EXPLAINED * transfer[slow_groups]]
    if not late_ranks.size and not slow_groups.size:
        not_seen.append(f"slowness beside a busy host: ranks wait for a processor for {delay.max():.0%} of the time")
    return late_ranks, slow_groups


def _transfers(trace: Trace, timing: Timing, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
    """For each communicator the seconds that its transfers took more than usual in the window, and which are slow."""
    more = np.maximum(timing.least - timing.base, 0)
    return _longer(trace, timing, limits, more, timing.least > _slow_from(timing, limits))


def _waits(trace: Trace, timing: Timing, limits: Limits, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_transfers`, of what is waited for though nobody comes late, where a slow connection explains it.

    Who sends may be done long before the bytes have arrived, since the system takes them over. To those who wait for
    them the sender then looks late.
    """
    groups = trace.groups
    more = np.fmax(timing.most - timing.before, 0)
    more, found = _longer(trace, timing, limits, more, timing.most > limits.times * timing.before)
    if not found.size:
        return more, found
    return more, np.intersect1d(found, groups.communicator[np.isin(groups.ranks, slow_ranks(edges)[0])])


def _longer(
    trace: Trace, timing: Timing, limits: Limits, more: np.ndarray, is_long: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each communicator the sum of `more` (seconds, by operation), and where that is a fault."""
    num, c = len(trace.groups.names), timing.communicator
    by_part = np.bincount(c * _PARTS + timing.part, more, num * _PARTS).reshape(num, _PARTS)
    total = by_part.sum(1)
    is_fault = (total >= limits.share * timing.window) & _lasts(by_part)
    is_fault &= 2 * np.bincount(c, is_long, num) > np.bincount(c, minlength=num)
    is_fault &= total.max(initial=0, where=is_fault) >= limits.min_cost  # of all that are, one must cost enough
    return total, np.flatnonzero(is_fault)


def _links(
    trace: Trace,
    timing: Timing,
    limits: Limits,
    slow_groups: np.ndarray,
    edges: np.ndarray | None,
    not_seen: list[str],
) -> tuple[tuple[int, ...], list[str], float]:
    """The ranks behind slow transfers, why, and how sure that is."""
    if not slow_groups.size:
        return (), [], 1.0
    groups = trace.groups
    in_slow = np.isin(timing.communicator, slow_groups)
    times = np.median(timing.least[in_slow] / np.maximum(timing.base[in_slow], 1e-12))
    is_plain = times > limits.times
    if not is_plain:  # see `_waits`
        times = np.nanmedian(timing.most[in_slow] / np.maximum(timing.before[in_slow], 1e-12))
    names = ", ".join(repr(groups.names[c]) for c in slow_groups[:4])
    names += ", ..." if slow_groups.size > 4 else ""
    where = (
        f"in 1 communicator ({names})" if slow_groups.size == 1 else f"in {slow_groups.size} communicators ({names})"
    )
    who = "even the last to come is inside" if is_plain else "though nobody comes late, ranks wait"
    words = [f"{where} {who} for {times:.1f} times the usual time"]
    if edges is not None and edges.size:
        ranks, why = slow_ranks(edges)
        if ranks:
            return ranks, [*words, *why], 0.9
    else:
        not_seen.append("what each connection carried, which would name the rank behind a slow transfer")
    counts = np.zeros(groups.num_ranks, np.int64)
    for c in slow_groups.tolist():
        counts[groups.ranks[groups.members(c)]] += 1
    best = np.flatnonzero(counts == counts.max())
    words.append(f"{ranks_in_words(best)} belong to {counts.max()} of these {slow_groups.size}")
    confidence = 0.85 if best.size == 1 else 0.6 if best.size == 2 else 0.3
    return tuple(best.tolist()), words, confidence


def _lateness_in_words(timing: Timing, ranks: np.ndarray, excess: np.ndarray) -> list[str]:
    """Why these ranks are late."""
    words = []
    for rank in ranks[:4].tolist():
        each = timing.work[rank, 1] / timing.num_ops[rank, 1]
        usual = each - excess[rank] / timing.num_ops[rank, 1]
        words.append(
            f"rank {rank} works {1e3 * each:.3g} ms for each operation, usual are {1e3 * usual:.3g} ms:"
            f" {excess[rank]:.3g} s of the last {timing.window:.3g} s"
        )
    share = _share_of_waiting(timing, ranks, excess)
    if share > 0.05:
        words.append(f"{share:.0%} of that it waited for data")
    return words


def _votes(
    trace: Trace, timing: Timing, limits: Limits, ranks: np.ndarray
) -> tuple[float, list[str], dict[str, float]]:
    """The share of what slow operations lost in which one of these ranks came last, with words and numbers.

    Asked are the smallest of their communicators: into larger ones others come late too, for they have waited for
    these ranks. Only operations in which everybody waits for everybody can tell; 1 where there are none.
    """
    groups = trace.groups
    mine = np.zeros(len(groups.names), bool)
    mine[groups.communicator[np.isin(groups.ranks, ranks)]] = True
    symmetric = np.isin(timing.kind >> 8, list(SYMMETRIC))
    chosen = symmetric & mine[timing.communicator] & (timing.most > _slow_from(timing, limits))
    if not chosen.any():
        return 1.0, [], {}
    c, lost = timing.communicator[chosen], (timing.most - timing.least)[chosen]
    sizes = np.diff(groups.start)[c]
    best = int(np.argmax(np.bincount(c, np.where(sizes == sizes.min(), lost, 0))))
    named, lost = np.isin(timing.late[chosen][c == best], ranks), lost[c == best]
    share = float(lost[named].sum() / max(lost.sum(), 1e-12))
    op = op_name(int(timing.kind[chosen][c == best][0]) >> 8)
    words = f"in {named.sum()} of {named.size} slow operations ({op}) of {groups.names[best]!r} it came last"
    words += f", and cost {share:.0%} of what they lost"
    return share, [words], {"votes": int(named.sum()), "num_voting": named.size, "share_of_votes": round(share, 4)}


def _share_of_waiting(timing: Timing, ranks: np.ndarray, excess: np.ndarray) -> float:
    """Share of the lost time that the ranks waited for data."""
    total = float(excess[ranks].sum())
    return min(float(timing.waited[ranks, 1].sum()) / total, 1.0) if total else 0.0


def _cause(timing: Timing, ranks: np.ndarray, excess: np.ndarray) -> str:
    share = _share_of_waiting(timing, ranks, excess)
    return f"data loading ({share:.0%} of the lost time)" if share > 0.5 else "it works longer than usual"


def _costliest(timing: Timing, late: np.ndarray | None, slow_groups: np.ndarray) -> int | None:
    """The communicator that shows it best."""
    if late is None:
        return int(slow_groups[0]) if slow_groups.size else None
    chosen = np.isin(timing.late, late)
    if not chosen.any():
        return None
    return int(np.argmax(np.bincount(timing.communicator[chosen], (timing.most - timing.least)[chosen])))


def _slow_from(timing: Timing, limits: Limits) -> np.ndarray:
    """From how many seconds on each operation is slow."""
    return limits.times * timing.base


def _lasts(by_part: np.ndarray) -> np.ndarray:
    """Whether something holds on over the parts of the window (the last axis), but for one: a burst does not."""
    return np.partition(by_part, 1)[..., 1] >= by_part.mean(-1) / 3


def _lower_median(values: np.ndarray) -> float:
    return float(np.partition(values, (values.size - 1) // 2)[(values.size - 1) // 2])
