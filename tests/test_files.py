"""The container: what it refuses, what the safetensors library sees in it, and what a kill leaves behind."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import xxhash
import zstandard

import trimtab as tt
from tests.forged import Forged, assembled
from tests.samples import ALL, same_bits, sample
from trimtab.codecs import Raw
from trimtab.dtypes import SAFETENSORS_NAMES
from trimtab.errors import Corrupt, FormatError, NewerVersion, ShapeError, Truncated, UsageError
from trimtab.files import Reader, Writer, checksum, to_bytes
from trimtab.packed import Packed, digest

X = np.arange(12, dtype="f4").reshape(3, 4)
NAMES = [
    "w",
    "layer.0.weight",
    "",
    "a/b",
    "a:b",
    ":",
    "größe Δ 漢字 🚀",
    'a\nb\t"c"\\',
    "x" * 300,
    "0",
    "trimtab",
    "__meta__",
]


def write(path: Path, *names: str, x: np.ndarray = X, metadata: dict[str, str] | None = None) -> Path:
    with Writer(path, metadata=metadata) as writer:
        for name in names:
            writer.add(name, Raw().encode(x), checksum([digest(x)]))
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return write(tmp_path / "x.tt", "w", metadata={"epoch": "3"})


def test_entries_come_back(tmp_path):
    reader = Reader(write(tmp_path / "x.tt", *NAMES, metadata={"epoch": "3", "": "empty", "Δ": "\n"}))
    assert list(reader) == NAMES
    assert len(reader) == len(NAMES)
    assert reader.metadata == {"epoch": "3", "": "empty", "Δ": "\n"}
    assert reader.num_bytes == (tmp_path / "x.tt").stat().st_size
    for name in NAMES:
        assert name in reader
        assert Raw().decode(reader.packed(name)).tolist() == X.tolist()
    assert "gone" not in reader
    with pytest.raises(KeyError):
        reader.header("gone")


def test_no_entries(tmp_path):
    reader = Reader(write(tmp_path / "x.tt"))
    assert list(reader) == []
    with pytest.raises(UsageError, match="0 entries"):
        tt.decompress((tmp_path / "x.tt").read_bytes())


def test_bytes_and_files_are_the_same(tmp_path):
    packed = Raw().encode(X)
    blob = to_bytes(packed, checksum([digest(X)]))
    assert write(tmp_path / "x.tt", "").read_bytes() == blob
    for source in (blob, bytearray(blob), memoryview(blob), np.frombuffer(blob, "u1"), tmp_path / "x.tt"):
        assert same_bits(Raw().decode(Reader(source).packed("")), X)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    assert write(tmp_path / "a.tt", "a", "b").read_bytes() == write(tmp_path / "b.tt", "a", "b").read_bytes()


def test_buffers_start_at_multiples_of_8(path):
    blob = path.read_bytes()
    assert int.from_bytes(blob[:8], "little") % 8 == 0


def test_reads_are_lazy_and_share_the_mapping(path):
    reader = Reader(path)
    buffer = reader.packed("w").buffer("data", "float32", 12)
    assert not buffer.flags.writeable
    assert not buffer.flags.owndata
    del reader
    assert buffer.tolist() == list(range(12))


# What others see


@pytest.mark.parametrize("name", ALL)
def test_safetensors_opens_files_and_sees_raw_entries(name, tmp_path):
    x = sample(name, (3, 5))
    write(tmp_path / "x.tt", "a/b", x=x, metadata={"epoch": "3"})
    ((key, seen),) = safetensors.deserialize((tmp_path / "x.tt").read_bytes())
    stored = "float64" if name == "complex128" else name
    assert key == "a/b"
    assert seen["dtype"] == SAFETENSORS_NAMES[stored]
    assert seen["shape"] == ([30] if name == "complex128" else [3, 5])
    assert bytes(seen["data"]) == x.tobytes()


def test_safetensors_reads_raw_entries_as_tensors_and_the_metadata(tmp_path):
    write(tmp_path / "x.tt", "a", "b:c", metadata={"epoch": "3"})
    with safetensors.safe_open(tmp_path / "x.tt", "np") as file:
        assert sorted(file.keys()) == ["a", "b:c"]
        assert file.metadata()["epoch"] == "3"
        assert json.loads(file.metadata()["trimtab"])["version"] == 1
        assert file.get_tensor("a").tolist() == X.tolist()


def test_safetensors_sees_the_buffers_of_packed_entries(tmp_path):
    x = sample("bfloat16", (256, 256))
    tt.save(tmp_path / "x.tt", {"w": x})
    seen = safetensors.deserialize((tmp_path / "x.tt").read_bytes())
    buffers = Reader(tmp_path / "x.tt").packed("w").buffers
    assert {key for key, _ in seen} == {"w" if role == "data" else f"w:{role}" for role in buffers}
    assert sum(len(tensor["data"]) for _, tensor in seen) < 0.8 * x.nbytes


def test_long_manifests_are_packed(tmp_path):
    names = [f"layers.{k}.weight" for k in range(200)]
    path = write(tmp_path / "x.tt", *names)
    with safetensors.safe_open(path, "np") as file:
        text = file.metadata()["trimtab"]
    assert text.startswith("zstd:") and len(text) < 200 * 40
    reader = Reader(path)
    assert list(reader) == names
    assert reader.checksum(names[7]) == checksum([digest(X)])


@pytest.mark.parametrize(
    "text",
    [
        "zstd:",
        "zstd:????",
        "zstd:" + base64.b64encode(b"no frame").decode(),
        "zstd:" + base64.b64encode(zstandard.compress(b"{")).decode(),
        "zstd:" + base64.b64encode(zstandard.compress(b"{" + b" " * 10_000_000 + b"}")).decode(),  # a bomb
        "zstd:" + base64.b64encode(zstandard.compress(b'{"version": 1}')[:-1]).decode(),
        "zstd:" + base64.b64encode(zstandard.ZstdCompressor(write_content_size=False).compress(b"{}")).decode(),
    ],
)
def test_packed_manifests_that_are_none_are_corrupt(path, text):
    truth = Forged.of(path.read_bytes())
    metadata = {"trimtab": text, "trimtab.checksum": xxhash.xxh3_64_hexdigest(json.dumps({"trimtab": text}).encode())}
    with pytest.raises(FormatError, match=r"bad manifest|checksum of the metadata"):
        Reader(assembled({"__metadata__": metadata, **truth.spans}, truth.body))


def test_ordinary_safetensors_files_are_named_as_such(tmp_path):
    safetensors.numpy.save_file({"x": X}, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="ordinary safetensors file") as caught:
        tt.load(tmp_path / "x.safetensors")
    assert type(caught.value) is FormatError


# What is refused


@pytest.mark.parametrize("blob", [b"", b"\x00" * 7])
def test_short_files_are_truncated(blob, tmp_path):
    (tmp_path / "x.tt").write_bytes(blob)
    for source in (blob, tmp_path / "x.tt"):
        with pytest.raises(Truncated, match="at least 8"):
            Reader(source)


@pytest.mark.parametrize("header", [
    b"", b"{", b"[]", b"null", b"3", b'{"__metadata__": 3}', b'{"__metadata__": {"a": 3}}', b'{"a": {}}', b"\xff\xfe",
    b'{"\xff": 1}', b'{"__metadata__": {"trimtab": "\xff"}}', b'{"__metadata__": {"trimtab": "\\ud800"}}',
    b"[" * 100_000,
    b'{"__metadata__": {"trimtab": "' + b"[" * 100_000 + b'"}}', b'{"__metadata__": {"trimtab": "{}"}}',
    b'{"__metadata__": {"trimtab": "{\\"version\\": -1}"}}',
    b'{"__metadata__": {"trimtab": "{\\"version\\": 1e999}"}}',
    b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0], "more": 1}}',
    b'{"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 0]}}',
    b'{"a": {"dtype": "U8", "shape": [18446744073709551616], "data_offsets": [0, 0]}}',
    b'{"a": {"dtype": "Q7", "shape": [0], "data_offsets": [0, 0]}}',
    b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}}',
    b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]}}',
])  # fmt: skip
def test_headers_that_are_none_are_corrupt(header):
    with pytest.raises(Corrupt):
        Reader(assembled(header))


def test_absurd_header_lengths(path):
    blob = path.read_bytes()
    with pytest.raises(Corrupt, match="not a packed file"):
        Reader((2**63).to_bytes(8, "little") + blob[8:])
    with pytest.raises(Truncated):
        Reader((len(blob)).to_bytes(8, "little") + blob[8:])


def test_every_cut_is_noticed(path):
    blob = path.read_bytes()
    for size in range(len(blob)):
        with pytest.raises(FormatError):
            Reader(blob[:size])
    with pytest.raises(Corrupt, match="1 bytes follow"):
        Reader(blob + b"\x00")


def test_newer_versions_are_named(path):
    forged = Forged.of(path.read_bytes())
    forged.manifest = {"version": 2, "anything": "else"}
    with pytest.raises(NewerVersion, match=r"version 2.*Upgrade"):
        Reader(forged.bytes())


def test_unknown_codecs_are_named_when_read(path):
    forged = Forged.of(path.read_bytes())
    forged.manifest["codecs"][0]["id"] = "zip9"
    path.write_bytes(forged.bytes())
    tensors = tt.load(path)
    assert list(tensors) == ["w"]
    with pytest.raises(NewerVersion, match="zip9"):
        tensors["w"]


def test_edited_metadata_is_noticed(path):
    blob = path.read_bytes()
    assert blob.count(b'"epoch":"3"') == 1
    with pytest.raises(Corrupt, match="checksum of the metadata"):
        Reader(blob.replace(b'"epoch":"3"', b'"epoch":"4"'))


def test_changed_elements_are_noticed(path):
    blob = bytearray(path.read_bytes())
    blob[-3] ^= 1
    path.write_bytes(blob)
    with pytest.raises(Corrupt, match="checksum of entry 'w'"):
        tt.load(path)["w"]


def test_forgeries_of_the_tests_are_right_but_for_the_lie(path):
    assert list(Reader(Forged.of(path.read_bytes()).bytes())) == ["w"]


def test_entries_and_buffers_must_match(path):
    for change in (
        lambda f: f.manifest["entries"].clear(),
        lambda f: f.manifest["entries"]["w"].update(buffers=["data", "more"]),
        lambda f: f.manifest["entries"].update(v=f.manifest["entries"]["w"]),
        lambda f: f.manifest["entries"]["w"].update(codec=1),
        lambda f: f.manifest["entries"]["w"].update(bound=7),
        lambda f: f.spans.update(v={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
        lambda f: f.spans.update(v={"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}),  # overlap
        lambda f: f.spans["w"].update(dtype="F64"),
        lambda f: f.spans["w"].update(data_offsets=[0, 47]),
        lambda f: f.spans["w"].update(data_offsets=[1, 49]),
    ):
        forged = Forged.of(path.read_bytes())
        change(forged)
        with pytest.raises(Corrupt):
            Reader(forged.bytes())


def test_names_given_twice_in_the_header_are_noticed(path):
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    text = blob[8 : 8 + length].rstrip()
    twice = text[:-1] + b',"w":{"dtype":"F32","shape":[0],"data_offsets":[48,48]}}'
    with pytest.raises(Corrupt):
        Reader(assembled(twice, blob[8 + length :]))


def test_sizes_beyond_four_gib_are_read_exactly():
    """Offsets are compared before a buffer is touched: the numbers are right, only the file is short."""
    size = 5 * 2**32
    header = {"big": {"dtype": "F64", "shape": [size // 8], "data_offsets": [0, size]},
              "next": {"dtype": "U8", "shape": [1], "data_offsets": [size, size + 1]}}  # fmt: skip
    with pytest.raises(Truncated, match=str(size + 1)):
        Reader(assembled(header))
    header["next"]["data_offsets"] = [size % 2**32, size % 2**32 + 1]
    with pytest.raises(Corrupt, match="spans bytes"):
        Reader(assembled(header))


def test_a_sparse_file_beyond_four_gib(tmp_path):
    size = 2**32 + 8
    forged = Forged.of(to_bytes(Raw().encode(np.zeros(8, "u1")), "0" * 16))
    forged.spans[""].update(shape=[size], data_offsets=[0, size])
    forged.manifest["entries"][""]["shape"] = [size]
    forged.body = b""
    with (tmp_path / "x.tt").open("wb") as file:
        file.write(forged.bytes())
        file.truncate(file.tell() + size - 1)
        file.seek(0, os.SEEK_END)
        file.write(b"\x07")
    data = Reader(tmp_path / "x.tt").packed("").buffer("data", "uint8", size)
    assert data[-1] == 7


# Writing


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "a"], "two entries"), (["__metadata__"], "reserved"), ([3], "must be a text"), (["\udc80"], "Unicode")],
)
def test_bad_names_are_refused(names, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "x.tt", *names)
    assert list(tmp_path.iterdir()) == []


def test_an_entry_may_not_take_the_name_of_a_buffer(tmp_path):
    with Writer(tmp_path / "x.tt") as writer:
        writer.add("a", Packed(Raw().encode(X).header, {"code": X.reshape(-1)}), "0" * 16)
        with pytest.raises(UsageError, match="'a:code' is taken"):
            writer.add("a:code", Raw().encode(X), checksum([digest(X)]))
        with pytest.raises(UsageError, match="'a:code' is taken"):
            writer.add(
                "a:code", Packed(Raw().encode(X).header, {"more": X.reshape(-1), "data": X.reshape(-1)}), "0" * 16
            )
        writer.add("b", Raw().encode(X), checksum([digest(X)]))
    assert same_bits(tt.load(tmp_path / "x.tt")["b"], X)


def test_a_buffer_that_safetensors_cannot_hold_is_refused_whole(tmp_path):
    with Writer(tmp_path / "x.tt") as writer:
        with pytest.raises((ShapeError, KeyError)):
            writer.add("a", Packed(Raw().encode(X).header, {"ok": X, "bad": np.array(["text"])}), "0" * 16)
        writer.add("b", Raw().encode(X), checksum([digest(X)]))
    assert list(Reader(tmp_path / "x.tt")) == ["b"]


@pytest.mark.parametrize(
    "metadata", [{"trimtab": "x"}, {"trimtab.x": "x"}, {"epoch": 3}, {3: "epoch"}, {"a": "\ud800"}]
)
def test_bad_metadata_is_refused(metadata, tmp_path):
    with pytest.raises(UsageError):
        write(tmp_path / "x.tt", "a", metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "gone" / "x.tt", "a")
    with pytest.raises(NotADirectoryError):
        write(tmp_path / "file" / "x.tt", "a")
    with pytest.raises(UsageError, match="is a directory"):
        write(tmp_path, "a")
    with pytest.raises(UsageError, match="is a directory"):
        Reader(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folders(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        write(tmp_path / "x.tt", "a")


def test_a_failed_write_leaves_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(UsageError, match="two entries"):
        write(path, "v", "v")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_failure_while_putting_together_leaves_nothing(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write(path, "v")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_file_may_be_replaced_while_it_is_read(path):
    tensors = tt.load(path)
    tt.save(path, {name: 2 * x for name, x in tensors.items()})
    assert same_bits(tensors["w"], X)
    assert same_bits(tt.load(path)["w"], 2 * X)


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write(tmp_path / "x.tt", "a")
    finally:
        os.umask(old)
    assert (tmp_path / "x.tt").stat().st_mode & 0o777 == 0o640


KILLED = """
import sys, numpy as np
from trimtab.codecs import Raw
from trimtab.files import Writer
packed = Raw().encode(np.zeros(1 << 20, "u1"))
with Writer(sys.argv[1]) as writer:
    for i in range(20):
        writer.add(str(i), packed, "0" * 16)
    print("half", flush=True)
    for i in range(20, 10**9):
        writer.add(str(i), packed, "0" * 16) if i < 40 else None
"""


def test_a_kill_leaves_the_old_file_and_no_other(path):
    before = path.read_bytes()
    child = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child, child.stdout:
        assert child.stdout.readline() == b"half\n"
        time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        assert child.wait(20) == -signal.SIGKILL
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
