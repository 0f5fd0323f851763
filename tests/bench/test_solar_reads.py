from __future__ import annotations

import pytest

from bench import solar_reads
from bench.harness import Options
from bench.read_tables import solar_reads_tables


@pytest.fixture(scope="module")
def record():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solar_reads, "QUICK_ROWS", {"64 KiB": (70, (16, 16)), "1 MiB": (3, (8, 8))})
        return solar_reads.run(Options("solar_reads", quick=True, num_rounds=1))


def test_every_way_is_measured(record):
    assert len(record.bars) == 4
    for key, found in record.metrics.items():
        assert found.value > 0, key
    assert {key.split("/")[2] for key in record.metrics} == {
        "trimtab",
        "h5py",
        "h5py, sorted list",
        "zarr",
        "np.memmap",
    }


def test_the_table_has_a_row_for_each(record):
    page = solar_reads_tables(record)
    assert page.count("\n| ") == 15
    assert "| .npy: **trimtab** | " in page
