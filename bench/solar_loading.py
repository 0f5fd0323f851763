"""SOLAR's loader against DataLoaders and NoPFS's policy, end to end on a throttled store and in the page cache.

Every rank is a process; ranks meet in every step and compute nothing, so what is compared is loading alone. A request
of the throttled store takes its latency and its bytes at 200 MB/s, in each stream. Buffers are parts of the data, of
all ranks together, and what is read ahead is part of them; with 0, eight batches are read ahead. DataLoaders prefetch
two batches a worker beside that. NoPFS's policy reads what another rank keeps from shared memory, as if the network
were free, or else over a modelled network. All ten epochs count, the cold first one included. The runs are those of
`bench.solar_loading_runs`, which keeps them: what is missing is run first, and that takes an hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from bench import harness
from bench.data_tables import solar_loading_tables
from bench.harness import Options, exact, metric
from bench.solar_loading_runs import (
    NETWORKED,
    OURS,
    POOLED,
    STOCK,
    WAYS,
    Load,
    cached_shapes,
    slow_shapes,
    small_shapes,
)
from bench.solar_loading_ways import LOOK_AHEAD, NETWORK, NUM_THREADS, Shape
from trimtab.records import Bar, Metric, Record

NUM_ROUNDS = 3
LEAST_TIMES = {"trimtab 0": 2.0, "trimtab 0.5": 3.0, "trimtab 0.9": 5.0}
"""Way -> how many times as fast as the best DataLoader it must be on a throttled store."""
LEAST_OVER_POOLED = 1.5
LEAST_CACHED = 0.97


def run(options: Options) -> Record:
    """Collect the runs, starting those that are missing, and return the record."""
    slow = small_shapes() if options.quick else slow_shapes()
    cached = {} if options.quick else cached_shapes()
    num_rounds = 1 if options.quick else NUM_ROUNDS
    metrics: dict[str, Metric] = {}
    for name, shape in {**slow, **cached}.items():
        metrics |= _metrics(name, shape, num_rounds)
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch", "h5py"),
        seed=0,
        data={"shapes": {name: msgspec.to_builtins(shape) for name, shape in {**slow, **cached}.items()}},
        inference={
            "look_ahead": LOOK_AHEAD,
            "num_threads": NUM_THREADS,
            "network": NETWORK._asdict(),
            "clock": "wall, the slowest rank",
        },
        metrics=metrics,
        bars=_bars(metrics, slow, cached),
    )


def _metrics(name: str, shape: Shape, num_rounds: int) -> dict[str, Metric]:
    ways = WAYS if shape.latency is not None else (*STOCK, *OURS)
    found = {way: [Load(shape, way, number).results() for number in range(num_rounds)] for way in ways}
    seconds = {way: [one["seconds"] for one in own] for way, own in found.items()}
    best = [min(times) for times in zip(*(seconds[way] for way in STOCK), strict=True)]
    metrics = {}
    for way, own in found.items():
        metrics[f"{name}/{way}/seconds"] = metric(seconds[way], "s")
        metrics[f"{name}/{way}/cpu"] = metric([one["cpu_seconds"] for one in own], "CPU s")
        metrics[f"{name}/{way}/reads"] = exact(own[0]["reads"], "samples")
        if way not in STOCK:
            pairs = zip(best, seconds[way], strict=True)
            claim = "up to 24.4x over the PyTorch DataLoader" if way in OURS else None
            metrics[f"{name}/{way}/times"] = metric([theirs / ours for theirs, ours in pairs], "x", claim)
    for way in (POOLED, NETWORKED):
        if way not in found:
            continue
        pairs = zip(seconds[way], seconds["trimtab 0.5"], strict=True)
        claim = "3.52x over other loaders, buffers and loaders not stated in what we could read"
        metrics[f"{name}/over {way}"] = metric([theirs / ours for theirs, ours in pairs], "x", claim)
    return metrics


def _bars(metrics: Mapping[str, Metric], slow: Mapping[str, Shape], cached: Mapping[str, Shape]) -> list[Bar]:
    def least(name: str, required: float, keys: Sequence[str]) -> Bar:
        reached = min(metrics[key].value for key in keys)
        return Bar(name=name, required=f">= {required:g}x", reached=reached, passed=reached >= required)

    bars = [
        least(f"SOLAR: {way} beside the best DataLoader, throttled", required, [f"{name}/{way}/times" for name in slow])
        for way, required in LEAST_TIMES.items()
    ]
    bars.append(
        least(
            "SOLAR: beside NoPFS's policy, buffers .5, free network",
            LEAST_OVER_POOLED,
            [f"{name}/over {POOLED}" for name in slow],
        )
    )
    if cached:
        keys = [f"{name}/{way}/times" for name in cached for way in OURS]
        bars.append(least("SOLAR: beside the best DataLoader, page cache", LEAST_CACHED, keys))
    return bars


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("solar_loading", __doc__, argv)
    record = run(options)
    print(solar_loading_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
