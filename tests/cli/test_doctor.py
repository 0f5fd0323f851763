"""trimtab doctor and papers: reports about this machine and about the project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import one_line_error
from tests.comm.test_netlab import needs_namespaces
from trimtab import __version__, kernels
from trimtab.cli import doctor, link
from trimtab.papers import load_papers

FOLDER = Path(kernels.__file__).parent
DEVICE_OPERATIONS = sorted(path.parent.name for path in FOLDER.glob("*/triton.py"))


def test_a_healthy_machine(trimtab, monkeypatch):
    monkeypatch.delenv("TRIMTAB_BACKEND", raising=False)
    result = trimtab("doctor", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["ok"]
    assert report["versions"]["trimtab"] == __version__
    assert [row["kernel"] for row in report["kernels"]] == kernels.operations()
    assert {row["back_end"] for row in report["kernels"]} == {"numba"}
    assert report["threads"]["used"] == kernels.num_threads()
    assert "yes: everything that is needed works" in trimtab("doctor").stdout


def test_warm_compiles_every_kernel(trimtab, monkeypatch):
    monkeypatch.delenv("TRIMTAB_BACKEND", raising=False)
    report = json.loads(trimtab("doctor", "--warm", "--json").stdout)
    assert all(row["seconds"] is not None for row in report["kernels"])
    assert all("the fastest there is" in row["note"] for row in report["kernels"])


def test_why_another_back_end_runs(trimtab, monkeypatch):
    monkeypatch.setenv("TRIMTAB_BACKEND", "ref")
    monkeypatch.setenv("TRIMTAB_NUM_THREADS", "3")
    report = json.loads(trimtab("doctor", "--json").stdout)
    assert {(row["back_end"], row["note"]) for row in report["kernels"]} == {("ref", "TRIMTAB_BACKEND asks for it")}
    assert report["threads"] == {"used": 3, "set_by": "TRIMTAB_NUM_THREADS"}


def test_what_serves_cuda_tensors(trimtab, monkeypatch):
    import torch

    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.delenv("TRIMTAB_BACKEND", raising=False)
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    pytest.importorskip("triton")
    assert "none: torch" in trimtab("doctor").stdout
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    device = json.loads(trimtab("doctor", "--json").stdout)["device"]
    assert device == {"back_end": "triton", "note": f"a card; {', '.join(DEVICE_OPERATIONS)}"}
    monkeypatch.setenv("TRIMTAB_BACKEND", "numba")
    device = json.loads(trimtab("doctor", "--json").stdout)["device"]
    assert device["back_end"] is None
    assert "TRIMTAB_BACKEND asks for another" in device["note"]


def test_what_does_not_work_is_a_no(trimtab, monkeypatch):
    monkeypatch.setenv("TRIMTAB_BACKEND", "cuda")
    result = trimtab("doctor")
    assert result.exit_code == 1
    assert "no: kernel" in result.stdout
    assert "unknown back end 'cuda'" in result.stdout


@pytest.mark.parametrize("broken", ["numba", "xxhash", "numpy"])
def test_a_missing_package_is_told(broken, tmp_path):
    (tmp_path / f"{broken}.py").write_text(f"raise ModuleNotFoundError('No module of that name', name={broken!r})")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    env.pop("TRIMTAB_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", "doctor", "--warm"], capture_output=True, text=True, env=env
    )
    assert f"no: {broken} does not import (No module of that name); pip install {broken}" in done.stdout
    assert done.stderr == ""
    assert done.returncode == 1


def test_papers(trimtab):
    result = trimtab("papers")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2 + len(load_papers())
    listed = json.loads(trimtab("papers", "--json").stdout)
    assert [paper["number"] for paper in listed] == [paper.number for paper in load_papers()]


def test_link_without_peers_tells_how(trimtab, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    result = trimtab("doctor", "--link")
    assert result.exit_code == 0
    assert "on slower links compressing pays" in result.stdout
    assert "trimtab netlab" in result.stdout
    assert "torchrun" in result.stdout
    assert result.stderr.startswith("trimtab: measuring the codec")
    report = json.loads(trimtab("doctor", "--link", "--parameters", "1e6", "--json").stdout)
    assert report["parameters"] == 1_000_000
    assert report["will_help"] is report["plan"] is report["link"] is None
    assert report["codec"]["encode_bytes_per_second"] > 0


def test_link_needs_a_meeting_point(trimtab, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert "RANK" in one_line_error(trimtab("doctor", "--link"), "not set", "torchrun")
    one_line_error(trimtab("doctor", "--parameters", "1e6"), "--link")


def test_a_first_run_tells_that_it_compiles(monkeypatch, capsys):
    monkeypatch.delenv("TRIMTAB_BACKEND", raising=False)
    for found, told in (({}, "compiled first"), ({Path("numba.groups.nbc"): 1}, "measuring the codec\n")):
        monkeypatch.setattr(doctor, "cached_files", lambda operation, found=found: found)
        link._say_codec("cpu")
        assert told in capsys.readouterr().err


@needs_namespaces
def test_the_verdict_on_a_slow_link(start):
    doctor = [sys.executable, "-m", "trimtab", "doctor", "--link", "--compute-seconds", "0.1", "--json"]
    process = start("netlab", "--ranks-per-node", 2, "--rate", "20mbit", "--", *doctor)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.count("measuring the link between 4 ranks") == err.count("measuring the codec") == 1  # from one rank
    report = json.loads(out)
    assert (report["nodes"], report["ranks_per_node"]) == (2, 2)
    assert 0.4 * 20e6 < 8 * report["link"]["bytes_per_second"] < 1.2 * 20e6
    assert report["will_help"] is True
    assert report["break_even_bytes_per_second"] > report["link"]["bytes_per_second"]
    assert -1 < report["step_time_change"] < -0.5
