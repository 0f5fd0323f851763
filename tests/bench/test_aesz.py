"""The benchmark of AE-SZ: what is counted, and its tables."""

from __future__ import annotations

import pytest

from bench import aesz
from bench.fields import snapshots
from bench.harness import Options
from bench.tables import aesz_tables
from tests.bench.test_runs import Missing
from trimtab.peers import SZ3


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aesz, "MODELS", tmp_path_factory.mktemp("models"))
        patch.setattr(aesz, "RELATIVE_BOUNDS", (5e-2,))
        patch.setattr(aesz, "LOOSE", (5e-2,))
        patch.setattr(aesz, "ABLATION_LATENTS", (8,))
        patch.setattr(aesz, "ABLATION_BLOCKS", (16,))
        patch.setattr(aesz, "CELL_BOUNDS", (1e-2,))
        patch.setattr(aesz, "fields", lambda quick: {"synthetic turb": lambda: snapshots("turb", [0.0], 32)[0]})
        options = Options(name="aesz", quick=True, num_rounds=1)
        yield aesz.run(options, (Missing(), SZ3()))


def test_models_count_in_full_in_part_and_not_at_all(record):
    for field in record.data:
        network = record.architecture["networks"][field.split(",")[0]]
        key = f"{field}/{aesz.NETWORK}/5e-02"
        ratios = {what: record.metrics[f"{key}/{what}"].value for what in ("ratio", "ratio_alone")}
        num_bytes = 4
        for n in record.data[field]["shape"]:
            num_bytes *= n
        charged = num_bytes / ratios["ratio_alone"] - num_bytes / ratios["ratio"]
        assert charged == pytest.approx(network["bytes"], rel=0.01)
        assert record.metrics[f"{key}/blocks"].value == 100


def test_cells_are_never_larger(record):
    cells = {key: metric.value for key, metric in record.metrics.items() if key.startswith("cell/")}
    assert set(cells) == {f"cell/synthetic turb, 1e-02/{weights}" for weights in ("shared", "inline")}
    assert max(cells.values()) <= 1.01


def test_tables_show_all(record):
    text = aesz_tables(record)
    for words in ("turb, later, 5e-02", "16 x 16, 8", "fronts, trimtab AE-SZ network", "not measured", "1.00"):
        assert words in text
    assert all(bar.name for bar in record.bars)
