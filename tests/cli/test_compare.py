"""trimtab compare: ours beside its peers, each with what it reached or why it did not run."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from tests.cli.conftest import one_line_error
from trimtab.peers import Zstd


@dataclass(frozen=True, repr=False)
class Odd(Zstd):
    """A peer of a given fault."""

    fault: str = "crashes"
    name = "odd"

    def unavailable(self):
        return "No module named 'odd'; pip install odd" if self.fault == "missing" else None

    def compress(self, x, bound):
        if self.fault == "crashes":
            raise RuntimeError("out of\ncheese")
        return super().compress(x, bound)

    def decompress(self, encoded):
        y = super().decompress(encoded).copy()
        if self.fault == "lossy" and y.size:
            y.reshape(-1).view(np.uint8)[0] ^= 1
        return y


@pytest.fixture
def peers(monkeypatch):
    """Return a function that says which peers there are."""
    return lambda *peers: monkeypatch.setattr("trimtab.peers.PEERS", peers)


def test_lossless(trimtab, arrays, peers):
    peers(Zstd())
    result = trimtab("compare", arrays, "--rounds", 1, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    ours, zstd = report["contenders"]
    assert ours["name"] == "trimtab"
    assert zstd["name"].startswith("zstd ")
    for contender in (ours, zstd):
        assert contender["num_arrays"] == 5
        assert contender["array_bytes"] == report["array_bytes"]
        assert contender["ratio"] == contender["array_bytes"] / contender["packed_bytes"]
        assert contender["compress_megabytes_per_second"] > 0
        assert contender["bound_kept"]
    assert "yes" in trimtab("compare", arrays, "--rounds", 1).stdout


def test_within_a_bound(trimtab, arrays, peers):
    peers(Zstd())
    result = trimtab("compare", arrays, "--rel", "1e-2", "--rounds", 1)
    assert result.exit_code == 0
    assert "2 of 5 arrays are left out: rel 0.01 does not apply" in result.stderr
    assert "error / limit" in result.stdout
    assert "zstd" not in result.stdout
    ours = json.loads(trimtab("compare", arrays, "--rel", "1e-2", "--rounds", 1, "--json").stdout)["contenders"][0]
    assert 0 < ours["largest_error_over_limit"] <= 1


def test_faults_of_peers_are_shown(trimtab, arrays, peers):
    peers(Odd(fault="crashes"))
    report = json.loads(trimtab("compare", arrays, "--rounds", 1, "--json").stdout)
    assert report["contenders"][1]["num_arrays"] == 0
    assert set(report["contenders"][1]["refused"].values()) == {"failed: RuntimeError: out of cheese"}
    result = trimtab("compare", arrays, "--rounds", 1)
    assert "left out 5 of 5 arrays: failed: RuntimeError: out of cheese" in result.stderr
    peers(Odd(fault="lossy"))
    assert "NO" in trimtab("compare", arrays, "--rounds", 1).stdout
    peers(Odd(fault="missing"), Zstd())
    result = trimtab("compare", arrays, "--rounds", 1)
    assert result.stderr == "trimtab: not here: odd; pip install zstandard\n"
    assert "odd" not in result.stdout


def test_limit(trimtab, tmp_path, peers):
    peers(Zstd())
    np.savez(tmp_path / "x.npz", a=np.zeros(200_000, np.float32), b=np.zeros(200_000, np.float32), c=np.zeros(9))
    result = trimtab("compare", tmp_path / "x.npz", "--limit", 1, "--rounds", 1)
    assert "1 of 3 arrays are left out to stay within --limit 1" in result.stderr
    np.save(tmp_path / "y.npy", np.zeros(300_000, np.float32))
    one_line_error(trimtab("compare", tmp_path / "y.npy", "--limit", 1), "--limit")
    np.save(tmp_path / "z.npy", np.zeros(3, np.int32))
    one_line_error(trimtab("compare", tmp_path / "z.npy", "--abs", 1), "no arrays that abs 1 applies to")
