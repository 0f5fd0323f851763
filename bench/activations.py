"""COMET on two convolutional networks: bytes, accuracy, gradient errors, step times, memory, and larger batches.

The runs are those of `bench.activation_runs`, which keeps them: what is missing is run first, and that takes hours. Two
networks learn Fashion-MNIST from five seeds in each way of keeping activations; a seed gives all ways the same
weights, images and dropout. Bytes are all that autograd keeps between forward and backward, parameters aside, each
storage once. The strong peer is stochastic rounding to 4 bits (`bench.activation_peers`), which treats masks, indices
and shared tensors as COMET does. Resident memory is that of a process that returns every freed piece at once.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench import harness
from bench.activation_networks import DEEP, MOMENTUM, RATES, SCALES, TRAINED, USUAL_RATE, WEIGHT_DECAY
from bench.activation_runs import COMPARED, SMALLER, accuracy_runs, larger, memory_runs, step_runs
from bench.activation_runs import batch_runs as all_batch_runs
from bench.activation_runs import noise_runs as all_noise_runs
from bench.activation_tables import activation_tables
from bench.activation_ways import EXACT, HEADLINE, UPDATE_EVERY, WAYS
from bench.harness import Options, at_least, exact, metric
from trimtab.records import Bar, Metric, Record

LEAST_RATIO, MOST_LOST, MOST_SLOWER, MOST_OFF = 6.0, 0.3, 1.35, 0.15
LEAST_TIMES = {"4 bits": 1.5, "bfloat16": 2.0}
"""Peer -> how many times smaller than it COMET must be, at its accuracy."""
PAPER = {"COMET": "up to 13.5x of memory, five networks on ImageNet", "beside": "1.8x of another compression's"}

Found = Mapping[str, Sequence[Mapping[str, Any]]]


def run(scale: str, options: Options) -> Record:
    """Collect the runs of a scale, starting those that are missing, and return the record."""
    trained: dict[str, dict[str, list[Mapping[str, Any]]]] = {network: {} for network in TRAINED}
    for job in accuracy_runs(scale):
        trained[job.network].setdefault(job.ways[0], []).append(job.results())
    metrics: dict[str, Metric] = {}
    for network, found in trained.items():
        metrics |= _accuracies(network, found) | _sizes(network, found)
    for job in step_runs(scale):
        metrics |= _times(f"{job.network}, {SCALES[job.scale].width} wide", job.results())
    watched = {(job.network, job.ways[0]): job.results() for job in memory_runs(scale)}
    metrics |= _memory(watched)
    for job in all_noise_runs(scale):
        metrics |= _noise(f"{job.network}/{job.ways[0]}", job.results())
    for job in all_batch_runs(scale):
        metrics |= _batches(job.network, job.results())
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch",),
        seed=0,
        data={
            "images": "Fashion-MNIST",
            "num_seeds": len(trained[TRAINED[0]][EXACT]),
            "functions": {n: {w: f[0].get("functions", {}) for w, f in found.items()} for n, found in trained.items()},
            "paper": PAPER,
            "resident": _by_time(watched),
        },
        architecture={
            "num_parameters": {network: found[EXACT][0]["num_parameters"] for network, found in trained.items()},
            "scales": {
                what: {name: getattr(SCALES[name_of], name) for name in ("width", "batch")}
                for what, name_of in (
                    ("accuracy", scale),
                    ("steps", larger(scale, "wide")),
                    ("memory", larger(scale, "large")),
                )
            },
        },
        encoding={"ways": {way: kept.note for way, kept in WAYS.items()}, "compared": SMALLER},
        optimization={
            "num_images": SCALES[scale].num_images,
            "num_epochs": SCALES[scale].num_epochs,
            "num_tested": SCALES[scale].num_tested,
            "rate": {network: RATES.get(network, USUAL_RATE) for network in trained},
            "momentum": MOMENTUM,
            "weight_decay": WEIGHT_DECAY,
            "update_every": UPDATE_EVERY,
            "accuracies": {
                n: {way: [100 * result["accuracy"] for result in results] for way, results in found.items()}
                for n, found in trained.items()
            },
        },
        inference={"num_threads": 1, "clock": "wall seconds of a step, ways taking turns"},
        metrics=metrics,
        bars=_bars(metrics),
    )


def _accuracies(network: str, found: Found) -> dict[str, Metric]:
    metrics = {}
    for way, results in found.items():
        scores = [100 * result["accuracy"] for result in results]
        metrics[f"{network}/{way}/accuracy"] = metric(scores, "%")
        metrics[f"{network}/{way}/mean accuracy"] = exact(statistics.fmean(scores), "%")
        for other in (EXACT, "4 bits"):
            pairs = zip(results, found[other], strict=False)  # some ways train on fewer seeds
            changes = [100 * (result["accuracy"] - base["accuracy"]) for result, base in pairs]
            metrics[f"{network}/{way}/beside {other}"] = metric(changes, "pt")
            metrics[f"{network}/{way}/mean beside {other}"] = exact(statistics.fmean(changes), "pt")
            metrics[f"{network}/{way}/error beside {other}"] = exact(_standard_error(changes), "pt")
    return metrics


def _standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; 0 of a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _sizes(network: str, found: Found) -> dict[str, Metric]:
    """Return ratios over whole runs: the bytes of all counted steps over those that were kept."""
    ratios = {}
    for way, results in found.items():
        if all(result["bytes"] for result in results):
            sums = [[sum(column) for column in zip(*result["bytes"], strict=True)] for result in results]
            ratios[way] = [saved / kept for saved, kept in sums]
    metrics = {f"{network}/{way}/ratio": metric(values, "x") for way, values in ratios.items()}
    for way, values in ratios.items():
        for peer in LEAST_TIMES:
            times = [value / theirs for value, theirs in zip(values, ratios[peer], strict=False)]
            metrics[f"{network}/{way}/smaller than {peer}"] = metric(times, "x")
    return metrics


def _times(subject: str, found: Mapping[str, Any]) -> dict[str, Metric]:
    metrics = {}
    for way, values in found["seconds"].items():
        metrics[f"{subject}/{way}/step"] = metric([1e3 * value for value in values], "ms")
        for clock, what in (("seconds", "times"), ("cpu_seconds", "cpu_times")):
            pairs = zip(found[clock][way], found[clock][EXACT], strict=True)
            metrics[f"{subject}/{way}/{what}"] = metric([value / base for value, base in pairs], "x")
    return metrics


def _memory(watched: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, Metric]:
    metrics = {}
    grown = {
        key: [peak - before for peak, before in zip(result["peak_bytes"], result["before_bytes"], strict=True)]
        for key, result in watched.items()
    }
    for (network, way), values in grown.items():
        metrics[f"memory/{network}/{way}/grown"] = metric([value / 1e6 for value in values], "MB")
        metrics[f"memory/{network}/{way}/peak"] = metric(
            [value / 1e6 for value in watched[network, way]["peak_bytes"]], "MB"
        )
        share = statistics.median(grown[network, EXACT]) / statistics.median(values)
        metrics[f"memory/{network}/{way}/less"] = exact(share, "x")
    return metrics


def _by_time(watched: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, Any]:
    """Return, of the deep network, seconds and megabytes above those before the step: at most 400 points a way."""
    curves = {}
    for (network, way), result in watched.items():
        if network == DEEP:
            points = result["points"]
            base = result["before_bytes"][-1]
            # the largest of each interval, so that no peak is lost
            every = -(-len(points) // 400)
            parts = [points[start : start + every] for start in range(0, len(points), every)]
            curves[way] = {
                "points": [[round(part[0][0], 4), round((max(b for _, b in part) - base) / 1e6, 2)] for part in parts],
                "forward_seconds": result["forward_seconds"],
                "seconds": result["seconds"],
            }
    return {"network": DEEP, "ways": curves}


def _noise(subject: str, found: Mapping[str, Any]) -> dict[str, Metric]:
    """Return measured over predicted standard deviations of each layer, root mean squares over the batches."""
    metrics = {}
    for name, layer in found["layers"].items():
        sizes = {
            what: math.sqrt(statistics.fmean(v * v for v in layer[what])) for what in ("own", "predicted", "whole step")
        }
        for what in ("own", "whole step"):
            metrics[f"noise/{subject}/{name}/{what}"] = exact(sizes[what] / sizes["predicted"], "x")
    return metrics


def _batches(network: str, found: Mapping[str, Any]) -> dict[str, Metric]:
    metrics = {}
    for way, entry in found["ways"].items():
        key = f"batch/{network}/{way}"
        metrics[f"{key}/images"] = exact(entry["batch"], "images")
        metrics[f"{key}/of the budget"] = exact(entry["bytes"] / found["budget"], "x")
        metrics[f"{key}/of the budget, 5 % more images"] = exact(entry["more_bytes"] / found["budget"], "x")
        metrics[f"{key}/speed"] = metric(entry["speed"], "images/s")
        pairs = zip(entry["speed"], found["ways"][EXACT]["speed"], strict=True)
        metrics[f"{key}/faster"] = metric([speed / base for speed, base in pairs], "x")
    return metrics


def _at_most(name: str, limit: float, reached: float, unit: str = "x") -> Bar:
    return Bar(name=name, required=f"<= {limit:g}{unit}", reached=reached, passed=reached <= limit)


def _bars(metrics: Mapping[str, Metric]) -> list[Bar]:
    bars = []
    for network in TRAINED:
        bars.append(
            at_least(
                f"{network}: all saved bytes, {HEADLINE}", LEAST_RATIO, metrics[f"{network}/{HEADLINE}/ratio"], "x"
            )
        )
        lost = -metrics[f"{network}/{HEADLINE}/mean beside {EXACT}"].value
        bars.append(_at_most(f"{network}: accuracy lost, mean of the seeds, {HEADLINE}", MOST_LOST, lost, " pt"))
        way = SMALLER[network]
        for peer, least in LEAST_TIMES.items():
            bars.append(
                at_least(
                    f"{network}: smaller than {peer}, {way}",
                    least,
                    metrics[f"{network}/{way}/smaller than {peer}"],
                    "x",
                )
            )
        beside, error = (metrics[f"{network}/{way}/{what} beside 4 bits"].value for what in ("mean", "error"))
        bars.append(
            Bar(
                name=f"{network}: accuracy beside 4 bits, mean of the seeds, {way}",
                required=">= 0 pt, less the standard error",
                reached=beside,
                passed=beside >= -error,
            )
        )
        wide = max((key for key in metrics if key.startswith(f"{network}, ")), key=_width).split("/")[0]
        slower = metrics[f"{wide}/{HEADLINE}/times"].value
        bars.append(_at_most(f"{wide}: time of a step beside exact, {HEADLINE}", MOST_SLOWER, slower))
        for way in COMPARED[network]:
            ratios = [
                m.value
                for key, m in metrics.items()
                if key.startswith(f"noise/{network}/{way}/") and key.endswith("own")
            ]
            worst = max(ratios, key=lambda ratio: abs(ratio - 1))
            bars.append(
                Bar(
                    name=f"{network}: noise of a gradient over its prediction, worst of {len(ratios)} layers, {way}",
                    required=f"within {100 * MOST_OFF:g} %",
                    reached=worst,
                    passed=abs(worst - 1) <= MOST_OFF,
                )
            )
        for key in [key for key in metrics if key.startswith(f"batch/{network}/") and key.endswith("/images")]:
            way = key.split("/")[2]
            within, over = (
                metrics[f"batch/{network}/{way}/of the budget{more}"].value for more in ("", ", 5 % more images")
            )
            bars.append(
                Bar(
                    name=f"{network}: the batch fits and 5 % more do not, {way}",
                    required="<= 1 of the budget, then > 1",
                    reached=within,
                    passed=within <= 1 < over,
                )
            )
    return bars


def _width(key: str) -> int:
    return int(key.split(", ")[1].split(" ")[0])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = harness.parse("activations", __doc__, argv)
    record = run("small" if options.quick else "trained", options)
    print(activation_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
