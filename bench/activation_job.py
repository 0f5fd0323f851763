"""One job of `bench.activations`, in a process of its own: see `bench.activation_runs`."""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import trimtab as tt
from bench.activation_networks import NETWORKS, SCALES, Scale, Trainer
from bench.activation_peers import BFloat16, Keeper
from bench.activation_ways import WAYS, counts
from bench.networks import images
from bench.resident import Watch, give_back_freed_memory, reset_peak, resident
from trimtab.train import largest_batch
from trimtab.train.compressed import CompressedActivations

NUM_ROUNDS, NUM_BLOCK = 9, 2
"""Turns of each way where steps are timed, and the steps of a turn."""
NUM_WARM_UP = 12
"""Steps before anything is timed, watched or compared: momentum and bounds are there by then."""
NUM_WATCHED = 5
"""Steps whose resident memory is watched."""
NUM_LEARNT, NUM_COMPARED = 60, 8
"""Steps before errors of gradients are compared, and batches on which they are."""
BUDGET = 16 << 20
"""Bytes that a batch may keep."""


class Kept:
    """A trainer whose steps run in one way."""

    def __init__(self, way: str, network: str, scale: Scale, seed: int) -> None:
        self.trainer = Trainer(network, scale, seed)
        self.keeping: AbstractContextManager = WAYS[way].keep(self.trainer)

    def steps(self, num: int) -> list[float]:
        """Train, and return the losses."""
        return [self.trainer.step(lambda: self.keeping) for _ in range(num)]


def accuracy(network: str, ways: Sequence[str], scale: Scale, seed: int) -> dict[str, Any]:
    """Train; return the accuracy on test images, the losses, and the bytes of every few steps."""
    kept = Kept(ways[0], network, scale, seed)
    begun, losses, kept_bytes = time.process_time(), [], []
    for step in range(scale.num_steps):
        losses += kept.steps(1)
        if step % 10 == 0 and "kept_bytes" in (found := counts(kept.keeping)):
            kept_bytes.append((found["saved_bytes"], found["kept_bytes"]))
    return {
        "cpu_seconds": time.process_time() - begun,
        "accuracy": kept.trainer.accuracy(),
        "losses": losses,
        "num_parameters": sum(p.numel() for p in kept.trainer.model.parameters()),
        "bytes": kept_bytes,
        **counts(kept.keeping),
    }


