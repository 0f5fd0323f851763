"""Uniform and logarithmic quantisation of floating-point rows, the specification.

Rows start anywhere in a flat array: row r is ``x[starts[r] : starts[r] + n]``, cut at the end of `x`. The integers
stand in a matrix with a margin before and after each row. The uniform quantiser's integer q stands for the element
type's rounding of the float64 product q x step; the logarithmic one's for that of `exp2` of it. Where `rounding` is not
`NONE`, it stands for less: `FLOAT16` and `BFLOAT16` round the float32 once more, and `INTEGER` the float64 product
first. A place whose element that stand-in does not keep within the bound, or that is not finite, or whose |q| would
reach 2^30, is an outlier: it gets the integer before it in its row (or 0), and its position ``r n + k`` is listed.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

LIMIT = 2.0**30
NONE, FLOAT16, BFLOAT16, INTEGER = range(4)
LARGEST_INTEGER = 2.0**50
"""What the uniform quantiser's products are held within when they become integers."""

NUM_SUMS = 512
"""Sums of squares are made in so many parts, those of places k, k + NUM_SUMS, ... of each row, and then added up."""

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

_LOG2 = tuple(2 / math.log(2) / k for k in range(1, 14, 2))
"""log2((1 + s) / (1 - s)) by odd powers of s: to 1e-12 for numbers from the root of 1/2 to that of 2."""

_HALF_ROOT = 0x3FE6A09E667F3BCD
_ONE = 0x3FF0000000000000


