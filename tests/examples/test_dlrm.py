"""The small DLRM of the examples: its clicks, its score, and training by two ranks over real exchanges."""

from __future__ import annotations

import numpy as np
import pytest

from examples.clicks import CriteoClicks, SyntheticClicks
from examples.dlrm import area_under_curve
from tests.dist.launch import run_ranks


def test_synthetic_clicks_repeat_and_can_be_learned():
    clicks = SyntheticClicks([5, 1000], seed=3)
    batch, again = clicks.batch("train", 7, 5000), SyntheticClicks([5, 1000], seed=3).batch("train", 7, 5000)
    assert all(np.array_equal(a, b) for a, b in zip(batch, again, strict=True))
    assert not np.array_equal(batch.ids, clicks.batch("train", 8, 5000).ids)
    assert not np.array_equal(batch.ids, clicks.batch("test", 7, 5000).ids)
    assert batch.dense.shape == (5000, 13) and batch.ids.shape == (2, 5000)
    assert (batch.ids.max(axis=1) < [5, 1000]).all() and batch.ids.min() == 0
    counts = np.sort(np.bincount(batch.ids[1], minlength=1000))[::-1]
    assert 1.6 < counts[0] / counts[1] < 2.9  # 2 ** 1.1
    assert 0.1 < batch.clicks.mean() < 0.6


def test_criteo_files(tmp_path):
    path = tmp_path / "train.txt"
    lines = []
    for k in range(30):
        counts = ["" if k % 3 == 0 else str(k - 1)] + ["7"] * 12
        categories = ["" if k % 4 == 0 else format(k * 1_000_003, "08x")] * 26
        lines.append("\t".join([str(k % 2), *counts, *categories]))
    path.write_text("\n".join(lines) + "\n")
    clicks = CriteoClicks(path, [100] * 26)
    first, second = clicks.batch("train", 0, 20), clicks.batch("train", 1, 20)
    numbers = [*range(20), *range(20, 27), *range(13)]  # the last three lines are for tests
    clicked = np.concatenate([first.clicks, second.clicks])
    assert clicked.tolist() == [k % 2 for k in numbers]
    ids = np.concatenate([first.ids, second.ids], axis=1)
    assert ids.shape == (26, 40)
    assert ids[3].tolist() == [0 if k % 4 == 0 else k * 1_000_003 % 100 for k in numbers]
    dense = np.concatenate([first.dense, second.dense])
    assert dense[:, 0] == pytest.approx([0 if k % 3 == 0 else np.log1p(max(k - 1, 0)) for k in numbers])
    assert clicks.batch("test", 0, 4).clicks.tolist() == [1, 0, 1, 1]
    assert np.array_equal(clicks.batch("train", 1, 20).ids, second.ids)
    with pytest.raises(ValueError, match="26"):
        CriteoClicks(path, [100] * 3)


def test_area_under_the_curve():
    rng = np.random.default_rng(0)
    scores, clicks = rng.integers(0, 20, 400) / 20, (rng.random(400) < 0.3).astype(np.float32)
    wins = scores[clicks > 0][:, None] - scores[clicks == 0][None]
    assert area_under_curve(scores, clicks) == pytest.approx(((wins > 0) + (wins == 0) / 2).mean())


def test_training_by_two_ranks(tmp_path):
    """Packed training ends where exact training does, about, and sends less."""
    common = ["--steps", "8", "--samples", "256", "--columns", "16", "--test-batches", "1", "--rate", "0.05"]
    areas = {}
    for name, more in {
        "exact": [],
        "packed": ["--bound", "0.005", "--bandwidth", "1e6", "--early-factor", "2"],
    }.items():
        said = run_ranks("examples.dlrm", 2, *common, *more, folder=tmp_path, timeout=280)
        assert "TableExchange(8 tables, step 8" in said[0]
        areas[name] = float(said[0].split("area under the curve ")[1].split()[0])
        sizes = said[0].split("step 8, ")[1].split(" bytes")[0].split(" -> ")
        if name == "packed":
            assert 4 * int(sizes[1]) < int(sizes[0])
    assert areas["exact"] > 0.53
    assert abs(areas["exact"] - areas["packed"]) < 0.02
