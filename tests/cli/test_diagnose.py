"""trimtab diagnose: what report, watch and run print, write and exit with."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.cli.conftest import one_line_error
from trimtab.diagnose.frame import Writer, frame_path
from trimtab.diagnose.simulate import Fault, Job


@pytest.fixture(scope="module")
def hung(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hung")
    Job(tensor=2, pipeline=2, data=2).run(faults=[Fault("stop", rank=5, step=8, place=3)], num_steps=12).write(folder)
    return folder


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("healthy")
    Job(tensor=2, data=2).run(num_steps=12).write(folder)
    return folder


class TestReport:
    def test_a_fault_is_a_no(self, trimtab, hung):
        result = trimtab("diagnose", "report", hung)
        assert result.exit_code == 1
        assert result.stdout.startswith("no: rank 5 did not enter operation 9 of 'data 1'; 7 ranks wait\n")
        assert result.stderr == ""

    def test_health_is_a_yes(self, trimtab, healthy):
        result = trimtab("diagnose", "report", healthy)
        assert result.exit_code == 0
        assert result.stdout.startswith("yes: nothing is wrong\n")

    def test_json(self, trimtab, hung):
        result = trimtab("diagnose", "report", hung, "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)
        assert (found["kind"], found["ranks"], found["seq"]) == ("H1", [5], 9)

    def test_files(self, trimtab, hung, tmp_path):
        files = {name: tmp_path / name for name in ("html", "perfetto", "prometheus")}
        options = [text for name, path in files.items() for text in (f"--{name}", path)]
        result = trimtab("diagnose", "report", hung, *options)
        assert result.exit_code == 1
        assert files["html"].read_text().startswith("<!doctype html>")
        assert json.loads(files["perfetto"].read_text())["metadata"]["verdict"]["ranks"] == [5]
        assert 'trimtab_diagnose_faulty_rank{rank="5"} 1\n' in files["prometheus"].read_text()
        one_line_error(trimtab("diagnose", "report", hung, *options), "exists", "--force")
        assert trimtab("diagnose", "report", hung, *options, "--force").exit_code == 1

    def test_metrics_to_stdout(self, trimtab, hung):
        result = trimtab("diagnose", "report", hung, "--prometheus", "-")
        assert result.exit_code == 1
        assert result.stdout.startswith("# HELP trimtab_diagnose_verdict ")
        one_line_error(trimtab("diagnose", "report", hung, "--prometheus", "-", "--json"), "both want stdout")

    def test_hang_seconds(self, trimtab, tmp_path):
        writers = [Writer(frame_path(tmp_path, rank), rank=rank, world_size=2) for rank in (0, 1)]
        for writer in writers:
            writer.communicator("world", [0, 1])
        writers[0].enter(writers[0].prepare(0, "all_reduce", 5))
        time.sleep(0.05)
        assert trimtab("diagnose", "report", tmp_path).exit_code == 0
        assert trimtab("diagnose", "report", tmp_path, "--hang-seconds", 0.01).exit_code == 1

    def test_dumps(self, trimtab, tmp_path):
        (tmp_path / "rank_0.json").write_text('{"version": "2.10", "entries": []}')
        result = trimtab("diagnose", "report", tmp_path, "--json", "--perfetto", tmp_path / "trace")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["source"] == "dumps"
        assert "no operations yet" in result.stderr
        assert not (tmp_path / "trace").exists()

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({}, ["no files of ranks", "nor Flight Recorder dumps"]),
            ({"rank-000000.frame": b"nonsense"}, ["no files of ranks that can be read", "8 bytes"]),
            ({"rank_0.json": b"\x80\x04N."}, ["pickles are never opened"]),
            ({"rank_0.json": b"{"}, ["no Flight Recorder dump"]),
            ({"trace.json": b"{}"}, ["does not name its rank"]),
        ],
    )
    def test_unreadable_folders_are_told_in_a_line(self, trimtab, tmp_path, files, words):
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        one_line_error(trimtab("diagnose", "report", tmp_path), *words)

    def test_missing_folders(self, trimtab, tmp_path):
        one_line_error(trimtab("diagnose", "report", tmp_path / "nowhere"), "nowhere", "check the name")
        one_line_error(trimtab("diagnose", "report", __file__), "test_diagnose.py")


class TestWatch:
    def test_once(self, trimtab, hung):
        result = trimtab("diagnose", "watch", hung, "--once")
        assert result.exit_code == 1
        lines = result.stdout.splitlines()
        assert "H1, confidence" in lines[0]
        assert lines[1].split()[:4] == ["rank", "state", "operation", "communicator"]
        assert sum(line.split()[:3] == ["5", "*", "outside"] for line in lines) == 1
        assert lines[-1] == "of 8 ranks: 7 inside, 1 outside"

    def test_it_ends_with_the_job(self, trimtab, healthy):
        result = trimtab("diagnose", "watch", healthy, "--json")
        assert result.exit_code == 0
        found = json.loads(result.stdout)
        assert found["ended"] is True
        assert [row["state"] for row in found["ranks_now"]] == ["finished"] * 4

    def test_lines_and_metrics_while_it_runs(self, start, tmp_path):
        writers = [Writer(frame_path(tmp_path, rank), rank=rank, world_size=2) for rank in (0, 1)]
        for writer in writers:
            call = writer.prepare(writer.communicator("world", [0, 1]), "all_reduce", 5)
            writer.enter(call)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        process = start("diagnose", "watch", tmp_path, "--json", "--interval", 0.1, "--prometheus-port", port)
        assert json.loads(process.stdout.readline())["states"] == {"inside": 2}
        assert process.stderr.readline() == f"trimtab: metrics are at http://127.0.0.1:{port}/metrics\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b'trimtab_diagnose_ranks{state="inside"} 2\n' in answer.read()
        for writer in writers:
            writer.leave(call, 1)
            writer.close()
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert json.loads(out.splitlines()[-1])["ended"] is True

    def test_it_stops_when_asked(self, start, hung):
        process = start("diagnose", "watch", hung, "--json", "--interval", 0.1)
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (130, "")

    @pytest.mark.parametrize("options", [["--interval", 0], ["--prometheus-port", 70000], ["--hang-seconds", 0]])
    def test_mistakes_are_told_in_a_line(self, trimtab, hung, options):
        one_line_error(trimtab("diagnose", "watch", hung, *options), options[0])


RANK = """
import os, sys, time
from trimtab.diagnose.frame import Writer, frame_path, signature
rank, kind = int(sys.argv[1]), sys.argv[2]
writer = Writer(frame_path(os.environ["TRIMTAB_DIAGNOSE"], rank), rank=rank, world_size=3)
call = writer.prepare(writer.communicator("world", range(3)), "all_reduce", signature("all_reduce"))
for i in range(20):
    if i == 10 and kind != "well":
        if rank == 1:
            sys.exit(3) if kind == "exit" else time.sleep(60)
        writer.enter(call)
        open(f"{__file__}.{rank}", "w").close()
        time.sleep(60)
    time.sleep(0.01)
    writer.leave(call, writer.enter(call))
