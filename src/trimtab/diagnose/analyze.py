"""One verdict on a job: the decision tree of CCL-D (PPoPP 2026, arXiv 2605.04478).

In this order: have ranks called different operations (H2)? Is anything stuck, and who is missing (H1), or is nobody
(H3)? Does somebody come late, or does a transfer take long (S1, S2, S3)?

What goes in: a `Snapshot` (the latest state of every rank, enough for H1 and H3), a `Trace` (what the rings hold,
needed for H2 and for slowness), and, where there is any, what the hosts say (`Host` by rank) and what connections
carried (`links.EDGE`).

Differences from the paper, as far as its abstract and second-hand accounts tell: different operations are looked for
first, since after a divergence the ranks behind are the healthy ones; a rank is named only if it waits for nobody, over
any number of communicators; lateness is measured by the time outside of operations, so that it is not passed on along
pipelines; steps and call sites show what signatures cannot.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from trimtab.diagnose import divergence, flight
from trimtab.diagnose.frame import read_folder
from trimtab.diagnose.groups import Groups
from trimtab.diagnose.hang import Waits, hang, waits
from trimtab.diagnose.slow import Baseline, slow, time_trace
from trimtab.diagnose.snapshot import Snapshot
from trimtab.diagnose.trace import Trace
from trimtab.diagnose.verdict import Host, Limits, Verdict, ranks_in_words

_SAMPLE = 1 << 20


def diagnose(
    snapshot: Snapshot,
    trace: Trace | None = None,
    *,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    hosts: Mapping[int, Host] | None = None,
    edges: np.ndarray | None = None,
    baseline: Baseline | None = None,
) -> Verdict:
    """Return what is wrong with a job, and which ranks cause it.

    `trace` belongs to the same groups as `snapshot`. Without it, only hangs are seen, and only as far as the latest
    states show them. `edges` is an array of `links.EDGE`. `baseline` learns from what is found healthy.
    """
    hosts = hosts or {}
    limit = hang_limit(trace, limits)
    not_seen = _not_seen(snapshot, trace)
    found = waits(snapshot, limit, hosts)
    is_hung = bool((found.front > 0).any())
    diverged = None
    if trace is not None:
        diverged, notes = divergence.find(trace, dict(snapshot.texts), is_hung=is_hung)
        not_seen += notes
    if is_hung and diverged is None:
        pause = _pause(snapshot, found)
        if pause is not None:
            return Verdict(kind="healthy", confidence=0.8, summary=pause, evidence=(pause,), not_seen=tuple(not_seen))
    if is_hung or diverged is not None:
        return hang(snapshot, trace, found, diverged, hosts, edges, not_seen)
    silent = np.flatnonzero(~snapshot.present)
    if snapshot.all_asked and 0 < silent.size < snapshot.present.size / 2:  # of more, somebody left the dumps out
        who = ranks_in_words(silent)
        return Verdict(
            kind="H1",
            ranks=tuple(silent.tolist()),
            confidence=0.5,
            summary=f"{who} did not answer when states were written down; the others did",
            evidence=(f"others count {who} among the members of their groups",),
            not_seen=tuple(not_seen),
        )
    timing = None
    if trace is not None:
        timing = time_trace(trace, limits, baseline)
        verdict = slow(trace, timing, limits, baseline, hosts, edges, not_seen)
        if verdict is not None:
            return verdict
        if baseline is not None and timing is not None:
            baseline.learn(timing)
    evidence = [f"nobody has waited for longer than {limit:.0f} s"]
    if timing is not None:
        evidence.append(
            f"in the last {timing.window:.3g} s no rank works longer than usual, and no transfer takes longer"
        )
    return Verdict(
        kind="healthy",
        confidence=0.95 if trace is not None and not snapshot.notes else 0.6,
        summary="nothing is wrong" if trace is not None else "nothing is stuck",
        measures={"hang_limit_seconds": round(limit, 3)},
        evidence=tuple(evidence),
        not_seen=tuple(not_seen),
    )


def diagnose_folder(
    folder: str | os.PathLike[str],
    *,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    hosts: Mapping[int, Host] | None = None,
    edges: np.ndarray | None = None,
    baseline: Baseline | None = None,
) -> Verdict:
    """Return the verdict on the job whose ranks keep their files (`frame`) in this folder.

    Raises:
        FormatError: there is no file that can be used.
        OSError: the folder cannot be read.
    """
    files, notes = read_folder(folder)
    groups, places, more = Groups.of_files(files)
    snapshot = Snapshot.of_files(files, groups, places, notes=[*notes, *more])
    trace = Trace.of_files(files, groups, places)
    return diagnose(snapshot, trace, limits=limits, hosts=hosts, edges=edges, baseline=baseline)


def diagnose_dumps(
    dumps: str | os.PathLike[str] | Mapping[int, str | os.PathLike[str]],
    *,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    hosts: Mapping[int, Host] | None = None,
) -> Verdict:
    """Return the verdict on a job by the Flight Recorder dumps of its ranks: a folder of JSON files, or files by rank.

    Raises:
        FormatError: a dump is not JSON of a known version; a pickled one is never opened.
    """
    snapshot, trace = flight.read_dumps(dumps)
    return diagnose(snapshot, trace, limits=limits, hosts=hosts)


def hang_limit(trace: Trace | None, limits: Limits) -> float:
    """Return after how many seconds a wait is a hang.

    At least 30 s, and by the job's own history at least 20 times what 99 of 100 pauses between operations stay below,
    and 3 times the longest wait that ended: a job that writes checkpoints for a minute is given three. At most 15
    minutes.
    """
    if limits.hang_seconds is not None:
        return limits.hang_seconds
    if trace is None or not trace.num_records:
        return 30.0
    inside, outside = trace.columns["inside"], trace.columns["outside"]
    stride = -(-inside.size // _SAMPLE)
    gaps = (inside[::stride] + outside[::stride]).astype(np.float64)
    gaps = gaps[np.isfinite(gaps)]
    usual = float(np.quantile(gaps, 0.99)) if gaps.size else 0.0
    longest = float(np.nanmax(inside)) if np.isfinite(inside).any() else 0.0
    return min(max(30.0, 20 * usual, 3 * longest), 900.0)


def _not_seen(snapshot: Snapshot, trace: Trace | None) -> list[str]:
    """What could not be observed, in words."""
    groups, words = snapshot.groups, list(snapshot.notes)
    absent = np.flatnonzero(~snapshot.present)
    if absent.size:
        words.append(f"{ranks_in_words(absent)}: there is no file of {'it' if absent.size == 1 else 'them'}")
    if snapshot.lost.any():
        words.append(f"{snapshot.lost.sum()} operations on {np.count_nonzero(snapshot.lost)} ranks were not recorded")
    if groups.guessed.any():
        names = ", ".join(repr(groups.names[c]) for c in np.flatnonzero(groups.guessed)[:4])
        words.append(f"who else belongs to {names}: the members are those that were seen")
    if trace is None:
        words.append("what was called before: a divergence that has passed, and slowness, take the rings")
        return words
    words += trace.notes
    known = trace.count > 0
    if (trace.first[known] > 1).any():
        words.append("operations that the rings have overwritten: a divergence before those would not be found")
    sites, steps = trace.columns["site"], trace.columns["step"]
    if sites.size and not steps.any():
        alone = "" if sites.any() else ", nor call sites"
        words.append(f"an identical operation that was left out: no steps were announced{alone}")
    return words


def _pause(snapshot: Snapshot, found: Waits) -> str | None:
    """Say so where all that others wait for has announced to be away."""
    ranks = snapshot.groups.ranks
    missing = np.unique(ranks[found.missing])
    roots = missing[~found.is_waiting[missing]]
    if not roots.size or not (snapshot.paused[roots] > 0).all():
        return None
    return f"{ranks_in_words(roots)} announced a pause, of which {snapshot.paused[roots].max():.0f} s are left"
