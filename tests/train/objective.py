"""The losses that FastCLIP minimises, written out for one process, for autograd to differentiate; and a small model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

VERSIONS = ("v0", "v1", "v2", "v3")
SCALE, TEMPERATURE = 14.25, float(torch.tensor(0.03))  # as exact in float32


def features(num: int, seed: int = 0) -> list[Tensor]:
    """Images and texts, float64 [num, 16]."""
    generator = torch.Generator().manual_seed(seed)
    return [normalize(torch.randn(num, 16, generator=generator).double()) for _ in range(2)]


def inner(image: Tensor, text: Tensor, temperatures: Tensor) -> Tensor:
    """g of all anchors, [2, B], for temperatures [2, B]."""
    similar = image @ text.T
    own = torch.eye(len(image), dtype=torch.bool)
    differences = torch.stack([similar, similar.T]) - similar.diagonal()[:, None]
    return (differences / temperatures[..., None]).exp().masked_fill(own, 0).sum(2) / (len(image) - 1)


def objective(g: Tensor, temperatures: Tensor, version: str, rho: float, u: Tensor | None = None) -> Tensor:
    """The loss; with estimates u, one whose gradient is that of the method for them."""
    logs = g.log() if u is None else u.log() + (g - g.detach()) / u
    return logs.mean() if version in ("v0", "v1") else (temperatures * (logs + rho)).mean()


def reference(image: Tensor, text: Tensor, version: str, rho: float) -> tuple[float, list[Tensor]]:
    """The objective, and its gradients by images, texts and, where it is learned, the logit scale."""
    image, text, scale = (x.clone().requires_grad_() for x in (image, text, torch.tensor(SCALE).double()))
    one = torch.full((2, len(image)), TEMPERATURE).double() if version == "v2" else (1 / scale).expand(2, len(image))
    value = objective(inner(image, text, one), one, version, rho)
    value.backward()
    by_scale = torch.zeros(()).double() if version in ("v1", "v2") else scale.grad
    return value.item(), [image.grad, text.grad, by_scale]


def relative(x: Tensor, y: Tensor) -> float:
    """How far x is from y, of the size of y; where y is zero, the size of x."""
    x, y = x.double(), y.double()
    return float((x - y).norm() / y.norm()) if y.any() else float(x.norm())


class Towers(nn.Module):
    """Two linear encoders and a logit scale."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name in ("image", "text"):
            self.register_parameter(name, nn.Parameter(torch.randn(12, 8, generator=generator).to(dtype)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10), dtype=dtype))
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image, text = (normalize(self.dropout(x) @ w) for x, w in ((image, self.image), (text, self.text)))
        return image, text, self.log_scale.exp()


def samples(num: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Inputs of the model that belong together: a text is a noisy image."""
    generator = torch.Generator().manual_seed(99)
    image = torch.randn(num, 12, generator=generator).to(dtype)
    return image, image + 0.5 * torch.randn(num, 12, generator=generator).to(dtype)


def order(num: int, epoch: int, batch: int) -> list[Tensor]:
    """The indices of an epoch, shuffled, in batches, of which the last may be smaller."""
    return list(torch.randperm(num, generator=torch.Generator().manual_seed(epoch)).split(batch))
