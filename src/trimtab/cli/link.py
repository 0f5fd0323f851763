"""What ``trimtab doctor --link`` reports: the link between ranks, the codec's speed, and whether compressing pays."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli.output import print_json, print_table, rate_text, say, size_text
from trimtab.errors import UsageError

if TYPE_CHECKING:
    from trimtab.comm.link import Link
    from trimtab.comm.planner import CodecSpeed, Plan, ShardedStep

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_HOW = (
    "'trimtab netlab --rate 100mbit -- trimtab doctor --link' on a made-up link, or on each of two machines "
    "'torchrun --nnodes 2 --node-rank 0 (or 1) --nproc-per-node 1 --master-addr ADDRESS -m trimtab doctor --link'"
)
_GRADIENTS = {"id": "groups", "bits": 4, "group": 128, "hadamard": 32}
_WEIGHTS = {"id": "groups", "bits": 4, "group": 2048}


def report(num_parameters: int, compute_seconds: float | None, *, as_json: bool) -> int:
    """Measure together with the other ranks that the environment tells of, print on rank 0, return the exit status.

    Without other ranks only the codec is measured, and no verdict given.
    """
    try:
        import torch.distributed as dist
    except ImportError:
        raise UsageError("doctor --link needs PyTorch: pip install 'trimtab[torch]'") from None
    from trimtab.codecs.wire import make_wire_codec
    from trimtab.comm import link as links
    from trimtab.comm import planner
    from trimtab.comm.topology import Topology

    gradients, weights = make_wire_codec(_GRADIENTS), make_wire_codec(_WEIGHTS)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        _say_codec("cpu")
        speed = planner.measure_codec(gradients)
        step = planner.sharded_step(
            num_parameters, nodes=2, ranks_per_node=1, gradients=gradients, weights=weights, speed=speed
        )
        _print(num_parameters, 2, 1, speed, step, link=None, plan=None, compute_seconds=None, as_json=as_json)
        return 0
    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise UsageError(f"{' and '.join(missing)} not set; run {_HOW}")
    dist.init_process_group(_backend())
    try:
        nodes = Topology()
        if dist.get_rank() == 0:
            say(f"measuring the link between {nodes.size} ranks")
        link = links.measure(nodes)
        device = links.device_of(nodes.group)
        if dist.get_rank() == 0:
            _say_codec(device.type)
        # all ranks at once, as in training
        speed = _slowest(planner.measure_codec(gradients, device), nodes)
        division = (nodes.num_nodes, nodes.local_size) if nodes.num_nodes > 1 else (nodes.local_size, 1)
        step = planner.sharded_step(
            num_parameters,
            nodes=division[0],
            ranks_per_node=division[1],
            gradients=gradients,
            weights=weights,
            speed=speed,
        )
        plan = planner.decide(
            nodes,
            exact_bytes=step.exact_bytes,
            packed_bytes=step.packed_bytes,
            codec_seconds=step.codec_seconds,
            link=link,
        )
        if dist.get_rank() == 0:
            _print(num_parameters, *division, speed, step, link, plan, compute_seconds, as_json=as_json)
        return 0 if plan.compress else 1
    finally:
        with contextlib.suppress(RuntimeError):  # of a peer that has left already
            dist.destroy_process_group()


def _say_codec(device_type: str) -> None:
    """Tell what takes its time: kernels for the CPU are compiled if no earlier run has left them."""
    from trimtab.cli.doctor import cached_files

    compiled = device_type != "cpu" or cached_files("groups") or os.environ.get("TRIMTAB_BACKEND") == "ref"
    say("measuring the codec" + ("" if compiled else "; its kernels are compiled first, once: ten seconds or more"))


def _backend() -> str:
    """Return NCCL where each rank of this node has a device of its own."""
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return "nccl"
    return "gloo"


def _slowest(speed: CodecSpeed, nodes: Any) -> CodecSpeed:
    from trimtab.comm import link as links
    from trimtab.comm.planner import CodecSpeed

    mine = [1 / speed.encode_bytes_per_second, 1 / speed.decode_bytes_per_second]
    encode, decode = links.agree(nodes.group, mine)
    return CodecSpeed(encode_bytes_per_second=1 / encode, decode_bytes_per_second=1 / decode)


def _print(
    num_parameters: int,
    num_nodes: int,
    ranks_per_node: int,
    speed: CodecSpeed,
    step: ShardedStep,
    link: Link | None,
    plan: Plan | None,
    compute_seconds: float | None,
    *,
    as_json: bool,
) -> None:
    break_even = (step.exact_bytes - step.packed_bytes) / step.codec_seconds
    found: dict[str, Any] = {
        "parameters": num_parameters,
        "nodes": num_nodes,
        "ranks_per_node": ranks_per_node,
        "link": link.report if link else None,
        "codec": {**_GRADIENTS, "encode_bytes_per_second": speed.encode_bytes_per_second}
        | {"decode_bytes_per_second": speed.decode_bytes_per_second},
        "break_even_bytes_per_second": break_even,
        "plan": plan.report if plan else None,
        "compute_seconds": compute_seconds,
        "step_time_change": None,
        "will_help": plan.compress if plan else None,
    }
    if plan and compute_seconds is not None:
        found["step_time_change"] = (compute_seconds + plan.packed_seconds) / (compute_seconds + plan.exact_seconds) - 1
    if as_json:
        print_json(found)
        return
    shape = f"{num_nodes} nodes of {ranks_per_node}" if ranks_per_node > 1 else f"{num_nodes} ranks"
    if link:
        rate = rate_text(8 * link.bytes_per_second)
        click.echo(f"link        {rate} each way, latency {link.latency_seconds * 1e3:.2g} ms, between {shape}")
    rates = (speed.encode_bytes_per_second, speed.decode_bytes_per_second)
    encode, decode = (f"{rate / 1e9:.2f} GB/s" for rate in rates)
    click.echo(f"codec       4 bits with Hadamard 32: {encode} encoding, {decode} decoding, a rank")
    click.echo(f"break even  {rate_text(8 * break_even)}: on slower links compressing pays")
    click.echo(f"step        {num_parameters / 1e6:.4g} million parameters, sharded: gradients and weights once\n")
    if plan is None:
        click.echo(f"To measure a link, run {_HOW}")
        return
    rows = [
        ("exact", plan.exact_bytes, plan.exact_seconds),
        ("compressed", plan.packed_bytes, plan.packed_seconds),
    ]
    columns = ["exchange", "a node sends", "seconds"]
    cells = [[name, size_text(num_bytes), f"{seconds:.3g}"] for name, num_bytes, seconds in rows]
    if compute_seconds is not None:
        columns.append("seconds a step")
        for row, (_, _, seconds) in zip(cells, rows, strict=True):
            row.append(f"{compute_seconds + seconds:.3g}")
    print_table(columns, cells)
    click.echo()
    change = found["step_time_change"]
    told = "" if change is None else f"; a step would take {abs(change):.0%} {'less' if change < 0 else 'more'} time"
    click.echo(f"yes: it will help{told}" if plan.compress else f"no: it will not help{told}")
