"""GWLZ: bounds hold, quality rises for its bytes or the base codec is left alone, and bits are the same everywhere."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import ml_dtypes
import msgspec
import numpy as np
import pytest

import trimtab as tt
from bench.fields import logn
from tests.samples import same_bits
from trimtab import store
from trimtab.bounds import PSNR, Abs, PointwiseRel, Rel, largest_error, psnr
from trimtab.codecs import GWLZ, SZ, make_codec
from trimtab.codecs.gwlz_networks import Networks, neighbours
from trimtab.codecs.gwlz_training import Price, Samples, fit, rounded_last
from trimtab.codecs.surroundings import Surroundings, row_starts
from trimtab.codecs.tiling import MAX_TILE_SIZE, Fold
from trimtab.errors import Corrupt, FormatError, UsageError
from trimtab.files import Reader, to_bytes
from trimtab.kernels.enhancer.ref import LARGEST_ACTIVATION, SUM_LIMIT
from trimtab.packed import Packed

QUICK = GWLZ(steps=100)
WITHIN = Abs(0.1)
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SHAPES = [(20_000,), (160, 150), (28, 31, 27), (30, 1, 30, 30), (4000, 3), (90, 80, 3), (2, 20_000), (1, 20_000, 1)]


def field(shape: tuple[int, ...], dtype: type = np.float32, noise: float = 0.02) -> np.ndarray:
    """A smooth field, from -3 to 3 about, with a little noise."""
    x = np.random.default_rng(0).normal(0, noise, shape)
    for axis, n in enumerate(shape):
        wave = np.sin(np.arange(n) / (9 + 2 * axis) + axis)
        x += wave.reshape(-1, *[1] * (len(shape) - axis - 1))
    return x.astype(dtype)


def packed_of(x: np.ndarray, codec: GWLZ = QUICK, bound: tt.bounds.Bound = WITHIN) -> Packed:
    """Pack an array for which networks pay."""
    packed = codec.encode(x, bound)
    assert packed.header.codec["id"] == "gwlz"
    return packed


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_hold_and_quality_rises(dtype, shape):
    x = field(shape, dtype)
    for bound in (Abs(0.1), Rel(0.02)):
        packed, checksum = store.encode(x, bound, QUICK)
        y = store.decode(Reader(to_bytes(packed, checksum)), "")
        assert packed.header.codec["id"] == "gwlz"
        assert packed.header.bound == bound
        assert bound.allows(x, y)
        assert psnr(x, y) > psnr(x, SZ().decode(SZ().encode(x, bound))) + 1


@pytest.mark.parametrize("base", [SZ(level="fast"), SZ(), SZ(level="ratio")], ids=str)
def test_better_than_its_base_at_the_same_bytes(base):
    """The base codec gets the loosest bound, in steps of 2 %, for which it takes as many bytes at least."""
    x = np.exp(field((64, 64, 64)))
    blob = tt.compress(x, Rel(0.01), codec=GWLZ(base=base))
    value = 0.01
    while len(plain := tt.compress(x, Rel(value), codec=base)) < len(blob):
        value *= 0.98
    assert value < 0.01
    assert psnr(x, tt.decompress(blob)) > psnr(x, tt.decompress(plain)) + 1


def test_hidden_layers_beat_least_squares():
    x = logn(128)
    plain, learnt = (tt.compress(x, Rel(0.01), codec=GWLZ(hidden=hidden, steps=1000)) for hidden in ((), (16, 8)))
    assert psnr(x, tt.decompress(learnt)) > psnr(x, tt.decompress(plain)) + 0.5
    assert len(learnt) < 1.05 * len(plain)


def test_more_groups_where_values_tell_something():
    x = np.exp(2 * field((64, 64, 64)))
    networks = [
        Networks.from_bytes(packed_of(x, GWLZ(hidden=(), groups=groups), Rel(0.01)).buffers["networks"], 3)
        for groups in (1, 6)
    ]
    assert networks[0].num_groups == 1 < networks[1].num_groups <= 6


@pytest.mark.parametrize("shape", [(20_000,), (100, 200), (28, 28, 28)], ids=str)
def test_noise_is_left_to_the_base_codec(shape):
    x = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    assert same_packed(GWLZ().encode(x, Abs(0.1)), SZ().encode(x, Abs(0.1)))


@pytest.mark.parametrize("bound", [PointwiseRel(0.01), PSNR(40.0)], ids=str)
def test_other_bounds_are_left_to_the_base_codec(bound):
    x = field((28, 28, 28))
    assert same_packed(QUICK.encode(x, bound), SZ().encode(x, bound))


@pytest.mark.parametrize(
    "x",
    [
        np.full((30, 30, 30), 3, np.float32),
        np.full((30, 30, 30), np.nan, np.float32),
        np.zeros((30, 30, 30), np.float64),
        (field((30, 30, 30)) * 50).astype(np.int32),
        np.round(field((30, 30, 30)) * 9),
    ],
    ids=["constant", "nan", "zeros", "integers", "whole numbers"],
)
def test_where_nothing_is_lost_nothing_is_learnt(x):
    assert same_packed(QUICK.encode(x, Abs(0.4)), SZ().encode(x, Abs(0.4)))


def same_packed(a: Packed, b: Packed) -> bool:
    return a.header == b.header and all(np.array_equal(a.buffers[name], b.buffers[name]) for name in b.buffers)


def test_relaxed_bounds_are_stated_and_kept():
    """Twice the bound in the header, for less bytes than the strict one, and errors beyond the single bound."""
    x = np.exp(field((40, 40, 40)))
    strict, relaxed = packed_of(x, QUICK, Abs(0.2)), packed_of(x, msgspec.structs.replace(QUICK, relaxed=2), Abs(0.2))
    assert strict.header.bound == Abs(0.2)
    assert relaxed.header.bound == Abs(0.4)
    assert relaxed.header.codec["relaxed"] == 2
    errors = [largest_error(x, make_codec(packed.header.codec).decode(packed)) for packed in (strict, relaxed)]
    assert errors[0] <= 0.2 < errors[1] <= 0.4
    assert strict.buffers["kept"].size > 0 == relaxed.buffers["kept"].size


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_come_back(dtype):
    x = field((30, 31, 29), dtype)
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 6e4, 1e-30], dtype)
    x.reshape(-1)[::257][: special.size * 3] = np.tile(special, 3)
    packed = packed_of(x)
    y = make_codec(packed.header.codec).decode(packed)
    assert Abs(0.1).allows(x, y)
    finite = np.isfinite(x)
    assert same_bits(x[~finite], y[~finite])
    assert not same_bits(SZ().decode(SZ().encode(x, Abs(0.1))), y)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_any_magnitude(scale):
    x = field((24, 24, 24), np.float64) * scale
    packed = packed_of(x, QUICK, Abs(0.1 * scale))
    assert Abs(0.1 * scale).allows(x, QUICK.decode(packed))


def test_far_from_zero():
    """Whole numbers of the unit are cut at 2^30: what is beyond teaches nothing, and does no harm."""
    x = field((24, 24, 24), np.float64) + 1e9
    codec = GWLZ(steps=50)
    for bound in (Abs(0.1), Abs(1e-3)):
        packed = codec.encode(x, bound)
        assert bound.allows(x, make_codec(packed.header.codec).decode(packed))


def test_views_and_byte_orders():
    x = field((30, 40, 50))
    for view in (x.astype(">f4"), np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        assert same_packed(packed_of(view), packed_of(x))


LARGE = (130, 130, 130)
assert np.prod(LARGE) > MAX_TILE_SIZE


@pytest.fixture(scope="module")
def large() -> tuple[np.ndarray, Packed]:
    x = np.exp(field(LARGE))
    packed = packed_of(x, GWLZ(steps=100, hidden=(6,)), Rel(0.01))
    assert packed.buffers["kept_counts"].size == 2
    assert packed.buffers["kept"].size
    return x, packed


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_matter(large, threads):
    x, packed = large
    with tt.threads(threads):
        again = GWLZ(steps=100, hidden=(6,)).encode(x, Rel(0.01))
        y = GWLZ(base=SZ()).decode(again)
    assert same_packed(again, packed)
    with tt.threads(1):
        assert same_bits(y, GWLZ().decode(packed))
    assert Rel(0.01).allows(x, y)


@pytest.mark.parametrize("hidden", [(), (4,), (5, 3)], ids=str)
def test_back_ends_agree(hidden):
    packed = packed_of(field((20, 21, 22)), GWLZ(hidden=hidden, steps=50))
    y = GWLZ().decode(packed)
    with tt.backend("ref"):
        assert same_bits(GWLZ().decode(packed), y)


def test_decoding_needs_no_torch(tmp_path):
    path = tmp_path / "x.tt"
    tt.save(path, {"x": field((30, 30, 30))}, Abs(0.1), codec=QUICK)
    code = (
        "import sys; sys.modules['torch'] = None; import trimtab as tt; t = tt.load(sys.argv[1]); "
        "print(t['x'].shape, t.reader.header('x').codec['id'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "(30, 30, 30) gwlz\n"


@pytest.mark.parametrize(
    "wrong",
    [{"groups": 0}, {"groups": 17}, {"hidden": (0,)}, {"hidden": (8, 8, 8)}, {"steps": 0}, {"relaxed": 3}],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match="out of range"):
        GWLZ(**wrong)
    with pytest.raises(Corrupt, match="gwlz"):
        make_codec({"id": "gwlz", **wrong})


@pytest.mark.parametrize("hidden", [(), (1,), (64,), (64, 64), (16, 8)], ids=str)
def test_what_is_fitted_is_exact(hidden):
    """Sums of the largest networks, and of steep ones, stay where arithmetic is exact."""
    rng = np.random.default_rng(0)
    near = rng.choice(np.array([-127, -1, 0, 1, 127], np.int8), (4000, 16))
    error = np.where(near[:, 3] > 0, 1.0, -1.0).astype(np.float32)
    samples = Samples(near, rng.integers(-(10**6), 10**6, 4000), error, np.ones(4000, np.float32))
    fitted = fit(samples, 10**6, 3, hidden, 20, 0, Price(10**6, 1.0), 1.0)
    assert fitted is not None
    assert fitted.networks.hidden == hidden
    fitted.networks.check()


@pytest.mark.parametrize("scale", [1e-9, 1.0, 100.0, 1e9])
def test_last_layers_are_exact(scale):
    """64 equal weights: their sum is what counts, not one of them."""
    weights, biases, shifts = rounded_last(np.full(64, scale), scale, 511, hidden=True)
    assert abs(weights).sum() * LARGEST_ACTIVATION + abs(biases).max() < SUM_LIMIT
    assert 0 <= shifts[0] <= 31
    if scale == 1.0:
        assert weights[0, 0] == 2 ** shifts[0] > 8


def test_surroundings_are_those_before_anything_was_rewritten():
    x = np.random.default_rng(0).integers(0, 1000, (70, 200, 180)).astype(np.int32)
    fold, reach = Fold.of(x.shape), (2, 2, 6)
    wide, flat = np.pad(x, [(r, r) for r in reach], mode="edge"), x.reshape(-1)
    around = Surroundings(flat, fold, reach)
    assert fold.num_tiles > 1
    for tile in fold.tiles()[::-1]:
        expected = wide[tuple(slice(a, b + 2 * r) for (a, b), r in zip(tile.ranges, reach, strict=True))]
        block = around.block(tile)
        assert np.array_equal(block, expected)
        rows = block.reshape(-1)[row_starts(tile, reach)[:, None] + np.arange(tile.extents[-1])]
        assert np.array_equal(rows.reshape(tile.extents), tile.view(flat))
        tile.view(flat)[...] = -1


def changed(packed: Packed, **buffers: np.ndarray) -> Packed:
    return replace(packed, buffers={**packed.buffers, **buffers})


def with_networks(packed: Packed, **fields: np.ndarray) -> Packed:
    return changed(packed, networks=replace(TestForged.networks, **fields).to_bytes())


class TestForged:
    """Three networks of four hidden units, that correct nothing, in place of those that were fitted."""

    networks = Networks(
        edges=np.array([-5, 7], np.int32),
        origins=np.zeros(3, np.int32),
        limits=np.full(3, 128, np.int16),
        sizes=np.array([81, 4, 1], np.int64),
        weights=np.zeros((3, 81 * 4 + 4), np.int16),
        biases=np.zeros((3, 5), np.int32),
        shifts=np.zeros((3, 5), np.uint8),
    )
    fitted = packed_of(field((40, 40, 40)))
    packed = changed(fitted, networks=networks.to_bytes())

    def test_untouched(self):
        y = GWLZ().decode(self.packed)
        assert same_bits(y, SZ().decode(SZ().encode(field((40, 40, 40)), WITHIN)))

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("limits", 129, "limit"),
            ("shifts", 32, "shift"),
            ("biases", 1 << 24, "sum"),
            ("weights", None, "sum"),
            ("origins", 1 << 30, "out of range"),
        ],
    )
    def test_numbers_out_of_range(self, name, value, message):
        array = getattr(self.networks, name).copy()
        if value is None:
            array[..., -4:] = 2**15 - 1  # those of the last layer
        else:
            array[...] = value
        with pytest.raises(Corrupt, match=message):
            GWLZ().decode(with_networks(self.packed, **{name: array}))

    @pytest.mark.parametrize("edges", [[5, 5], [6, 5], [1 << 30], [-(1 << 30)]], ids=str)
    def test_edges(self, edges):
        count = len(edges) + 1
        single = {
            name: getattr(self.networks, name)[:1] for name in ("origins", "limits", "weights", "biases", "shifts")
        }
        forged = {name: np.repeat(array, count, axis=0) for name, array in single.items()}
        with pytest.raises(Corrupt, match="out of range"):
            GWLZ().decode(with_networks(self.packed, edges=np.array(edges), **forged))

    @pytest.mark.parametrize("head", [b"", b"\1", b"\0\0", b"\x11\0", b"\1\3\4\4\4", b"\1\1\0", b"\1\1\x41", b"\1\2\4"])
    def test_heads(self, head):
        with pytest.raises(Corrupt):
            GWLZ().decode(changed(self.packed, networks=np.frombuffer(head, np.uint8)))

    def test_too_many_kept(self):
        counts = np.full(1, 40**3 + 1, np.uint32)
        with pytest.raises(Corrupt, match="keeps more"):
            GWLZ().decode(changed(self.packed, kept_counts=counts))

    def test_kept_beyond_the_tile(self):
        with pytest.raises(FormatError):
            GWLZ().decode(changed(self.packed, kept_counts=np.full(1, 40**3, np.uint32)))

    @pytest.mark.parametrize(
        "change", [{"unit": 0.0}, {"unit": -1.0}, {"base": {}}, {"base_bound": {"kind": "lossless"}}]
    )
    def test_params(self, change):
        header = msgspec.structs.replace(self.packed.header, params={**self.packed.header.params, **change})
        with pytest.raises(Corrupt):
            GWLZ().decode(replace(self.packed, header=header))

    @pytest.mark.parametrize("bound", [Rel(0.1), Abs(0.2), PSNR(0.1)], ids=str)
    def test_a_promise_that_was_not_given(self, bound):
        header = msgspec.structs.replace(self.packed.header, bound=bound)
        with pytest.raises(Corrupt, match="bound"):
            GWLZ().decode(replace(self.packed, header=header))


def test_neighbours_form_a_ball():
    assert [len(neighbours(axes)) for axes in (1, 2, 3)] == [16, 36, 80]
    for axes in (1, 2, 3):
        steps = set(neighbours(axes))
        assert {tuple(-s for s in step) for step in steps} == steps
        assert (0,) * axes not in steps
        assert max(math.hypot(*step) for step in steps) <= 8
