"""The report as one HTML page: verdict, picture of the window around the fault, and the ranks that matter.

It needs nothing beside itself: no scripts, no files, no network. It follows the reader's light or dark setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from trimtab.diagnose.divergence import op_name
from trimtab.diagnose.look import Look
from trimtab.diagnose.report import facts, next_step, printable
from trimtab.diagnose.standing import Standing
from trimtab.diagnose.timeline import Timeline
from trimtab.diagnose.verdict import MEANINGS, Verdict, ranks_in_words

_FAMILIES = {
    "reduce": ("all_reduce", "reduce", "reduce_scatter"),
    "gather": ("all_gather", "gather", "scatter", "all_to_all"),
    "send": ("send", "recv"),
    "other": ("broadcast", "barrier", "coalesced", "unknown"),
}
_FAMILY = {op: family for family, ops in _FAMILIES.items() for op in ops}
_WORDS = {
    "reduce": "reductions",
    "gather": "gathers and all-to-all",
    "send": "sends and receives",
    "other": "broadcasts, barriers, others",
    "data": "waits for data",
    "open": "does not end",
    "absent": "has not entered",
}
_STYLE = """
:root { --page: #ffffff; --ink: #1f2328; --soft: #59636e; --rule: #d1d9e0; --band: #f6f8fa; --alarm: #cf222e;
  --alarm-band: #ffebe9; --well: #1a7f37; --reduce: #4f8edc; --gather: #3aa676; --send: #a475d8; --other: #c08a2d;
  --data: #8c959f; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --ink: #f0f6fc; --soft: #9198a1; --rule: #3d444d;
  --band: #151b23; --alarm: #ff7b72; --alarm-band: #33181c; --well: #3fb950; --reduce: #5a9bf0; --gather: #3fb583;
  --send: #b48cf0; --other: #d9a441; --data: #767f89; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 28px 20px 48px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 24px; line-height: 1.3; margin: 6px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 30px 0 8px; }
p { margin: 4px 0; } .soft { color: var(--soft); }
.badge { display: inline-block; padding: 2px 10px; border-radius: 12px; font-size: 13px; font-weight: 600;
  color: var(--page); background: var(--alarm); } .well { background: var(--well); }
.next { border-left: 4px solid var(--alarm); background: var(--band); padding: 10px 14px; margin: 16px 0; }
.next.well { border-color: var(--well); background: var(--band); }
ul { margin: 4px 0; padding-left: 20px; } li { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; } td.number, th.number { text-align: right; }
tr.named td { background: var(--alarm-band); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 4px 0; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
svg { display: block; } svg text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--ink); }
svg .tick { font-size: 11px; fill: var(--soft); } svg .rule { stroke: var(--rule); stroke-width: 1; }
svg .named { fill: var(--alarm); font-weight: 600; } svg .band { fill: var(--alarm-band); }
svg .base { stroke: var(--rule); stroke-width: 2; } svg .focus { stroke: var(--alarm); stroke-dasharray: 4 3; }
svg .reduce { fill: var(--reduce); } svg .gather { fill: var(--gather); } svg .send { fill: var(--send); }
svg .other { fill: var(--other); } svg .data { fill: var(--data); }
svg .open { stroke: var(--alarm); stroke-width: 1.5; fill-opacity: 0.45; }
svg .absent { fill: none; stroke: var(--alarm); stroke-width: 1.5; stroke-dasharray: 3 3; }
"""
_WIDTH, _LEFT, _TOP, _ROW, _BAR = 1080, 92, 62, 22, 12


def page(look: Look, verdict: Verdict, timeline: Timeline | None) -> str:
    """Return the whole page."""
    well = " well" if verdict.is_healthy else ""
    title = printable(verdict.summary)
    parts = [
        f'<span class="badge{well}">{"healthy" if verdict.is_healthy else verdict.kind}</span>',
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(MEANINGS[verdict.kind])}; confidence {verdict.confidence:.2f}</p>',
        f'<div class="next{well}"><b>Next:</b> {escape(printable(next_step(verdict, look)))}</div>',
        *_list("Because", verdict.evidence),
        "<h2>Around the fault</h2>" if not verdict.is_healthy else "<h2>The latest operations</h2>",
        *([_picture(timeline)] if timeline else ['<p class="soft">There are no operations to draw.</p>']),
        *_list("Not seen", verdict.not_seen),
        "<h2>Ranks</h2>",
        *_ranks(look, verdict),
        "<h2>Looked at</h2>",
        "<dl>",
        *(f"<dt>{escape(name)}</dt><dd>{escape(printable(text))}</dd>" for name, text in facts(look).items()),
        *(f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{value:g}</dd>" for name, value in verdict.measures.items()),
        "</dl>",
    ]
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
    )
    return "\n".join([head, *parts, "</body></html>", ""])


def _list(title: str, lines: Iterable[str]) -> list[str]:
    items = [f"<li>{escape(printable(line))}</li>" for line in lines]
    return [f"<h2>{title}</h2>", "<ul>", *items, "</ul>"] if items else []


def _ranks(look: Look, verdict: Verdict, limit: int = 24) -> Iterator[str]:
    """Yield the table of the ranks that tell most, and what all the others do."""
    standing = Standing.of(look)
    ranks = standing.most_telling(limit, verdict.ranks)
    rows = [_cells(standing.row(rank)) for rank in ranks]
    used = [i for i in range(len(_COLUMNS)) if i < 2 or any(row[i] for row in rows)]
    numbers = {i for i in used if _COLUMNS[i] in _NUMBERS}
    heads = (f"{_cell('th', i in numbers)}{_COLUMNS[i]}</th>" for i in used)
    yield f'<div class="scroll"><table><tr>{"".join(heads)}</tr>'
    for rank, row in zip(ranks, rows, strict=True):
        cells = (f"{_cell('td', i in numbers)}{escape(printable(row[i]))}</td>" for i in used)
        named = ' class="named"' if rank in verdict.ranks else ""
        yield f"<tr{named}>{''.join(cells)}</tr>"
    yield "</table></div>"
    if len(ranks) < standing.state.size:
        states = ", ".join(f"{count:,} {state}" for state, count in standing.counts().items())
        yield f'<p class="soft">{len(ranks)} of {standing.state.size:,} ranks; of all, {escape(states)}.</p>'


_COLUMNS = ("rank", "state", "operation", "communicator", "number", "seconds", "behind", "waited for data, s", "where")
_NUMBERS = ("number", "seconds", "behind", "waited for data, s")


def _cell(tag: str, is_number: bool) -> str:
    return f'<{tag} class="number">' if is_number else f"<{tag}>"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return one rank as texts, in the order of `_COLUMNS`."""
    is_inside, site = row["state"] == "inside", f" at {row['site']}" if row["site"] else ""
    operation = f"{'' if is_inside else 'last: '}{row['operation']}{site}" if row["operation"] else ""
    has_seconds = row["seconds"] and row["state"] in ("inside", "waits for data")
    waited = row["waited_for_data_seconds"]
    return (
        str(row["rank"]),
        row["state"],
        operation,
        row["communicator"] or "",
        str(row["seq"] or ""),
        f"{row['seconds']:.1f}" if has_seconds else "",
        str(row["lag_operations"] or ""),
        f"{waited:.1f}" if waited >= 0.05 else "",
        row["where"] or "",
    )


