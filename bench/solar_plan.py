"""SOLAR's plan: what is read, how evenly, and how long planning takes, counted exactly beside other policies.

Counts have no noise: they are those of a training with these shuffles. Times are CPU seconds of one core, in processes
of their own whose kernels come from the cache.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence

import msgspec
import numpy as np

from bench import harness
from bench.data_tables import solar_plan_tables
from bench.harness import Options, exact, metric
from trimtab.data.plan import STORE, Plan
from trimtab.data.policies import POLICIES, stock
from trimtab.data.reading import Costs
from trimtab.data.tally import Tally, tallies
from trimtab.records import Bar, Metric, Record

SHAPE = {"num_samples": 65_536, "num_ranks": 32, "batch_size": 64}
SMALL = {"num_samples": 4_096, "num_ranks": 8, "batch_size": 16}
HELD = (0.1, 0.25, 0.5, 0.8, 0.9, 1.0)
"""Buffers of all ranks, of the data."""
BAR_HELD = (0.1, 0.25, 0.5, 0.8, 1.0)
NUM_EPOCHS = (5, 20)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
NODES = (1, 8)
PAPER_SHAPES = {"ptychography (CD)": (262_896, 65_536), "BCDI": (54_030, 2_800_000), "CosmoFlow": (63_808, 16_800_000)}
"""Data set -> samples, bytes of a sample, as the paper is said to have used them; on 32 ranks."""
PAPER_SPEEDUP = 24.4
MERGED = {"64 KiB": 65_536, "4 KiB": 4_096}
"""Bytes of a sample in the store whose requests are counted."""
COSTS = Costs(latency_seconds=2e-3, bytes_per_second=200e6)
LOOK_AHEAD = 8
"""Batches that the ring of the loader holds; half of it is read at a time."""
LARGE = {
    "262,896 samples, 32 ranks, 100 epochs": {
        "num_samples": 262_896, "num_ranks": 32, "batch_size": 64, "num_epochs": 100,
    },
    "1,000,000 samples, 1,000 ranks, 10 epochs": {
        "num_samples": 1_000_000, "num_ranks": 1000, "batch_size": 64, "num_epochs": 10,
    },
}  # fmt: skip
LARGE_BARS = {
    "262,896 samples, 32 ranks, 100 epochs": (10.0, 300.0),
    "1,000,000 samples, 1,000 ranks, 10 epochs": (60.0, None),
}
LARGE_HELD = (0.1, 0.5, 0.9)
NUM_LARGE_ROUNDS = 3

_PLAN = """
import json, pathlib, re, sys, time
from trimtab import kernels
from trimtab.data.plan import Plan
kernels.load("placement"), kernels.load("permutation")
begun = time.process_time()
for epoch in Plan(**json.loads(sys.argv[1])).epochs():
    pass
