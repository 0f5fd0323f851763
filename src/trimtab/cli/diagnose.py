"""``trimtab diagnose``: which rank makes a distributed job hang or slow down, and how."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli import options
from trimtab.cli.output import print_json, print_table, say, table

if TYPE_CHECKING:
    from trimtab.diagnose.launch import Launched
    from trimtab.diagnose.watch import View, Watch

_COLUMNS = ("rank", "state", "operation", "communicator", "number", "inside s", "behind", "waited for data s")
_LEFT = 4
_MOST_IN_TRACE = 64

_hang_option = click.option(
    "--hang-seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="From when on a wait is a hang; without it, by the job's own pauses, at least 30.",
)
_interval_option = click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Seconds between two looks.",
)


@click.group("diagnose")
def verb() -> None:
    """Say which rank makes a distributed job hang or slow down, and how.

    \b
    trimtab diagnose run -- torchrun --nproc-per-node 8 train.py
    trimtab diagnose watch DIR
    trimtab diagnose report DIR --html report.html
    """


@verb.command("report")
@click.argument("folder", metavar="DIR", type=options.PATH)
@click.option("--html", type=options.PATH, metavar="FILE", help="Write a page with a picture of the time around it.")
@click.option("--perfetto", type=options.PATH, metavar="FILE", help="Write that time as a trace for ui.perfetto.dev.")
@click.option("--prometheus", metavar="FILE", help="Write metrics in Prometheus' text format; - is stdout.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@_hang_option
@options.json_option
def report(
    folder: Path,
    html: Path | None,
    perfetto: Path | None,
    prometheus: str | None,
    force: bool,
    hang_seconds: float | None,
    as_json: bool,
) -> int:
    """Look once at the job whose ranks keep their files in DIR, and print the verdict.

    DIR holds the files of the probe (rank-000000.frame), or Flight Recorder dumps as JSON (rank_0.json). The job may
    run, hang, or be over. Exits with 0 if nothing is wrong, 1 if a fault is found, 2 if DIR cannot be read.
    """
    from trimtab.diagnose.report import report, report_text
    from trimtab.errors import UsageError

    if as_json and prometheus == "-":
        raise UsageError("--json and --prometheus - both want stdout; give --prometheus a file")
    for path in (html, perfetto, Path(prometheus) if prometheus not in (None, "-") else None):
        if path is not None:
            options.check_output(path, folder, force=force)
    view = _watching(folder, hang_seconds, confirm=False).look()
    look, verdict = view.look, view.verdict
    if html or perfetto:
        _write_pictures(view, html, perfetto)
    if prometheus is not None:
        from trimtab.diagnose.prometheus import exposition

        text = exposition(look, verdict)
        if prometheus == "-":
            click.echo(text, nl=False)
        else:
            Path(prometheus).write_text(text)
    if as_json:
        print_json(report(look, verdict))
    elif prometheus != "-":
        click.echo(report_text(look, verdict))
    return 0 if verdict.is_healthy else 1


def _write_pictures(view: View, html: Path | None, perfetto: Path | None) -> None:
    from trimtab.diagnose.html import page
    from trimtab.diagnose.perfetto import trace_json
    from trimtab.diagnose.timeline import Timeline

    if html is not None:
        html.write_text(page(view.look, view.verdict, Timeline.of(view.look, view.verdict)))
    if perfetto is not None:
        timeline = Timeline.of(view.look, view.verdict, limit=_MOST_IN_TRACE, num_before=100)
        if timeline is None:
            say(f"{perfetto} is not written: there are no operations yet")
        else:
            perfetto.write_bytes(trace_json(timeline))


@verb.command("watch")
@click.argument("folder", metavar="DIR", type=options.PATH)
@click.option("--once", is_flag=True, help="Look once, and end.")
@_interval_option
@click.option("--prometheus-port", type=click.IntRange(0, 65535), metavar="PORT", help="Serve metrics on this machine.")
@_hang_option
@options.json_option
def watch(
    folder: Path, once: bool, interval: float, prometheus_port: int | None, hang_seconds: float | None, as_json: bool
) -> int:
    """Show what the ranks of the job in DIR are doing, until all have finished or are gone.

    With --json, every look is a line. --prometheus-port serves the latest look at http://127.0.0.1:PORT/metrics, which
    other machines cannot reach; 0 takes a free port. Exits as 'report' does, by the last look.
    """
    watching = _watching(folder, hang_seconds, confirm=not once)
    with _serving(prometheus_port) as publish, _showing(as_json=as_json, is_live=not once) as show:
        while True:
            view = watching.look()
            publish(view)
            show(view)
            if once or view.ended:
                return 0 if view.verdict.is_healthy else 1
            time.sleep(interval)


@contextlib.contextmanager
def _serving(port: int | None) -> Iterator[Callable[[View], None]]:
    """Yield what makes a look known to those who ask for metrics."""
    if port is None:
        yield lambda view: None
        return
    from trimtab.diagnose.prometheus import Server, exposition

    latest = ""
    server = Server(lambda: latest, port=port)
    say(f"metrics are at http://127.0.0.1:{server.port}/metrics")

    def publish(view: View) -> None:
        nonlocal latest
        latest = exposition(view.look, view.verdict)

    try:
        yield publish
    finally:
        server.close()


@contextlib.contextmanager
def _showing(*, as_json: bool, is_live: bool) -> Iterator[Callable[[View], None]]:
    """Yield what shows a look: as a line of JSON, in place on a terminal, or as lines."""
    if as_json:
        import msgspec

        yield lambda view: click.echo(msgspec.json.encode(_line(view)))
        return
    if not is_live or not sys.stdout.isatty():
        yield lambda view: _print_view(view)
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, screen=False) as live:

        def show(view: View) -> None:
            rows = _rows(view, max(console.height - 7, 4))
            parts = (Text(f"{_headline(view)}\n"), table(_COLUMNS, rows, left=_LEFT), Text(f"\n{_states(view)}"))
            live.update(Group(*parts), refresh=True)

        yield show


def _print_view(view: View) -> None:
    click.echo(_headline(view))
    print_table(_COLUMNS, _rows(view, 32), left=_LEFT)
    click.echo(_states(view))
    sys.stdout.flush()


def _line(view: View) -> dict[str, Any]:
    """A look as plain values: the verdict's report, the states, and the ranks that tell most."""
    from trimtab.diagnose.report import report

    ranks = view.standing.most_telling(32, view.verdict.ranks)
    rows = [view.standing.row(rank) for rank in ranks]
    return {
        "time_unix": round(time.time(), 3),
        **report(view.look, view.verdict),
        "ended": view.ended,
        "ranks_now": rows,
    }


