"""SZ: bounds hold on every element, back ends and thread counts agree, damage raises only FormatError."""

from __future__ import annotations

import itertools
import math
import struct

import ml_dtypes
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import kernels
from trimtab.bounds import PSNR, Abs, Lossless, PointwiseRel, Rel, psnr
from trimtab.codecs.codec import make_codec
from trimtab.codecs.enec import ENEC
from trimtab.codecs.sz import SZ
from trimtab.codecs.sz_interpolated import INTERPOLATED
from trimtab.codecs.sz_tile import TileCoder
from trimtab.codecs.sz_tokens import CHUNKS, CONTEXTS
from trimtab.codecs.tiling import MAX_TILE_SIZE, Fold
from trimtab.dtypes import INTEGERS
from trimtab.errors import BoundError, FormatError, ShapeError
from trimtab.packed import Header, Packed

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
BOUNDS = [Abs(0.01), Rel(1e-2), Rel(1e-4), PointwiseRel(0.01), PSNR(50.0)]
LEVELS = ("fast", "balanced", "ratio")
SHAPES = [(), (0,), (1,), (3, 0, 2), (67,), (1009,), (37, 41), (500, 3), (11, 13, 17), (3, 5, 7, 11), (2, 3, 4, 5, 6)]
SPECIAL = [math.nan, -math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-42, -5e-324, 6e-8, 3e38, -1e300, 65504.0]


