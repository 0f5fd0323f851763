"""Packed checkpoints in one process: what is stored, what is refused, and what becomes of damaged and hostile ones.

`tests.dist.test_dcp` has the checkpoints of several ranks.
"""

from __future__ import annotations

import itertools
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys
from torch.distributed.checkpoint.storage import WriteResult

import trimtab as tt
from tests.forged import lies
from trimtab import files, store
from trimtab.codecs import Raw
from trimtab.dcp import INDEX, Reader, Writer, _fill, _Piece
from trimtab.errors import BoundError, Corrupt, FormatError, ShapeError, UsageError


def state() -> dict[str, Any]:
    """A state dict with tensors of many shapes and dtypes, and other values."""
    source = torch.Generator().manual_seed(0)
    return {
        "model": {
            "weight": torch.randn(60, 50, generator=source),
            "half": torch.randn(3000, generator=source).bfloat16(),
            "turned": torch.randn(8, 9, generator=source).T,
            "flags": torch.tensor([True, False]),
            "scalar": torch.tensor(2.5),
            "empty": torch.empty(0, 3),
        },
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "x": torch.ones(2)}, {"lr": float("nan"), "betas": None}],
        "random": torch.get_rng_state(),
        "odd/näme:[0]\n": torch.arange(3),
        "blob": b"\x00\xff",
    }


def emptied(data: Any) -> Any:
    """The same state dict without its values."""
    if isinstance(data, dict):
        return {key: emptied(value) for key, value in data.items()}
    if isinstance(data, list):
        return [emptied(value) for value in data]
    return torch.zeros_like(data) if isinstance(data, torch.Tensor) else "nothing"


def assert_same(x: Any, y: Any) -> None:
    torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True) if isinstance(x, torch.Tensor) else None
    if isinstance(x, dict | list):
        assert len(x) == len(y)
        for key in x if isinstance(x, dict) else range(len(x)):
            assert_same(x[key], y[key])
    elif not isinstance(x, torch.Tensor):
        assert repr(x) == repr(y)


def save(folder: Path, data: dict[str, Any], **settings: Any) -> None:
    torch_dcp.save(data, storage_writer=Writer(folder, **settings))