def _headline(view: View) -> str:
    from trimtab.diagnose.report import printable

    verdict = view.verdict
    kind = "healthy" if verdict.is_healthy else f"{verdict.kind}, confidence {verdict.confidence:.2f}"
    return printable(f"{time.strftime('%H:%M:%S')}  {kind}: {verdict.summary}")


def _states(view: View) -> str:
    counts = view.standing.counts()
    return (
        f"of {view.standing.state.size:,} ranks: {', '.join(f'{count:,} {state}' for state, count in counts.items())}"
    )


def _rows(view: View, limit: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for rank in view.standing.most_telling(limit, view.verdict.ranks):
        row = view.standing.row(rank)
        is_waiting = row["state"] in ("inside", "waits for data") and row["seconds"] is not None
        rows.append(
            (
                f"{rank}{' *' if rank in view.verdict.ranks else ''}",
                row["state"],
                row["operation"] or "",
                row["communicator"] or "",
                str(row["seq"] or ""),
                f"{row['seconds']:.1f}" if is_waiting else "",
                str(row["lag_operations"] or ""),
                f"{row['waited_for_data_seconds']:.1f}" if row["waited_for_data_seconds"] else "",
            )
        )
    return rows


@verb.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--dir", "folder", type=options.PATH, metavar="DIR", help="Folder for the files; else one in memory.")
@_interval_option
@_hang_option
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="S",
    help="End the job when a hang has lasted so many seconds more; else it is left alone.",
)
@options.json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    folder: Path | None,
    interval: float,
    hang_seconds: float | None,
    timeout: float | None,
    as_json: bool,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND with the probe in its Python processes, and say when it hangs or slows.

    \b
    trimtab diagnose run -- torchrun --nproc-per-node 8 train.py

    The program is not changed. Verdicts go to stderr, the files stay in DIR for 'report'. Signals are passed on to the
    job; its input is not a terminal. Exits as COMMAND does, whatever the verdict (128 + N if signal N ended it), and
    with 1 if --timeout ended it. With --json, the last verdict is printed to stdout, and the job's output goes to
    stderr.
    """
    from trimtab.diagnose.launch import Launched, new_folder
    from trimtab.errors import UsageError

    if not command:
        raise UsageError("there is no COMMAND; put it behind --, as in: trimtab diagnose run -- torchrun train.py")
    folder = new_folder() if folder is None else folder
    with Launched(command, folder, stdout=sys.stderr if as_json else None) as job:
        say(f"the files of the job are in {folder}; look at them with: trimtab diagnose report {folder}")
        status, view = _follow(job, _watching(folder, hang_seconds), interval, timeout)
    if as_json:
        from trimtab.diagnose.report import report

        found = report(view.look, view.verdict) if view is not None else None
        print_json({"command": list(command), "folder": str(folder), "exit_status": status, "verdict": found})
    if view is None:
        say("no rank kept a file: the job made no process group, or its Python does not find trimtab")
    return status


def _follow(job: Launched, watching: Watch, interval: float, timeout: float | None) -> tuple[int, View | None]:
    """Watch a job to its end; return its exit status, and the last look that found something, or the last."""
    from trimtab.errors import TrimtabError

    told: tuple = ()
    latest: View | None = None
    problem = ""
    hung_since = None
    while (status := job.wait(interval)) is None:
        try:
            view = watching.look()
        except (TrimtabError, OSError) as error:  # the job goes on, whatever we can see of it
            problem = _tell_once(problem, str(error), is_early=latest is None)
            continue
        latest = view
        told = _tell_change(told, view)
        is_hung = view.verdict.kind.startswith("H") and not view.ended
        hung_since = (hung_since or time.monotonic()) if is_hung else None
        if timeout is not None and hung_since is not None and time.monotonic() - hung_since >= timeout:
            say(f"the hang has lasted for {timeout:g} s more; the job is ended")
            job.end()
            return 1, view
    if latest is not None and not latest.verdict.is_healthy:
        return status, latest
    try:
        # of a job that failed by itself, who was missing when it ended tells why; of one that was ended, nothing
        final = watching.look(is_over=True)
        if not (status == 0 or job.was_signalled):
            _tell_change((), final)
        latest = final
    except (TrimtabError, OSError) as error:
        _tell_once(problem, str(error), is_early=latest is None)
    return status, latest


def _tell_change(told: tuple, view: View) -> tuple:
    """Print a verdict that is not the one before."""
    from trimtab.diagnose.report import report_text

    verdict = view.verdict
    now = (verdict.kind, verdict.ranks, verdict.communicator) if not verdict.is_healthy else ()
    if now != told:
        click.echo(report_text(view.look, verdict) if now else "yes: the job goes on, and nothing is wrong", err=True)
    return now


def _tell_once(told: str, text: str, *, is_early: bool) -> str:
    """Say what is in the way of watching, unless it was said, or the ranks may just not have begun."""
    if not is_early and text != told:
        say(text)
    return text


def _watching(folder: Path, hang_seconds: float | None, *, confirm: bool = True) -> Watch:
    from trimtab.diagnose.verdict import Limits
    from trimtab.diagnose.watch import Watch

    return Watch(folder, limits=Limits(hang_seconds=hang_seconds), confirm=confirm)
