"""The charts of COMET, as SVG from a record: memory over a step, and accuracy against ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from trimtab.records import Record

WIDTH, HEIGHT, LEFT, TOP, GAP, BELOW = 350, 260, 52, 78, 74, 64
WIDE = 2 * WIDTH + GAP
COLOURS = {
    "exact": ("#57606a", "#9198a1"),
    "checkpoints": ("#1a7f37", "#3fb950"),
    "COMET, 6x": ("#0969da", "#58a6ff"),
    "COMET, 13x": ("#8250df", "#ab7df8"),
    "COMET, 21x": ("#bf3989", "#db61a2"),
    "COMET, 13x, fixed": ("#9a6700", "#d29922"),
    "bfloat16": ("#57606a", "#9198a1"),
    "4 bits": ("#bc4c00", "#f0883e"),
    "2 bits": ("#cf222e", "#ff7b72"),
}
"""Way -> its colour on light and on dark."""
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; }
.head { font-weight: 600; }
.tick { font-size: 11px; fill: #59636e; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.bar { stroke-width: 1.4; }
polyline { fill: none; stroke-width: 2; }
"""
DARK = "text { fill: #f0f6fc; }\n.tick { fill: #9198a1; }\n.grid { stroke: #3d444d; }\n"

Point = tuple[float, float]


def draw_memory(record: Record) -> str:
    """Return the chart of resident memory through the forward and the backward pass of one step."""
    found = record.data["resident"]
    ways = {way: curve for way, curve in found["ways"].items() if curve["points"]}
    scale = record.architecture["scales"]["memory"]
    last = max(curve["seconds"] for curve in ways.values())
    most = max(num for curve in ways.values() for _, num in curve["points"])
    ticks = _ticks(most)

    def x(seconds: float) -> float:
        return LEFT + WIDE * seconds / last

    def y(megabytes: float) -> float:
        return TOP + HEIGHT * (1 - max(megabytes, 0) / ticks[-1])

    parts = [
        *_key(ways),
        _text(LEFT, TOP - 8, "MB resident above those before the step; a dot is the end of the forward pass", "head"),
        *_across(LEFT, WIDE, y, ticks, "{:g}"),
        *_along(x, [tick for tick in _ticks(last) if tick <= last], "{:g}"),
        _text(LEFT + WIDE, TOP + HEIGHT + 32, "seconds", "tick", "end"),
    ]
    for way, curve in ways.items():
        parts.append(_line([(x(at), y(num)) for at, num in curve["points"]], way))
        turn = max((point for point in curve["points"] if point[0] <= curve["forward_seconds"]), default=(0.0, 0.0))
        parts.append(f'<circle class="{_kind(way)}" cx="{x(turn[0]):.1f}" cy="{y(turn[1]):.1f}" r="4"/>')
    title = f"One step of {found['network']}, {scale['width']} wide, batch of {scale['batch']}"
    return _whole(title, parts, f"{record.date}, {record.command}; resident memory of a fresh process, one thread")


def draw_accuracy(record: Record) -> str:
    """Return the chart of accuracy beside exact training, against the ratio of all that is kept: a panel a network."""
    accuracies = record.optimization["accuracies"]
    ways = [way for way in next(iter(accuracies.values())) if way in COLOURS and way != "exact"]
    parts = [*_key(ways)]
    for position, network in enumerate(accuracies):
        parts += _panel(LEFT + position * (WIDTH + GAP), record, network, ways)
    last = f"{record.date}, {record.command}; means of the seeds with the standard error of the difference"
    return _whole("Accuracy against how many times less is kept between forward and backward", parts, last)


def _panel(left: float, record: Record, network: str, ways: Sequence[str]) -> Iterator[str]:
    found = {}
    for way in ways:
        whats = ("ratio", "mean beside exact", "error beside exact")
        metrics = [record.metrics.get(f"{network}/{way}/{what}") for what in whats]
        if all(metrics):
            found[way] = tuple(metric.value for metric in metrics if metric)
    high = math.ceil(max(ratio for ratio, *_ in found.values()) * 1.05 / 5) * 5
    low = math.floor(min([change - error for _, change, error in found.values()] + [-0.4]) * 5) / 5
    top = math.ceil(max([change + error for _, change, error in found.values()] + [0.2]) * 5) / 5

    def x(ratio: float) -> float:
        return left + WIDTH * ratio / high

    def y(change: float) -> float:
        return TOP + HEIGHT * (top - change) / (top - low)

    yield _text(left, TOP - 8, f"{network}: points beside exact training", "head")
    step = 0.2 if top - low <= 2.4 else 1.0
    yield from _across(left, WIDTH, y, [low + step * k for k in range(round((top - low) / step) + 1)], "{:+.1f}")
    yield from _along(x, list(range(0, high + 1, 5)), "{:g}x")
    for way, (ratio, change, error) in found.items():
        kind = _kind(way)
        yield (
            f'<line class="bar {kind}" x1="{x(ratio):.1f}" y1="{y(change - error):.1f}" '
            f'x2="{x(ratio):.1f}" y2="{y(change + error):.1f}"/>'
        )
        yield f'<circle class="{kind}" cx="{x(ratio):.1f}" cy="{y(change):.1f}" r="4.5"/>'


def _whole(title: str, parts: Sequence[str], source: str) -> str:
    width, height = LEFT + WIDE + 16, TOP + HEIGHT + BELOW
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}{_colours(0)}@media (prefers-color-scheme: dark) {{\n{DARK}{_colours(1)}}}\n</style>",
            _text(4, 22, title, "title"),
            *parts,
            _text(4, height - 8, source, "tick"),
            "</svg>",
            "",
        ]
    )


def _ticks(most: float) -> list[float]:
    """Return round numbers from 0 to the first that is not below `most`: about five."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(number * power for number in (1, 2, 5, 10) if number * power >= most / 5)
    return [step * k for k in range(math.ceil(most / step) + 1)]


def _key(ways: Sequence[str] | dict) -> Iterator[str]:
    at = 4.0
    for way in ways:
        yield f'<circle class="{_kind(way)}" cx="{at + 5:g}" cy="43" r="5"/>'
        yield _text(at + 15, 48, way, "key")
        at += 30 + 7.4 * len(way)


def _across(left: float, width: float, y: Callable[[float], float], ticks: Sequence[float], form: str) -> Iterator[str]:
    for tick in ticks:
        yield _grid(left, y(tick), left + width, y(tick))
        yield _text(left - 6, y(tick) + 4, form.format(tick), "tick", "end")


def _along(x: Callable[[float], float], ticks: Sequence[float], form: str) -> Iterator[str]:
    for tick in ticks:
        yield _grid(x(tick), TOP, x(tick), TOP + HEIGHT)
        yield _text(x(tick), TOP + HEIGHT + 16, form.format(tick), "tick", "middle")


def _colours(theme: int) -> str:
    return "".join(
        f"circle.{_kind(way)} {{ fill: {pair[theme]}; }}\n"
        f"polyline.{_kind(way)}, line.{_kind(way)} {{ stroke: {pair[theme]}; }}\n"
        for way, pair in COLOURS.items()
    )


def _kind(way: str) -> str:
    return "way-" + "".join(letter if letter.isalnum() else "-" for letter in way)


def _line(points: Sequence[Point], way: str) -> str:
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{_kind(way)}" points="{where}"/>'


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