def _picture(timeline: Timeline) -> str:
    """Return the timeline as SVG: a row a rank, the named ones marked."""
    rows = {rank: i for i, rank in enumerate(timeline.ranks)}
    height = _TOP + _ROW * len(rows) + 34
    scale = (_WIDTH - _LEFT - 12) / timeline.seconds
    named = set(timeline.verdict.ranks)
    label = f"Operations of {ranks_in_words(timeline.ranks)} over {_duration(timeline.seconds)}"
    parts = [
        f'<div class="scroll"><svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">'
    ]
    parts += _key(timeline)
    bottom = _TOP + _ROW * len(rows)
    step = _tick(timeline.seconds)
    for k in range(int(timeline.seconds / step) + 1):
        x = _LEFT + k * step * scale
        parts.append(f'<line class="rule" x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{bottom + 4}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_duration(k * step)}</text>'
        )
    for rank, i in rows.items():
        y = _TOP + _ROW * i
        if rank in named:
            parts.append(f'<rect class="band" x="0" y="{y}" width="{_WIDTH}" height="{_ROW}"/>')
        style = ' class="named"' if rank in named else ""
        parts.append(f'<text{style} x="{_LEFT - 10}" y="{y + 15}" text-anchor="end">rank {rank}</text>')
        middle = y + _ROW / 2
        parts.append(f'<line class="base" x1="{_LEFT}" y1="{middle}" x2="{_WIDTH - 12}" y2="{middle}"/>')
    parts += _bars(timeline, rows, scale)
    x = _LEFT + timeline.focus * scale
    if timeline.verdict.seq is not None:
        parts.append(f'<line class="focus" x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{bottom + 4}"/>')
    parts.append("</svg></div>")
    words = [*timeline.notes]
    if timeline.num_left_out:
        words.append(f"{timeline.num_left_out:,} other ranks are not drawn")
    parts.append(f'<p class="soft">{escape("; ".join(words))}{"." if words else ""}</p>')
    return "\n".join(parts)