seconds = time.process_time() - begun
most = re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())
print(seconds, int(most[1]) / 1024)
"""


def run(options: Options) -> Record:
    """Count and measure, and return the record."""
    shape = SMALL if options.quick else SHAPE
    metrics: dict[str, Metric] = {}
    metrics |= _bounds(shape) | _batches(shape) | _nodes(shape) | _surplus(shape) | _policies(shape)
    metrics |= _merged(shape)
    if not options.quick:
        metrics |= _paper_shapes()
    metrics |= _times(options)
    return Record.new(
        options.name,
        command=options.command,
        packages=("xxhash",),
        seed=0,
        data={
            "shape": shape,
            "paper": {name: list(found) for name, found in PAPER_SHAPES.items()},
            "merged": {"bytes_per_second": COSTS.bytes_per_second, "look_ahead": LOOK_AHEAD},
        },
        inference={"num_threads": 1, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=_bars(metrics),
    )


def _plan(shape: dict[str, int], held: float, **changes: int) -> Plan:
    settings = {"num_epochs": 20, **shape, **changes}
    slots = held * settings["num_samples"] / settings["num_ranks"]
    return Plan(**settings, num_slots=math.ceil(slots) if held == 1 else int(slots))


def _least_reads(plan: Plan) -> float:
    """Return the bound: what is repeated at the end of an epoch is held as often as any sample."""
    held, uses = plan.num_units * plan.unit_slots / plan.num_samples, int(plan.shuffle.offsets[-1])
    repeated = max(0, uses - plan.num_samples) * min(1.0, held)
    return plan.num_epochs * (uses - repeated) - (plan.num_epochs - 1) * plan.most_hits


def _counted(plan: Plan) -> tuple[Tally, Tally]:
    """Return the tally of all epochs, and of all but the first, which is cold."""
    first, *later = tallies(plan)
    rest = sum(later, Tally())
    return first + rest, rest


def _excess(key: str, rest: Tally) -> dict[str, Metric]:
    return {
        f"{key}/slowest": exact(rest.slowest_reads / rest.num_steps, "reads a step"),
        f"{key}/whole": exact(rest.least_slowest_reads / rest.num_steps, "reads a step"),
        f"{key}/excess": exact(rest.excess_reads, "reads a step"),
        f"{key}/sent": exact(rest.num_sent / rest.num_uses, "of the samples"),
    }


def _bounds(shape: dict[str, int]) -> dict[str, Metric]:
    metrics = {}
    for num_epochs in NUM_EPOCHS:
        for held in HELD:
            plan = _plan(shape, held, num_epochs=num_epochs)
            total, rest = _counted(plan)
            key = f"bound/{num_epochs}/{held}"
            metrics[f"{key}/reads"] = exact(total.num_reads, "samples")
            metrics[f"{key}/over"] = exact(total.num_reads / _least_reads(plan), "x")
            metrics[f"{key}/even"] = exact(shape["batch_size"] * (1 - held), "reads a step")
            metrics |= _excess(key, rest)
    return metrics


def _batches(shape: dict[str, int]) -> dict[str, Metric]:
    """Return how even reads are with small batches, where rounding rules."""
    metrics = {}
    for size in BATCH_SIZES:
        for held in (0.5, 0.9):
            metrics |= _excess(f"batch/{size}/{held}", _counted(_plan(shape, held, batch_size=size))[1])
    return metrics


def _nodes(shape: dict[str, int]) -> dict[str, Metric]:
    metrics = {}
    for ranks in NODES:
        for held in (0.9, 0.95, 0.98, 1.0):
            metrics |= _excess(f"node/{ranks}/{held}", _counted(_plan(shape, held, ranks_per_node=ranks))[1])
    return metrics


def _surplus(shape: dict[str, int]) -> dict[str, Metric]:
    """Return what happens where all samples are held: what is sent, or how much batches differ."""
    metrics = {}
    for slack in (0, 1, 2, 4):
        rest = _counted(_plan(shape, 1.0, batch_slack=slack))[1]
        metrics[f"surplus/{slack}/reads"] = exact(rest.num_reads, "samples")
        metrics[f"surplus/{slack}/sent"] = exact(rest.num_sent / rest.num_uses, "of the samples")
        metrics[f"surplus/{slack}/largest"] = exact(rest.largest_batch, "samples")
    return metrics


def _policies(shape: dict[str, int]) -> dict[str, Metric]:
    """Return each policy's counts over all epochs, the cold one included."""
    policies = {**POLICIES, "trimtab SOLAR": lambda plan: list(tallies(plan))}
    metrics = {}
    for held in BAR_HELD:
        plan = _plan(shape, held)
        metrics[f"policy/{held}/bound"] = exact(_most_hit_rate(plan), "of the samples")
        for name, policy in policies.items():
            total, key = sum(policy(plan), Tally()), f"policy/{held}/{name}"
            metrics[f"{key}/hit_rate"] = exact(total.hit_rate, "of the samples")
            metrics[f"{key}/slowest"] = exact(total.slowest_reads / total.num_steps, "reads a step")
            metrics[f"{key}/largest"] = exact(total.largest_batches / total.num_steps, "samples")
            metrics[f"{key}/sent"] = exact(total.num_sent / total.num_uses, "of the samples")
    return metrics


