"""trimtab as numcodecs codecs: by their entry points, alone, and under zarr arrays of format 2."""

from __future__ import annotations

import json
import pickle
from importlib.metadata import entry_points

import numcodecs
import numcodecs.registry
import numpy as np
import pytest
import zarr

import trimtab as tt
import trimtab.numcodecs as adapters
from tests.samples import same_bits, sample
from trimtab.errors import BoundError, Corrupt, FormatError, ShapeError

X = sample("float32", (60, 70)).cumsum(1)
CONFIGS = [
    {"id": "trimtab.enec", "mode": "fast"},
    {"id": "trimtab.enec", "mode": "paper"},
    {"id": "trimtab.raw"},
    {"id": "trimtab.sz", "bound": {"kind": "abs", "value": 0.01}},
    {"id": "trimtab.sz", "bound": {"kind": "pointwise_rel", "value": 0.01}},
]


def test_entry_points_name_the_codecs():
    found = {point.name: point.load() for point in entry_points(group="numcodecs.codecs") if "trimtab" in point.name}
    assert found == {cls.codec_id: cls for cls in (adapters.ENEC, adapters.Raw, adapters.SZ)}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_configurations_come_back(config):
    codec = numcodecs.get_codec(dict(config))
    assert codec.codec_id == config["id"]
    plain = json.loads(json.dumps(codec.get_config()))
    assert config.items() <= plain.items()
    assert numcodecs.get_codec(plain) == codec
    assert pickle.loads(pickle.dumps(codec)) == codec
    assert all(str(value) in repr(codec) for key, value in config.items() if key == "mode")


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_chunks_come_back(config, order):
    codec = numcodecs.get_codec(dict(config))
    x = np.array(X, order=order)
    blob = codec.encode(x)
    assert isinstance(blob, bytes)
    for buffer in (blob, bytearray(blob), np.frombuffer(blob, "u1"), np.frombuffer(blob, "i1")):
        came = codec.decode(buffer).reshape(-1, order="A").reshape(x.shape, order=order)  # as zarr does
        bound = tt.bounds.make_bound(config["bound"]) if "bound" in config else tt.Lossless()
        assert bound.allows(x, came)
    out = np.empty(x.size, x.dtype)
    codec.decode(blob, out=out)
    assert same_bits(out, codec.decode(blob).reshape(-1))


def test_bytes_and_dates_are_packed_losslessly():
    codec = adapters.ENEC()
    for x in (b"abc" * 1000, bytearray(b"abc"), np.arange(3000).astype("M8[s]"), np.zeros(9, bool), np.array(7.0)):
        expected = np.frombuffer(x, "u1") if isinstance(x, bytes | bytearray) else x
        assert codec.decode(codec.encode(x)).tobytes() == expected.tobytes()


def test_damage_is_noticed():
    codec = adapters.SZ(tt.Abs(0.01))
    blob = bytearray(codec.encode(X))
    blob[-1] ^= 1
    with pytest.raises(Corrupt):
        codec.decode(blob)
    with pytest.raises(FormatError):
        codec.decode(blob[:100])


def test_wrong_requests_are_refused():
    with pytest.raises(BoundError):
        adapters.SZ({"kind": "rel", "value": -1})
    with pytest.raises(BoundError):
        adapters.SZ(0.1)
    with pytest.raises(FormatError, match="speed"):
        adapters.ENEC(speed=9)
    with pytest.raises(ShapeError):
        adapters.SZ(tt.Abs(0.01)).encode(b"text")
    with pytest.raises(ShapeError):
        adapters.SZ(tt.Abs(5)).encode(np.arange(100).astype("M8[s]"))


def test_chunks_of_integers_keep_the_bound():
    x = (np.add.outer(np.arange(60), np.arange(50)) ** 2 // 9).astype(np.uint16)
    codec = adapters.SZ(tt.Abs(4))
    y = codec.decode(codec.encode(x)).reshape(x.shape)
    assert tt.Abs(4).allows(x, y) and not np.array_equal(x, y)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_zarr_format_2(config, order):
    store = {}
    z = zarr.create_array(
        store,
        shape=X.shape,
        dtype="f4",
        chunks=(32, 32),
        zarr_format=2,
        order=order,
        compressors=numcodecs.get_codec(dict(config)),
        fill_value=0,
    )
    z[:] = X
    came = zarr.open_array(store, mode="r")
    assert came.metadata.compressor.get_config()["id"] == config["id"]
    bound = tt.bounds.make_bound(config["bound"]) if "bound" in config else tt.Lossless()
    assert all(bound.allows(X[at], came[at]) for at in (np.s_[:32, :32], np.s_[32:, 64:], np.s_[:]))


def test_a_lossy_filter_before_a_lossless_compressor():
    """Filters of format 2 run before the compressor, which sees the packed bytes."""
    z = zarr.create_array(
        {},
        shape=X.shape,
        dtype="f4",
        chunks=(32, 32),
        zarr_format=2,
        filters=[adapters.SZ(tt.Abs(0.01))],
        compressors=numcodecs.Zlib(),
        fill_value=0,
    )
    z[:] = X
    assert tt.Abs(0.01).allows(X, z[:])
