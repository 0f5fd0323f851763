"""The steps in which a CLIP learns: batches of numbered pairs, the learning rate, the optimizer, one step.

None of it remembers anything: what happens in a step follows from the seed, the epoch and the step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from examples.clip import CLIP
from examples.pairs import Pairs
from examples.retrieval import Tokenizer


class Batch(NamedTuple):
    """Pairs: images float32[b, c, h, w], tokens int64[b, tokens], and their numbers int64[b]."""

    images: torch.Tensor
    tokens: torch.Tensor
    numbers: torch.Tensor


class Batches(Dataset):
    """What a data loader asks for batches; an image's crop depends on the seed, the epoch and its number."""

    def __init__(self, pairs: Pairs, tokenize: Tokenizer, seed: int, epoch: int) -> None:
        self._pairs, self._tokenize, self._seed, self._epoch = pairs, tokenize, seed, epoch

    def __getitems__(self, numbers: list[int]) -> Batch:
        crops = [np.random.default_rng((self._seed, self._epoch, number)) for number in numbers]
        images = self._pairs.images(numbers, crops)
        return Batch(images, self._tokenize(self._pairs.captions(numbers)), torch.tensor(numbers))


def numbers_of_batches(num: int, batch: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the numbers of an epoch's pairs in random order, a row a batch; what is left of the last is dropped."""
    order = torch.randperm(num, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
    return order[: num // batch * batch].view(-1, batch)


def share_of_rate(step: int, num_steps: int, num_warm_up: int) -> float:
    """Return the share of the full learning rate at a step: it rises in a line, and falls as a cosine to zero."""
    if step < num_warm_up:
        return (step + 1) / num_warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - num_warm_up) / max(num_steps - num_warm_up, 1)))


def make_optimizer(
    model: CLIP, loss: nn.Module, *, rate: float, scale_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW: vectors, biases, and the temperature, with what the loss learns, do not decay."""
    weights = [p for name, p in model.named_parameters() if name != "log_scale"]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "full_rate": rate, "weight_decay": weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "full_rate": rate, "weight_decay": 0.0},
        {"params": [model.log_scale, *loss.parameters()], "full_rate": scale_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6, fused=True)


def learn(
    model: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    share: float,
    *,
    bf16: bool = False,
) -> float:
    """Take a step at a share of the full rates, and return the loss; with `bf16` the encoders run in bfloat16.

    Raises:
        FloatingPointError: the loss is not finite; the weights are as they were.
    """
    for group in optimizer.param_groups:
        group["lr"] = share * group["full_rate"]
    optimizer.zero_grad()
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
        features = model(batch.images, batch.tokens)
    value = loss(*features, batch.numbers)
    if not value.isfinite():
        raise FloatingPointError(f"the loss is {value.item()}")
    value.backward()
    optimizer.step()
    return value.item()
