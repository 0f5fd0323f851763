"""LeNet-300-100 and LeNet-5, trained on Fashion-MNIST: what DeepSZ is measured on.

The images are those of the Debian package dataset-fashion-mnist. Networks that were trained once are kept in the
folder .cache/networks of the checkout, which is not tracked.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from examples import fashion_mnist
from trimtab.compact.pruning import keep_rates, prune

CACHE = Path(__file__).parents[1] / ".cache" / "networks"

NUM_TRAINING, NUM_CALIBRATION = 50_000, 5_000
"""Images of the training set to train on, the first ones, and to calibrate on; budgets are checked on the others."""
_BATCH = 125
_RATE = 2e-3


@dataclass(frozen=True, eq=False)
class Split:
    """Images (float32[n, 1, 28, 28], standardised) and labels (int64[n])."""

    images: torch.Tensor
    labels: torch.Tensor

    def correct(self, model: nn.Module) -> np.ndarray:
        """Return for each image whether the model finds its label (bool)."""
        model.eval()
        with torch.inference_mode():
            found = [model(part).argmax(1) for part in self.images.split(250)]
        return (torch.cat(found) == self.labels).numpy()


@dataclass(frozen=True)
class Images:
    """Fashion-MNIST in four parts: `check` is for the budget, `test` for nothing but the report."""

    train: Split
    calibration: Split
    check: Split
    test: Split


@cache
def images() -> Images:
    """Read Fashion-MNIST.

    Raises:
        FileNotFoundError: the images are not there.
    """
    train, test = (
        Split((torch.from_numpy(pixels).float().unsqueeze(1) / 255 - 0.286) / 0.353, torch.from_numpy(labels).long())
        for pixels, labels in map(fashion_mnist.read, ("train", "test"))
    )
    sizes = NUM_TRAINING, NUM_CALIBRATION, len(train.labels) - NUM_TRAINING - NUM_CALIBRATION
    parts = zip(train.images.split(sizes), train.labels.split(sizes), strict=True)
    return Images(*(Split(*part) for part in parts), test)


def lenet_300_100() -> nn.Module:
    """Return LeNet-300-100 (LeCun et al., 1998): 266,610 parameters, fully connected."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet_5() -> nn.Module:
    """Return LeNet-5 as Caffe has it, and DeepSZ: 431,080 parameters, of which 25,570 convolve."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


@dataclass(frozen=True)
class Recipe:
    """How a network is made, trained for `dense` epochs, and pruned to `keep` over `sparse` epochs."""

    make: Callable[[], nn.Module]
    dense: int
    sparse: int
    keep: dict[str, float]


RECIPES = {
    "LeNet-300-100": Recipe(lenet_300_100, 10, 24, {"1.weight": 0.055, "3.weight": 0.10, "5.weight": 0.40}),
    "LeNet-5": Recipe(lenet_5, 3, 5, {"0.weight": 0.7, "2.weight": 0.2, "5.weight": 0.035, "7.weight": 0.2}),
}


@dataclass(frozen=True)
class Trained:
    """A network before and after pruning, and the CPU seconds of an epoch of training."""

    dense: nn.Module
    pruned: nn.Module
    epoch_seconds: float


def trained(name: str, seed: int, recipe: Recipe | None = None, tag: str = "") -> Trained:
    """Return a network of `RECIPES`, trained from `seed`; from the cache where it is there."""
    recipe = recipe or RECIPES[name]
    path = CACHE / f"{name}{tag}-{seed}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        dense, pruned, seconds = _train(recipe, seed)
        torch.save({"dense": dense.state_dict(), "pruned": pruned.state_dict(), "epoch_seconds": seconds}, path)
    kept = torch.load(path, weights_only=True)
    dense, pruned = recipe.make(), recipe.make()
    dense.load_state_dict(kept["dense"])
    pruned.load_state_dict(kept["pruned"])
    return Trained(dense.eval(), pruned.eval(), kept["epoch_seconds"])


def _train(recipe: Recipe, seed: int) -> tuple[nn.Module, nn.Module, float]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = recipe.make()
    begun = time.process_time()
    epoch = epochs(images().train, recipe.dense, seed)
    for number in range(recipe.dense):
        epoch(model, number)
    dense = recipe.make()
    dense.load_state_dict(model.state_dict())
    prune(model, keep_rates(model, recipe.keep), epochs(images().train, recipe.sparse, seed + 1000), recipe.sparse)
    return dense, model, (time.process_time() - begun) / (recipe.dense + recipe.sparse)


def epochs(split: Split, num_epochs: int, seed: int) -> Callable[[nn.Module, int], None]:
    """Return a function that trains a model for one epoch of `num_epochs`: Adam, its rate falling as a cosine."""
    generator = torch.Generator().manual_seed(seed)
    num_steps = len(split.labels) // _BATCH
    optimiser: torch.optim.Optimizer | None = None

    def train(model: nn.Module, epoch: int) -> None:
        nonlocal optimiser
        optimiser = optimiser or torch.optim.Adam(model.parameters(), _RATE, fused=True)
        model.train()
        order = torch.randperm(len(split.labels), generator=generator)
        for step, picked in enumerate(order.split(_BATCH)[:num_steps]):
            done = (epoch + step / num_steps) / num_epochs
            optimiser.param_groups[0]["lr"] = _RATE * 0.5 * (1 + math.cos(math.pi * done))
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(split.images[picked]), split.labels[picked]).backward()
            optimiser.step()

    return train


def main(argv: Sequence[str] | None = None) -> None:
    """Train the networks that are not in the cache yet."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args(argv).seeds
    torch.set_num_threads(1)
    for name in RECIPES:
        for seed in range(seeds):
            network = trained(name, seed)
            share = [100 * images().check.correct(model).mean() for model in (network.dense, network.pruned)]
            print(f"{name} seed {seed}: dense {share[0]:.2f} %, pruned {share[1]:.2f} %", flush=True)


if __name__ == "__main__":
    main()