writer.close()
os.write(1, b"done %d\\n" % rank)
"""
JOB = """
for rank in 0 1 2; do "$0" "$1" $rank $2 & pids="$pids $!"; done
if [ $2 = exit ]; then
    until [ -e "$1.0" -a -e "$1.2" ]; do sleep 0.05; done
    kill $pids
    exit 7
fi
wait
"""


@pytest.fixture
def job(tmp_path) -> list[str]:
    (tmp_path / "rank.py").write_text(RANK)
    return ["sh", "-c", JOB, sys.executable, str(tmp_path / "rank.py")]


class TestRun:
    def test_a_job_that_goes_well(self, start, job, tmp_path):
        folder = tmp_path / "files"
        process = start("diagnose", "run", "--dir", folder, "--interval", 0.2, "--", *job, "well")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert sorted(out.splitlines()) == ["done 0", "done 1", "done 2"]
        assert (
            err
            == f"trimtab: the files of the job are in {folder}; look at them with: trimtab diagnose report {folder}\n"
        )
        assert len(list(folder.glob("rank-*.frame"))) == 3

    def test_a_hang_is_told_and_ended(self, start, job, tmp_path):
        options = ["--interval", 0.2, "--hang-seconds", 0.5, "--timeout", 0.1, "--json"]
        process = start("diagnose", "run", "--dir", tmp_path / "files", *options, "--", *job, "hang")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1
        found = json.loads(out)
        assert (found["verdict"]["kind"], found["verdict"]["ranks"], found["exit_status"]) == ("H1", [1], 1)
        assert err.count("no: rank 1 did not enter operation 11 of 'world'") == 1
        assert "has lasted for 0.1 s more; the job is ended" in err

    def test_a_failure_is_explained(self, start, job, tmp_path):
        """One rank has left; the others were waiting for it when the job ended."""
        process = start("diagnose", "run", "--dir", tmp_path / "files", "--interval", 30, "--", *job, "exit")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 7
        assert "no: rank 1 did not enter operation 11 of 'world'; 2 ranks wait" in err
        assert "Read the end of the log of rank 1" in err

    def test_a_job_without_groups_is_told(self, start, tmp_path):
        process = start("diagnose", "run", "--json", "--dir", tmp_path / "files", "--", "sh", "-c", "echo x; exit 5")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 5
        assert json.loads(out)["verdict"] is None
        *said, last = err.splitlines()
        assert "x" in said and len(said) == 2
        assert last == "trimtab: no rank kept a file: " + NO_FILE

    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc to see when the job has begun")
    def test_signals_go_to_the_job(self, start, tmp_path):
        """No verdict on a job that somebody ended."""
        flag = tmp_path / "begun"
        script = f"trap 'exit 9' TERM; touch {flag}; while :; do sleep 0.05; done"
        process = start("diagnose", "run", "--dir", tmp_path / "files", "--", "sh", "-c", script)
        while not flag.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 9

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], ["there is no COMMAND", "-- torchrun"]),
            (["--", "no-such-command"], ["no-such-command cannot be run"]),
            (["--wrong", "--", "true"], ["--wrong"]),
            (["--timeout", -1, "--", "true"], ["--timeout"]),
        ],
    )
    def test_mistakes_are_told_in_a_line(self, trimtab, tmp_path, arguments, words):
        one_line_error(trimtab("diagnose", "run", *(["--dir", tmp_path] if arguments else []), *arguments), *words)

    def test_folders_of_other_jobs_are_refused(self, trimtab, hung):
        one_line_error(trimtab("diagnose", "run", "--dir", hung, "--", "true"), "files of another job")


NO_FILE = "the job made no process group, or its Python does not find trimtab"


def test_folders_are_in_memory_by_default(start):
    process = start("diagnose", "run", "--", "true")
    _, err = process.communicate(timeout=60)
    folder = Path(err.split(" are in ")[1].split(";")[0])
    assert folder.is_dir()
    assert os.access("/dev/shm", os.W_OK) == str(folder).startswith("/dev/shm/")
    folder.rmdir()
