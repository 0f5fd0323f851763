"""Quantisation: back ends agree to the bit, special values are outliers, exp2 is accurate."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.dtypes import INTEGERS, numpy_dtype
from trimtab.kernels.quantiser import numba, ref

SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 1e30, -1e30, 1e-40, 5e-324]


def field(dtype: type) -> np.ndarray:
    x = np.random.default_rng(0).normal(0, 100, 1000)
    x[:: 1000 // len(SPECIAL)][: len(SPECIAL)] = SPECIAL
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_twins_agree(dtype):
    x = field(dtype)
    starts = np.arange(0, x.size, 64)
    results = []
    for twin in (ref, numba):
        q, outliers = np.zeros((starts.size, 68), np.int32), np.zeros(x.size, np.uint32)
        count = twin.quantise(x, starts, 0.012, 0.005, ref.NONE, 2, q, outliers)
        y, z = np.zeros_like(x), np.zeros_like(x)
        twin.dequantise(q, starts, 0.012, 2, y)
        twin.dequantise_exp2(q, starts, 0.001, 2, z)
        results.append((count, q, outliers, y.view(np.uint8), z.view(np.uint8), twin.extent(x)))
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)
    count, _, outliers, y, *_ = results[1]
    assert 100 < count < 300  # a step wider than the bound allows: a sixth of the elements miss it
    kept = np.setdiff1d(np.arange(x.size), outliers[:count])
    assert {0, 125, 250, 500, 625} <= set(outliers[:count].tolist())
    assert np.abs(y.view(dtype)[kept].astype(float) - x[kept]).max() <= 0.005


ROUNDED = {ref.NONE: "float32", ref.FLOAT16: "float16", ref.BFLOAT16: "bfloat16", ref.INTEGER: "int32"}


@pytest.mark.parametrize("rounding", ROUNDED)
@pytest.mark.parametrize("length", [64, 1000, 5000])
def test_stand_ins_are_judged_in_the_dtype_that_comes_out(rounding, length):
    special = [np.nan, np.inf, -np.inf, 65504, 65519, -65520, 3e4, 6e-8, -3e-8, 2e-5, 6.2e-5, 0.0, -0.0]
    x = np.random.default_rng(length).normal(0, 100, 10_007).astype(np.float32)
    x[::9] *= np.float32(1e-5)
    x[7 :: x.size // len(special)][: len(special)] = special
    dtype = numpy_dtype(ROUNDED[rounding])
    if rounding == ref.INTEGER:
        x = np.rint(x)
    elif rounding != ref.NONE:
        with np.errstate(over="ignore"):
            x = x.astype(dtype).astype(np.float32)
    starts = np.arange(0, x.size, length)
    results = []
    for twin in (ref, numba):
        q, outliers = np.zeros((starts.size, length + 4), np.int32), np.zeros(x.size, np.uint32)
        count = twin.quantise(x, starts, 0.77, 0.41, rounding, 2, q, outliers)
        squares = twin.squared_error(x, starts, length, 0.77, 0.41, rounding)
        results.append((count, q, outliers, squares))
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)
    count, q, outliers, (squares, num_finite) = results[1]
    y = np.zeros_like(x)
    numba.dequantise(q, starts, 0.77, 2, y)
    with np.errstate(over="ignore"):
        y = np.rint(y) if rounding == ref.INTEGER else y.astype(dtype).astype(np.float32)
    error = np.abs(y.astype(float) - x)
    missed = np.zeros(x.size, bool)
    missed[outliers[:count]] = True
    assert (error[~missed] <= 0.41).all()
    assert num_finite == np.isfinite(x).sum()
    assert squares == pytest.approx(np.square(error[~missed]).sum(), rel=1e-12)
    assert missed[~np.isfinite(x)].all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_logarithms_keep_every_magnitude(dtype):
    wide = np.float64 if dtype == "float64" else np.float32
    rounding = {"float16": ref.FLOAT16, "bfloat16": ref.BFLOAT16}.get(dtype, ref.NONE)
    bound = 0.02
    step = 2 * np.arctanh(bound - 2**-8 if dtype == "bfloat16" else bound - 2**-11) / np.log(2)
    x = np.exp(np.random.default_rng(0).normal(0, 4, 9_999)) * np.where(np.arange(9_999) % 5, 1, -1)
    x[::11] = 0
    x[5 :: x.size // len(SPECIAL)][: len(SPECIAL)] = SPECIAL
    with np.errstate(over="ignore"):
        x = x.astype(numpy_dtype(dtype)).astype(wide)
    starts = np.arange(0, x.size, 300)
    results = []
    for twin in (ref, numba):
        q, outliers = np.zeros((starts.size, 304), np.int32), np.zeros(x.size, np.uint32)
        negative, zero, y = np.zeros(x.size, np.uint8), np.zeros(x.size, np.uint8), np.zeros_like(x)
        count = twin.quantise_log2(
            x, starts, step, np.log2(np.cosh(step * np.log(2) / 2)), bound, rounding, 2, q, outliers, negative, zero, y
        )
        y[outliers[:count]] = 0
        z = np.zeros_like(x)
        twin.dequantise_exp2(q, starts, step, 2, z)
        twin.restore(z, negative, zero)
        results.append((count, q, outliers, negative, zero, y.view(np.uint8), z.view(np.uint8)))
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)
    count, q, outliers, negative, zero, y, z = results[1]
    kept = np.ones(x.size, bool)
    kept[outliers[:count]] = False
    y, z = y.view(wide), z.view(wide)
    with np.errstate(over="ignore"):
        came = z.astype(numpy_dtype(dtype)).astype(wide)
    assert np.array_equal(y[kept], came[kept])
    assert (np.abs(y[kept].astype(float) - x[kept]) <= bound * np.abs(x[kept].astype(float))).all()
    assert np.array_equal(negative, np.signbit(x)) and np.array_equal(zero, x == 0)
    assert kept[x == 0].all() and kept.mean() > 0.9


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("step", [1.0, 3.0, 2.5, 1e9, 1e300])
@pytest.mark.parametrize("offset", [0, -(2**63), 2**62 + 12345])
def test_integers_wrap_and_then_are_held(dtype, step, offset):
    q = np.random.default_rng(0).integers(-(2**31), 2**31, (4, 20)).astype(np.int32)
    q[1, 4:8] = 0, 1, -1, 50
    results = []
    for twin in (ref, numba):
        y = np.zeros(61, dtype)
        twin.dequantise_integers(q, np.arange(4) * 16, step, offset, 2, y)
        results.append(y)
    assert np.array_equal(*results)
    products = [round(max(min(int(n) * step, 2.0**50), -(2.0**50))) for n in q[:, 2:-2].reshape(-1)[:61]]
    sums = [(p + offset + 2**63) % 2**64 - 2**63 for p in products]
    ends = np.iinfo(dtype)
    assert results[0].tolist() == [n % 2**64 if dtype == "uint64" else max(min(n, ends.max), ends.min) for n in sums]


def test_exp2_is_accurate_over_all_exponents():
    q = np.zeros((1, 4004), np.int32)
    q[0, 2:-2] = np.linspace(-1_000_000, 1_000_000, 4000)
    y = np.empty(4000)
    numba.dequantise_exp2(q, np.zeros(1, np.int64), 1 / 1000, 2, y)
    expected = np.exp2(q[0, 2:-2] * (1 / 1000))
    assert np.abs(y / expected - 1).max() < 1e-15


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extent_of_nothing_finite(dtype):
    assert numba.extent(np.array([np.nan, np.inf], dtype)) == (np.inf, -np.inf)
    assert numba.extent(np.empty(0, dtype)) == (np.inf, -np.inf)
