"""The benchmark of kept activations: its peers, its watch, and its record, from results that are made up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from bench import activation_runs, activations  # noqa: E402
from bench.activation_chart import draw_accuracy, draw_memory  # noqa: E402
from bench.activation_networks import DEEP, NETWORKS, TRAINED  # noqa: E402
from bench.activation_peers import GROUP, BFloat16, Groups, Keeper, _positions  # noqa: E402
from bench.activation_runs import KINDS, Run  # noqa: E402
from bench.activation_tables import activation_tables  # noqa: E402
from bench.activation_ways import EXACT, HEADLINE, WAYS  # noqa: E402
from bench.harness import Options  # noqa: E402
from trimtab.train import COMET  # noqa: E402
from trimtab.train.compressed import CompressedActivations  # noqa: E402

RATIOS = {"bfloat16": 2.0, "4 bits": 8.0, "2 bits": 15.0, HEADLINE: 6.1, "COMET, 13x": 13.0, "COMET, 21x": 21.0}


def batch(num: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num, 1, 28, 28, generator=generator), torch.arange(num) % 10


def gradients(model: nn.Module, keeper: Keeper | None = None) -> list[torch.Tensor]:
    x, labels = batch()
    torch.manual_seed(2)  # of the dropout
    model.zero_grad()
    if keeper is None:
        nn.functional.cross_entropy(model(x), labels).backward()
    else:
        with keeper:
            nn.functional.cross_entropy(model(x), labels).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("keeps_zeros", [False, True])
def test_groups_round_within_a_level_and_are_right_on_average(bits, keeps_zeros):
    x = torch.randn(3, 5, 41, generator=torch.Generator().manual_seed(0))
    x = x.relu() if keeps_zeros else x
    coder = Groups(bits)
    decoded = []
    for _ in range(400):
        num_bytes, decode = coder.encode(x, keeps_zeros=keeps_zeros)
        decoded.append(decode())
    num_groups = -(-x.numel() // GROUP)
    assert num_bytes == num_groups * (GROUP * bits // 8 + (2 if keeps_zeros else 4))
    level = (x.max() - x.min()) / ((1 << bits) - 2)
    assert max(float((y - x).abs().max()) for y in decoded) < 1.02 * level
    assert float((torch.stack(decoded).mean(0) - x).abs().max()) < 0.15 * level
    if keeps_zeros:
        assert all(torch.equal(y > 0, x > 0) for y in decoded), "the codes are the mask"


def test_bfloat16_keeps_least_values_positive():
    x = torch.tensor([0.0, 1e-45, 1.0, 3.14159]).repeat(1024)
    num_bytes, decode = BFloat16().encode(x, keeps_zeros=True)
    assert num_bytes == x.nbytes // 2
    assert torch.equal(decode() > 0, x > 0)


@pytest.mark.parametrize("size", [6, 7])
def test_positions_inside_windows_are_exact(size):
    x = torch.randn(2, 3, size, size + 3)
    _, indices = nn.functional.max_pool2d(x, 2, return_indices=True)
    num_bytes, decode = _positions(indices, x.shape[3])
    assert torch.equal(decode(), indices)
    assert num_bytes == -(-indices.numel() // 4)


@pytest.mark.parametrize("network", NETWORKS)
def test_peers_change_gradients_little_and_count_as_comet_does(network):
    torch.manual_seed(0)
    model = NETWORKS[network](8).train()
    exact = gradients(model)
    errors = {}
    for name, coder in {"bfloat16": BFloat16(), "4 bits": Groups(4), "2 bits": Groups(2)}.items():
        keeper = Keeper(model, coder)
        noisy = gradients(model, keeper)
        errors[name] = float(
            sum((a - b).square().sum() for a, b in zip(noisy, exact, strict=True))
            / sum(a.square().sum() for a in exact)
        )
        assert 1.9 < keeper.saved_bytes / keeper.kept_bytes < 32
    assert 0 < errors["bfloat16"] < 1e-4 < errors["4 bits"] < 0.03 < errors["2 bits"] < 2
    counted = CompressedActivations(COMET(), model, counting=True)
    with counted:
        nn.functional.cross_entropy(model(batch()[0]), batch()[1]).backward()
    assert counted.report["saved_bytes_before"] == keeper.saved_bytes


def test_masks_of_peers_are_exact():
    """Without an error in values, nothing is lost: the masks, places and shapes are right."""

    class Whole:
        def encode(self, x, *, keeps_zeros):
            kept = x.clone()
            return kept.nbytes, lambda: kept

    torch.manual_seed(0)
    model = NETWORKS["VGG"](8).train()
    keeper = Keeper(model, Whole())
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, keeper), gradients(model), strict=True))
    assert keeper.kept_bytes < keeper.saved_bytes / 2


def test_peers_refuse_what_they_do_not_know():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 784), nn.GELU())
    with pytest.raises(NotImplementedError, match="gelu saves"), Keeper(model, BFloat16()):
        model(batch()[0])


RESIDENT = """
import os, sys, time
from pathlib import Path
import numpy as np
from bench.resident import Watch, give_back_freed_memory, reset_peak, resident

