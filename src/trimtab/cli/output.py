"""What verbs print: tables and JSON on stdout, talk on stderr, and numbers with their units."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

_PATIENCE = 1.0  # seconds before a progress bar shows


def say(text: str) -> None:
    """Print a line of talk."""
    click.echo(f"trimtab: {text}", err=True)


def print_json(data: Any) -> None:
    """Print a report; infinities and NaN become null."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(data), indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, err: bool = False) -> None:
    """Print a table whose first `left` columns are texts and whose others are numbers; to stderr with `err`.

    In a pipe, lines are as long as they need be.
    """
    from rich.console import Console

    found = table(columns, rows, left=left)
    console = Console(highlight=False, stderr=err)
    if not console.is_terminal:
        console = Console(highlight=False, stderr=err, width=max(20, Console(width=10**6).measure(found).maximum))
    with console.capture() as captured:
        console.print(found)
    click.echo(captured.get(), nl=False, err=err)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> Table:
    """Return a table as `print_table` prints it."""
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, column in enumerate(columns):
        found.add_column(column, justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        found.add_row(*map(_escaped, row))
    return found


@contextmanager
def progress(what: str, num_bytes: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes bytes done; on a terminal a bar shows once a second has passed."""
    import sys

    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (bars.TextColumn(what), bars.BarColumn(), bars.DownloadColumn(), bars.TransferSpeedColumn())
    bar = bars.Progress(*columns, bars.TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=num_bytes)
    begun = time.monotonic()

    def advance(done: int) -> None:
        if not bar.live.is_started and time.monotonic() - begun > _PATIENCE:
            bar.start()
        bar.advance(task, done)

    try:
        yield advance
    finally:
        bar.stop()


def size_text(num_bytes: float) -> str:
    """Return a size such as ``90.9 MB``, in powers of 1000."""
    unit = "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.5 or unit == "TB":
            break
        num_bytes /= 1000
    digits = 0 if unit == "B" or num_bytes >= 99.95 else 1 if num_bytes >= 9.995 else 2
    return f"{num_bytes:.{digits}f} {unit}"


def rate_text(bits_per_second: float | None) -> str:
    """Return a rate such as ``100 Mbit/s``; None is no limit."""
    if bits_per_second is None:
        return "no limit"
    unit = "bit/s"
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if bits_per_second < 999.5 or unit == "Gbit/s":
            break
        bits_per_second /= 1000
    return f"{bits_per_second:.3g} {unit}"


def count_text(count: int, noun: str) -> str:
    """Return a count such as ``1 array`` or ``3 arrays``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def names(found: Sequence[str]) -> str:
    """Return a few of the names, and how many more there are."""
    shown = ", ".join(map(repr, found[:3]))
    return shown if len(found) <= 3 else f"{shown} and {len(found) - 3} more"


def ratio(num_bytes: int, packed_bytes: int) -> float:
    """Return how many times smaller the packed bytes are; 1.0 where there are none."""
    return num_bytes / packed_bytes if packed_bytes else 1.0


def bound_text(bound: Any) -> str:
    """Return a bound such as ``rel 0.001`` or ``lossless``."""
    kind = type(bound).__struct_config__.tag
    return kind if kind == "lossless" else f"{kind} {bound.value:g}"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape such as ``3 x 4``, or ``scalar``."""
    return " x ".join(map(str, shape)) or "scalar"


def _escaped(text: str) -> str:
    """Return text that rich does not take for markup; control characters of hostile names are made visible."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))
