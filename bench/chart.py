"""The charts: that of the README (ratio and speeds on bfloat16 weights), and those of the pages.

SVG from records, written by hand, so that the bytes depend on the record alone; a style sheet inside follows the
reader's light or dark theme. Run ``python -m bench.chart`` after the benchmarks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path

from bench import activation_chart, aesz, contrastive_chart, curves, frontier, sharded_chart, solar_chart
from bench.activation_tables import ACCURACY_CHART, MEMORY_CHART
from bench.comm_tables import SHARDED_CHART
from bench.contrastive_tables import CONTRASTIVE_CHART
from bench.data_tables import SOLAR_CHART
from bench.tables import AESZ_CHART, ASSETS, DEEPSZ_CHART, GIVEN, RATE_DISTORTION_CHART, records
from trimtab.errors import UsageError
from trimtab.records import Record

SUBJECT = "MiniLM bf16"
PANELS = (
    ("ratio", "ratio, from 1", ".3f", 1),
    ("encode", "encode, GB/s", ".2f", 0),
    ("decode", "decode, GB/s", ".2f", 0),
)
"""What is drawn: the metric, its head, how its number is shown, and where its bars begin."""

NAME_WIDTH, PANEL_WIDTH, ROW, TOP, GAP = 158, 186, 24, 62, 18
VALUE_WIDTH = 46  # room for the number behind the longest bar
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; }
.head, .value { fill: #59636e; }
.ours { font-weight: 600; }
rect { fill: #afb8c1; }
rect.ours { fill: #0969da; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .head, .value { fill: #9198a1; }
  rect { fill: #57606a; }
  rect.ours { fill: #58a6ff; }
}
"""


def draw(record: Record, subject: str = SUBJECT) -> str:
    """Return the chart of one model and dtype of a lossless record as the text of an SVG file.

    Raises:
        UsageError: the record has no such subject.
    """
    if subject not in record.data:
        raise UsageError(f"the record has no subject {subject!r}; it has {', '.join(record.data)}")
    names = [
        name for name in record.encoding["contenders"] if name != GIVEN and f"{subject}/{name}/ratio" in record.metrics
    ]
    width = NAME_WIDTH + len(PANELS) * (PANEL_WIDTH + GAP)
    height = TOP + ROW * len(names) + 30
    title = (
        f"Lossless packing of {record.data[subject]['num_tensors']} tensors of {subject}, one thread: longer is better"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        _text(4, 22, title, "title"),
    ]
    for row, name in enumerate(names):
        parts.append(_text(NAME_WIDTH - 10, _middle(row), name, _kind(name), anchor="end"))
    for position, (what, head, form, start) in enumerate(PANELS):
        left = NAME_WIDTH + position * (PANEL_WIDTH + GAP)
        values = [record.metrics[f"{subject}/{name}/{what}"].value for name in names]
        longest = max(max(values) - start, 1e-9)
        parts.append(_text(left, TOP - 12, head, "head"))
        for row, (name, value) in enumerate(zip(names, values, strict=True)):
            length = (PANEL_WIDTH - VALUE_WIDTH) * max(value - start, 0) / longest
            parts.append(
                f'<rect class="{_kind(name)}" x="{left}" y="{TOP + row * ROW + 3}" width="{length:.1f}" '
                f'height="{ROW - 6}" rx="2"/>'
            )
            parts.append(_text(left + length + 6, _middle(row), f"{value:{form}}", "value"))
    machine = record.machine
    source = f"{machine['processor']}, {record.date}, medians of {record.inference['num_rounds']} alternated rounds"
    parts.append(_text(4, height - 8, source, "head"))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _middle(row: int) -> int:
    return TOP + row * ROW + ROW // 2 + 5


def _kind(name: str) -> str:
    return "ours" if name.startswith("trimtab") else "peer"


CHARTS: dict[Path, tuple[str, Callable[[Record], str]]] = {
    ASSETS / "lossless.svg": ("lossless", draw),
    RATE_DISTORTION_CHART: ("rate_distortion", curves.draw),
    AESZ_CHART: ("aesz", partial(curves.draw, names=aesz.DRAWN, title=aesz.TITLE)),
    DEEPSZ_CHART: ("deepsz", frontier.draw),
    SHARDED_CHART: ("sharded", sharded_chart.draw),
    CONTRASTIVE_CHART: ("contrastive", contrastive_chart.draw),
    SOLAR_CHART: ("solar_plan", solar_chart.draw),
    MEMORY_CHART: ("activations", activation_chart.draw_memory),
    ACCURACY_CHART: ("activations", activation_chart.draw_accuracy),
}
"""File -> the record that it shows, and what draws it."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the charts, or check that they are up to date; one without a record is left out."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.chart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a chart is out of date")
    check = parser.parse_args(argv).check
    for target, (name, draw_it) in CHARTS.items():
        found = records(name)
        if not found:
            if target.exists():
                raise UsageError(f"{target.name} has no record; run python -m bench.{name} first")
            continue
        text = draw_it(found[0])
        if not check:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        elif not target.exists() or target.read_text(encoding="utf-8") != text:
            sys.exit(f"{target.name} is out of date: run python -m bench.chart")


if __name__ == "__main__":
    main()
