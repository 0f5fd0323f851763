"""The noise of gradients, measured: what errors of a layer's input make of its weight's gradient, and whole steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.errors import UsageError
from trimtab.train.functions import Call, Kind
from trimtab.train.measures import deviations
from trimtab.train.rebuilt import Rebuilt
from trimtab.train.saved import Bounded
from trimtab.train.trial import gradients, undisturbed

if TYPE_CHECKING:
    from trimtab.train.compressed import CompressedActivations


class Probe:
    """Listens to an exact step: what would have been kept of each layer's input, and the gradient of its output."""

    def __init__(self) -> None:
        self._inputs: dict[Call, tuple[Tensor, Bounded | Rebuilt]] = {}
        self._gradients: dict[Call, tuple[Callable, Tensor]] = {}

    def take(self, call: Call, x: Tensor, kept: Bounded | Rebuilt) -> None:
        """Take in the input of a call, and what stands for it."""
        self._inputs[call] = x.detach(), kept

    def watch(self, call: Call, function: Callable, result: Any) -> None:
        """Take in the gradient of a call's result when it comes."""
        if isinstance(result, Tensor) and result.requires_grad:
            result.register_hook(lambda gradient: self._gradients.__setitem__(call, (function, gradient.detach())))

    def noise(self) -> dict[str, Tensor]:
        """Return what the errors of a layer's inputs add to the gradient of its weight, by the names of layers."""
        found: dict[str, Tensor] = {}
        for call, (function, gradient) in self._gradients.items():
            if call.weight is None or call not in self._inputs:
                continue
            assert call.layer is not None and call.input is not None
            x, kept = self._inputs[call]
            error = (kept.decode().float() - x.float()).view(call.input.shape)
            if call.kind is Kind.PRODUCT:
                own = _of_product(call, function, error, gradient.float())
            else:
                own = _of_norm(call, error, gradient.float())
            found[call.layer.name] = found.get(call.layer.name, 0) + own
        return found


def _of_product(call: Call, function: Callable, error: Tensor, gradient: Tensor) -> Tensor:
    """The gradient is linear in the input: that of the error is the error of the gradient."""
    assert call.weight is not None
    weight = call.weight.detach().float().requires_grad_()
    args, kwargs = list(call.args), dict(call.kwargs)
    for place, (name, value) in enumerate((("input", error), ("weight", weight), ("bias", None))):
        if len(args) > place:
            args[place] = value
        else:
            kwargs[name] = value
    with torch.enable_grad():
        return torch.autograd.grad(function(*args, **kwargs), weight, gradient)[0]


def _of_norm(call: Call, error: Tensor, gradient: Tensor) -> Tensor:
    """Mean and deviation are exact."""
    return (gradient * error).sum([axis for axis in range(error.dim()) if axis != 1]) * deviations(call)


def check(comet: CompressedActivations, loss: Callable[[], Tensor]) -> dict[str, dict[str, float]]:
    """See `CompressedActivations.check`."""
    if comet.entered:
        raise UsageError("check() runs steps of its own: leave the context first")
    model, probe = comet.model, Probe()
    trial = comet.twin(probe=probe)
    with undisturbed(model):
        exact = gradients(model, loss, trial)
    with undisturbed(model):
        noisy = gradients(model, loss, comet.twin(measuring=False))
    own, found = probe.noise(), {}
    for name, layer in trial.measured_layers().items():
        sigma = layer.sigma if comet.settings.model == "closed" else layer.paper_sigma
        if name not in exact or layer.name not in own or sigma is None:
            continue
        found[layer.name] = {
            "measured": _deviation(own[layer.name]),
            "predicted": sigma,
            "whole_step": _deviation(noisy[name].double() - exact[name].double()),
            "gradient": float(exact[name].double().abs().mean()),
        }
    return found


def _deviation(noise: Tensor) -> float:
    return float(noise.double().square().mean().sqrt())
