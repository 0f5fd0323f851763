from __future__ import annotations

import pytest

from bench import diagnose_cost, diagnose_matrix
from bench.diagnose_tables import cost_table, matrix_table, peers_table
from bench.harness import Options, exact, metric
from trimtab.records import Record


def rows(table: str) -> dict[str, list[str]]:
    """Return the cells of a Markdown table by the first of each row."""
    lines = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


@pytest.fixture
def matrix() -> Record:
    cells = {("kill", "ddp"): (3, 3), ("kill", "pipeline"): (1, 2), ("link", "ddp"): (0, 1)}
    metrics = {"all/jobs": exact(6, "jobs"), "all/right": exact(4, "jobs")}
    metrics |= {"healthy/jobs": exact(5, "jobs"), "healthy/false alarms": exact(1, "jobs")}
    for (fault, workload), (right, jobs) in cells.items():
        metrics[f"{fault}/{workload}/jobs"] = exact(jobs, "jobs")
        metrics[f"{fault}/{workload}/right"] = exact(right, "jobs")
    metrics["all/seconds from fault to verdict"] = metric([4.0, 5.0, 6.0], "s")
    metrics["all/look"] = metric([2.0, 2.0, 8.0], "ms")
    return Record.new(
        "diagnose_matrix",
        command="python -m bench.diagnose_matrix",
        data={
            "ranks": [2, 4],
            "seeds": [0, 1],
            "workloads": ["ddp", "pipeline"],
            "hooks": "compiled",
            "missing": 0,
            "wrong": ["kill-pipeline-2-0-compiled: healthy []", "link-ddp-2-0-compiled: S1 [1]"],
        },
        inference={"hang_seconds": 4.0},
        metrics=metrics,
    )


def test_matrix_counts_by_fault_and_workload(matrix: Record) -> None:
    page = matrix_table(matrix)
    assert rows(page) == {
        "": ["ddp", "pipeline", "all"],
        "---": ["---:"] * 3,
        "kill": ["3 / 3", "1 / 2", "4 / 5"],
        "link": ["0 / 1", "-", "0 / 1"],
        "all": ["3 / 4", "1 / 2", "4 / 6"],
    }
    assert "on 2, 4 ranks, 2 seeds, compiled hooks" in page
    assert "- false alarms: 1 of 5 jobs" in page
    assert "- from the fault to the verdict: 5 s in the median, half of them 4.5 to 5.5\n" in page
    assert "the verdict: 2 ms in the median" in page
    assert "- link-ddp-2-0-compiled: S1 [1]" in page
    assert "not run" not in page


def test_matrix_says_what_is_missing_and_shortens_long_lists(matrix: Record) -> None:
    matrix.data["missing"] = 7
    matrix.data["wrong"] = [f"job {number}" for number in range(30)]
    matrix.metrics["all/seconds from fault to verdict, longest"] = exact(9, "s")
    page = matrix_table(matrix)
    assert "- not run: 7 jobs" in page
    assert "half of them 4.5 to 5.5, at most 9 s" in page
    assert "Wrong (30, of which 20 are shown)" in page
    assert page.splitlines()[-1] == "- job 19"


def test_matrix_of_no_results_is_a_table() -> None:
    record = diagnose_matrix.record("python -m bench.diagnose_matrix", "diagnose_matrix", "compiled")
    assert rows(matrix_table(record))["all"][-1].endswith(f"/ {record.metrics['all/jobs'].value:.0f}")


def test_peers_have_a_row_for_each_kind_and_shares_of_real_faults() -> None:
    metrics = {f"faults/{who} named, share": exact(share, "") for who, share in (("ours", 0.9), ("peer", 0.4))}
    for name, num in (("stop", 5), ("gloo kill", 4)):
        for what in ("jobs", "ours named", "ours crashed", "peer crashed"):
            metrics[f"{name}/{what}"] = exact(num, "jobs")
    metrics["gloo kill/peer named"] = exact(2, "jobs")
    data = {"dumps": "simulated", "peer": "fr_trace", "gloo": "2 ranks"}
    record = Record.new("diagnose_peers", command="python", data=data, metrics=metrics)
    assert rows(peers_table(record))["gloo kill"] == ["4", "4", "2", "-", "-", "4"]
    assert "Of these" not in peers_table(record)
    metrics["gloo faults/ours named, share"] = exact(0.75, "")
    metrics["gloo faults/peer named, share"] = exact(0.25, "")
    assert "Of these, ours and the peer name 75% and 25% as gloo dumps them." in peers_table(record)


def test_cost_has_a_row_for_each_operation() -> None:
    metrics = {
        "python/barrier": metric([1.0, 1.1, 1.2], "us"),
        "no probe/barrier": metric([3.0, 3.0, 3.0], "us"),
        f"python/{diagnose_cost.SHARE}": metric([0.001, 0.002, 0.003], ""),
        "compiled/barrier": exact(0.25, "us"),
        f"compiled/{diagnose_cost.SHARE}": exact(0.0005, ""),
    }
    data, inference = {"operations": "8 ranks"}, {"paced": ["all_reduce", "barrier"]}
    record = Record.new("diagnose_cost", command="python", data=data, inference=inference, metrics=metrics)
    found = rows(cost_table(record))
    assert found[""] == ["no probe", "python hooks add", "compiled hooks add"]
    assert found["barrier"] == ["3.00 (3.00 to 3.00)", "1.10 (1.05 to 1.15)", "0.25"]
    assert found[f"{diagnose_cost.SHARE}, %"] == ["", "0.20 (0.15 to 0.25)", "0.05"]


@pytest.mark.slow
def test_cost_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose_cost, "NUM_CALLS", 400)
    monkeypatch.setattr(diagnose_cost, "PACED_SECONDS", 0.02)
    monkeypatch.setattr(diagnose_cost, "THREAD_SECONDS", 0.1)
    record = diagnose_cost.run(Options("diagnose_cost", quick=True, num_rounds=1))
    found = rows(cost_table(record))
    assert set(diagnose_cost.OPERATIONS) < set(found)
    assert all(record.metrics[f"{kind}/all_reduce"].value > 0 for kind in diagnose_cost.REQUIRED)
    assert len(record.bars) == 6
