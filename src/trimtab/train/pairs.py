"""A rank's samples against all samples of the batch: what contrastive losses need, without a graph of autograd.

For image i as the anchor the exponents are z_ij = scale_i (s_ij - s_ii), j running over all texts but its own; for a
text in the same way. A rank has the rows of its own anchors, and the columns in which its own samples are compared with
the anchors of all ranks; both come from the same two blocks of similarities.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Pairs"]


class Pairs:
    """The similarities of this rank's samples with all.

    Tensors of anchors have a row for images and a row for texts.

    Args:
        images: Features of all ranks' images, [B, d], float32 or float64.
        texts: Of their texts, [B, d].
        own: Which of them are this rank's, b in number.
        scales: What each anchor's differences of similarities are multiplied by, [2, B].
    """

    def __init__(self, images: Tensor, texts: Tensor, own: slice, scales: Tensor) -> None:
        self._images, self._texts, self.own, self._scales = images, texts, own, scales
        self._similarities = torch.stack([images[own] @ texts.T, texts[own] @ images.T])  # [2, b, B]
        self._matching = (images * texts).sum(1)
        rows = (self._similarities - self._matching[own, None]) * scales[:, own, None]
        self._rows = self._without_own_pairs(rows, -math.inf)
        self.log_means = self._rows.logsumexp(2) - math.log(len(images) - 1)
        """The logarithm of g of the own anchors, [2, b]."""

    def mean_exponents(self) -> Tensor:
        """Return the means of z_ij under weights in proportion to exp(z_ij), of the own anchors, [2, b].

        It is the derivative of log g by the logarithm of the scale.
        """
        shares = self._rows.softmax(2)
        return (shares * self._without_own_pairs(self._rows.clone(), 0.0)).sum(2)

    def gradients(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient by the own images' features, [b, d], and by the own texts'.

        It is that of the sum over all anchors and pairs of exp(log_weights_i + z_ij) (s_ij - s_ii), the exponentials
        being constants; `log_weights` is [2, B].
        """
        rows = (self._rows + log_weights[:, self.own, None]).exp()
        # images are what texts as anchors are compared with, and the other way round
        columns = (self._similarities - self._matching) * self._scales.flip(0)[:, None] + log_weights.flip(0)[:, None]
        both = rows + self._without_own_pairs(columns, -math.inf).exp()
        matching = rows.sum((0, 2))[:, None]
        return (
            both[0] @ self._texts - matching * self._texts[self.own],
            both[1] @ self._images - matching * self._images[self.own],
        )

    def _without_own_pairs(self, x: Tensor, value: float) -> Tensor:
        """Put `value` where a sample of x [2, b, B] meets itself, in place."""
        x.diagonal(self.own.start, 1, 2).fill_(value)
        return x
