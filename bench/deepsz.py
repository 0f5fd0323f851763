"""DeepSZ on LeNet-300-100 and LeNet-5, Fashion-MNIST: how small, whether the budget holds, and how fast.

Each network is trained, and pruned with retraining, from ten seeds; DeepSZ then runs under ten budgets. The budget is
checked on 5,000 images held out of the training set, on the file as it is read back; what the same files lose on the
10,000 test images, which nothing was chosen by, is reported beside it. Bounds are assessed on other images still.
Needs Fashion-MNIST, see `bench.networks`; training takes about half an hour, once.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import trimtab as tt
from bench import harness
from bench.harness import Options, at_least, exact, metric
from bench.networks import RECIPES, Images, Split, Trained, epochs, images, trained
from bench.pruned import (
    SZ3_SETTINGS,
    Coded,
    deep_compression,
    elias_fano_bytes,
    gap_entropy_bytes,
    gap_huffman_bytes,
    sz3,
    zstd_bytes,
)
from bench.tables import deepsz_tables
from trimtab.codecs import Sparse
from trimtab.compact import Compacted, DeepSZ
from trimtab.compact import load as load_model
from trimtab.records import Bar, Metric, Record

BUDGETS = tuple(round(0.001 * n, 3) for n in range(1, 11))
"""Losses of accuracy: 0.1 to 1.0 points."""
HEADLINE = 0.003
"""The paper's budget, at which ratios and rivals are compared."""
CONFIDENT = ("LeNet-300-100", 0.95)
"""The network whose budgets are also asked to hold with this confidence, for images like those that are checked."""
NUM_SEEDS = 10
LEAST_RATIOS = {"LeNet-300-100": 57.0, "LeNet-5": 56.0}
_EQUAL = 0.001  # losses of accuracy below this count as equal: five of the images that are checked


def run(networks: Mapping[str, Sequence[Trained]], data: Images, options: Options) -> Record:
    """Measure the networks, each trained from several seeds, and return the record."""
    metrics: dict[str, Metric] = {}
    subjects: dict[str, Any] = {}
    budgets = BUDGETS if not options.quick else (HEADLINE,)
    with tt.threads(1):
        for name, found in networks.items():
            curves = [_frontier(network, data, budgets) for network in found]
            pairs = list(zip(found, curves, strict=True))
            cases = [_case(network, data, small) for network, curve in pairs for small in curve]
            subjects[name] = {"num_seeds": len(found), "cases": cases}
            metrics |= _ratios(name, cases, budgets) | _margins(name, cases)
            metrics |= _accuracies(name, found, data)
            metrics |= _rivals(name, found, [curve[budgets.index(HEADLINE)] for curve in curves], data)
            if name == CONFIDENT[0]:
                metrics |= _confident(name, found, data, budgets)
            metrics |= _places(name, found)
            metrics |= _speeds(name, found[0], data, options)
        metrics |= _large_decode(options)
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch", "pysz", "zstandard"),
        seed=0,
        data={
            "images": {part: len(getattr(data, part).labels) for part in ("train", "calibration", "check", "test")},
            "subjects": subjects,
        },
        architecture={name: str(recipe.make()) for name, recipe in RECIPES.items() if name in networks},
        optimization={
            name: {"dense_epochs": recipe.dense, "pruning_epochs": recipe.sparse, "keep": recipe.keep}
            for name, recipe in RECIPES.items()
            if name in networks
        },
        inference={"num_threads": 1, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=_bars(networks, metrics, len(budgets)),
    )


def compact(network: Trained, data: Images, budget: float) -> Compacted:
    """Return a pruned network under one budget."""
    return DeepSZ(max_drop=budget)(network.pruned, data.check.correct, calibration=_calibration(data))


def _frontier(
    network: Trained, data: Images, budgets: Sequence[float], confidence: float | None = None
) -> list[Compacted]:
    settings = DeepSZ(max_drop=max(budgets), confidence=confidence)
    return settings.frontier(network.pruned, data.check.correct, budgets, calibration=_calibration(data))


