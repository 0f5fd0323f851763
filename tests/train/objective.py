"""The losses that FastCLIP minimises, written out for one process, for autograd to differentiate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

VERSIONS = ("v0", "v1", "v2", "v3")
SCALE, TEMPERATURE = 14.25, float(torch.tensor(0.03))  # as exact in float32


def features(num: int, seed: int = 0) -> list[Tensor]:
    """Images and texts, float64 [num, 16]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.functional.normalize(torch.randn(num, 16, generator=generator).double()) for _ in range(2)]


def log_g(image: Tensor, text: Tensor, temperatures: Tensor) -> Tensor:
    """log g of all anchors, [2, B], for temperatures [2, B]."""
    similar = image @ text.T
    own = torch.eye(len(image), dtype=torch.bool)
    differences = torch.stack([similar, similar.T]) - similar.diagonal()[:, None]
    g = (differences / temperatures[..., None]).exp().masked_fill(own, 0).sum(2) / (len(image) - 1)
    return g.log()


def objective(image: Tensor, text: Tensor, temperatures: Tensor, version: str, rho: float) -> Tensor:
    logs = log_g(image, text, temperatures)
    return logs.mean() if version in ("v0", "v1") else (temperatures * (logs + rho)).mean()


def reference(image: Tensor, text: Tensor, version: str, rho: float) -> tuple[float, list[Tensor]]:
    """The objective, and its gradients by images, texts and, where it is learned, the logit scale."""
    image, text, scale = (x.clone().requires_grad_() for x in (image, text, torch.tensor(SCALE).double()))
    one = torch.full((2, len(image)), TEMPERATURE).double() if version == "v2" else (1 / scale).expand(2, len(image))
    value = objective(image, text, one, version, rho)
    value.backward()
    by_scale = torch.zeros(()).double() if version in ("v1", "v2") else scale.grad
    return value.item(), [image.grad, text.grad, by_scale]


def relative(x: Tensor, y: Tensor) -> float:
    """How far x is from y, of the size of y."""
    x, y = x.double(), y.double()
    return float((x - y).norm() / y.norm()) if math.isfinite(float(x.sum())) and y.any() else float(x.abs().max())
