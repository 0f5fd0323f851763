"""Stores in Zarr folders: whatever the chunks and codecs, rows are those that zarr reads."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import trimtab as tt
import trimtab.zarr
from tests.data.reading import read, same, some_samples
from trimtab.data import arrays
from trimtab.data.reading import Costs
from trimtab.data.zarr import Zarr
from trimtab.errors import Corrupt, FormatError, ShapeError, Truncated, UsageError

DTYPES = ("f4", ">f4", "f2", ">f8", "u1", ">i2", "i8", "?", "c8", ">c16")
FAST, SLOW = Costs(1e-6, 1e9), Costs(5e-3, 1e9)
CODECS = {
    "plain": None,
    "gzip": zarr.codecs.GzipCodec(),
    "zstd": zarr.codecs.ZstdCodec(),
    "blosc": zarr.codecs.BloscCodec(typesize=4),
    "two": (zarr.codecs.ZstdCodec(), zarr.codecs.GzipCodec()),
    "crc": (zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()),
}


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch):
    monkeypatch.setattr(arrays, "KEPT_ROW", 0)


def values(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 2, shape) if dtype == "?" else rng.integers(0, 100, shape)).astype(dtype)


def check(path, costs=FAST, **options):
    """Compare a store of one array with zarr, and return its report."""
    whole = zarr.open_array(path, mode="r")[:]
    with Zarr(path, costs=costs, **options) as store:
        for seed in range(3):
            samples = some_samples(store.num_samples, seed)
            assert same(read(store, samples)["x"], whole[samples])
        return store.report["x"]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
def test_every_dtype(tmp_path, version, dtype, packed):
    options = {"compressors": "auto" if packed else None, "zarr_format": version}
    zarr.create_array(tmp_path / "a.zarr", data=values((17, 4, 5), dtype), chunks=(3, 4, 2), **options)
    assert "by zarr" not in check(tmp_path / "a.zarr")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("chunks", [(1, 5, 6), (3, 5, 6), (1, 2, 6), (4, 3, 4), (40, 9, 6)], ids=str)
def test_every_chunking(tmp_path, codec, chunks):
    zarr.create_array(tmp_path / "a.zarr", data=values((11, 5, 6), "i4"), chunks=chunks, compressors=CODECS[codec])
    for costs in FAST, SLOW:
        assert "by zarr" not in check(tmp_path / "a.zarr", costs)


@pytest.mark.parametrize("codec", ["plain", "zstd"])
@pytest.mark.parametrize("inner", [(1, 5, 6), (2, 5, 3), (10, 1, 6)], ids=str)
@pytest.mark.parametrize("where", ["start", "end"])
def test_shards(tmp_path, codec, inner, where):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(43, 5, 6), dtype=">i4", chunks=inner, compressors=CODECS[codec], fill_value=3,
        shards=zarr.core.array.ShardsConfigParam(shape=(10, 5, 6), index_location=where),
    )  # fmt: skip
    array[5:35, 1:] = values((30, 4, 6), "i4")
    array[21] = 3
    assert "in shards" in check(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", [2, 3])
def test_codecs_of_trimtab(tmp_path, version):
    x = np.cumsum(values((20, 64), "f4"), axis=1, dtype="f4")
    if version == 3:
        zarr.create_array(
            tmp_path / "a.zarr", data=x, chunks=(3, 64), serializer=tt.zarr.SZ(tt.Abs(0.1)), compressors=None
        )
    else:
        packer = numcodecs.get_codec({"id": "trimtab.enec"})
        zarr.create_array(tmp_path / "a.zarr", data=x, chunks=(3, 64), compressors=packer, zarr_format=2)
    assert "by zarr" not in check(tmp_path / "a.zarr")


@pytest.mark.parametrize("options", [
    {"filters": [zarr.codecs.TransposeCodec(order=(2, 0, 1))]},
    {"order": "F", "zarr_format": 2},
    {"filters": numcodecs.Delta("i4"), "zarr_format": 2},
    {"shards": (10, 5, 4), "chunks": (1, 5, 2)},
], ids=["transposed", "columns", "filter", "cut shards"])  # fmt: skip
def test_zarr_reads_what_we_cannot(tmp_path, options):
    zarr.create_array(tmp_path / "a.zarr", data=values((20, 5, 8), "i4"), **{"chunks": (2, 5, 4), **options})
    assert "by zarr" in check(tmp_path / "a.zarr")


@pytest.mark.parametrize("chunks", [(1, 6), (4, 4)], ids=str)
@pytest.mark.parametrize("version", [2, 3])
def test_what_was_never_written_holds_the_fill_value(tmp_path, chunks, version):
    options = {"chunks": chunks, "fill_value": 7, "zarr_format": version}
    zarr.create_array(tmp_path / "a.zarr", shape=(20, 6), dtype="i2", **options)[6:9] = 1
    check(tmp_path / "a.zarr")


@pytest.mark.parametrize("key", ["v2", "default"])
def test_names_of_chunks(tmp_path, key):
    for mark in ".", "/":
        encoding = {"name": key, "configuration": {"separator": mark}}
        array = zarr.create_array(
            tmp_path / f"{ord(mark)}.zarr", shape=(9, 4), chunks=(1, 4), dtype="f4", chunk_key_encoding=encoding
        )
        array[:] = 5
        assert "by zarr" not in check(tmp_path / f"{ord(mark)}.zarr")


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_array_is_read_as_zarr_reads_it(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "a.zarr"
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple))
    chunks = data.draw(st.tuples(*(st.integers(1, n + 1) for n in shape)))
    x = values(shape, data.draw(st.sampled_from(DTYPES)))
    options = (
        {"zarr_format": 2}
        if data.draw(st.booleans())
        else {"compressors": CODECS[data.draw(st.sampled_from([*CODECS]))]}
    )
    array = zarr.create_array(path, shape=shape, dtype=x.dtype, chunks=chunks, **options)
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(x))] * 2)))
    if first < last:
        array[first:last] = x[first:last]
    samples = data.draw(st.lists(st.integers(0, len(x) - 1), max_size=20))
    costs = data.draw(st.sampled_from([FAST, SLOW]))
    with Zarr(path, costs=costs, num_threads=data.draw(st.integers(1, 3))) as store:
        assert same(read(store, samples)["x"], array[:][np.array(samples, int)])


def test_fields(tmp_path):
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array("g/x", data=np.ones((6, 3), "f4"))
    group.create_array("y", data=np.arange(6))
    group.create_array("mean", data=np.ones(3))
    group.create_array("number", shape=(), dtype="f4")
    path = tmp_path / "a.zarr"
    assert set(Zarr(path).fields) == {"g/x", "y"}
    assert list(Zarr(path, {"x": "g/x"}).fields) == ["x"]
    assert list(Zarr(path / "y").fields) == ["x"]
    with pytest.raises(UsageError, match="no array 'z'; it has mean, number, y"):
        Zarr(path, "z")
    with pytest.raises(UsageError, match="equally many"):
        Zarr(path, ("y", "mean"))
    with pytest.raises(ShapeError, match="expected numbers"):
        Zarr(path, "number")
    with pytest.raises(UsageError, match="has no name"):
        Zarr(path / "y", "y")
    with pytest.raises(UsageError, match="not a folder"):
        Zarr(tmp_path / "b.zarr")


@pytest.mark.parametrize("kind", ["plain", "zstd", "shards", "by zarr"])
def test_threads_and_processes(tmp_path, kind):
    x = values((100, 64), "i4")
    options = {
        "plain": {"chunks": (1, 64), "compressors": None}, "zstd": {"chunks": (4, 64)},
        "shards": {"chunks": (1, 64), "shards": (50, 64)},
        "by zarr": {"chunks": (4, 64), "order": "F", "zarr_format": 2},
    }[kind]  # fmt: skip
    zarr.create_array(tmp_path / "a.zarr", data=x, **options)
    store = Zarr(tmp_path / "a.zarr", costs=SLOW)
    with ThreadPoolExecutor(6) as pool:
        for samples, found in pool.map(lambda seed: read_some(store, seed), range(20)):
            assert same(found, x[samples])
    again = pickle.loads(pickle.dumps(store))
    assert same(read_some(again, 1)[1], x[some_samples(100, 1)])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for samples, found in pool.starmap(read_some, [(store, seed) for seed in range(4)]):
            assert same(found, x[samples])


def read_some(store, seed):
    samples = some_samples(store.num_samples, seed)
    return samples, read(store, samples)["x"]


@pytest.mark.parametrize("kind", ["plain", "zstd", "crc", "gzip", "blosc", "shards", "trimtab"])
def test_damaged_chunks(tmp_path, kind):
    """Whatever is cut off or overwritten: the values, or our error, and the other samples are read."""
    x = values((8, 500), "i4")
    options = {"compressors": CODECS.get(kind)}
    if kind == "shards":
        options = {"shards": (4, 500), "compressors": None}
    if kind == "trimtab":
        options = {"serializer": tt.zarr.ENEC(), "compressors": None}
    zarr.create_array(tmp_path / "a.zarr", data=x, chunks=(1, 500), **options)
    path = tmp_path / "a.zarr/c/1/0"
    stored = path.read_bytes()
    bad = 5 if kind == "shards" else 1
    rng = np.random.default_rng(0)
    with Zarr(tmp_path / "a.zarr", costs=FAST) as store:
        for cut in (0, 1, 7, len(stored) // 2, len(stored) - 1):
            path.write_bytes(stored[:cut])
            with pytest.raises(FormatError, match="a.zarr/c/1/0"):
                read(store, [bad])
        for _ in range(60):
            forged = bytearray(stored)
            for at in rng.integers(0, len(forged), 3):
                forged[at] = rng.integers(0, 256)
            path.write_bytes(forged)
            with contextlib.suppress(FormatError):
                read(store, [bad])
        path.write_bytes(stored + bytes(2_000_000))
        if kind != "shards":
            with pytest.raises(Corrupt):
                read(store, [bad])
        path.unlink()
        path.mkdir()
        with pytest.raises(Corrupt, match="is not a file"):
            read(store, [bad])
        path.rmdir()
        os.mkfifo(path)
        with pytest.raises(Corrupt, match="is not a file"):
            read(store, [bad])
        assert same(read(store, [0, 3])["x"], x[[0, 3]])


def test_a_chunk_that_claims_to_be_huge(tmp_path):
    import zstandard

    zarr.create_array(tmp_path / "a.zarr", data=values((8, 500), "i4"), chunks=(1, 500))
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    (tmp_path / "a.zarr/c/1/0").write_bytes(bomb)
    with Zarr(tmp_path / "a.zarr") as store, pytest.raises(Corrupt, match="claims 67108864 bytes"):
        read(store, [1])


def test_metadata_that_was_replaced(tmp_path):
    for num in (8, 9):
        store = None if num == 8 else pickle.loads(pickle.dumps(Zarr(tmp_path / "a.zarr")))
        zarr.create_array(tmp_path / "a.zarr", data=values((num, 500), "i4"), chunks=(1, 500), overwrite=True)
    with pytest.raises(Corrupt, match="was replaced or written"):
        read(store, [1])


def test_hostile_metadata(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=values((8, 500), "i4"), chunks=(1, 500))
    path = tmp_path / "a.zarr/zarr.json"
    text = path.read_text()
    for old, new in [("1,\n        500", "1,\n        4611686018427387904"), ("8,\n    500", "-8,\n    500"),
                     ("8,\n    500", "4611686018427387904,\n    4611686018427387904"), ('"int32"', '"int3"'),
                     ("zstd", "nothing"), ("regular", "odd"), ("{", "[")]:  # fmt: skip
        forged = text.replace(old, new)
        if forged == text:
            pytest.fail(f"{old!r} is not in the metadata")
        path.write_text(forged)
        with pytest.raises((FormatError, UsageError)), Zarr(tmp_path / "a.zarr") as store:
            read(store, [1])


def test_measured_costs(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=values((8, 50_000), "i4"), chunks=(1, 50_000), compressors=None)
    with Zarr(tmp_path / "a.zarr") as store:
        assert store.costs is None
        read(store, [1])
        assert 0 <= store.costs.latency_seconds < 1 and store.costs.bytes_per_second > 1e6


def test_short_files_are_told_apart(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=values((8, 500), "i4"), chunks=(2, 500), compressors=None)
    path = tmp_path / "a.zarr/c/1/0"
    path.write_bytes(path.read_bytes()[:-1])
    with Zarr(tmp_path / "a.zarr") as store, pytest.raises(Truncated, match="sample 3 has 3999 bytes, expected 4000"):
        read(store, [3])
