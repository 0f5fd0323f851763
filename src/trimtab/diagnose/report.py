"""A verdict in words for people: who, what, why, what was not seen, and what to do next."""

from __future__ import annotations

from typing import Any

from trimtab.diagnose.look import Look
from trimtab.diagnose.standing import Standing
from trimtab.diagnose.verdict import MEANINGS, Verdict, ranks_in_words

_SOURCES = {"frames": "files of the probe", "dumps": "Flight Recorder dumps"}
OVER = "the job is over"
"""In what was not seen, where the processes are gone."""


def next_step(verdict: Verdict, look: Look) -> str:
    """Return what to do about a verdict, in a sentence."""
    who = ranks_in_words(verdict.ranks) if verdict.ranks else "the ranks"
    where = f" (operation {verdict.seq} of {verdict.communicator!r})" if verdict.seq is not None else ""
    words = " ".join((verdict.summary, *verdict.evidence))
    if verdict.kind == "H1":
        if "is dead" in words:
            return f"Read the log of {who}: its process ended first. Start the job again without what ended it."
        if "is stopped" in words:
            return f"Find out who stopped the process of {who}; kill -CONT lets it go on."
        if "waits for data" in words:
            return f"Look at the data that {who} loads: its storage and its loader's workers."
        if "was never seen" in words or "entered nothing" in words:
            return f"See whether {who} was started at all, and what its log says before the first operation."
        if "has finished" in words:
            return f"Compare the number of steps of {who} with the others': it left its loop earlier."
        if any(OVER in line for line in verdict.not_seen):
            return f"Read the end of the log of {who}: what kept it from entering{where}?"
        host, _, pid = look.snapshot.where.get(verdict.ranks[0] if verdict.ranks else -1, "").rpartition(", process ")
        how = f" (on {host}: py-spy dump --pid {pid})" if pid else ""
        return f"Look at the stack of {who}{how}: what keeps it from entering{where}?"
    if verdict.kind == "H2":
        return f"Compare the call of {who} with that of the others{where}: a branch that only some ranks take, mostly."
    if verdict.kind == "H3":
        return f"Check the network of {who}: all have entered, and no bytes move{where}."
    if verdict.kind == "S1":
        if "data loading" in words:
            return f"Give {who} faster data: more workers, another storage, or samples in memory (tt.data.SOLAR)."
        return f"Compare {who} with the others: clock and heat, other programs on its host, more work than others."
    if verdict.kind == "S2":
        return f"Check the link of {who}: its rate, errors and other traffic."
    if verdict.kind == "S3":
        return f"Check both: what {who} computes more than others, and the link that is slow."
    return "Nothing." if verdict.confidence > 0.9 else "Nothing; mind what was not seen."


def facts(look: Look) -> dict[str, str]:
    """Return what was looked at, in words by noun."""
    snapshot, groups = look.snapshot, look.snapshot.groups
    hosts = {text.rpartition(", process ")[0] for text in snapshot.where.values()}
    found = {"from": f"{_SOURCES[look.source]} of {int(snapshot.present.sum())} of {groups.num_ranks} ranks"}
    if hosts:
        found["hosts"] = str(len(hosts))
    found["communicators"] = f"{len(groups.names):,}"
    if look.trace is not None:
        found["operations"] = f"{look.trace.num_records:,} of the latest"
    found["ranks"] = ", ".join(f"{count:,} {state}" for state, count in Standing.of(look).counts().items())
    return found


def report(look: Look, verdict: Verdict) -> dict[str, Any]:
    """Return all of it as plain values for JSON: the verdict's own report, with `next`, `source` and `states`."""
    counts = Standing.of(look).counts()
    return {**verdict.report, "next": next_step(verdict, look), "source": look.source, "states": counts}


def report_text(look: Look, verdict: Verdict) -> str:
    """Return the report for people, as lines of text."""
    rows = [(name, text) for name, text in facts(look).items()]
    rows.append(("confidence", f"{verdict.confidence:.2f}"))
    rows += [("because" if i == 0 else "", line) for i, line in enumerate(verdict.evidence)]
    rows += [("not seen" if i == 0 else "", line) for i, line in enumerate(verdict.not_seen)]
    rows.append(("next", next_step(verdict, look)))
    head = f"{'yes' if verdict.is_healthy else 'no'}: {printable(verdict.summary)}"
    kind = [] if verdict.is_healthy else [f"    {verdict.kind}, {MEANINGS[verdict.kind]}"]
    return "\n".join([head, *kind, "", *(f"{name:14}{printable(text)}".rstrip() for name, text in rows)])


def printable(text: str) -> str:
    """Return text in which control characters, which names in files may hold, are made visible."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
