"""The chart of SDP4Bit: validation loss by step, and seconds a step by the rate of the link, as SVG from a record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

from trimtab.records import Record

WIDTH, HEIGHT, LEFT, TOP, GAP, BELOW = 350, 260, 52, 78, 74, 64
COLOURS = {
    "SDP4Bit": ("#0969da", "#58a6ff"),
    "stock": ("#57606a", "#9198a1"),
    "qW": ("#bc4c00", "#f0883e"),
    "exact, two levels": ("#1a7f37", "#3fb950"),
    "DDP, fp16 hook": ("#8250df", "#ab7df8"),
}
"""Way -> its colour on light and on dark."""
CURVES = ("stock", "qW", "SDP4Bit")
STEPS = ("stock", "DDP, fp16 hook", "exact, two levels", "SDP4Bit")
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; }
.head { font-weight: 600; }
.tick { font-size: 11px; fill: #59636e; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.line { fill: none; stroke-width: 2; }
.thin { fill: none; stroke-width: 0.8; opacity: 0.5; }
"""
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}

Point = tuple[float, float]


def draw(record: Record) -> str:
    """Return the chart of a record of `bench.sharded` as the text of an SVG file."""
    width, height = LEFT + 2 * WIDTH + GAP + 16, TOP + HEIGHT + BELOW
    title = f"SDP4Bit, {record.architecture['num_parameters'] / 1e6:.0f} M parameters on 2 nodes of 2 ranks"
    dark = "text { fill: #f0f6fc; }\n.tick { fill: #9198a1; }\n.grid { stroke: #3d444d; }\n"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}{_colours(0)}@media (prefers-color-scheme: dark) {{\n{dark}{_colours(1)}}}\n</style>",
        _text(4, 22, title, "title"),
        *_key(),
        *_losses(LEFT, record.data["curves"]),
        *_steps(LEFT + WIDTH + GAP, record),
        _text(4, height - 8, f"{record.date}, {record.command}; lines: means of seeds, thin: each; medians", "tick"),
    ]
    return "\n".join([*parts, "</svg>", ""])


def _losses(left: int, curves: Mapping[str, Mapping[str, Sequence[Point]]]) -> Iterator[str]:
    shown = {way: list(curves[way].values()) for way in CURVES if way in curves}
    means = {way: [_mean(points) for points in zip(*lines, strict=True)] for way, lines in shown.items()}
    every = [loss for line in means.values() for _, loss in line]
    low = math.floor(min(every) * 5) / 5
    high = min(math.ceil(max(every) * 5) / 5, low + 1.6)  # what comes before is steep, and the same for all
    last = max(step for line in means.values() for step, _ in line)

    def x(step: float) -> float:
        return left + WIDTH * step / last

    def y(loss: float) -> float:
        return TOP + HEIGHT * (high - loss) / (high - low)

    yield _text(left, TOP - 8, "validation loss, nats a byte", "head")
    yield from _across(left, y, [low + 0.2 * k for k in range(round((high - low) / 0.2) + 1)], "{:.1f}")
    yield from _along(x, [round(last * k / 4) for k in range(5)], "{:g}")
    yield _text(left + WIDTH, TOP + HEIGHT + 32, "steps", "tick", "end")
    for way, lines in shown.items():
        for line in lines:
            yield _line([(x(step), y(loss)) for step, loss in line if loss <= high], way, "thin")
    for way, line in means.items():
        yield _line([(x(step), y(loss)) for step, loss in line if loss <= high], way, "line")


def _mean(points: Sequence[Point]) -> Point:
    return points[0][0], sum(loss for _, loss in points) / len(points)


def _steps(left: int, record: Record) -> Iterator[str]:
    rates = {rate: float(rate[:-4]) * UNITS[rate[-4:]] / 1e6 for rate in record.inference["rates"]}
    lines = {
        way: [
            (rates[rate], record.metrics[f"{rate}/{way}/seconds"].value)
            for rate in rates
            if f"{rate}/{way}/seconds" in record.metrics
        ]
        for way in STEPS
    }
    every = [seconds for line in lines.values() for _, seconds in line]
    low, high = math.log(min(every) / 1.2), math.log(max(every) * 1.2)
    first, last = math.log(min(rates.values())), math.log(max(rates.values()) * 1.0001)

    def x(rate: float) -> float:
        return left + WIDTH * (math.log(rate) - first) / max(last - first, 1e-9)

    def y(seconds: float) -> float:
        return TOP + HEIGHT * (high - math.log(seconds)) / (high - low)

    yield _text(left, TOP - 8, "seconds a step", "head")
    ticks = [number * 10.0**power for power in range(-3, 4) for number in (1, 2, 5)]
    yield from _across(left, y, [tick for tick in ticks if low <= math.log(tick) <= high], "{:g}")
    yield from _along(x, list(rates.values()), "{:g}")
    yield _text(left + WIDTH, TOP + HEIGHT + 32, "Mbit/s between the nodes", "tick", "end")
    for way, line in lines.items():
        if line:
            yield _line([(x(rate), y(seconds)) for rate, seconds in line], way, "line")
        for rate, seconds in line:
            yield f'<circle class="{_kind(way)}" cx="{x(rate):.1f}" cy="{y(seconds):.1f}" r="3"/>'


def _key() -> Iterator[str]:
    at = 4.0
    for way in COLOURS:
        yield f'<circle class="{_kind(way)}" cx="{at + 5:g}" cy="43" r="5"/>'
        yield _text(at + 15, 48, way, "key")
        at += 34 + 7.2 * len(way)


def _across(left: int, y: Callable[[float], float], ticks: Sequence[float], form: str) -> Iterator[str]:
    for tick in ticks:
        yield _grid(left, y(tick), left + WIDTH, y(tick))
        yield _text(left - 6, y(tick) + 4, form.format(tick), "tick", "end")


def _along(x: Callable[[float], float], ticks: Sequence[float], form: str) -> Iterator[str]:
    for tick in ticks:
        yield _grid(x(tick), TOP, x(tick), TOP + HEIGHT)
        yield _text(x(tick), TOP + HEIGHT + 16, form.format(tick), "tick", "middle")


def _colours(theme: int) -> str:
    return "".join(
        f"circle.{_kind(way)} {{ fill: {pair[theme]}; }}\npolyline.{_kind(way)} {{ stroke: {pair[theme]}; }}\n"
        for way, pair in COLOURS.items()
    )


def _kind(way: str) -> str:
    return "way-" + "".join(letter if letter.isalnum() else "-" for letter in way)


def _line(points: Sequence[Point], way: str, kind: str) -> str:
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{kind} {_kind(way)}" points="{where}"/>'


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
