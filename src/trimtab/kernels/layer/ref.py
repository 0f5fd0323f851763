"""One layer of a network in whole numbers, the specification.

Every place of a layer sees some of the layer's inputs, with the same weights everywhere: a dense layer has one place
that sees all, a convolution as many as there are points. All numbers are whole; float32 only carries them. As long as
for every output the weights' magnitudes, times the largest input, plus the bias's magnitude, stay below 2^24
(`largest_sum`), every product, every partial sum in any order, fused or not, every number times a power of two and its
floor are exact in float32. So there is one result, on every machine and for every way of adding up.
"""

from __future__ import annotations

import numpy as np

EXACT = 1 << 24
"""Whole numbers below this are exact in float32."""


def largest_sum(weights: np.ndarray, bias: np.ndarray, largest: int) -> int:
    """Return the largest magnitude that a sum of a layer can reach, for inputs of magnitudes up to `largest`."""
    sums = np.abs(weights.astype(np.int64)).sum(axis=0) * largest + np.abs(bias.astype(np.int64))
    return int(sums.max(initial=0))


def forward(
    a: np.ndarray,
    index: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray,
    low: float,
    high: float,
    out: np.ndarray,
) -> None:
    """Write a layer's outputs for samples `a` (float32[n, m]) to `out` (float32[n, places * width + 1]).

    Place p takes ``a[:, index[p]]`` (index: int32[places, fan_in]), and its outputs stand at ``p width`` and after:
    ``clip(floor((inputs @ weights + bias) * scale), low, high)`` with `weights` float32[fan_in, width], `bias` and
    `scale` (powers of two up to 1) float32[width]. The last column of `out` becomes zero: what places at an edge see.
    """
    num_places, width = len(index), weights.shape[1]
    for p in range(num_places):
        sums = a[:, index[p]].astype(np.int64) @ weights.astype(np.int64) + bias.astype(np.int64)
        values = np.clip(np.floor(sums * scale.astype(np.float64)), low, high)
        out[:, p * width : (p + 1) * width] = values
    out[:, -1] = 0
