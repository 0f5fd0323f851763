from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from bench import solar_chart, solar_plan
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
    assert "| 4 KiB, 2 ms |" in page
    assert "| 1,000,000 samples, 1,000 ranks, 10 epochs, buffers 0.5 |" in page
    assert page.count("**") % 2 == 0


def test_near_samples_share_a_request():
    samples = np.array([9, 1, 2, 30, 4, 5, 8, 6])  # four at a time: 1 2, 9, 30 and 4 5 6, 8
    assert solar_plan._num_requests(samples, 4, 1) == 5
    assert solar_plan._num_requests(samples, 4, 7) == 3
    assert solar_plan._num_requests(samples, 8, 1) == 4
    assert solar_plan._num_requests(samples[:0], 4, 1) == 0


def test_chart_has_a_bar_for_each_piece_and_size(record):
    text = solar_chart.draw(record)
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    words = [element.text for element in root.iter(f"{space}text")]
    names = ["without buffers", *solar_chart.PIECES]
    names += [f"requests if merged, {size}, 2 ms" for size in solar_plan.MERGED]
    assert [word for word in words if word in names] == names
    assert len(list(root.iter(f"{space}polyline"))) == len(names) * len(solar_plan.BAR_HELD)
    assert words.count("16.0") >= len(solar_plan.BAR_HELD)  # without buffers, a whole batch is read
    requests, samples = (
        record.metrics[key].value for key in ("merged/0.5/4 KiB, 2 ms", "policy/0.5/trimtab SOLAR/slowest")
    )
    assert 0 < requests < samples