def wave(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """A smooth field with a little noise."""
    size = math.prod(shape)
    x = np.sin(np.arange(size) / 17) * 3 + np.random.default_rng(size).normal(0, 0.01, size)
    return x.reshape(shape).astype(dtype)


def smooth(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """A field that is smooth in every direction, with a little noise."""
    waves = [np.sin(np.arange(n) / (7 + 3 * axis) + axis) for axis, n in enumerate(shape)]
    x = sum(np.multiply.outer(a, np.ones(shape[i + 1 :])) for i, a in enumerate(waves)) if shape else 0
    return (x + np.random.default_rng(0).normal(0, 3e-4, shape)).astype(dtype)


def decoded(packed: Packed) -> np.ndarray:
    return make_codec(packed.header.codec).decode(packed)


def same_buffers(a: Packed, b: Packed) -> bool:
    return a.header == b.header and all(np.array_equal(a.buffers[name], b.buffers[name]) for name in a.buffers)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bound", BOUNDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bound_holds(shape, dtype, bound, level):
    x = wave(shape, dtype)
    y = decoded(SZ(level=level).encode(x, bound))
    assert y.shape == x.shape and y.dtype == x.dtype
    assert bound.allows(x, y)


@pytest.mark.filterwarnings("ignore:overflow")
@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from([(64,), (200,), (9, 11), (70, 2), (5, 6, 7), (3, 4, 5, 6)]),
    scale=st.sampled_from([1e-40, 1e-6, 1.0, 1e4, 1e30]),
    bound=st.sampled_from(
        [
            *(Abs(1e-300), Abs(1e-3), Abs(10.0), Rel(1e-7), Rel(1e-3), Rel(0.3)),
            *(PointwiseRel(1e-9), PointwiseRel(1e-3), PointwiseRel(0.5), PointwiseRel(3.0)),
            *(PSNR(10.0), PSNR(80.0), PSNR(300.0)),
        ]
    ),
    level=st.sampled_from(LEVELS),
)
def test_bound_holds_on_anything(data, dtype, shape, scale, bound, level):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    with np.errstate(over="ignore", under="ignore"):
        x = (np.cumsum(rng.normal(0, 1, math.prod(shape))) * scale).astype(dtype).reshape(shape)
        special = np.array(data.draw(st.lists(st.sampled_from(SPECIAL), max_size=40))).astype(dtype)
    x.reshape(-1)[rng.permutation(x.size)[: special.size]] = special
    if isinstance(bound, PSNR) and not psnr(x, x) > 0:
        return
    y = decoded(SZ(level=level).encode(x, bound))
    assert y.dtype == x.dtype
    assert bound.allows(x, y)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bound", [Rel(1e-6), Rel(1e-3), Rel(0.1), PointwiseRel(1e-3), PSNR(50.0)], ids=str)
@pytest.mark.parametrize("shape", [(300,), (19, 23), (40, 3), (7, 9, 10), (36, 4, 6)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int16, np.uint64])
def test_back_ends_agree(dtype, shape, bound, level):
    if np.dtype(dtype).kind in "iu":
        x = image(dtype, shape)
        x.reshape(-1)[[3, 70]] = np.iinfo(dtype).max, 0
    else:
        x = wave(shape, dtype)
        x.reshape(-1)[[3, 70]] = np.nan, 6e4
    with kernels.backend("numba"):
        fast = SZ(level=level).encode(x, bound)
        if fast.header.codec["id"] != "sz":
            assert np.dtype(dtype).itemsize == 2
            return
        y = SZ().decode(fast)
    with kernels.backend("ref"):
        slow = SZ(level=level).encode(x, bound)
        assert same_buffers(fast, slow)
        assert np.array_equal(y.view(np.uint8), SZ().decode(fast).view(np.uint8))
    assert bound.allows(x, y)


def test_back_ends_agree_on_fitted_weights():
    x = smooth((24, 25, 26))
    x[3, 4, 5:9] = np.nan, 1e9, np.inf, -1e30
    with kernels.backend("numba"):
        fast = SZ(level="ratio").encode(x, Abs(0.02))
        y = SZ().decode(fast)
    with kernels.backend("ref"):
        assert same_buffers(fast, SZ(level="ratio").encode(x, Abs(0.02)))
        assert np.array_equal(y.view(np.uint32), SZ().decode(fast).view(np.uint32))
    head = struct.Struct("<Bd4IB")
    kind, *_, num_sets = head.unpack(fast.buffers["data"][: head.size].tobytes())
    assert kind == INTERPOLATED and num_sets > 0


def test_threads_do_not_change_a_byte():
    x = wave((70, 250, 260))
    assert len(Fold.of(x.shape).tiles()) > 2
    with kernels.threads(1):
        one = SZ().encode(x, Rel(1e-3))
        y = SZ().decode(one)
    with kernels.threads(3):
        three = SZ().encode(x, Rel(1e-3))
        assert np.array_equal(y, SZ().decode(three))
    assert same_buffers(one, three)
    assert Rel(1e-3).allows(x, y)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(np.uint16, PSNR(40.0)), (np.float16, PSNR(40.0)), (np.float32, PSNR(60.0)), (np.float32, PointwiseRel(0.01))],
    ids=str,
)
def test_tiles_that_are_not_in_one_piece(dtype, bound):
    shape = (3, 1100, 1300)
    tile = Fold.of(shape).tiles()[0]
    x = image(dtype, shape) if np.dtype(dtype).kind == "u" else wave(shape, dtype)
    assert tile.num_elements < x.size and not tile.view(x.reshape(-1)).flags.c_contiguous
    packed = []
    for count in (1, 3):
        with kernels.threads(count):
            packed.append(SZ(level="fast").encode(x, bound))
    assert same_buffers(*packed)
    assert bound.allows(x, decoded(packed[0]))


@pytest.mark.parametrize(
    "shape", [(5,), (10**7,), (3000, 3000), (400, 300, 200), (9, 300, 200, 150), (2**40,), (2**20, 2**20, 3)], ids=str
)
def test_tiles_cover_the_array_once(shape):
    fold = Fold.of(shape)
    assert math.prod(fold.shape) == math.prod(shape)
    if fold.num_tiles > 10_000:
        assert math.prod(shape) / fold.num_tiles > MAX_TILE_SIZE / 3
        return
    tiles = fold.tiles()
    assert len(tiles) == fold.num_tiles
    assert sum(tile.num_elements for tile in tiles) == math.prod(shape)
    assert max(tile.num_elements for tile in tiles) <= MAX_TILE_SIZE
    for axis, length in enumerate(fold.shape):
        edges = sorted({tile.ranges[axis] for tile in tiles})
        assert edges[0][0] == 0 and edges[-1][1] == length
        assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))


def test_layouts_of_memory_do_not_matter():
    x = wave((30, 40, 50))
    expected = SZ().encode(x, Rel(1e-3))
    for same in (np.asfortranarray(x), x.astype(">f4"), np.repeat(x, 2, axis=2)[:, :, ::2], memoryview(x)):
        assert same_buffers(expected, SZ().encode(np.asarray(same), Rel(1e-3)))


