"""``trimtab netlab``: slow links between nodes, all on this machine."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli import options
from trimtab.cli.output import print_json, print_table, rate_text, say, size_text

if TYPE_CHECKING:
    from trimtab.comm.commands import Result
    from trimtab.comm.netlab import Netlab


@click.command("netlab", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--nodes", type=click.IntRange(min=2), default=2, show_default=True, help="Number of nodes.")
@click.option("--ranks-per-node", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks on each node.")
@click.option(
    "--rate", metavar="RATE", help="Of every link, 100mbit, or node by node, 0:1gbit,1:50mbit; else no limit."
)
@click.option("--delay", type=float, default=0.0, metavar="MS", help="Milliseconds that every packet takes longer.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "root", "user", "loopback"]),
    default="auto",
    show_default=True,
    help="How nodes are made: as root, in a user namespace, or all on one slow loopback.",
)
@click.option("--per-node", is_flag=True, help="Run COMMAND once a node, as torchrun wants it.")
@click.option("--timeout", type=float, metavar="SECONDS", help="End the run after that time; it has failed then.")
@click.option("--check", is_flag=True, help="Before COMMAND, or without one, measure the rate of every link.")
@options.json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def verb(
    nodes: int,
    ranks_per_node: int,
    rate: str | None,
    delay: float,
    mode: str,
    per_node: bool,
    timeout: float | None,
    check: bool,
    as_json: bool,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND once a rank, on nodes whose links are slow, and count the bytes that they carry.

    \b
    trimtab netlab --nodes 2 --ranks-per-node 2 --rate 100mbit -- python train.py
    trimtab netlab --rate 0:1gbit,1:50mbit --per-node -- torchrun train.py

    Ranks find what init_process_group wants in their environment. Every node has a network namespace of its own, in
    which it reaches the other nodes and nothing else; ranks of one node talk past the link. What rank 0 prints to
    stdout goes to stdout; whatever else ranks print goes to stderr, with the rank before each line.

    Exits with 1 if a rank fails; the others are ended then.
    """
    from trimtab.comm.netlab import Netlab
    from trimtab.errors import UsageError

    if not command and not check:
        raise UsageError(
            "there is no COMMAND; put it behind --, as in: trimtab netlab --rate 100mbit -- python train.py"
        )
    report: dict[str, Any] = {}
    with _ending_on_sigterm():
        lab = Netlab(nodes=nodes, ranks_per_node=ranks_per_node, rate=rate, delay=delay / 1e3, mode=mode)
        with lab:
            if lab.mode == "loopback":
                say(_loopback_text(lab))
            if check:
                report["checked_bits_per_second"] = _check(lab, as_json=as_json)
            if not command:
                if as_json:
                    print_json({"ok": True, "mode": lab.mode, **report})
                return 0
            result = lab.run(command, per_node=per_node, timeout=timeout, listen=_listener(stdout=not as_json))
    if as_json:
        print_json({"command": list(command), **result.report, **report})
    else:
        _print(result)
    if result.failure is not None:
        click.echo(f"trimtab: no: {result.failure}", err=True)
    return 0 if result.ok else 1


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the ranks too, and not leave them to the kernel."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _loopback_text(lab: Netlab) -> str:
    rates = sum(filter(None, lab.rates)) or None
    return (
        f"all nodes share one loopback, which carries {rate_text(rates)} for all of them together; what the ranks of "
        "one node tell each other is slowed and counted too"
    )


def _check(lab: Netlab, *, as_json: bool) -> list[float]:
    reached = lab.check_rates()
    rows = []
    for node, rate in enumerate(reached):
        following = (node + 1) % lab.nodes
        asked = min((rate for rate in (lab.rates[node], lab.rates[following]) if rate is not None), default=None)
        rows.append((f"{node} to {following}", rate_text(asked), rate_text(rate)))
    print_table(("nodes", "asked", "reached"), rows, err=as_json)
    return reached


def _listener(*, stdout: bool) -> Any:
    """Return what passes on the output of ranks; `stdout` says whether that of rank 0 goes to stdout."""

    def listen(rank: int, stream: str, data: bytes) -> None:
        if stdout and rank == 0 and stream == "stdout":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        prefix = f"[rank {rank}] ".encode()
        lines = data.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines[-1] += b"\n"
        sys.stderr.buffer.write(b"".join(prefix + line for line in lines))
        sys.stderr.buffer.flush()

    return listen


def _print(result: Result) -> None:
    rows = [
        (
            "all" if result.mode == "loopback" else str(node.node),
            rate_text(node.bits_per_second),
            "" if node.busiest_bits_per_second is None else rate_text(node.busiest_bits_per_second),
            size_text(node.sent_bytes),
            size_text(node.received_bytes),
            f"{node.seconds:.1f}",
        )
        for node in result.nodes
    ]
    columns = ("node", "rate asked", "busiest half second", "sent", "received", "seconds")
    print_table(columns, rows, err=True)
