"""What a change of weights does to a model's outputs, in a smooth measure that needs no labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch

from trimtab.errors import UsageError

Measure = Literal["kl", "mse"]

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a call of the model, by position and by name."""


def as_calls(batches: Any) -> list[Call]:
    """Return calibration batches as calls: a batch is one argument, a tuple of them, or a mapping of named ones.

    A single tensor is one batch.

    Raises:
        UsageError: there is none.
    """
    if isinstance(batches, torch.Tensor):
        batches = [batches]
    if not isinstance(batches, Iterable):
        raise UsageError(f"calibration takes a batch of inputs or a list of them, got {type(batches).__name__}")
    calls: list[Call] = []
    for batch in batches:
        if isinstance(batch, Mapping):
            calls.append(((), dict(batch)))
        else:
            calls.append((tuple(batch) if isinstance(batch, tuple | list) else (batch,), {}))
    if not calls:
        raise UsageError("calibration holds no batch")
    return calls


class Recorder:
    """Keeps the first inputs that a model is called with, up to `num_samples` rows of their first tensors."""

    def __init__(self, num_samples: int) -> None:
        self.calls: list[Call] = []
        self._left = num_samples

    def watch(self, model: torch.nn.Module, run: Callable[[torch.nn.Module], Any]) -> Any:
        """Return what ``run(model)`` does, and record its calls of the model meanwhile."""
        hook = model.register_forward_pre_hook(self._record, with_kwargs=True)
        try:
            return run(model)
        finally:
            hook.remove()

    def _record(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = next((len(x) for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.ndim), 1)
        if self._left <= 0:
            return

        def head(x: Any) -> Any:
            batched = isinstance(x, torch.Tensor) and x.ndim > 0 and len(x) == rows
            return x[: self._left].detach().clone() if batched else x

        self.calls.append((tuple(map(head, args)), {name: head(x) for name, x in kwargs.items()}))
        self._left -= rows


class Divergence:
    """How far a model's outputs are from those that it gives when this object is made."""

    def __init__(self, model: torch.nn.Module, calls: list[Call], measure: Measure) -> None:
        self._calls, self._measure = calls, measure
        self._expected = [output.clone() for output in self._outputs(model)]
        if measure == "kl" and any(output.shape[-1:] in ((), (1,)) for output in self._expected):
            raise UsageError(
                "the model's outputs have no axis of classes, so their Kullback-Leibler divergence means nothing; "
                'choose DeepSZ(measure="mse")'
            )

    def __call__(self, model: torch.nn.Module) -> float:
        """Return the mean over all outputs.

        With "kl" that of the Kullback-Leibler divergence in nats, of the softmax over the last axis; with "mse" that of
        the squared difference over that of the expected outputs.
        """
        total = weight = 0.0
        for expected, found in zip(self._expected, self._outputs(model), strict=True):
            if self._measure == "kl":
                p, q = expected.log_softmax(-1), found.log_softmax(-1)
                total += float((p.exp() * (p - q)).sum())
                weight += expected.numel() / expected.shape[-1]
            else:
                total += float((expected - found).square().sum())
                weight += float(expected.square().sum())
        return total / weight if weight else math.nan

    @torch.no_grad()
    def _outputs(self, model: torch.nn.Module) -> Iterable[torch.Tensor]:
        for args, kwargs in self._calls:
            yield _tensor(model(*args, **kwargs)).float()


def _tensor(output: Any) -> torch.Tensor:
    """Return the first floating-point tensor of a model's output, "logits" before others.

    Raises:
        UsageError: there is none.
    """
    if isinstance(output, torch.Tensor) and output.is_floating_point():
        return output
    if isinstance(output, Mapping):
        output = [output["logits"], *output.values()] if "logits" in output else list(output.values())
    if isinstance(output, tuple | list):
        for part in output:
            if isinstance(part, torch.Tensor) and part.is_floating_point():
                return part
    raise UsageError(f"the model returns {type(output).__name__}; expected a floating-point tensor, or some of them")