def test_out_is_filled():
    x = wave((30, 40))
    packed = SZ().encode(x, Rel(1e-3))
    out = np.full_like(x, np.nan)
    assert SZ().decode(packed, out=out) is out
    assert Rel(1e-3).allows(x, out)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -3e-41, np.nan, np.inf])
@pytest.mark.parametrize("bound", BOUNDS, ids=str)
def test_constants_shrink_and_stay(value, bound):
    x = np.full((100, 100), value, np.float32)
    packed = SZ().encode(x, bound)
    y = decoded(packed)
    assert Abs(0.01).allows(x, y) if isinstance(bound, PSNR) else bound.allows(x, y)
    assert packed.num_bytes < 2000


def test_whole_numbers_come_back_exactly_at_fine_bounds():
    x = np.random.default_rng(0).integers(0, 200, (40, 50, 60)).cumsum(axis=2).astype(np.float32)
    packed = SZ().encode(x, Abs(1e-3))
    assert np.array_equal(decoded(packed), x)
    assert packed.header.params["step"] == 1.0
    assert packed.num_bytes < 0.35 * x.nbytes


def test_whole_numbers_in_floats_take_odd_steps():
    """An error of 2 allows integers every fifth, where real numbers need a value every 4."""
    x = np.random.default_rng(0).integers(0, 200, (40, 50, 60)).cumsum(axis=2).astype(np.float32)
    packed = SZ().encode(x, Abs(2.0))
    assert packed.header.params["step"] == 5.0
    assert Abs(2.0).allows(x, decoded(packed))


