"""The chart of SDP4Bit: validation loss by step, and seconds a step by the rate of the link, as SVG from a record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from bench import svg
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
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def draw(record: Record) -> str:
    """Return the chart of a record of `bench.sharded` as the text of an SVG file."""
    width, height = LEFT + 2 * WIDTH + GAP + 16, TOP + HEIGHT + BELOW
    title = f"SDP4Bit, {record.architecture['num_parameters'] / 1e6:.0f} M parameters on 2 nodes of 2 ranks"
    source = f"{record.date}, {record.command}; lines: means of seeds, thin: each; medians"
    parts = [*_losses(LEFT, record.data["curves"]), *_steps(LEFT + WIDTH + GAP, record)]
    return svg.page(width, height, title, source, COLOURS, parts)


def _losses(left: int, curves: Mapping[str, Mapping[str, Sequence[svg.Point]]]) -> Iterator[str]:
    shown = {way: list(curves[way].values()) for way in CURVES if way in curves}
    means = {way: [svg.mean(points) for points in zip(*lines, strict=True)] for way, lines in shown.items()}
    every = [loss for line in means.values() for _, loss in line]
    low = math.floor(min(every) * 5) / 5
    high = min(math.ceil(max(every) * 5) / 5, low + 1.6)  # what comes before is steep, and the same for all
    last = max(step for line in means.values() for step, _ in line)

    def x(step: float) -> float:
        return left + WIDTH * step / last

    def y(loss: float) -> float:
        return TOP + HEIGHT * (high - loss) / (high - low)

    yield svg.text(left, TOP - 8, "validation loss, nats a byte", "head")
    yield from svg.across(left, WIDTH, y, [low + 0.2 * k for k in range(round((high - low) / 0.2) + 1)], "{:.1f}")
    yield from svg.along(TOP, HEIGHT, x, [round(last * k / 4) for k in range(5)], "{:g}")
    yield svg.text(left + WIDTH, TOP + HEIGHT + 32, "steps", "tick", "end")
    for way, lines in shown.items():
        for line in lines:
            yield svg.line([(x(step), y(loss)) for step, loss in line if loss <= high], way, "thin")
    for way, line in means.items():
        yield svg.line([(x(step), y(loss)) for step, loss in line if loss <= high], way, "line")


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

    yield svg.text(left, TOP - 8, "seconds a step", "head")
    ticks = [number * 10.0**power for power in range(-3, 4) for number in (1, 2, 5)]
    yield from svg.across(left, WIDTH, y, [tick for tick in ticks if low <= math.log(tick) <= high], "{:g}")
    yield from svg.along(TOP, HEIGHT, x, list(rates.values()), "{:g}")
    yield svg.text(left + WIDTH, TOP + HEIGHT + 32, "Mbit/s between the nodes", "tick", "end")
    for way, line in lines.items():
        if line:
            yield svg.line([(x(rate), y(seconds)) for rate, seconds in line], way, "line")
        for rate, seconds in line:
            yield svg.dot(x(rate), y(seconds), way)
