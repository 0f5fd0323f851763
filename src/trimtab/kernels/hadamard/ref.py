"""Walsh-Hadamard transforms of short blocks of float32, the specification.

A transform spreads an element that stands out over its whole block, so that one scale suits all of it. It is linear and
its own inverse up to the factor `order`; nothing is divided here. The order of sums is part of the specification, since
all machines must round alike: pairs at distance 1 become their sum and their difference, then pairs at distance 2, and
so on up to order / 2.
"""

from __future__ import annotations

import numpy as np

ORDERS = (32, 64, 128, 256, 512)


def transform(z: np.ndarray, order: int) -> None:
    """Transform each block of `order` elements of `z` (flat float32, whole blocks) in place."""
    distance = 1
    with np.errstate(over="ignore", invalid="ignore"):
        while distance < order:
            pairs = z.reshape(-1, 2, distance)
            first, second = pairs[:, 0].copy(), pairs[:, 1].copy()
            pairs[:, 0], pairs[:, 1] = first + second, first - second
            distance *= 2
