"""Error bounds that reach a target: a compression ratio, or a peak signal-to-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from dataclasses import replace
from typing import Any

import numpy as np

from trimtab.arrays import Array, as_numpy
from trimtab.bounds import Bound, Rel, psnr, value_range
from trimtab.dtypes import FLOATS, dtype_name
from trimtab.errors import ShapeError
from trimtab.tune.bisect import bisect, psnr_target, ratio_target
from trimtab.tune.choice import Choice
from trimtab.tune.sample import draw, local_bound

SPACE = (1e-40, 1.0)
"""Relative bounds that are tried: where a fill value such as 1e36 widens the range, useful ones are that small."""
START = 1e-3
SAMPLE_BYTES = 1 << 25
"""What is drawn for the first trials of data at least twice as large."""


def for_ratio(
    x: Array, ratio: float, compress: Callable[[Any, Bound], Sized], *, tolerance: float = 0.05, seed: int = 0
) -> Choice:
    """Return the smallest relative bound under which `compress` makes `x` at least `ratio` times smaller.

    ``compress(x, bound)`` returns something whose length is its bytes, as `trimtab.compress` does. The ratio is
    exceeded by at most the part `tolerance` where the data allow it. Arrays of 64 MiB and more are tried on contiguous
    blocks first, drawn by `seed`; the choice is always verified on the whole. The choice's value is a `Rel`, its metric
    ``ratio``.

    Raises:
        NoFeasibleChoice: no bound reaches the ratio.
        ShapeError: `x` is not of a real floating-point dtype.

    >>> import numpy as np, trimtab as tt
    >>> x = np.cumsum(np.random.default_rng(0).standard_normal(100_000)).astype("float32")
    >>> choice = tt.tune.for_ratio(x, 8, tt.compress)
    >>> 8 <= x.nbytes / len(tt.compress(x, choice.value)) <= 8.4
    True
    """
    x = _real(x)

    def measure(value: float) -> float:
        return x.nbytes / len(compress(x, Rel(value)))

    sample = None
    if x.nbytes >= 2 * SAMPLE_BYTES:
        span = value_range(x)
        blocks = [np.ascontiguousarray(x[box]) for box in draw({"": (x.shape, x.itemsize)}, SAMPLE_BYTES, seed)[""]]
        num_bytes = sum(block.nbytes for block in blocks)

        def sample(value: float) -> float:
            return num_bytes / sum(len(compress(block, local_bound(Rel(value), block, span))) for block in blocks)

    choice = bisect(measure, ratio_target(ratio, tolerance=tolerance), SPACE, start=START, sample=sample)
    return replace(choice, value=Rel(choice.value))


def for_psnr(
    x: Array,
    decibels: float,
    compress: Callable[[Any, Bound], Any],
    decompress: Callable[[Any], np.ndarray],
    *,
    tolerance: float = 0.1,
) -> Choice:
    """Return the largest relative bound under which `x` keeps a peak signal-to-noise ratio of at least `decibels`.

    For compressors that take an error bound only; trimtab's own take `trimtab.PSNR`. ``compress(x, bound)`` returns
    what `decompress` turns back into an array. `tolerance` is in dB. The choice's value is a `Rel`, its metric
    ``psnr``.

    Raises:
        NoFeasibleChoice: no bound keeps it.
        ShapeError: `x` is not of a real floating-point dtype.
    """
    x = _real(x)

    def measure(value: float) -> float:
        return psnr(x, decompress(compress(x, Rel(value))))

    # the bound whose errors, uniform between its limits, have this PSNR
    start = min(max(math.sqrt(3) * 10 ** (-decibels / 20), SPACE[0]), SPACE[1])
    choice = bisect(measure, psnr_target(decibels, tolerance=tolerance), SPACE, start=start)
    return replace(choice, value=Rel(choice.value))


def _real(x: Array) -> np.ndarray:
    x = as_numpy(x)
    if dtype_name(x.dtype) not in FLOATS:
        raise ShapeError(f"an error bound is chosen for real floating-point arrays, got {x.dtype}; pack it losslessly")
    return x