def _bars(timeline: Timeline, rows: dict[int, int], scale: float) -> Iterator[str]:
    groups, texts = timeline.look.snapshot.groups, timeline.look.snapshot.texts
    fields = ("rank", "communicator", "seq", "begin", "end", "waited", "op", "lane", "is_open", "step", "site")
    for rank, c, seq, begin, end, waited, op, lane, is_open, step, site in zip(
        *(timeline.spans[name].tolist() for name in fields), strict=True
    ):
        y = _TOP + _ROW * rows[rank] + (_ROW - _BAR) / 2 + min(lane, 3)
        if waited > 0 and begin > 0:
            since = max(begin - waited, 0.0)
            x, width = _LEFT + since * scale, max((begin - since) * scale, 0.5)
            about = f"rank {rank} waited for data for {_duration(waited)}"
            yield _rect("data", x, y + 4, width, _BAR - 8, about)
        left, right = max(begin, 0.0), min(end, timeline.seconds)
        name = op_name(op)
        where = f" at {texts[site]}" if site in texts else ""
        took = (
            "inside for the rest of the time, and does not end" if is_open else f"inside for {_duration(end - begin)}"
        )
        about = f"rank {rank}: {name} {seq} of {groups.names[c]!r}{where}{f', step {step}' if step else ''}; {took}"
        style = f"{_FAMILY[name]} open" if is_open else _FAMILY[name]
        yield _rect(style, _LEFT + left * scale, y, max((right - left) * scale, 0.8), _BAR, about)
    for i, rank in enumerate(timeline.ranks):
        ended = timeline.ended[i]
        if rank in timeline.verdict.sets.get("missing", ()) and ended < timeline.seconds:
            x = _LEFT + max(ended, 0.0) * scale
            about = f"rank {rank} has not entered operation {timeline.verdict.seq}"
            y = _TOP + _ROW * rows[rank] + (_ROW - _BAR) / 2
            yield _rect("absent", x + 1, y, max(_WIDTH - 12 - x, 1.0), _BAR, about)


def _rect(style: str, x: float, y: float, width: float, height: float, about: str) -> str:
    return (
        f'<rect class="{style}" x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height:g}" rx="1.5">'
        f"<title>{escape(printable(about))}</title></rect>"
    )


def _key(timeline: Timeline) -> Iterator[str]:
    """Yield the key: only what occurs."""
    kinds = [_FAMILY[op_name(op)] for op in sorted(set(timeline.spans["op"].tolist()))]
    kinds += ["data"] if timeline.spans["waited"].any() else []
    kinds += ["open"] if timeline.spans["is_open"].any() else []
    kinds += ["absent"] if timeline.verdict.sets.get("missing") else []
    x = float(_LEFT)
    for kind in dict.fromkeys(kinds):
        style = "reduce open" if kind == "open" else kind
        yield f'<rect class="{style}" x="{x:.0f}" y="14" width="18" height="{_BAR}" rx="1.5"/>'
        yield f'<text x="{x + 24:.0f}" y="24">{_WORDS[kind]}</text>'
        x += 48 + 6.6 * len(_WORDS[kind])


def _tick(seconds: float) -> float:
    """A round step that gives 5 to 12 ticks."""
    step = 10.0**-12
    while seconds / step > 12:
        step *= 2.5 if f"{step:e}"[0] == "2" else 2.0
    return step


def _duration(seconds: float) -> str:
    if seconds == 0:
        return "0"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
