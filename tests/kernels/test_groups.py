"""Integers in groups: errors within a step, noise that is right on average, and twins that agree to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.wire import arrays, bfloat16, elements, payload
from trimtab import kernels
from trimtab.kernels.groups import numba, ref

TWINS = [ref, numba]
NAN = np.uint32(0x7FC00000).view(np.float32)


def encoded(twin, x, bits, group, order, key) -> np.ndarray:
    out = payload(ref.payload_bytes(x.size, bits, group, order))
    twin.encode(x, out, bits, group, order, key)
    return out


def decoded(twin, packed, num, bits, group, order, dtype=np.float32) -> np.ndarray:
    y = np.ones(num, dtype)
    twin.decode(packed, y, bits, group, order)
    return y


def steps(x: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Return the step of each element's group, without a transform."""
    parts = np.split(x, range(group, x.size, group))
    return np.concatenate([np.full(part.size, np.abs(part).max() / (2 ** (bits - 1) - 1)) for part in parts])


SETTINGS = st.tuples(
    st.integers(2, 8),
    st.sampled_from([8, 16, 64, 128, 1024]),
    st.sampled_from([0, 32, 64, 128]),
    st.none() | st.integers(0, 2**64 - 1),
).map(lambda s: (s[0], max(s[1], s[2]), s[2], s[3]))


@settings(max_examples=120, deadline=None)
@given(x=arrays(), chosen=SETTINGS)
def test_twins_agree(x: np.ndarray, chosen: tuple) -> None:
    bits, group, order, key = chosen
    packed = encoded(ref, x, *chosen)
    assert np.array_equal(encoded(numba, x, *chosen), packed)
    rows = np.stack([packed, packed[::-1], packed])  # hostile bytes decode to something, the same everywhere
    for dtype in (np.float32, np.uint16):
        y, w = np.ones(x.size, dtype), np.ones(x.size, dtype)
        ref.decode_sum(rows, y, bits, group, order, 0.7)
        numba.decode_sum(rows, w, bits, group, order, 0.7)
        assert np.array_equal(y, w, equal_nan=dtype == np.float32)
    for out_bits, out_group in ((4, max(group, 128)), (8, max(order, 8))):
        fused = [payload(ref.payload_bytes(x.size, out_bits, out_group, order)) for _ in TWINS]
        for twin, out in zip(TWINS, fused, strict=True):
            twin.decode_sum_encode(rows, out, x.size, bits, group, out_bits, out_group, order, key)
        assert np.array_equal(*fused)


@settings(max_examples=60, deadline=None)
@given(x=arrays(), reference=arrays(), chosen=SETTINGS)
def test_twins_agree_on_differences(x: np.ndarray, reference: np.ndarray, chosen: tuple) -> None:
    num = min(x.size, reference.size)
    x, reference, (bits, group, _, key) = x[:num], reference[:num], chosen
    results = []
    for twin in TWINS:
        packed, target = payload(ref.payload_bytes(num, bits, group, 0)), reference.copy()
        twin.encode_difference(x, reference, packed, bits, group, key)
        twin.decode_add(packed, target, bits, group)
        results.append((packed, target))
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1], equal_nan=reference.dtype == np.float32)


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("bits", ref.BITS)
@pytest.mark.parametrize("num", [1, 7, 8, 129, 1000])
def test_errors_stay_within_a_step(twin, bits: int, num: int) -> None:
    x = elements(num, bits)
    for key, share in ((None, 0.5), (7, 1.0)):
        y = decoded(twin, encoded(twin, x, bits, 128, 0, key), num, bits, 128, 0)
        assert (np.abs(y - x) <= steps(x, bits, 128) * (share + 1e-5)).all()
        assert (y[x == 0] == 0).all()  # noise never moves a zero


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("order", [0, 32])
def test_stochastic_rounding_is_right_on_average(twin, order: int) -> None:
    x = elements(512, 3)
    sums, num = np.zeros(512), 300
    for step in range(num):
        key = ref.noise_key(seed=1, step=step)
        sums += decoded(twin, encoded(twin, x, 4, 128, order, key), 512, 4, 128, order)
    step = steps(x, 4, 128) if order == 0 else np.abs(x).max()
    assert np.abs(sums / num - x).mean() < 0.03 * np.mean(step)
    nearest = decoded(twin, encoded(twin, x, 4, 128, order, None), 512, 4, 128, order)
    assert np.abs(nearest - x).mean() > 0.1 * np.mean(steps(x, 4, 128))  # which one rounding alone is not


def test_noise_is_even_and_depends_on_every_part_of_its_key() -> None:
    base = {"seed": 1, "rank": 2, "step": 3, "bucket": 4, "stage": 5}
    noise = ref._noise(np.arange(1 << 16, dtype=np.uint64), ref.noise_key(**base))
    assert abs(noise.mean()) < 0.005 and abs(noise.std() - 12**-0.5) < 0.005
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.02
    assert np.abs(noise).max() < 0.5
    for name in base:
        other = ref._noise(np.arange(1 << 16, dtype=np.uint64), ref.noise_key(**{**base, name: 6}))
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.02, name
    late = ref._noise(np.arange(1 << 16, dtype=np.uint64) + np.uint64(1 << 32), ref.noise_key(**base))
    assert abs(np.corrcoef(noise, late)[0, 1]) < 0.02


