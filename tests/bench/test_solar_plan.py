from __future__ import annotations

import pytest

from bench import solar_plan
from bench.data_tables import solar_plan_tables
from bench.harness import Options


@pytest.fixture(scope="module")
def record():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solar_plan, "LARGE_HELD", (0.5,))
        patch.setattr(solar_plan, "PAPER_SHAPES", {"small": (1000, 8)})
        found = solar_plan.run(Options("solar_plan", quick=True, num_rounds=1))
        found.metrics.update(solar_plan._paper_shapes())
    return found


def test_run_counts_everything(record):
    assert [bar.passed for bar in record.bars] == [True] * 6
    assert record.metrics["bound/5/0.5/reads"].value == 5 * 4096 - 4 * 2048
    assert (
        record.metrics["policy/0.5/trimtab SOLAR/hit_rate"].value == record.metrics["policy/0.5/bound"].value == 0.475
    )


def test_tables_hold_every_part(record):
    page = solar_plan_tables(record)
    assert "| **trimtab SOLAR** | 0.0946" in page
    assert "| 20 epochs, buffers 0.5 | 8.00 | 8.00 | 8.00 | 1.00000x |" in page
    assert "| small, 1,000 samples |" in page
    assert "| 1,000,000 samples, 1,000 ranks, 10 epochs, buffers 0.5 |" in page
    assert page.count("**") % 2 == 0
