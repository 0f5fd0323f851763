"""Looked-up vectors of a recommender on their way between ranks: bytes, quality, speed, choice, and seconds a step.

Synthetic clicks throughout (`examples.clicks`). Training runs and timed steps are those of `bench.embedding_runs`,
which makes what is missing. Ratios do not count the ids that are asked for: they are the same in all ways. "int8" is
the strong peer: each id is asked for once, and its vector sent in 8 bits an element with two float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from bench import harness, jobs
from bench.embedding_runs import CLAIMED, NUM_SEEDS, NUM_STEPS, STEP_RATES, Area, Steps, areas
from bench.embedding_training import NUM_COLUMNS, NUM_RANKS, NUM_SAMPLES, RATE, Training
from bench.embedding_ways import BOTH_WAYS, BOUND, HEADLINE, STEP_WAYS, WAYS
from bench.embedding_ways import exact as unchanged
from bench.harness import Contender, Options, Timings, at_least, exact, metric
from examples.dlrm import NUM_ROWS
from trimtab.bounds import value_range
from trimtab.codecs.embedding_choice import best_encoder, try_encoders
from trimtab.codecs.embedding_slice import ENCODERS, Encoder, Slice, decode_slice
from trimtab.kernels import threads
from trimtab.records import Bar, Metric, Record

BANDWIDTHS = {"100 Mbit/s": 12.5e6, "1 Gbit/s": 125e6, "10 Gbit/s": 1.25e9}
NUM_TRAINED = 30
"""Steps of training before vectors are taken for what is timed."""


class Vectors(NamedTuple):
    """What one rank is sent of a table, and within what limit."""

    name: str
    x: np.ndarray
    limit: float


def trained_vectors(num_steps: int) -> dict[str, list[Vectors]]:
    """Return the vectors of one rank's batch after some steps: of every sample, and of every id once."""
    training = Training(unchanged, 0)
    for _ in range(num_steps):
        training.learn()
    ids = training.clicks.batch("train", num_steps, NUM_RANKS * NUM_SAMPLES).ids[:, :NUM_SAMPLES]
    found: dict[str, list[Vectors]] = {"every sample": [], "every id once": []}
    for table, column in zip(training.tables, ids, strict=True):
        weights = table.weight.detach().numpy()
        name, limit = f"{len(weights)} rows", BOUND * value_range(weights[np.unique(column)])
        found["every sample"].append(Vectors(name, weights[column], limit))
        found["every id once"].append(Vectors(name, weights[np.unique(column)], limit))
    return found


def learning(num_seeds: int) -> dict[str, Metric]:
    """Return ratios and areas under the curve of the training runs that are there for all seeds.

    "times" an other way count what both directions take together; where gradients go as they are, they count so.
    """
    runs = {way: [Area(way, seed).found() for seed in range(num_seeds)] for way in WAYS}
    whole = {way: [run for run in found if run] for way, found in runs.items() if all(found)}
    metrics: dict[str, Metric] = {}
    for way, found in whole.items():
        metrics[f"{way}/area"] = metric([run["area"] for run in found], "")
        metrics[f"{way}/ratio"] = metric([run["num_bytes"] / run["num_sent"] for run in found], "x")
        for what, key in (("vectors", "num_sent"), ("gradients", "num_returned")):
            metrics[f"{way}/{what}/ratio"] = metric([run["num_distinct_bytes"] / run[key] for run in found], "x")
        for peer in ("exact", "int8"):
            if peer in whole:
                pairs = list(zip(found, whole[peer], strict=True))
                times = [other["num_sent"] / run["num_sent"] for run, other in pairs]
                metrics[f"{way}/vectors/times {peer}"] = metric(times, "x")
                times = [_both_ways(other) / _both_ways(run) for run, other in pairs]
                metrics[f"{way}/both ways/times {peer}"] = metric(times, "x")
                changes = [run["area"] - other["area"] for run, other in pairs]
                metrics[f"{way}/area beside {peer}"] = metric(changes, "")
                metrics[f"{way}/mean area beside {peer}"] = exact(float(np.mean(changes)), "")
                metrics[f"{way}/mean distance of area to {peer}"] = exact(float(np.mean(np.abs(changes))), "")
    return metrics


def _both_ways(run: dict[str, Any]) -> int:
    return run["num_sent"] + run["num_returned"]


def speed_and_choice(subject: str, parts: Sequence[Vectors], num_rounds: int) -> dict[str, Metric]:
    """Return how fast each encoder is, and how the choice by table compares to one encoder for all."""
    seconds: dict[tuple[str, Encoder], float] = {}
    sizes: dict[tuple[str, Encoder], int] = {}
    by_encoder: dict[Encoder, list[Timings]] = {encoder: [] for encoder in ENCODERS}
    for part in parts:
        out = np.empty_like(part.x)
        contenders = [
            Contender(encoder, partial(_encode, part, encoder), partial(_decode, out)) for encoder in ENCODERS
        ]
        timings = harness.measure(contenders, num_rounds)
        for encoder in ENCODERS:
            by_encoder[encoder].append(timings[encoder])
            both = zip(timings[encoder].cpu["encode"], timings[encoder].cpu["decode"], strict=True)
            seconds[part.name, encoder] = float(np.median([a + b for a, b in both])) / _REPEATS
            sizes[part.name, encoder] = Slice(part.x, part.limit).encode(encoder).size
    num_bytes = sum(part.x.nbytes for part in parts)
    metrics: dict[str, Metric] = {}
    for encoder, found in by_encoder.items():
        totals = [
            sum(timing.cpu["encode"][k] + timing.cpu["decode"][k] for timing in found) / _REPEATS
            for k in range(num_rounds)
        ]
        metrics[f"{subject}/{encoder}/encode and decode"] = metric(
            [num_bytes / 1e9 / total for total in totals], "GB/s"
        )
        metrics[f"{subject}/{encoder}/ratio"] = exact(num_bytes / sum(sizes[part.name, encoder] for part in parts), "x")
    for name, bandwidth in BANDWIDTHS.items():
        chosen = {
            part.name: best_encoder(try_encoders([Slice(part.x, part.limit)], ENCODERS), bandwidth) for part in parts
        }
        fixed = {
            encoder: sum(seconds[part.name, encoder] + sizes[part.name, encoder] / bandwidth for part in parts)
            for encoder in ENCODERS
        }
        taken = sum(
            seconds[part.name, chosen[part.name]] + sizes[part.name, chosen[part.name]] / bandwidth for part in parts
        )
        metrics[f"{subject}/chosen at {name}/times the best for all"] = exact(min(fixed.values()) / taken, "x")
    return metrics


