"""Tables of chunks as hostile files have them."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from tests.data.reading import read
from trimtab.data import arrays
from trimtab.data.chunks import MOST_CHUNK, Table
from trimtab.data.hdf5 import HDF5
from trimtab.data.reading import Costs, File
from trimtab.errors import Corrupt, UsageError


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1000))
    return File(tmp_path / "a")


@pytest.mark.parametrize(
    ("keys", "offsets", "sizes", "message"),
    [
        ([0, 1], [0, 901], [100, 100], "chunk 1 lies at bytes 901 to 1001"),
        ([0, 1], [0, 2**62], [100, 2**62], "and the file has 1000"),
        ([0, 1], [0, -1], [100, 1], "chunk 1 lies"),
        ([0, 1], [0, 5], [100, 0], "chunk 1 lies"),
        ([1, 1], [0, 5], [5, 5], "listed twice"),
        ([0, 4], [0, 5], [5, 5], "outside the array"),
        ([-1, 0], [0, 5], [5, 5], "outside the array"),
    ],
)
def test_tables_that_cannot_be(file, keys, offsets, sizes, message):
    columns = (np.array(column, np.int64) for column in (keys, offsets, sizes, [0, 0]))
    with pytest.raises(Corrupt, match=message):
        Table(file, 4, *columns)


def test_chunks_may_overlap(tmp_path, monkeypatch):
    """They are read one by one: nothing says that a file must not share bytes."""
    monkeypatch.setattr(arrays, "KEPT_ROW", 0)
    with h5py.File(tmp_path / "a.h5", "w") as made:
        dataset = made.create_dataset("x", data=np.arange(400, dtype="i4").reshape(4, 100), chunks=(1, 100))
        start = dataset.id.get_chunk_info(0).byte_offset
    with HDF5(tmp_path / "a.h5", costs=Costs(1, 1e9)) as store:
        table = store._opened()["x"].layout._table
        table.offsets[:] = start + np.array([0, 40, 40, 80])
        found = read(store, [3, 2, 1, 0])["x"]
    assert found[:, 0].tolist() == [20, 10, 10, 0]
    assert found[:, -1].tolist() == [119, 109, 109, 99]


def test_packed_chunks_larger_than_the_array_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as made:
        chunks = (MOST_CHUNK // 4 + 1, 1)
        made.create_dataset("x", (3, 1), "f4", chunks=chunks, maxshape=(None, 1), compression=1)
        made.create_dataset("y", (3, 1), "f4", chunks=chunks, maxshape=(None, 1))
    with pytest.raises(UsageError, match="smaller chunks"):
        HDF5(tmp_path / "a.h5", "x")
    assert read(HDF5(tmp_path / "a.h5", "y"), [1])["y"].tolist() == [[0]]


def test_chunk_sizes_that_cannot_be(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as made:
        dataset = made.create_dataset("x", (4, 100), "i4", chunks=(1, 100))
        dataset.id.write_direct_chunk((1, 0), bytes(399))
        packed = made.create_dataset("y", (4, 100), "i4", chunks=(1, 100), shuffle=True)
        packed.id.write_direct_chunk((1, 0), bytes(399))
        deflated = made.create_dataset("z", (4, 100), "i4", chunks=(1, 100), compression=1)
        deflated.id.write_direct_chunk((1, 0), bytes.fromhex("789c030000000001"))
    with pytest.raises(Corrupt, match="must have 400 bytes"):
        HDF5(tmp_path / "a.h5", "x")
    for name, message in (("y", "has 399 bytes, expected 400"), ("z", "sample 1.* has 0 bytes, expected 400")):
        with HDF5(tmp_path / "a.h5", name) as store, pytest.raises(Corrupt, match=message):
            read(store, [1])
