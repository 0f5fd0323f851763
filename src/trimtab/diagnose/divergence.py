"""Where ranks stop calling the same operations: the look back that comes before every other rule for hangs (H2).

After a divergence some ranks may run ahead, and the ranks behind are the healthy ones; so this is asked first.

Two things give it away. Signatures must be alike, always. Call sites and steps may differ between ranks, but in one and
the same way: where a member stops going together with the others, it has left out an operation, or made one too many,
even if all signatures are alike.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from trimtab.diagnose.frame import OPS
from trimtab.diagnose.trace import Trace
from trimtab.kernels import load

_SETTLED = 16  # operations that all completed after one that differed: it harmed nobody
_MIN_DRIFT = 2  # operations that must disagree while the job still runs


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first operation of a communicator in which its members differ."""

    communicator: int
    seq: int
    parties: tuple[tuple[int, ...], ...]
    """Ranks that did the same there, the fewest first."""
    ranks: tuple[int, ...]
    """The fewest; all of them where no party is the smallest."""
    is_hard: bool
    """Signatures differ; else call sites or steps."""
    step: int
    num_seen: int
    """Operations in which a rank disagrees with the others, from there on; 1 where it was not counted."""
    what: dict[int, str]
    """For one rank of each party, what it called."""

    @property
    def is_tie(self) -> bool:
        """Whether it cannot be told which party is wrong."""
        return len(self.ranks) > len(self.parties[0])


def find(trace: Trace, texts: dict[int, str] | None = None, *, is_hung: bool) -> tuple[Divergence | None, list[str]]:
    """Return the first divergence, and notes on what was left out of account.

    Between communicators, whose numbers cannot be compared, the lowest step counts first, then signatures before
    sites, then the smallest party.
    """
    kernels = load("rings")
    found: list[Divergence] = []
    notes: list[str] = []
    columns = trace.columns
    for c in range(len(trace.groups.names)):
        start, first, count = trace.blocks(c)
        known = np.flatnonzero(count)
        if known.size < 2:
            continue
        reference = int(known[np.argmin(first[known])])
        seqs, nums = np.zeros(start.size, np.int64), np.zeros(start.size, np.int64)
        kernels.differing(start, first, count, columns["signature"], reference, seqs)
        if seqs.any():
            seq = int(seqs[seqs > 0].min())
            if _is_settled(trace, c, seq):
                notes.append(
                    f"signatures in {trace.groups.names[c]!r} differ as a rule and nobody minds; they are not compared"
                )
            else:
                found.append(_hard(trace, c, seq, texts or {}))
            continue
        kernels.drifting(start, first, count, columns["site"], columns["step"], reference, seqs, nums)
        if seqs.any():
            seq = int(seqs[seqs > 0].min())
            if is_hung or nums.max() >= _MIN_DRIFT:
                found.append(_soft(trace, c, seq, seqs, nums, texts or {}))
    found.sort(key=lambda one: (one.step, not one.is_hard, len(one.ranks)))
    return (found[0] if found else None), notes


def _is_settled(trace: Trace, c: int, seq: int) -> bool:
    """Whether everybody completed this operation, which is the first that is known, and many after it."""
    start, first, count = trace.blocks(c)
    known = count > 0
    if seq > first[known].max():
        return False
    ends = first[known] + count[known]
    if ends.min() < seq + _SETTLED:
        return False
    at = start[known] + seq + _SETTLED - 1 - first[known]
    return not np.isnan(trace.columns["inside"][at]).any()


def _hard(trace: Trace, c: int, seq: int, texts: dict[int, str]) -> Divergence:
    members, values = trace.at("signature", c, seq)
    ranks = trace.groups.ranks[trace.groups.members(c)][members]
    parties = [tuple(ranks[values == value].tolist()) for value in np.unique(values[values > 0])]
    return _divergence(trace, c, seq, parties, texts, is_hard=True, num_seen=1)


def _soft(trace: Trace, c: int, seq: int, seqs: np.ndarray, nums: np.ndarray, texts: dict[int, str]) -> Divergence:
    _, first, count = trace.blocks(c)
    ranks = trace.groups.ranks[trace.groups.members(c)]
    there = (seq >= first) & (seq < first + count)
    off = seqs == seq
    parties = [tuple(ranks[off].tolist()), tuple(ranks[there & ~off].tolist())]
    return _divergence(trace, c, seq, parties, texts, is_hard=False, num_seen=int(nums.max()))


def _divergence(
    trace: Trace,
    c: int,
    seq: int,
    parties: list[tuple[int, ...]],
    texts: dict[int, str],
    *,
    is_hard: bool,
    num_seen: int,
) -> Divergence:
    parties = sorted((party for party in parties if party), key=lambda party: (len(party), party))
    is_tie = len(parties) > 1 and len(parties[0]) == len(parties[1])
    ranks = tuple(sorted(rank for party in parties for rank in party)) if is_tie else parties[0]
    members, steps = trace.at("step", c, seq)
    _, sites = trace.at("site", c, seq)
    _, kinds = trace.at("kind", c, seq)
    of_rank = {int(rank): i for i, rank in enumerate(trace.groups.ranks[trace.groups.members(c)][members])}
    what = {}
    for party in parties:
        i = of_rank[party[0]]
        site = f" at {texts.get(int(sites[i]), f'{sites[i]:#010x}')}" if sites[i] else ""
        step = f" in step {steps[i]}" if steps[i] else ""
        what[party[0]] = f"{op_name(int(kinds[i]) >> 8)} of about {_size(int(kinds[i]) & 0xFF)}{site}{step}"
    usual = Counter(steps.tolist()).most_common(1)[0][0]
    return Divergence(c, seq, tuple(parties), ranks, is_hard, usual, num_seen, what)


def op_name(code: int) -> str:
    """Return the name of an operation by its number in records."""
    return OPS[code] if code < len(OPS) else OPS[0]


def _size(bits: int) -> str:
    return "0 bytes" if not bits else f"2^{bits - 1} bytes"
