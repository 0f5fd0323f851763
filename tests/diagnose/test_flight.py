"""Flight Recorder dumps: states and verdicts from them, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from trimtab.diagnose import diagnose_dumps
from trimtab.diagnose.flight import read_dumps
from trimtab.errors import Corrupt, FormatError, NewerVersion, UsageError


def entry(number: int, seq: int, *, group: tuple[str, str] = ("0", "default_pg"), **changes: Any) -> dict[str, Any]:
    return {
        "record_id": number,
        "process_group": group,
        "collective_seq_id": seq,
        "p2p_seq_id": 0,
        "profiling_name": "gloo:all_reduce",
        "is_p2p": False,
        "input_sizes": [[64, 2]],
        "input_dtypes": ["Float"],
        "state": "scheduled",
        "retired": True,
        "time_created_ns": 1_000_000_000 + 1_000_000 * number,
        "thread_id": "a text that nobody needs",
        **changes,
    }


def dump(folder: Path, rank: int, entries: list[dict[str, Any]], **changes: Any) -> Path:
    path = folder / f"trace_rank_{rank}.json"
    path.write_text(json.dumps({"version": "2.10", "entries": entries, "pg_config": {}, **changes}))
    return path


def job(folder: Path, lengths: list[int], **last: Any) -> None:
    """Ranks that have made so many operations; those with the most are inside their last."""
    for rank, length in enumerate(lengths):
        entries = [entry(i, i + 1) for i in range(length)]
        if length == max(lengths):
            entries[-1] |= {"retired": False, **(last if rank == 0 else {})}
        dump(folder, rank, entries)


def test_a_rank_that_did_not_come(tmp_path):
    job(tmp_path, [9, 9, 7, 9])
    verdict = diagnose_dumps(tmp_path)
    assert (verdict.kind, verdict.ranks, verdict.seq) == ("H1", (2,), 9)
    assert any("durations" in line for line in verdict.not_seen)


@pytest.mark.parametrize("absent", [0, 3])
def test_a_rank_that_left_no_dump(tmp_path, absent):
    config = {"": {"name": "", "ranks": "[0, 1, 2, 3]"}}  # as gloo writes it, under no name
    for rank in {0, 1, 2, 3} - {absent}:
        dump(tmp_path, rank, [entry(i, i + 1, retired=i < 8) for i in range(9)], pg_config=config)
    verdict = diagnose_dumps(tmp_path)
    assert (verdict.kind, verdict.ranks) == ("H1", (absent,))
    assert any(f"rank {absent}: there is no file" in line for line in verdict.not_seen)


def test_a_rank_that_left_no_dump_though_nobody_waits(tmp_path):
    """Gloo calls operations that failed retired: the death of a rank shows in nothing else."""
    config = {"": {"name": "", "ranks": "[0, 1, 2, 3]"}}
    for rank in (0, 1, 3):
        dump(tmp_path, rank, [entry(i, i + 1) for i in range(9)], pg_config=config)
    verdict = diagnose_dumps(tmp_path)
    assert (verdict.kind, verdict.ranks, verdict.confidence) == ("H1", (2,), 0.5)
    for rank in (1, 3):  # somebody has copied a part of them
        (tmp_path / f"trace_rank_{rank}.json").unlink()
    assert diagnose_dumps(tmp_path).kind == "healthy"


def test_members_that_nobody_can_have_are_refused(tmp_path):
    dump(tmp_path, 0, [entry(0, 1)], pg_config={"": {"name": "", "ranks": "[0, 9999999]"}})
    with pytest.raises(UsageError, match="rank 9999999"):
        read_dumps(tmp_path)


def test_another_operation(tmp_path):
    job(tmp_path, [9, 9, 9, 9], profiling_name="gloo:broadcast")
    verdict = diagnose_dumps(tmp_path)
    assert (verdict.kind, verdict.ranks, verdict.seq) == ("H2", (0,), 9)


def test_another_shape(tmp_path):
    job(tmp_path, [9, 9, 9, 9], input_sizes=[[60, 2]])
    assert (diagnose_dumps(tmp_path).kind, diagnose_dumps(tmp_path).ranks) == ("H2", (0,))


def test_a_healthy_job(tmp_path):
    for rank in range(3):
        path = dump(tmp_path, rank, [entry(i, i + 1) for i in range(20)])
        os.utime(path, ns=(2_000_000_000, 2_000_000_000))
    assert diagnose_dumps(tmp_path).kind == "healthy"


def test_waiting_for_a_short_time_is_no_hang(tmp_path):
    job(tmp_path, [9, 9, 8])
    for path in tmp_path.iterdir():
        os.utime(path, ns=(3_000_000_000, 3_000_000_000))
    assert diagnose_dumps(tmp_path).kind == "healthy"


def test_members_of_groups(tmp_path):
    """A group whose members are stated knows who is missing; one of which nothing is stated does not."""
    config = {"1": {"name": "pair", "desc": "", "ranks": "[0, 2]"}}
    group = ("pair", "a pair")
    dump(tmp_path, 0, [entry(0, 1), entry(1, 1, group=group, retired=False)], pg_config=config)
    dump(tmp_path, 1, [entry(0, 1)])
    dump(tmp_path, 2, [entry(0, 1)])
    assert diagnose_dumps(tmp_path).ranks == (2,)
    dump(tmp_path, 0, [entry(0, 1), entry(1, 1, group=group, retired=False)])
    verdict = diagnose_dumps(tmp_path)
    assert verdict.kind == "H3"
    assert any("members are those that were seen" in line for line in verdict.not_seen)


def test_point_to_point(tmp_path):
    send = {"is_p2p": True, "profiling_name": "nccl:send 0->1"}
    recv = {"is_p2p": True, "profiling_name": "nccl:recv 1<-0"}
    dump(tmp_path, 0, [entry(0, 1), entry(1, 1, **send), entry(2, 1, **send, retired=False)])
    dump(tmp_path, 1, [entry(0, 1), entry(1, 1, **recv)])
    snapshot, trace = read_dumps(tmp_path)
    assert snapshot.groups.names == ("0", "0: 0>1")
    assert trace.num_records == 5
    verdict = diagnose_dumps(tmp_path)
    assert (verdict.kind, verdict.ranks, verdict.communicator) == ("H1", (1,), "0: 0>1")


def test_call_sites_and_timings(tmp_path):
    frames = [
        {"name": "all_reduce", "filename": "/x/torch/distributed/a.py", "line": 1},
        {"name": "step", "filename": "/x/t.py", "line": 8},
    ]
    dump(tmp_path, 0, [entry(0, 1, frames=frames, duration_ms=2.5, state="completed", retired=False)])
    snapshot, trace = read_dumps(tmp_path)
    assert list(snapshot.texts.values()) == ["t.py:8 step"]
    assert trace.columns["inside"].tolist() == pytest.approx([0.0025])
    assert snapshot.done.tolist() == [1]


def test_coalesced_operations_are_left_out(tmp_path):
    dump(tmp_path, 0, [entry(0, 1), entry(1, 1), entry(2, 2)])
    snapshot, trace = read_dumps({0: tmp_path / "trace_rank_0.json"})
    assert trace.num_records == 2
    assert any("coalesced" in note for note in snapshot.notes)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_pickles_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rank_0.json"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FormatError, match="pickle"):
        diagnose_dumps(tmp_path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", Corrupt),
        ("[", Corrupt),
        ("[" * 100_000, Corrupt),
        ("{}", Corrupt),
        ('{"version": 2}', Corrupt),
        ('{"version": "3.0"}', NewerVersion),
        ('{"version": "1.9"}', NewerVersion),
        ('{"version": "2.1", "entries": [{}]}', Corrupt),
        ('{"version": "2.1", "entries": [7]}', Corrupt),
        ('{"version": "2.1", "pg_config": 7}', Corrupt),
        ("\udcff", Corrupt),
    ],
)
def test_damaged_dumps_are_clear_errors(tmp_path, text, error):
    (tmp_path / "rank_0.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(error):
        diagnose_dumps(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"collective_seq_id": -1},
        {"collective_seq_id": 2**70},
        {"time_created_ns": -5},
        {"input_sizes": [[-3]]},
        {"duration_ms": -1.0},
        {"process_group": ["0"]},
        {"profiling_name": None},
    ],
    ids=str,
)
def test_impossible_entries_are_refused(tmp_path, wrong):
    dump(tmp_path, 0, [entry(0, 1) | wrong])
    with pytest.raises(Corrupt):
        diagnose_dumps(tmp_path)


@pytest.mark.parametrize(
    "odd",
    [
        {"collective_seq_id": 2**61},
        {"input_sizes": [[2**61, 2**61]]},
        {"time_created_ns": 2**61},
        {"is_p2p": True, "profiling_name": "nccl:send 0->9999999"},
        {"is_p2p": True, "profiling_name": "nccl:send"},
        {"profiling_name": ""},
        {"record_id": 2**61},
    ],
    ids=str,
)
def test_odd_entries_are_left_out_or_kept(tmp_path, odd):
    dump(tmp_path, 0, [entry(0, 1), entry(1, 2) | odd])
    dump(tmp_path, 1, [entry(0, 1), entry(1, 2)])
    assert diagnose_dumps(tmp_path).kind


def test_names_of_files(tmp_path):
    with pytest.raises(FormatError, match="no dumps"):
        read_dumps(tmp_path)
    dump(tmp_path, 0, [entry(0, 1)]).rename(tmp_path / "trace.json")
    with pytest.raises(UsageError, match="does not name its rank"):
        read_dumps(tmp_path)
    (tmp_path / "trace.json").rename(tmp_path / "a_0.json")
    dump(tmp_path, 0, [entry(0, 1)])
    with pytest.raises(UsageError, match="both of rank 0"):
        read_dumps(tmp_path)
    with pytest.raises(UsageError, match="ranks"):
        read_dumps({2**40: tmp_path / "a_0.json"})
