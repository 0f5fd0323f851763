"""What the probe of CCL-D costs: processor time for each operation of torch.distributed, by kind of hooks.

Operations go to PyTorch's fake back end, which does nothing, so that what is measured is the call. Everything is in it:
the signature, the call site, the record in shared memory, and the completion. A call without a probe and one with it
are timed alternately in one process; the cost is their difference.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bench import harness
from bench.harness import Options, metric
from trimtab.diagnose import Probe
from trimtab.records import Bar, Metric, Record

NUM_CALLS = 20_000
REQUIRED = {"python": 1.2, "compiled": 0.5}
_RATE = 1000  # operations a second


def operations() -> dict[str, Callable[[], Any]]:
    """Return what is timed."""
    x, wide = torch.ones(1024), torch.ones(8 * 1024)
    parts = [torch.ones(1024) for _ in range(8)]
    group = dist.group.WORLD
    total = dist.ReduceOp.SUM
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

    def exchanged() -> None:
        work = dist.all_reduce(x, async_op=True)
        if work is not None:
            work.wait()

    return {
        "all_reduce": lambda: dist.all_reduce(x),
        "all_reduce, options by name": lambda: dist.all_reduce(x, op=total, group=group),
        "all_reduce, asynchronous": exchanged,
        "broadcast": lambda: dist.broadcast(x, 0),
        "reduce": lambda: dist.reduce(x, 0),
        "all_gather": lambda: dist.all_gather(parts, x),
        "all_gather_single": lambda: gather(wide, x),
        "reduce_scatter_single": lambda: scatter(x, wide),
        "all_to_all_single": lambda: dist.all_to_all_single(wide, wide),
        "barrier": lambda: dist.barrier(),
        "send": lambda: dist.send(x, 1),
        "recv": lambda: dist.recv(x, 1),
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
        for name, call in operations().items():
            costs, bare = _cost(call, kind, options.num_rounds, num_calls)
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


def _cost(call: Callable[[], Any], kind: Any, num_rounds: int, num_calls: int) -> tuple[list[float], list[float]]:
    """Microseconds of a call with a probe more than without, and without, for each round."""
    costs, bare = [], []
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-", dir="/dev/shm") as folder:
        for _ in range(num_rounds):
            without = _timed(call, num_calls)
            with Probe(folder, hooks=kind):
                _timed(call, 200)
                together = _timed(call, num_calls)
            bare.append(min(without, _timed(call, num_calls)))
            costs.append(together - bare[-1])
    return costs, bare


def _timed(call: Callable[[], Any], num_calls: int) -> float:
    gc.disable()
    try:
        times = []
        for _ in range(5):  # what the machine does besides disturbs some of them
            start = time.process_time()
            for _ in range(num_calls // 5):
                call()
            times.append((time.process_time() - start) / (num_calls // 5) * 1e6)
    finally:
        gc.enable()
    return float(np.min(times))


def main() -> None:
    """Run by the command line."""
    options = harness.parse("diagnose_cost", __doc__)
    harness.write(run(options), options)


if __name__ == "__main__":
    main()
