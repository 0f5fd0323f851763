"""What a step measures of each layer: the gain of its gradient's noise, its gradient, its momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab.train.controller import Layer
from trimtab.train.functions import Call, Kind, argument
from trimtab.train.gradient_error import norm_gain, product_gain, reach
from trimtab.train.rebuilt import Undecided
from trimtab.train.saved import Bounded


class Measures:
    """The measures of one step: taken by hooks on gradients, read when the step is over."""

    def __init__(self) -> None:
        self._found: dict[str, _Measured] = {}
        self._hooks: list[Any] = []

    def error(self, x: Tensor, bounded: Bounded, layer: Layer) -> None:
        """Take in how far a layer's input is from what is kept."""
        error = bounded.mean_squared_error(x)
        if math.isfinite(error):
            layer.error, layer.measured_bound = error, bounded.bound
        self._of(layer).nonzero = float(torch.count_nonzero(x)) / x.numel()

    def watch(self, call: Call, layer: Layer, result: Any) -> None:
        """Have the gradients of a layer's result and of its weight measured."""
        if not isinstance(result, Tensor) or not result.requires_grad or call.input is None:
            return
        measured = self._of(layer)
        if call.kind is Kind.PRODUCT:
            assert call.weight is not None
            parts = []
            if call.name != "linear":
                parts = reach(call.name, call.input.shape, result.shape, call.weight, call.args, call.kwargs)
            hook = partial(_add_product, measured, parts)
        else:
            inverse = deviations(call)
            measured.inverse_variance = float(inverse.square().mean())
            hook = partial(_add_norm, measured, inverse, call.norm)
        self._hooks.append(result.register_hook(hook))
        if call.weight is not None and call.weight.requires_grad and not measured.watched:
            measured.watched = True  # once: the hook has the sum over all calls
            self._hooks.append(call.weight.register_hook(partial(_add_weight, measured)))

    def read(
        self,
        layers: dict[str, Layer],
        named: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer | None,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        """Give the layers what was measured, with the momentum as it is now, and begin anew.

        What is not finite, and what no backward pass reached, leaves a layer as it was.
        """
        for hook in self._hooks:
            hook.remove()
        momenta = _momenta(named, optimizer)
        scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0
        for name, layer in layers.items():
            measured = self._found.get(layer.name)
            layer.momentum = momenta.get(name)
            if measured is None or not measured.reached:
                continue
            if math.isfinite(measured.gain):
                layer.gain = measured.gain / scale**2
                layer.paper_gain = measured.paper_gain / scale
                layer.inverse_variance = measured.inverse_variance
            if math.isfinite(measured.gradient) and measured.gradient:
                layer.gradient = measured.gradient / scale
        self._found, self._hooks = {}, []

    def _of(self, layer: Layer) -> _Measured:
        return self._found.setdefault(layer.name, _Measured())


class _Measured:
    """What one step measured of a layer; those that are called several times add up."""

    __slots__ = ("gain", "gradient", "inverse_variance", "nonzero", "paper_gain", "reached", "watched")

    def __init__(self) -> None:
        self.gain = self.gradient = self.paper_gain = 0.0
        self.nonzero = 1.0
        self.inverse_variance: float | None = None
        self.reached = self.watched = False


def _add_product(measured: _Measured, parts: list[Tensor], gradient: Tensor) -> None:
    measured.reached = True
    measured.gain += product_gain(gradient, parts)
    channel = gradient.shape[-1] if not parts else gradient.shape[gradient.dim() - len(parts) - 1]
    num = gradient.numel() / channel
    measured.paper_gain += float(gradient.detach().float().abs().mean()) * math.sqrt(num * measured.nonzero)


def _add_norm(measured: _Measured, deviations: Tensor, norm: Undecided | None, gradient: Tensor) -> None:
    measured.reached = True
    met = 1.0
    if norm is not None and norm.rebuilt is not None:
        # errors of the rectifier's result are where it is not zero, and so is the gradient: it meets them all
        deviations, met = norm.rebuilt.sensitivity.float(), 1 / max(measured.nonzero, 1e-6)
        measured.inverse_variance = 0.0
    measured.gain += norm_gain(gradient, deviations) * met
    num = gradient.numel() / gradient.shape[1]
    scaled = gradient.detach().float().abs().mean() * deviations.square().mean().sqrt()
    measured.paper_gain += float(scaled) * math.sqrt(num * measured.nonzero) * met


def _add_weight(measured: _Measured, gradient: Tensor) -> None:
    measured.gradient += float(gradient.detach().float().abs().mean())


def deviations(call: Call) -> Tensor:
    """Return 1 / std of each channel, as batch normalisation takes it."""
    x, args, kwargs = call.input, call.args, call.kwargs
    assert x is not None
    eps = argument(args, kwargs, 7, "eps", 1e-5)
    variance = argument(args, kwargs, 2, "running_var")
    if argument(args, kwargs, 5, "training", False) or variance is None:
        dims = [axis for axis in range(x.dim()) if axis != 1]
        variance = x.detach().float().var(dim=dims, correction=0)
    return (variance.detach().float() + eps).rsqrt()


def _momenta(named: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> dict[str, float]:
    """Return the mean absolute momentum of each parameter of which the optimizer has one; of shards, their own."""
    found = {}
    if optimizer is None:
        return found
    for name, parameter in named.items():
        state = optimizer.state.get(parameter, {})
        momentum = state.get("momentum_buffer")
        if momentum is None:
            momentum = state.get("exp_avg")
        if isinstance(momentum, Tensor):
            momentum = momentum.to_local() if hasattr(momentum, "to_local") else momentum
            mean = float(momentum.detach().float().abs().mean()) if momentum.numel() else math.nan
            if math.isfinite(mean):
                found[name] = mean
    return found
