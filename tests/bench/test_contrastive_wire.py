"""The benchmark of what contrastive losses send: that the peers are what they should be, its record, and the claim."""

from __future__ import annotations

import pytest

from bench import contrastive_wire
from bench.comm_tables import contrastive_wire_table
from bench.harness import Options
from tests.dist.launch import run_ranks
from trimtab.errors import NetlabUnavailable


def test_peers_have_the_gradients_of_the_whole_batch(tmp_path):
    run_ranks("tests.bench.contrastive_ranks", 3, str(tmp_path), folder=tmp_path)


def test_record(monkeypatch):
    made_up = {"OpenCLIP": 2e6, "SigLIP": 1e6, "FastCLIP v3": 1.01e6}
    monkeypatch.setattr(contrastive_wire, "count", lambda num, sizes, num_steps: dict.fromkeys(sizes, made_up))
    record = contrastive_wire.run(Options(name="contrastive_wire", quick=True), (2, 4), ("64x512", "64x64"))
    assert [(bar.reached, bar.passed) for bar in record.bars] == [(0.505, True)] * 2  # none for 64 columns
    assert record.metrics["4 ranks, 64 pairs a rank, 64 columns/SigLIP/share"].value == 0.5
    table = contrastive_wire_table(record)
    assert "| 2 ranks, 64 pairs a rank, 512 columns | 2.00 | 0.500 | 0.505 |" in table


@pytest.mark.slow
def test_half_of_the_bytes():
    try:
        found = contrastive_wire.count(2, ["64x512"], 5)["64x512"]
    except NetlabUnavailable as reason:
        pytest.skip(str(reason))
    for version in ("v1", "v2", "v3"):
        assert 0.49 < found[f"FastCLIP {version}"] / found["OpenCLIP"] <= 0.52
