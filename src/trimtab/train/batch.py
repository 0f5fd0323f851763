"""The largest batch under a byte budget, from measured bytes per sample (COMET's forerunner, arXiv 2011.09017, 2020).

Trying batches until memory runs out is slow, and on a CPU it ends the process. What a step saves grows evenly with the
batch: two small steps give the line, and steps at the size that it foretells verify it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.errors import NoFeasibleChoice, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trimtab.train.compressed import CompressedActivations

_CLOSE = 0.98  # of the budget: nearer is not looked for
_MOST_TRIALS = 6


@dataclass(frozen=True)
class BatchChoice:
    """The largest batch under a budget."""

    batch_size: int
    num_bytes: int
    """What a step of this size keeps for the backward pass, measured."""
    samples_per_second: float
    """Of a step of this size, the faster of two: forward and backward passes, without the optimizer's step."""
    report: dict[str, Any]
    """The budget, the steps that were run (batch, bytes, seconds), and the line through bytes."""

    def __repr__(self) -> str:
        return (
            f"BatchChoice({self.batch_size} samples, {self.num_bytes} of {self.report['budget_bytes']} bytes, "
            f"{self.samples_per_second:.4g} samples a second)"
        )


def largest_batch(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    budget: int,
    comet: CompressedActivations | None = None,
    probes: tuple[int, int] = (8, 32),
    largest: int = 1 << 20,
) -> BatchChoice:
    """Return the largest batch whose saved tensors fit `budget` bytes.

    ``loss(batch_size)`` runs the forward pass of a batch of this size and returns the loss; the backward pass is run
    here. Bytes are those that plain training retains, or, with `comet`, those that are kept in their place, at the
    bounds that it has by now: let it train for some steps first. Model, gradients, `comet` and the global generators
    stay as they are.

    Raises:
        NoFeasibleChoice: not even one sample fits.
        UsageError: an argument makes no sense.
    """
    few, many = probes
    if not 1 <= few < many <= largest:
        raise UsageError(f"probes={probes!r}, largest={largest!r}; expected two ascending sizes up to the largest")
    if budget < 1:
        raise UsageError(f"budget must be a positive number of bytes, got {budget!r}")
    trials: dict[int, tuple[int, float]] = {}

    def measure(size: int) -> int:
        trials[size] = _measure(model, loss, size, comet)
        return trials[size][0]

    line = _line((few, measure(few)), (many, measure(many)))
    for _ in range(_MOST_TRIALS):
        fitting = [size for size, (num_bytes, _) in trials.items() if num_bytes <= budget]
        failing = [size for size, (num_bytes, _) in trials.items() if num_bytes > budget]
        best, worst = max(fitting, default=0), min(failing, default=largest + 1)
        if best == min(worst - 1, largest) or (best and trials[best][0] >= _CLOSE * budget):
            break
        aim = math.floor((budget - line[0]) / line[1]) if line[1] > 0 else largest
        size = min(max(aim, best + 1), worst - 1)
        line = _line((many if size != many else few, trials[many if size != many else few][0]), (size, measure(size)))
    fitting = [size for size, (num_bytes, _) in trials.items() if num_bytes <= budget]
    if not fitting:
        least = min(trials)
        raise NoFeasibleChoice(
            f"a batch of {least} keeps {trials[least][0]} bytes, over the budget of {budget}; "
            "raise the budget, or compress more (COMET's memory_ratio)"
        )
    best = max(fitting)
    num_bytes, seconds = trials[best]
    report = {
        "budget_bytes": budget,
        "trials": [{"batch": size, "bytes": b, "seconds": s} for size, (b, s) in sorted(trials.items())],
        "fixed_bytes": line[0],
        "bytes_per_sample": line[1],
    }
    return BatchChoice(best, num_bytes, best / seconds, report)


def _line(a: tuple[int, float], b: tuple[int, float]) -> tuple[float, float]:
    """Return intercept and slope of the line through two points."""
    slope = (b[1] - a[1]) / (b[0] - a[0])
    return a[1] - slope * a[0], slope


def _measure(
    model: nn.Module, loss: Callable[[int], Tensor], size: int, comet: CompressedActivations | None
) -> tuple[int, float]:
    """Return the bytes that a step keeps, and the seconds of the faster of two."""
    from trimtab.train.activations import COMET
    from trimtab.train.compressed import CompressedActivations
    from trimtab.train.trial import gradients, undisturbed

    num_bytes, seconds = 0, math.inf
    for _ in range(2):
        trial = CompressedActivations(COMET(), model, counting=True) if comet is None else comet.twin(measuring=False)
        with undisturbed(model):
            begun = time.perf_counter()
            gradients(model, lambda: loss(size), trial)
            seconds = min(seconds, time.perf_counter() - begun)
        num_bytes = trial.report["saved_bytes_after"]
    return num_bytes, seconds
