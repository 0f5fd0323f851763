"""Damaged and forged files of every codec: FormatError or the true elements, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import attacks, sources
from trimtab.codecs import codec_ids, make_codec

ROOT = Path(__file__).parents[2]


def attack(
    subject: str, tmp_path: Path, *, num_flips: int, seed: int, seconds: float, module: str = "tests.fuzz.attacks"
) -> str:
    """Run the attacks in a process of their own and return its last line; fail with what it found."""
    log = tmp_path / "attack"
    command = [sys.executable, "-W", "error", "-m", module, subject, str(num_flips), str(seed), str(log)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail(f"no end after {seconds} s at: {log.read_text().strip()}")
    if done.returncode:
        at = log.read_text().strip() if log.exists() else "the start"
        pytest.fail(f"exit status {done.returncode} at: {at}\n{done.stdout}{done.stderr}")
    *findings, last = done.stdout.splitlines()
    assert not findings, "\n".join(findings[:50])
    return last


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory limit needs Linux")
@pytest.mark.parametrize("codec_id", codec_ids())
def test_damaged_files(codec_id, tmp_path):
    last = attack(codec_id, tmp_path, num_flips=10_000, seed=1, seconds=240)
    assert int(last.split()[0]) > 10_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory limit needs Linux")
@pytest.mark.parametrize("seed", range(2, 6))
@pytest.mark.parametrize("codec_id", codec_ids())
def test_more_damaged_files(codec_id, seed, tmp_path):
    attack(codec_id, tmp_path, num_flips=50_000, seed=seed, seconds=280)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory limit needs Linux")
@pytest.mark.parametrize("suffix", sources.SUFFIXES)
def test_damaged_sources(suffix, tmp_path):
    last = attack(suffix, tmp_path, num_flips=1000, seed=1, seconds=120, module="tests.fuzz.sources")
    assert last == "1000 attacks"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory limit needs Linux")
@pytest.mark.parametrize("suffix", sources.SUFFIXES)
def test_more_damaged_sources(suffix, tmp_path):
    attack(suffix, tmp_path, num_flips=10_000, seed=2, seconds=280, module="tests.fuzz.sources")


# The attacks are worth something only if they would see a fault.


@pytest.mark.parametrize(
    ("decode", "finding"),
    [
        (lambda self, packed, out=None: packed.output(out), "wrong elements"),
        (lambda self, packed, out=None: 1 // 0, "ZeroDivisionError"),
        (lambda self, packed, out=None: packed.buffers["gone"], "KeyError"),
    ],
    ids=["unchecked", "division", "look-up"],
)
def test_faults_are_seen(decode, finding, monkeypatch):
    """A decoder that errs, or whose output nobody checks, is found by the first attacks."""
    _, blob, truth, _ = next(attacks.attacks("raw", 1, 1))
    assert attacks.fault(blob, truth) is None
    monkeypatch.setattr(type(make_codec({"id": "raw"})), "decode", decode)
    monkeypatch.setattr(attacks.store, "checksum", lambda digests: attacks.Reader(blob).checksum(""))
    assert finding in str(attacks.fault(blob, truth))
