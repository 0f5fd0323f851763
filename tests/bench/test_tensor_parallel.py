"""The benchmark of tensor parallelism: its record, from results that are made up."""

from __future__ import annotations

import json

import pytest

from bench import tensor_parallel, tensor_runs
from bench.harness import Options
from bench.tensor_runs import EXACT, EXACT_2D, Run
from bench.tensor_ways import WAYS

SENT = {"bf16": 5e5, "fp8": 2.7e5}


def made_up(run: Run) -> dict:
    if run.job == "steps":
        slow = 2.0 if run.rate else 1.0
        seconds = {way: [slow if way in (EXACT, EXACT_2D) else 1.0] * 3 for way in run.ways}
        if "2-D both" in seconds:
            seconds["2-D both"] = [0.8] * 3
        return {"seconds": seconds, "sent_bytes": {way: [SENT.get(way, 1e6)] for way in run.ways}}
    (way,) = run.ways
    counts = {"reduce_scatter": {"sent_bytes": 130, "exact_bytes": 500}}
    return {
        "validation": 2.0 + run.seed + (0.004 if way == "fp8" else 0.0),
        "identical": way != "fp8-1",
        "report": {"exchange": {"operations": counts}} if "8" in way else {},
        "text": "made up",
        "num_parameters": 1,
    }


@pytest.fixture
def record(monkeypatch):
    monkeypatch.setattr(Run, "results", made_up)
    return tensor_parallel.run("4 layers", Options(name="tensor_parallel", quick=True))


def test_the_rate_makes_communication_half_of_the_step(record):
    assert record.inference["link"] == {EXACT: "8mbit", EXACT_2D: "8mbit"}  # 1 MB in a second
    assert record.metrics["stock/communication"].value == 0.5


def test_figures_and_bars(record):
    assert record.metrics["fp8/payload"].value == pytest.approx(0.52)
    assert record.metrics["fp8/saved"].value == pytest.approx(1000 / 270, rel=1e-5)
    assert record.metrics["fp8/mean_change"].value == pytest.approx((0.002 + 0.004 / 3 + 0.001) / 3, rel=1e-3)
    assert record.metrics["int8/speedup"].value == 2.0
    passed = {bar.name: bar.passed for bar in record.bars}
    assert [name for name, well in passed.items() if not well] == ["runs whose ranks stayed alike"]
    assert len(passed) == 10


def test_runs_and_ways_agree():
    for scale in tensor_runs.SCALES:
        runs = list(tensor_runs.loss_runs(scale))
        assert {way for run in runs for way in run.ways} <= set(WAYS)
        assert len({run.path for run in runs}) == len(runs)


def test_what_was_run_is_not_run_again(monkeypatch, tmp_path):
    monkeypatch.setattr(tensor_runs, "CACHE", tmp_path)
    run = Run("small", "losses", ("fp8, sequence",), seed=1)
    assert run.found() is None
    run.path.parent.mkdir(parents=True)
    run.path.write_text(json.dumps({"settings": run.settings, "results": {"validation": 2.5}}))
    assert run.results() == {"validation": 2.5}
    assert Run("small", "losses", ("fp8, sequence",), seed=2).found() is None
    kept = run.settings | {"scale": {}}
    run.path.write_text(json.dumps({"settings": kept, "results": {"validation": 2.5}}))
    assert run.found() is None, "another scale of that name"
