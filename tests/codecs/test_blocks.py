"""Blocks: the bound is hard, zeros and signs are exact, and size and error are told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

import trimtab as tt
from trimtab.bounds import PSNR, Abs, Lossless, PointwiseRel, Rel, is_finite
from trimtab.codecs import Blocks
from trimtab.codecs.blocks import SLICE, error_step
from trimtab.dtypes import numpy_dtype
from trimtab.errors import BoundError, Corrupt, ShapeError
from trimtab.packed import Packed

NAMES = ["float32", "float16", "bfloat16"]


DITHERS = pytest.mark.parametrize("dither", [False, True])


def check(x: np.ndarray, bound: Abs | Rel, dither: bool = False, start: int = 0) -> Packed:
    packed, squared_error = Blocks(dither=dither).encode_measured(x, bound, start=start)
    y = Blocks().decode(packed)
    assert bound.allows(x, y)
    finite = is_finite(x)
    x, y = x[finite].astype(np.float64), y[finite].astype(np.float64)
    assert np.array_equal(np.sign(x), np.sign(y))
    with np.errstate(over="ignore"):
        assert squared_error == pytest.approx(((x - y) ** 2).sum(), rel=1e-5, abs=1e-44)
    return packed


@given(
    nps.arrays(np.uint32, nps.array_shapes(max_dims=1, max_side=200)),
    st.sampled_from(NAMES),
    st.floats(1e-46, 1e39, exclude_min=True),
    st.none() | st.integers(-(2**40), 2**40),
)
def test_any_bits_at_any_bound(words, name, limit, start):
    x = words.view(np.float32) if name == "float32" else words.astype(np.uint16).view(numpy_dtype(name))
    y = Blocks().decode(Blocks(dither=start is not None).encode_measured(x, Abs(limit), start=start or 0)[0])
    assert Abs(limit).allows(x, y)
    finite = is_finite(x)
    assert np.array_equal(np.sign(x[finite]), np.sign(y[finite]))


@given(
    nps.arrays(np.float32, 130, elements=st.floats(-100, 100, width=32)),
    st.sampled_from(NAMES),
    st.floats(1e-4, 50),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_ordinary_elements_at_any_bound(x, name, limit, dither, start):
    check(x.astype(numpy_dtype(name)), Abs(limit), dither, start)


@DITHERS
@pytest.mark.parametrize("name", NAMES)
def test_elements_on_the_edges_of_bins_cost_no_more(name, dither):
    """Whole multiples of the bound lie where two codes meet; decimal ones beside it."""
    for limit in (0.5, 0.1, 0.3):
        x = (np.random.default_rng(0).integers(-7, 8, 4096) * np.float32(limit)).astype(numpy_dtype(name))
        assert 8 * check(x, Abs(limit), dither).num_bytes / x.size < 5


@pytest.mark.parametrize("name", NAMES)
def test_dithered_errors_are_like_independent_ones(name):
    """In smooth elements, between arrays, and between one array and itself, packed again."""
    x = np.add.outer(np.linspace(1, 2, 64), np.linspace(0, 3, 1024)).astype(numpy_dtype(name))
    errors = []
    for codec, start in ((Blocks(), 0), (Blocks(dither=True), 0), (Blocks(dither=True), 1 << 20)):
        y = codec.decode(codec.encode_measured(x, Abs(0.25), start=start)[0])
        errors.append(y.astype(np.float64) - x.astype(np.float64))

    def excess(e: np.ndarray) -> float:
        """Return the variance of sums over stretches of 64, beside that of independent errors."""
        return float(np.square(e.reshape(-1, 64).sum(1)).mean() / (64 * np.square(e).mean()))

    plain, dithered, again = errors
    assert excess(plain) > 5
    assert excess(dithered) < 1.15
    assert excess(dithered.T.copy()) < 1.15
    assert abs(np.vdot(dithered, again)) < 0.02 * np.vdot(dithered, dithered)
    assert np.square(dithered).mean() == pytest.approx(0.25**2 / 3, rel=0.08)


@pytest.mark.parametrize("name", NAMES)
def test_dither_costs_few_bits(name):
    """Half a bin more on either side of zero, and what rounding needs of the bound."""
    x = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32)
    for bound, most in ((0.25, 0.5), (1 / 16, 0.25)):
        for y in (x, np.maximum(x, 0)):
            plain, dithered = (
                8 * check(y.astype(numpy_dtype(name)), Abs(bound), dither).num_bytes / x.size
                for dither in (False, True)
            )
            assert dithered < plain + most


@pytest.mark.parametrize("name", NAMES)
def test_a_relative_bound_is_of_the_range(name):
    x = np.random.default_rng(0).normal(5, 1, (37, 41)).astype(numpy_dtype(name))
    assert check(x, Rel(0.05)).num_bytes < x.nbytes / 1.5
    check(np.full(100, 3, x.dtype), Rel(0.05))


def test_nan_costs_its_block_alone():
    x = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32)
    size = check(x, Abs(0.25)).num_bytes
    x[1000] = np.nan
    assert size < check(x, Abs(0.25)).num_bytes < size + 256


def test_outliers_cost_little():
    x = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32)
    size = check(x, Abs(0.25)).num_bytes
    x[::64] *= 3000
    assert check(x, Abs(0.25)).num_bytes < size + x.size // 64 * 7


@DITHERS
def test_several_slices_and_threads(dither):
    x = np.maximum(np.random.default_rng(0).standard_normal(2 * SLICE + 77, dtype=np.float32), 0)
    with tt.threads(3):
        packed = check(x, Abs(0.2), dither)
        out = np.empty_like(x)
        assert Blocks().decode(packed, out=out) is out
    with tt.threads(1):
        assert np.array_equal(Blocks().decode(packed), out)
        again = Blocks(dither=dither).encode(x, Abs(0.2))
    assert all(np.array_equal(again.buffers[name], packed.buffers[name]) for name in ("sizes", "data"))


def test_nothing_but_the_packed_bytes_is_held():
    packed = Blocks().encode(np.zeros(10 * SLICE, np.float32), Abs(0.1))
    assert packed.num_bytes == 10 * SLICE // 1024 * 2
    packed = Blocks().encode(np.ones(3000, np.float32), Abs(0.1))
    for buffer in packed.buffers.values():
        assert buffer.base is None or buffer.base.nbytes == buffer.nbytes


def test_slices_follow_each_other_in_one_pattern():
    x = np.ones(2 * SLICE, np.float32)
    packed = check(x, Abs(0.4), True, 2**32 - SLICE)
    assert packed.header.params["start"] == 2**32 - SLICE
    part = Blocks(dither=True).encode_measured(x[SLICE:], Abs(0.4), start=0)[0]
    assert np.array_equal(Blocks().decode(packed)[SLICE:], Blocks().decode(part))


def test_plain_entries_say_nothing_of_dither():
    packed = check(np.ones(3, np.float32), Abs(0.1))
    assert (packed.header.codec, list(packed.header.params)) == ({"id": "blocks"}, ["error"])


@DITHERS
@pytest.mark.parametrize("name", NAMES)
def test_estimates_come_near(name, dither):
    rng = np.random.default_rng(0)
    channels = np.exp(rng.normal(0, 1, (1, 32, 1, 1)))
    x = np.maximum(rng.standard_normal((32, 32, 32, 32)) * channels - 0.1, 0).astype(numpy_dtype(name))
    bounds = [Abs(0.02), Abs(0.3), Rel(0.05)]
    codec = Blocks(dither=dither)
    for bound, (num_bytes, squared_error) in zip(bounds, codec.estimate(x, bounds), strict=True):
        packed, true_error = codec.encode_measured(x, bound)
        assert num_bytes == pytest.approx(packed.num_bytes, rel=0.03)
        assert squared_error == pytest.approx(true_error, rel=0.06)


@DITHERS
def test_estimates_of_short_arrays_are_exact(dither):
    x, codec = np.random.default_rng(0).standard_normal((100, 33), dtype=np.float32), Blocks(dither=dither)
    packed, squared_error = codec.encode_measured(x, Abs(0.1))
    assert codec.estimate(x, [Abs(0.1)]) == [(packed.num_bytes, squared_error)]
    assert codec.estimate(x[:0], [Abs(0.1)]) == [(0, 0)]


@pytest.mark.parametrize("limit", [1e-300, 1e-45, 1e-8, 0.1, 0.25, 1.0, 7e4, 3e38, 1e300])
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_numbers_of_the_dtype(name, limit):
    step = error_step(limit, name)
    assert step == float(np.array(step).astype(numpy_dtype(name)))
    assert 0 <= step <= limit
    if 1e-3 < limit < 1e4:
        assert step > limit * {"float32": 0.9999, "float16": 0.93, "bfloat16": 0.87}[name]


@pytest.mark.parametrize("bound", [Lossless(), PointwiseRel(0.1), PSNR(40.0)], ids=repr)
def test_other_bounds_are_refused(bound):
    with pytest.raises(BoundError, match="Abs or Rel"):
        Blocks().encode(np.ones(3, np.float32), bound)


def test_other_dtypes_are_refused():
    with pytest.raises(ShapeError, match="float64"):
        Blocks().encode(np.ones(3), Abs(0.1))
    with pytest.raises(ShapeError, match="int32"):
        Blocks().estimate(np.ones(3, np.int32), [Abs(0.1)])


@pytest.mark.parametrize("error", [-1.0, np.inf, 1e39, 0.1])
def test_steps_that_are_none_are_corrupt(error):
    packed = Blocks().encode(np.ones(3, np.float32), Abs(0.1))
    packed.header.params["error"] = error
    with pytest.raises(Corrupt, match="error"):
        Blocks().decode(packed)


@pytest.mark.parametrize("start", [-1, 2**32, 0.5, "0"])
def test_starts_that_are_none_are_corrupt(start):
    packed = Blocks(dither=True).encode(np.ones(3, np.float32), Abs(0.1))
    packed.header.params["start"] = start
    with pytest.raises(Corrupt, match="start"):
        Blocks().decode(packed)


def test_files_verify_what_a_decoder_returns():
    x = np.random.default_rng(0).standard_normal((50, 70), dtype=np.float32)
    blob = bytearray(tt.compress(x, Abs(0.1), codec=Blocks()))
    assert Abs(0.1).allows(x, tt.decompress(bytes(blob)))
    blob[-3] ^= 1
    with pytest.raises(tt.FormatError):
        tt.decompress(bytes(blob))
