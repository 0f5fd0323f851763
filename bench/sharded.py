"""SDP4Bit on two nodes of two ranks: what it sends, what a step takes, and what it does to the loss.

A byte-level GPT trains on the source of Python's standard library (`bench.gpt`). Bytes are those that a node's link
carried, by its counters; times are of ways that take turns within one job, compared turn by turn. The jobs are those
of `bench.sharded_runs`, which keeps what they find: run its `losses` first, which take hours, then its `steps` on an
idle machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench import harness
from bench.harness import Options, at_least, exact, metric
from bench.sharded_runs import (
    NODES,
    OURS,
    RANKS_PER_NODE,
    SCALES,
    STOCK,
    Run,
    loss_runs,
    repeated,
    step_runs,
)
from bench.sharded_ways import WAYS
from bench.tables import sharded_tables
from trimtab.records import Bar, Metric, Record

PAPER = {
    "125M": {
        STOCK: 2.29392,
        "qW": 2.57312,
        "qWD": 2.29274,
        "TLq": 2.30479,
        "TLq-HS": 2.29528,
        OURS: 2.29590,
    },
    "350M": {
        STOCK: 2.08719,
        "qW": 2.27405,
        "qWD": 2.08730,
        "TLq": 2.09551,
        "TLq-HS": 2.08912,
        OURS: 2.08964,
    },
    "1.3B": {
        STOCK: 1.92774,
        "qW": 2.04608,
        "qWD": 1.92881,
        "TLq": 1.95075,
        "TLq-HS": 1.93134,
        OURS: 1.93238,
    },
}
"""Size -> way -> validation loss, as the paper's Table 1 gives it."""
SLOW, FAST = "100mbit", "1gbit"
LESS_BYTES = {STOCK: 10.0, "exact, flat": 5.5, "exact, two levels": 4.0, "ZeRO++-style": 1 / 0.6}
"""Way -> how many times the bytes of ours it must send at least."""
LESS_TIME = {STOCK: 2.0, "exact, flat": 1.5, "DDP, fp16 hook": 1.3}
"""Way -> how many times the seconds of ours a step must take at least, at 100 Mbit/s."""
NEVER_SLOWER = (STOCK, "exact, flat", "exact, two levels", "DDP, fp16 hook")
"""Ways that ours must not fall behind at 1 Gbit/s."""
MOST_LOSS, LEAST_HARM = 0.5, 1.0  # %
NOT_SLOWER = 0.95


def run(scale: str, found: Mapping[Run, dict[str, Any]], options: Options) -> Record:
    """Return the record of what the runs found."""
    trained = {(r.ways[0], r.seed): results for r, results in found.items() if r.job == "losses" and not r.label}
    timed = {(r.ways[0], r.rate): results for r, results in found.items() if r.job == "steps"}
    metrics = _losses(trained) | _bytes(timed) | _times(timed)
    metrics |= _sameness(trained, found.get(repeated(scale)))
    one = next(iter(trained.values()))
    settings = SCALES[scale]
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch",),
        seed=0,
        data={
            "text": one["text"],
            "text_bytes": dict(zip(("train", "validation"), one["text_bytes"], strict=True)),
            "curves": {
                way: {str(seed): results["curve"] for (name, seed), results in trained.items() if name == way}
                for way in dict.fromkeys(name for name, _ in trained)
            },
            "paper": PAPER,
        },
        architecture={
            "num_parameters": one["num_parameters"],
            "width": settings.size.width,
            "blocks": settings.size.num_blocks,
            "context": settings.size.context,
            "nodes": NODES,
            "ranks_per_node": RANKS_PER_NODE,
            "links": one["mode"],
        },
        encoding={"contenders": {way: WAYS[way].note for way in WAYS if any(way in run.ways for run in found)}},
        optimization={
            "steps": settings.num_steps,
            "tokens_a_step": settings.num_rows * settings.size.context * NODES * RANKS_PER_NODE,
            "learning_rate": settings.learning_rate,
            "seeds": settings.seeds,
        },
        inference={
            "num_rounds": options.num_rounds,
            "clock": "wall time between barriers",
            "rates": list(dict.fromkeys(rate for _, rate in timed)),
        },
        metrics=metrics,
        bars=_bars(metrics),
    )


def _losses(trained: Mapping[tuple[str, int], dict[str, Any]]) -> dict[str, Metric]:
    metrics = {}
    for way in dict.fromkeys(way for way, _ in trained):
        by_seed = {seed: results["validation"] for (name, seed), results in trained.items() if name == way}
        losses = list(by_seed.values())
        metrics[f"loss/{way}"] = _mean(losses, "nats a byte")
        if way != STOCK:
            exactly = {seed: trained[STOCK, seed]["validation"] for seed in by_seed}
            over = [100 * (loss / exactly[seed] - 1) for seed, loss in by_seed.items()]
            metrics[f"over_exact/{way}"] = _mean(over, "%")
    return metrics