_REPEATS = 10  # a slice takes tens of microseconds


def _encode(part: Vectors, encoder: Encoder) -> np.ndarray:
    for _ in range(_REPEATS):
        payload = Slice(part.x, part.limit).encode(encoder)
    return payload


def _decode(out: np.ndarray, payload: np.ndarray) -> None:
    for _ in range(_REPEATS):
        decode_slice(payload, out)


def step_metrics(rates: Sequence[str], num_rounds: int) -> dict[str, Metric]:
    """Return seconds a step over shaped links, and how much of an exact step is the exchange."""
    metrics: dict[str, Metric] = {}
    for rate in rates:
        found = Steps(rate, num_rounds).results()
        metrics[f"{rate}/exact/share"] = metric(found["shares"]["exact"], "of a step")
        for way in STEP_WAYS:
            metrics[f"{rate}/{way}/step"] = metric(found["seconds"][way], "s")
            pairs = zip(found["seconds"]["exact"], found["seconds"][way], strict=True)
            metrics[f"{rate}/{way}/times exact"] = metric([theirs / ours for theirs, ours in pairs], "x")
            sent = found["sizes"][way]
            metrics[f"{rate}/{way}/sent"] = exact(sent["sent_bytes"] / max(sent["calls"], 1), "B a call and rank")
    return metrics


def run(options: Options, rates: Sequence[str] = STEP_RATES) -> Record:
    """Put the record together."""
    num_rounds = options.num_rounds
    metrics = learning(NUM_SEEDS)
    with threads(1):
        for subject, parts in trained_vectors(3 if options.quick else NUM_TRAINED).items():
            metrics |= speed_and_choice(subject, parts, num_rounds)
    metrics |= step_metrics(rates, num_rounds)
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch",),
        seed=0,
        data={"clicks": "synthetic", "rows": NUM_ROWS, "seeds": NUM_SEEDS},
        architecture={"model": "DLRM", "columns": NUM_COLUMNS},
        encoding={"ways": list(WAYS), "headline": HEADLINE, "both_ways": BOTH_WAYS},
        optimization={"steps": NUM_STEPS, "optimizer": "Adagrad", "rate": RATE},
        inference={
            "ranks": NUM_RANKS, "samples": NUM_SAMPLES, "num_threads": 1, "num_rounds": num_rounds,
            "training": "four ranks simulated in one process; bytes are those of the payloads",
        },
        metrics=metrics,
        bars=bars(metrics, rates),
    )  # fmt: skip


def bars(metrics: dict[str, Metric], rates: Sequence[str]) -> list[Bar]:
    """Return what had to be reached."""
    found = metrics.get
    choices = [value for key, value in metrics.items() if key.endswith("times the best for all")]
    worst = min(choices, key=lambda value: value.value) if choices else None
    nearest = min(rates, key=lambda rate: abs(metrics[f"{rate}/exact/share"].value - 0.5)) if rates else ""
    whole, once = (f"{subject}/{{}}/encode and decode" for subject in ("every sample", "every id once"))
    speed = "a step where the exchange is half of it"
    return [
        at_least(f"{HEADLINE}: fewer bytes than dedup + int8", 1.5, found(f"{HEADLINE}/vectors/times int8"), "x"),
        _same_area(HEADLINE, found(f"{HEADLINE}/mean area beside exact")),
        _same_area(BOTH_WAYS, found(f"{BOTH_WAYS}/mean area beside exact")),
        at_least("choice by table beside the best encoder for all, at worst", 0.95, worst, "x"),
        at_least(f"{HEADLINE}: {speed}", 1.3, found(f"{nearest}/{HEADLINE}/times exact"), "x"),
        at_least(f"{BOTH_WAYS}: {speed}", 1.3, found(f"{nearest}/{BOTH_WAYS}/times exact"), "x"),
        at_least("encode and decode, dedup, every sample", 1.0, found(whole.format("dedup")), " GB/s"),
        at_least("encode and decode, entropy, every id once", 1.0, found(once.format("entropy")), " GB/s"),
    ]


def _same_area(way: str, change: Metric | None) -> Bar:
    """Return the bar that training in a way scores as exact training does, in the mean of the seeds."""
    reached = abs(change.value) if change else 1.0
    name = f"{way}: area under the curve beside exact, |mean of {NUM_SEEDS} seeds|"
    return Bar(name=name, required="<= 0.0005", reached=reached, passed=reached <= 0.0005)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("embedding", __doc__, argv)
    torch.set_num_threads(1)
    if not options.quick:
        jobs.run_missing(list(areas(CLAIMED)), None)
    record = run(options, () if options.quick else STEP_RATES)
    for key, value in record.metrics.items():
        print(f"{key}: {value.value:.5g} {value.unit}")
    harness.write(record, options)


if __name__ == "__main__":
    main()
