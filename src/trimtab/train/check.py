"""The noise of gradients, measured: an exact step against a compressed one on the same batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from trimtab.errors import UsageError
from trimtab.train.trial import gradients, undisturbed

if TYPE_CHECKING:
    from trimtab.train.compressed import CompressedActivations


def check(comet: CompressedActivations, loss: Callable[[], Tensor]) -> dict[str, dict[str, float]]:
    """See `CompressedActivations.check`."""
    if comet.entered:
        raise UsageError("check() runs steps of its own: leave the context first")
    model, trial = comet.model, comet.twin()
    with undisturbed(model):
        exact = gradients(model, loss)
    with undisturbed(model):
        noisy = gradients(model, loss, trial)
    found = {}
    for name, layer in trial.measured_layers().items():
        sigma = layer.sigma if comet.settings.model == "closed" else layer.paper_sigma
        if name not in exact or sigma is None:
            continue
        found[layer.name] = {
            "measured": float((noisy[name].double() - exact[name].double()).square().mean().sqrt()),
            "predicted": sigma,
            "gradient": float(exact[name].double().abs().mean()),
        }
    return found
