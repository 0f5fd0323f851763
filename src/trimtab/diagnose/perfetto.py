"""The window around a fault as a trace for Perfetto (ui.perfetto.dev) or Chrome: the JSON trace-event format.

A process is a rank, a thread a communicator; operations of one communicator that overlap get threads of their own.
Times are those of `timeline`: no clock is compared, and the file says so in its metadata.
"""

from __future__ import annotations

from typing import Any

import msgspec

from trimtab.diagnose.divergence import op_name
from trimtab.diagnose.report import printable
from trimtab.diagnose.timeline import Timeline

_LANES = 16  # threads that are kept for one communicator


def trace_json(timeline: Timeline) -> bytes:
    """Return the trace as JSON; times are microseconds from the window's beginning."""
    snapshot, verdict = timeline.look.snapshot, timeline.verdict
    groups, texts = snapshot.groups, snapshot.texts
    events: list[dict[str, Any]] = []
    for place, rank in enumerate(timeline.ranks):
        mark = " (named)" if rank in verdict.ranks else ""
        where = f" on {snapshot.where[rank]}" if rank in snapshot.where else ""
        events.append(_about("process_name", rank, 0, name=printable(f"rank {rank}{where}{mark}")))
        events.append(_about("process_sort_index", rank, 0, sort_index=place))
    seen = set()
    fields = ("rank", "communicator", "lane", "seq", "begin", "end", "waited", "op", "bits", "is_open", "step", "site")
    for rank, c, lane, seq, begin, end, waited, op, bits, is_open, step, site in zip(
        *(timeline.spans[name].tolist() for name in fields), strict=True
    ):
        thread = 1 + c * _LANES + lane
        if (rank, thread) not in seen:
            seen.add((rank, thread))
            name = printable(groups.names[c]) + (f" +{lane}" if lane else "")
            events.append(_about("thread_name", rank, thread, name=name))
        if waited > 0:
            data = {"name": "waited for data", "cat": "data", "ph": "X", "pid": rank, "tid": 0}
            events.append(data | {"ts": 1e6 * (begin - waited), "dur": 1e6 * waited})
        args = {"communicator": printable(groups.names[c]), "seq": seq, "complete": not is_open}
        args |= {"bytes_below": 1 << bits} if bits < 64 else {}
        args |= {"step": step} if step else {}
        args |= {"site": printable(texts[site])} if site in texts else {}
        name = f"{op_name(op)} (does not end)" if is_open else op_name(op)
        span = {"name": name, "cat": "communication", "ph": "X", "pid": rank, "tid": thread, "args": args}
        events.append(span | {"ts": 1e6 * begin, "dur": 1e6 * max(end - begin, 0.0)})
    if not verdict.is_healthy:
        text = printable(f"{verdict.kind}: {verdict.summary}")
        events.append(
            {"name": text, "cat": "verdict", "ph": "i", "s": "g", "ts": 1e6 * timeline.focus, "pid": 0, "tid": 0}
        )
    about = {
        "verdict": verdict.report,
        "clocks": "shifted until operations that ranks share end together; clocks of hosts were not compared",
        "notes": list(timeline.notes),
        "ranks_left_out": timeline.num_left_out,
    }
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms", "metadata": about})


def _about(kind: str, rank: int, thread: int, **args: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": rank, "tid": thread, "args": args}
