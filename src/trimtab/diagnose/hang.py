"""Hangs: who has not come, and on whom everybody waits in the end.

A rank waits in a communicator; a communicator waits for the ranks that have not entered the operation that its
members are stuck in. The end of these chains is the cause: ranks that are missing somewhere and wait nowhere (H1), or
an operation that all have entered and that does not end (H3). Where the chains end nowhere, ranks entered operations in
different orders (H2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trimtab.diagnose.divergence import Divergence, op_name
from trimtab.diagnose.habit import changed
from trimtab.diagnose.links import stalled_ranks
from trimtab.diagnose.snapshot import Snapshot
from trimtab.diagnose.trace import Trace
from trimtab.diagnose.verdict import Host, Verdict, ranks_in_words


@dataclass(frozen=True, slots=True)
class Waits:
    """What is stuck in a snapshot. Arrays over memberships, but for the last two."""

    front: np.ndarray
    """int64 [communicators]: the operation that is stuck, 0 where nothing is."""
    inside: np.ndarray
    missing: np.ndarray
    left: np.ndarray
    is_waiting: np.ndarray
    """bool [ranks]: it is inside an operation that is stuck, and the program waits for that."""
    seconds: np.ndarray
    """float64 [communicators]: the longest wait; NaN where it is not known."""


def waits(snapshot: Snapshot, limit: float, hosts: Mapping[int, Host]) -> Waits:
    """Find the operations that somebody has waited in for longer than `limit` seconds, and who is missing there.

    Where there are any, those waited in for half as long are stuck too: whoever waits for a waiting rank began later.
    """
    groups, num = snapshot.groups, len(snapshot.groups.names)
    c = groups.communicator
    pending = snapshot.seen & (snapshot.seq > snapshot.done)
    # an unknown age is that of a state which somebody kept because of a hang
    is_old = pending & ~(snapshot.age < limit)
    if is_old.any():
        is_old = pending & ~(snapshot.age < limit / 2)
    dead = [rank for rank, host in hosts.items() if host.is_dead and 0 <= rank < groups.num_ranks]
    dead = [rank for rank in dead if not snapshot.finished[rank]]
    if dead:  # nobody needs to wait any longer to know
        has_dead = np.zeros(num, bool)
        has_dead[c[np.isin(groups.ranks, dead)]] = True
        is_old |= pending & has_dead[c]
    never = np.iinfo(np.int64).max
    front = np.full(num, never)
    np.minimum.at(front, c[pending], snapshot.done[pending] + 1)
    is_stuck = np.zeros(num, bool)
    is_stuck[c[is_old]] = True
    front = np.where(is_stuck, front, 0)
    at = front[c]
    inside = pending & (at > 0) & (snapshot.done < at) & (snapshot.seq >= at)
    missing = (at > 0) & (snapshot.seq < at)
    left = (at > 0) & (snapshot.done >= at)
    is_waiting = np.zeros(groups.num_ranks, bool)
    is_waiting[groups.ranks[inside & snapshot.blocking]] = True
    out = [rank for rank, host in hosts.items() if host.is_out and 0 <= rank < groups.num_ranks]
    if out:
        # one that cannot act takes part in nothing, even where it has entered, and waits for nobody
        is_out = np.isin(groups.ranks, out)
        is_waiting[out] = False
        missing |= inside & is_out
        inside &= ~is_out
    seconds = np.full(num, -np.inf)
    np.maximum.at(seconds, c[is_old], np.where(np.isnan(snapshot.age[is_old]), -np.inf, snapshot.age[is_old]))
    return Waits(front, inside, missing, left, is_waiting, np.where(np.isfinite(seconds), seconds, np.nan))


def hang(
    snapshot: Snapshot,
    trace: Trace | None,
    found: Waits,
    divergence: Divergence | None,
    hosts: Mapping[int, Host],
    edges: np.ndarray | None,
    not_seen: list[str],
) -> Verdict:
    """Return the verdict on a job in which something is stuck (`found.front` is not all 0), or has diverged."""
    groups = snapshot.groups
    if divergence is None:
        divergence = _differing_now(snapshot, found)
    if divergence is not None:
        return _diverged(snapshot, trace, found, divergence, hosts, not_seen)
    absent = np.unique(groups.ranks[found.missing])
    roots = absent[~found.is_waiting[absent]]
    if roots.size:
        return _not_entered(snapshot, found, roots, hosts, not_seen)
    if absent.size:
        full = _stuck(found) & (np.bincount(groups.communicator[found.missing], minlength=len(groups.names)) == 0)
        if not full.any():
            return _crossed(snapshot, trace, found, not_seen)
    return _not_ending(snapshot, found, hosts, edges, not_seen)


def _stuck(found: Waits) -> np.ndarray:
    return found.front > 0


def _differing_now(snapshot: Snapshot, found: Waits) -> Divergence | None:
    """The divergence that the latest states show: members of one operation with different signatures."""
    groups = snapshot.groups
    c = groups.communicator
    known = found.inside & (snapshot.seq == found.front[c]) & (snapshot.signature > 0)
    low, high = np.full(len(groups.names), 1 << 32), np.full(len(groups.names), -1)
    values = snapshot.signature.astype(np.int64)
    np.minimum.at(low, c[known], values[known])
    np.maximum.at(high, c[known], values[known])
    mixed = np.flatnonzero((high >= 0) & (low < high))
    if not mixed.size:
        return None
    one = int(mixed[0])
    members = np.flatnonzero(known[groups.members(one)]) + groups.start[one]
    parties = [tuple(groups.ranks[members[values[members] == value]].tolist()) for value in np.unique(values[members])]
    parties.sort(key=lambda party: (len(party), party))
    is_tie = len(parties[0]) == len(parties[1])
    ranks = tuple(sorted(sum(parties, ()))) if is_tie else parties[0]
    place = dict(zip(groups.ranks[members].tolist(), members.tolist(), strict=True))
    what = {party[0]: _latest(snapshot, place[party[0]]) for party in parties}
    return Divergence(one, int(found.front[one]), tuple(parties), ranks, True, 0, 1, what)


def _latest(snapshot: Snapshot, membership: int) -> str:
    site, step = int(snapshot.site[membership]), int(snapshot.step[membership])
    where = f" at {snapshot.texts.get(site, f'{site:#010x}')}" if site else ""
    name = op_name(int(snapshot.op[membership])) if snapshot.op[membership] else "an operation"
    return f"{name}{where}{f' in step {step}' if step else ''}"


def _diverged(
    snapshot: Snapshot,
    trace: Trace | None,
    found: Waits,
    one: Divergence,
    hosts: Mapping[int, Host],
    not_seen: list[str],
) -> Verdict:
    name = snapshot.groups.names[one.communicator]
    is_hung = bool(_stuck(found).any())
    evidence = [f"{ranks_in_words(party)} called {one.what[party[0]]}" for party in one.parties[:4]]
    if one.is_hard:
        evidence.append("their signatures differ, so that they cannot belong together")
    else:
        evidence.append(
            "all signatures are alike, but call sites and steps, which went together before, do not any more"
            f" (in {one.num_seen} operations): an operation was left out, or made once too often"
        )
    if not is_hung:
        evidence.append("the job still runs, out of step")
    ranks, confidence = one.ranks, 0.97 if one.is_hard else 0.9
    if one.is_tie:
        ranks, words = _wrong_ones(trace, ranks, since=one.step - 1)
        evidence += words
        confidence *= 0.9 if words else 0.5
        if not words:
            not_seen = [*not_seen, "which of the parties is wrong: neither is the smaller"]
    is_open = ranks == one.ranks and one.is_tie
    evidence += _about(snapshot, hosts, ranks)
    return Verdict(
        kind="H2",
        ranks=ranks,
        confidence=confidence,
        summary=f"{ranks_in_words(ranks)} {'differ' if is_open else 'called another operation than the others'}"
        f" at operation {one.seq} of {name!r}",
        communicator=name,
        seq=one.seq,
        sets={f"party {i}": party for i, party in enumerate(one.parties)},
        measures={"num_parties": len(one.parties), "num_disagreeing": one.num_seen},
        evidence=tuple(evidence),
        not_seen=tuple(not_seen),
    )


def _not_entered(
    snapshot: Snapshot, found: Waits, roots: np.ndarray, hosts: Mapping[int, Host], not_seen: list[str]
) -> Verdict:
    groups = snapshot.groups
    observed = roots[snapshot.present[roots]]
    unseen = roots[~snapshot.present[roots]]
    confidence = 0.97
    named = observed
    if not observed.size:
        named, confidence = roots, 0.8
    elif unseen.size:
        confidence = 0.6
        not_seen = [*not_seen, f"{ranks_in_words(unseen)}, for which others wait as well"]
    # where the first of them is missing, and most wait
    c = groups.communicator
    here = np.unique(c[found.missing & np.isin(groups.ranks, named)])
    counts = np.bincount(c[found.inside], minlength=len(groups.names))[here]
    one = int(here[np.argmax(counts)])
    members = groups.members(one)
    inside = groups.ranks[members][found.inside[members]]
    missing = groups.ranks[members][found.missing[members]]
    seq, name = int(found.front[one]), groups.names[one]
    waiting = int(np.count_nonzero(found.is_waiting))
    wait = "waits" if inside.size == 1 else "wait"
    evidence = [f"{ranks_in_words(inside)} {wait} in operation {seq} of {name!r}{_for(found.seconds[one])}"]
    places = np.flatnonzero(found.missing[members] & np.isin(groups.ranks[members], named)) + members.start
    for at in places[:4]:
        rank, last = int(groups.ranks[at]), int(snapshot.seq[at])
        if not snapshot.present[rank]:
            evidence.append(f"rank {rank} was never seen")
        elif snapshot.seq[at] >= seq:
            evidence.append(f"rank {rank} has entered it, but cannot act")
        elif last:
            evidence.append(f"rank {rank} came only to operation {last}: {_latest(snapshot, int(at))}")
        else:
            evidence.append(f"rank {rank} has entered nothing there yet")
    if roots.size < np.unique(groups.ranks[found.missing]).size:
        evidence.append(f"{_wait(waiting)}, directly or through others; {ranks_in_words(named)} waits for nobody")
    evidence += _about(snapshot, hosts, tuple(named.tolist()))
    why = _cause(snapshot, hosts, named)
    return Verdict(
        kind="H1",
        ranks=tuple(named.tolist()),
        confidence=confidence,
        summary=f"{ranks_in_words(named)} did not enter operation {seq} of {name!r}{why}; {_wait(waiting)}",
        communicator=name,
        seq=seq,
        sets={"inside": tuple(inside.tolist()), "missing": tuple(missing.tolist())},
        measures={"num_waiting": waiting, **_seconds(found.seconds[one])},
        evidence=tuple(evidence),
        not_seen=tuple(not_seen),
    )


def _wrong_ones(trace: Trace | None, ranks: tuple[int, ...], since: int = 0) -> tuple[tuple[int, ...], list[str]]:
    """Of ranks that are equally suspect, those that left their own habit, and that in words; else all, and no words."""
    wrong = changed(trace, ranks, since)
    if not 0 < len(wrong) < len(ranks):
        return ranks, []
    return wrong, [f"{ranks_in_words(wrong)} did not do what it did in the step before; the others did"]


def _crossed(snapshot: Snapshot, trace: Trace | None, found: Waits, not_seen: list[str]) -> Verdict:
    """Everybody who is missing waits elsewhere: operations were entered in different orders, or one was left out."""
    groups = snapshot.groups
    circle = _circle(snapshot, found)
    ranks, words = _wrong_ones(trace, circle)
    if not words:
        not_seen = [*not_seen, "which of the ranks that wait for each other is wrong"]
    c = groups.communicator
    one = int(c[np.flatnonzero(found.missing & np.isin(groups.ranks, ranks))[0]])
    inside, missing = (
        groups.ranks[groups.members(one)][flags[groups.members(one)]] for flags in (found.inside, found.missing)
    )
    evidence = []
    for k in np.unique(c[found.inside & np.isin(groups.ranks, circle)])[:6].tolist():
        here = groups.members(k)
        absent, waiting = groups.ranks[here][found.missing[here]], groups.ranks[here][found.inside[here]]
        where = f"operation {found.front[k]} of {groups.names[k]!r}"
        evidence.append(f"{ranks_in_words(waiting)} wait in {where} for {ranks_in_words(absent)}")
    return Verdict(
        kind="H2",
        ranks=ranks,
        confidence=0.8 if words else 0.5,
        summary=f"{ranks_in_words(circle)} wait for each other in a circle"
        + (f", which {ranks_in_words(ranks)} closed" if words else ""),
        communicator=groups.names[one],
        seq=int(found.front[one]),
        sets={"circle": circle, "inside": tuple(inside.tolist()), "missing": tuple(missing.tolist())},
        measures=_seconds(found.seconds[one]),
        evidence=(*evidence, *words),
        not_seen=tuple(not_seen),
    )


def _circle(snapshot: Snapshot, found: Waits) -> tuple[int, ...]:
    """Ranks that wait for each other, and for nobody else: a set in which all chains of waiting end."""
    groups = snapshot.groups
    ahead: dict[int, set[int]] = {}
    behind: dict[int, set[int]] = {}
    for c in np.flatnonzero(_stuck(found)).tolist():
        members = groups.members(c)
        absent = groups.ranks[members][found.missing[members]].tolist()
        for rank in groups.ranks[members][found.inside[members]].tolist():
            ahead.setdefault(rank, set()).update(absent)
        for rank in absent:
            behind.setdefault(rank, set()).update(groups.ranks[members][found.inside[members]].tolist())
    rank = next(iter(behind))
    while True:
        reached = _reached(ahead, rank)
        outside = reached - _reached(behind, rank)
        if not outside:
            return tuple(sorted(reached))
        rank = min(outside)  # it does not lead back here, so that what it reaches is less


def _reached(edges: dict[int, set[int]], rank: int) -> set[int]:
    """All that can be reached in one step or more."""
    reached: set[int] = set()
    ahead = set(edges.get(rank, ()))
    while ahead:
        reached |= ahead
        ahead = set().union(*(edges.get(one, set()) for one in ahead)) - reached
    return reached


def _not_ending(
    snapshot: Snapshot, found: Waits, hosts: Mapping[int, Host], edges: np.ndarray | None, not_seen: list[str]
) -> Verdict:
    groups = snapshot.groups
    c = groups.communicator
    num_missing = np.bincount(c[found.missing], minlength=len(groups.names))
    full = np.flatnonzero(_stuck(found) & (num_missing == 0))
    one = int(full[np.argmax(np.nan_to_num(found.seconds[full]))])
    members = groups.members(one)
    inside = groups.ranks[members][found.inside[members]]
    left = groups.ranks[members][found.left[members]]
    name, seq = groups.names[one], int(found.front[one])
    evidence = [f"{ranks_in_words(inside)} are inside operation {seq} of {name!r}{_for(found.seconds[one])}"]
    ranks: tuple[int, ...] = ()
    confidence = 0.7
    if left.size:
        evidence.append(f"{ranks_in_words(left)} have left it")
        ranks, confidence = tuple(inside.tolist()), 0.6
    else:
        evidence.append("nobody is missing, all called the same, and nobody has left it")
    if edges is not None and edges.size:
        stalled, words = stalled_ranks(edges, inside)
        evidence += words or ["all connections look alike: a switch or the fabric, rather than one rank"]
        if stalled:
            ranks, confidence = stalled, 0.9
    else:
        not_seen = [*not_seen, "what each connection carried, which would name the rank"]
    evidence += _about(snapshot, hosts, ranks)
    who = f", probably at {ranks_in_words(ranks)}" if ranks else ""
    return Verdict(
        kind="H3",
        ranks=ranks,
        confidence=confidence,
        summary=f"operation {seq} of {name!r} does not end for {ranks_in_words(inside)}{who}",
        communicator=name,
        seq=seq,
        sets={"inside": tuple(inside.tolist()), "left": tuple(left.tolist())},
        measures=_seconds(found.seconds[one]),
        evidence=tuple(evidence),
        not_seen=tuple(not_seen),
    )


def _cause(snapshot: Snapshot, hosts: Mapping[int, Host], ranks: np.ndarray) -> str:
    """Why the first of the ranks does not come, in a few words for the summary."""
    rank = int(ranks[0])
    host = hosts.get(rank, Host())
    if host.state in ("T", "t"):
        return " (its process is stopped)"
    if host.is_dead:
        return " (its process is dead)"
    if snapshot.finished[rank]:
        return " (it has finished: it made an operation less)"
    if not snapshot.present[rank]:
        return " (it was never seen)"
    if snapshot.waiting[rank] > 0:
        return " (it waits for data)"
    if host.state == "D":
        return " (it waits for a disk)"
    if host.cpu_share is not None:
        return " (it computes)" if host.cpu_share > 0.5 else " (it sleeps)"
    return ""


def _about(snapshot: Snapshot, hosts: Mapping[int, Host], ranks: tuple[int, ...]) -> list[str]:
    """What is known of a few ranks beside their operations."""
    words = []
    for rank in ranks[:4]:
        host = hosts.get(rank, Host())
        if rank in snapshot.where:
            words.append(f"rank {rank} is on {snapshot.where[rank]}")
        if host.state is not None:
            words.append(f"the process of rank {rank} is in state {host.state}")
        if host.cpu_share is not None:
            words.append(f"rank {rank} uses {host.cpu_share:.0%} of a processor")
        if host.stack:
            words.append(f"rank {rank} is in {' > '.join(host.stack[-4:])}")
        if snapshot.waiting[rank] > 0:
            words.append(f"rank {rank} has waited for data for {snapshot.waiting[rank]:.1f} s")
        if snapshot.finished[rank]:
            words.append(f"rank {rank} has come to its end")
    return words


def _for(seconds: float) -> str:
    return "" if np.isnan(seconds) else f" for {seconds:.1f} s"


def _seconds(seconds: float) -> dict[str, float]:
    return {} if np.isnan(seconds) else {"waiting_seconds": round(float(seconds), 3)}


def _wait(num: int) -> str:
    return f"{num} ranks wait" if num != 1 else "1 rank waits"