def extent(x: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest finite element of `x` (flat float32 or float64), or (inf, -inf)."""
    finite = x[np.isfinite(x)]
    return (float(finite.min()), float(finite.max())) if finite.size else (np.inf, -np.inf)


def quantise(
    x: np.ndarray,
    starts: np.ndarray,
    step: float,
    bound: float,
    rounding: int,
    margin: int,
    q: np.ndarray,
    outliers: np.ndarray,
) -> int:
    """Quantise rows of `x` into `q` (int32[rows, n + 2 margin]) and return the number of outliers.

    Their positions go to `outliers` (uint32), as many as fit. Places past the end of `x` repeat the integer before.
    """
    num = q.shape[1] - 2 * margin
    count = 0
    for r, start in enumerate(starts):
        values, error = _quantised(x[start : start + num], step, rounding)
        for k in np.flatnonzero(~(error <= bound)):
            values[k] = values[k - 1] if k else 0
            if count < outliers.size:
                outliers[count] = r * num + k
            count += 1
        q[r, margin : margin + values.size] = values
        q[r, margin + values.size : margin + num] = values[-1] if values.size else 0
    return count


def squared_error(
    x: np.ndarray, starts: np.ndarray, num: int, step: float, bound: float, rounding: int
) -> tuple[float, int]:
    """Return the sum of the squared errors that `quantise` makes in rows of `num`, and how many elements are finite.

    Outliers add nothing.
    """
    sums, count = np.zeros(NUM_SUMS), 0
    for start in starts:
        row = x[start : start + num]
        _, error = _quantised(row, step, rounding)
        error[~(error <= bound)] = 0
        for o in range(0, error.size, NUM_SUMS):
            piece = error[o : o + NUM_SUMS]
            sums[: piece.size] += piece * piece
        count += int(np.isfinite(row).sum())
    total = 0.0
    for part in sums:
        total += float(part)
    return total, count


def _quantised(x: np.ndarray, step: float, rounding: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the integers (int32) and the absolute errors (float64) that they make; NaN where there can be none."""
    wide = x.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = wide * (1.0 / step)
        inside = np.abs(rounded) < LIMIT
        rounded = np.where(inside, rounded, 0) + _ROUND - _ROUND
        product = rounded * step
        if rounding == INTEGER:
            product = product + _ROUND - _ROUND
        error = np.abs(_cut(product.astype(x.dtype), rounding).astype(np.float64) - wide)
    return rounded.astype(np.int32), np.where(inside, error, np.nan)


def _cut(y: np.ndarray, rounding: int) -> np.ndarray:
    """Return what a 2-byte float keeps of the float32 `y`."""
    if rounding in (NONE, INTEGER):
        return y
    return y.astype(np.float16 if rounding == FLOAT16 else ml_dtypes.bfloat16).astype(y.dtype)


def quantise_log2(
    x: np.ndarray,
    starts: np.ndarray,
    step: float,
    centre: float,
    bound: float,
    rounding: int,
    margin: int,
    q: np.ndarray,
    outliers: np.ndarray,
    negative: np.ndarray,
    zero: np.ndarray,
    y: np.ndarray,
) -> int:
    """Quantise log2 of the magnitudes of rows of `x` into `q` and return the number of outliers, as `quantise` does.

    The integer is that nearest to (log2(magnitude) - centre) / step, and `bound` is relative to the magnitude. Rows
    stand one after another in `negative` and `zero` (bool as uint8), which tell signs and zeros, and in `y`, which
    receives what the decoder makes of them. Zeros are no outliers, though they get the integer before them, too;
    at the start of a row that is the first one of the row before.
    """
    num = q.shape[1] - 2 * margin
    count = 0
    for r, start in enumerate(starts):
        row = x[start : start + num]
        wide = row.astype(np.float64)
        magnitude = np.abs(wide)
        negative[r * num : r * num + row.size] = np.signbit(wide)
        zero[r * num : r * num + row.size] = magnitude == 0
        usable = (magnitude > 0) & (magnitude < np.inf)
        with np.errstate(invalid="ignore", over="ignore"):
            rounded = (_log2(np.where(usable, magnitude, 1.0)) - centre) * (1.0 / step)
            inside = np.abs(rounded) < LIMIT
            rounded = np.where(inside, rounded, 0) + _ROUND - _ROUND
            stand_in = _cut(_exp2(rounded * step).astype(x.dtype), rounding)
            good = usable & inside & (np.abs(stand_in.astype(np.float64) - magnitude) <= bound * magnitude)
        stand_in[magnitude == 0] = 0
        y[r * num : r * num + row.size] = np.where(np.signbit(wide), -stand_in, stand_in)
        values = rounded.astype(np.int32)
        before = q[r - 1, margin] if r else np.int32(0)
        for k in np.flatnonzero(~good):
            values[k] = values[k - 1] if k else before
            if magnitude[k] != 0:
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


def dequantise_integers(
    q: np.ndarray, starts: np.ndarray, step: float, offset: int, margin: int, y: np.ndarray
) -> None:
    """Write the rows of `y` (flat, of integers) that `q` stands for: q step, rounded, plus `offset` (an int64).

    The sum is modulo 2^64, and then held within the range of `y`.
    """
    num = q.shape[1] - 2 * margin
    for r, start in enumerate(starts):
        size = min(num, y.size - start)
        with np.errstate(over="ignore"):
            product = np.clip(q[r, margin : margin + size] * np.float64(step), -LARGEST_INTEGER, LARGEST_INTEGER)
            whole = (product + _ROUND - _ROUND).astype(np.int64) + np.int64(offset)
        if y.dtype.itemsize < 8:
            whole = np.clip(whole, np.iinfo(y.dtype).min, np.iinfo(y.dtype).max)
        y[start : start + size] = whole.astype(y.dtype)


def restore(y: np.ndarray, negative: np.ndarray, zero: np.ndarray) -> None:
    """Make elements of `y` zero, then negate, where the masks (bool as uint8, one each or none at all) say so."""
    if zero.size:
        y[zero != 0] = 0
    if negative.size:
        y[negative != 0] *= -1


def _log2(x: np.ndarray) -> np.ndarray:
    """Return log2 of positive float64, by plain products and sums; denormals come out wrong."""
    bits = x.view(np.int64)
    exponent = (bits - _HALF_ROOT) >> 52
    mantissa = (bits - (exponent << 52)).view(np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    squared = s * s
    value = np.full_like(s, _LOG2[-1])
    for coefficient in reversed(_LOG2[:-1]):
        value = value * squared + coefficient
    return exponent + value * s


def _exp2(t: np.ndarray) -> np.ndarray:
    t = np.minimum(np.maximum(t, -1022.0), 1023.0)
    whole = t + _ROUND - _ROUND
    f = t - whole
    value = np.full_like(f, _EXP2[-1])
    for coefficient in reversed(_EXP2[:-1]):
        value = value * f + coefficient
    return (value * f + 1.0) * ((whole.astype(np.int64) + 1023) << 52).view(np.float64)
