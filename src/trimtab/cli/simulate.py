"""``trimtab simulate``: what a system would do at other sizes than this machine has, counted rather than run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trimtab.cli import options
from trimtab.cli.output import print_json, print_table, size_text

if TYPE_CHECKING:
    from trimtab.data.plan import Plan
    from trimtab.data.tally import Tally


@click.group("simulate")
def verb() -> None:
    """Count what a system would do, at the sizes of your own job.

    \b
    trimtab simulate solar --samples 262896 --sample-bytes 64KiB --ranks 32 --batch 64 --epochs 100 --buffer 256MiB
    """


@verb.command("solar")
@click.option("--samples", type=click.IntRange(min=1), required=True, metavar="N", help="Samples of the data.")
@click.option("--sample-bytes", required=True, metavar="SIZE", help="Of a sample, such as 64KiB.")
@click.option("--ranks", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks that train together.")
@click.option(
    "--ranks-per-node", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks that share memory."
)
@click.option("--batch", type=click.IntRange(min=1), required=True, metavar="N", help="Samples of a rank in a step.")
@click.option("--epochs", type=click.IntRange(min=1), required=True, metavar="N", help="Epochs of the training.")
@click.option(
    "--buffer", required=True, metavar="SIZE", help="Memory of a rank for samples, such as 4GiB; or 50% of all data."
)
@click.option(
    "--batch-slack", type=click.IntRange(min=0), default=0, show_default=True, help="By how much batches may differ."
)
@click.option("--drop-last", is_flag=True, help="Leave out the last batch of an epoch if it is smaller.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="That of the shuffles.")
@click.option("--latency", type=click.FloatRange(min=0), metavar="MS", help="Milliseconds that a read waits.")
@click.option("--bandwidth", metavar="SIZE", help="Bytes that a rank reads in a second, such as 200MB.")
@click.option("--policies", is_flag=True, help="Count other policies too; takes longer.")
@options.json_option
def solar(
    samples: int,
    sample_bytes: str,
    ranks: int,
    ranks_per_node: int,
    batch: int,
    epochs: int,
    buffer: str,
    batch_slack: int,
    drop_last: bool,
    seed: int,
    latency: float | None,
    bandwidth: str | None,
    policies: bool,
    as_json: bool,
) -> int:
    """Count what SOLAR's plan reads from the store, beside a DataLoader without memory.

    \b
    trimtab simulate solar --samples 65536 --sample-bytes 64KiB --ranks 32 --batch 64 --epochs 20 --buffer 50%

    Counts are exact: the shuffles are those of a training with this seed. With --latency and --bandwidth, times are
    modelled: in each step all ranks wait for the one that reads most, one sample at a time. Requests that run at once,
    or that read several samples, gain beyond that, for every policy.
    """
    from trimtab.data.plan import Plan
    from trimtab.data.sizes import parse_share, parse_size
    from trimtab.errors import UsageError

    if (latency is None) != (bandwidth is None):
        raise UsageError("--latency and --bandwidth go together; give both, or neither")
    num_bytes = parse_size(sample_bytes)
    plan = Plan(
        num_samples=samples,
        batch_size=batch,
        num_epochs=epochs,
        num_ranks=ranks,
        num_slots=parse_share(buffer, of=-(-samples * num_bytes // ranks)) // num_bytes,
        seed=seed,
        drop_last=drop_last,
        ranks_per_node=ranks_per_node,
        batch_slack=batch_slack,
    )
    seconds = None if latency is None or bandwidth is None else latency / 1e3 + num_bytes / parse_size(bandwidth)
    found = {name: _report(tally, num_bytes, seconds) for name, tally in _counted(plan, policies=policies).items()}
    if seconds is not None:
        for report in found.values():
            report["modelled_speedup"] = found["DataLoader"]["modelled_read_seconds"] / report["modelled_read_seconds"]
    most = (epochs - 1) * plan.most_hits / (epochs * int(plan.shuffle.offsets[-1]))
    if as_json:
        settings = {name: getattr(plan, name) for name in plan.__struct_fields__}
        print_json({"plan": settings, "digest": plan.digest, "most_hit_rate": most, "policies": found})
        return 0
    _print(plan, found, most)
    return 0


def _counted(plan: Plan, *, policies: bool) -> dict[str, Tally]:
    from trimtab.data.policies import POLICIES, unbuffered
    from trimtab.data.tally import Tally, tallies

    others = POLICIES if policies else {}
    found = {"DataLoader": sum(unbuffered(plan), Tally())}
    found |= {name: sum(policy(plan), Tally()) for name, policy in others.items()}
    return found | {"SOLAR": sum(tallies(plan), Tally())}


def _report(tally: Tally, num_bytes: int, seconds: float | None) -> dict[str, Any]:
    report = {
        "hit_rate": tally.hit_rate,
        "reads": tally.num_reads,
        "read_bytes": tally.num_reads * num_bytes,
        "sent_bytes": tally.num_sent * num_bytes,
        "reads_of_slowest_rank_a_step": tally.slowest_reads / tally.num_steps,
        "reads_of_slowest_rank_beyond_whole_samples_a_step": tally.excess_reads,
        "largest_batch": tally.largest_batch,
    }
    return report if seconds is None else report | {"modelled_read_seconds": tally.slowest_reads * seconds}


def _print(plan: Plan, found: dict[str, dict[str, Any]], most: float) -> None:
    columns = ["", "hit rate", "read", "sent by ranks", "slowest rank's reads a step", "largest batch"]
    modelled = "modelled_speedup" in found["DataLoader"]
    rows = []
    for name, report in found.items():
        row = [
            name,
            f"{report['hit_rate']:.4f}",
            size_text(report["read_bytes"]),
            size_text(report["sent_bytes"]),
            f"{report['reads_of_slowest_rank_a_step']:.2f}",
            str(report["largest_batch"]),
        ]
        if modelled:
            row += [f"{report['modelled_read_seconds']:.4g}", f"{report['modelled_speedup']:.2f}x"]
        rows.append(row)
    print_table([*columns, "reading, s (modelled)", "speed-up (modelled)"] if modelled else columns, rows)
    held = plan.num_units * plan.unit_slots / plan.num_samples
    click.echo(
        f"\nbuffers hold {min(1.0, held):.1%} of the samples; no policy has a hit rate above {most:.4f} over "
        f"{plan.num_epochs} epochs"
    )
