from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from bench import sharded, sharded_chart
from bench.comm_tables import sharded_tables
from bench.harness import Options
from bench.sharded_runs import OURS, RATES, STOCK, Run, loss_runs, repeated, step_runs
from trimtab.records import Record

MEGABYTES = {STOCK: 80e6, "exact, flat": 60e6, "exact, two levels": 38e6, "ZeRO++-style": 12e6}
SECONDS = {"100mbit": 4.0, "300mbit": 2.0, "1gbit": 1.0}


def found(*, harm: float = 0.0, alike: bool = True, digest: str = "aa") -> dict[Run, dict[str, Any]]:
    """Results of all runs; those of ours are a little off, and the first digest of the second run is given."""
    losses = {
        run: {
            "validation": 2.0
            + 0.01 * run.seed
            + (0.1 if run.ways[0] == "qW" else harm if run.ways[0] == OURS else 0.0),
            "curve": [[10, 3.0], [20, 2.0 + 0.01 * run.seed]],
            "digests": ["aa", "bb"] if run != repeated("10M") else [digest],
            "identical": alike or run.seed > 0,
            "text": "text",
            "text_bytes": [9, 1],
            "num_parameters": 10_800_000,
            "mode": "root",
        }
        for run in loss_runs("10M")
    }
    steps = {
        run: {
            "seconds": {run.ways[0]: [SECONDS[run.rate or ""] * k for k in (1, 2)], OURS: [1.0, 2.0]},
            "sent": {run.ways[0]: [[MEGABYTES.get(run.ways[0], 30e6)] * 2] * 2, OURS: [[6e6, 6e6]] * 2},
        }
        for run in step_runs("10M", 2)
    }
    return losses | steps


def record(**changes: Any) -> Record:
    return sharded.run("10M", found(**changes), Options("sharded"))


def test_record_tables_and_chart() -> None:
    made = record()
    assert all(bar.passed for bar in made.bars)
    assert made.metrics[f"sent/{STOCK}/times"].value == pytest.approx(80 / 6, rel=1e-5)
    assert made.metrics["100mbit/DDP, fp16 hook/times"].value == 4
    assert made.metrics[f"1gbit/{OURS}/seconds"].value == 1.5
    assert "300mbit/DDP/times" not in made.metrics
    assert made.metrics["over_exact/qW"].low == pytest.approx(100 * 0.1 / 2.02, abs=1e-4)
    tables = sharded_tables(made)
    assert "| qW | 2.1100 (2.1000-2.1200) | +4.98 % (+4.95 to +5.00) | 2.5731 (+12.17%) |" in tables
    assert "| DDP | 30 | 5.00x (5.00-5.00) | 6 | 4.00x (4.00-4.00) | - | - | 1.5 | 1.00x (1.00-1.00) |" in tables
    chart = ET.fromstring(sharded_chart.draw(made))
    lines = [node for node in chart.iter() if node.tag.endswith("polyline")]
    assert len(lines) == 3 * (3 + 1) + 4


def test_bars_fail() -> None:
    def failed(**changes: Any) -> list[str]:
        return [bar.name.split(":")[0] for bar in record(**changes).bars if not bar.passed]

    assert failed(harm=0.021) == ["SDP4Bit"] * 2
    assert len(failed(alike=False)) == 1
    assert failed(digest="cc") == ["steps of 1 that a second run repeats bit for bit"]


def test_runs_are_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("bench.sharded_runs.CACHE", tmp_path)
    runs = [*loss_runs("10M"), *step_runs("10M", 7)]
    assert len({run.path for run in runs}) == len(runs)
    assert {run.rate for run in runs} == {None, *RATES}
    run = runs[0]
    run.path.parent.mkdir()
    run.path.write_text('{"settings": {}, "results": {"seconds": 1}}')
    assert run.found() is None