def _calibration(data: Images) -> torch.Tensor:
    return data.calibration.images[:256]


def _case(network: Trained, data: Images, small: Compacted) -> dict[str, float]:
    """Return what one network comes to under one budget, as it is read back from the file."""
    with tempfile.TemporaryDirectory() as folder:
        small.save(Path(folder) / "m.tt")
        size = (Path(folder) / "m.tt").stat().st_size
        model = load_model(Path(folder) / "m.tt", copy.deepcopy(network.pruned))
    report = small.report
    weights = [entry for entry in report["tensors"].values() if len(entry["shape"]) > 1]
    linear = [entry for entry in weights if len(entry["shape"]) == 2]
    return {
        "budget": report["max_drop"],
        "ratio": report["model_bytes"] / size,
        "linear_ratio": sum(e["bytes"] for e in linear) / sum(e["packed_bytes"] for e in linear),
        "file_bytes": size,
        **_drops(network, data, model),
    }


def _drops(network: Trained, data: Images, model: nn.Module) -> dict[str, float]:
    """Return the loss of accuracy on both splits, against the pruned and the dense network."""
    return {
        f"{split}_drop_{base}": _accuracy(getattr(network, base), getattr(data, split)) - score
        for split in ("check", "test")
        for score in [float(getattr(data, split).correct(model).mean())]
        for base in ("pruned", "dense")
    }


@cache
def _accuracy(model: nn.Module, split: Split) -> float:
    """Return the accuracy of a network that stays as it is."""
    return float(split.correct(model).mean())


def _ratios(name: str, cases: Sequence[Mapping[str, float]], budgets: Sequence[float]) -> dict[str, Metric]:
    metrics = {}
    for budget in budgets:
        some = [case for case in cases if case["budget"] == budget]
        key = f"{name}/{100 * budget:.1f} pt"
        metrics[f"{key}/ratio"] = metric([case["ratio"] for case in some], "x")
        metrics[f"{key}/linear_ratio"] = metric([case["linear_ratio"] for case in some], "x")
        for split in ("check", "test"):
            for base in ("pruned", "dense"):
                what = f"{split}_drop_{base}"
                metrics[f"{key}/{what}"] = metric([100 * case[what] for case in some], "pt")
    return metrics


def _margins(name: str, cases: Sequence[Mapping[str, float]]) -> dict[str, Metric]:
    """Return in how many cases the budget holds, on the split that it is about and on the other."""
    held = {split: sum(case[f"{split}_drop_pruned"] <= case["budget"] for case in cases) for split in ("check", "test")}
    surplus = [100 * (case["test_drop_pruned"] - case["check_drop_pruned"]) for case in cases]
    return {
        f"{name}/cases": exact(len(cases), "cases"),
        f"{name}/cases_within": exact(held["check"], "cases"),
        f"{name}/cases_within_on_test": exact(held["test"], "cases"),
        f"{name}/test_over_check": metric(surplus, "pt"),
        f"{name}/cases_within_against_dense": exact(
            sum(case["check_drop_dense"] <= case["budget"] for case in cases), "cases"
        ),
    }


def _accuracies(name: str, found: Sequence[Trained], data: Images) -> dict[str, Metric]:
    metrics = {}
    for split_name, split in (("check", data.check), ("test", data.test)):
        for what in ("dense", "pruned"):
            scores = [100 * _accuracy(getattr(network, what), split) for network in found]
            metrics[f"{name}/accuracy/{what}_{split_name}"] = metric(scores, "%")
    return metrics


