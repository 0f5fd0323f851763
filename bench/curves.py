"""The chart of rate and distortion: a panel a field, PSNR against bits a value, as SVG from a record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from trimtab.records import Record

PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP, BELOW = 330, 230, 56, 104, 62, 58
TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20)
LEAST_GAP = 26  # between ticks
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; }
.head { font-weight: 600; }
.tick { font-size: 11px; fill: #59636e; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.line { fill: none; stroke-width: 1.6; }
.ours { font-weight: 600; }
.line.ours { stroke-width: 2.6; }
"""
LIGHT = {
    "ours": ("#80b3ff", "#2f81f7", "#0a3069", "#cf222e"),
    "peers": ("#57606a", "#9a6700", "#8250df", "#1a7f37", "#4ac26b"),
}
DARK = {
    "ours": ("#1f5fb8", "#58a6ff", "#cae8ff", "#ff7b72"),
    "peers": ("#9198a1", "#d29922", "#ab7df8", "#3fb950", "#7ee787"),
}


TITLE = "Fields: PSNR in dB against bits a value; higher and further left is better"


def draw(record: Record, names: Sequence[str] | None = None, title: str = TITLE) -> str:
    """Return the chart of a record of `bench.rate_distortion`, or of one like it, as the text of an SVG file.

    `names` are the contenders to draw; all, unless given.
    """
    fields, names = list(record.data), list(names or record.encoding["contenders"])
    curves = {(field, name): _curve(record, field, name) for field in fields for name in names}
    shown = [name for name in names if any(curves[field, name] for field in fields)]
    kinds = _kinds(shown)
    rows = -(-len(fields) // 2)
    width = LEFT + 2 * PANEL_WIDTH + GAP + 12
    height = TOP + rows * (PANEL_HEIGHT + BELOW) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}{_colours(kinds, LIGHT)}@media (prefers-color-scheme: dark) {{\n"
        "text { fill: #f0f6fc; }\n.tick { fill: #9198a1; }\n.grid { stroke: #3d444d; }\n"
        f"{_colours(kinds, DARK)}}}\n</style>",
        _text(4, 22, title, "title"),
        *_key(shown, kinds),
    ]
    for position, field in enumerate(fields):
        left = LEFT + position % 2 * (PANEL_WIDTH + GAP)
        top = TOP + position // 2 * (PANEL_HEIGHT + BELOW)
        lines = {name: curves[field, name] for name in shown if curves[field, name]}
        parts += _panel(left, top, field, lines, kinds)
    source = f"{record.date}, {record.command}; points that lost nothing, or lie far outside ours, are not drawn"
    parts.append(_text(4, height - 8, source, "tick"))
    return "\n".join([*parts, "</svg>", ""])


def _curve(record: Record, field: str, name: str) -> list[tuple[float, float]]:
    """Return bits and PSNR by bound, of the points that lost something."""
    points = []
    for bound in record.encoding["peer_bounds"]:
        key = f"{field}/{name}/{bound:.0e}"
        if f"{key}/psnr" in record.metrics:
            points.append((record.metrics[f"{key}/bits"].value, record.metrics[f"{key}/psnr"].value))
    return points


def _panel(
    left: int, top: int, field: str, lines: dict[str, list[tuple[float, float]]], kinds: dict[str, str]
) -> list[str]:
    ours = [point for name, line in lines.items() if name.startswith("trimtab") for point in line]
    if not ours:
        return [_text(left, top - 8, f"{field}: nothing was lost", "head")]
    # the window is that of our points, widened; peers' lines are cut to it
    low, high = (f(decibels for _, decibels in ours) for f in (min, max))
    floor, ceiling = math.floor(low / 10) * 10, math.ceil((high + 1) / 10) * 10
    fewest = min(bits for bits, _ in ours) / 4
    inside = {
        name: [(bits, decibels) for bits, decibels in line if floor <= decibels <= ceiling and bits >= fewest]
        for name, line in lines.items()
    }
    every = [bits for line in inside.values() for bits, _ in line]
    first, last = math.log(min(every) / 1.15), math.log(max(every) * 1.15)

    def x(bits: float) -> float:
        return left + PANEL_WIDTH * (math.log(bits) - first) / (last - first)

    def y(decibels: float) -> float:
        return top + PANEL_HEIGHT * (ceiling - decibels) / (ceiling - floor)

    bottom = top + PANEL_HEIGHT
    parts = [_text(left, top - 8, field, "head")]
    for decibels in range(floor, ceiling + 1, 10):
        parts.append(_grid(left, y(decibels), left + PANEL_WIDTH, y(decibels)))
        parts.append(_text(left - 6, y(decibels) + 4, f"{decibels}", "tick", "end"))
    furthest = left - LEAST_GAP
    for bits in TICKS:
        if first <= math.log(bits) <= last and x(bits) >= furthest + LEAST_GAP:
            furthest = x(bits)
            parts.append(_grid(x(bits), top, x(bits), bottom))
            parts.append(_text(x(bits), bottom + 15, f"{bits:g}", "tick", "middle"))
    parts.append(_text(left + PANEL_WIDTH, bottom + 30, "bits a value", "tick", "end"))
    for name in sorted(inside, key=lambda name: name.startswith("trimtab")):  # ours on top
        where = " ".join(f"{x(bits):.1f},{y(decibels):.1f}" for bits, decibels in inside[name])
        parts.append(f'<polyline class="line {kinds[name]}" points="{where}"/>')
        parts += [
            f'<circle class="{kinds[name]}" cx="{x(bits):.1f}" cy="{y(decibels):.1f}" r="3"/>'
            for bits, decibels in inside[name]
        ]
    return parts


def _key(names: list[str], kinds: dict[str, str]) -> list[str]:
    parts = []
    ours = [name for name in names if name.startswith("trimtab")]
    for row, group in enumerate([ours, [name for name in names if name not in ours]]):
        left, middle = 4.0, 44 + 22 * row
        for name in group:
            parts.append(f'<circle class="{kinds[name]}" cx="{left + 5:g}" cy="{middle}" r="5"/>')
            parts.append(_text(left + 15, middle + 5, name, "ours" if row == 0 else "peer"))
            left += 28 + (7.9 if row == 0 else 6.8) * len(name)
    return parts


def _kinds(names: list[str]) -> dict[str, str]:
    """Return the classes of each contender, which have its colour."""
    ours = [name for name in names if name.startswith("trimtab")]
    peers = [name for name in names if name not in ours]
    kinds = {name: f"ours ours-{at + len(LIGHT['ours']) - len(ours)}" for at, name in enumerate(ours)}
    return kinds | {name: f"peers-{at % len(LIGHT['peers'])}" for at, name in enumerate(peers)}


def _colours(kinds: dict[str, str], palette: dict[str, tuple[str, ...]]) -> str:
    rules = []
    for kind in dict.fromkeys(kind.split()[-1] for kind in kinds.values()):
        group, _, number = kind.partition("-")
        colour = palette[group][int(number)]
        rules.append(f"circle.{kind} {{ fill: {colour}; }}\n.line.{kind} {{ stroke: {colour}; }}\n")
    return "".join(rules)


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