def _merged(shape: dict[str, int]) -> dict[str, Metric]:
    """Return the requests a step of the rank that makes most of them in an epoch, if near samples share one."""
    metrics = {}
    for held in BAR_HELD:
        plan, counts = _plan(shape, held), dict.fromkeys(MERGED, 0)
        for epoch in plan.epochs():
            samples, unit, source = (x[epoch.used] for x in (epoch.samples, epoch.unit, epoch.source))
            reads = [samples[(source == STORE) & (unit == u)] for u in range(plan.num_units)]
            for name, num_bytes in MERGED.items():
                near = 1 + COSTS.gap // num_bytes
                counts[name] += max(_num_requests(one, LOOK_AHEAD * plan.batch_size // 2, near) for one in reads)
        num_steps = plan.num_epochs * len(plan.shuffle.sizes)
        for name, count in counts.items():
            key = f"merged/{held}/{name}, {COSTS.latency_seconds * 1e3:g} ms"
            metrics[key] = exact(count / num_steps, "requests a step")
    return metrics


def _num_requests(samples: np.ndarray, num_together: int, near: int) -> int:
    """Return how many requests read `samples`, so many at a time, if numbers that differ by at most `near` share one.

    The loader splits very long requests; these are not.
    """
    rounds = (np.sort(samples[k : k + num_together]) for k in range(0, len(samples), num_together))
    return sum(1 + int(np.count_nonzero(np.diff(one) > near)) for one in rounds)


def _most_hit_rate(plan: Plan) -> float:
    return (plan.num_epochs - 1) * plan.most_hits / (plan.num_epochs * int(plan.shuffle.offsets[-1]))


def _paper_shapes() -> dict[str, Metric]:
    metrics = {}
    for name, (num_samples, _) in PAPER_SHAPES.items():
        for held in HELD:
            plan = _plan({"num_samples": num_samples, "num_ranks": 32, "batch_size": 64}, held)
            total = sum(tallies(plan), Tally())
            key = f"paper/{name}/{held}"
            metrics[f"{key}/hit_rate"] = exact(total.hit_rate, "of the samples")
            metrics[f"{key}/over"] = exact(total.num_reads / _least_reads(plan), "x")
            metrics[f"{key}/lru"] = exact(sum(stock(plan, rule="lru"), Tally()).hit_rate, "of the samples")
            long = msgspec.structs.replace(plan, num_epochs=100)
            metrics[f"{key}/ceiling"] = exact(
                1 / (1 - _most_hit_rate(long)), "x", claim=f"{PAPER_SPEEDUP}x over the PyTorch DataLoader, at most"
            )
    return metrics


def _times(options: Options) -> dict[str, Metric]:
    """Return what planning takes, in the worst of several buffers."""
    metrics = {}
    _timed(_plan(SMALL, 0.5))  # compiles, where it must
    for name, shape in LARGE.items():
        if options.quick:
            shape = {**shape, "num_samples": 2000, "num_ranks": 4, "num_epochs": 2}
        for held in LARGE_HELD:
            found = [_timed(_plan(shape, held)) for _ in range(min(options.num_rounds, NUM_LARGE_ROUNDS))]
            metrics[f"time/{name}/{held}/seconds"] = metric([seconds for seconds, _ in found], "s")
            metrics[f"time/{name}/{held}/memory"] = metric([memory for _, memory in found], "MiB")
    return metrics


def _timed(plan: Plan) -> tuple[float, float]:
    """Plan in a process of its own; return its CPU seconds, and the largest memory of the process in MiB."""
    command = [sys.executable, "-c", _PLAN, json.dumps(msgspec.to_builtins(plan))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, memory = done.stdout.split()
    return float(seconds), float(memory)


def _bars(metrics: dict[str, Metric]) -> list[Bar]:
    def worst(keys: Sequence[str]) -> float:
        return max(metrics[key].value for key in keys)

    over = [f"bound/{epochs}/{held}/over" for epochs in NUM_EPOCHS for held in BAR_HELD]
    over += [key for key in metrics if key.startswith("paper/") and key.endswith("/over")]
    excess = [f"bound/{epochs}/{held}/excess" for epochs in NUM_EPOCHS for held in HELD if held <= 0.9]
    surplus = [f"surplus/{slack}/reads" for slack in (0, 1, 2, 4)]
    bars = [
        _at_most(
            "SOLAR: store reads and the bound, farthest apart", 0.001, max(abs(metrics[key].value - 1) for key in over)
        ),
        _at_most("SOLAR: reads a step of the slowest rank beyond whole samples, buffers up to 0.9", 0.5, worst(excess)),
        _at_most("SOLAR: reads after the first epoch where all samples are held", 0, worst(surplus)),
    ]
    for name, (seconds, memory) in LARGE_BARS.items():
        keys = [f"time/{name}/{held}" for held in LARGE_HELD]
        bars.append(_at_most(f"SOLAR: planning {name}", seconds, worst([f"{key}/seconds" for key in keys]), " s"))
        if memory is not None:
            reached = worst([f"{key}/memory" for key in keys])
            bars.append(_at_most(f"SOLAR: memory of the process that plans {name}", memory, reached, " MiB"))
    return bars


def _at_most(name: str, required: float, reached: float, unit: str = "") -> Bar:
    return Bar(name=name, required=f"<= {required:g}{unit}", reached=reached, passed=reached <= required)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("solar_plan", __doc__, argv)
    record = run(options)
    print(solar_plan_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
