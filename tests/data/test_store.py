"""What is opened as a store, and what stores have in common."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest
import zarr

from tests.data.reading import read
from trimtab import data
from trimtab.data import HDF5, Memmap, Store, Zarr, open_store, sample_bytes
from trimtab.errors import FormatError, UsageError


@pytest.fixture
def folder(tmp_path):
    x, y = np.arange(60, dtype="f4").reshape(20, 3), np.arange(20)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["g/y"], file["other"] = x, y, np.ones(3)
    np.save(tmp_path / "x.npy", x)
    zarr.create_array(tmp_path / "x.zarr", data=x)
    zarr.create_array(tmp_path / "no_suffix", data=x)
    return tmp_path


@pytest.mark.parametrize(("source", "kind", "fields"), [
    ("a.h5", HDF5, {"x", "g/y"}), ("a.h5::x", HDF5, {"x"}), ("a.h5::x,g/y", HDF5, {"x", "g/y"}),
    ("x.npy", Memmap, {"x"}), ("x.zarr", Zarr, {"x"}), ("no_suffix", Zarr, {"x"}),
])  # fmt: skip
def test_paths(folder, source, kind, fields):
    store = open_store(f"{folder}/{source}", num_threads=2)
    assert type(store) is kind and isinstance(store, Store)
    assert set(store.fields) == fields and store.num_samples == 20
    assert sample_bytes(store) == 12 * ("x" in fields) + 8 * ("g/y" in fields)
    assert read(store, [2])["x"].tolist() == [[6, 7, 8]]
    assert open_store(store) is store
    store.close()


def test_fields_from_several_files(folder):
    store = open_store({"image": folder / "x.zarr", "label": f"{folder}/a.h5::g/y"})
    assert list(store.fields) == ["image", "label"] and sample_bytes(store) == 20
    found = read(store, [4, 1])
    assert found["image"][:, 0].tolist() == [12, 3] and found["label"].tolist() == [4, 1]
    with pytest.raises(UsageError, match="no field 'x'"):
        store.read(np.arange(1), {"x": np.empty((1, 3), "f4")})
    store.close()


def test_refusals(folder):
    with pytest.raises(UsageError, match="cannot tell from the name"):
        open_store(folder / "a.txt")
    with pytest.raises(UsageError, match="is no store"):
        open_store(5)
    with pytest.raises(UsageError, match="no name"):
        open_store(f"{folder}/x.npy::x")
    with pytest.raises(UsageError, match="2 fields"):
        open_store({"x": folder / "a.h5"})
    with pytest.raises(UsageError, match="equally many"):
        open_store({"x": folder / "x.npy", "y": f"{folder}/a.h5::other"})
    with pytest.raises(UsageError, match="at least one"):
        open_store({})
    with pytest.raises(FileNotFoundError):
        open_store(folder / "missing.h5")
    for name in ("bad.h5", "bad.npy"):
        (folder / name).write_bytes(b"nothing of the kind" * 50)
        with pytest.raises(FormatError):
            open_store(folder / name)


def test_a_damaged_hdf5_file_is_an_error_of_ours(folder):
    stored = (folder / "a.h5").read_bytes()
    path = folder / "bad.h5"
    for cut in range(0, len(stored), 97):
        path.write_bytes(stored[:cut])
        with pytest.raises(FormatError):
            open_store(path)


def test_importing_stores_needs_neither_torch_nor_numba():
    code = "import sys, trimtab.data as d; d.HDF5, d.Zarr, d.Memmap; print({'torch', 'numba'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_public_names():
    assert all(getattr(data, name) is not None for name in data.__all__)