def steps(network: str, ways: Sequence[str], scale: Scale, seed: int) -> dict[str, Any]:
    """Train in several ways by turns; return seconds a step, of the wall and of the processor."""
    runs = {way: Kept(way, network, scale, seed) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for run in runs.values():
        run.steps(NUM_WARM_UP)
    for number in range(NUM_ROUNDS):
        for way in random.Random(number).sample(list(ways), len(ways)):
            gc.collect()
            begun, busy = time.perf_counter(), time.process_time()
            runs[way].steps(NUM_BLOCK)
            cpu[way].append((time.process_time() - busy) / NUM_BLOCK)
            seconds[way].append((time.perf_counter() - begun) / NUM_BLOCK)
    return {"seconds": seconds, "cpu_seconds": cpu, "bytes": {way: counts(run.keeping) for way, run in runs.items()}}


def memory(network: str, ways: Sequence[str], scale: Scale, seed: int) -> dict[str, Any]:
    """Watch this process through steps; return resident bytes before each and at its peak, and those of one by time."""
    give_back_freed_memory()
    kept = Kept(ways[0], network, scale, seed)
    kept.steps(NUM_WATCHED)
    befores, peaks, marks = [], [], []
    with tempfile.TemporaryDirectory() as folder, Watch(os.getpid(), Path(folder)) as watch:
        for _ in range(NUM_WATCHED):
            x, labels = kept.trainer.batch()
            gc.collect()
            reset_peak()
            befores.append(resident()[0])
            begun = time.monotonic()
            with kept.keeping:
                loss = nn.functional.cross_entropy(kept.trainer.model(x), labels)
                forward = time.monotonic()
                loss.backward()
            marks.append((begun, forward, time.monotonic()))
            peaks.append(resident()[1])
            del loss
            kept.trainer.optimizer.zero_grad()
    begun, forward, end = marks[-1]
    points = [(at - begun, num_bytes) for at, num_bytes in watch.points if begun <= at <= end]
    return {
        "before_bytes": befores,
        "peak_bytes": peaks,
        "points": points,
        "forward_seconds": forward - begun,
        "seconds": end - begun,
        **counts(kept.keeping),
    }


def noise(network: str, ways: Sequence[str], scale: Scale, seed: int) -> dict[str, Any]:
    """Compare, layer by layer, the errors of gradients with their prediction, over several batches.

    Returns for each layer three lists, a number a batch: the standard deviation that the error of this layer's own
    input makes, everything else being exact; the predicted one; and that of a whole step, in which errors of
    BatchNorm's gradients come from the layers behind.
    """
    kept = Kept(ways[0], network, scale, seed)
    kept.steps(NUM_LEARNT)
    comet, model = kept.keeping, kept.trainer.model
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(NUM_COMPARED):
        x, labels = kept.trainer.batch()
        checked = comet.check(lambda x=x, labels=labels: nn.functional.cross_entropy(model(x), labels))
        for name, numbers in checked.items():
            entry = found.setdefault(name, {key: [] for key in _CHECKED})
            for key, checked_as in _CHECKED.items():
                entry[key].append(numbers[checked_as])
    layers = comet.report["layers"]
    return {"layers": found, "kinds": {name: layers[name]["function"] for name in found}, **counts(comet)}


_CHECKED = {"own": "measured", "predicted": "predicted", "whole step": "whole_step", "gradient": "gradient"}


def batch(network: str, ways: Sequence[str], scale: Scale, seed: int) -> dict[str, Any]:
    """Find the largest batch under a budget in several ways; return it, what a larger one takes, and images a second.

    Steps of the ways, each at its own largest batch, take turns.
    """
    found: dict[str, Any] = {}
    runs: dict[str, Kept] = {}
    for way in ways:
        run = Kept(way, network, scale, seed)
        run.steps(NUM_WARM_UP)
        comet = run.keeping if isinstance(run.keeping, CompressedActivations) else None
        model = run.trainer.model

        def loss(size: int, model: nn.Module = model) -> torch.Tensor:
            train = images().train
            return nn.functional.cross_entropy(model(train.images[:size].clone()), train.labels[:size].clone())

        choice = largest_batch(model, loss, budget=BUDGET, comet=comet)
        more = math.ceil(1.05 * choice.batch_size)
        taken, too_many = (_bytes(model, loss, size, comet) for size in (choice.batch_size, more))
        found[way] = {
            "batch": choice.batch_size,
            "predicted_bytes": choice.num_bytes,
            "predicted_speed": choice.samples_per_second,
            "bytes": taken,
            "more": more,
            "more_bytes": too_many,
            "trials": choice.report["trials"],
            "speed": [],
        }
        large = replace(scale, batch=choice.batch_size, num_images=max(scale.num_images, choice.batch_size))
        runs[way] = Kept(way, network, large, seed)
        runs[way].steps(3)
    for number in range(NUM_ROUNDS):
        for way in random.Random(number).sample(list(ways), len(ways)):
            # turns of about as many images
            num = max(round(max(entry["batch"] for entry in found.values()) / found[way]["batch"]), 1)
            begun = time.perf_counter()
            runs[way].steps(num)
            found[way]["speed"].append(num * found[way]["batch"] / (time.perf_counter() - begun))
    return {"budget": BUDGET, "ways": found}


def _bytes(
    model: nn.Module, loss: Callable[[int], torch.Tensor], size: int, comet: CompressedActivations | None
) -> int:
    """Return the bytes that a step keeps: counted here where nothing is compressed, told by COMET's report else.

    COMET's bounds are those by which the batch was chosen: of a twin, which does not go on to choose others.
    """
    keeping = comet.twin(measuring=False) if comet else Keeper(model, BFloat16())
    with keeping:
        loss(size).backward()
    return keeping.saved_bytes if isinstance(keeping, Keeper) else keeping.report["saved_bytes_after"]


JOBS = {"accuracy": accuracy, "steps": steps, "memory": memory, "noise": noise, "batch": batch}


def main() -> None:
    """Do what the command line says, and write what came of it."""
    parser = argparse.ArgumentParser(prog="python -m bench.activation_job", description=__doc__)
    parser.add_argument("kind", choices=JOBS)
    parser.add_argument("--scale", choices=SCALES, required=True)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--ways", nargs="+", choices=WAYS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tt.threads(1):
        found = JOBS[args.kind](args.network, args.ways, SCALES[args.scale], args.seed)
    args.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
