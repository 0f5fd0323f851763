"""Stores in HDF5 files: whatever the layout, rows are those that h5py reads."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.reading import read, same, some_samples
from trimtab.data import arrays
from trimtab.data.hdf5 import HDF5
from trimtab.data.reading import Costs
from trimtab.errors import Corrupt, ShapeError, Truncated, UsageError

DTYPES = ("f4", ">f4", "f2", ">f8", "u1", ">i2", "i8", "?", "c8", ">c16", "u2")
FAST, SLOW = Costs(1e-6, 1e9), Costs(5e-3, 1e9)


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch):
    monkeypatch.setattr(arrays, "KEPT_ROW", 0)


def values(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 2, shape) if dtype == "?" else rng.integers(0, 100, shape)).astype(dtype)


def check(path, costs=FAST, names=("x",), **options):
    """Compare a store with h5py, and return its report."""
    with HDF5(path, names, costs=costs, **options) as store, h5py.File(path) as file:
        for seed in range(3):
            samples = some_samples(store.num_samples, seed)
            found = read(store, samples)
            for name in names:
                assert same(found[name], file[name][:][samples])
        return store.report


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"chunks": (3, 4, 5)}, {"chunks": (2, 3, 2), "compression": 1}], ids=str)
def test_every_dtype(tmp_path, dtype, options):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values((17, 4, 5), dtype), **options)
    assert "h5py" not in check(tmp_path / "a.h5")["x"]


@pytest.mark.parametrize("costs", [FAST, SLOW], ids=["apart", "merged"])
@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 7), (40, 3, 5), (40, 4, 3, 2)], ids=str)
@pytest.mark.parametrize("chunks", [1, 3, 40], ids=lambda n: f"{n} a chunk")
@pytest.mark.parametrize("cut", [0, 1, 2], ids=["whole", "first axis cut", "last axis cut"])
@pytest.mark.parametrize("filters", [{}, {"compression": 4, "shuffle": True, "fletcher32": True}], ids=["", "gzip"])
def test_every_chunking(tmp_path, costs, shape, chunks, cut, filters):
    rest = list(shape[1:])
    if rest and cut:
        rest[0 if cut == 1 else -1] = max(1, rest[0 if cut == 1 else -1] // 2)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values(shape, "i4"), chunks=(chunks, *rest), **filters)
    assert "offsets" in check(tmp_path / "a.h5", costs)["x"]


@pytest.mark.parametrize("filters", [
    {"compression": "gzip", "compression_opts": 9}, {"compression": "lzf"}, {"shuffle": True}, {"fletcher32": True},
    {"compression": "lzf", "shuffle": True, "fletcher32": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", "f8", "c16", ">i4"])
def test_every_filter(tmp_path, filters, dtype):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values((21, 9, 11), dtype), chunks=(4, 9, 6), **filters)
    assert "offsets" in check(tmp_path / "a.h5")["x"]


def test_what_cannot_be_packed_is_stored_as_it_is(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        noise = np.random.default_rng(0).integers(0, 256, (9, 1000), np.uint8)
        dataset = file.create_dataset("x", data=noise, chunks=(1, 1000), compression="lzf")
        assert dataset.id.get_chunk_info(0).filter_mask == 1
    assert "offsets" in check(tmp_path / "a.h5")["x"]


@pytest.mark.parametrize("number", [32015, 32001])
def test_filters_of_plugins(tmp_path, number):
    """The library lacks these filters; chunks are written as their plugins would."""
    import numcodecs
    import zstandard

    pack = {32015: zstandard.ZstdCompressor().compress, 32001: numcodecs.Blosc("lz4").encode}[number]
    x = values((12, 50), "f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((5, 50))
        properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple(x.shape)
        dataset = h5py.h5d.create(file.id, b"x", h5py.h5t.py_create(x.dtype), space, properties)
        padded = np.concatenate([x, np.zeros((3, 50), "f4")])
        for start in range(0, 12, 5):
            dataset.write_direct_chunk((start, 0), pack(padded[start : start + 5].tobytes()))
    with HDF5(tmp_path / "a.h5", costs=FAST) as store:
        assert "offsets" in store.report["x"]
        assert same(read(store, [11, 0, 7, 7])["x"], x[[11, 0, 7, 7]])


@pytest.mark.parametrize("kind", ["virtual", "compact", "external", "scaleoffset", "odd float"])
def test_the_library_reads_what_we_cannot(tmp_path, kind):
    x = values((20, 6), "i4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if kind == "virtual":
            file["inner"] = x
            layout = h5py.VirtualLayout(x.shape, x.dtype)
            layout[:] = h5py.VirtualSource(file["inner"])
            file.create_virtual_dataset("x", layout)
        elif kind == "external":
            file.create_dataset("x", data=x, external=[(str(tmp_path / "x.raw"), 0, x.nbytes)])
        elif kind == "scaleoffset":
            file.create_dataset("x", data=x, scaleoffset=0, chunks=(4, 6))
        elif kind == "compact":
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple(x.shape)
            made = h5py.h5d.create(file.id, b"x", h5py.h5t.py_create(x.dtype), space, properties)
            h5py.Dataset(made)[:] = x
        else:
            odd = h5py.h5t.STD_I32LE.copy()
            odd.set_precision(20)
            made = h5py.h5d.create(file.id, b"x", odd, h5py.h5s.create_simple(x.shape))
            h5py.Dataset(made)[:] = x
    assert "h5py" in check(tmp_path / "a.h5")["x"]


@pytest.mark.parametrize("block", [0, 512, 4096])
@pytest.mark.parametrize("chunks", [None, (2, 3), (3, 6)], ids=str)
def test_user_blocks_and_what_was_never_written(tmp_path, block, chunks):
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=block) as file:
        file.create_dataset("x", data=values((20, 6), "f4"), chunks=chunks)
        file.create_dataset("empty", (20, 6), ">f4", fillvalue=7.5, chunks=chunks)
        file.create_dataset("part", (20, 6), "i2", fillvalue=-3, chunks=chunks)[4:9, 2:5] = 1
        file.create_dataset("packed", (20, 6), "i2", fillvalue=-3, chunks=chunks or True, compression=1)[11] = 1
    report = check(tmp_path / "a.h5", names=("x", "empty", "part", "packed"))
    assert not any("h5py" in note for note in report.values())


def test_growing_data_sets(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, filters in {"x": {}, "packed": {"compression": 1}}.items():
            dataset = file.create_dataset(
                name, data=values((4, 6), "f4"), chunks=(16, 9), maxshape=(None, None), **filters
            )
            dataset.resize((9, 5))
            dataset[6:] = 2
    assert not any("h5py" in note for note in check(tmp_path / "a.h5", names=("x", "packed")).values())


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_layout_is_read_as_h5py_reads_it(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "a.h5"
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple))
    chunks = data.draw(st.none() | st.tuples(*(st.integers(1, n) for n in shape)))
    filters = {} if chunks is None else data.draw(st.fixed_dictionaries({}, optional={
        "compression": st.sampled_from(["gzip", "lzf"]), "shuffle": st.booleans(), "fletcher32": st.booleans(),
    }))  # fmt: skip
    x = values(shape, data.draw(st.sampled_from(DTYPES)))
    with h5py.File(path, "w", userblock_size=data.draw(st.sampled_from([0, 512]))) as file:
        dataset = file.create_dataset("x", x.shape, x.dtype, chunks=chunks, **filters)
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(x))] * 2)))
        if first < last:
            dataset[first:last] = x[first:last]
        expected = dataset[:]
    samples = data.draw(st.lists(st.integers(0, len(x) - 1), max_size=20))
    costs = data.draw(st.sampled_from([FAST, SLOW]))
    with HDF5(path, costs=costs, num_threads=data.draw(st.integers(1, 3))) as store:
        assert same(read(store, samples)["x"], expected[np.array(samples, int)])


def test_fields(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["g/x"], file["y"], file["mean"] = np.ones((6, 3), "f4"), np.arange(6), np.ones(3)
        file["text"] = np.array([b"a"] * 6)
        file.create_dataset("pairs", (6,), [("a", "f4"), ("b", "i4")])
        file["number"] = 3.0
    path = tmp_path / "a.h5"
    assert set(HDF5(path).fields) == {"g/x", "y"}
    assert list(HDF5(path, {"x": "g/x"}).fields) == ["x"]
    assert list(HDF5(path, "/y").fields) == ["y"]
    with pytest.raises(UsageError, match="no data set 'z'; it has g/x"):
        HDF5(path, "z")
    with pytest.raises(UsageError, match="equally many"):
        HDF5(path, ("y", "mean"))
    for name in ("text", "pairs", "number"):
        with pytest.raises(ShapeError, match="expected numbers"):
            HDF5(path, name)


def test_what_is_asked_for_is_checked(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = values((9, 4), "f4")
    store = HDF5(tmp_path / "a.h5")
    good = np.empty((2, 4), "f4")
    for samples in ([0, 9], [-1, 0], [0.5, 1], [[0, 1]]):
        with pytest.raises(UsageError):
            store.read(np.array(samples), {"x": good})
    with pytest.raises(UsageError, match="no field 'y'"):
        store.read(np.arange(2), {"y": good})
    for bad in (np.empty((2, 3), "f4"), np.empty((3, 4), "f4"), np.empty((2, 4), "f8"), np.empty((4, 2), "f4").T):
        with pytest.raises(ShapeError):
            store.read(np.arange(2), {"x": bad})
    assert store.read(np.arange(0), {"x": good[:0]}) == 0


def test_rows_may_be_apart(tmp_path):
    x = values((9, 4), ">f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = x
    out = np.zeros((6, 8), "f4")
    HDF5(tmp_path / "a.h5").read(np.array([8, 1, 3]), {"x": out[::2, 2:6]})
    assert np.array_equal(out[::2, 2:6], x[[8, 1, 3]])
    assert not out[1::2].any() and not out[:, :2].any() and not out[:, 6:].any()


def test_bytes_are_counted(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = values((100, 256), "f4")
    with HDF5(tmp_path / "a.h5", costs=Costs(3e-6, 1e9)) as store:  # 3,000 bytes are as quick as a request
        out = np.empty((3, 256), "f4")
        assert store.read(np.array([50, 10, 51]), {"x": out}) == 3 * 1024
        assert store.read(np.array([50, 10, 53]), {"x": out}) == 5 * 1024
        assert store.read(np.array([50, 10, 54]), {"x": out}) == 3 * 1024


def test_labels_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "KEPT_ROW", 512)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["y"] = np.arange(1000)[::-1]
    with HDF5(tmp_path / "a.h5") as store:
        out = np.empty(3, int)
        assert store.read(np.array([5, 0, 999]), {"y": out}) == 8000
        assert out.tolist() == [994, 999, 0]
        assert store.read(np.array([5, 0, 998]), {"y": out}) == 0
        assert out.tolist() == [994, 999, 1]


@pytest.mark.parametrize(
    "filters", [{}, {"chunks": (1, 64)}, {"chunks": (4, 64), "compression": 1}, {"scaleoffset": 0}]
)
def test_threads_and_processes(tmp_path, filters):
    x = values((300, 64), "i4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=x, **filters)
    store = HDF5(tmp_path / "a.h5", costs=SLOW)
    with ThreadPoolExecutor(6) as pool:
        for samples, found in pool.map(lambda seed: read_some(store, seed), range(30)):
            assert same(found, x[samples])
    assert same(read_some(pickle.loads(pickle.dumps(store)), 1)[1], x[some_samples(300, 1)])
    for way in ("fork", "spawn") if not filters else ("fork",):
        with multiprocessing.get_context(way).Pool(2) as pool:
            for samples, found in pool.starmap(read_some, [(store, seed) for seed in range(4)]):
                assert same(found, x[samples])
    store.close()
    assert same(read_some(store, 2)[1], x[some_samples(300, 2)])


def read_some(store, seed):
    samples = some_samples(store.num_samples, seed)
    return samples, read(store, samples)["x"]


@pytest.mark.parametrize("filters", [{}, {"chunks": (1, 256)}, {"chunks": (1, 256), "fletcher32": True}])
def test_a_file_that_shrinks(tmp_path, filters):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values((100, 256), "f4"), **filters)
    with HDF5(path, costs=FAST) as store:
        read(store, [3, 99])
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 50_000)
        read(store, [3])
        with pytest.raises(Truncated, match=r"a\.h5 was cut short .* sample \d+, at byte \d+"):
            read(store, [3, 99, 4])
        again = pickle.loads(pickle.dumps(store))
        with pytest.raises(Corrupt, match="was replaced or written"):
            read(again, [3])


def test_a_file_that_is_replaced(tmp_path):
    path = tmp_path / "a.h5"
    for _ in range(2):
        with h5py.File(tmp_path / "new.h5", "w") as file:
            file["x"] = values((100, 256), "f4")
        if path.exists():
            store = HDF5(path, costs=FAST)
            read(store, [1])
            store.close()
        (tmp_path / "new.h5").replace(path)
    with pytest.raises(Corrupt, match="was replaced or written"):
        read(store, [1])


def test_a_damaged_chunk(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "x", data=values((10, 100), "f4"), chunks=(2, 100), compression=1, fletcher32=True
        )
        where = dataset.id.get_chunk_info(2).byte_offset
    with path.open("r+b") as file:
        file.seek(where + 9)
        file.write(b"\x55\x55")
    with HDF5(path, costs=FAST) as store:
        read(store, [0, 1, 2, 3, 6, 9])
        with pytest.raises(Corrupt, match=r"a\.h5: the chunk of sample 4: the checksum"):
            read(store, [0, 4])


def test_bools_are_bools(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=values((10, 100), "?"))
        where = dataset.id.get_offset()
    with (tmp_path / "a.h5").open("r+b") as file:
        file.seek(where + 250)
        file.write(b"\x02")
    with HDF5(tmp_path / "a.h5") as store, pytest.raises(Corrupt, match="sample 2 holds bytes other than"):
        read(store, [0, 2])
