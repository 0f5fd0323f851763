"""compress, decompress, save, load: what a caller may hand over, and what comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trimtab as tt
from tests.forged import Forged
from tests.samples import same_bits, sample
from trimtab import store
from trimtab.codecs import ENEC, SZ, Raw
from trimtab.errors import BoundError, Corrupt, ShapeError, UsageError

X = sample("float32", (40, 50))


def codec_of(blob: bytes) -> str:
    return Forged.of(blob).manifest["codecs"][0]["id"]


def test_lossless_uses_enec_and_lossy_sz():
    x = sample("float32", (100, 100)).cumsum(0)
    assert codec_of(tt.compress(x)) == "enec"
    assert codec_of(tt.compress(x, tt.Rel(1e-3))) == "sz"
    assert codec_of(tt.compress(x, tt.Rel(1e-3), codec=Raw())) == "raw"
    assert codec_of(tt.compress(np.arange(10**5) ** 2 % 1000, tt.Abs(2))) == "sz"
    assert codec_of(tt.compress(np.zeros(10**5, bool), tt.Abs(1.0))) == "enec"


@pytest.mark.parametrize("bound", [tt.Abs(0.01), tt.Rel(0.01), tt.PointwiseRel(0.01), tt.PSNR(40)], ids=repr)
def test_lossy_round_trips_keep_the_bound(bound):
    x = X.cumsum(1)
    blob = tt.compress(x, bound)
    assert bound.allows(x, tt.decompress(blob))
    assert len(blob) < x.nbytes


def test_out_receives_the_elements():
    blob = tt.compress(X)
    out = np.empty_like(X)
    assert tt.decompress(blob, out=out) is out
    assert same_bits(out, X)
    for wrong in (np.empty(X.size, "f4"), np.empty(X.shape), np.empty(X.shape[::-1], "f4").T):
        with pytest.raises(ShapeError, match="out"):
            tt.decompress(blob, out=wrong)


@pytest.mark.parametrize("source", [bytes, bytearray, memoryview, lambda blob: np.frombuffer(blob, "u1")])
def test_any_buffer_is_read(source):
    assert same_bits(tt.decompress(source(tt.compress(X))), X)


@pytest.mark.parametrize("bound", [1e-3, "rel", None, tt.Rel, {"kind": "rel", "value": 1e-3}], ids=repr)
def test_bounds_must_be_bounds(bound):
    with pytest.raises(BoundError, match=r"Rel\(1e-3\)"):
        tt.compress(X, bound)


@pytest.mark.parametrize("codec", ["sz", SZ, 3, {"id": "sz"}], ids=repr)
def test_codecs_must_be_objects(codec, tmp_path):
    with pytest.raises(UsageError, match=r"trimtab\.codecs\.SZ\(\)"):
        tt.compress(X, codec=codec)
    with pytest.raises(UsageError):
        tt.save(tmp_path / "x.tt", {"x": X}, codec=codec)


def test_frameworks_are_checked_at_once(tmp_path):
    tt.save(tmp_path / "x.tt", {"x": X})
    with pytest.raises(UsageError, match="jax"):
        tt.load(tmp_path / "x.tt", framework="jax")
    with pytest.raises(UsageError, match="jax"):
        tt.decompress(tt.compress(X), framework="jax")


@pytest.mark.parametrize("tensors", [[X], X, "x", None], ids=lambda t: type(t).__name__)
def test_save_takes_mappings(tensors, tmp_path):
    with pytest.raises(UsageError, match="mapping"):
        tt.save(tmp_path / "x.tt", tensors)


def test_an_empty_mapping(tmp_path):
    tt.save(tmp_path / "x.tt", {})
    tensors = tt.load(tmp_path / "x.tt")
    assert dict(tensors) == {}
    assert tensors.report["decoded_bytes"] == 0
    assert "0 arrays" in repr(tensors)


def test_a_collection_of_dtypes_under_one_bound(tmp_path):
    tensors = {
        name: sample(name, (30, 40)) for name in ("float32", "float64", "int64", "bool", "complex64", "float8_e4m3fn")
    }
    for codec in (None, SZ()):
        tt.save(tmp_path / "x.tt", tensors, tt.Rel(0.01), codec=codec, metadata={"epoch": "3"})
        came = tt.load(tmp_path / "x.tt")
        assert list(came) == list(tensors)
        assert came.report["metadata"] == {"epoch": "3"}
        for name, x in tensors.items():
            if name in ("float32", "float64"):
                assert tt.Rel(0.01).allows(x, came[name])
            else:
                assert same_bits(x, came[name])


def test_a_bound_applies_to_integers_only_where_asked(tmp_path):
    tensors = {"image": np.arange(10**4, dtype=np.uint16) % 300, "field": X, "mask": np.arange(5000) % 7 == 0}
    for integers in (False, True):
        tt.save(tmp_path / "x.tt", tensors, tt.Abs(4), integers=integers)
        came = tt.load(tmp_path / "x.tt")
        assert tt.Abs(4).allows(tensors["image"], came["image"])
        assert same_bits(tensors["image"], came["image"]) != integers
        assert same_bits(tensors["mask"], came["mask"])
        assert tt.Abs(4).allows(X, came["field"])


def test_a_codec_for_floats_leaves_counters_alone(tmp_path):
    tensors = {"w": sample("bfloat16", (80, 80)), "steps": np.array(7)}
    tt.save(tmp_path / "x.tt", tensors, codec=ENEC(mode="paper"))
    came = tt.load(tmp_path / "x.tt")
    assert all(same_bits(x, came[name]) for name, x in tensors.items())


def test_state_dicts_of_torch(tmp_path):
    model, other = (torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.BatchNorm1d(40)) for _ in range(2))
    tt.save(tmp_path / "x.tt", model.state_dict())
    other.load_state_dict(tt.load(tmp_path / "x.tt", framework="pt"))
    for name, x in model.state_dict().items():
        assert torch.equal(x, other.state_dict()[name])


def test_reports_count_bytes(tmp_path):
    x = sample("bfloat16", (300, 300))
    tt.save(tmp_path / "x.tt", {"a": x, "b": X}, metadata={"k": "v"})
    tensors = tt.load(tmp_path / "x.tt")
    report = tensors.report
    assert report["decoded_bytes"] == x.nbytes + X.nbytes
    assert report["file_bytes"] == (tmp_path / "x.tt").stat().st_size
    assert report["ratio"] == report["decoded_bytes"] / report["file_bytes"]
    assert report["arrays"]["a"]["shape"] == [300, 300]
    assert report["arrays"]["a"]["packed_bytes"] < x.nbytes
    assert "2 arrays" in repr(tensors)


def test_unknown_names_are_key_errors(tmp_path):
    tt.save(tmp_path / "x.tt", {"a": X})
    tensors = tt.load(tmp_path / "x.tt")
    assert "b" not in tensors
    assert tensors.get("b") is None
    with pytest.raises(KeyError):
        tensors["b"]


def test_checksums_cover_what_the_decoder_returns():
    """A codec that decodes wrongly is noticed, lossy or not."""
    for bound in (tt.Lossless(), tt.Abs(0.01)):
        forged = Forged.of(tt.compress(X, bound))
        (entry,) = forged.manifest["entries"].values()
        entry["checksum"] = f"{int(entry['checksum'], 16) ^ 1:016x}"
        with pytest.raises(Corrupt, match="checksum of entry"):
            tt.decompress(forged.bytes())


def test_encoding_says_what_the_decoder_will_return():
    x = np.linspace(0, 1, 5000, dtype="f4")
    codec = tt.codecs.SZ()
    packed, check = store.encode(x, tt.Abs(0.01), codec)
    y = codec.decode(packed)
    assert not np.array_equal(x, y)
    assert check == store.checksum([store.digest(piece) for piece in codec.pieces(y)])


def test_input_arrays_are_left_as_they_were():
    for bound in (tt.Lossless(), tt.Abs(0.01)):
        x = X.copy()
        x.flags.writeable = False
        tt.compress(x, bound)
        assert same_bits(x, X)
