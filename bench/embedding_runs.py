"""The training runs behind `bench.embedding`, kept in .cache/embedding of the checkout.

A small DLRM (`examples.dlrm`) learns synthetic clicks as four ranks with 2,048 samples each would, in one process: the
vectors that a rank would ask for, each id once, are packed for it and unpacked by the code that sends them, so bytes are
those of the real payloads. Every slice is packed, also the quarter that a rank would send to itself. A run that is there
is not repeated, so the same command goes on where it stopped.

    python -m bench.embedding_runs              # trains; an hour on an idle core
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from examples.clicks import SyntheticClicks
from examples.dlrm import DLRM, NUM_ROWS, evaluate, make_table
from trimtab.bounds import Abs, Lossless
from trimtab.comm.embedding import EmbeddingExchange
from trimtab.comm.embedding_tables import Part, Tables, unpack

CACHE = Path(__file__).parents[1] / ".cache" / "embedding"
NUM_RANKS, NUM_SAMPLES, NUM_COLUMNS = 4, 2048, 32
NUM_STEPS, NUM_SEEDS, NUM_TEST_BATCHES, RATE = 150, 5, 25, 0.02

Coder = Callable[[int, list[Part]], tuple[int, list[np.ndarray]]]
"""From a step and the parts of all slices: the bytes that they take, and what comes back."""


def exact(step: int, parts: list[Part]) -> tuple[int, list[np.ndarray]]:
    """Send every vector that was asked for as it is."""
    return sum(part.x.nbytes for part in parts), [part.x for part in parts]


def int8(step: int, parts: list[Part]) -> tuple[int, list[np.ndarray]]:
    """Quantise each vector to 8 bits between its least and greatest element, which travel as float16."""
    back = []
    for part in parts:
        low = part.x.min(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
        step_size = (part.x.max(axis=1, keepdims=True) - low) / 255
        step_size = np.maximum(step_size.astype(np.float16), np.float16(6e-8)).astype(np.float32)
        back.append(np.clip(np.rint((part.x - low) / step_size), 0, 255) * step_size + low)
    return sum(part.x.size + 4 * len(part.x) for part in parts), back


def fp16(step: int, parts: list[Part]) -> tuple[int, list[np.ndarray]]:
    """Round every element to float16."""
    return sum(2 * part.x.size for part in parts), [part.x.astype(np.float16).astype(np.float32) for part in parts]


def packed(settings: EmbeddingExchange) -> Callable[[], Coder]:
    """Return what makes a coder that packs as the exchange does."""

    def make() -> Coder:
        assert not isinstance(settings.bound, Lossless)
        tables = Tables(settings, settings.bound, len(NUM_ROWS))

        def code(step: int, parts: list[Part]) -> tuple[int, list[np.ndarray]]:
            if tables.due(step):
                tables.choose(step, parts)
            payloads = tables.pack(step, parts, NUM_RANKS)
            back = [np.empty_like(part.x) for part in parts]
            for rank, payload in enumerate(payloads):
                unpack(payload, [y for part, y in zip(parts, back, strict=True) if part.rank == rank])
            return sum(payload.size for payload in payloads), back

        return code

    return make


WAYS: dict[str, Callable[[], Coder]] = {
    "exact": lambda: exact,
    "int8": lambda: int8,
    "0.002": packed(EmbeddingExchange(bound=Abs(0.002), every=50)),
    "0.005": packed(EmbeddingExchange(bound=Abs(0.005), every=50)),
    "0.01": packed(EmbeddingExchange(bound=Abs(0.01), every=50)),
    "0.005 after 0.01": packed(EmbeddingExchange(bound=Abs(0.005), early_factor=2, early_steps=100, every=25)),
    "0.005 by class": packed(EmbeddingExchange(bound=Abs(0.005), class_factors=(1 / 3, 1, 5 / 3), every=25)),
    "fp16": lambda: fp16,
}


class Run(NamedTuple):
    """What a run came to."""

    area: float
    num_bytes: int
    """Of the vectors as they are, one a sample and table."""
    num_distinct_bytes: int
    """Of those that are asked for: each id once a rank and table."""
    num_sent: int
    seconds: float


def train(way: str, seed: int, num_steps: int = NUM_STEPS, num_test_batches: int = NUM_TEST_BATCHES) -> Run:
    """Train with vectors that are sent in a way, and return what came of it."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    clicks = SyntheticClicks(NUM_ROWS, seed=seed)
    model = DLRM(len(NUM_ROWS), NUM_COLUMNS)
    generators = [torch.Generator().manual_seed(seed * 1000 + table) for table in range(len(NUM_ROWS))]
    tables = nn.ModuleList(make_table(num, NUM_COLUMNS, g) for num, g in zip(NUM_ROWS, generators, strict=True))
    optimizers = [torch.optim.Adagrad(part.parameters(), lr=RATE) for part in (model, tables)]
    code = WAYS[way]()
    totals = np.zeros(3, np.int64)

    def look_up(step: int, ids: torch.Tensor, count: bool) -> list[torch.Tensor]:
        asked = [
            (table, rank, *torch.unique(part, return_inverse=True))
            for table, column in enumerate(ids)
            for rank, part in enumerate(column.split(NUM_SAMPLES))
        ]
        looked_up = [tables[table](wanted) for table, _, wanted, _ in asked]
        parts = [
            Part(table, rank % NUM_RANKS, x.detach().numpy()) for (table, rank, *_), x in zip(asked, looked_up, strict=True)
        ]
        sent, back = code(step, parts)
        if count:
            distinct = sum(part.x.nbytes for part in parts)
            totals[:] += (ids.numel() * NUM_COLUMNS * 4, distinct, sent)
        # rounding is straight-through
        vectors = [x + (torch.from_numpy(y) - x.detach()) for x, y in zip(looked_up, back, strict=True)]
        spread = [x[places] for x, (*_, places) in zip(vectors, asked, strict=True)]
        each = len(spread) // len(NUM_ROWS)
        return [torch.cat(spread[k * each : (k + 1) * each]) for k in range(len(NUM_ROWS))]

    for step in range(num_steps):
        batch = clicks.batch("train", step, NUM_RANKS * NUM_SAMPLES)
        logits = model(torch.from_numpy(batch.dense), look_up(step, torch.from_numpy(batch.ids), True))
        nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.clicks)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def score(dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return model(dense, look_up(num_steps, ids, False))

    area = evaluate(score, clicks, num_test_batches)
    return Run(area, *map(int, totals), time.perf_counter() - start)


def path(way: str, seed: int) -> Path:
    """Return where a run is kept."""
    return CACHE / f"{way.replace(' ', '-')}-{seed}.json"


def load(way: str, seed: int) -> Run | None:
    """Return a run that was made before."""
    return Run(**json.loads(path(way, seed).read_text())) if path(way, seed).exists() else None


def main(argv: Sequence[str] | None = None) -> None:
    """Make the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(NUM_SEEDS)))
    given: Any = parser.parse_args(argv)
    CACHE.mkdir(parents=True, exist_ok=True)
    for way in given.ways:
        for seed in given.seeds:
            if load(way, seed) is None:
                run = train(way, seed)
                path(way, seed).write_text(json.dumps(run._asdict()) + "\n")
                print(f"{way}, seed {seed}: {run}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
