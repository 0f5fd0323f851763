"""The ways of keeping activations that `bench.activations` compares, by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from bench.activation_networks import Trainer
from bench.activation_peers import BFloat16, Groups, Keeper
from trimtab.train import COMET
from trimtab.train.compressed import CompressedActivations

NUM_SEGMENTS = 4
"""Of a network with checkpoints."""
UPDATE_EVERY = 50
"""Steps after which bounds are chosen anew: runs here are short."""


@dataclass(frozen=True, slots=True)
class Way:
    """How activations are kept; `keep` returns the context of the steps of one trainer."""

    note: str
    keep: Callable[[Trainer], AbstractContextManager]


def _checkpoints(trainer: Trainer) -> AbstractContextManager:
    """Have the network keep the inputs of its segments only, and compute the rest again."""
    layers = list(trainer.model.children())
    trainer.model.forward = partial(_in_segments, layers)
    return nullcontext()


def _in_segments(layers: list[nn.Module], x: Tensor) -> Tensor:
    return checkpoint_sequential(layers, NUM_SEGMENTS, x, use_reentrant=False)


def _comet(**settings: Any) -> Callable[[Trainer], AbstractContextManager]:
    whole = COMET(**({"update_every": UPDATE_EVERY} | settings))
    return lambda trainer: whole(trainer.model, trainer.optimizer)


EXACT, CHECKPOINTS, HEADLINE, FORERUNNER = "exact", "checkpoints", "COMET, 6x", "COMET, 13x, fixed"
WAYS: dict[str, Way] = {
    EXACT: Way("float32, as PyTorch keeps it", lambda _: nullcontext()),
    "bfloat16": Way(
        "values in 16 bits; masks and indices as in COMET; one seed", lambda trainer: Keeper(trainer.model, BFloat16())
    ),
    "4 bits": Way(
        "stochastic rounding, groups of 256, after ActNN; masks and indices as in COMET",
        lambda trainer: Keeper(trainer.model, Groups(4, trainer.seed)),
    ),
    "2 bits": Way("the same with 2 bits; one seed", lambda trainer: Keeper(trainer.model, Groups(2, trainer.seed))),
    HEADLINE: Way("`COMET(memory_ratio=6)`", _comet(memory_ratio=6)),
    "COMET, 13x": Way("`COMET(memory_ratio=13)`", _comet(memory_ratio=13)),
    "COMET, 21x": Way("`COMET(memory_ratio=21)`", _comet(memory_ratio=21)),
    FORERUNNER: Way("`COMET(memory_ratio=13, adaptive=False)`", _comet(memory_ratio=13, adaptive=False)),
    CHECKPOINTS: Way(f"`torch.utils.checkpoint` in {NUM_SEGMENTS} segments; bytes are not counted", _checkpoints),
}
"""Name -> way."""


def counts(keeping: AbstractContextManager) -> dict[str, Any]:
    """Return the bytes of the last step: saved by exact training, kept instead, and both by function.

    Empty where nothing is counted.
    """
    if isinstance(keeping, Keeper):
        saved, kept, functions = keeping.saved_bytes, keeping.kept_bytes, keeping.by_function
    elif isinstance(keeping, CompressedActivations):
        report = keeping.report
        saved, kept = report["saved_bytes_before"], report["saved_bytes_after"]
        functions = {name: [f["before_bytes"], f["after_bytes"]] for name, f in report["functions"].items()}
    else:
        return {}
    return {"saved_bytes": saved, "kept_bytes": kept, "functions": functions}