def test_noise_key_is_part_of_the_format() -> None:
    assert ref.noise_key(0) == numba.noise_key(0) == 0x78AE5A9A6B5FD45E
    assert ref.noise_key(1, 2, 3, 4, 5) == 0x141EA6A5B8259323


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("order", [0, 32])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_group_stays_broken_and_alone(twin, order: int, bad: float) -> None:
    x = elements(512, 5)
    x[130] = bad
    for key in (None, 9):
        packed = encoded(twin, x, 4, 128, order, key)
        assert packed[4:8].tobytes() == NAN.tobytes()
        y = decoded(twin, packed, 512, 4, 128, order)
        assert np.isnan(y[128:256]).all()
        assert np.isfinite(y[:128]).all() and np.isfinite(y[256:]).all()
        words = decoded(twin, packed, 512, 4, 128, order, np.uint16)
        assert (words[128:256] == 0x7FC0).all()


@pytest.mark.parametrize("twin", TWINS)
def test_what_overflows_in_the_transform_is_broken(twin) -> None:
    x = np.full(32, 3e38, np.float32)
    assert np.isnan(decoded(twin, encoded(twin, x, 8, 32, 32, None), 32, 8, 32, 32)).all()


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 2e-36])
def test_zeros_and_what_is_almost_zero(twin, value: float) -> None:
    y = decoded(twin, encoded(twin, np.full(300, value, np.float32), 4, 128, 0, 3), 300, 4, 128, 0)
    assert y.tobytes() == bytes(1200)


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("value", [4e-36, 1.0, 3.4e38])
def test_smallest_and_largest_scales(twin, value: float) -> None:
    for bits in ref.BITS:
        x = np.full(64, value, np.float32)
        y = decoded(twin, encoded(twin, x, bits, 64, 0, 3), 64, bits, 64, 0)
        assert np.allclose(y, x, rtol=1e-6)


@pytest.mark.parametrize("twin", TWINS)
def test_fused_and_unfused_agree(twin) -> None:
    num, order = 3000, 32
    rows = np.stack([encoded(twin, elements(num, r), 8, 128, order, r) for r in range(4)])
    size = ref.padded(num, 128, order)
    z = np.empty(size, np.float32)
    twin.decode_sum(rows, z, 8, 128, 0, 1.0)  # still transformed
    expected = encoded(twin, z, 4, 128, 0, 77)
    fused = payload(ref.payload_bytes(num, 4, 128, order))
    twin.decode_sum_encode(rows, fused, num, 8, 128, 4, 128, order, 77)
    assert np.array_equal(fused, expected)
    total = sum(elements(num, r).astype(np.float64) for r in range(4))
    y = decoded(twin, fused, num, 4, 128, order)
    assert np.abs(y - total).max() < 0.6 * np.abs(total).max()
    assert np.linalg.norm(y - total) < 0.25 * np.linalg.norm(total)


@pytest.mark.parametrize("twin", TWINS)
def test_rows_are_added_in_order_and_scaled_once(twin) -> None:
    xs = [elements(500, r, 10.0**r) for r in range(3)]
    rows = np.stack([encoded(twin, x, 8, 64, 0, None) for x in xs])
    parts = [decoded(twin, row, 500, 8, 64, 0) for row in rows]
    y = np.empty(500, np.float32)
    twin.decode_sum(rows, y, 8, 64, 0, 1 / 3)
    assert np.array_equal(y, ((parts[0] + parts[1]) + parts[2]) * np.float32(1 / 3))
    wide = np.full((3, rows.shape[1] + 5), 0xA5, np.uint8)
    wide[:, 5:] = rows
    w = np.empty(500, np.float32)
    twin.decode_sum(wide[:, 5:], w, 8, 64, 0, 1 / 3)  # rows that stand apart, as behind headers
    assert np.array_equal(w, y)


@pytest.mark.parametrize("twin", TWINS)
def test_differences_are_rounded_in_the_references_type(twin) -> None:
    reference = bfloat16(elements(1000, 1))
    x = elements(1000, 1) + elements(1000, 2, 1e-2)
    packed = payload(ref.payload_bytes(1000, 4, 256, 0))
    twin.encode_difference(x, reference, packed, 4, 256, 5)
    y = reference.copy()
    twin.decode_add(packed, y, 4, 256)
    difference = decoded(twin, packed, 1000, 4, 256, 0)
    assert np.array_equal(y, bfloat16(ref._wide(reference) + difference))
    assert not np.array_equal(y, reference)


def test_payload_bytes() -> None:
    assert ref.payload_bytes(0, 4, 128, 0) == 0
    assert ref.payload_bytes(1, 4, 128, 0) == 4 + 4
    assert ref.payload_bytes(1, 4, 128, 32) == 4 + 16
    assert ref.payload_bytes(129, 3, 128, 32) == 8 + (128 + 32) * 3 // 8
    assert ref.payload_bytes(2**40, 4, 2048, 0) == 2**39 + 2**31  # sizes are 64-bit


@pytest.mark.parametrize("function", ["encode", "decode_sum", "decode_sum_encode", "decode_add"])
def test_threads_change_nothing(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba, "_THREADED", 1000)
    x = elements(10_001, 3)
    packed = encoded(numba, x, 4, 128, 0, 5)
    rows = np.stack([packed, packed])
    results = []
    for count in (1, 3):
        out = {
            "encode": payload(packed.size),
            "decode_sum": np.empty_like(x),
            "decode_sum_encode": payload(ref.payload_bytes(x.size, 8, 2048, 0)),
            "decode_add": x.copy(),
        }[function]
        with kernels.threads(count):
            if function == "encode":
                numba.encode(x, out, 4, 128, 0, 5)
            elif function == "decode_sum":
                numba.decode_sum(rows, out, 4, 128, 0, 1.0)
            elif function == "decode_sum_encode":
                numba.decode_sum_encode(rows, out, x.size, 4, 128, 8, 2048, 0, 5)
            else:
                numba.decode_add(packed, out, 4, 128)
        results.append(out)
    assert np.array_equal(*results)
