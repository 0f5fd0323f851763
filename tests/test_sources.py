"""Files that are not ours: each kind is read and written whole, told by its content, and refused where damaged."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.samples import ALL, same_bits, sample
from trimtab.dtypes import numpy_dtype
from trimtab.errors import Corrupt, FormatError, ShapeError, Truncated, UsageError
from trimtab.sources import Spec, create_target, open_source, sniff

SUFFIXES = [".npz", ".safetensors", ".pt", ".h5", ".nc", ".zarr"]
NAMELESS = {name for name in ALL if name.startswith(("bfloat16", "float8"))}
"""dtypes that only safetensors and PyTorch files can name."""


def write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    specs = {name: Spec(x.dtype.name, x.shape) for name, x in arrays.items()}
    with create_target(path, specs, metadata or {}) as target:
        for name in target.order:
            target.add(name, arrays[name])
    return path


def read(path: Path, **options: bool) -> dict[str, np.ndarray]:
    with open_source(path, **options) as source:
        arrays = {name: source.read(name) for name in source.specs}
        for name, x in arrays.items():
            assert source.specs[name] == Spec(x.dtype.name, x.shape)
            assert source.specs[name].num_bytes == x.nbytes
            assert x.flags.c_contiguous
            assert x.dtype.isnative
    return arrays


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_dtype_there_and_back(tmp_path, suffix):
    refused = {".safetensors": {"complex128"}, ".pt": set()}.get(suffix, NAMELESS)
    arrays = {f"group/{name}": sample(name, (5, 7)) for name in ALL if name not in refused}
    arrays |= {"scalar": np.float32(3).reshape(()), "empty": np.empty((0, 4), np.float32), "long": np.arange(3.0)}
    after = read(write(tmp_path / f"x{suffix}", arrays))
    assert after.keys() == arrays.keys()
    assert all(same_bits(x, after[name]) for name, x in arrays.items())


@pytest.mark.parametrize("suffix", [".npy", *SUFFIXES])
def test_dtypes_without_a_name_are_refused(tmp_path, suffix):
    dtype = {".safetensors": "complex128"}.get(suffix, "bfloat16")
    if suffix == ".pt":
        return
    with pytest.raises(ShapeError, match=rf"'x' is {dtype}.*unpack to \.(safetensors|npz)"):
        write(tmp_path / f"x{suffix}", {"x": sample(dtype, (3,))})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".npy", *SUFFIXES])
def test_nothing_is_left_when_writing_fails(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    with pytest.raises((AttributeError, UsageError)), create_target(path, {"x": Spec("float32", (3,))}, {}) as target:
        target.add("x", None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".npy", *SUFFIXES])
def test_an_old_file_is_replaced_whole(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {"x": np.arange(9.0)})
    write(path, {"x": np.arange(3, dtype=np.int16)})
    assert list(read(path)) == ["x"]
    assert same_bits(read(path)["x"], np.arange(3, dtype=np.int16))
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_npy_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    big = rng.standard_normal((700, 60, 110)).astype(np.float32)  # 18 MB: several pieces
    for x in (
        np.asfortranarray(big),
        np.asfortranarray(big.astype(">f8")[:50]),
        big[:9].astype(">f4"),
        np.array(3, ">i4"),
    ):
        np.save(tmp_path / "x.npy", x)
        assert same_bits(read(tmp_path / "x.npy")["x"], x)


def test_npy_versions_two_and_three(tmp_path):
    for version in ((2, 0), (3, 0)):
        with (tmp_path / "x.npy").open("wb") as file:
            np.lib.format.write_array(file, np.arange(5.0), version=version)
        assert same_bits(read(tmp_path / "x.npy")["x"], np.arange(5.0))


def test_compressed_npz(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=np.arange(9.0), f=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    after = read(tmp_path / "x.npz")
    assert same_bits(after["x"], np.arange(9.0))
    assert same_bits(after["f"], np.arange(6.0).reshape(2, 3))


def test_the_stock_libraries_read_what_is_written(tmp_path):
    arrays = {"b": np.array([True]), "w": sample("bfloat16", (4, 3)), "x": np.arange(5.0)}
    assert safetensors.numpy.load_file(write(tmp_path / "x.safetensors", arrays, {"k": "v"})).keys() == arrays.keys()
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert opened.metadata() == {"k": "v"}
        assert all(opened.get_tensor(name).data_ptr() % opened.get_tensor(name).element_size() == 0 for name in arrays)
        assert torch.equal(opened.get_tensor("x"), torch.arange(5.0, dtype=torch.float64))
    path = write(tmp_path / "x.pt", arrays)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        assert loaded["w"].dtype == torch.bfloat16
        assert torch.equal(loaded["x"], torch.arange(5.0, dtype=torch.float64))
        assert all(x.data_ptr() % 64 == 0 for x in loaded.values())
    del arrays["w"]
    with np.load(write(tmp_path / "x.npz", arrays)) as loaded:
        assert loaded["b"].dtype == bool


def test_kind_is_told_by_content(tmp_path):
    for suffix, kind in ((".npz", "npz"), (".pt", "checkpoint"), (".safetensors", "safetensors"), (".h5", "hdf5")):
        path = write(tmp_path / f"x{suffix}", {"x": np.arange(3.0)}).rename(tmp_path / "x.misnamed")
        assert sniff(path) == kind
        assert same_bits(read(path)["x"], np.arange(3.0))


@pytest.mark.parametrize("length", [0x0480, 0x0280, 0x4B50])
def test_a_safetensors_header_may_have_any_length(tmp_path, length):
    text = json.dumps({"x": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}).encode().ljust(length)
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + b"abc")
    assert sniff(tmp_path / "x") == "safetensors"
    assert read(tmp_path / "x")["x"].tobytes() == b"abc"


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", FormatError, "empty"),
        (b"hello, world, here I am", UsageError, "no kind that can be read"),
        (b"CDF\x01" + bytes(30), UsageError, "nccopy"),
        (b"PK\x03\x04" + bytes(30), Corrupt, "damaged: .*zip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(30), Corrupt, "damaged: "),
        (b"\x93NUMPY\x01\x00", Corrupt, "header"),
        (b"\x20" + bytes(7) + b"{" + bytes(31), Corrupt, "not JSON"),
        (b"\x80\x02junk" + bytes(30), Corrupt, "cannot be read"),
        (b"\x80\x02", Corrupt, "cannot be read"),
        (pickle.dumps({"x": 1}), UsageError, "pickle"),
    ],
)
def test_what_is_no_file_of_arrays(tmp_path, content, error, words):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(error, match=words):
        open_source(tmp_path / "x")


def test_other_zip_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UsageError, match="neither NumPy arrays nor"):
        open_source(tmp_path / "x.zip")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt", ".h5"])
def test_every_truncation_is_told(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {"x": np.arange(40.0)})
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        try:
            after = read(path)
        except (FormatError, UsageError):
            continue
        assert same_bits(after["x"], np.arange(40.0))  # what was cut off is padding


def test_npz_that_lies(tmp_path):
    def forged(header: dict, data: bytes = b"") -> Path:
        file = io.BytesIO()
        np.lib.format.write_array_header_2_0(file, header)
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("x.npy", file.getvalue() + data)
        return tmp_path / "x.npz"

    plain = {"descr": "<f8", "fortran_order": False}
    with pytest.raises(Truncated, match="ends 16 bytes too early"):
        read(forged({**plain, "shape": (3,)}, bytes(8)))
    for shape in ((-1,), (2**62, 2**62), (2**61,)):
        with pytest.raises(Corrupt, match="shape"):
            read(forged({**plain, "shape": shape}))
    path = forged({**plain, "shape": (3,)}, bytes(24))
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"<f8") + 90] ^= 1  # the checksum of the zip file no longer matches
    path.write_bytes(damaged)
    with pytest.raises(Corrupt):
        read(path)


def test_arrays_of_objects_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "sprung").touch, ())

    np.save(tmp_path / "x.npy", np.array([Trap()], object))
    torch.save({"x": Trap()}, tmp_path / "x.pt")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Trap()))
    for name in ("x.npy", "x.pt", "x.pkl"):
        with pytest.raises((ShapeError, UsageError, Corrupt)):
            open_source(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_checkpoints_are_flattened(tmp_path):
    shared = torch.arange(6.0)
    nested = {
        "model": {
            "w": torch.ones(2, 3).bfloat16(),
            "t": torch.arange(6).reshape(2, 3).t(),
            "p": torch.nn.Parameter(shared),
        },
        "state": {0: {"m": shared[2:4]}},
        "list": [torch.zeros(1), (torch.ones(1),)],
    }
    torch.save(nested, tmp_path / "x.pt")
    after = read(tmp_path / "x.pt")
    assert list(after) == ["model.w", "model.t", "model.p", "state.0.m", "list.0", "list.1.0"]
    assert after["model.w"].dtype == numpy_dtype("bfloat16")
    assert after["model.t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert after["state.0.m"].tolist() == [2, 3]
    assert after["model.p"].tolist() == list(range(6))


def test_checkpoints_with_other_things(tmp_path):
    torch.save({"w": torch.ones(2), "epoch": 3, "s": torch.eye(3).to_sparse(), "q": None}, tmp_path / "x.pt")
    with pytest.raises(ShapeError, match="'epoch' is of type int, not a tensor; --tensors-only"):
        open_source(tmp_path / "x.pt")
    with open_source(tmp_path / "x.pt", tensors_only=True) as source:
        assert list(source.specs) == ["w"]
        assert source.left_out == ["epoch", "s", "q"]
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, tmp_path / "y.pt")
    with pytest.raises(UsageError, match=r"two arrays called 'a\.b'"):
        open_source(tmp_path / "y.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "z.pt")
    with pytest.raises(UsageError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        open_source(tmp_path / "z.pt")


def test_checkpoints_of_one_tensor_and_of_old(tmp_path):
    torch.save(torch.arange(4.0), tmp_path / "one.pt")
    assert read(tmp_path / "one.pt")["one"].tolist() == [0, 1, 2, 3]
    torch.save({"w": torch.arange(4.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read(tmp_path / "old.pt")["w"].tolist() == [0, 1, 2, 3]


def test_large_checkpoints_are_read_in_pieces(tmp_path):
    x = torch.arange(20_000_000, dtype=torch.int32)  # 80 MB: more than one piece
    torch.save({"x": x, "again": x}, tmp_path / "x.pt")
    after = read(tmp_path / "x.pt")
    assert np.array_equal(after["x"], np.arange(20_000_000))
    assert np.array_equal(after["again"], after["x"])


def test_hdf5_with_all_its_trimmings(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("g/t", data=np.arange(100, dtype=">f4").reshape(10, 10), chunks=(3, 4), compression="gzip")
        file["g/t"].attrs["unit"] = "K"
        file["link"] = h5py.SoftLink("/g/t")
        file["outside"] = h5py.ExternalLink("other.h5", "/x")
        file["scalar"] = np.float16(2.5)
        file["text"] = "words"
        file["nothing"] = h5py.Empty("f4")
    with pytest.raises(ShapeError, match="--tensors-only"):
        open_source(tmp_path / "x.h5")
    with open_source(tmp_path / "x.h5", tensors_only=True) as source:
        assert source.not_kept == "attributes (1 in the HDF5 file)"
        assert sorted(source.left_out) == ["nothing", "text"]
    after = read(tmp_path / "x.h5", tensors_only=True)
    assert after["g/t"].tolist() == np.arange(100).reshape(10, 10).tolist()
    assert after["scalar"] == 2.5


def test_zarr_of_both_formats(tmp_path):
    x = np.arange(700, dtype=">i4").reshape(7, 100)
    for version in (2, 3):
        group = zarr.open_group(tmp_path / f"v{version}.zarr", mode="w", zarr_format=version)
        array = group.create_array("p/q", shape=x.shape, chunks=(3, 30), dtype=x.dtype)
        array[...] = x
        array.attrs["unit"] = "K"
        assert same_bits(read(tmp_path / f"v{version}.zarr")["p/q"], x)
        with open_source(tmp_path / f"v{version}.zarr") as source:
            assert source.not_kept == "attributes (1 in the Zarr folder)"
    zarr.create_array(tmp_path / "one.zarr", shape=(), dtype="f8", fill_value=2.5)
    assert read(tmp_path / "one.zarr")["one"] == 2.5


def test_zarr_chunks_are_bounded(tmp_path):
    x = np.zeros((50, 1000, 1000), np.float32)
    write(tmp_path / "x.zarr", {"x": x})
    assert zarr.open_group(tmp_path / "x.zarr", mode="r")["x"].chunks == (4, 1000, 1000)
    assert same_bits(read(tmp_path / "x.zarr")["x"], x)


def test_damaged_zarr(tmp_path):
    write(tmp_path / "x.zarr", {"x": np.arange(3.0)})
    (tmp_path / "x.zarr" / "zarr.json").write_text("{")
    with pytest.raises(Corrupt, match="damaged: "):
        open_source(tmp_path / "x.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        open_source(tmp_path / "empty")


def test_names_that_files_cannot_hold(tmp_path):
    for suffix in (".h5", ".zarr"):
        with pytest.raises(UsageError, match="cannot hold an array called"):
            write(tmp_path / f"x{suffix}", {"a": np.zeros(1), "a/b": np.zeros(1)})
        assert list(tmp_path.iterdir()) == []


def test_safetensors_with_dtypes_of_the_future(tmp_path):
    text = json.dumps({"x": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text + b"ab")
    with pytest.raises((ShapeError, Corrupt), match="F4"):
        open_source(tmp_path / "x")


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("random") / "x"
    path.write_bytes(data)
    with pytest.raises((UsageError, FormatError)):
        open_source(path)


def test_float8_and_bfloat16_keep_their_dtypes(tmp_path):
    for suffix in (".safetensors", ".pt"):
        after = read(write(tmp_path / f"x{suffix}", {"x": np.ones(3, ml_dtypes.float8_e4m3fn)}))
        assert after["x"].dtype == np.dtype(ml_dtypes.float8_e4m3fn)
