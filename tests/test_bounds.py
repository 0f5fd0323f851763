"""The rules of the docstring of trimtab.bounds, each with an example that keeps it and one that breaks it."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.samples import special
from trimtab import bounds
from trimtab.bounds import PSNR, Abs, Lossless, PointwiseRel, Rel, largest_error, make_bound, psnr, value_range
from trimtab.dtypes import FLOATS, numpy_dtype
from trimtab.errors import BoundError, ShapeError

LOSSY = [Abs(0.5), Rel(0.5), PointwiseRel(0.5), PSNR(1.0)]
FINITE = {"allow_nan": False, "allow_infinity": False}


def floats(*values: float, dtype: str = "float32") -> np.ndarray:
    return np.array(values).astype(numpy_dtype(dtype))


@pytest.mark.parametrize(
    ("bound", "good", "bad"),
    [
        (Lossless(), [1.0, 3.0, -8.0], [1.0, 3.0000002, -8.0]),
        (Abs(0.25), [1.25, 2.75, -8.25], [1.0, 3.2500002, -8.0]),
        (Rel(0.25), [3.75, 0.25, -10.75], [3.7500003, 3.0, -8.0]),  # of 3 - (-8) = 11
        (PointwiseRel(0.25), [1.25, 2.25, -10.0], [1.2500001, 3.0, -8.0]),
        (PSNR(20.0), [2.0, 4.0, -9.0], [2.11, 4.11, -9.11]),  # 20 log10(11) - 20 log10(1) = 20.83
    ],
    ids=repr,
)
def test_each_bound_allows_its_limit_and_no_more(bound, good, bad):
    x = floats(1, 3, -8)
    assert bound.allows(x, floats(*good))
    assert not bound.allows(x, floats(*bad))
    assert bound.allows(x, x)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bound", [Lossless(), *LOSSY], ids=repr)
def test_nan_and_infinities_come_back_bit_for_bit(bound, dtype):
    x = special(dtype)
    assert bound.allows(x, x.copy())
    bits = x.view(f"u{x.itemsize}")
    for i in np.flatnonzero(~bounds.is_finite(x)):
        wrong = bits.copy()
        wrong[i] ^= 2 if i > 6 else 1  # another payload; or NaN for infinity
        assert not bound.allows(x, wrong.view(x.dtype))
    appeared = x.copy()
    appeared[0] = np.nan
    assert not bound.allows(x, appeared)
    appeared[0] = np.inf
    assert not bound.allows(x, appeared)


@pytest.mark.parametrize("bound", [Abs(0.5), Rel(0.5), PSNR(1.0)], ids=repr)
def test_zero_may_lose_its_sign(bound):
    assert bound.allows(floats(-0.0, 1), floats(0.0, 1))


@pytest.mark.parametrize("bound", [Lossless(), PointwiseRel(0.5)], ids=repr)
def test_zero_keeps_its_sign(bound):
    assert bound.allows(floats(-0.0, 1), floats(-0.0, 1))
    assert not bound.allows(floats(-0.0, 1), floats(0.0, 1))
    assert not bound.allows(floats(0.0, 1), floats(1e-45, 1))


def test_denormals_count_as_the_numbers_they_are():
    tiny = floats(1e-45, 3e-45, 8e-45)
    assert not Abs(1e-45).allows(tiny, np.zeros_like(tiny))
    assert Abs(1e-44).allows(tiny, np.zeros_like(tiny))
    assert not PointwiseRel(0.5).allows(tiny, np.zeros_like(tiny))
    assert not Rel(0.5).allows(tiny, np.zeros_like(tiny))


def test_value_range_is_over_finite_elements():
    x = floats(np.nan, 2, -np.inf, 5, np.inf)
    assert value_range(x) == 3
    assert Rel(0.5).allows(x, floats(np.nan, 3.5, -np.inf, 5, np.inf))
    assert not Rel(0.5).allows(x, floats(np.nan, 3.75, -np.inf, 5, np.inf))
    assert value_range(floats(np.nan, np.inf)) == 0
    assert value_range(np.empty(0, "f4")) == 0


def test_range_zero_allows_only_equality():
    x = np.full(5, 2.0)
    assert Rel(0.9).allows(x, x.copy())
    assert not Rel(0.9).allows(x, np.nextafter(x, 3))
    assert PSNR(300.0).allows(x, x.copy())
    assert not PSNR(1e-9).allows(x, np.nextafter(x, 3))


def test_relative_bound_holds_where_the_range_overflows_float64():
    x = np.array([-1.5e308, 1.5e308, 0.0])
    assert math.isinf(value_range(x))
    assert Rel(0.001).allows(x, x + np.array([0, 0, 2.9e305]))
    assert not Rel(0.001).allows(x, x + np.array([0, 0, 3.1e305]))


def test_overflowing_errors_are_violations():
    x, y = np.array([-1.5e308, 1.5e308]), np.array([1.5e308, 1.5e308])
    assert not Abs(1e308).allows(x, y)
    assert not PSNR(1.0).allows(x, y)
    assert not PointwiseRel(1.0).allows(x, y)
    assert PointwiseRel(10.0).allows(y, np.array([1e308, 1e308]))  # a limit beyond float64
    assert largest_error(x, y) == math.inf


def test_largest_error_reports_lost_elements():
    x = np.zeros(bounds._PIECE + 5, "f4")
    y = x.copy()
    y[3] = 0.5
    assert largest_error(x, y) == 0.5
    y[-1] = np.nan
    assert largest_error(x, y) == math.inf
    assert psnr(x, y) == -math.inf


def test_psnr_is_the_formula():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=1000), rng.normal(size=1000) * 1e-3
    expected = 10 * np.log10(np.ptp(x) ** 2 / np.mean(noise**2))
    assert psnr(x, x + noise) == pytest.approx(expected, abs=1e-6)
    assert psnr(x, x) == math.inf
    assert psnr(np.empty(0), np.empty(0)) == math.inf


def test_limits_of_integers_count_with_their_whole_part():
    x = np.array([0, 2**62, -(2**62)])
    assert Abs(2.0**62).allows(x, np.array([2**62, 0, -(2**62)]))
    assert not Abs(2.0**62).allows(x, np.array([2**62 + 1, 2**62, -(2**62)]))  # the same in float64
    assert Abs(0.999).allows(x, x) and not Abs(0.999).allows(x, x + 1)
    assert Abs(1e300).allows(x, x[::-1].copy())
    assert PointwiseRel(0.5).allows(x, np.array([0, 2**61, -(2**62)]))
    assert not PointwiseRel(0.5).allows(x, np.array([0, 2**61 - 1, -(2**62)]))
    assert not PointwiseRel(0.5).allows(x, np.array([1, 2**62, -(2**62)]))
    ends = np.array([0, 2**64 - 1], np.uint64)
    assert Rel(1.0).allows(ends, ends[::-1].copy()) and value_range(np.array([2**60, 2**60 + 3])) == 3


def test_integers_are_compared_exactly():
    x = np.array([2**62, -(2**63), 2**63 - 1])
    y = x + np.array([1, 0, 0])
    assert not Abs(0.5).allows(x, y)
    assert Abs(1.0).allows(x, y)
    assert largest_error(x, x[[0, 2, 1]]) == 2.0**64
    assert largest_error(np.array([0, 255], "u1"), np.array([255, 0], "u1")) == 255
    assert not Abs(0.5).allows(np.array([True]), np.array([False]))


@pytest.mark.parametrize("bound", LOSSY, ids=repr)
def test_complex_numbers_have_no_error_bounds(bound):
    z = np.array([1 + 2j])
    with pytest.raises(ShapeError, match="real numbers"):
        bound.allows(z, z)


def test_lossless_compares_complex_numbers_and_any_byte_order():
    z = np.array([1 + 2j, 3 - 4j])
    assert Lossless().allows(z, z.copy())
    assert not Lossless().allows(z, z.conj())
    x = floats(1, 2)
    assert Lossless().allows(x.astype(">f4"), x)
    assert not Lossless().allows(x.astype(">f4"), floats(1, 2.5))


@pytest.mark.parametrize("bound", [Lossless(), *LOSSY], ids=repr)
@pytest.mark.parametrize("y", [np.zeros((2, 3), "f4"), np.zeros(6, "f8")], ids=["shape", "dtype"])
def test_other_shapes_and_dtypes_cannot_be_compared(bound, y):
    with pytest.raises(ShapeError, match="cannot compare"):
        bound.allows(np.zeros(6, "f4"), y)


@pytest.mark.parametrize("kind", [Abs, Rel, PointwiseRel, PSNR])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1e-3", None, 10**400, [1.0]], ids=repr)
def test_values_must_be_positive_and_finite(kind, value):
    with pytest.raises(BoundError, match=r"positive finite number.*\$\.bound\.value"):
        kind(value)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.array(0.5), np.float16(0.5)], ids=repr)
def test_numpy_numbers_become_plain_ones(value):
    bound = Rel(value)
    assert type(bound.value) is float
    assert msgspec.json.decode(msgspec.json.encode(bound), type=bounds.Bound) == Rel(0.5)


@pytest.mark.parametrize("bound", [Lossless(), *LOSSY], ids=repr)
def test_make_bound_is_the_inverse_of_plain_data(bound):
    assert make_bound(msgspec.to_builtins(bound)) == bound
    assert make_bound(bound) is bound


@pytest.mark.parametrize(
    "settings", [{}, {"kind": "huge"}, {"kind": "abs"}, {"kind": "abs", "value": -1.0}, {"kind": 1}, 0.1, "abs"]
)
def test_make_bound_refuses_what_is_no_bound(settings):
    with pytest.raises(BoundError):
        make_bound(settings)


def test_pieces_cover_arrays_of_any_strides():
    x = np.arange(3 * bounds._PIECE // 2, dtype="f4").reshape(2, -1).T
    y = x.copy()
    assert Abs(0.1).allows(x, y)
    y[-1, -1] += 1
    assert not Abs(0.1).allows(x, y)


@given(hnp.arrays("f8", 20, elements=st.floats(-1e300, 1e300)), st.floats(1e-6, 0.5), st.integers(0, 19))
def test_bounds_agree_with_exact_arithmetic(x, value, at):
    """One element is moved by less and by more than each bound's limit."""
    limits = {Abs(value): value, Rel(value): value * np.ptp(x), PointwiseRel(value): value * abs(x[at])}
    for bound, limit in limits.items():
        for factor, allowed in ((0.9, True), (1.1, False)):
            y = x.copy()
            y[at] += factor * limit
            moved = abs(y[at] - x[at])
            if (moved <= limit) == allowed and moved > 0 and not (isinstance(bound, PointwiseRel) and x[at] == 0):
                assert bound.allows(x, y) == allowed


@given(hnp.arrays("f4", hnp.array_shapes(max_dims=3), elements=st.floats(width=32)))
def test_every_bound_allows_the_array_itself(x):
    assert all(bound.allows(x, x.copy()) for bound in (Lossless(), *LOSSY))
