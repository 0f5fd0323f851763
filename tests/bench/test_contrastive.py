"""The benchmark of contrastive losses: the peers' formulae, and its record, from results that are made up."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from bench import contrastive, contrastive_chart, contrastive_job, contrastive_runs
from bench.contrastive_losses import OpenCLIP, SigLIP
from bench.contrastive_runs import TUNING_SEED, Run
from bench.contrastive_tables import contrastive_tables
from bench.contrastive_ways import REGIMES, SETTINGS, Regime, make_loss
from bench.harness import Options
from examples.pairs import FashionMNIST

NUM, SCALE, BIAS = 5, 7.0, -3.0


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return tuple(torch.nn.functional.normalize(torch.randn(NUM, 4, dtype=torch.float64), dim=1) for _ in range(2))


def test_openclip_is_the_cross_entropy_of_both_directions(features):
    images, texts = features
    total = 0.0
    for i in range(NUM):
        own = math.exp(SCALE * images[i] @ texts[i])
        total -= math.log(own / sum(math.exp(SCALE * images[i] @ texts[j]) for j in range(NUM)))
        total -= math.log(own / sum(math.exp(SCALE * images[j] @ texts[i]) for j in range(NUM)))
    assert OpenCLIP()(images, texts, torch.tensor(SCALE)).item() == pytest.approx(total / 2 / NUM)


def test_siglip_is_the_logistic_loss_of_every_pair(features):
    images, texts = features
    total = 0.0
    for i in range(NUM):
        for j in range(NUM):
            sign = 1 if i == j else -1
            total += math.log(1 + math.exp(-sign * (SCALE * images[i] @ texts[j] + BIAS)))
    loss = SigLIP(BIAS)
    assert loss(images, texts, torch.tensor(SCALE)).item() == pytest.approx(total / NUM)
    loss(images, texts, torch.tensor(SCALE)).backward()
    assert loss.bias.grad != 0


RECALLS = {"OpenCLIP": 30.0, "SigLIP": 28.0, "FastCLIP v0": 31.0, "FastCLIP v1": 29.9, "FastCLIP v2": 20.0}


def made_up(run: Run) -> dict:
    recall = RECALLS.get(run.way, 32.0) + (run.seed if run.seed != TUNING_SEED else -run.choice)
    if run.way == "FastCLIP v3" and run.seed == 4:
        recall = 33.5
    point = dict.fromkeys(contrastive.METRICS, recall) | {"loss": 100 / recall}
    return {
        "curve": [{"epoch": epoch, **point} for epoch in (1, 2, 3)],
        "validation": point,
        "test": point,
        "temperature": 0.05,
        "num_parameters": 400_000,
        "milliseconds_a_step": 12.0,
        "cpu_seconds": 60.0,
    }


@pytest.fixture
def record(monkeypatch):
    monkeypatch.setattr(Run, "results", made_up)
    return contrastive.run(["batch 64"], Options(name="contrastive"))


def test_bars_and_wins(record):
    metrics = record.metrics
    assert metrics["batch 64/FastCLIP v3/wins"].value == 4
    assert metrics["batch 64/FastCLIP v1/wins"].value == 0
    assert metrics["batch 64/OpenCLIP/recall"].value == 32
    assert metrics["batch 64/OpenCLIP/recall, deviation"].value == pytest.approx(math.sqrt(2.5), rel=1e-5)
    bars = {bar.name: bar for bar in record.bars}
    assert len(bars) == 4
    assert bars["FastCLIP v1, batch 64: mean recall beside OpenCLIP's, points"].reached == pytest.approx(-0.1)
    assert all(bar.passed for bar in bars.values())
    assert record.optimization["settings"]["batch 64"]["SigLIP"] == SETTINGS["SigLIP"][0]


def test_a_loss_that_finds_less_does_not_pass(record, monkeypatch):
    monkeypatch.setitem(RECALLS, "FastCLIP v1", 28.0)
    worse = contrastive.run(["batch 64"], Options(name="contrastive"))
    assert [bar.passed for bar in worse.bars] == [False, True, True, True]


def test_tables_and_chart(record):
    page = contrastive_tables(record)
    assert "**Batch 64**: 20,000 pairs, 15 epochs, 5 seeds" in page
    row = next(line for line in page.splitlines() if line.startswith("| FastCLIP v3"))
    assert "4 of 5 seeds" in row and "**" in row
    chart = ET.fromstring(contrastive_chart.draw(record))
    lines = [node for node in chart.iter() if node.tag.endswith("polyline")]
    assert len(lines) == 2 * 4 * (5 + 1)


def test_runs_are_kept_apart():
    regimes = [name for name in REGIMES if name != "small"]
    runs = [run for name in regimes for run in contrastive_runs.tuning_runs(name, REGIMES[name].ways)]
    assert len({run.path for run in runs}) == len(runs) == 4 * 6
    for run in runs:
        make_loss(run.way, SETTINGS[run.way][run.choice], Regime(num_pairs=8, batch=4, epochs=1))
    assert "--test" not in runs[0].arguments and "--test" in Run("small", "SigLIP", 0, 0).arguments


@pytest.mark.parametrize("way", ["SigLIP", "FastCLIP v2", "FastCLIP v3"])
def test_a_job(way, monkeypatch, tmp_path: Path):
    noise = torch.Generator().manual_seed(0)

    class Noise(FashionMNIST):
        def __init__(self, split: str, start: int = 0, limit: int = 0) -> None:
            self._images = torch.randint(256, (limit, 1, 28, 28), generator=noise, dtype=torch.uint8)
            self._captions = [f"{split} {k % 7} {k % 5}" for k in range(limit)]

    monkeypatch.setattr(contrastive_job, "FashionMNIST", Noise)
    small = Regime(num_pairs=32, batch=8, epochs=2, num_validation=10, num_test=20, gallery=10, num_points=2)
    monkeypatch.setitem(REGIMES, "small", small)
    out = tmp_path / "out.json"
    contrastive_job.main(
        ["--regime", "small", "--way", way, "--choice", "0", "--seed", "1", "--test", "--out", str(out)]
    )
    found = json.loads(out.read_text())
    assert [point["epoch"] for point in found["curve"]] == [1, 2]
    assert 0 <= found["test"]["recall"] <= 100 and found["test"]["loss"] > 0
    assert found["test"].keys() >= set(contrastive.METRICS)
