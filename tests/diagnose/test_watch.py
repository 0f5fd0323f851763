"""Watching a job: what is remembered between looks, and jobs that are over."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from trimtab.diagnose import watch
from trimtab.diagnose.frame import Writer, frame_path, signature
from trimtab.diagnose.simulate import Fault, Job
from trimtab.diagnose.verdict import Host, Limits
from trimtab.diagnose.watch import Watch, gone
from trimtab.errors import FormatError


def ranks(folder, num: int) -> list:
    """Writers of ranks that have made three operations, and what enters and leaves the next."""
    found = []
    for rank in range(num):
        writer = Writer(frame_path(folder, rank), rank=rank, world_size=num)
        call = writer.prepare(writer.communicator("world", range(num)), "all_reduce", signature("all_reduce"))
        for _ in range(3):
            writer.leave(call, writer.enter(call))
        found.append((writer, call))
    return found


def test_a_job_is_watched_to_its_end(tmp_path):
    watching = Watch(tmp_path, limits=Limits(hang_seconds=0.2))
    with pytest.raises(FormatError):
        watching.look()
    jobs = ranks(tmp_path, 3)
    view = watching.look()
    assert view.verdict.is_healthy and not view.ended
    numbers = [writer.enter(call) for writer, call in jobs[:2]]
    assert watching.look().verdict.is_healthy
    time.sleep(0.3)
    view = watching.look()
    assert (view.verdict.kind, view.verdict.ranks) == ("H1", (2,))
    assert view.standing.counts() == {"inside": 2, "outside": 1}
    jobs[2][0].leave(jobs[2][1], jobs[2][0].enter(jobs[2][1]))
    for (writer, call), number in zip(jobs, numbers, strict=False):
        writer.leave(call, number)
    assert watching.look().verdict.is_healthy
    for writer, _ in jobs:
        writer.close()
    view = watching.look()
    assert view.verdict.is_healthy and view.ended


def test_slowness_stands_between_readings_of_rings(tmp_path, monkeypatch):
    Job(tensor=2, data=2).run(faults=[Fault("slow", rank=1, step=12, factor=3.0)], num_steps=24).write(tmp_path)
    monkeypatch.setattr(watch, "_has_ended", lambda look, hosts: False)
    monkeypatch.setattr(watch, "_SHARE", 1e-6)
    watching = Watch(tmp_path, confirm=False)
    first, second = watching.look(), watching.look()
    assert first.look.trace is not None
    assert second.look.trace is None
    assert first.verdict.kind == second.verdict.kind == "S1"


def test_slowness_must_stay(tmp_path, monkeypatch):
    """One look at a job that begins, or was held up for a moment, is not enough."""
    Job(tensor=2, data=2).run(faults=[Fault("slow", rank=1, step=12, factor=3.0)], num_steps=24).write(tmp_path)
    monkeypatch.setattr(watch, "_has_ended", lambda look, hosts: False)
    monkeypatch.setattr(watch, "_LONGEST_REST", 0.0)
    watching = Watch(tmp_path)
    first, second = watching.look().verdict, watching.look().verdict
    assert (first.kind, second.kind, second.ranks) == ("healthy", "S1", (1,))
    assert any("in this look alone" in line for line in first.not_seen)


def test_a_hang_seen_from_states_is_looked_into(tmp_path, monkeypatch):
    """After a divergence the ranks behind are the healthy ones: states alone would name them."""
    monkeypatch.setattr(watch, "_SHARE", 1e-6)
    jobs = ranks(tmp_path, 3)
    watching = Watch(tmp_path, limits=Limits(hang_seconds=0.1))
    assert watching.look().verdict.is_healthy
    for rank, (writer, call) in enumerate(jobs):
        other = writer.prepare(0, "broadcast", signature("broadcast", root=0))
        writer.leave(call, writer.enter(other if rank == 1 else call))
        if rank != 0:
            writer.enter(call)
    time.sleep(0.2)
    view = watching.look()
    assert view.look.trace is not None
    assert (view.verdict.kind, view.verdict.ranks) == ("H2", (1,))


def test_observers_are_asked(tmp_path):
    jobs = ranks(tmp_path, 3)
    for writer, call in jobs[:2]:
        writer.enter(call)
    seen = []

    def observe(files):
        seen.append([file.rank for file in files])
        return {2: Host(state="T", stack=("load",))}, np.zeros(0)

    time.sleep(0.05)
    view = Watch(tmp_path, limits=Limits(hang_seconds=0.01), observe=observe).look()
    assert seen == [[0, 1, 2]]
    assert "its process is stopped" in view.verdict.summary


DIES = """
import sys
from trimtab.diagnose.frame import Writer, frame_path, signature
rank = int(sys.argv[2])
writer = Writer(frame_path(sys.argv[1], rank), rank=rank, world_size=3)
call = writer.prepare(writer.communicator("world", range(3)), "all_reduce", signature("all_reduce"))
for _ in range(3):
    writer.leave(call, writer.enter(call))
if rank != 1:
    writer.enter(call)
"""


def leave_behind(folder, rank: int) -> None:
    subprocess.run([sys.executable, "-c", DIES, str(folder), str(rank)], check=True)


def test_a_dead_rank_is_seen_at_once(tmp_path):
    """Nobody needs to wait for as long as a hang takes."""
    jobs = ranks(tmp_path, 3)
    for rank in (0, 2):
        jobs[rank][0].enter(jobs[rank][1])
    leave_behind(tmp_path, 1)
    hosts, _ = gone(Watch(tmp_path).look().look.files)
    assert {rank: host.state for rank, host in hosts.items()} == {1: "X"}
    view = Watch(tmp_path).look()
    assert view.verdict.ranks == (1,) and not view.ended
    assert "its process is dead" in view.verdict.summary


def test_what_died_is_read_again(tmp_path):
    """A rank may fail and end between the reading of its file and the look at its process."""
    jobs = ranks(tmp_path, 3)
    jobs[0][0].enter(jobs[0][1])
    leave_behind(tmp_path, 1)

    def observe(files):
        jobs[2][0].failed(jobs[2][0].enter(jobs[2][1]))
        return {1: Host(state="X"), 2: Host(state="X")}, None

    view = Watch(tmp_path, observe=observe).look()
    assert (view.verdict.kind, view.verdict.ranks) == ("H1", (1,))


def test_a_job_that_is_over_is_told_by_who_was_missing(tmp_path):
    """All processes are gone, which says nothing about any one of them."""
    for rank in range(3):
        leave_behind(tmp_path, rank)
    view = Watch(tmp_path).look()
    assert view.ended
    assert (view.verdict.kind, view.verdict.ranks) == ("H1", (1,))
    assert view.verdict.confidence < 0.7
    assert any("may have been ended from outside" in line for line in view.verdict.not_seen)
    assert not any(" for " in line and line.endswith(" s") for line in view.verdict.evidence)