def image(dtype: type, shape: tuple[int, ...] = (60, 71)) -> np.ndarray:
    """A smooth picture of whole numbers over most of the dtype's range, as far as 16 bits go."""
    ends = np.iinfo(dtype)
    low, high = max(int(ends.min), -(2**15)), min(int(ends.max), 2**16)
    x = wave(shape, np.float64)
    return ((x - x.min()) / np.ptp(x) * (high - low) * 0.99 + low).astype(np.int64).astype(dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bound_holds_on_integers(shape, dtype, level):
    x = image(dtype, shape) if math.prod(shape) > 1 else np.full(shape, 7, dtype)
    for bound in (Lossless(), Abs(0.5), Abs(1), Abs(3.7), Rel(1e-2), PointwiseRel(0.1), PSNR(30.0)):
        if isinstance(bound, PSNR) and x.size < 2:
            continue
        y = decoded(SZ(level=level).encode(x, bound))
        assert y.shape == x.shape and y.dtype == x.dtype
        assert bound.allows(x, y)


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from(INTEGERS),
    size=st.sampled_from([64, 300, 1025]),
    base=st.sampled_from([(0, 1), (1, 1), (-1, 1), (1, 2), (-1, 3)]),
    scale=st.sampled_from([1, 4, 16, 1000, 2**33]),
    bound=st.sampled_from(
        [
            *(Lossless(), Abs(0.3), Abs(1), Abs(2.9), Abs(7), Abs(1e5), Abs(1e18), Abs(1e25)),
            *(Rel(1e-9), Rel(1e-3), Rel(0.1), Rel(3), PointwiseRel(0.01), PointwiseRel(0.4), PointwiseRel(5)),
            *(PSNR(10.0), PSNR(40.0), PSNR(70.0), PSNR(300.0)),
        ]
    ),
    level=st.sampled_from(LEVELS),
)
def test_bound_holds_on_any_integers(data, dtype, size, base, scale, bound, level):
    """Judged in Python's own integers; near the ends of the dtype nothing may wrap around."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    ends = np.iinfo(dtype)
    start = base[0] * int(ends.max if base[0] > 0 else -int(ends.min)) // base[1]
    walk = np.cumsum(rng.integers(-5, 6, size)).tolist()
    x = np.array([min(max(start + n * scale, int(ends.min)), int(ends.max)) for n in walk], dtype)
    special = data.draw(st.lists(st.sampled_from([int(ends.min), int(ends.max), 0, 1, 5]), max_size=20))
    x[rng.permutation(size)[: len(special)]] = special
    if isinstance(bound, PSNR) and x.min() == x.max():
        return
    y = decoded(SZ(level=level).encode(x, bound))
    assert y.dtype == x.dtype
    assert bound.allows(x, y)
    errors = [abs(a - b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    if isinstance(bound, Lossless):
        assert max(errors) == 0
    elif isinstance(bound, Abs):
        assert max(errors) <= bound.value
    elif isinstance(bound, Rel):
        assert max(errors) <= bound.value * float(int(x.max()) - int(x.min()))
    elif isinstance(bound, PointwiseRel):
        assert all(e <= bound.value * abs(n) for e, n in zip(errors, x.tolist(), strict=True))


@pytest.mark.parametrize(("limit", "step"), [(0.5, 1), (1, 3), (1.99, 3), (2, 5), (7.5, 15)])
def test_steps_of_integers(limit, step):
    x = image(np.uint16)
    packed = SZ().encode(x, Abs(limit))
    assert packed.header.params == {"scale": "linear", "step": step}
    assert np.abs(decoded(packed).astype(int) - x).max() == int(limit)


@pytest.mark.parametrize(("limit", "step"), [(1, 16), (15, 16), (16, 48), (40, 80)])
def test_common_divisors_widen_the_step(limit, step):
    """Twelve bits in the upper part of sixteen, as cameras and scanners have them."""
    x = image(np.int16) // 16 * 16
    packed = SZ().encode(x, Abs(limit))
    assert packed.header.params["step"] == step
    assert Abs(limit).allows(x, decoded(packed))


def test_a_divisor_that_only_the_sample_shows():
    x = image(np.uint16, (300, 500)) // 16 * 16
    rest = np.arange(x.size) % (x.size // 4096) != 0
    x.reshape(-1)[rest] += np.random.default_rng(0).integers(0, 16, rest.sum()).astype(np.uint16)
    packed = SZ().encode(x, Abs(3))
    assert packed.header.params["step"] == 7
    assert Abs(3).allows(x, decoded(packed))


def test_times_far_from_zero_take_an_offset():
    x = 1_700_000_000_000_000_000 + np.cumsum(np.random.default_rng(0).integers(0, 10**4, 50_000))
    x[77] = -(2**63)  # not a time
    packed = SZ().encode(x, Abs(50))
    assert packed.header.params["offset"] % 101 == 0
    assert packed.num_bytes < x.nbytes / 4
    assert Abs(50).allows(x, decoded(packed))
    exact = SZ().encode(x, Lossless())
    assert exact.header.codec["id"] == "sz" and exact.num_bytes < ENEC().encode(x).num_bytes
    assert np.array_equal(x, decoded(exact))


def test_smooth_images_are_smaller_than_without_loss():
    x = image(np.uint16, (200, 300))
    sizes = [SZ().encode(x, bound).num_bytes for bound in (Abs(0.5), Abs(2), Abs(20))]
    assert sizes[0] < 0.8 * ENEC().encode(x).num_bytes
    assert sizes[1] < 0.85 * sizes[0]
    assert sizes[2] < 0.7 * sizes[1]


def test_labels_go_to_the_lossless_codec():
    x = np.random.default_rng(0).choice(np.array([0, 3, 90, 200], np.uint8), 40_000, p=[0.9, 0.05, 0.03, 0.02])
    packed = SZ().encode(x, Abs(0.5))
    assert packed.header.codec["id"] == "enec"
    assert np.array_equal(x, decoded(packed))


def test_zero_stays_zero_and_nothing_leaves_the_range():
    x = image(np.uint8, (64, 64))
    x[:20], x[20:30] = 0, 255
    for limit in range(1, 40):
        y = decoded(SZ().encode(x, Abs(limit)))
        assert Abs(limit).allows(x, y)
        assert not y[:20].any()


def test_masked_field_still_shrinks():
    x = wave((64, 64, 64))
    x[:, :30] = np.nan
    packed = SZ().encode(x, Rel(1e-3))
    assert Rel(1e-3).allows(x, decoded(packed))
    assert packed.num_bytes < x.nbytes / 6


PSNR_FIELDS = {
    "wave": wave((40, 50, 60)),
    "long": wave((600_011,)),
    "log-normal": np.exp(2 * wave((60, 61, 62))),
    "noise": np.random.default_rng(0).normal(0, 1e-3, (300, 500)),
    "with holes": np.where(np.random.default_rng(0).random((50, 60, 70)) < 0.2, np.nan, wave((50, 60, 70))),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PSNR_FIELDS)
def test_psnr_is_reached_and_not_by_much(name, dtype):
    with np.errstate(invalid="ignore"):
        x = PSNR_FIELDS[name].astype(dtype)
    steps_are_fine = {np.float16: 60.0, ml_dtypes.bfloat16: 40.0}.get(dtype, 100.0)
    for decibels in (30.0, 40.0, 60.0, 80.0, 100.0):
        packed = SZ(level="fast").encode(x, PSNR(decibels))
        reached = psnr(x, decoded(packed))
        assert reached >= decibels
        # beyond, what the dtype's own rounding adds changes with the step by leaps
        if decibels <= steps_are_fine:
            assert reached <= decibels + 0.5


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_psnr_of_integers_is_reached_and_not_by_much(dtype):
    x = (wave((40, 50, 60), np.float64) * 5000 + 20000).astype(dtype)
    for decibels in (30.0, 50.0, 70.0):
        assert decibels <= psnr(x, decoded(SZ().encode(x, PSNR(decibels)))) <= decibels + 0.5
    assert np.array_equal(x, decoded(SZ().encode(x, PSNR(120.0))))


def test_psnr_needs_no_more_than_a_few_measurements(monkeypatch):
    """Searching is done on a sample; all elements are measured as often as the first guess is wrong."""
    strides = []
    measure = TileCoder.squared_error
    monkeypatch.setattr(
        TileCoder, "squared_error", lambda self, flat, stride=1: strides.append(stride) or measure(self, flat, stride)
    )
    x = wave((120, 130, 140))
    assert Fold.of(x.shape).num_tiles == 2
    SZ(level="fast").encode(x, PSNR(70.0))
    assert 2 <= strides.count(1) <= 4  # once or twice for either tile
    assert set(strides) - {1} == {17}


def test_constant_but_for_a_few_reaches_its_psnr():
    """No step is too large for the ratio, and the search has to end all the same."""
    x = np.zeros((100, 100), np.float32)
    x[3, 5], x[50, 50] = 1.1, 0.3
    for decibels in (1.0, 10.0, 30.0):
        assert psnr(x, decoded(SZ().encode(x, PSNR(decibels)))) >= decibels


def test_signs_of_a_smooth_field_cost_little():
    axes = np.meshgrid(*[np.linspace(0, 6, 64)] * 3, indexing="ij")
    x = (np.sin(axes[0] + 0.3) * np.cos(axes[1] + 0.2) + 0.7 * np.sin(axes[2])).astype(np.float32)
    assert 0.2 < (x < 0).mean() < 0.8
    for level in LEVELS:
        signed, unsigned = (SZ(level=level).encode(y, PointwiseRel(0.05)).num_bytes for y in (x, abs(x)))
        assert 0 < signed - unsigned < 0.2 * x.size / 8


def test_pointwise_steps_use_both_sides_of_the_bound():
    x = np.exp(np.random.default_rng(0).uniform(-20, 20, 40_000)).astype(np.float32)
    y = decoded(SZ().encode(x, PointwiseRel(0.3)))
    error = (y.astype(float) - x) / x
    assert error.max() > 0.299
    assert error.min() < -0.299


def test_smooth_fields_shrink():
    axes = np.meshgrid(*[np.linspace(0, 6, 64)] * 3, indexing="ij")
    x = (np.sin(axes[0]) * np.cos(axes[1] + axes[2])).astype(np.float32)
    assert SZ().encode(x, Rel(1e-3)).num_bytes < x.nbytes / 25


def test_refusals():
    with pytest.raises(BoundError, match="ENEC"):
        SZ().encode(wave((100,)), Lossless())
    with pytest.raises(ShapeError, match="astype"):
        SZ().encode(np.zeros(100, bool), Abs(1.0))


def broken(packed: Packed, header: dict[str, object] | None = None, **buffers: np.ndarray) -> Packed:
    old = packed.header
    fields = {"codec": old.codec, "bound": old.bound, "dtype": old.dtype, "shape": old.shape, "params": old.params}
    return Packed(Header(**fields | (header or {})), dict(packed.buffers) | buffers)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bound", [Rel(1e-5), Rel(1e-3), Rel(0.2), PointwiseRel(1e-2)], ids=str)
def test_damage_raises_only_format_errors(bound, level):
    x = wave((9, 20, 30))
    x[::3, ::7, ::11] = 0
    x[1, 2, 3:5] = np.nan, 1e30
    packed = SZ(level=level).encode(x, bound)
    data, tiles = packed.buffers["data"], packed.buffers["tiles"]
    rng = np.random.default_rng(0)

    def attempt(damaged: Packed) -> bool:
        try:
            y = SZ().decode(damaged)
        except FormatError:
            return True
        assert y.shape == damaged.header.shape
        return False

    assert not attempt(packed)
    for size in range(0, data.size, 7):
        assert attempt(broken(packed, data=data[:size].copy()))
        assert attempt(broken(packed, data=data[:size].copy(), tiles=np.array([size], np.uint64)))
    for _ in range(400):
        flipped = data.copy()
        flipped[rng.integers(min(flipped.size, 200) if rng.integers(2) else flipped.size)] ^= np.uint8(
            1 << rng.integers(8)
        )
        attempt(broken(packed, data=flipped))
    for lie in (tiles + np.uint64(1), np.zeros(0, np.uint64), np.array([2**64 - 1], np.uint64), np.repeat(tiles, 2)):
        assert attempt(broken(packed, tiles=lie))
    for shape in ((9, 20, 31), (9, 20, 29), (2**30, 2**20), (1,), (0,), (9, 600), (5400,), (20, 9, 30)):
        attempt(broken(packed, {"shape": shape}))
    for params in (
        {},
        {"scale": "linear", "step": 0.0},
        {"scale": "cubic", "step": 1.0},
        {"scale": "linear", "step": 1e999},
    ):
        assert attempt(broken(packed, {"params": params}))
    for lie in ({"scale": "linear", "step": 1.0, "offset": 1}, {"scale": "linear", "step": 1.0, "offset": 2**63}):
        assert attempt(broken(packed, {"params": lie}))
    assert attempt(broken(packed, {"dtype": "int32", "params": {"scale": "log2", "step": 1.0}}))
    for step, offset in ((1.0, 0), (1e300, 2**63 - 1), (0.3, -(2**63))):
        attempt(broken(packed, {"dtype": "int32", "params": {"scale": "linear", "step": step, "offset": offset}}))
    assert attempt(broken(packed, {"dtype": "bool"}))
    attempt(broken(packed, {"dtype": "float64"}))
    attempt(broken(packed, {"dtype": "float16"}))


@pytest.mark.parametrize("position", [5399, 5400, 10_000, 2**32 - 1])
def test_outliers_outside_their_tile(position):
    x = wave((9, 20, 30))
    x[1, 2, 3] = np.nan
    packed = SZ().encode(x, Rel(1e-3))
    data = packed.buffers["data"].tobytes()
    head = struct.Struct("<BB7I")
    shift, coding, block, extra, count, gaps, *rest = head.unpack(data[: head.size])
    assert count == 1
    forged = zstandard.ZstdCompressor().compress(np.array([position], "<u4").tobytes())
    start = head.size + 2 * 22 + block + extra
    data = (
        head.pack(shift, coding, block, extra, count, len(forged), *rest)
        + data[head.size : start]
        + forged
        + data[start + gaps :]
    )
    damaged = broken(packed, data=np.frombuffer(data, np.uint8), tiles=np.array([len(data)], np.uint64))
    if position < x.size:
        assert np.isnan(SZ().decode(damaged)[-1, -1, -1])
    else:
        with pytest.raises(FormatError, match="outlier"):
            SZ().decode(damaged)


@pytest.mark.parametrize("share", [0.0001, 0.3])
@pytest.mark.parametrize("fill", [1e20, -9.96921e36, np.nan, -9999.0])
def test_fill_values_do_not_spoil_the_rest(fill, share):
    x = np.cumsum(np.random.default_rng(0).standard_normal((200, 300)), axis=1).astype(np.float32)
    smooth = x.nbytes / SZ().encode(x, Abs(0.05)).num_bytes
    land = np.zeros(x.shape, bool)
    land[: max(1, round(share * 200)), : 1 if share < 0.01 else 300] = True
    x[land] = fill
    for level in LEVELS:
        packed = SZ(level=level).encode(x, Abs(0.05))
        y = SZ().decode(packed)
        assert Abs(0.05).allows(x, y)
        assert packed.header.codec["id"] == "sz"
        assert x.nbytes / packed.num_bytes > 0.8 * smooth


def test_every_coding_is_taken():
    x = wave((20, 30, 40)).round()
    rough = x + np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    peaks = rough.copy()
    peaks[::5, ::7, ::9] = 300
    cases = [  # data, level, bound, coding, and of a chunk the least shift, coding, and whether integers are listed
        (x, "balanced", 0.2, CONTEXTS, None),
        (rough, "fast", 0.2, CHUNKS, (0, 0, False)),
        (x, "fast", 0.2, CHUNKS, (0, 1, False)),
        (peaks, "fast", 0.2, CHUNKS, (0, 0, True)),
        (rough, "fast", 1e-3, CHUNKS, (1, 0, False)),
        (rough, "fast", 1e-6, CHUNKS, (9, 0, False)),
    ]
    for data, level, bound, coding, chunk in cases:
        packed = SZ(level=level).encode(data, Abs(bound))
        payload = packed.buffers["data"]
        assert payload[1] == coding
        assert Abs(bound).allows(data, decoded(packed))
        if chunk:
            shift, chunk_coding, _, _, num_listed, _ = struct.unpack_from("<BB4I", payload, 30)
            least, expected, listed = chunk
            assert shift >= least
            assert chunk_coding == expected
            assert (num_listed > 0) == listed


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(400_000,), (3, 400, 300), (5, 140_000), (600, 500), (30_000, 3, 5)], ids=str)
def test_chunks_join(shape, dtype):
    x = wave(shape, dtype)
    packed = SZ(level="fast").encode(x, Abs(0.05))
    assert Abs(0.05).allows(x, decoded(packed))
    assert packed.num_bytes < x.nbytes / 2
    with pytest.raises(FormatError):
        decoded(broken(packed, data=np.append(packed.buffers["data"], np.uint8(0)), tiles=packed.buffers["tiles"] + 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9000,), (95, 97), (31, 33, 29), (3, 7, 33, 29), (5, 40, 41), (16, 2, 700)], ids=str)
def test_smooth_tiles_are_interpolated(shape, dtype):
    """In two and three axes; along one, neighbours on both sides tell less than two before."""
    x = smooth(shape, dtype)
    bound = Abs(0.05)
    best, balanced = SZ(level="ratio").encode(x, bound), SZ().encode(x, bound)
    assert bound.allows(x, decoded(best))
    assert best.num_bytes <= balanced.num_bytes
    if len(shape) > 1 and min(shape) > 2:
        assert best.buffers["data"][0] == INTERPOLATED
        assert best.num_bytes < 0.9 * balanced.num_bytes


def test_the_shorter_way_is_taken_tile_by_tile():
    """A smooth half is interpolated; a half that steps from whole number to whole number along rows is not."""
    x = smooth((300, 80, 170))
    x[150:] = 20 * np.random.default_rng(0).integers(0, 2, (150, 80, 170)).cumsum(axis=2)
    bound = Abs(0.05)
    best, balanced = SZ(level="ratio").encode(x, bound), SZ().encode(x, bound)
    ends = np.cumsum(best.buffers["tiles"]).astype(int)
    kinds = [int(best.buffers["data"][first]) for first in (0, *ends[:-1])]
    assert INTERPOLATED in kinds and min(kinds) < INTERPOLATED
    assert (best.buffers["tiles"] <= balanced.buffers["tiles"]).all()
    assert bound.allows(x, decoded(best))


@pytest.mark.parametrize("bound", BOUNDS, ids=str)
@pytest.mark.parametrize("shape", [(700,), (41, 43), (500, 3), (17, 19, 23)], ids=str)
def test_ratio_is_never_longer_than_balanced(shape, bound):
    rng = np.random.default_rng(0)
    rough = rng.normal(0, 1, shape).astype(np.float32)
    for x in (wave(shape), smooth(shape), rough, rough.round(), np.abs(rough.cumsum(axis=0)) ** 3):
        assert SZ(level="ratio").encode(x, bound).num_bytes <= SZ().encode(x, bound).num_bytes


def test_interpolated_whole_numbers_come_back_exactly():
    x = np.zeros((41, 43, 45), np.float32)
    x[::2, ::2, ::2] = 8 * np.random.default_rng(0).integers(0, 50, (21, 22, 23))
    x[:, :, 1::2] = (x[:, :, :-1:2] + x[:, :, 2::2]) / 2
    x[:, 1::2] = (x[:, :-1:2] + x[:, 2::2]) / 2
    x[1::2] = (x[:-1:2] + x[2::2]) / 2
    packed = SZ(level="ratio").encode(x, Abs(1e-3))
    assert packed.buffers["data"][0] == INTERPOLATED
    assert np.array_equal(decoded(packed), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 41, 42), (300, 310), (130, 150, 160)], ids=str)
def test_interpolation_reaches_psnr_and_not_by_much(shape, dtype):
    x = smooth(shape, dtype)
    x.reshape(-1)[[5, 77]] = np.nan, np.inf
    for decibels, surplus in ((40.0, 2.0), (60.0, 0.5)):  # at 40 dB a thousand bytes say all, and errors leap
        best, balanced = (SZ(level=level).encode(x, PSNR(decibels)) for level in ("ratio", "balanced"))
        assert best.buffers["data"][0] == INTERPOLATED
        assert decibels <= psnr(x, decoded(best)) < decibels + surplus
        assert best.num_bytes < 0.9 * balanced.num_bytes


def sparse(n: int) -> np.ndarray:
    """A rough field with a few high peaks."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfftn(rng.normal(0, 1, (n, n, n)))
    axis, half = np.fft.fftfreq(n) * n, np.arange(n // 2 + 1)
    k = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + half**2)
    g = np.fft.irfftn(spectrum / np.maximum(k, 1) ** 1.7, (n, n, n), axes=(0, 1, 2))
    return np.exp(1.5 * g / g.std()).astype(np.float32)