def _rivals(name: str, found: Sequence[Trained], curve: Sequence[Compacted], data: Images) -> dict[str, Metric]:
    """Return how rivals pack the same pruned weights, biases aside; `curve` is ours at the headline's budget.

    SZ3 packs within the bounds that ours chose. Deep Compression, counted in two ways, is compared with ours at the
    budget that it comes to.
    """
    gains: dict[str, list[float]] = {}
    for network, ours in zip(found, curve, strict=True):
        weights = {n: p.detach().numpy() for n, p in network.pruned.named_parameters() if p.ndim > 1}
        total = sum(x.nbytes for x in weights.values())
        huffman, clusters = (deep_compression(weights)[way] for way in ("Huffman", "entropies"))
        clusters_drop = _drop(network, data, clusters)
        equal = compact(network, data, max(clusters_drop, _EQUAL))
        reached = {
            "ours": total / _weight_bytes(ours),
            "ours_drop": 100 * ours.report["drop"],
            "Deep Compression": total / clusters.num_bytes,
            "Deep Compression_drop": 100 * clusters_drop,
            "Deep Compression_times": clusters.num_bytes / _weight_bytes(equal),
            "Deep Compression, Huffman": total / huffman.num_bytes,
            "Deep Compression, Huffman_drop": 100 * clusters_drop,
            "Deep Compression, Huffman_times": huffman.num_bytes / _weight_bytes(equal),
            "equal": total / _weight_bytes(equal),
            "equal_drop": 100 * equal.report["drop"],
            "lossless": total / sum(Sparse().encode(x).num_bytes for x in weights.values()),
            "zstd": total / zstd_bytes(weights),
        }
        if all(peer.unavailable() is None for peer in SZ3_SETTINGS):
            their = sz3(weights, {n: ours.report["tensors"][n]["bound"] for n in weights})
            reached |= {
                "SZ3": total / their.num_bytes,
                "SZ3_drop": 100 * _drop(network, data, their),
                "SZ3_times": their.num_bytes / _weight_bytes(ours),
            }
        for what, value in reached.items():
            gains.setdefault(what, []).append(value)
    units = {what: "pt" if what.endswith("drop") else "x" for what in gains}
    return {f"{name}/rivals/{what}": metric(values, units[what]) for what, values in gains.items()}


def _drop(network: Trained, data: Images, coded: Coded) -> float:
    """Return what the pruned network loses on the split for budgets with the weights of a rival."""
    model = copy.deepcopy(network.pruned)
    model.load_state_dict({n: torch.from_numpy(x) for n, x in coded.weights.items()}, strict=False)
    return _accuracy(network.pruned, data.check) - float(data.check.correct(model).mean())


def _confident(name: str, found: Sequence[Trained], data: Images, budgets: Sequence[float]) -> dict[str, Metric]:
    """Return how often budgets hold on the test split where they are asked to hold with confidence; some cannot."""
    within, ratios, num_cases = 0, [], 0
    for network in found:
        for small in _frontier(network, data, budgets, CONFIDENT[1]):
            within += _drops(network, data, small.model)["test_drop_pruned"] <= small.report["max_drop"]
            ratios.append(small.report["ratio"])
            num_cases += 1
    return {
        f"{name}/confident/cases": exact(num_cases, "cases"),
        f"{name}/confident/cases_within_on_test": exact(within, "cases"),
        f"{name}/confident/ratio": metric(ratios, "x"),
    }


def _weight_bytes(small: Compacted) -> int:
    return sum(entry["packed_bytes"] for entry in small.report["tensors"].values() if len(entry["shape"]) > 1)


def _places(name: str, found: Sequence[Trained]) -> dict[str, Metric]:
    """Return how many bytes it takes to say where the weights are, by several codes."""
    codes: dict[str, list[float]] = {}
    for network in found:
        weights = [p.detach().numpy() for p in network.pruned.parameters() if p.ndim > 1]
        masks = [x != 0 for x in weights]
        shares = [(mask.size, mask.mean()) for mask in masks]
        for what, value in {
            "contexts": sum(Sparse().encode(x).buffers["data"].size for x in weights),
            "gaps, Huffman": sum(map(gap_huffman_bytes, masks)),
            "gap entropy": sum(map(gap_entropy_bytes, masks)),
            "Elias-Fano": sum(map(elias_fano_bytes, masks)),
            "random places": sum(-n * (p * np.log2(p) + (1 - p) * np.log2(1 - p)) / 8 for n, p in shares),
            "bitmap": sum(mask.size / 8 for mask in masks),
        }.items():
            codes.setdefault(what, []).append(float(value))
    return {f"{name}/places/{what}": metric(values, "bytes") for what, values in codes.items()}


