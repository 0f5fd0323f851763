"""The ways in which `bench.embedding` sends looked-up vectors and their gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trimtab.bounds import Abs, Lossless, Rel
from trimtab.comm.embedding import EmbeddingExchange

BOUND, GRADIENT_BOUND = 0.01, 1e-3
"""Relative to the range of what is sent of a table, of vectors and of gradients."""
HEADLINE, BOTH_WAYS = "Rel 0.01", "Rel 0.01, gradients Rel 0.001"
"""The ways whose steps are timed, too."""

Rounding = Callable[[np.ndarray], tuple[int, np.ndarray]]
"""From vectors [rows, columns]: the bytes that they take, and what comes back."""


def exact(x: np.ndarray) -> tuple[int, np.ndarray]:
    """Send every vector that was asked for as it is."""
    return x.nbytes, x


def int8(x: np.ndarray) -> tuple[int, np.ndarray]:
    """Quantise each vector to 8 bits between its least and greatest element, which travel as float16."""
    low = x.min(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
    step_size = (x.max(axis=1, keepdims=True) - low) / 255
    step_size = np.maximum(step_size.astype(np.float16), np.float16(6e-8)).astype(np.float32)
    return x.size + 4 * len(x), np.clip(np.rint((x - low) / step_size), 0, 255) * step_size + low


def fp16(x: np.ndarray) -> tuple[int, np.ndarray]:
    """Round every element to float16."""
    return 2 * x.size, x.astype(np.float16).astype(np.float32)


def _packed(bound: Abs | Rel, gradients: Abs | Rel | Lossless = Lossless(), **settings) -> EmbeddingExchange:
    return EmbeddingExchange(bound=bound, backward_bound=gradients, every=50, **settings)


WAYS: dict[str, Rounding | EmbeddingExchange] = {
    "exact": exact,
    "int8": int8,
    "Rel 0.005": _packed(Rel(0.005)),
    HEADLINE: _packed(Rel(BOUND)),
    BOTH_WAYS: _packed(Rel(BOUND), Rel(GRADIENT_BOUND)),
    "Rel 0.01, gradients Rel 0.01": _packed(Rel(BOUND), Rel(0.01)),
    "Rel 0.01, gradients Rel 0.0001": _packed(Rel(BOUND), Rel(1e-4)),
    "Abs 0.002": _packed(Abs(0.002)),
    "Abs 0.01": _packed(Abs(0.01)),
    "Rel 0.005, twice at first": _packed(Rel(0.005), early_factor=2, early_steps=75),
    "Rel 0.005, by class": _packed(Rel(0.005), class_factors=(1 / 3, 1, 5 / 3)),
    "fp16": fp16,
}
"""Of training runs. A rounding is that of vectors; gradients then go as they are."""

STEP_WAYS: dict[str, Callable[[float], EmbeddingExchange]] = {
    "exact": lambda bandwidth: EmbeddingExchange(bound=Lossless(), bandwidth=bandwidth),
    HEADLINE: lambda bandwidth: EmbeddingExchange(bound=Rel(BOUND), bandwidth=bandwidth),
    BOTH_WAYS: lambda bandwidth: EmbeddingExchange(
        bound=Rel(BOUND), backward_bound=Rel(GRADIENT_BOUND), bandwidth=bandwidth
    ),
}
"""By the bandwidth of the link: exchanges that take turns over a shaped link."""
