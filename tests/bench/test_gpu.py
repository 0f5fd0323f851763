from __future__ import annotations

import numpy as np
import pytest

from bench import gpu
from bench.harness import Options
from bench.tables import gpu_table
from tests.device import DEVICE
from trimtab import kernels
from trimtab.arrays import as_torch

torch = pytest.importorskip("torch")
pytest.importorskip("triton")


def test_a_toy_run(tmp_path, capsys) -> None:
    rng = np.random.default_rng(0)
    weights = as_torch(rng.normal(0, 0.02, 9001).astype(np.float32)).to(DEVICE, torch.bfloat16)
    field = as_torch(rng.normal(0, 1, (4, 5, 70)).cumsum(2).astype(np.float32)).to(DEVICE)
    with kernels.backend("triton"):
        subjects = {
            "w": gpu.weights_subject(weights),
            "f": gpu.field_subject(field),
            "g": gpu.wire_subject(field.reshape(-1)),
        }
        record = gpu.run(subjects, Options(name="gpu", quick=True, num_rounds=2), torch.device(DEVICE))
    assert {bar.name: bar.reached for bar in record.bars if "same bytes" in bar.name} == {
        "w: same bytes as on the host": 1,
        "f: same bytes as on the host": 1,
        "g: same bytes as on the host": 1,
    }
    assert [bar.name for bar in record.bars if "share" in bar.name] == [
        "w: encode, share of the copy's bandwidth",
        "w: decode, share of the copy's bandwidth",
    ]
    for key in ("w/copy", "w/encode", "w/decode", "f/copy", *(f"f/{what}" for what in gpu.LOSSY)):
        assert record.metrics[key].value > 0
        assert key.endswith("copy") or 0 < record.metrics[f"{key}_share"].value < 2
    payloads = [f"g/{name}, {what}" for name in gpu.WIRE_CODECS for what in ("encode", "decode", "decode_sum of 4")]
    assert all(record.metrics[f"{key}_share"].value > 0 for key in payloads)
    assert len(gpu_table(record).splitlines()) == 2 + 2 + 6 + 1 + len(payloads) + 3  # three codecs sum and encode
    assert record.versions["triton"]


def test_a_difference_is_seen(monkeypatch) -> None:
    from trimtab.kernels.predictor import numba

    monkeypatch.setattr(numba, "encode", lambda *arguments: arguments[-1].fill(3))
    with kernels.backend("triton"):
        field = torch.zeros((2, 3, 40), device=DEVICE)
        assert not gpu.field_subject(field).same


@pytest.mark.skipif(DEVICE == "cuda", reason="a CUDA device was asked for")
def test_no_device_is_one_line(capsys) -> None:
    gpu.main([])
    assert capsys.readouterr().out.count("\n") == 1
