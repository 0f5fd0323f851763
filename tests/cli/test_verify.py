"""trimtab inspect and verify: what is in a packed file, and whether it keeps its promise."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.cli.conftest import one_line_error
from trimtab.bounds import Abs, Lossless
from trimtab.codecs import GWLZ, Raw
from trimtab.files import Writer
from trimtab.store import encode, save


def test_inspect_lists_in_file_order(trimtab, arrays, tmp_path):
    trimtab("pack", arrays, tmp_path / "a.tt", "-q", "--codec", "raw")
    result = trimtab("inspect", tmp_path / "a.tt")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:7]] == ["weights", "counts", "mask", "scalar", "empty"]
    assert lines[2].split() == ["weights", "float32", "60", "x", "50", "raw", "lossless", "12.0", "kB", "1.000"]
    assert lines[5].split()[2] == "scalar"
    assert "5 arrays" in lines[7]
    report = json.loads(trimtab("inspect", tmp_path / "a.tt", "--json").stdout)
    assert report["packed_file_bytes"] == (tmp_path / "a.tt").stat().st_size
    assert report["arrays"]["weights"]["shape"] == [60, 50]
    assert report["arrays"]["weights"]["bound"] == {"kind": "lossless"}


def test_inspect_shows_long_and_hostile_names_in_full(trimtab, tmp_path):
    names = ["layer." * 40 + "weight", "[red]x[/red]", "a\x1b[2Jb\nc"]
    with Writer(tmp_path / "n.tt") as writer:
        for name in names:
            writer.add(name, *encode(np.ones(3, np.float32), Lossless(), Raw()))
    result = trimtab("inspect", tmp_path / "n.tt")
    assert "layer." * 40 + "weight" in result.stdout
    assert "[red]x[/red]" in result.stdout
    assert "\x1b" not in result.stdout
    assert r"a\x1b[2Jb\nc" in result.stdout


def test_inspect_takes_packed_files_only(trimtab, field, tmp_path):
    one_line_error(trimtab("inspect", field), "is not packed", f"compare {field}")
    one_line_error(trimtab("inspect", tmp_path / "none"), "No such file")


def test_verify_sound_files(trimtab, arrays, field, tmp_path):
    trimtab("pack", arrays, tmp_path / "a.tt", "-q")
    result = trimtab("verify", tmp_path / "a.tt")
    assert result.exit_code == 0
    assert "yes" in result.stdout
    assert "5 of 5 checksums" in result.stdout
    assert trimtab("verify", tmp_path / "a.tt", "--against", arrays).exit_code == 0


@pytest.mark.parametrize(
    ("flag", "value", "measure"),
    [
        ("--abs", "0.01", "largest error"),
        ("--rel", "1e-3", "largest error"),
        ("--pointwise-rel", "0.01", "largest relative error"),
        ("--psnr", "50", "PSNR in dB"),
    ],
)
def test_verify_measures_in_the_unit_of_the_bound(trimtab, field, tmp_path, flag, value, measure):
    trimtab("pack", field, tmp_path / "f.tt", "-q", flag, value)
    result = trimtab("verify", tmp_path / "f.tt", "--against", field, "--json")
    assert result.exit_code == 0
    checked = json.loads(result.stdout)["arrays"][0]
    assert checked["measure"] == measure
    assert checked["limit"] == pytest.approx(float(value) * (np.ptp(np.load(field)) if flag == "--rel" else 1))
    kept = checked["reached"] >= checked["limit"] if flag == "--psnr" else 0 < checked["reached"] <= checked["limit"]
    assert kept
    assert measure in trimtab("verify", tmp_path / "f.tt", "--against", field).stdout


def test_verify_finds_a_broken_promise(trimtab, field, tmp_path):
    x = np.load(field)
    y = x.copy()
    y[3, 4, 5] += 0.02  # sound as a file, and further away than its bound allows
    with Writer(tmp_path / "f.tt") as writer:
        writer.add("field", *encode(y, Abs(0.01), Raw()))
    assert trimtab("verify", tmp_path / "f.tt").exit_code == 0
    result = trimtab("verify", tmp_path / "f.tt", "--against", field)
    assert result.exit_code == 1
    assert "no: 'field': differs from the original by more than abs 0.01 allows" in result.stdout
    report = json.loads(trimtab("verify", tmp_path / "f.tt", "--against", field, "--json").stdout)
    assert not report["ok"]
    assert report["arrays"][0]["reached"] == pytest.approx(0.02, rel=1e-4)


def test_verify_finds_other_names_shapes_and_dtypes(trimtab, arrays, tmp_path):
    trimtab("pack", arrays, tmp_path / "a.tt", "-q")
    other = tmp_path / "other.npz"
    with np.load(arrays) as before:
        changed = {
            **before,
            "counts": before["counts"].astype(np.int32),
            "mask": before["mask"][:1],
            "new": before["scalar"],
        }
        del changed["scalar"]
        np.savez(other, **changed)
    result = trimtab("verify", tmp_path / "a.tt", "--against", other, "--json")
    assert result.exit_code == 1
    failures = "\n".join(json.loads(result.stdout)["failures"])
    assert "'new' is missing" in failures
    assert "'scalar': " in failures
    assert "is int64 [12], the original int32 [12]" in failures
    assert "is bool [2], the original bool [1]" in failures
    assert len(failures.splitlines()) == 4


def test_verify_does_not_mind_the_name_of_a_npy_file(trimtab, field, tmp_path):
    trimtab("pack", field, tmp_path / "f.tt", "-q")
    assert trimtab("verify", tmp_path / "f.tt", "--against", field.rename(tmp_path / "renamed.npy")).exit_code == 0


def test_verify_lists_every_damaged_array(trimtab, tmp_path):
    source, packed = tmp_path / "x.npz", tmp_path / "x.tt"
    np.savez(source, a=np.arange(100.0), b=np.arange(100.0), c=np.arange(100.0))
    trimtab("pack", source, packed, "-q", "--codec", "raw")
    raw = bytearray(packed.read_bytes())
    raw[-1] ^= 1
    raw[-1700] ^= 1
    packed.write_bytes(raw)
    result = trimtab("verify", packed)
    assert result.exit_code == 1
    assert [line[:8] for line in result.stdout.splitlines()] == ["no: 'a':", "no: 'c':"]


def test_verify_says_no_to_what_cannot_be_opened(trimtab, field, tmp_path):
    packed = tmp_path / "f.tt"
    trimtab("pack", field, packed, "-q")
    raw = packed.read_bytes()
    for damaged in (raw[:-1], raw[:20], raw[:9] + b"#" + raw[10:], b""):
        packed.write_bytes(damaged)
        result = trimtab("verify", packed)
        assert result.exit_code == 1, result.output
        assert result.stdout.startswith("no: ")
        assert result.stdout.count("\n") == 1
        report = json.loads(trimtab("verify", packed, "--json").stdout)
        assert not report["ok"]
    one_line_error(trimtab("verify", tmp_path / "none.tt"), "No such file")
    one_line_error(trimtab("verify", field), "is not packed")


def test_a_relaxed_codec_is_held_to_the_bound_that_it_states(trimtab, tmp_path):
    """Errors exceed the bound asked for; the file says so, and is right."""
    x = np.exp(np.add.outer(np.sin(np.arange(200) / 9), 2 * np.cos(np.arange(300) / 7))).astype(np.float32)
    x += np.random.default_rng(0).normal(0, 0.05, x.shape).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    save(tmp_path / "x.tt", {"x": x}, Abs(0.2), codec=GWLZ(relaxed=2, steps=100))
    listed = trimtab("inspect", tmp_path / "x.tt").stdout.splitlines()[2]
    assert "gwlz" in listed
    assert "abs 0.4" in listed
    report = json.loads(trimtab("verify", tmp_path / "x.tt", "--against", tmp_path / "x.npy", "--json").stdout)
    assert report["ok"]
    assert 0.2 < report["arrays"][0]["reached"] <= report["arrays"][0]["limit"] == 0.4
