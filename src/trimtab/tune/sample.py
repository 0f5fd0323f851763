"""Contiguous blocks of arrays, drawn by a seed: what a trial needs of data that are too large to be tried whole."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence

import numpy as np

from trimtab.bounds import PSNR, Abs, Bound, Rel, value_range

_BLOCK = 1 << 20  # elements

Box = tuple[slice, ...]


def boxes(shape: Sequence[int], max_size: int) -> list[Box]:
    """Return boxes of at most `max_size` elements that cover an array: its longest part is halved until they fit."""
    parts, splits = list(shape), [1] * len(shape)
    while math.prod(parts) > max_size:
        longest = parts.index(max(parts))
        splits[longest] *= 2
        parts[longest] = -(-shape[longest] // splits[longest])
    edges = [
        [slice(n * i // count, n * (i + 1) // count) for i in range(count)]
        for n, count in zip(shape, splits, strict=True)
    ]
    return list(itertools.product(*edges))


def draw(sizes: Mapping[str, tuple[Sequence[int], int]], max_bytes: int, seed: int = 0) -> dict[str, list[Box]]:
    """Return boxes of the named arrays, at most `max_bytes` together but at least one, drawn without preference.

    `sizes` maps a name to shape and bytes an element.
    """
    found = [(name, box, itemsize) for name, (shape, itemsize) in sizes.items() for box in boxes(shape, _BLOCK)]
    drawn: dict[str, list[Box]] = {}
    left = max_bytes
    for name, box, itemsize in random.Random(seed).sample(found, len(found)):
        num_bytes = itemsize * math.prod(part.stop - part.start for part in box)
        if num_bytes <= left or not drawn:
            drawn.setdefault(name, []).append(box)
            left -= num_bytes
    return drawn


def local_bound(bound: Bound, block: np.ndarray, span: float) -> Bound:
    """Return the bound of a block that promises what `bound` does for an array of the value range `span`."""
    if isinstance(bound, Rel) and span > 0 and math.isfinite(span):
        limit = bound.value * span
        return Abs(limit) if limit > 0 else bound
    if isinstance(bound, PSNR) and (own := value_range(block)) > 0:
        return PSNR(max(bound.value + 20 * math.log10(own / span), 1e-9))
    return bound
