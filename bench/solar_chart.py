"""The chart of SOLAR's pieces: what the slowest rank reads in a step, as one is added after the other, as SVG."""

from __future__ import annotations

from collections.abc import Iterator

from bench import svg
from trimtab.records import Record

NAMES, WIDTH, ROW, TOP, GAP, BELOW = 250, 112, 26, 84, 52, 36
BAR = 15
COLOURS = {
    "batches of the DistributedSampler": ("#8c959f", "#6e7681"),
    "the paper's pieces": ("#bc4c00", "#f0883e"),
    "trimtab": ("#0969da", "#58a6ff"),
}
"""Whose it is -> its colour on light and on dark."""
STOCK, PAPER, OURS = COLOURS
PIECES = {
    "+ buffers, LRU": ("DistributedSampler, LRU", STOCK),
    "+ samples go where they are": ("remap, LRU, equal batches", PAPER),
    "+ keep what is used next": ("remap, Belady, equal batches", PAPER),
    "+ equal reads, unequal batches": ("remap, Belady, equal reads", PAPER),
    "+ order of epochs": ("the same, epochs reordered", PAPER),
    "equal reads and equal batches": ("trimtab SOLAR", OURS),
}
"""What is added, each to all above -> the policy in the record, and whose it is."""


def draw(record: Record) -> str:
    """Return the chart of a record of `bench.solar_plan` as the text of an SVG file."""
    shape = record.data["shape"]
    helds = list(dict.fromkeys(key.split("/")[1] for key in record.metrics if key.startswith("policy/")))
    rows = _rows(record, helds)
    parts = [
        svg.text(NAMES - 10, TOP + ROW * number + ROW / 2 + 4, name, "name", "end") for number, name in enumerate(rows)
    ]
    for column, held in enumerate(helds):
        parts += _panel(NAMES + column * (WIDTH + GAP), record, held, [rows[name][column] for name in rows])
    title = (
        f"What the slowest of {shape['num_ranks']} ranks reads in a step of {shape['batch_size']} samples, "
        "piece by piece: shorter is better"
    )
    source = f"{record.date}, {record.command}; 20 epochs, the cold first one included; thin line: no policy reads less"
    width, height = NAMES + len(helds) * (WIDTH + GAP), TOP + ROW * len(rows) + BELOW
    return svg.page(width, height, title, source, COLOURS, parts)


Row = list[tuple[float, str]]
"""For each size of the buffers what is read, and whose piece it is."""


def _rows(record: Record, helds: list[str]) -> dict[str, Row]:
    batch = record.data["shape"]["batch_size"]
    rows: dict[str, Row] = {"without buffers": [(batch, STOCK)] * len(helds)}
    for name, (policy, whose) in PIECES.items():
        rows[name] = [(record.metrics[f"policy/{held}/{policy}/slowest"].value, whose) for held in helds]
    for stored in dict.fromkeys(key.split("/")[2] for key in record.metrics if key.startswith("merged/")):
        rows[f"requests if merged, {stored}"] = [
            (record.metrics[f"merged/{held}/{stored}"].value, OURS) for held in helds
        ]
    return rows


def _panel(left: int, record: Record, held: str, cells: Row) -> Iterator[str]:
    batch = record.data["shape"]["batch_size"]
    least = batch * (1 - record.metrics[f"policy/{held}/bound"].value)
    yield svg.text(left, TOP - 10, f"buffers hold {float(held):.0%}", "head")
    for number, (reads, whose) in enumerate(cells):
        middle = TOP + ROW * number + ROW / 2
        end = left + WIDTH * reads / batch
        yield svg.bar(left, end, middle, BAR, whose)
        yield svg.text(end + 5, middle + 4, f"{reads:.1f}", "tick")
    at = left + WIDTH * least / batch
    num_read = 1 + len(PIECES)  # rows below count requests
    yield svg.grid(at, TOP - 2, at, TOP + ROW * num_read)
