from __future__ import annotations

import pytest

from bench import wire
from bench.comm_tables import wire_table
from bench.harness import Options

torch = pytest.importorskip("torch")


def test_a_toy_run() -> None:
    x = torch.randn(5120, generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    record = wire.run(x, Options(name="wire", quick=True, num_rounds=2))
    assert torch.get_num_threads() == threads
    for name, codec in wire.CODECS.items():
        for what in ("encode", "decode", "decode_sum of 4"):
            assert record.metrics[f"{name}/{what}"].value > 0
            assert record.metrics[f"{name}/{what}_share"].value > 0
        assert record.metrics[f"{name}/wire"].value == pytest.approx(codec.payload_bytes(5120) / x.nbytes, rel=1e-4)
    assert record.metrics["trimtab 8 bits/decode_sum_encode of 4"].value > 0
    assert [bar.required for bar in record.bars] == [">= 1.5"] * 6
    table = wire_table(record)
    assert "| **trimtab 4 bits, Hadamard 32** | 0.133 |" in table
    assert table.count("\n| ") == len(record.encoding["contenders"])  # all but the copy, and the rule below the heads


def test_what_plain_torch_does_is_the_same_quantiser() -> None:
    x = torch.randn(5120, generator=torch.Generator().manual_seed(1))
    for name, calls in wire.torch_calls(x).items():
        if name.startswith("plain torch, 4 bits"):
            y = calls["decode"]()
            assert 0.1 < float((y - x).norm() / x.norm()) < 0.25
