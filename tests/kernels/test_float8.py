"""8-bit floats in groups: errors as the format's, broken groups, and twins that agree to the bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.wire import arrays, bfloat16, elements, payload
from trimtab.kernels.float8 import numba, ref

TWINS = [ref, numba]


def encoded(twin, x, format, group, order, scales, target) -> np.ndarray:
    out = payload(ref.payload_bytes(x.size, group, scales))
    twin.encode(x, out, format, group, order, scales, target)
    return out


def there_and_back(twin, x, format="e4m3", group=128, order=128, scales=2, target=None) -> np.ndarray:
    packed = encoded(twin, x, format, group, order, scales, target or ref.MAXIMUM[format])
    y = np.ones(x.size, np.float32)
    twin.decode(packed, y, format, group, order, scales)
    return y


def snr(x: np.ndarray, y: np.ndarray) -> float:
    wide = x.astype(np.float64)
    return float(10 * np.log10((wide**2).sum() / ((y - wide) ** 2).sum()))


@settings(max_examples=150, deadline=None)
@given(
    x=arrays(),
    format=st.sampled_from(["e4m3", "e5m2"]),
    group=st.sampled_from([32, 64, 128, 256, 512]),
    transform=st.booleans(),
    scales=st.sampled_from([1, 2]),
    target=st.sampled_from([1.0, 100.0, 448.0]),
)
def test_twins_agree(x, format: str, group: int, transform: bool, scales: int, target: float) -> None:
    settings = format, group, group if transform else 0, scales
    packed = encoded(ref, x, *settings, target)
    assert np.array_equal(encoded(numba, x, *settings, target), packed)
    rows = np.stack([packed, packed[::-1], packed])  # hostile bytes decode to something, the same everywhere
    for dtype in (np.float32, np.uint16):
        y, w = np.ones(x.size, dtype), np.ones(x.size, dtype)
        ref.decode_sum(rows, y, *settings, 0.7)
        numba.decode_sum(rows, w, *settings, 0.7)
        assert np.array_equal(y, w, equal_nan=dtype == np.float32)


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(("format", "dtype"), [("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)])
def test_every_byte_is_what_the_format_says(twin, format: str, dtype) -> None:
    codes = np.arange(256, dtype=np.uint8)
    packed = np.concatenate([codes, np.ones(8, np.float32).view(np.uint8)])
    y = np.empty(256, np.float32)
    twin.decode(packed, y, format, 32, 0, 1)
    assert np.array_equal(y, codes.view(dtype).astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(("format", "dtype"), [("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)])
def test_bytes_are_rounded_to_the_nearest_even(twin, format: str, dtype) -> None:
    finite = np.arange(127, dtype=np.uint8).view(dtype).astype(np.float32)
    finite = finite[np.isfinite(finite)]
    middle = (finite[1:] + finite[:-1]) / 2
    x = np.concatenate([finite, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9))])
    x = np.concatenate([x, -x])
    x = np.concatenate([x, np.zeros(-x.size % 31, np.float32)]).reshape(-1, 31)
    x = np.concatenate([x, np.full((len(x), 1), ref.MAXIMUM[format], np.float32)], axis=1)  # so that the scale is 1
    packed = encoded(twin, x.reshape(-1), format, 32, 0, 1, ref.MAXIMUM[format])
    assert np.array_equal(packed[: x.size], x.reshape(-1).astype(dtype).view(np.uint8))


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 100.0])
def test_noise_is_that_of_the_format(twin, scale: float) -> None:
    """The two scales are one: both modes are as exact, and as a transcription of the formulas was measured to be."""
    x = elements(1 << 13, 1, scale)
    for scales in (1, 2):
        assert 31.4 < snr(x, there_and_back(twin, x, scales=scales)) < 32.4
        assert 25.2 < snr(x, there_and_back(twin, x, "e5m2", 256, 256, scales)) < 26.2


def test_formulas_of_the_paper() -> None:
    """Scales against the published formulas in float64."""
    x = elements(256, 4)
    packed = encoded(numba, x, "e4m3", 128, 0, 2, 448.0)
    numbers = packed[256:].copy().view("<f4").reshape(2, 2)
    for g, part in enumerate(x.reshape(2, 128).astype(np.float64)):
        alpha = np.clip(448 / np.sqrt((part**2).mean() + 1e-6), 1e-3, 1e3)
        q = np.clip(np.abs(alpha * part).max() / 448, 1e-12, 1e6)
        assert np.allclose(numbers[:, g], [q, alpha], rtol=1e-6)


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("num", [1, 96, 127, 129, 300])
def test_a_group_that_is_not_full_loses_nothing(twin, num: int) -> None:
    x = elements(num, 2)
    x[x == 0] = 1
    assert snr(x, there_and_back(twin, x)) > 28


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("order", [0, 128])
@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_group_stays_broken_and_alone(twin, order: int, scales: int, bad: float) -> None:
    x = elements(384, 5)
    x[130] = bad
    y = there_and_back(twin, x, order=order, scales=scales)
    assert np.isnan(y[128:256]).all()
    assert np.isfinite(y[:128]).all() and np.isfinite(y[256:]).all()


@pytest.mark.parametrize("twin", TWINS)
def test_what_two_scales_do_not_reach_is_broken_not_cut_off(twin) -> None:
    x = elements(128, 5, 1e14)
    assert np.isnan(there_and_back(twin, x, scales=2)).all()
    assert snr(x, there_and_back(twin, x, scales=1)) > 30


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("value", [0.0, 1e-45, 7e-34])
def test_zeros_and_what_is_almost_zero(twin, value: float) -> None:
    x = np.full(200, value, np.float32)
    assert not there_and_back(twin, x, order=0, scales=1).any()
    if value == 0:
        assert not there_and_back(twin, x, scales=1).any()
        assert not there_and_back(twin, x, scales=2).any()


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("scales", [1, 2])
def test_rows_are_added_in_order_and_scaled_once(twin, scales: int) -> None:
    settings = "e4m3", 64, 0, scales
    xs = [bfloat16(elements(500, r, 10.0**r)) for r in range(3)]
    rows = np.full((3, ref.payload_bytes(500, 64, scales) + 5), 0xA5, np.uint8)[:, 5:]
    parts = np.empty((3, 500), np.float32)
    for x, row, part in zip(xs, rows, parts, strict=True):
        twin.encode(x, row, *settings, 448.0)
        twin.decode(row, part, *settings)
    y = np.empty(500, np.float32)
    twin.decode_sum(rows, y, *settings, 1 / 3)
    assert np.array_equal(y, ((parts[0] + parts[1]) + parts[2]) * np.float32(1 / 3))


def test_payload_bytes() -> None:
    assert ref.payload_bytes(0, 128, 2) == 0
    assert ref.payload_bytes(129, 128, 2) == 256 + 16
    assert ref.payload_bytes(2**40, 128, 1) == 2**40 + 2**35