give_back_freed_memory()
before, _ = resident()
reset_peak()
with Watch(os.getpid(), Path(sys.argv[1])) as watch:
    x = np.ones(50_000_000, np.uint8)
    time.sleep(0.05)
    del x
assert resident()[1] - before > 45e6
assert resident()[0] - before < 30e6, "freed memory was given back"
assert max(num_bytes for _, num_bytes in watch.points) - before > 45e6
assert [at for at, _ in watch.points] == sorted(at for at, _ in watch.points)
"""


def test_resident_memory_is_watched(tmp_path):
    """In a process of its own: one that has freed memory before takes that first."""
    subprocess.run([sys.executable, "-c", RESIDENT, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])


def made_up(run: Run) -> dict:
    way = run.ways[0]
    if run.kind == "accuracy":
        ratio = RATIOS.get(way)
        return {
            "accuracy": 0.9 + 0.01 * run.seed - (0.001 if way != EXACT else 0) + (0.002 if way == "COMET, 21x" else 0),
            "bytes": [(1000, 1000 / ratio)] * 2 if ratio else [],
            "num_parameters": 10,
            "functions": {},
        }
    if run.kind == "steps":
        slow = {EXACT: 1.0, HEADLINE: 1.3 if run.network == "VGG" else 1.5}
        seconds = {way: [slow.get(way, 1.2)] * 3 for way in run.ways}
        return {"seconds": seconds, "cpu_seconds": seconds}
    if run.kind == "memory":
        grown = 100e6 if way == EXACT else 40e6
        points = [(k / 1000, 5e6 + grown * min(k, 2000 - k) / 1000) for k in range(2000)]
        return {
            "before_bytes": [5e6] * 2,
            "peak_bytes": [5e6 + grown] * 2,
            "points": points,
            "forward_seconds": 1.0,
            "seconds": 2.0,
        }
    if run.kind == "noise":
        off = 1.3 if run.network == "VGG" and way == "COMET, 21x" else 1.1
        layer = {"own": [off, off], "predicted": [1.0, 1.0], "whole step": [2.0, 2.0]}
        return {"layers": {"0": layer, "3.first.0": layer}}
    fits = {"batch": 10, "bytes": 95, "more": 11, "more_bytes": 104, "speed": [5.0, 6.0]}
    return {"budget": 100, "ways": dict.fromkeys(run.ways, fits)}


@pytest.fixture
def record(monkeypatch):
    monkeypatch.setattr(Run, "results", made_up)
    return activations.run("trained", Options(name="activations", quick=True))


def test_figures_and_bars(record):
    metrics = record.metrics
    assert metrics["VGG/4 bits/ratio"].value == 8
    assert metrics["ResNet/COMET, 13x/smaller than 4 bits"].value == pytest.approx(13 / 8)
    assert metrics[f"VGG/{HEADLINE}/mean beside exact"].value == pytest.approx(-0.1)
    assert metrics["VGG/COMET, 21x/mean beside exact"].value == pytest.approx(0.1)
    assert metrics["VGG, 64 wide/COMET, 6x/times"].value == pytest.approx(1.3)
    assert metrics[f"memory/{DEEP}/COMET, 6x/less"].value == pytest.approx(2.5)
    assert metrics["noise/VGG/COMET, 21x/3.first.0/own"].value == pytest.approx(1.3)
    assert metrics["batch/ResNet/exact/of the budget, 5 % more images"].value == pytest.approx(1.04)
    failed = [bar.name for bar in record.bars if not bar.passed]
    assert failed == [
        "VGG: noise of a gradient over its prediction, worst of 2 layers, COMET, 21x",
        "ResNet, 64 wide: time of a step beside exact, COMET, 6x",
    ]
    assert len(record.bars) == 22


def test_tables_and_charts(record):
    text = activation_tables(record)
    assert "| VGG | COMET, 6x | 6.1x | 0.76x | 3.05x | 91.90 | -0.10 ± 0.00 |" in text
    assert "13.5x" in text and "| ResNet | COMET, 13x | 2 | 1.10 | 1.10 | 2.00 |" in text
    memory, accuracy = draw_memory(record), draw_accuracy(record)
    assert memory.count("<polyline") == len(activation_runs.TIMED)
    assert accuracy.count('r="4.5"') == 2 * len(RATIOS) - 1
    assert all(len(curve["points"]) <= 400 for curve in record.data["resident"]["ways"].values())


def test_runs_are_told_apart_and_their_ways_exist():
    runs = [run for kind in KINDS.values() for run in kind("trained")]
    assert len({run.path for run in runs}) == len(runs)
    assert {way for run in runs for way in run.ways} == set(WAYS)
    assert {run.network for run in runs} == {*TRAINED, DEEP}
