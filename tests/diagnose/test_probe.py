"""The probe in real jobs: it sees everything, changes nothing, and never harms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.dist.launch import run_ranks
from trimtab.diagnose import Host, Limits, Probe, Snapshot, Trace, Watcher, diagnose_folder
from trimtab.diagnose.frame import FAILED, OPS, Writer, frame_path, read, read_folder, signature
from trimtab.diagnose.host import read_stack, stack_path, write_stack
from trimtab.diagnose.injection import from_text, inject
from trimtab.diagnose.probe import default_folder, job_number
from trimtab.errors import UsageError

RANKS = "tests.diagnose.probe_ranks"
NATIVE = pytest.param("compiled", marks=pytest.mark.slow)  # it may have to be compiled first
KINDS = pytest.mark.parametrize("kind", ["python", NATIVE])


@KINDS
def test_everything_is_seen_and_nothing_changed(tmp_path, kind):
    run_ranks(RANKS, 2, "pair", str(tmp_path), kind, folder=tmp_path)
    files, notes = read_folder(tmp_path / "frames")
    assert not notes
    assert [file.finished for file in files] == [True, True]
    for file in files:
        ring = file.ring()
        assert {OPS[op] for op in ring["op"][ring["stamp"] > 0]} >= {
            "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather", "scatter",
            "barrier", "send", "recv",
        }  # fmt: skip
        assert (file.frames["seq"] == file.frames["done"]).all()
        assert not (ring["flags"] & FAILED).any()
    snapshot, trace = Snapshot.of_folder(tmp_path / "frames"), Trace.of_folder(tmp_path / "frames")
    names = snapshot.groups.names
    assert {name for name in names if ">" in name} == {"group 0: 0>1", "group 0: 1>0"}
    for c in range(len(names)):  # both ranks tell the same story
        start, first, count = trace.blocks(c)
        assert len(set(zip(first.tolist(), count.tolist(), strict=True))) == 1, names[c]
        a, b = (trace.columns["signature"][at : at + n] for at, n in zip(start, count, strict=True))
        assert np.array_equal(a, b), names[c]
    verdict = diagnose_folder(tmp_path / "frames")
    assert verdict.kind == "healthy"
    assert any("reducer" in line for line in verdict.not_seen) == (kind == "python")


@KINDS
@pytest.mark.parametrize("what", ["solo", "full", "faults"])
def test_one_rank(tmp_path, what, kind):
    run_ranks(RANKS, 1, what, str(tmp_path), kind, folder=tmp_path)


@KINDS
def test_a_probe_that_dies_does_no_harm(tmp_path, kind):
    said = run_ranks(RANKS, 2, "death", str(tmp_path), kind, folder=tmp_path)
    assert ["blind" in text for text in said] == [True, False]
    verdict = diagnose_folder(tmp_path / "frames", limits=Limits(hang_seconds=0.0))
    assert verdict.kind == "healthy"
    assert any("rank 0 did since the probe there gave up" in line for line in verdict.not_seen)


def test_a_rank_that_never_started(tmp_path):
    for rank in range(2):
        writer = Writer(frame_path(tmp_path, rank), rank=rank, world_size=3)
        writer.enter(writer.prepare(writer.communicator("world", range(3)), "barrier", signature("barrier")))
    verdict = diagnose_folder(tmp_path, limits=Limits(hang_seconds=0.0))
    assert (verdict.kind, verdict.ranks) == ("H1", (2,))
    assert any("no file" in line for line in verdict.not_seen)


def test_sitecustomize_starts_it_and_runs_the_other_one(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.the_other_one = True\n")
    script = tmp_path / "job.py"
    script.write_text(
        "print('lazy', 'trimtab' not in __import__('sys').modules)\n"
        "import torch, torch.distributed as dist\n"
        f"dist.init_process_group('gloo', init_method='file://{tmp_path}/meeting', rank=0, world_size=1)\n"
        "dist.all_reduce(torch.ones(2))\n"
        "print('other', the_other_one)\n"
    )
    from trimtab.diagnose import probe

    autoload = os.path.join(os.path.dirname(probe.__file__), "autoload")
    path = os.pathsep.join([autoload, str(tmp_path), *(p for p in sys.path if p)])
    env = {
        **os.environ, "PYTHONPATH": path, "TRIMTAB_DIAGNOSE": str(tmp_path / "frames"), "GLOO_SOCKET_IFNAME": "lo",
        "TRIMTAB_DIAGNOSE_HOOKS": "python", "TRIMTAB_INJECT": "slow:0:op1:0.01", "RANK": "0", "WORLD_SIZE": "1",
    }  # fmt: skip
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["lazy", "True", "other", "True"]
    file = read(frame_path(tmp_path / "frames", 0))
    assert file.finished
    assert file.frames["seq"].max() >= 1


def test_folders_and_jobs(monkeypatch):
    monkeypatch.setenv("TRIMTAB_DIAGNOSE", "/somewhere/else")
    assert str(default_folder()) == "/somewhere/else"
    monkeypatch.delenv("TRIMTAB_DIAGNOSE")
    monkeypatch.setenv("MASTER_PORT", "1234")
    first = job_number()
    assert f"{first:08x}" in str(default_folder())
    monkeypatch.setenv("MASTER_PORT", "1235")
    assert job_number() not in (0, first)


@pytest.mark.parametrize("options", [{"hooks": "magic"}, {"capacity": 100}, {"capacity": 0}])
def test_impossible_settings(options, tmp_path):
    with pytest.raises(UsageError):
        Probe(tmp_path, **options)


@pytest.mark.parametrize("text", ["", "sleep", "sleep:1", "dance:1:2", "sleep:x:2", "sleep:1:2:-3", "sleep:1:op"])
def test_faults_that_cannot_be(text):
    with pytest.raises(UsageError):
        from_text(text)


def test_faults_from_text():
    fault = from_text("busy:3:op40:2.5")
    assert (fault.fault, fault.rank, fault.at_step, fault.at_op, fault.seconds) == ("busy", 3, None, 40, 2.5)
    assert from_text("kill:0:7").at_step == 7
    with pytest.raises(UsageError):
        inject("sleep", rank=1)
    with pytest.raises(UsageError):
        inject("sleep", rank=1, at_step=1, at_op=1)
    with pytest.raises(UsageError):
        inject("dance", rank=1, at_step=1)  # pyrefly: ignore


class TestHost:
    """What the host says of processes, seen from outside."""

    CODE = """