def _speeds(name: str, network: Trained, data: Images, options: Options) -> dict[str, Metric]:
    """Return what a run takes beside an epoch of training, in alternating rounds, and how fast a file is decoded."""
    train = epochs(data.train, 1, seed=0)
    model = copy.deepcopy(network.dense)
    runs, shares = [], []
    for _ in range(1 if options.quick else 3):
        seconds = _cpu_seconds(lambda: compact(network, data, HEADLINE))
        shares.append(seconds / _cpu_seconds(lambda: train(model, 0)))
        runs.append(seconds)
    small = compact(network, data, HEADLINE)
    with tempfile.TemporaryDirectory() as folder:
        small.save(Path(folder) / "m.tt")
        decoded = small.report["model_bytes"]
        times = [
            _cpu_seconds(lambda: list(tt.load(Path(folder) / "m.tt").values())) for _ in range(options.num_rounds + 1)
        ][1:]
    return {
        f"{name}/seconds": metric(runs, "s"),
        f"{name}/seconds_in_epochs": metric(shares, "epochs"),
        f"{name}/decode": metric([decoded / 1e6 / seconds for seconds in times], "MB/s"),
    }


def _large_decode(options: Options) -> dict[str, Metric]:
    """Return how fast a synthetic layer of 4096 x 4096 weights, of which 9 % are left, is decoded."""
    size = 1024 if options.quick else 4096
    x = np.random.default_rng(0).standard_normal((size, size), np.float32)
    x[np.abs(x) < statistics.NormalDist().inv_cdf(1 - 0.09 / 2)] = 0
    blob = tt.compress(x, tt.Abs(0.2), codec=Sparse())
    out = np.empty_like(x)
    times = [_cpu_seconds(lambda: tt.decompress(blob, out=out)) for _ in range(options.num_rounds + 1)][1:]
    return {f"synthetic {size} x {size}, 9 %/decode": metric([x.nbytes / 1e6 / seconds for seconds in times], "MB/s")}


def _cpu_seconds(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def _bars(networks: Mapping[str, Sequence[Trained]], metrics: Mapping[str, Metric], num_budgets: int) -> list[Bar]:
    bars = []
    for name, found in networks.items():
        headline = f"{name}/{100 * HEADLINE:.1f} pt"
        kind = "fully connected" if name == "LeNet-300-100" else "whole model"
        num_cases = len(found) * num_budgets
        epoch_share = metrics[f"{name}/seconds_in_epochs"].value
        bars += [
            at_least(
                f"{name}, {kind}, Fashion-MNIST: ratio of the file at a budget of {100 * HEADLINE:.1f} pt",
                LEAST_RATIOS[name],
                metrics[f"{headline}/ratio"],
                "x",
            ),
            at_least(f"{name}: cases of {num_cases} within the budget", num_cases, metrics[f"{name}/cases_within"]),
            at_least(
                f"{name}: entropies of Deep Compression over our bytes, at equal accuracy",
                1.25,
                metrics[f"{name}/rivals/Deep Compression_times"],
                "x",
            ),
            at_least(
                f"{name}: bytes of SZ3 over ours, same weights and bounds",
                1.05,
                metrics.get(f"{name}/rivals/SZ3_times"),
                "x",
            ),
            at_least(f"{name}: decoding speed of the file", 200, metrics[f"{name}/decode"], " MB/s"),
            Bar(
                name=f"{name}: a run of DeepSZ in epochs of training",
                required="<= 0.5",
                reached=epoch_share,
                passed=epoch_share <= 0.5,
            ),
        ]
    large = next(key for key in metrics if key.startswith("synthetic"))
    bars.append(at_least(f"{large.removesuffix('/decode')}: decoding speed", 200, metrics[large], " MB/s"))
    return bars


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("deepsz", __doc__, argv)
    torch.set_num_threads(1)
    seeds = range(1 if options.quick else NUM_SEEDS)
    networks = {name: [trained(name, seed) for seed in seeds] for name in RECIPES}
    record = run(networks, images(), options)
    print(deepsz_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
