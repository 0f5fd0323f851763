"""Jobs that are launched: their environment, their end, and the signals that reach them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from trimtab.diagnose.frame import Writer, frame_path
from trimtab.diagnose.launch import AUTOLOAD, FOLDER, Launched, environment, new_folder
from trimtab.errors import UsageError


def test_the_environment_loads_the_probe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = environment(Path("here"), {"PYTHONPATH": "a:b", "X": "1"})
    assert found == {"X": "1", FOLDER: str(tmp_path / "here"), "PYTHONPATH": f"{AUTOLOAD}{os.pathsep}a:b"}
    assert environment(tmp_path, {})["PYTHONPATH"] == str(AUTOLOAD)


def test_folders_are_new():
    folders = [new_folder(), new_folder()]
    assert folders[0] != folders[1]
    for folder in folders:
        assert not list(folder.iterdir())
        folder.rmdir()


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_exit_statuses_are_those_of_a_shell(tmp_path, script, status):
    with Launched(["sh", "-c", script], tmp_path) as job:
        assert job.wait(30) == status


def test_the_folder_is_passed_on(tmp_path):
    command = ["sh", "-c", f"echo ${FOLDER}"]
    with open(tmp_path / "out", "w+") as out, Launched(command, tmp_path / "new" / "er", stdout=out) as job:
        assert job.wait(30) == 0
        out.seek(0)
        assert out.read() == f"{tmp_path}/new/er\n"


def test_old_files_are_not_mixed_with_new_ones(tmp_path):
    Writer(frame_path(tmp_path, 0), rank=0, world_size=1).close()
    with pytest.raises(UsageError, match="another job"):
        Launched(["true"], tmp_path)


def test_commands_that_do_not_exist(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(UsageError, match="no-such-command cannot be run: No such file"),
        Launched(["no-such-command"], tmp_path),
    ):
        pass
    assert signal.getsignal(signal.SIGTERM) is before


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"


def test_a_job_that_does_not_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("trimtab.diagnose.launch._PATIENCE", 0.2)
    command = [sys.executable, "-c", STUBBORN]
    with open(tmp_path / "out", "w+") as out, Launched(command, tmp_path, stdout=out) as job:
        wait_for(lambda: (tmp_path / "out").stat().st_size)
        job.end()
        assert job.wait(0) == 137


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_are_passed_on(tmp_path, number):
    script = f"import signal, sys, time; signal.signal({int(number)}, lambda *_: sys.exit(9)); print(1, flush=True)"
    command = [sys.executable, "-c", f"{script}\nwhile True: time.sleep(0.05)"]
    before = signal.getsignal(number)
    with open(tmp_path / "out", "w+") as out, Launched(command, tmp_path, stdout=out) as job:
        wait_for(lambda: (tmp_path / "out").stat().st_size)
        assert not job.was_signalled
        os.kill(os.getpid(), number)
        assert job.wait(30) == 9
    assert job.was_signalled
    assert signal.getsignal(number) is before


def test_signals_are_not_lost_before_the_job_starts(tmp_path, monkeypatch):
    start = Launched._start

    def start_late(job):
        os.kill(os.getpid(), signal.SIGTERM)
        return start(job)

    monkeypatch.setattr(Launched, "_start", start_late)
    with Launched(["sleep", "60"], tmp_path) as job:
        assert job.wait(30) == 128 + signal.SIGTERM


def wait_for(condition) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
