"""Stores of .npy files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from tests.data.reading import read, same, some_samples
from trimtab.data import arrays
from trimtab.data.memmap import Memmap
from trimtab.data.reading import Costs
from trimtab.errors import Corrupt, FormatError, ShapeError, Truncated, UsageError


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch):
    monkeypatch.setattr(arrays, "KEPT_ROW", 0)


@pytest.mark.parametrize("dtype", ["f4", ">f4", "?", "i1", ">c16", "u8"])
@pytest.mark.parametrize("shape", [(1,), (23,), (23, 0), (23, 5), (23, 3, 4)], ids=str)
@pytest.mark.parametrize("costs", [Costs(1e-6, 1e9), Costs(1e-3, 1e9)])
def test_rows_are_those_of_the_array(tmp_path, dtype, shape, costs):
    x = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    samples = some_samples(len(x))
    with Memmap(tmp_path / "x.npy", costs=costs) as store:
        assert same(read(store, samples)["x"], x[samples])
        assert same(read(pickle.loads(pickle.dumps(store)), samples)["x"], x[samples])


def test_several_files(tmp_path):
    x, y = np.arange(60.0).reshape(20, 3), np.arange(20)[::-1]
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    store = Memmap({"image": tmp_path / "x.npy", "label": tmp_path / "y.npy"})
    found = read(store, [7, 0, 19])
    assert same(found["image"], x[[7, 0, 19]]) and same(found["label"], y[[7, 0, 19]])
    assert list(read(store, [1], ["label"])) == ["label"]


def test_many_parts_of_one_request(tmp_path):
    x = np.arange(6000.0)
    np.save(tmp_path / "x.npy", x)
    samples = np.random.default_rng(0).permutation(6000)[:4000]
    for num_threads in (1, 3):
        with Memmap(tmp_path / "x.npy", costs=Costs(1e-3, 1e9), num_threads=num_threads) as store:
            assert same(read(store, samples)["x"], x[samples])


def test_refusals(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((6, 3)))
    np.save(tmp_path / "y.npy", np.ones(5))
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.ones((6, 3))))
    np.save(tmp_path / "number.npy", np.float32(3))
    np.save(tmp_path / "records.npy", np.zeros(6, [("a", "f4")]))
    np.save(tmp_path / "objects.npy", np.array([None] * 6), allow_pickle=True)
    for name in ("columns", "number", "records", "objects"):
        with pytest.raises(ShapeError, match=rf"{name}\.npy"):
            Memmap(tmp_path / f"{name}.npy")
    with pytest.raises(UsageError, match="equally many"):
        Memmap({"x": tmp_path / "x.npy", "y": tmp_path / "y.npy"})
    with pytest.raises(UsageError, match="at least one"):
        Memmap({})
    with pytest.raises(UsageError, match="is not a file"):
        Memmap(tmp_path)
    with pytest.raises(UsageError, match="no name"):
        Memmap(tmp_path / "x.npy", ("x",))
    with pytest.raises(UsageError, match="num_threads"):
        Memmap(tmp_path / "x.npy", num_threads=0)


def test_damage(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.ones((6, 3)))
    stored = path.read_bytes()
    for cut in range(0, len(stored), 5):
        path.write_bytes(stored[:cut])
        with pytest.raises(FormatError):
            Memmap(path)
    path.write_bytes(stored.replace(b"(6, 3)", b"(9, 9)"))
    with pytest.raises(Truncated, match=r"need bytes 128 to 776, the file has 272"):
        Memmap(path)
    path.write_bytes(stored.replace(b"(6, 3), ", b"(1<<99) "))
    with pytest.raises(Corrupt):
        Memmap(path)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("costs", [Costs(1e-6, 1e9), Costs(1e-3, 1e9)])
def test_a_file_that_shrinks(tmp_path, num_threads, costs):
    path = tmp_path / "x.npy"
    np.save(path, np.ones((100, 300)))
    store = Memmap(path, costs=costs, num_threads=num_threads)
    with path.open("r+b") as file:
        file.truncate(128 + 2400 * 50 + 100)
    assert same(read(store, [49])["x"], np.ones((1, 300)))
    with pytest.raises(Truncated, match="from 240128 bytes to 120228: sample 50, at byte 120228, is lost"):
        read(store, [48, 50, 49])
