"""AE-SZ: the bound, the choice of blocks, models and their files."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import numpy as np
import pytest

import trimtab as tt
from tests.networks import pooling
from trimtab.codecs import AESZ, SZ, aesz, make_codec
from trimtab.codecs.aesz_tile import CONSTANT, INTERPOLATION, NETWORK, MixedCoder, Mixture
from trimtab.codecs.codec import describe
from trimtab.codecs.tiling import Fold
from trimtab.errors import BoundError, Corrupt, FormatError, UsageError
from trimtab.files import Reader, to_bytes
from trimtab.store import encode


def waves(size: int, seed: int, time: float = 0.0, dtype: str = "float32") -> np.ndarray:
    """Return waves of nearly one length from all sides: predictable by few numbers, and not from near neighbours."""
    rng = np.random.default_rng(seed)
    angles, phases = rng.uniform(0, 2 * np.pi, (2, 40))
    k = 2 * np.pi / 7 * rng.normal(1, 0.02, 40)
    y, x = np.mgrid[:size, :size]
    parts = (
        np.cos(a * (np.cos(b) * x + np.sin(b) * y) + p + a * time) for a, b, p in zip(k, angles, phases, strict=True)
    )
    return sum(parts).astype(dtype)


@pytest.fixture(scope="module")
def fitted() -> AESZ:
    """A network trained for seconds on waves."""
    snapshots = [waves(96, seed, time) for seed in (1, 2) for time in (0, 1)]
    return AESZ.fit(snapshots, block=16, latent=40, channels=(4, 6), num_steps=20, seed=1, quiet=True, weights="shared")


def header(blob: bytes):
    return Reader(blob).header("")


def test_later_snapshots_take_less(fitted):
    """Half of what interpolation takes, on another run; at 0.02 of the range, and the bound holds."""
    x = waves(256, 7, 5.0)
    for relative in (0.1, 0.02):
        bound = tt.Rel(relative)
        blob = tt.compress(x, bound, codec=fitted)
        assert header(blob).codec["id"] == "aesz"
        assert bound.allows(x, tt.decompress(blob))
        data = len(blob) - 400  # the header
        assert data < 0.75 * len(tt.compress(x, bound, codec=SZ(level="ratio")))


@pytest.mark.parametrize("choice", ["bits", "l1", "network"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_special_values_are_kept(fitted, dtype, choice):
    codec = msgspec.structs.replace(fitted, choice=choice)
    x = waves(96, 7, dtype=dtype)
    x.flat[[5, 900, 2000]] = np.nan, np.inf, -np.inf
    x[40:50, 20:30] += 9 if dtype == "float16" else 1e4
    for bound in (tt.Abs(0.1), tt.Rel(0.01)):
        assert bound.allows(x, tt.decompress(tt.compress(x, bound, codec=codec)))


def test_no_array_is_larger_than_without_the_network(fitted):
    rng = np.random.default_rng(0)
    inline = msgspec.structs.replace(fitted, weights="inline")
    for x in (waves(96, 9), rng.normal(0, 1, (90, 70)).astype("f4"), rng.normal(0, 1, (60, 60, 5)).cumsum(0).cumsum(1)):
        for bound in (tt.Rel(0.1), tt.Rel(1e-3)):
            base = encode(x, bound, SZ(level="ratio"))[0].num_bytes
            for codec in (fitted, inline):
                assert encode(x, bound, codec)[0].num_bytes <= base


def test_weights_are_charged_where_they_are_inline(fitted):
    """They pay only where many blocks use them."""
    inline = msgspec.structs.replace(fitted, weights="inline")
    small, large = waves(96, 9), waves(768, 9)
    assert header(tt.compress(small, tt.Rel(0.05), codec=inline)).codec["id"] == "sz"
    blob = tt.compress(large, tt.Rel(0.02), codec=inline)
    packed = Reader(blob).packed("")
    assert packed.header.codec["id"] == "aesz"
    assert packed.buffers["model"].size == inline.num_model_bytes
    assert len(blob) < len(tt.compress(large, tt.Rel(0.02), codec=SZ(level="ratio")))


def kinds(codec: AESZ, x: np.ndarray, bound: tt.bounds.Bound) -> np.ndarray:
    """Return the kinds of the blocks of the first tile."""
    packed, _ = encode(x, bound, codec)
    (tile, *_), params = Fold.of(x.shape).tiles(), packed.params(aesz.Params)
    decoder = aesz._models[codec.model].decoder
    coder = MixedCoder(tile, decoder, params.low, params.high, params.step, np.dtype(x.dtype))
    return coder._unpack(packed.buffers["data"][: int(packed.buffers["tiles"][0])])[0].kinds


def test_blocks_choose_what_suits_them(fitted):
    """Waves take the network, smooth ground is interpolated."""
    x = waves(256, 7, 5.0)
    y, z = np.mgrid[:256, :256]
    x[:128] = (5 * np.sin(y / 90) * np.cos(z / 70))[:128]
    chosen = kinds(fitted, x, tt.Rel(0.02)).reshape(16, 16)
    assert (chosen[9:] == NETWORK).mean() > 0.9
    assert (chosen[:7] == INTERPOLATION).mean() > 0.9
    packed, _ = encode(x, tt.Rel(0.02), fitted)
    assert fitted.count_blocks(packed)["network"] == (chosen == NETWORK).sum()


def test_constant_blocks_are_coded():
    codec = pooling(2, choice="network")
    x = waves(64, 3)
    (tile,), decoder = Fold.of(x.shape).tiles(), aesz._models[codec.model].decoder
    coder = MixedCoder(tile, decoder, float(x.min()), float(x.max()), 0.2, np.dtype("f4"))
    mixture = next(coder._mixtures(aesz._models[codec.model].encoder, x[None], 0.1, 9999, "network"))
    means = np.arange(64, dtype=np.int32) * 1000 - 30000
    every = np.arange(64) % 3
    mixture = Mixture(every.astype(np.uint8), 20, mixture.latents, means)
    again, rest = coder._unpack(np.frombuffer(coder._pack(mixture), np.uint8))
    assert rest.size == 0
    assert np.array_equal(again.kinds, mixture.kinds)
    assert np.array_equal(again.means[every == CONSTANT], means[every == CONSTANT])
    assert np.array_equal(again.latents[every == NETWORK], mixture.latents[every == NETWORK])
    prior = coder._prior(again)
    assert np.array_equal(prior.known, coder._prior(mixture).known)
    assert np.array_equal(prior.values, coder._prior(mixture).values)


def test_tiles_of_all_kinds_come_back():
    """Patches on a wave: constant, of four parts that the network knows, and interpolated between them."""
    model = aesz._models[pooling(2).model]
    y, x = np.mgrid[:96, :96]
    field = (300 * np.sin(y / 15) * np.cos(x / 17)).astype("f4")
    values = np.random.default_rng(0).normal(0, 300, (36, 2, 2))
    for at, value in enumerate(values):
        patch = field[at // 6 * 16 :, at % 6 * 16 :][:8, :8]
        patch[:] = np.kron(value if at % 2 else value[:1, :1], np.ones((4, 4) if at % 2 else (8, 8)))
    (tile,) = Fold.of(field.shape).tiles()
    coder = MixedCoder(tile, model.decoder, float(field.min()), float(field.max()), 3.99, np.dtype("f4"))
    counts = {}
    for choice in ("bits", "l1", "network"):
        payload, _ = coder.encode(model.encoder, field.reshape(-1), 2.0, 10**9, choice)
        decoded = np.full_like(field, np.nan)
        coder.decode(payload, decoded.reshape(-1))
        assert tt.Abs(2.0).allows(field, decoded)
        counts[choice] = coder.count(payload)
    assert (counts["bits"] > 5).all()
    assert counts["l1"][INTERPOLATION] > 5
    assert counts["l1"][NETWORK] > 18 - 5  # where it misses less than interpolation does: constant patches, too
    assert counts["l1"][CONSTANT] == 0
    assert counts["network"].tolist() == [0, 144, 0]


@pytest.mark.parametrize("shape", [(500,), (3, 4), (40, 50, 3), (7, 33, 40), (2, 3, 40, 40)], ids=str)
def test_any_shape(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, shape).cumsum(-1).astype("f4")
    for dims in (2, 3):
        for choice in ("bits", "network"):
            codec = pooling(dims, choice=choice)
            blob = tt.compress(x, tt.Rel(0.02), codec=codec)
            assert tt.Rel(0.02).allows(x, tt.decompress(blob))
    if len(Fold.of(shape).shape) == 3:
        assert header(blob).codec["id"] == "aesz"


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-300, 1e300])
def test_any_magnitude(size):
    x = (waves(40, 3, dtype="float64") > 0) * size
    for bound in (tt.Abs(1e-308), tt.Abs(1e305), tt.Rel(0.1)):
        for choice in ("bits", "network"):
            assert bound.allows(x, tt.decompress(tt.compress(x, bound, codec=pooling(2, choice=choice))))


def test_other_bounds_and_dtypes_are_left_to_sz(fitted):
    x = waves(96, 7)
    for bound in (tt.PSNR(40), tt.PointwiseRel(0.1)):
        blob = tt.compress(x, bound, codec=fitted)
        assert header(blob).codec["id"] == "sz"
        assert bound.allows(x, tt.decompress(blob))
    assert header(tt.compress((100 * x).astype("i4"), tt.Abs(3), codec=fitted)).codec["id"] == "sz"
    with pytest.raises(BoundError):
        tt.compress(x, codec=fitted)


def test_threads_and_back_ends_decode_alike(fitted):
    x = waves(64, 7)
    codec = msgspec.structs.replace(fitted, choice="network")
    blobs = []
    for count in (1, 2, 5):
        with tt.threads(count):
            blobs.append(tt.compress(x, tt.Rel(0.05), codec=codec))
    assert len(set(blobs)) == 1
    with tt.backend("ref"):
        slow = tt.decompress(blobs[0])
    assert slow.tobytes() == tt.decompress(blobs[0]).tobytes()


def test_several_tiles():
    """Each tile is packed on its own; how many threads do so does not matter."""
    x = np.repeat(waves(1500, 5)[::2], 2, axis=0)
    codec = pooling(2, choice="network")
    blobs = set()
    for count in (1, 3):
        with tt.threads(count):
            blobs.add(tt.compress(x, tt.Rel(0.05), codec=codec))
    (blob,) = blobs
    packed = Reader(blob).packed("")
    assert packed.buffers["tiles"].size == 2
    assert codec.count_blocks(packed) == {"interpolated": 0, "network": 2 * 94 * 188, "constant": 0}
    assert tt.Rel(0.05).allows(x, tt.decompress(blob))


# models


def test_models_come_back_from_their_files(fitted, tmp_path):
    path = tmp_path / "model.tt"
    fitted.save(path)
    again = AESZ.load(path, weights="shared")
    assert again == fitted
    with pytest.raises(FormatError, match="model"):
        tt.save(tmp_path / "other.tt", {"x": np.zeros(3)})
        AESZ.load(tmp_path / "other.tt")
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 255
    (tmp_path / "damaged.tt").write_bytes(damaged)
    with pytest.raises(FormatError):
        AESZ.load(tmp_path / "damaged.tt")


def test_shared_weights_need_their_model(fitted, monkeypatch):
    blob = tt.compress(waves(96, 7), tt.Rel(0.05), codec=msgspec.structs.replace(fitted, choice="network"))
    monkeypatch.setattr(aesz, "_models", {})
    with pytest.raises(FormatError, match=fitted.model):
        tt.decompress(blob)
    with pytest.raises(UsageError, match=fitted.model):
        tt.compress(waves(96, 7), tt.Rel(0.05), codec=make_codec(describe(fitted)))


def test_another_model_is_not_taken():
    one, other = pooling(2, choice="network"), pooling(2, block=16, choice="network")
    packed, checksum = encode(waves(96, 7), tt.Rel(0.05), one)
    theirs, _ = encode(waves(96, 7), tt.Rel(0.05), other)
    packed.buffers["model"] = theirs.buffers["model"]
    with pytest.raises(Corrupt, match=other.model):
        tt.decompress(to_bytes(packed, checksum))


@pytest.mark.parametrize(
    ("snapshots", "settings"),
    [
        ([], {}),
        ([np.zeros((40, 40))], {}),
        ([np.arange(40)], {}),
        ([np.ones((40, 40), int)], {}),
        ([waves(40, 1)], {"dims": 3}),
        ([waves(40, 1)], {"block": 30}),
    ],
    ids=["nothing", "constant", "one axis", "integers", "dims", "block"],
)
def test_fit_refuses_what_it_cannot_use(snapshots, settings):
    with pytest.raises(UsageError):
        AESZ.fit(snapshots, num_steps=1, quiet=True, **settings)


def test_progress_is_shown(capsys):
    AESZ.fit([waves(40, 1)], block=8, latent=3, channels=(2,), num_steps=2)
    assert "step 2 of 2" in capsys.readouterr().err


def test_without_torch_only_fit_fails(fitted, tmp_path):
    """Packing and unpacking need no PyTorch, and do not import it."""
    fitted.save(tmp_path / "model.tt")
    np.save(tmp_path / "x.npy", waves(96, 7))
    script = f"""
import sys
sys.modules["torch"] = None
import numpy as np, trimtab as tt
codec = tt.codecs.AESZ.load({str(tmp_path / "model.tt")!r}, weights="shared", choice="network")
x = np.load({str(tmp_path / "x.npy")!r})
y = tt.decompress(tt.compress(x, tt.Rel(0.05), codec=codec))
assert tt.Rel(0.05).allows(x, y)
try:
    tt.codecs.AESZ.fit([x])
except tt.errors.BackendUnavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "trimtab[torch]" in done.stdout
