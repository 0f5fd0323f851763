"""Uniform and logarithmic quantisation of floating-point rows, the specification.

Rows start anywhere in a flat array: row r is ``x[starts[r] : starts[r] + n]``, cut at the end of `x`. The integers
stand in a matrix with a margin before and after each row. The uniform quantiser's integer q stands for the element
type's rounding of the float64 product q x step; the logarithmic one's for that of `exp2` of it. A place whose element
that stand-in does not keep within the bound, or that is not finite, or whose |q| would reach 2^30, is an outlier: it
gets the integer before it in its row (or 0), and its position ``r n + k`` is listed.
"""

from __future__ import annotations

import numpy as np

LIMIT = 2.0**30
_ROUND = 1.5 * 2.0**52  # adding and taking away rounds a smaller float64 to the nearest integer, ties to even

_EXP2 = (
    6.931471805599453e-01,
    2.402265069591007e-01,
    5.550410866482158e-02,
    9.618129107628477e-03,
    1.3333558146428443e-03,
    1.5403530393381608e-04,
    1.5252733804059841e-05,
    1.3215486790144307e-06,
    1.0178086009239699e-07,
    7.054911620801123e-09,
    4.4455382718708116e-10,
    2.5678435993488206e-11,
)
"""ln(2)^k / k! for k from 1: the Taylor coefficients of 2^f, exact to float64 for |f| <= 1/2."""


def extent(x: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest finite element of `x` (flat float32 or float64), or (inf, -inf)."""
    finite = x[np.isfinite(x)]
    return (float(finite.min()), float(finite.max())) if finite.size else (np.inf, -np.inf)


def quantise(
    x: np.ndarray, starts: np.ndarray, step: float, bound: float, margin: int, q: np.ndarray, outliers: np.ndarray
) -> int:
    """Quantise rows of `x` into `q` (int32[rows, n + 2 margin]) and return the number of outliers.

    Their positions go to `outliers` (uint32), as many as fit. Places past the end of `x` repeat the integer before.
    """
    num = q.shape[1] - 2 * margin
    inverse, count = 1.0 / step, 0
    for r, start in enumerate(starts):
        row = x[start : start + num]
        wide = row.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            rounded = wide * inverse
            inside = np.abs(rounded) < LIMIT
            rounded = np.where(inside, rounded, 0) + _ROUND - _ROUND
            good = inside & (np.abs((rounded * step).astype(x.dtype).astype(np.float64) - wide) <= bound)
        values = rounded.astype(np.int32)
        for k in np.flatnonzero(~good):
            values[k] = values[k - 1] if k else 0
            if count < outliers.size:
                outliers[count] = r * num + k
            count += 1
        q[r, margin : margin + row.size] = values
        q[r, margin + row.size : margin + num] = values[-1] if row.size else 0
    return count


def dequantise(q: np.ndarray, starts: np.ndarray, step: float, margin: int, y: np.ndarray) -> None:
    """Write the rows of `y` (flat) that `q` stands for."""
    num = q.shape[1] - 2 * margin
    for r, start in enumerate(starts):
        size = min(num, y.size - start)
        y[start : start + size] = q[r, margin : margin + size] * np.float64(step)


def dequantise_exp2(q: np.ndarray, starts: np.ndarray, step: float, margin: int, y: np.ndarray) -> None:
    """Write the rows of `y` (flat) that `q` stands for: 2^(q step), by plain products and sums in float64 alone.

    Exponents are held within -1022 to 1023.
    """
    num = q.shape[1] - 2 * margin
    for r, start in enumerate(starts):
        size = min(num, y.size - start)
        with np.errstate(over="ignore"):
            y[start : start + size] = _exp2(q[r, margin : margin + size] * np.float64(step))


def _exp2(t: np.ndarray) -> np.ndarray:
    t = np.minimum(np.maximum(t, -1022.0), 1023.0)
    whole = t + _ROUND - _ROUND
    f = t - whole
    value = np.full_like(f, _EXP2[-1])
    for coefficient in reversed(_EXP2[:-1]):
        value = value * f + coefficient
    return (value * f + 1.0) * ((whole.astype(np.int64) + 1023) << 52).view(np.float64)
