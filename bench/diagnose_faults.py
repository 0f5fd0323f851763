"""CCL-D at scale: simulated jobs of 4,096 ranks with one fault each; is the rank named?

The jobs have 8 tensor x 8 pipeline x 64 data ranks; all durations vary by 5 %. A rank that stops is to be found from
the latest states alone, without rings; everything else takes the rings. Ranks, steps, places and factors are drawn
anew for every job.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from bench import harness
from bench.harness import Options, exact, metric
from trimtab.diagnose import diagnose
from trimtab.diagnose.simulate import TRUTH, Fault, Job
from trimtab.records import Bar, Metric, Record

NUM_HANGS, NUM_SLOW, NUM_OTHERS = 1000, 200, 40
SEED = 7


def run(options: Options) -> Record:
    """Simulate, and return the record."""
    metrics: dict[str, Metric] = {}
    bars: list[Bar] = []
    _faults(metrics, bars, 50 if options.quick else 1)
    return Record.new(
        options.name,
        command=options.command,
        seed=SEED,
        data={
            "ranks": {"tensor": 8, "pipeline": 8, "data": 64},
            "jitter": 0.05,
            "hang": "a random rank does not enter a random operation; 4 micro-batches, 4 steps; states only",
            "slow": "a random rank computes 1.25 to 3 times as long in the second half; 4 micro-batches, 12 steps",
            "other, skip": "a random rank calls another operation, or leaves one out",
            "link": "operations of a random rank over its link take 60 times as long in the second half",
        },
        inference={"clock": "CPU seconds of one thread"},
        metrics=metrics,
        bars=bars,
    )


def _faults(metrics: dict[str, Metric], bars: list[Bar], parts: int) -> None:
    job = Job(tensor=8, pipeline=8, data=64, micro_batches=4)
    rng = np.random.default_rng(SEED)
    buffer = np.zeros(job.num_ranks * 512 * 8, np.uint64)

    def cases(kind: str, num: int, num_steps: int, capacity: int) -> Iterator:
        for seed in range(max(num // parts, 2)):
            rank = int(rng.integers(job.num_ranks))
            step = int(rng.integers(1, num_steps)) if kind not in ("slow", "link") else num_steps // 2
            factor = {"slow": float(rng.uniform(1.25, 3.0)), "link": 60.0}.get(kind, 1.0)
            fault = Fault(kind, rank=rank, step=step, place=int(rng.integers(job.num_places(rank))), factor=factor)
            faults = [fault] if kind != "none" else []
            yield fault, job.run(faults=faults, num_steps=num_steps, seed=seed, capacity=capacity, buffer=buffer)

    seconds, named = [], []
    for fault, played in cases("stop", NUM_HANGS, 4, 64):
        snapshot = played.snapshot()
        start = time.process_time()
        verdict = diagnose(snapshot)
        seconds.append(time.process_time() - start)
        named.append((verdict.kind, verdict.ranks) == ("H1", (fault.rank,)))
    metrics["hang/named"] = exact(sum(named), "jobs")
    metrics["hang/jobs"] = exact(len(named), "jobs")
    metrics["hang/verdict from states"] = metric([1e3 * s for s in seconds], "ms")
    metrics["hang/slowest verdict from states"] = exact(1e3 * max(seconds), "ms")
    bars.append(bar("hangs whose rank was named, of all", 1.0, float(np.mean(named))))
    bars.append(bar("verdict from the states of 4,096 ranks, slowest (ms)", 50, 1e3 * max(seconds), at_most=True))
    for kind, num in (("slow", NUM_SLOW), ("other", NUM_OTHERS), ("skip", NUM_OTHERS), ("link", NUM_OTHERS)):
        seconds, right, is_kind = [], [], []
        for fault, played in cases(kind, num, 12, 512):
            trace, snapshot = played.trace(), played.snapshot()
            start = time.process_time()
            verdict = diagnose(snapshot, trace)
            seconds.append(time.process_time() - start)
            is_kind.append(verdict.kind == TRUTH[kind])
            right.append(is_kind[-1] and verdict.ranks == (fault.rank,))
        metrics[f"{kind}/named"] = exact(sum(right), "jobs")
        metrics[f"{kind}/right kind"] = exact(sum(is_kind), "jobs")
        metrics[f"{kind}/jobs"] = exact(len(right), "jobs")
        metrics[f"{kind}/verdict from rings"] = metric(seconds, "s")
        if kind == "slow":
            bars.append(bar("slow ranks that were named, of all", 0.98, float(np.mean(right))))
    alarms = [played.verdict().kind != "healthy" for _, played in cases("none", NUM_OTHERS, 12, 512)]
    metrics["healthy/false alarms"] = exact(sum(alarms), "jobs")
    metrics["healthy/jobs"] = exact(len(alarms), "jobs")
    bars.append(bar("false alarms", 0, sum(alarms), at_most=True))


def bar(name: str, required: float, reached: float, *, at_most: bool = False) -> Bar:
    """Return whether a number keeps its limit."""
    words = f"{'<=' if at_most else '>='} {required:g}"
    return Bar(
        name=name, required=words, reached=reached, passed=reached <= required if at_most else reached >= required
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("diagnose_faults", __doc__, argv)
    record = run(options)
    for name, found in record.metrics.items():
        print(f"{name:45} {found.value:12.6g} {found.unit}")
    harness.write(record, options)


if __name__ == "__main__":
    main()
