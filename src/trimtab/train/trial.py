"""Steps on trial: forward and backward passes that leave the model, its gradients and the global generators alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from trimtab.errors import UsageError


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Bring back the model's buffers and the global generators after what runs inside."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    tensors = (*model.parameters(), *model.buffers())
    devices = sorted({x.device.index or 0 for x in tensors if x.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def gradients(
    model: nn.Module, loss: Callable[[], Tensor], context: AbstractContextManager | None = None
) -> dict[str, Tensor]:
    """Return the gradient of each parameter that `loss()` depends on; both passes run inside `context`.

    Raises:
        UsageError: the loss is no finite number, or depends on no parameter.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with context or nullcontext():
        value = loss()
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise UsageError("expected a loss: a tensor of one element that depends on the model's parameters")
        if not bool(torch.isfinite(value.detach())):
            raise UsageError(f"the loss is {value.item()}; expected a finite number")
        found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    if all(g is None for g in found):
        raise UsageError("no gradient reaches the model's parameters; pass a model that is neither wrapped nor sharded")
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}
