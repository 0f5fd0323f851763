"""The chart of DeepSZ: a panel a network, loss of accuracy against the ratio of the file, as SVG from a record."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape

from trimtab.records import Record

PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP, BELOW = 350, 260, 52, 78, 58, 64
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; }
.head { font-weight: 600; }
.tick { font-size: 11px; fill: #59636e; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.line { fill: none; stroke: #0969da; stroke-width: 2.6; }
.check { fill: #0969da; }
.test { fill: none; stroke: #bc4c00; stroke-width: 1.1; }
.rival { fill: #57606a; }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; }
.tick { fill: #9198a1; }
.grid { stroke: #3d444d; }
.line { stroke: #58a6ff; }
.check { fill: #58a6ff; }
.test { stroke: #f0883e; }
.rival { fill: #9198a1; }
}
"""
RIVALS = {"SZ3": "SZ3 + zstd/xz", "Deep Compression": "Deep Compression"}


def draw(record: Record) -> str:
    """Return the chart of a record of `bench.deepsz` as the text of an SVG file."""
    subjects: Mapping[str, Mapping] = record.data["subjects"]
    width = LEFT + len(subjects) * (PANEL_WIDTH + GAP) - GAP + 16
    height = TOP + PANEL_HEIGHT + BELOW
    title = "DeepSZ on Fashion-MNIST: points of accuracy lost, against ratio"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        _text(4, 22, title, "title"),
        *_key(),
    ]
    for position, (name, subject) in enumerate(subjects.items()):
        parts += _panel(LEFT + position * (PANEL_WIDTH + GAP), record, name, subject["cases"])
    source = f"{record.date}, {record.command}; the rivals' ratios are of weights alone, ours of whole files"
    parts.append(_text(4, height - 8, source, "tick"))
    return "\n".join([*parts, "</svg>", ""])


def _key() -> list[str]:
    return [
        '<circle class="check" cx="12" cy="43" r="3.5"/>',
        _text(22, 47, "on the images that the budget is checked on (line: medians)", "tick"),
        '<circle class="test" cx="376" cy="43" r="3.5"/>',
        _text(386, 47, "the same files on test images", "tick"),
        '<rect class="rival" x="578" y="39" width="8" height="8"/>',
        _text(592, 47, "others on the same weights", "tick"),
    ]


def _panel(left: float, record: Record, name: str, cases: Sequence[Mapping[str, float]]) -> list[str]:
    rivals = {
        label: (record.metrics[f"{name}/rivals/{what}"].value, record.metrics[f"{name}/rivals/{what}_drop"].value)
        for what, label in RIVALS.items()
        if f"{name}/rivals/{what}" in record.metrics
    }
    ratios = [case["ratio"] for case in cases] + [ratio for ratio, _ in rivals.values()]
    drops = [100 * case[f"{split}_drop_pruned"] for case in cases for split in ("check", "test")]
    drops += [drop for _, drop in rivals.values()]
    low, high = 10 * math.floor(min(ratios) / 10), 10 * math.floor(max(ratios) / 10) + 10
    bottom, top = 0.25 * math.floor(min(drops) / 0.25), 0.25 * math.floor(max(drops) / 0.25) + 0.25

    def x(ratio: float) -> float:
        return left + PANEL_WIDTH * (ratio - low) / (high - low)

    def y(drop: float) -> float:
        return TOP + PANEL_HEIGHT * (top - drop) / (top - bottom)

    parts = [_text(left, TOP - 10, f"{name}, {len(cases)} files", "head")]
    step = 10 if high - low <= 80 else 20
    for tick in range(low, high + 1, step):
        parts.append(_line(x(tick), TOP, x(tick), TOP + PANEL_HEIGHT))
        parts.append(_text(x(tick), TOP + PANEL_HEIGHT + 16, f"{tick}x", "tick", "middle"))
    for k in range(round((top - bottom) / 0.25) + 1):
        drop = bottom + 0.25 * k
        parts.append(_line(left, y(drop), left + PANEL_WIDTH, y(drop)))
        parts.append(_text(left - 6, y(drop) + 4, f"{drop:.2f}", "tick", "end"))
    for case in cases:
        for split in ("test", "check"):
            drop = 100 * case[f"{split}_drop_pruned"]
            parts.append(f'<circle class="{split}" cx="{x(case["ratio"]):.1f}" cy="{y(drop):.1f}" r="2.6"/>')
    middles = []
    for budget in dict.fromkeys(case["budget"] for case in cases):
        some = [case for case in cases if case["budget"] == budget]
        ratio = statistics.median(case["ratio"] for case in some)
        drop = statistics.median(100 * case["check_drop_pruned"] for case in some)
        middles.append(f"{x(ratio):.1f},{y(drop):.1f}")
    parts.append(f'<polyline class="line" points="{" ".join(middles)}"/>')
    for label, (ratio, drop) in rivals.items():
        parts.append(f'<rect class="rival" x="{x(ratio) - 4:.1f}" y="{y(drop) - 4:.1f}" width="8" height="8"/>')
        parts.append(_text(x(ratio) + 7, y(drop) + 15, label, "tick"))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
