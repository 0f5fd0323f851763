"""Pruning by magnitude, step by step, with retraining between the steps.

Han et al., "Learning both weights and connections for efficient neural networks", NeurIPS 2015; the schedule is that
of Zhu and Gupta, "To prune, or not to prune", 2017 (arXiv 1710.01878).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from trimtab.errors import UsageError

_RAMP = 0.6  # the part of the retraining over which weights are taken away; the rest only heals


def keep_rates(model: torch.nn.Module, keep: float | Mapping[str, float]) -> dict[str, float]:
    """Return the part of the weights to keep, by parameter name, each tied parameter once.

    A number stands for every floating-point parameter of two axes and more.

    Raises:
        UsageError: a rate is not above 0 and at most 1, or the model has no such parameter.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    if not isinstance(keep, Mapping):
        keep = {name: keep for name, p in parameters.items() if p.ndim >= 2}
    for name, rate in keep.items():
        if name not in parameters:
            raise UsageError(f"keep names {name!r}; the model has {', '.join(parameters) or 'no parameters'}")
        if not 0 < rate <= 1:
            raise UsageError(f"keep[{name!r}] is {rate!r}; expected a number above 0 and at most 1")
    return dict(keep)


@torch.no_grad()
def magnitude_mask(weight: torch.Tensor, rate: float) -> torch.Tensor:
    """Return where the largest weights are (bool), ``ceil(rate x size)`` of them; zeros are never among them."""
    magnitude = torch.nan_to_num(weight.detach(), nan=torch.inf, posinf=torch.inf, neginf=torch.inf).abs().reshape(-1)
    count = math.ceil(rate * magnitude.numel())
    mask = torch.zeros_like(magnitude, dtype=torch.bool)
    mask[torch.topk(magnitude, count, sorted=False).indices] = True
    return (mask & (magnitude > 0)).reshape(weight.shape)


@contextmanager
def masked(model: torch.nn.Module, masks: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Hold weights at zero where the masks (bool, by parameter name) say False.

    They are set to zero at the beginning, at the end, and after every step of any optimiser of `torch.optim` inside
    the ``with`` block.
    """
    parameters = dict(model.named_parameters())

    @torch.no_grad()
    def clear(*_: object) -> None:
        for name, mask in masks.items():
            parameters[name].masked_fill_(~mask, 0.0)  # a product would leave -0.0 behind, and NaN of infinities

    clear()
    hook = register_optimizer_step_post_hook(clear)
    try:
        yield
    finally:
        hook.remove()
        clear()


def prune(
    model: torch.nn.Module,
    rates: Mapping[str, float],
    retrain: Callable[[torch.nn.Module, int], object] | None,
    num_epochs: int,
) -> None:
    """Prune `model` in place to the `rates` of `keep_rates`, weights that are zero among the first to go.

    ``retrain(model, epoch)`` trains it for one epoch and is called `num_epochs` times, with epoch 0, 1, ...; before
    each of the first 60 % of them weights are taken away, fewer each time. Without `retrain` all go at once.
    """
    parameters = dict(model.named_parameters())
    ramp = math.ceil(_RAMP * num_epochs)
    for epoch in range(num_epochs if retrain else 1):
        left = max(1 - (epoch + 1) / ramp, 0.0) if retrain else 0.0
        masks = {name: magnitude_mask(parameters[name], rate + (1 - rate) * left**3) for name, rate in rates.items()}
        with masked(model, masks):
            if retrain:
                retrain(model, epoch)
