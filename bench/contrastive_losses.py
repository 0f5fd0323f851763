"""The losses that FastCLIP is compared with, for one process, called as it is: features, logit scale, indices.

- OpenCLIP: the cross entropy of finding the text of an image among the batch, and the image of a text (CLIP, 2021).
- SigLIP: the logistic loss of telling pairs from all others, with a bias that is learned (2023, arXiv 2303.15343).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class OpenCLIP(nn.Module):
    """The mean of ``-log softmax_j(scale s_ij)`` at j = i, over images i and over texts."""

    def forward(
        self, images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor, index: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits = logit_scale * images @ texts.T
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class SigLIP(nn.Module):
    """The sum of ``-log sigmoid(z_ij (scale s_ij + bias))``, where z is 1 for pairs and -1 for others, over B."""

    def __init__(self, bias: float = -10.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(
        self, images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor, index: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits = logit_scale * images @ texts.T + self.bias
        signs = 2 * torch.eye(len(logits), device=logits.device) - 1
        return -F.logsigmoid(signs * logits).sum() / len(logits)
