"""The table of what reading a row costs, by layout and reader."""

from __future__ import annotations

from bench.markdown import markdown, ours_bold
from trimtab.records import Record


def solar_reads_tables(record: Record) -> str:
    """Return CPU times a sample, and the ratio of trimtab's to the other reader's."""
    sizes = list(record.data["rows"])
    ways: dict[tuple[str, str], None] = {}
    for key in record.metrics:
        layout, _, name, _ = key.split("/")
        ways[layout, name] = None
    rows = [
        [f"{layout}: {ours_bold(name)}", *(_cell(record, f"{layout}/{size}/{name}") for size in sizes)]
        for layout, name in ways
    ]
    return "\n\n".join(
        [
            "Microseconds of CPU time a sample, in random order, from files in memory (trimtab's time as a part of the "
            "other's). Each way copies the rows into the same array, with one thread.",
            markdown(["", *sizes], rows),
        ]
    )


def _cell(record: Record, key: str) -> str:
    found = f"{record.metrics[f'{key}/cpu'].value:.1f}"
    ratio = record.metrics.get(f"{key}/ratio")
    return found if ratio is None else f"{found} ({ratio.value:.2f}x)"
