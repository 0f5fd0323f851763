"""What the probe of CCL-D costs: processor time for each operation of torch.distributed, by kind of hooks.

Operations go to PyTorch's fake back end, which does nothing, so that what is measured is the call. Everything is in it:
the signature, the call site, the record in shared memory, and the completion. A call without a probe and one with it
are timed alternately in one process; the cost is their difference.

Loops keep the probe in the cache, and a training does not. So three operations by turns are also called a thousand
times a second, with work between them that goes through memory: what the calls take longer with a probe, and what its
thread takes, is its share of the time.
"""

from __future__ import annotations

import tempfile
import time
import timeit
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from bench import harness
from bench.harness import Options, metric
from trimtab.diagnose import Probe
from trimtab.records import Bar, Metric, Record

NUM_CALLS = 20_000
REQUIRED = {"python": 1.2, "compiled": 0.5}
"""Kind of hooks -> microseconds of an operation that they may cost."""
REQUIRED_SHARE = 0.005
RATE = 1000
"""Operations a second of the paced run."""
PACED_SECONDS, NUM_PACED_ROUNDS = 0.2, 25
THREAD_SECONDS = 3.0
SHARE = f"share of the time at {RATE} operations a second"
"""The metric of the paced run."""
_WORK = 1 << 18  # elements of float32 that the work between operations goes through


OPERATIONS = {
    "all_reduce": "dist.all_reduce(x)",
    "all_reduce, options by name": "dist.all_reduce(x, op=total, group=group)",
    "all_reduce, asynchronous": "dist.all_reduce(x, async_op=True).wait()",
    "broadcast": "dist.broadcast(x, 0)",
    "reduce": "dist.reduce(x, 0)",
    "all_gather": "dist.all_gather(parts, x)",
    "all_gather_single": "gather(wide, x)",
    "reduce_scatter_single": "scatter(x, wide)",
    "reduce_scatter": "dist.reduce_scatter(x, parts)",
    "all_to_all_single": "dist.all_to_all_single(wide, wide)",
    "barrier": "dist.barrier()",
    "send": "dist.send(x, 1)",
    "recv": "dist.recv(x, 1)",
    "isend": "dist.isend(x, 1).wait()",
    "irecv": "dist.irecv(x, 1).wait()",
}
"""What is timed: statements, in a loop of their own as in a program."""
PACED = ("all_reduce", "all_gather_single", "reduce_scatter_single")


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
        shares = paced(kind, 5 if options.quick else NUM_PACED_ROUNDS)
        metrics[f"{kind}/{SHARE}"] = metric(shares, "", f"at most {REQUIRED_SHARE}")
        dearest = max(metrics[f"{kind}/{name}"].value for name in OPERATIONS)
        bars += [
            _at_most(f"probe, {kind} hooks: us an all_reduce", required, metrics[f"{kind}/all_reduce"].value),
            _at_most(f"probe, {kind} hooks: us of the dearest of {len(OPERATIONS)} operations", required, dearest),
            _at_most(f"probe, {kind} hooks: {SHARE}", REQUIRED_SHARE, metrics[f"{kind}/{SHARE}"].value),
        ]
    dist.destroy_process_group()
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch",),
        data={"operations": "1,024 float32 on the fake back end, 8 ranks"},
        inference={
            "num_rounds": options.num_rounds,
            "num_calls": num_calls,
            "paced": list(PACED),
            "clock": "CPU seconds of the process",
        },
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


class _Spent(NamedTuple):
    """CPU seconds of a paced run, as parts of its time."""

    calls: float
    """Of the calls, but for the dearest of a hundred, in which something else happened."""
    threads: float
    """Of all threads but the one that calls."""


def paced(kind: Any, num_rounds: int) -> list[float]:
    """The part of the time that a probe takes at `RATE` operations a second, for each round of with and without."""
    values = names()
    calls = [eval(f"lambda: {OPERATIONS[name]}", values) for name in PACED]
    costs = []
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-", dir="/dev/shm") as folder:
        with Probe(folder, hooks=kind):
            threads = _run_paced(calls, THREAD_SECONDS).threads
        with harness.no_garbage_collection():
            for _ in range(num_rounds):
                without = _run_paced(calls, PACED_SECONDS)
                with Probe(folder, hooks=kind):
                    _run_paced(calls, PACED_SECONDS / 10)
                    costs.append(_run_paced(calls, PACED_SECONDS).calls - without.calls)
    return [cost + threads for cost in costs]


def _run_paced(calls: Sequence[Callable[[], Any]], seconds: float) -> _Spent:
    """Call one after the other, each at its time, and go through memory in between."""
    work, clock = torch.ones(_WORK), time.thread_time_ns
    spent: list[int] = []
    begun, process, thread = time.perf_counter(), time.process_time(), time.thread_time()
    for number in range(round(seconds * RATE)):
        while time.perf_counter() - begun < number / RATE:
            work.neg_()
        call = calls[number % len(calls)]
        before = clock()
        call()
        spent.append(clock() - before)
    threads = (time.process_time() - process) - (time.thread_time() - thread)
    elapsed = time.perf_counter() - begun
    return _Spent(sum(sorted(spent)[: len(spent) - len(spent) // 100]) * 1e-9 / elapsed, threads / elapsed)


def _at_most(name: str, required: float, reached: float) -> Bar:
    return Bar(name=name, required=f"<= {required:g}", reached=reached, passed=reached <= required)


def main() -> None:
    """Run by the command line."""
    options = harness.parse("diagnose_cost", __doc__)
    harness.write(run(options), options)


if __name__ == "__main__":
    main()
