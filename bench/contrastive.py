"""FastCLIP against the losses of OpenCLIP and SigLIP: what is found after training with small batches.

Fashion-MNIST with captions made by rule (`examples.captions`), a network of 0.4 million parameters, one process. Every
loss has the same network, learning rate, steps and order of pairs; the settings of its own are the best of six tries by
recall on validation pairs, on a seed that is not among the five. Recall is that of test pairs in galleries of 2,000, in
both directions. The runs are those of `bench.contrastive_runs`, which keeps them: what is missing is run first, and
that takes hours.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bench import harness
from bench.contrastive_runs import Run, best, tuning_runs
from bench.contrastive_ways import NOTES, OURS, PEERS, REGIMES, SETTINGS
from bench.harness import Options, exact
from trimtab.records import Bar, Metric, Record

HEADLINE = "batch 64"
"""The regime in which ours may not be worse."""
METRICS = ("recall", "R@1 image to text", "R@5 image to text", "R@10 image to text")
METRICS += ("R@1 text to image", "R@5 text to image", "R@10 text to image")

Found = Mapping[str, Sequence[Mapping[str, Any]]]


def run(regimes: Sequence[str], options: Options) -> Record:
    """Collect the runs of some regimes, starting those that are missing, and return the record."""
    metrics: dict[str, Metric] = {}
    bars: list[Bar] = []
    chosen, curves, tried = {}, {}, {}
    for regime in regimes:
        choices = {way: best(regime, way) for way in REGIMES[regime].ways}
        found = {
            way: [Run(regime, way, k, seed).results() for seed in range(REGIMES[regime].num_seeds)]
            for way, k in choices.items()
        }
        metrics |= _metrics(regime, found)
        bars += _bars(regime, found)
        chosen[regime] = {way: SETTINGS[way][k] for way, k in choices.items()}
        curves[regime] = {way: {seed: one["curve"] for seed, one in enumerate(own)} for way, own in found.items()}
        tried[regime] = {
            way: [one.results()["validation"]["recall"] for one in tuning_runs(regime, [way])]
            for way in REGIMES[regime].ways
        }
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch",),
        seed=0,
        data={
            "pairs": "Fashion-MNIST, captions by rule",
            "regimes": {regime: msgspec.to_builtins(REGIMES[regime]) for regime in regimes},
            "curves": curves,
        },
        architecture={"num_parameters": next(iter(found.values()))[0]["num_parameters"]},
        encoding={
            "contenders": {way: note for way, note in NOTES.items() if any(way in own for own in chosen.values())}
        },
        optimization={"settings": chosen, "tried": SETTINGS, "recall_of_tried": tried},
        inference={"num_threads": 1, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=bars,
    )


def _tries(regime: str, way: str) -> list[Mapping[str, float]]:
    return [tuning_run.results()["validation"] for tuning_run in tuning_runs(regime, [way])]


def _metrics(regime: str, found: Found) -> dict[str, Metric]:
    """Return means and standard deviations over seeds, seconds, and how often ours finds more than every peer."""
    metrics = {}
    for way, own in found.items():
        for what in (*METRICS, "loss"):
            values = [one["test"][what] for one in own]
            unit = "nats" if what == "loss" else "%"
            metrics[f"{regime}/{way}/{what}"] = exact(statistics.fmean(values), unit)
            metrics[f"{regime}/{way}/{what}, deviation"] = exact(statistics.stdev(values), unit)
        metrics[f"{regime}/{way}/temperature"] = exact(statistics.fmean(one["temperature"] for one in own), "")
        metrics[f"{regime}/{way}/step"] = harness.metric([one["milliseconds_a_step"] for one in own], "ms")
        if way not in PEERS:
            metrics[f"{regime}/{way}/wins"] = exact(wins(found, way), f"of {len(own)} seeds")
    return metrics


def wins(found: Found, way: str) -> int:
    """Return on how many seeds a way finds more, by mean recall, than each of the peers."""
    seeds = zip(found[way], *(found[peer] for peer in PEERS), strict=True)
    return sum(all(ours["test"]["recall"] > one["test"]["recall"] for one in peers) for ours, *peers in seeds)


def _bars(regime: str, found: Found) -> list[Bar]:
    bars = []
    for way in OURS if regime == HEADLINE else ():
        for peer in PEERS:
            ours, theirs = ([one["test"]["recall"] for one in found[name]] for name in (way, peer))
            gain = statistics.fmean(ours) - statistics.fmean(theirs)
            allowed = statistics.stdev(theirs)
            bars.append(
                Bar(
                    name=f"{way}, {regime}: mean recall beside {peer}'s, points",
                    required=f">= -{allowed:.2f}, a standard deviation of the seeds",
                    reached=gain,
                    passed=gain >= -allowed,
                )
            )
    return bars


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = harness.parse("contrastive", __doc__, argv)
    record = run(["small"] if options.quick else [name for name in REGIMES if name != "small"], options)
    for key, found in record.metrics.items():
        print(f"{key:60} {found.value:12.6g} {found.unit}")
    harness.write(record, options)


if __name__ == "__main__":
    main()
