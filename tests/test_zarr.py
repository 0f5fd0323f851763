"""trimtab as zarr codecs: by their entry points, and under xarray and dask."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from importlib.metadata import entry_points

import dask.array
import numpy as np
import pytest
import xarray as xr
import zarr

import trimtab as tt
import trimtab.zarr as adapters
from tests.samples import same_bits, sample
from trimtab.errors import BoundError, Corrupt, FormatError, ShapeError

NUMPY_OWN = ["bool", "int8", "uint16", "int64", "float16", "float32", "float64", "complex64", "complex128"]


def field(*shape: int) -> np.ndarray:
    """A smooth synthetic field."""
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    return sum(np.sin(2 * axis + i) for i, axis in enumerate(axes)).astype("f4")


def num_stored(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("c/**/*") if path.is_file())


def test_entry_points_name_the_codecs():
    found = {point.name: point.load() for point in entry_points(group="zarr.codecs") if "trimtab" in point.name}
    assert found == {cls.name: cls for cls in (adapters.ENEC, adapters.SZ)}


@pytest.mark.parametrize(
    "codec",
    [
        adapters.ENEC(),
        adapters.ENEC(mode="paper"),
        adapters.ENEC(mode="paper", params={"base": 122, "bits": 6, "low_bits": 3}),
        adapters.SZ(tt.Rel(0.1)),
        adapters.SZ({"kind": "psnr", "value": 60}),
    ],
)
def test_metadata_comes_back(codec):
    plain = json.loads(json.dumps(codec.to_dict()))
    assert type(codec).from_dict(plain) == codec
    assert pickle.loads(pickle.dumps(codec)) == codec
    assert hash(codec) == hash(type(codec).from_dict(plain))


@pytest.mark.parametrize("name", NUMPY_OWN)
@pytest.mark.parametrize("shape", [(50, 70), (1,), (0, 3), ()], ids=str)
def test_lossless_arrays(name, shape):
    x = sample(name, shape)
    z = zarr.create_array(
        {}, data=x, chunks="auto" if x.size < 9 else (16, 32), serializer=adapters.ENEC(), compressors=None
    )
    assert same_bits(np.asarray(z[...]), x)


def test_big_endian_arrays():
    x = sample("float32", (50, 70)).astype(">f4")
    z = zarr.create_array({}, data=x, chunks=(16, 32), serializer=adapters.ENEC(), compressors=None)
    assert same_bits(z[:], x)


def test_missing_chunks_are_the_fill_value():
    z = zarr.create_array({}, shape=(64, 64), chunks=(32, 32), dtype="f4", fill_value=7, serializer=adapters.ENEC())
    z[:32, :32] = np.arange(1024).reshape(32, 32)
    assert (z[32:] == 7).all()
    z[10:50, 40] = np.nan
    assert np.isnan(z[49, 40])
    assert z[5, 5] == 5 * 32 + 5


def test_shards_and_a_compressor_behind():
    x = field(64, 64)
    packer, behind = adapters.SZ(tt.Abs(1e-3)), zarr.codecs.GzipCodec()
    z = zarr.create_array({}, data=x, chunks=(16, 16), shards=(64, 32), serializer=packer, compressors=behind)
    assert tt.Abs(1e-3).allows(x, z[:])


def test_datasets_of_xarray_and_dask(tmp_path):
    """A dataset goes to disk chunk by chunk and comes back in a process that never heard of trimtab."""
    t, mask = field(12, 40, 50), field(12, 40, 50) > 0
    data = xr.Dataset(
        {
            "t": (("time", "y", "x"), dask.array.from_array(t, chunks=(4, 40, 25)), {"units": "K"}),
            "mask": (("time", "y", "x"), dask.array.from_array(mask, chunks=(4, 40, 25))),
        },
        coords={"time": np.arange(12).astype("M8[D]").astype("M8[ns]")},
    )
    bound = tt.Abs(1e-2)
    plain = {"serializer": "auto", "compressors": None}
    encoding = {"t": {"serializer": adapters.SZ(bound), "compressors": None}, "mask": {"serializer": adapters.ENEC()}}
    data.to_zarr(tmp_path / "packed.zarr", encoding=encoding, zarr_format=3, consolidated=False)
    data.to_zarr(tmp_path / "plain.zarr", encoding={"t": plain}, zarr_format=3, consolidated=False)

    came = xr.open_zarr(tmp_path / "packed.zarr", consolidated=False)
    assert isinstance(came.t.data, dask.array.Array)
    assert came.t.attrs == {"units": "K"}
    assert bound.allows(t, came.t.values)
    assert not np.array_equal(t, came.t.values)
    assert np.array_equal(mask, came.mask.values)
    assert (came.time == data.time).all()
    assert float(came.t.mean()) == pytest.approx(float(t.mean()), abs=bound.value)
    assert 3 * num_stored(tmp_path / "packed.zarr" / "t") < num_stored(tmp_path / "plain.zarr" / "t")

    code = f"import zarr; print(zarr.open_group({str(tmp_path / 'packed.zarr')!r}, mode='r')['t'][:].sum())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(float(t.sum()), rel=1e-2)


def test_damage_is_noticed():
    store = {}
    z = zarr.create_array(
        store, data=field(20, 30), chunks=(20, 30), serializer=adapters.SZ(tt.Abs(1e-3)), compressors=None
    )
    (key,) = [key for key in store if "c/" in key]
    blob = bytearray(store[key].to_bytes())
    for damaged in (bytes(blob[:-1] + bytes([blob[-1] ^ 1])), bytes(blob[:60])):
        store[key] = type(store[key]).from_bytes(damaged)
        with pytest.raises(FormatError):
            z[:]


@pytest.mark.parametrize("x", [np.zeros((30, 20), "f4"), np.zeros((20, 30), "f8")], ids=["shape", "dtype"])
def test_chunks_must_be_what_the_metadata_says(x):
    store = {}
    z = zarr.create_array(store, data=field(20, 30), chunks=(20, 30), serializer=adapters.ENEC(), compressors=None)
    (key,) = [key for key in store if "c/" in key]
    store[key] = type(store[key]).from_bytes(tt.compress(x))
    with pytest.raises(Corrupt, match="a chunk holds"):
        z[:]


def test_wrong_requests_are_refused_when_the_array_is_made():
    with pytest.raises(ShapeError, match=r"trimtab\.enec"):
        zarr.create_array({}, shape=9, dtype="bool", serializer=adapters.SZ(tt.Abs(1.0)))
    with pytest.raises(ShapeError, match="cannot store"):
        zarr.create_array({}, shape=9, dtype="M8[s]", serializer=adapters.ENEC())
    with pytest.raises(BoundError):
        adapters.SZ({"kind": "rel", "value": 0})
    with pytest.raises(BoundError):
        adapters.SZ(0.1)
    with pytest.raises(FormatError, match="speed"):
        adapters.ENEC(speed=9)
    with pytest.raises(NotImplementedError):
        adapters.ENEC().compute_encoded_size(8, None)
