"""The example that trains, and the diff of the guide that makes it send less."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dist.launch import run_ranks

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "examples" / "train_gpt.py").read_text()
SMALL = ("--width", "64", "--layers", "1", "--context", "32", "--batch", "2")

Train = Callable[..., str]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Run a script on two nodes of one rank each; returns what rank 0 said."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)

    def run(script: str, *arguments: str) -> str:
        (tmp_path / "script.py").write_text(script)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
        return run_ranks("script", 2, *SMALL, *arguments, folder=tmp_path)[0]

    return run


def patched(script: str, diff: str) -> str:
    """Apply hunks that say where they belong by their context alone."""
    for hunk in diff.split("@@\n")[1:]:
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in marks) for marks in (" -", " +"))
        assert script.count(before) == 1
        script = script.replace(before, after)
    return script


def losses(said: str) -> list[float]:
    return [float(value) for value in re.findall(r"loss ([\d.]+)", said)]


def test_the_diff_of_the_guide(train: Train) -> None:
    (diff,) = re.findall(r"^```diff\n(.*?)^```", (ROOT / "docs" / "sharded-training.md").read_text(), re.M | re.S)
    script = patched(SCRIPT, diff)
    assert "tt.comm.SDP4Bit()(model)" in script
    script = script.replace("SDP4Bit()", 'SDP4Bit(when="always")')  # on a loopback it would stay exact
    exact, packed = (losses(train(one, "--steps", "6")) for one in (SCRIPT, script))
    assert exact != packed
    assert packed == pytest.approx(exact, rel=0.01)
    assert exact[-1] < 5.4  # it learns: the logarithm of 256 is 5.55


@pytest.mark.slow
def test_goes_on_from_a_checkpoint(train: Train, tmp_path: Path) -> None:
    whole = losses(train(SCRIPT, "--steps", "4"))
    train(SCRIPT, "--steps", "2", "--checkpoint", str(tmp_path / "saved"))
    assert losses(train(SCRIPT, "--steps", "4", "--checkpoint", str(tmp_path / "saved"))) == whole
