"""Blocks of bit planes: both twins make the same bytes, and read damaged ones alike."""

from __future__ import annotations

import numpy as np
import pytest

from tests.samples import special
from trimtab.dtypes import numpy_dtype
from trimtab.kernels.blocks import numba, ref
from trimtab.kernels.half import ref as half

TWINS = (ref, numba)
ROUNDING = {"float32": ref.NONE, "float16": ref.FLOAT16, "bfloat16": ref.BFLOAT16}


def activations(name: str, size: int) -> np.ndarray:
    """Return normal elements, with stretches of zeros, positive ones alone, outliers and special values."""
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    x[size // 8 : size // 4] = 0
    x[size // 4 : size // 2] = np.maximum(x[size // 4 : size // 2], 0)
    x[size // 2 :: 97] *= 1000
    x[3 * size // 4 :: 61] *= 1e-8
    y = x.astype(numpy_dtype(name))
    y[-special(name).size :] = special(name)[:size]
    return y


def widened(x: np.ndarray) -> np.ndarray:
    y = np.empty(x.size, np.float32)
    if x.dtype == np.float32:
        return x
    half.widen(x.view(np.uint16), x.dtype.name, y)
    return y


def encoded(twin, x: np.ndarray, error: float, start: int = ref.PLAIN) -> tuple[bytes, bytes, float]:
    sizes = np.full(-(-x.size // ref.CHUNK), 9, np.uint16)
    out = np.full(ref.most_bytes(x.size, x.itemsize), 9, np.uint8)
    settings = np.float32(error), ROUNDING[x.dtype.name], start, sizes, out
    num_bytes, total = twin.encode(widened(x), x.view(np.uint8), *settings)
    return sizes.tobytes(), out[:num_bytes].tobytes(), total


def decoded(
    twin, sizes: bytes, data: bytes, error: float, x: np.ndarray, start: int = ref.PLAIN
) -> tuple[int, np.ndarray]:
    y = np.full(x.size, 9, np.float32)
    # the data ends where its memory does, but for what the last chunks are copied for
    parts = np.frombuffer(data, np.uint8), np.frombuffer(sizes, np.uint16)
    return twin.decode(*parts, np.float32(error), start, x.itemsize, y), y


@pytest.mark.parametrize("start", [ref.PLAIN, 0, 2**32 - 1000])
@pytest.mark.parametrize("error", [0.0, 1e-45, 1e-5, 2.0**-10, 0.25, 3.0, 1e6, 2.0**127])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1023, 1024, 1025, 5000])
def test_twins_agree(size: int, error: float, start: int) -> None:
    for x in (activations("float32", size), np.maximum(activations("float32", size), 0)):
        (sizes, data, total), other = (encoded(twin, x, error, start) for twin in TWINS)
        assert (sizes, data, total) == other
        (num_kept, y), (other_kept, z) = (decoded(twin, sizes, data, error, x, start) for twin in TWINS)
        assert num_kept == other_kept >= 0
        assert np.array_equal(y.view("i4"), z.view("i4"))
        restored = [y.copy(), y.copy()]
        for twin, part in zip(TWINS, restored, strict=True):
            twin.restore(np.frombuffer(data, np.uint8), np.frombuffer(sizes, np.uint16), 4, part.view(np.uint8))
        assert np.array_equal(*(part.view("i4") for part in restored))
        finite = np.isfinite(x)
        with np.errstate(over="ignore"):
            assert (abs(restored[0][finite].astype(float) - x[finite]) <= error).all()
        assert np.array_equal(restored[0][~finite].view("i4"), x[~finite].view("i4"))
        assert np.array_equal(np.sign(restored[0][finite]), np.sign(x[finite]))


@pytest.mark.parametrize("start", [ref.PLAIN, 12345])
@pytest.mark.parametrize("error", [2.0**-24, 2.0**-8, 0.25, 0.15625, 16.0])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_twins_agree_on_short_floats(name: str, error: float, start: int) -> None:
    x = activations(name, 5000)
    (sizes, data, total), other = (encoded(twin, x, error, start) for twin in TWINS)
    assert (sizes, data, total) == other
    assert np.array_equal(*(decoded(twin, sizes, data, error, x, start)[1] for twin in TWINS))


def test_every_float16_is_rounded_alike() -> None:
    x = np.arange(1 << 16).astype(np.uint16).view(np.float16)
    for error in (2.0**-24, 2.0**-15, 31.0):
        for start in (ref.PLAIN, 7):
            assert len({encoded(twin, x, error, start) for twin in TWINS}) == 1


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 40.0, 1e4, 1e6])
def test_all_widths_of_codes(scale: float) -> None:
    x = (np.random.default_rng(3).standard_normal(3000) * scale).astype(np.float32)
    (sizes, data, _), other = (encoded(twin, x, 0.5)[:3] for twin in TWINS)
    assert (sizes, data) == other[:2]
    y, z = (decoded(twin, sizes, data, 0.5, x)[1] for twin in TWINS)
    assert np.array_equal(y, z)
    assert len(data) < 3000 * 4


def test_the_error_is_that_of_the_decoded_elements() -> None:
    x = activations("float32", 5000)[:4900]
    sizes, data, total = encoded(numba, x, 0.25)
    num_kept, y = decoded(numba, sizes, data, 0.25, x)
    assert num_kept == 0
    assert total == pytest.approx(((y.astype(float) - x) ** 2).sum(), rel=1e-6)


def test_bits_of_a_sparse_and_of_a_dense_array() -> None:
    """What the layout was chosen for: within a tenth of a bit or so of the entropy."""
    x = np.random.default_rng(0).standard_normal(1 << 18, dtype=np.float32)
    for y, limit in ((x, 3.2), (np.maximum(x - 0.15, 0), 1.97), (np.zeros_like(x), 0.0)):
        assert 8 * len(encoded(numba, y, 0.25)[1]) / y.size <= limit


def test_damaged_chunks_are_seen_by_both() -> None:
    x = activations("float32", 2500)
    sizes, data, _ = encoded(numba, x, 0.25)
    rng = np.random.default_rng(5)
    refused = 0
    for k in range(200):
        damaged = np.frombuffer(data, np.uint8).copy()
        for place in rng.integers(0, 8 * damaged.size, 1 + k % 3):
            damaged[place // 8] ^= 1 << place % 8
        if k % 5 == 0:
            damaged[0] = rng.integers(0, 256)
        (num_kept, y), (other, z) = (decoded(twin, sizes, damaged.tobytes(), 0.25, x) for twin in TWINS)
        assert num_kept == other
        assert num_kept < 0 or np.array_equal(y.view("i4"), z.view("i4"))
        refused += num_kept < 0
    assert 20 < refused < 200


def test_lies_about_sizes_are_seen_by_both() -> None:
    x = activations("float32", 2500)
    sizes, data, _ = encoded(numba, x, 0.25)
    true = np.frombuffer(sizes, np.uint16)
    for shift in (-300, -7, -1, 1, 5, 200):
        lie = np.add(true.astype(np.int64), [shift, -shift, 0])
        for twin in TWINS:
            assert decoded(twin, lie.astype(np.uint16).tobytes(), data, 0.25, x)[0] == -1
    whole = np.array([len(data), 0, 0], np.uint16)
    for twin in TWINS:
        assert decoded(twin, whole.tobytes(), data, 0.25, x)[0] == -1
