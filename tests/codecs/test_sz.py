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
from trimtab.codecs.sz import SZ
from trimtab.codecs.sz_tokens import CHUNKS, CONTEXTS
from trimtab.codecs.tiling import MAX_TILE_SIZE, Fold
from trimtab.errors import BoundError, FormatError, ShapeError
from trimtab.packed import Header, Packed

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
BOUNDS = [Abs(0.01), Rel(1e-2), Rel(1e-4), PointwiseRel(0.01), PSNR(50.0)]
LEVELS = ("fast", "balanced")
SHAPES = [(), (0,), (1,), (3, 0, 2), (67,), (1009,), (37, 41), (500, 3), (11, 13, 17), (3, 5, 7, 11), (2, 3, 4, 5, 6)]
SPECIAL = [math.nan, -math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-42, -5e-324, 6e-8, 3e38, -1e300, 65504.0]


def wave(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """A smooth field with a little noise."""
    size = math.prod(shape)
    x = np.sin(np.arange(size) / 17) * 3 + np.random.default_rng(size).normal(0, 0.01, size)
    return x.reshape(shape).astype(dtype)


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
@pytest.mark.parametrize("bound", [Rel(1e-6), Rel(1e-3), Rel(0.1), PointwiseRel(1e-3)], ids=str)
@pytest.mark.parametrize("shape", [(300,), (19, 23), (40, 3), (7, 9, 10), (36, 4, 6)], ids=str)
def test_back_ends_agree(shape, bound, level):
    x = wave(shape)
    x.reshape(-1)[[3, 70]] = np.nan, 1e9
    with kernels.backend("numba"):
        fast = SZ(level=level).encode(x, bound)
        y = SZ().decode(fast)
    with kernels.backend("ref"):
        slow = SZ(level=level).encode(x, bound)
        assert same_buffers(fast, slow)
        assert np.array_equal(y.view(np.uint32), SZ().decode(fast).view(np.uint32))
    assert fast.header.codec["id"] == "sz"


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


def test_masked_field_still_shrinks():
    x = wave((64, 64, 64))
    x[:, :30] = np.nan
    packed = SZ().encode(x, Rel(1e-3))
    assert Rel(1e-3).allows(x, decoded(packed))
    assert packed.num_bytes < x.nbytes / 6


def test_psnr_is_reached_and_not_by_much():
    x = wave((40, 50, 60))
    for decibels in (30.0, 60.0, 90.0):
        assert decibels <= psnr(x, decoded(SZ().encode(x, PSNR(decibels)))) < decibels + 3


def test_smooth_fields_shrink():
    axes = np.meshgrid(*[np.linspace(0, 6, 64)] * 3, indexing="ij")
    x = (np.sin(axes[0]) * np.cos(axes[1] + axes[2])).astype(np.float32)
    assert SZ().encode(x, Rel(1e-3)).num_bytes < x.nbytes / 25


def test_refusals():
    with pytest.raises(BoundError, match="ENEC"):
        SZ().encode(wave((100,)), Lossless())
    with pytest.raises(ShapeError, match="astype"):
        SZ().encode(np.arange(100), Abs(1.0))


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
    assert attempt(broken(packed, {"dtype": "int32"}))
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


def test_psnr_holds_where_only_the_sample_is_made_of_multiples():
    """Every 16th element, which is what the encoder looks at, is a multiple of 64; the others are just within reach."""
    rng = np.random.default_rng(0)
    x = (np.round(rng.normal(0, 20, 1 << 16)) * 64).astype(np.float32)
    largest_error = np.float32(0.99 * math.sqrt(3) * np.ptp(x) * 10 ** (-60 / 20))
    others = np.arange(x.size) % 16 != 0
    x[others] += largest_error * rng.choice([-1, 1], others.sum()).astype(np.float32)
    assert psnr(x, decoded(SZ().encode(x, PSNR(60.0)))) >= 60