def _mean(values: Sequence[float], unit: str) -> Metric:
    """Return the mean over seeds, between the least and the largest value."""
    mean, least, most = (round(f(values), 5) for f in (statistics.mean, min, max))
    return Metric(value=mean, unit=unit, low=least, high=most, num_rounds=len(values))


def _bytes(timed: Mapping[tuple[str, str | None], dict[str, Any]]) -> dict[str, Metric]:
    """Return what a node sent to the other in a step, by the slowest link: the counters see every packet."""
    metrics = {}
    for (way, rate), results in timed.items():
        if rate != SLOW:
            continue
        sent = {name: [statistics.mean(nodes) for nodes in results["sent"][name]] for name in (way, OURS)}
        metrics[f"sent/{way}"] = metric([num_bytes / 1e6 for num_bytes in sent[way]], "MB")
        metrics[f"sent/{way}/times"] = metric([a / b for a, b in zip(sent[way], sent[OURS], strict=True)], "x")
        if way == STOCK:
            metrics[f"sent/{OURS}"] = metric([num_bytes / 1e6 for num_bytes in sent[OURS]], "MB")
    return metrics


def _times(timed: Mapping[tuple[str, str | None], dict[str, Any]]) -> dict[str, Metric]:
    metrics = {}
    for (way, rate), results in timed.items():
        theirs, ours = results["seconds"][way], results["seconds"][OURS]
        metrics[f"{rate}/{way}/seconds"] = metric(theirs, "s")
        metrics[f"{rate}/{way}/times"] = metric([a / b for a, b in zip(theirs, ours, strict=True)], "x")
        if way == STOCK:
            metrics[f"{rate}/{OURS}/seconds"] = metric(ours, "s")
    return metrics


def _sameness(trained: Mapping[tuple[str, int], dict[str, Any]], again: dict[str, Any] | None) -> dict[str, Metric]:
    metrics = {
        "same/runs": exact(len(trained), "runs"),
        "same/on_all_ranks": exact(sum(results["identical"] for results in trained.values()), "runs"),
    }
    if again is not None:
        pairs = zip(again["digests"], trained[OURS, 0]["digests"], strict=False)
        metrics["same/repeated"] = exact(len(again["digests"]), "digests")
        metrics["same/repeated_alike"] = exact(sum(one == other for one, other in pairs), "digests")
    return metrics


def _bars(metrics: Mapping[str, Metric]) -> list[Bar]:
    found = metrics.get
    sent = [
        at_least(f"bytes between nodes a step: {way}, over SDP4Bit's", round(least, 3), found(f"sent/{way}/times"), "x")
        for way, least in LESS_BYTES.items()
    ]
    slow = [
        at_least(f"a step at 100 Mbit/s: {way}, over SDP4Bit's", least, found(f"{SLOW}/{way}/times"), "x")
        for way, least in LESS_TIME.items()
    ]
    fast = [
        at_least(f"a step at 1 Gbit/s: {way}, over SDP4Bit's", NOT_SLOWER, found(f"{FAST}/{way}/times"), "x")
        for way in NEVER_SLOWER
    ]
    runs = metrics["same/runs"].value
    same = [
        at_least(
            f"runs of {runs:g} with the same parameters on all ranks at every step", runs, found("same/on_all_ranks")
        )
    ]
    if "same/repeated" in metrics:
        num = metrics["same/repeated"].value
        same.append(
            at_least(f"steps of {num:g} that a second run repeats bit for bit", num, found("same/repeated_alike"))
        )
    return [*_loss_bars(metrics), *sent, *slow, *fast, *same]


def _loss_bars(metrics: Mapping[str, Metric]) -> list[Bar]:
    ours, exactly = metrics[f"loss/{OURS}"], metrics[f"loss/{STOCK}"]
    low, high = _ends(metrics[f"over_exact/{OURS}"])
    least, most = _ends(exactly)
    name = f"SDP4Bit: validation loss off the exact one's, worst of {ours.num_rounds} seeds"
    bars = [_at_most(name, MOST_LOSS, max(high, -low), " %")]
    if most > least:
        off = abs(ours.value - exactly.value) / (most - least)
        bars.append(_at_most("SDP4Bit: mean loss off the exact one's, over the spread of its seeds", 1.0, off))
    harm = exact(_ends(metrics["over_exact/qW"])[0], "%")
    bars.append(
        at_least("weights quantised directly: loss above the exact one's, least of seeds", LEAST_HARM, harm, " %")
    )
    return bars


def _ends(metric: Metric) -> tuple[float, float]:
    """Return the least and the largest value."""
    assert metric.low is not None and metric.high is not None
    return metric.low, metric.high


def _at_most(name: str, limit: float, reached: float, unit: str = "") -> Bar:
    return Bar(name=name, required=f"<= {limit:g}{unit}", reached=reached, passed=reached <= limit)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("sharded", __doc__, argv)
    scale = "small" if options.quick else "10M"
    runs = [*loss_runs(scale), *step_runs(scale, options.num_rounds)]
    record = run(scale, {one: one.results() for one in runs}, options)
    print(sharded_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
