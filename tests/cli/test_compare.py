"""trimtab compare: ours beside its peers, each with what it reached or why it did not run."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tests.cli.conftest import one_line_error
from trimtab.bounds import Abs, Rel
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
        encoded = super().compress(x, bound)
        return replace(encoded, num_bytes=1) if self.fault == "brags" else encoded

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
    *ours, zstd = report["contenders"]
    assert [contender["name"] for contender in ours] == ["trimtab fast, balanced", "trimtab ratio"]
    assert zstd["name"].startswith("zstd ")
    for contender in (*ours, zstd):
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
    contenders = json.loads(trimtab("compare", arrays, "--rel", "1e-2", "--rounds", 1, "--json").stdout)["contenders"]
    assert {"trimtab fast", "trimtab balanced"} <= {contender["name"] for contender in contenders}
    for ours in contenders:
        assert 0 < ours["largest_error_over_limit"] <= 1
        assert 40 < ours["psnr_decibels"] < 50


def test_faults_of_peers_are_shown(trimtab, arrays, peers):
    peers(Odd(fault="crashes"))
    report = json.loads(trimtab("compare", arrays, "--rounds", 1, "--json").stdout)
    assert report["contenders"][-1]["num_arrays"] == 0
    assert set(report["contenders"][-1]["refused"].values()) == {"failed: RuntimeError: out of cheese"}
    result = trimtab("compare", arrays, "--rounds", 1)
    assert "left out 5 of 5 arrays: failed: RuntimeError: out of cheese" in result.stderr
    peers(Odd(fault="lossy"))
    assert "NO" in trimtab("compare", arrays, "--rounds", 1).stdout
    peers(Odd(fault="missing"), Zstd())
    result = trimtab("compare", arrays, "--rounds", 1)
    assert result.stderr == "trimtab: not here: odd; pip install zstandard\n"
    assert "odd" not in result.stdout


def test_limit(trimtab, tmp_path, peers, monkeypatch):
    peers(Zstd())
    monkeypatch.setattr("trimtab.tune.sample._BLOCK", 1 << 14)
    walk = np.cumsum(np.random.default_rng(0).standard_normal((40, 50, 60)), axis=2)
    np.savez(tmp_path / "x.npz", a=walk, b=walk.astype(np.float32) * 1000, c=np.zeros(9))
    for flags in (), ("--rel", 1e-3), ("--psnr", 60):
        result = trimtab("compare", tmp_path / "x.npz", "--limit", 1, "--rounds", 1, *flags)
        assert result.exit_code == 0
        assert re.search(r"a sample: \d+ blocks, \d+ kB of 1.44 MB, drawn to stay within --limit 1", result.stderr)
    np.save(tmp_path / "z.npy", np.zeros(3, np.int32))
    one_line_error(trimtab("compare", tmp_path / "z.npy", "--abs", 1), "no arrays that abs 1 applies to")


def test_bounds_of_a_sample_are_those_of_the_whole(trimtab, tmp_path, peers, monkeypatch):
    """One half is a thousand times weaker: relative to its own range its error would be as much smaller."""
    peers()
    monkeypatch.setattr("trimtab.tune.sample._BLOCK", 1 << 16)
    x = np.cumsum(np.random.default_rng(0).standard_normal((2, 1 << 16)), axis=1)
    x[0] /= 1000
    np.save(tmp_path / "x.npy", x)
    whole, part = (
        json.loads(trimtab("compare", tmp_path / "x.npy", "--rel", 1e-3, "--rounds", 1, "--json", *flags).stdout)
        for flags in ((), ("--limit", 1))
    )
    assert part["num_pieces"] == 1
    assert part["array_bytes"] == x.nbytes // 2
    assert {contender["bound_kept"] for contender in (*whole["contenders"], *part["contenders"])} == {True}
    psnr = [report["contenders"][0]["psnr_decibels"] for report in (whole, part)]
    assert psnr[1] == pytest.approx(psnr[0], abs=3)


def test_recommendation_is_the_best_ratio_that_is_fast_enough(trimtab, arrays, field, peers, tmp_path, monkeypatch):
    peers(Zstd())
    report = json.loads(trimtab("compare", arrays, "--rounds", 1, "--json").stdout)
    least = 0.998 * max(contender["ratio"] for contender in report["contenders"])
    equal = [contender for contender in report["contenders"] if contender["ratio"] >= least]
    best = max(equal, key=lambda contender: contender["compress_megabytes_per_second"])
    assert report["recommendation"]["name"] == best["name"]
    assert report["recommendation"]["ratio"] == best["ratio"]
    peers()
    monkeypatch.chdir(tmp_path)
    result = trimtab("compare", field, "--rel", "0.001", "--rounds", 1)
    sentence = result.stdout.splitlines()[-1]
    assert sentence.startswith("Best ratio, rel 0.001: trimtab ")
    command = shlex.split(sentence.partition("Run: ")[2])
    assert trimtab(*command[1:]).exit_code == 0
    assert trimtab("verify", "field.tt", "--against", field).exit_code == 0


def test_faulty_peers_are_not_recommended(trimtab, arrays, peers):
    for fault in ("crashes", "lossy"):
        peers(Odd(fault=fault, level=19))
        report = json.loads(trimtab("compare", arrays, "--rounds", 1, "--json").stdout)
        assert report["recommendation"]["name"].startswith("trimtab")


def test_peer_that_wins_is_named_beside_our_command(trimtab, arrays, peers):
    peers(Odd(fault="brags"))
    sentence = trimtab("compare", arrays, "--rounds", 1).stdout.splitlines()[-1]
    expected = (
        r"Best ratio, lossless: odd [\d.]+ with \d+\.\d+; of trimtab's levels \w+ with 1\.\d+\. Run: trimtab pack"
    )
    assert re.match(expected, sentence)


def test_nothing_is_fast_enough(trimtab, arrays, peers):
    peers(Zstd())
    result = trimtab("compare", arrays, "--rounds", 1, "--min-speed", 1e9)
    assert result.exit_code == 1
    assert "exact" in result.stdout
    assert "none of 3 candidates has pack MB/s of at least 1e+09" in result.stderr
    assert "the nearest is" in result.stderr
    result = trimtab("compare", arrays, "--rounds", 1, "--min-speed", 1e9, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["recommendation"] is None
    one_line_error(trimtab("compare", arrays, "--min-speed", "nan"), "--min-speed must be a positive")


@dataclass(frozen=True, repr=False)
class Rounding(Zstd):
    """An error-bounded peer: multiples of twice the bound, and zstd."""

    lossless = False
    name = "rounding"

    def refuses(self, x, bound):
        return None if isinstance(bound, Abs | Rel) else "needs an error bound"

    def compress(self, x, bound):
        step = 2 * bound.value * (np.ptp(x) if isinstance(bound, Rel) and x.size else 1) or 1
        return super().compress((np.round(x / step) * step).astype(x.dtype))


def test_under_a_psnr_peers_get_the_bound_that_keeps_it(trimtab, field, peers):
    peers(Rounding())
    report = json.loads(trimtab("compare", field, "--psnr", 60, "--rounds", 1, "--json").stdout)
    peer = report["contenders"][-1]
    assert peer["refused"] == {}
    assert peer["bound_kept"]
    assert 60 <= peer["psnr_decibels"] <= 60.1


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plots(trimtab, field, arrays, peers, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    peers(Rounding(), Zstd())
    picture = tmp_path / f"p{suffix}"
    result = trimtab("compare", field, "--rel", 1e-3, "--rounds", 1, "--plot", picture, "--json")
    curves = json.loads(result.stdout)["curves"]
    assert {"trimtab fast", "trimtab balanced"} < curves.keys()
    for points in curves.values():
        assert len(points) >= 5
        bits, quality = ([point[key] for point in points] for key in ("bits_per_value", "psnr_decibels"))
        assert bits[0] < bits[-1]
        assert quality == sorted(quality)
    drawn = picture.read_bytes()
    assert drawn.startswith({".png": b"\x89PNG", ".svg": b"<?xml"}[suffix])
    assert trimtab("compare", arrays, "--rounds", 1, "--plot", picture).exit_code == 0
    assert picture.read_bytes() != drawn


def test_contenders_that_refuse_are_not_drawn(trimtab, field, peers, tmp_path):
    peers(Odd(fault="crashes"))
    Odd.lossless = False
    try:
        result = trimtab("compare", field, "--rel", 1e-3, "--rounds", 1, "--plot", tmp_path / "p.png")
    finally:
        Odd.lossless = True
    assert "is not drawn:" in result.stderr


def test_plot_mistakes_are_told_before_anything_runs(trimtab, field, tmp_path, monkeypatch):
    one_line_error(trimtab("compare", field, "--plot", tmp_path / "p.gif"), ".png or .svg")
    one_line_error(trimtab("compare", field, "--plot", tmp_path / "no" / "p.png"), "mkdir -p")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    one_line_error(trimtab("compare", field, "--plot", tmp_path / "p.png"), "pip install 'trimtab[plot]'")