import os, socket, sys, time
from trimtab.diagnose.frame import Writer, frame_path
writer = Writer(frame_path(sys.argv[1], int(sys.argv[2])), rank=int(sys.argv[2]), world_size=2)
if sys.argv[2] == "0":
    door = socket.create_server(("127.0.0.1", 0))
    open(sys.argv[1] + "/port.part", "w").write(str(door.getsockname()[1]))
    os.rename(sys.argv[1] + "/port.part", sys.argv[1] + "/port")
    link, _ = door.accept()
    while link.recv(1 << 20): pass
while not os.path.exists(sys.argv[1] + "/port"): time.sleep(0.01)
link = socket.create_connection(("127.0.0.1", int(open(sys.argv[1] + "/port").read())))
while True:
    link.sendall(bytes(100_000))
    end = time.monotonic() + 0.02
    while time.monotonic() < end: pass
"""

    def test_processes_and_connections(self, tmp_path):
        processes = [subprocess.Popen([sys.executable, "-c", self.CODE, str(tmp_path), str(rank)]) for rank in (0, 1)]
        try:
            watcher, end = Watcher(), time.monotonic() + 60
            while time.monotonic() < end:
                time.sleep(0.5)
                if len(list(tmp_path.glob("*.frame"))) < 2:
                    continue
                hosts, edges = watcher.look(read_folder(tmp_path)[0])
                if edges.size and edges["sent"].max() > 0:
                    break
            assert {(int(e["rank"]), int(e["peer"])) for e in edges} == {(0, 1), (1, 0)}
            assert edges["rank"][np.argmax(edges["sent"])] == 1
            assert (edges["busy"] >= 0).all() and (edges["busy"] <= 1).all()
            assert hosts[1].cpu_share is not None and hosts[1].cpu_share > 0
            processes[1].send_signal(19)
            processes[0].kill()
            processes[0].wait()
            time.sleep(0.1)
            hosts, _ = watcher.look(read_folder(tmp_path)[0])
            assert hosts[0].is_dead
            assert hosts[1].state == "T"
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def test_one_that_failed_in_an_operation_is_no_cause(self, tmp_path):
        code = """
import sys
from trimtab.diagnose.frame import Writer, frame_path
writer = Writer(frame_path(sys.argv[1], 0), rank=0, world_size=2)
call = writer.prepare(writer.communicator("world", [0, 1]), "barrier", 7)
number = writer.enter(call)
writer.enter(call)  # another one was begun before
if sys.argv[2] == "failed": writer.failed(number)
"""
        for what, expected in (("failed", {}), ("died", {0: Host(state="X")})):
            subprocess.run([sys.executable, "-c", code, str(tmp_path), what], check=True)
            assert Watcher().look(read_folder(tmp_path)[0])[0] == expected

    def test_stacks(self, tmp_path):
        write_stack(tmp_path, 3, ["a.py:1 f", "a.py:9 g"])
        assert read_stack(tmp_path, 3) == ("a.py:1 f", "a.py:9 g")
        for damaged in (b"", b"[1]", b"nonsense", b"[" * 100_000, b'"' + b"x" * 100_000):
            stack_path(tmp_path, 3).write_bytes(damaged)
            assert read_stack(tmp_path, 3) == ()
        write_stack(tmp_path, 3, ())
        assert not stack_path(tmp_path, 3).exists()


@pytest.mark.parametrize(
    "case",
    [
        "sleep all-reduce 2 0 python",
        "kill pipeline 2 0 python",
        "other ddp 2 0 python",
        pytest.param("skip fsdp2 2 0 python", marks=pytest.mark.slow),
        pytest.param("stop ddp 2 0 compiled", marks=pytest.mark.slow),
        pytest.param("slow all-reduce 2 0 compiled", marks=pytest.mark.slow),
        pytest.param("link all-reduce 4 0 compiled", marks=pytest.mark.slow),
    ],
)
def test_real_faults(tmp_path, case):
    """A sample of `bench.diagnose_matrix`."""
    out = tmp_path / "found.json"
    subprocess.run(
        [sys.executable, "-m", "bench.diagnose_matrix", "case", *case.split(), "--out", str(out)],
        check=True, timeout=200, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert (found["kind"], found["ranks"]) == (found["truth"], found["true_ranks"]), found
