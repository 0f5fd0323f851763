"""What people and programs are told about a folder: facts, states, words and the next step."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from trimtab.diagnose.frame import Writer, frame_path
from trimtab.diagnose.look import Look
from trimtab.diagnose.report import facts, next_step, report, report_text
from trimtab.diagnose.simulate import Fault, Job
from trimtab.diagnose.standing import STATES, Standing
from trimtab.errors import FormatError

STOP = Fault("stop", rank=5, step=8, place=3)


def test_a_report_says_who_why_and_what_next(looked):
    look = looked(STOP)
    lines = report_text(look, look.verdict()).splitlines()
    assert lines[0] == "no: rank 5 did not enter operation 9 of 'data 1'; 7 ranks wait"
    assert lines[1].startswith("    H1, hang: some ranks never reached")
    body = "\n".join(lines)
    for word in (
        "files of the probe of 8 of 8 ranks",
        "7 inside, 1 outside",
        "confidence    0.97",
        "because       rank 1 waits in operation 9 of 'data 1'",
        "not seen      the clock of 8 ranks",
        "next          Look at the stack of rank 5",
        f"py-spy dump --pid {os.getpid()}",
    ):
        assert word in body


def test_a_healthy_job_is_a_yes(looked):
    look = looked()
    text = report_text(look, look.verdict())
    assert text.startswith("yes: nothing is wrong\n\n")
    assert facts(look)["ranks"] == "8 finished"


def test_reports_are_plain_values(looked):
    look = looked(STOP)
    found = json.loads(json.dumps(report(look, look.verdict())))
    assert (found["kind"], found["ranks"], found["source"]) == ("H1", [5], "frames")
    assert found["states"] == {"inside": 7, "outside": 1}
    assert found["next"].startswith("Look at the stack of rank 5")


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (Fault("other", rank=2, step=8, place=2), "Compare the call of rank 2"),
        (Fault("freeze", rank=2, step=8, place=2), "Check the network of the ranks"),
        (Fault("slow", rank=5, step=8, factor=3.0), "Compare rank 5 with the others"),
        (Fault("link", rank=3, step=8, factor=60.0), "Check the link of rank 3"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_the_next_step_follows_the_kind(looked, fault, word):
    look = looked(fault)
    assert next_step(look.verdict(), look).startswith(word)


def test_where_ranks_stand(looked):
    look = looked(STOP)
    standing = Standing.of(look)
    assert [STATES[state] for state in standing.state] == ["inside"] * 5 + ["outside"] + ["inside"] * 2
    row = standing.row(1)
    assert (row["operation"], row["communicator"], row["seq"], row["step"]) == ("all_reduce", "data 1", 9, 9)
    assert row["site"] == "train.py:80"
    assert standing.row(5)["lag_operations"] == 1
    assert standing.most_telling(3, [5])[0] < 8
    assert 5 in standing.most_telling(1, [5])
    assert standing.most_telling(99) == list(range(8))
    assert standing.most_telling(2, [400, -1]) == standing.most_telling(2)


def test_a_rank_waits_in_what_its_program_waits_for(tmp_path):
    """An asynchronous operation that is under way is not what holds the rank up."""
    writer = Writer(frame_path(tmp_path, 0), rank=0, world_size=2)
    first, second = (writer.communicator(name, [0, 1]) for name in ("a", "b"))
    writer.enter(writer.prepare(first, "all_reduce", 5))
    writer.enter(writer.prepare(second, "all_gather", 6, flags=1))
    row = Standing.of(Look.of_folder(tmp_path)).row(0)
    assert (row["state"], row["operation"], row["communicator"]) == ("inside", "all_reduce", "a")
    assert Standing.of(Look.of_folder(tmp_path)).row(1)["state"] == "absent"


def test_states_of_waiting_and_pausing_ranks(looked):
    look = looked()
    look.snapshot.finished[:] = False
    look.snapshot.waiting[2], look.snapshot.paused[3] = 7.5, 60.0
    standing = Standing.of(look)
    assert standing.counts() == {"paused": 1, "waits for data": 1, "outside": 6}
    assert standing.row(2)["seconds"] == 7.5


def test_dumps_are_recognised(tmp_path):
    (tmp_path / "rank_0.json").write_text('{"version": "2.10", "entries": []}')
    assert Look.of_folder(tmp_path).source == "dumps"


def test_frames_go_before_dumps(looked, tmp_path):
    (tmp_path / "rank_0.json").write_text("nonsense")
    assert looked().source == "frames"


@pytest.mark.parametrize(("name", "word"), [("x", "nor Flight Recorder dumps"), ("nccl_trace_rank_0", "never opened")])
def test_folders_of_nothing(tmp_path, name, word):
    (tmp_path / name).write_bytes(b"\x80\x04]")
    with pytest.raises(FormatError, match=word if name != "x" else "nor Flight Recorder dumps"):
        Look.of_folder(tmp_path)


def test_states_alone(looked, tmp_path):
    looked(STOP)
    look = Look.of_folder(tmp_path, with_trace=False)
    assert look.trace is None
    assert look.verdict().ranks == (5,)
    assert "operations" not in facts(look)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_hostile_folder_is_read_without_harm(looked, tmp_path):
    look = looked(STOP)
    os.mkfifo(tmp_path / "rank-000900.frame")
    (tmp_path / "rank-000901.frame").mkdir()
    (tmp_path / "rank-000902.frame").symlink_to("nowhere")
    (tmp_path / "rank-000903.frame").write_bytes(os.urandom(9000))
    found = Look.of_folder(tmp_path)
    assert found.verdict().ranks == look.verdict().ranks
    assert sum("could not be read" in line for line in found.verdict().not_seen) == 4


def test_two_jobs_in_one_folder(looked, tmp_path):
    """The newer one counts; the other is told."""
    looked(STOP)
    other = Writer(frame_path(tmp_path, 7), rank=0, world_size=2, job=9)
    other.communicator("world", [0, 1])
    verdict = Look.of_folder(tmp_path).verdict()
    assert sum("is of another job" in line for line in verdict.not_seen) == 7
    assert any("no file" in line for line in verdict.not_seen)


def test_a_rank_that_left_no_file(looked, tmp_path):
    looked(Fault("stop", rank=5, step=0, place=0))
    frame_path(tmp_path, 5).unlink()
    look = Look.of_folder(tmp_path)
    verdict = look.verdict()
    assert (verdict.kind, verdict.ranks) == ("H1", (5,))
    assert Standing.of(look).counts()["absent"] == 1
    assert "7 of 8 ranks" in facts(look)["from"]
    assert "whether rank 5 was started" in next_step(verdict, look)


def test_hostile_names_cannot_write_to_the_terminal(tmp_path):
    writer = Writer(frame_path(tmp_path, 0), rank=0, world_size=2)
    writer.enter(writer.prepare(writer.communicator("\x1b[2Jworld\n", [0, 1]), "all_reduce", 5))
    writer.restore_ring(np.zeros((4096, 64), np.uint8))
    look = Look.of_folder(tmp_path)
    text = report_text(look, look.verdict())
    assert "\x1b" not in text
    assert r"\x1b[2Jworld\n" in text


def test_thousands_of_ranks_are_told_in_few_words(looked):
    look = looked(Fault("stop", rank=200, step=2, place=3), job=Job(tensor=4, pipeline=4, data=16), num_steps=4)
    text = report_text(look, look.verdict())
    assert len(text) < 2500
    assert "255 inside, 1 outside" in text
