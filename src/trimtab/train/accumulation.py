"""Contrastive losses of batches too large for one pass, exactly: each sample is compared with those of all parts.

The features of all parts are computed without a graph, the loss once, on all of them, and then each part again, to be
given its share of the features' gradient (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup", 2021, arXiv 2101.06983).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from trimtab.errors import UsageError

__all__ = ["accumulate"]


def accumulate(
    loss: Callable[..., Tensor], model: Callable[..., Sequence[Tensor]], parts: Sequence[Sequence[Any]], *others: Any
) -> Tensor:
    """Compute the loss of a batch that is given in parts, add its gradients to the model's, and return it.

    Memory is that of the largest part; the forward pass is made twice, with the same random numbers. Where the model is
    a DistributedDataParallel, gradients are averaged once, in the last part.

    >>> import torch, trimtab as tt
    >>> weight = torch.eye(8, requires_grad=True)
    >>> model = lambda image, text: (image @ weight, text, torch.tensor(10.0))
    >>> parts = [tuple(torch.nn.functional.normalize(torch.randn(4, 8)) for _ in range(2)) for _ in range(3)]
    >>> loss = tt.train.accumulate(tt.train.FastCLIP(samples=99), model, parts, torch.arange(12))

    Args:
        loss: Called once, with the image features and text features of all parts, the logit scale, and `others`.
        model: Returns image features, text features and the logit scale for a part. What it keeps from call to call,
            such as BatchNorm's running statistics, sees each part twice.
        parts: What the model is called with, part by part.
        others: Whatever else the loss takes, for the whole batch: the samples' indices.

    Raises:
        UsageError: there are no parts.
    """
    if not parts:
        raise UsageError("a batch needs at least one part")
    found, states = [], []
    for part in parts:
        states.append((torch.get_rng_state(), *get_device_states(*part)))
        with torch.no_grad():
            found.append(tuple(model(*part)))
    images, texts = (torch.cat([outputs[k] for outputs in found]).requires_grad_() for k in (0, 1))
    scale = found[0][2].detach().requires_grad_()
    value = loss(images, texts, scale, *others)
    by_images, by_texts, by_scale = torch.autograd.grad(value, (images, texts, scale))
    sizes = [len(outputs[0]) for outputs in found]
    shares = zip(by_images.split(sizes), by_texts.split(sizes), strict=True)
    silent = getattr(model, "no_sync", contextlib.nullcontext)
    for number, (part, state, share) in enumerate(zip(parts, states, shares, strict=True), start=1):
        is_last = number == len(parts)
        gradients = (*share, by_scale if is_last else torch.zeros_like(by_scale))
        with contextlib.nullcontext() if is_last else silent(), torch.random.fork_rng(state[1]):
            torch.set_rng_state(state[0])
            set_device_states(*state[1:])
            learned = [pair for pair in zip(model(*part), gradients, strict=True) if pair[0].requires_grad]
            torch.autograd.backward([x for x, _ in learned], [gradient for _, gradient in learned])
    return value.detach()