def test_a_psnr_takes_fewer_bits_than_a_bound_that_has_it():
    """The bound holds for every element; the PSNR lets errors go where they save most."""
    x = sparse(64)
    bounded = SZ(level="ratio").encode(x, Rel(1e-2))
    reached = psnr(x, decoded(bounded))
    free = SZ(level="ratio").encode(x, PSNR(reached))
    assert reached <= psnr(x, decoded(free)) < reached + 0.5
    assert free.num_bytes < 0.75 * bounded.num_bytes
    growth = struct.Struct("<Bd4IBBBB").unpack(free.buffers["data"][:29].tobytes())[-2:]
    assert min(growth) > 0  # coarser levels have finer steps


def test_whole_numbers_may_lose_something_where_that_is_shorter():
    x = np.maximum(np.round(smooth((60, 61, 62), np.float64) * 12), 0).astype(np.float32)
    exact, lossy = (SZ(level=level).encode(x, PSNR(50.0)) for level in ("balanced", "ratio"))
    assert np.array_equal(decoded(exact), x)
    assert lossy.num_bytes < exact.num_bytes
    assert psnr(x, decoded(lossy)) >= 50


@pytest.mark.parametrize("bound", [Abs(1e297), Rel(1e-3), PSNR(40.0)], ids=str)
def test_the_largest_numbers_are_packed(bound):
    x = np.random.default_rng(0).normal(0, 1, (26, 26, 26)).cumsum(axis=0) * 1e298
    assert bound.allows(x, decoded(SZ(level="ratio").encode(x, bound)))


def test_steps_of_levels_that_vanish_are_found_out():
    x = smooth((24, 25, 26))
    packed = SZ(level="ratio").encode(x, Abs(0.02))
    data = packed.buffers["data"].copy()
    data[1:9] = np.frombuffer(struct.pack("<d", 5e-324), np.uint8)
    data[27:29] = 255
    with pytest.raises(FormatError, match="levels"):
        decoded(broken(packed, data=data))


def test_psnr_holds_where_only_the_sample_is_made_of_multiples():
    """Every 16th element, which is what the encoder looks at, is a multiple of 64; the others are just within reach."""
    rng = np.random.default_rng(0)
    x = (np.round(rng.normal(0, 20, 1 << 16)) * 64).astype(np.float32)
    largest_error = np.float32(0.99 * math.sqrt(3) * np.ptp(x) * 10 ** (-60 / 20))
    others = np.arange(x.size) % 16 != 0
    x[others] += largest_error * rng.choice([-1, 1], others.sum()).astype(np.float32)
    assert psnr(x, decoded(SZ().encode(x, PSNR(60.0)))) >= 60