def load(folder: Path, data: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Load into `data`; what DCP wraps is raised as it was."""
    try:
        torch_dcp.load(data, storage_reader=Reader(folder), **settings)
    except torch_dcp.CheckpointException as error:
        raise error.failures[0][0] from None
    return data


def test_state_comes_back(tmp_path):
    save(tmp_path, state())
    assert_same(load(tmp_path, emptied(state())), state())
    assert_same(_load_state_dict_from_keys(storage_reader=Reader(tmp_path)), state())
    assert {path.suffix for path in tmp_path.iterdir()} == {".tt"}


def test_files_are_ordinary_packed_files(tmp_path):
    save(tmp_path, state())
    (file,) = tmp_path.glob("rank*.tt")
    arrays = tt.load(file)
    assert np.array_equal(arrays["model.weight[0:60, 0:50]"], state()["model"]["weight"].numpy())
    assert bytes(np.asarray(arrays["groups.0.betas[json]"])) == b'{"tuple": [0.9, 0.999]}'
    assert not any(b"torch" in path.read_bytes().replace(b"torch.", b"") for path in tmp_path.iterdir())


def test_partial_loads(tmp_path):
    save(tmp_path, state())
    some = {"model": {"half": torch.zeros(3000, dtype=torch.bfloat16)}}
    assert_same(load(tmp_path, some), {"model": {"half": state()["model"]["half"]}})
    more = {"blob": None, "new": torch.ones(1)}
    with pytest.raises(RuntimeError, match="Missing key"):
        load(tmp_path, dict(more))
    came = load(tmp_path, more, planner=torch_dcp.DefaultLoadPlanner(allow_partial_load=True))
    assert came == {"blob": b"\x00\xff", "new": torch.ones(1)}


def test_other_dtypes_and_layouts_receive(tmp_path):
    save(tmp_path, {"x": state()["model"]["weight"]})
    x = torch.zeros(50, 60, dtype=torch.float64).T
    assert torch.equal(load(tmp_path, {"x": x})["x"], state()["model"]["weight"].double())
    assert x.sum() != 0  # loaded in place


def test_codec_bound_and_level(tmp_path):
    x = torch.linspace(0, 1, 5000)
    save(tmp_path / "plain", {"x": x, "n": torch.arange(5)}, codec=Raw())
    save(tmp_path / "lossy", {"x": x, "n": torch.arange(5)}, bound=tt.Abs(0.01))
    came = load(tmp_path / "lossy", {"x": torch.zeros(5000), "n": torch.zeros(5, dtype=torch.int64)})
    assert 0 < (came["x"] - x).abs().max() <= 0.01
    assert torch.equal(came["n"], torch.arange(5))
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).glob("rank*")) for name in ("plain", "lossy")]
    assert sizes[0] > 20_000 > sizes[1]
    for level in ("fast", "ratio"):
        save(tmp_path / level, {"x": state()["model"]["half"]}, level=level)
        (file,) = (tmp_path / level).glob("rank*")
        assert tt.load(file).report["arrays"]["x[0:3000]"]["codec"]["mode"] == level


def test_saving_in_the_background(tmp_path):
    data = state()
    pending = torch_dcp.async_save(data, storage_writer=Writer(tmp_path), no_dist=True)
    pending.result()
    assert_same(load(tmp_path, emptied(state())), state())


def test_plans_may_be_cached(tmp_path):
    """A cached plan brings no file name of the save before."""
    for number in range(3):
        planner = torch_dcp.DefaultSavePlanner(enable_plan_caching=True)
        torch_dcp.save({"x": torch.full((9,), number)}, storage_writer=Writer(tmp_path), planner=planner)
        assert len(list(tmp_path.iterdir())) == 2
        assert load(tmp_path, {"x": torch.zeros(9, dtype=torch.int64)})["x"].sum() == 9 * number


CUT_OFF = """
import os, sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed.checkpoint as dcp, trimtab.dcp, trimtab.files
if sys.argv[2] == "before the index":
    trimtab.dcp.Writer.finish = lambda *_, **__: os._exit(9)
else:
    add = trimtab.files.Writer.add
    trimtab.files.Writer.add = lambda self, name, *rest: os._exit(9) if name[0] == "y" else add(self, name, *rest)
dcp.save({"x": torch.zeros(5000), "y": torch.zeros(5000)}, storage_writer=trimtab.dcp.Writer(sys.argv[1]))
"""


@pytest.mark.parametrize("moment", ["before the index", "within a file"])
def test_a_save_that_is_killed_leaves_the_checkpoint_before(tmp_path, moment):
    def killed_save(folder):
        assert subprocess.run([sys.executable, "-c", CUT_OFF, str(folder), moment]).returncode == 9

    ones = {"x": torch.ones(5000), "y": torch.ones(5000)}
    save(tmp_path / "old", ones)
    killed_save(tmp_path / "old")
    assert_same(load(tmp_path / "old", emptied(ones)), ones)
    save(tmp_path / "old", ones)
    assert len([path for path in (tmp_path / "old").iterdir() if path.suffix == ".tt"]) == 2  # and clears up

    if moment == "before the index":
        killed_save(tmp_path / "new")
        with pytest.raises(UsageError, match="no packed checkpoint"):
            load(tmp_path / "new", emptied(ones))


def failure(data: dict[str, Any], folder: Path, **settings: Any) -> BaseException:
    with pytest.raises(torch_dcp.CheckpointException) as caught:
        save(folder, data, **settings)
    return caught.value.failures[0][0]


def test_what_cannot_be_stored_is_named(tmp_path):
    error = failure({"a": {"b": torch.ones(3)}, "c": [slice(1), 2]}, tmp_path)
    assert isinstance(error, UsageError) and "'c': a builtins.slice would have to be pickled" in str(error)
    error = failure({"a": {"b": torch.ones(3).to_sparse()}}, tmp_path)
    assert isinstance(error, ShapeError) and "'a.b'" in str(error)
    assert not list(tmp_path.iterdir())


def test_the_folder_may_come_with_the_call(tmp_path):
    assert Writer.validate_checkpoint_id(tmp_path) and not Reader.validate_checkpoint_id("s3://bucket/step")
    writer, reader = Writer("elsewhere"), Reader("elsewhere")
    torch_dcp.save({"x": torch.ones(3)}, checkpoint_id=tmp_path, storage_writer=writer)
    came = {"x": torch.zeros(3)}
    torch_dcp.load(came, checkpoint_id=str(tmp_path), storage_reader=reader)
    assert came["x"].sum() == 3
    assert writer.checkpoint_id == reader.checkpoint_id == tmp_path


def test_a_part_of_a_tensor_is_no_checkpoint(tmp_path):
    """DCP itself lets one rank alone save its shard."""
    half = ChunkStorageMetadata(torch.Size([0]), torch.Size([3]))
    metadata = Metadata({"x": TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([6]), [half])})
    result = WriteResult(MetadataIndex("x", [0]), 12, "rank00000-0123456789abcdef.tt")
    with pytest.raises(UsageError, match=r"'x' do not cover .*; save from all ranks"):
        Writer(tmp_path).finish(metadata, [[result]])
    assert not list(tmp_path.iterdir())


def test_writers_can_be_sent_to_the_process_that_saves(tmp_path):
    writer = pickle.loads(pickle.dumps(Writer(tmp_path, tt.Abs(0.5), codec=tt.codecs.SZ())))
    torch_dcp.save({"x": torch.arange(3.0)}, storage_writer=writer)
    assert load(tmp_path, {"x": torch.zeros(3)})["x"].sum() == pytest.approx(3, abs=1.5)


def test_wrong_settings_are_told_when_the_writer_is_made(tmp_path):
    with pytest.raises(BoundError, match="expected a bound"):
        Writer(tmp_path, 0.1)
    with pytest.raises(UsageError, match="unknown level"):
        Writer(tmp_path, level="best")
    with pytest.raises(UsageError, match="codec"):
        Writer(tmp_path, codec=Raw)


def test_other_checkpoints_are_told_apart(tmp_path):
    torch_dcp.save({"x": torch.ones(3)}, storage_writer=torch_dcp.FileSystemWriter(tmp_path))
    assert "ordinary DCP checkpoint" in str(failure({"x": torch.ones(3)}, tmp_path))
    with pytest.raises(UsageError, match="FileSystemReader"):
        load(tmp_path, {"x": torch.ones(3)})
    with pytest.raises(UsageError, match="no packed checkpoint"):
        load(tmp_path / "nothing", {"x": torch.ones(3)})
    with pytest.raises(UsageError, match="use_collectives"):
        torch_dcp.save({"x": torch.ones(3)}, storage_writer=Writer(tmp_path / "new"), use_collectives=False)


def write_index(folder: Path, text: bytes) -> None:
    """Write an index whose checksums are right, so that only what it says is wrong."""
    with files.Writer(folder / INDEX) as writer:
        writer.add("index", *store.encode(np.frombuffer(text, np.uint8), codec=Raw()))


def small() -> dict[str, Any]:
    return {"w": {"x": torch.arange(2000, dtype=torch.float32), "y": torch.ones(2, 3)}, "l": [{"n": 3}, {"n": (4,)}]}


def test_any_damage_to_any_file_is_noticed(tmp_path):
    save(tmp_path, small())
    source = random.Random(0)
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        cuts = [whole[:size] for size in {0, 7, 8, 100, len(whole) // 2, len(whole) - 1}]
        for _ in range(60):
            flipped = bytearray(whole)
            flipped[source.randrange(len(whole))] ^= 1 << source.randrange(8)
            cuts.append(bytes(flipped))
        for damaged in cuts:
            path.write_bytes(damaged)
            try:
                came = load(tmp_path, emptied(small()))
            except FormatError:
                continue
            assert_same(came, small())  # a bit that means nothing, such as one of the padding
        path.unlink()
        with pytest.raises((Corrupt, UsageError)):
            load(tmp_path, emptied(small()))
        path.write_bytes(whole)


def lies_in_json(data: Any) -> list[Any]:
    """Copies of a JSON value, each with one lie in it."""
    blob = msgspec.json.encode(data)
    found = []

    def visit(path: list[Any], value: Any) -> None:
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        others = [None, -1, 0, 1, 2, 7, 2**31, 2**62, 2**63, 0.5, "", "lie", "../x.tt", "/etc/passwd", [], [0], {}]
        if isinstance(value, list):
            others += [value[1:], value * 2, value * 70]
        if isinstance(value, int):
            others += [value + 1, value - 1]
        for other in others:
            copy = msgspec.json.decode(blob)
            part = copy
            for key in path[:-1]:
                part = part[key]
            if path:
                part[path[-1]] = other
                found.append(copy)
        for key, child in list(children):
            visit([*path, key], child)

    visit([], data)
    return found


def test_no_lie_in_the_index_goes_further_than_a_format_error(tmp_path):
    save(tmp_path, small())
    truth = bytes(np.asarray(tt.load(tmp_path / INDEX)["index"]))
    accepted = 0
    for lie in lies_in_json(msgspec.json.decode(truth)):
        write_index(tmp_path, msgspec.json.encode(lie))
        metadata = Reader(tmp_path).read_metadata()
        if isinstance(metadata.storage_data, Exception):
            assert isinstance(metadata.storage_data, FormatError)
            continue
        if metadata.state_dict_metadata.keys() != {"w.x", "w.y", "l.0.n", "l.1.n"}:
            continue  # other names are for DCP to find missing
        if any(metadata.state_dict_metadata[name].size != small()["w"][name[2:]].shape for name in ("w.x", "w.y")):
            continue  # and so are other sizes
        try:
            came = load(tmp_path, emptied(small()))
        except FormatError:
            continue
        assert_same(came, small())
        accepted += 1
    assert accepted  # lies about the paths, which loading into a state dict does not follow


def test_no_lie_in_the_files_goes_further_than_a_format_error(tmp_path):
    save(tmp_path, {"x": torch.arange(2000, dtype=torch.float32), "n": (3, 4)})
    wanted = {"x": torch.zeros(2000), "n": None}
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        for _, lie in itertools.islice(lies(whole), 0, None, 3):
            path.write_bytes(lie)
            try:
                load(tmp_path, dict(wanted))
            except (FormatError, RuntimeError) as error:
                assert isinstance(error, FormatError) or "Missing key" in str(error), lie
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["../outside.tt", "/outside.tt", "rank00000-0123456789abcdef.tt/../../outside.tt"])
def test_no_file_outside_the_folder_is_read(tmp_path, name):
    folder = tmp_path / "checkpoint"
    save(folder, {"x": torch.ones(5)})
    (file,) = folder.glob("rank*.tt")
    os.replace(file, tmp_path / "outside.tt")
    index = msgspec.json.decode(bytes(np.asarray(tt.load(folder / INDEX)["index"])))
    index["files"] = [name]
    write_index(folder, msgspec.json.encode(index))
    with pytest.raises(Corrupt, match="not the index"):
        load(folder, {"x": torch.zeros(5)})


def test_lists_cannot_be_made_endless(tmp_path):
    save(tmp_path, small())
    index = msgspec.json.decode(bytes(np.asarray(tt.load(tmp_path / INDEX)["index"])))
    index["paths"]["l.1.n"] = ["l", 2**40, "n"]
    write_index(tmp_path, msgspec.json.encode(index))
    with pytest.raises(Corrupt, match="too long"):
        load(tmp_path, emptied(small()))


def test_an_index_is_no_longer_than_its_file(tmp_path):
    save(tmp_path, small())
    zeros = np.zeros(10**6, "u1")
    tt.save(tmp_path / INDEX, {"index": zeros})
    assert (tmp_path / INDEX).stat().st_size < 10**5
    with pytest.raises(Corrupt, match="plain text"):
        load(tmp_path, emptied(small()))


@pytest.mark.parametrize("shape", [(), (4,), (3, 5), (2, 3, 2)], ids=str)
def test_pieces_fill_the_whole_or_not(shape):
    """Compared with counting, for random pieces of many kinds."""
    source = random.Random(len(shape))
    agreed = {True: 0, False: 0}
    for _ in range(500):
        boxes = [([0] * len(shape), list(shape))]
        for _ in range(source.randrange(4)):  # cut boxes in two
            offsets, sizes = boxes.pop(source.randrange(len(boxes)))
            axes = [axis for axis, size in enumerate(sizes) if size > 1]
            if not axes:
                boxes.append((offsets, sizes))
                continue
            axis = source.choice(axes)
            cut = source.randrange(1, sizes[axis])
            boxes.append((offsets, [cut if a == axis else n for a, n in enumerate(sizes)]))
            boxes.append(
                (
                    [start + cut * (a == axis) for a, start in enumerate(offsets)],
                    [n - cut if a == axis else n for a, n in enumerate(sizes)],
                )
            )
        if shape and source.random() < 0.6:  # and spoil one
            number, axis = source.randrange(len(boxes)), source.randrange(len(shape))
            part = source.choice(boxes[number])
            part[axis] += source.choice([-1, 1])
        if source.random() < 0.1:
            boxes.append(source.choice(boxes))
        count = np.zeros([2 * n + 2 for n in shape], int)
        legal = all(min(offsets, default=0) >= 0 and min(sizes, default=1) > 0 for offsets, sizes in boxes)
        if not legal:
            continue
        for offsets, sizes in boxes:
            count[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))] += 1
        expected = np.zeros_like(count)
        expected[tuple(slice(n) for n in shape)] = 1
        once = np.array_equal(count, expected)
        assert _fill(shape, [_Piece(0, tuple(o), tuple(n)) for o, n in boxes]) == once
        agreed[once] += 1
    assert min(agreed.values()) > 10


def test_many_pieces_are_checked_quickly():
    pieces = [_Piece(0, (n, 0), (1, 5)) for n in range(20_000)]
    assert _fill((20_000, 5), pieces)
    assert not _fill((20_000, 5), [*pieces[1:], pieces[1]])
