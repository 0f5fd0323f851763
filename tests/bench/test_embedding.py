"""The benchmark of the embedding exchange: its training in one process, and its record from made-up results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import embedding, embedding_runs
from bench.comm_tables import embedding_tables
from bench.embedding_runs import CACHE, Area, Steps, areas
from bench.embedding_training import NUM_RANKS, NUM_SAMPLES, Message, Training, packed, train
from bench.embedding_ways import BOTH_WAYS, GRADIENT_BOUND, HEADLINE, STEP_WAYS, WAYS
from bench.harness import Options
from trimtab.bounds import Rel
from trimtab.comm.embedding import EmbeddingExchange

SENT = {"exact": 100, "int8": 28, HEADLINE: 14, BOTH_WAYS: 14}


def made_up(run: Area) -> dict | None:
    if run.way not in SENT:
        return None
    area = 0.8 + 0.01 * run.seed + {HEADLINE: 0.0001 * (run.seed - 1), BOTH_WAYS: -0.001}.get(run.way, 0)
    returned = 25 if run.way == BOTH_WAYS else 100
    return {
        "area": area,
        "num_bytes": 500,
        "num_distinct_bytes": 100,
        "num_sent": SENT[run.way],
        "num_returned": returned,
    }


def timed(run: Steps) -> dict:
    slow = {"25mbit": 4.0, "50mbit": 2.0, "100mbit": 1.0}[run.rate]
    return {
        "seconds": {way: [slow / k] * 2 for k, way in enumerate(STEP_WAYS, 1)},
        "shares": {way: [0.3 * slow] * 2 for way in STEP_WAYS},
        "sizes": {way: {"sent_bytes": 10, "calls": 2} for way in STEP_WAYS},
    }


def test_record_and_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Area, "found", made_up)
    monkeypatch.setattr(Steps, "results", timed)
    monkeypatch.setattr(embedding, "trained_vectors", lambda _: {"every sample": [], "every id once": []})
    monkeypatch.setattr(embedding, "speed_and_choice", lambda *_: {})
    made = embedding.run(Options("embedding", num_rounds=2))
    metrics = made.metrics
    assert metrics[f"{HEADLINE}/vectors/times int8"].value == 2
    assert metrics[f"{BOTH_WAYS}/both ways/times exact"].value == pytest.approx(200 / 39, rel=1e-5)
    assert metrics[f"{HEADLINE}/mean area beside exact"].value == pytest.approx(0.0001)
    assert metrics[f"{HEADLINE}/mean distance of area to exact"].value == pytest.approx(0.00014)
    passed = {bar.name.removeprefix(f"{BOTH_WAYS}: "): bar.passed for bar in made.bars}
    assert not passed["area under the curve beside exact, |mean of 5 seeds|"]
    speeds = {bar.name: bar.reached for bar in made.bars if "half of it" in bar.name}
    assert list(speeds.values()) == [2, 3]  # at 50 Mbit/s, where the exchange takes 0.6 of a step
    table = embedding_tables(made)
    assert f"| {BOTH_WAYS} | 35.7 | 2.00x | 4.00 | 0.8190 | -0.00100 | 0.00100 | 3.00x | 3.00x | 3.00x |" in table
    assert "| int8 | 17.9 | 1.00x | 1.00 | 0.8200 | +0.00000 | 0.00000 | - | - | - |" in table


def test_runs_are_kept_apart_and_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = list(areas())
    assert len({run.path for run in runs}) == len(runs) == 5 * len(WAYS)
    assert [run.way for run in runs[:20:5]] == [way for way in WAYS if way in embedding_runs.CLAIMED]
    assert all(run.path.is_relative_to(CACHE) for run in runs)
    calls = []
    monkeypatch.setattr(embedding_runs, "CACHE", tmp_path)
    monkeypatch.setattr(embedding_runs, "train", lambda *arguments: calls.append(arguments) or {"area": 0.5})
    for _ in range(2):
        embedding_runs.main(["areas", "--ways", "exact", "--limit", "3"])
    assert [seed for _, seed, _ in calls] == [0, 1, 2, 3, 4]
    assert Area("exact", 4).results() == {"area": 0.5}
    monkeypatch.setattr(embedding_runs, "NUM_STEPS", 7)
    assert Area("exact", 4).found() is None


def test_messages_come_within_the_bound_of_the_whole_table() -> None:
    rng = np.random.default_rng(0)
    x = [rng.normal(0, 10.0 ** (k // NUM_RANKS), (50, 4)).astype(np.float32) for k in range(8)]
    messages = [Message(k // NUM_RANKS, k % NUM_RANKS, 1, part) for k, part in enumerate(x)]
    num_bytes, back = packed(EmbeddingExchange(encoder="dedup"), Rel(0.01))(0, messages)
    assert num_bytes < sum(part.nbytes for part in x) / 2
    for table in range(2):
        theirs, ours = (np.concatenate(parts[4 * table : 4 * table + 4]) for parts in (x, back))
        assert 0 < np.abs(theirs - ours).max() <= 0.01 * (theirs.max() - theirs.min())


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_training_packs_vectors_and_gradients() -> None:
    exact, forward, both = (train(WAYS[way], 0, 2, 1) for way in ("exact", HEADLINE, BOTH_WAYS))
    assert exact["num_sent"] == exact["num_returned"] == forward["num_returned"] == exact["num_distinct_bytes"]
    assert both["num_sent"] < exact["num_sent"] / 4
    assert both["num_returned"] < exact["num_returned"] / 3
    assert 0.4 < both["area"] != exact["area"]


def test_gradients_come_within_their_bound() -> None:
    gradients = []
    for way in (HEADLINE, BOTH_WAYS):
        training = Training(WAYS[way], 0)
        batch = training.clicks.batch("train", 0, NUM_RANKS * NUM_SAMPLES)
        weights = torch.Generator().manual_seed(1)
        for x in training.look_up(torch.from_numpy(batch.ids)):
            (x * torch.randn(x.shape, generator=weights)).sum().backward(retain_graph=True)
        gradients.append([table.weight.grad.to_dense() for table in training.tables])
    changes = []
    for exact, ours in zip(*gradients, strict=True):
        changes.append(float((exact - ours).abs().max()))
        assert changes[-1] <= NUM_RANKS * GRADIENT_BOUND * float(exact.max() - exact.min())
    assert sum(change > 0 for change in changes) > 4  # a small table may go as it is
