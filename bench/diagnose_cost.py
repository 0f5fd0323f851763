"""What the probe of CCL-D costs: processor time for each operation of torch.distributed, by kind of hooks.

Operations go to PyTorch's fake back end, which does nothing, so that what is measured is the call. Everything is in it:
the signature, the call site, the record in shared memory, and the completion. A call without a probe and one with it
are timed alternately in one process; the cost is their difference.
"""

from __future__ import annotations

import tempfile
import time
import timeit
from typing import Any

import torch
import torch.distributed as dist

from bench import harness
from bench.harness import Options, metric
from trimtab.diagnose import Probe
from trimtab.records import Bar, Metric, Record

NUM_CALLS = 20_000
REQUIRED = {"python": 1.2, "compiled": 0.5}
_RATE = 1000  # operations a second


OPERATIONS = {
    "all_reduce": "dist.all_reduce(x)",
    "all_reduce, options by name": "dist.all_reduce(x, op=total, group=group)",
    "all_reduce, asynchronous": "dist.all_reduce(x, async_op=True).wait()",
    "broadcast": "dist.broadcast(x, 0)",
    "reduce": "dist.reduce(x, 0)",
    "all_gather": "dist.all_gather(parts, x)",
    "all_gather_single": "gather(wide, x)",
    "reduce_scatter_single": "scatter(x, wide)",
    "all_to_all_single": "dist.all_to_all_single(wide, wide)",
    "barrier": "dist.barrier()",
    "send": "dist.send(x, 1)",
    "recv": "dist.recv(x, 1)",
}
"""What is timed: statements, in a loop of their own as in a program."""


def names() -> dict[str, Any]:
    """Return what the statements use."""
    return {
        "dist": dist,
        "x": torch.ones(1024),
        "wide": torch.ones(8 * 1024),
        "parts": [torch.ones(1024) for _ in range(8)],
        "group": dist.group.WORLD,
        "total": dist.ReduceOp.SUM,
        "gather": getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor,
        "scatter": getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor,
    }


def run(options: Options) -> Record:
    """Measure, and return the record."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    metrics: dict[str, Metric] = {}
    bars: list[Bar] = []
    num_calls = NUM_CALLS // 4 if options.quick else NUM_CALLS
    for kind, required in REQUIRED.items():
        for name, statement in OPERATIONS.items():
            costs, bare = cost(statement, kind, options.num_rounds, num_calls)
            metrics[f"{kind}/{name}"] = metric(costs, "us", f"at most {required} us" if name == "all_reduce" else None)
            metrics.setdefault(f"no probe/{name}", metric(bare, "us"))
        reached = metrics[f"{kind}/all_reduce"].value
        bars.append(
            Bar(
                name=f"{kind}: us an all_reduce", required=f"<= {required}", reached=reached, passed=reached <= required
            )
        )
        share = 1e-6 * reached * _RATE
        metrics[f"{kind}/share of a step at {_RATE} operations a second"] = harness.exact(share, "", "at most 0.005")
        bars.append(Bar(name=f"{kind}: share of step time", required="<= 0.005", reached=share, passed=share <= 0.005))
    dist.destroy_process_group()
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch",),
        data={"operations": "1,024 float32 on the fake back end, 8 ranks"},
        inference={"num_rounds": options.num_rounds, "num_calls": num_calls, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=bars,
    )


def cost(statement: str, kind: Any, num_rounds: int, num_calls: int) -> tuple[list[float], list[float]]:
    """Microseconds of a statement with a probe more than without, and without, for each round."""
    loop = timeit.Timer(statement, globals=names(), timer=time.process_time)
    costs, bare = [], []
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-", dir="/dev/shm") as folder:
        for _ in range(num_rounds):
            without = _least(loop, num_calls)
            with Probe(folder, hooks=kind):
                loop.timeit(200)
                together = _least(loop, num_calls)
            bare.append(min(without, _least(loop, num_calls)))
            costs.append(together - bare[-1])
    return costs, bare


def _least(loop: timeit.Timer, num_calls: int) -> float:
    """Microseconds of a call, of five parts the fastest: what the machine does besides disturbs some of them."""
    return min(loop.repeat(5, num_calls // 5)) / (num_calls // 5) * 1e6


def main() -> None:
    """Run by the command line."""
    options = harness.parse("diagnose_cost", __doc__)
    harness.write(run(options), options)


if __name__ == "__main__":
    main()
