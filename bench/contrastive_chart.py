"""The chart of FastCLIP: a row a regime, held-out loss and recall by epoch beside OpenCLIP's and SigLIP's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from bench import svg
from trimtab.records import Record

WIDTH, HEIGHT, LEFT, TOP, GAP, BELOW = 350, 230, 52, 88, 74, 64
COLOURS = {
    "OpenCLIP": ("#57606a", "#9198a1"),
    "SigLIP": ("#bc4c00", "#f0883e"),
    "FastCLIP v1": ("#1a7f37", "#3fb950"),
    "FastCLIP v3": ("#0969da", "#58a6ff"),
}
"""Way -> its colour on light and on dark."""
PANELS = {"loss": "held-out contrastive loss, nats", "recall": "mean recall, %"}
NUM_TICKS = 6

Curve = Sequence[Mapping[str, float]]


def draw(record: Record) -> str:
    """Return the chart of a record of `bench.contrastive` as the text of an SVG file."""
    curves = record.data["curves"]
    width, height = LEFT + 2 * WIDTH + GAP + 16, TOP + len(curves) * (HEIGHT + BELOW)
    title = f"Contrastive losses, {record.data['pairs']}: found among validation pairs"
    parts: list[str] = []
    for row, (regime, ways) in enumerate(curves.items()):
        for column, (what, head) in enumerate(PANELS.items()):
            left, top = LEFT + column * (WIDTH + GAP), TOP + row * (HEIGHT + BELOW)
            parts += _panel(left, top, f"{regime}: {head}", what, ways)
    source = f"{record.date}, {record.command}; lines: means of seeds, thin: each"
    return svg.page(width, height, title, source, COLOURS, parts)


def _panel(left: int, top: int, head: str, what: str, ways: Mapping[str, Mapping[str, Curve]]) -> Iterator[str]:
    shown = {
        way: [[(point["epoch"], point[what]) for point in curve] for curve in ways[way].values()]
        for way in COLOURS
        if way in ways
    }
    every = [value for lines in shown.values() for line in lines for _, value in line]
    ticks = _ticks(min(every), max(every))
    last = max(epoch for lines in shown.values() for line in lines for epoch, _ in line)

    def x(epoch: float) -> float:
        return left + WIDTH * epoch / last

    def y(value: float) -> float:
        return top + HEIGHT * (ticks[-1] - value) / (ticks[-1] - ticks[0])

    yield svg.text(left, top - 8, head, "head")
    yield from svg.across(left, WIDTH, y, ticks, "{:g}")
    yield from svg.along(top, HEIGHT, x, [round(last * k / 5) for k in range(6)], "{:g}")
    yield svg.text(left + WIDTH, top + HEIGHT + 32, "epochs", "tick", "end")
    means = {way: [svg.mean(points) for points in zip(*lines, strict=True)] for way, lines in shown.items()}
    for way, lines in shown.items():
        for line in lines:
            yield svg.line([(x(epoch), y(value)) for epoch, value in line], way, "thin")
    for way, line in means.items():
        yield svg.line([(x(epoch), y(value)) for epoch, value in line], way, "line")


def _ticks(low: float, high: float) -> list[float]:
    """Return about `NUM_TICKS` round numbers that enclose all values."""
    unit = 10.0 ** math.floor(math.log10(max(high - low, 1e-9)))
    step = next(k * unit for k in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (k * unit) <= NUM_TICKS)
    first = math.floor(low / step)
    return [round(step * k, 9) for k in range(first, max(math.ceil(high / step), first + 1) + 1)]
