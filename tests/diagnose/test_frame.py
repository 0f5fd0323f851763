"""The file of a rank: what is written is read; whatever else is in it is a clear error or left out."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from trimtab import waiting
from trimtab.diagnose import frame
from trimtab.diagnose.frame import FRAME, HEADER, RECORD, Writer, frame_path, read, read_folder
from trimtab.diagnose.groups import Groups
from trimtab.diagnose.snapshot import Snapshot
from trimtab.diagnose.trace import Trace
from trimtab.errors import Corrupt, FormatError, NewerVersion, Truncated, UsageError


def written(folder, rank: int = 0, world_size: int = 4, *, num: int = 10, **options) -> Writer:
    """A file with `num` completed operations and one that goes on."""
    writer = Writer(frame_path(folder, rank), rank=rank, world_size=world_size, **options)
    world = writer.communicator("world", range(world_size))
    site = writer.text("train.py:81")
    call = writer.prepare(world, "all_reduce", frame.signature("all_reduce", num_elements=9), site=site, num_bytes=36)
    for step in range(num):
        writer.step(step + 1)
        writer.leave(call, writer.enter(call))
    writer.enter(call)
    return writer


def test_layout_is_as_documented():
    assert (HEADER.itemsize, FRAME.itemsize, RECORD.itemsize) == (256, 64, 64)


def test_what_is_written_is_read(tmp_path):
    written(tmp_path, rank=2)
    file = read(frame_path(tmp_path, 2))
    assert (file.rank, file.world_size, file.pid, file.finished, file.lost) == (2, 4, os.getpid(), False, 0)
    communicator = file.communicator(0)
    assert communicator.name == "world"
    assert communicator.members is not None
    assert communicator.members.tolist() == [0, 1, 2, 3]
    assert (file.frames["seq"][0], file.frames["done"][0]) == (11, 10)
    assert file.latest["exit"][0] == 0
    assert file.texts()[int(file.latest["site"][0])] == "train.py:81"
    records = file.ring()[1:12]
    assert records["seq"].tolist() == list(range(1, 12))
    assert records["step"].tolist() == [*range(1, 11), 10]
    assert (records["exit"][:-1] >= records["enter"][:-1]).all()
    assert abs(time.monotonic_ns() - int(records["enter"][-1])) < 60e9


@pytest.mark.parametrize("members", [[3, 0, 2, 1], [0], list(range(0, 64, 8)), [5, 4, 3, 9, 10, 11, 1]])
def test_members_of_any_order(tmp_path, members):
    rank = members[-1]
    writer = Writer(frame_path(tmp_path, rank), rank=rank, world_size=64)
    index = writer.communicator("some", members)
    assert writer.communicator("some", members) == index
    assert writer.communicator("others", members) == index + 1
    found = read(writer.path).communicator(index).members
    assert found is not None
    assert found.tolist() == members


def test_no_room_is_no_error(tmp_path):
    writer = Writer(
        frame_path(tmp_path, 0), rank=0, world_size=64, max_communicators=2, members_words=3, texts_bytes=64
    )
    assert writer.communicator("a", [0, 1]) == 0
    assert writer.communicator("b", [0, 7, 9]) == 1
    assert writer.communicator("c", [0, 3]) == -1
    writer.lost()
    for i in range(100):
        writer.text(f"text {i}")
    file = read(writer.path)
    assert file.lost == 1
    assert file.communicator(1).members is None
    groups, _, notes = Groups.of_files([file])
    assert not notes
    assert groups.guessed.tolist() == [False, True]


def test_waits_for_data_and_pauses_are_seen(tmp_path):
    writer = written(tmp_path, num=2)
    stop = waiting.listen(writer.waiting)
    with waiting.for_data():
        assert Snapshot.of_folder(tmp_path).waiting[0] > 0
        time.sleep(0.02)
    stop()
    call = writer.prepare(0, "barrier", 1)
    writer.enter(call)
    writer.pause(100)
    state = Snapshot.of_folder(tmp_path)
    assert state.waiting[0] == 0
    assert 90 < state.paused[0] <= 100
    assert read(writer.path).ring()["waited"].max() >= 20_000
    writer.pause(0)
    assert Snapshot.of_folder(tmp_path).paused[0] == 0


def test_asynchronous_operations_do_not_block_until_awaited(tmp_path):
    writer = written(tmp_path, num=0)
    number = writer.enter(writer.prepare(0, "all_reduce", 5, flags=frame.ASYNC))
    assert not Snapshot.of_folder(tmp_path).blocking[0]
    writer.awaited(number)
    assert Snapshot.of_folder(tmp_path).blocking[0]


def test_a_late_end_does_not_touch_another_record(tmp_path):
    writer = Writer(frame_path(tmp_path, 0), rank=0, world_size=1, capacity=4)
    call = writer.prepare(writer.communicator("world", [0]), "all_reduce", 5)
    numbers = [writer.enter(call) for _ in range(6)]
    for number in numbers:
        writer.leave(call, number)
    ring = read(writer.path).ring()
    assert sorted(ring["seq"].tolist()) == [3, 4, 5, 6]
    assert (ring["exit"] > 0).all()
    late = Writer(frame_path(tmp_path, 0), rank=0, world_size=1, capacity=4)
    call = late.prepare(late.communicator("world", [0]), "all_reduce", 5)
    first = late.enter(call)
    for _ in range(4):
        late.enter(call)
    late.leave(call, first)
    late.awaited(first)
    ring = read(late.path).ring()
    assert not ring["exit"].any()
    assert not ring["flags"].any()
    assert read(late.path).frames["done"][0] == 1


def test_a_finished_rank_says_so(tmp_path):
    writer = written(tmp_path)
    writer.close()
    writer.close()
    assert read(writer.path).finished


def test_a_full_disk_is_an_error_at_the_start(tmp_path, monkeypatch):
    def no_room(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"rank": 4}, {"rank": -1}, {"capacity": 100}, {"max_communicators": 0}])
def test_bad_settings_are_refused(tmp_path, options):
    with pytest.raises(UsageError):
        Writer(tmp_path / "x", **{"rank": 0, "world_size": 4, **options})


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("magic", b"nonsense", Corrupt),
        ("version", 2, NewerVersion),
        ("version", 0, Corrupt),
        ("rank", 4, Corrupt),
        ("world_size", 0, Corrupt),
        ("world_size", 2**32 - 1, Corrupt),
        ("capacity", 3, Corrupt),
        ("capacity", 2**31, Corrupt),
        ("capacity", 8192, Truncated),
        ("num_communicators", 65, Corrupt),
        ("members_words", 2**32 - 1, Corrupt),
        ("texts_used", 2**20, Corrupt),
        ("state", 7, Corrupt),
    ],
)
def test_lying_headers_are_clear_errors(tmp_path, name, value, error):
    path = written(tmp_path).path
    header = np.fromfile(path, HEADER, 1)
    header[name] = value
    with open(path, "r+b") as file:
        file.write(header.tobytes())
    with pytest.raises(error, match=str(path)):
        read(path)


def decode_all(folder) -> None:
    files, notes = read_folder(folder)
    groups, places, more = Groups.of_files(files)
    Snapshot.of_files(files, groups, places)
    trace = Trace.of_files(files, groups, places)
    assert trace.count.sum() <= sum(file.capacity for file in files)
    assert all(isinstance(note, str) for note in (*notes, *more, *trace.notes))


def test_truncated_files_are_clear_errors(tmp_path):
    path = written(tmp_path, capacity=16, max_communicators=2, members_words=16, texts_bytes=64).path
    data = path.read_bytes()
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        with pytest.raises(Truncated):
            read(path)
        with pytest.raises(FormatError):
            read_folder(tmp_path)


def test_damaged_files_are_clear_errors_or_left_out(tmp_path):
    """Any bits may be wrong: the file is refused, or something of it is left out, and memory stays small."""
    options = {"capacity": 16, "max_communicators": 2, "members_words": 16, "texts_bytes": 64}
    paths = [written(tmp_path, rank, **options).path for rank in range(2)]
    data = bytearray(paths[1].read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        forged = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            forged[rng.integers(len(forged))] = rng.integers(256)
        paths[1].write_bytes(forged)
        try:
            read(paths[1])
        except FormatError:
            refused += 1
        decode_all(tmp_path)
    assert refused > 10


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = written(tmp_path).path
    file = read(path)
    os.truncate(path, 4096)
    with pytest.raises(Truncated, match="cut short"):
        file.ring()
    groups, places, _ = Groups.of_files([file])
    trace = Trace.of_files([file], groups, places)
    assert "could not be read" in trace.notes[0]


def test_files_of_other_jobs_and_second_files_are_left_out(tmp_path):
    written(tmp_path, 0, job=1)
    written(tmp_path, 1, job=2)
    written(tmp_path, 2, job=2)
    os.rename(written(tmp_path, 3, job=2).path, frame_path(tmp_path, 99))
    written(tmp_path, 3, job=2)
    frame_path(tmp_path, 5).write_bytes(b"")
    files, notes = read_folder(tmp_path)
    assert [file.rank for file in files] == [1, 2, 3]
    assert len(notes) == 3
    with pytest.raises(FormatError, match="no files"):
        read_folder(tmp_path / "nowhere")


def test_ranks_that_contradict_each_other(tmp_path):
    written(tmp_path, 0)
    path = written(tmp_path, 1).path
    at = 256 + FRAME.fields["position"][1]
    data = bytearray(path.read_bytes())
    data[at : at + 4] = (3).to_bytes(4, "little")
    path.write_bytes(data)
    files, _ = read_folder(tmp_path)
    groups, places, notes = Groups.of_files(files)
    assert places[1].tolist() == [-1]
    assert "contradicts" in notes[0]
    assert not Snapshot.of_files(files, groups, places).seen[1]


def test_a_record_that_is_being_written_is_not_believed(tmp_path):
    writer = written(tmp_path)
    file = read(writer.path)
    at = writer._layout.ring_at + 64 * 11
    writer._map[at + 60] ^= 1
    assert read(writer.path).latest["enter"][0] == 0
    assert file.latest["enter"][0] > 0
    assert Snapshot.of_folder(tmp_path).age[0] == 0
    trace = Trace.of_folder(tmp_path)
    assert trace.torn[0] == 1
    assert "torn" in trace.notes[0]


def test_signatures():
    one = frame.signature("all_reduce", dtype="float32", num_elements=5, reduce_op="sum")
    assert one == frame.signature("all_reduce", dtype="float32", num_elements=5, reduce_op="sum")
    assert one != frame.signature("all_reduce", dtype="float32", num_elements=6, reduce_op="sum")
    assert frame.signature("send", num_elements=5) == frame.signature("recv", num_elements=5)
    assert frame.signature("all_to_all", num_elements=5) == frame.signature("all_to_all", num_elements=6)
    assert 0 < one < 2**32
