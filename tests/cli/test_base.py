"""--base: pack, unpack, verify and inspect with the file that a checkpoint was tuned from."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.conftest import one_line_error
from tests.samples import same_bits, sample


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Return a tuned checkpoint and its base."""
    rng = np.random.default_rng(0)
    base = {"w": sample("bfloat16", (60, 70)), "same": sample("float32", (40, 50)), "b": np.zeros(7, np.float32)}
    steps = rng.normal(0, 1e-4, (60, 70))
    tuned = {**base, "w": (base["w"].astype(np.float32) + steps).astype(ml_dtypes.bfloat16), "new": np.arange(2000)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors", metadata={"format": "pt"})
    return tmp_path / "tuned.safetensors", tmp_path / "base.safetensors"


@pytest.mark.parametrize("level", ["fast", "ratio"])
@pytest.mark.parametrize("packed_base", [False, True])
def test_there_and_back(trimtab, pair, tmp_path, packed_base, level):
    tuned, base = pair
    if packed_base:
        trimtab("pack", base, tmp_path / "base.tt", "-q")
        base = tmp_path / "base.tt"
    packed, back = tmp_path / "tuned.tt", tmp_path / "back.safetensors"
    result = trimtab("pack", tuned, packed, "--base", base, "--level", level)
    assert result.exit_code == 0, result.stderr
    assert f"2 of 4 arrays packed as differences from {base}" in result.stderr
    assert trimtab("unpack", packed, back, "--base", base).exit_code == 0
    before, after = load_file(tuned), load_file(back)
    assert before.keys() == after.keys()
    assert all(same_bits(before[name], after[name]) for name in before)
    assert trimtab("verify", packed, "--base", base).exit_code == 0
    assert trimtab("verify", packed, "--base", base, "--against", tuned).exit_code == 0


def test_reports(trimtab, pair, tmp_path):
    tuned, base = pair
    packed = tmp_path / "tuned.tt"
    report = json.loads(trimtab("pack", tuned, packed, "--base", base, "--json").stdout)
    assert report["base"] == str(base)
    assert report["num_differences"] == 2
    report = json.loads(trimtab("inspect", packed, "--json").stdout)
    assert report["base"] == "base.safetensors"
    assert {name for name, entry in report["arrays"].items() if "base" in entry} == {"w", "same"}
    assert len(report["arrays"]["w"]["base"]) == 16
    text = trimtab("inspect", packed).stdout
    assert text.count("enec difference") == 2
    assert "2 of 4 arrays are differences from those of 'base.safetensors'" in text
    assert str(tmp_path) not in text


def test_without_the_base(trimtab, pair, tmp_path):
    tuned, base = pair
    packed = tmp_path / "tuned.tt"
    trimtab("pack", tuned, packed, "--base", base)
    out = tmp_path / "x.safetensors"
    one_line_error(trimtab("unpack", packed, out), "a base is needed", "'base.safetensors'", "checksum")
    one_line_error(trimtab("verify", packed), "a base is needed", "'base.safetensors'")
    one_line_error(trimtab("unpack", packed, out, "--base", tuned), "this is not the base", "'w'")
    assert not out.exists()
    assert trimtab("unpack", packed, tmp_path / "x.npy", "--entry", "new").exit_code == 0


def test_mistakes(trimtab, pair, tmp_path, field):
    tuned, base = pair
    out = tmp_path / "x.tt"
    one_line_error(trimtab("pack", tuned, out, "--base", base, "--rel", "1e-3"), "--base", "leave out the bound")
    one_line_error(trimtab("pack", tuned, out, "--base", base, "--target-ratio", "9"), "--base", "leave out the bound")
    one_line_error(trimtab("pack", tuned, out, "--base", base, "--codec", "raw"), "only ENEC")
    one_line_error(trimtab("pack", tuned, out, "--base", field), "kind npy", "safetensors or packed")
    one_line_error(trimtab("pack", tuned, out, "--base", tmp_path / "no.tt"), "no.tt", "check the name")
    trimtab("pack", tuned, tmp_path / "tuned.tt", "--base", base)
    one_line_error(trimtab("pack", tuned, out, "--base", tmp_path / "tuned.tt"), "against a base itself")
    assert not out.exists()
