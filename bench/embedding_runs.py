"""The training runs behind `bench.embedding`, kept in .cache/embedding of the checkout.

A small DLRM (`examples.dlrm`) learns synthetic clicks as four ranks with 2,048 samples each would, in one process: the
vectors that a rank would ask for, each id once, are packed for it and unpacked by the code that sends them: bytes are
those of the real payloads. Every slice is packed, also the quarter that a rank would send to itself. A run that is
there is not repeated, so the same command goes on where it stopped.

    python -m bench.embedding_runs                            # trains; half an hour on an idle core
    python -m bench.embedding_runs --rates 100mbit 200mbit    # times steps; the machine should be idle
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

from bench.harness import NUM_ROUNDS
from examples.clicks import SyntheticClicks
from examples.dlrm import DLRM, NUM_ROWS, evaluate, make_optimizers, make_table
from trimtab.bounds import Abs, Lossless, Rel
from trimtab.comm.embedding import EmbeddingExchange
from trimtab.comm.embedding_tables import Part, Tables, unpack
from trimtab.comm.netlab import Netlab, parse_rate

CACHE = Path(__file__).parents[1] / ".cache" / "embedding"
NUM_RANKS, NUM_SAMPLES, NUM_COLUMNS = 4, 2048, 32
BOUND, GRADIENT_BOUND = 0.01, 1e-3
"""Relative to the range of what is sent of a table, of vectors and of gradients."""
NUM_STEPS, NUM_SEEDS, NUM_TEST_BATCHES, RATE = 150, 5, 25, 0.02

Coder = Callable[[int, list[Part]], tuple[int, list[np.ndarray]]]
"""From a step and the parts of all slices: the bytes that they take, and what comes back."""


def exact(_step: int, parts: list[Part]) -> tuple[int, list[np.ndarray]]:
    """Send every vector that was asked for as it is."""
    return sum(part.x.nbytes for part in parts), [part.x for part in parts]


def int8(_step: int, parts: list[Part]) -> tuple[int, list[np.ndarray]]:
    """Quantise each vector to 8 bits between its least and greatest element, which travel as float16."""
    back = []
    for part in parts:
        low = part.x.min(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
        step_size = (part.x.max(axis=1, keepdims=True) - low) / 255
        step_size = np.maximum(step_size.astype(np.float16), np.float16(6e-8)).astype(np.float32)
        back.append(np.clip(np.rint((part.x - low) / step_size), 0, 255) * step_size + low)
    return sum(part.x.size + 4 * len(part.x) for part in parts), back


def fp16(_step: int, parts: list[Part]) -> tuple[int, list[np.ndarray]]:
    """Round every element to float16."""
    return sum(2 * part.x.size for part in parts), [part.x.astype(np.float16).astype(np.float32) for part in parts]


def packed(settings: EmbeddingExchange) -> Callable[[], Coder]:
    """Return what makes a coder that packs as the exchange does."""

    def make() -> Coder:
        assert not isinstance(settings.bound, Lossless)
        tables = Tables(settings, settings.bound, len(NUM_ROWS))

        def code(step: int, parts: list[Part]) -> tuple[int, list[np.ndarray]]:
            ranges = tables.ranges(parts) if isinstance(settings.bound, Rel) else None
            if tables.due(step):
                tables.choose(step, parts, ranges)
            payloads = tables.pack(step, parts, NUM_RANKS, ranges)
            back = [np.empty_like(part.x) for part in parts]
            for rank, payload in enumerate(payloads):
                unpack(payload, [y for part, y in zip(parts, back, strict=True) if part.rank == rank])
            return sum(payload.size for payload in payloads), back

        return code

    return make


WAYS: dict[str, Callable[[], Coder]] = {
    "exact": lambda: exact,
    "int8": lambda: int8,
    "Rel 0.005": packed(EmbeddingExchange(bound=Rel(0.005), every=50)),
    "Rel 0.01": packed(EmbeddingExchange(bound=Rel(0.01), every=50)),
    "Abs 0.002": packed(EmbeddingExchange(bound=Abs(0.002), every=50)),
    "Abs 0.01": packed(EmbeddingExchange(bound=Abs(0.01), every=50)),
    "Rel 0.005, twice at first": packed(EmbeddingExchange(bound=Rel(0.005), early_factor=2, early_steps=75, every=50)),
    "Rel 0.005, by class": packed(EmbeddingExchange(bound=Rel(0.005), class_factors=(1 / 3, 1, 5 / 3), every=50)),
    "fp16": lambda: fp16,
}


STEP_WAYS: dict[str, Callable[[float], EmbeddingExchange]] = {
    "exact": lambda bandwidth: EmbeddingExchange(bound=Lossless(), bandwidth=bandwidth),
    "packed": lambda bandwidth: EmbeddingExchange(bound=Rel(BOUND), bandwidth=bandwidth),
    "packed both ways": lambda bandwidth: EmbeddingExchange(
        bound=Rel(BOUND), backward_bound=Rel(GRADIENT_BOUND), bandwidth=bandwidth
    ),
}
"""By the bandwidth of the link: exchanges that take turns over a shaped link."""
STEP_RATES = ("25mbit", "50mbit", "100mbit")
NUM_TURN_STEPS, NUM_WARM_UP = 2, 4


class Run(NamedTuple):
    """What a run came to."""

    area: float
    num_bytes: int
    """Of the vectors as they are, one a sample and table."""
    num_distinct_bytes: int
    """Of those that are asked for: each id once a rank and table."""
    num_sent: int
    seconds: float


class Training:
    """The DLRM and its tables, in the hands of four ranks that are simulated."""

    def __init__(self, seed: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.clicks = SyntheticClicks(NUM_ROWS, seed=seed)
        self.model = DLRM(len(NUM_ROWS), NUM_COLUMNS)
        generators = [torch.Generator().manual_seed(seed * 1000 + table) for table in range(len(NUM_ROWS))]
        self.tables = nn.ModuleList(
            make_table(num, NUM_COLUMNS, g) for num, g in zip(NUM_ROWS, generators, strict=True)
        )
        self._optimizers = make_optimizers([self.model, self.tables], RATE)
        self.num_bytes = self.num_distinct_bytes = self.num_sent = 0

    def look_up(self, code: Coder, step: int, ids: torch.Tensor) -> list[torch.Tensor]:
        """Return the vectors of each table as the ranks get them; rounding is straight-through."""
        asked = [
            (table, rank, *torch.unique(part, return_inverse=True))
            for table, column in enumerate(ids)
            for rank, part in enumerate(column.split(NUM_SAMPLES))
        ]
        looked_up = [self.tables[table](wanted) for table, _, wanted, _ in asked]
        numbers = [(table, rank % NUM_RANKS) for table, rank, *_ in asked]
        parts = [Part(*at, x.detach().numpy()) for at, x in zip(numbers, looked_up, strict=True)]
        sent, back = code(step, parts)
        self.num_bytes += ids.numel() * NUM_COLUMNS * 4
        self.num_distinct_bytes += sum(part.x.nbytes for part in parts)
        self.num_sent += sent
        vectors = [x + (torch.from_numpy(y) - x.detach()) for x, y in zip(looked_up, back, strict=True)]
        spread = [x[places] for x, (*_, places) in zip(vectors, asked, strict=True)]
        each = len(spread) // len(NUM_ROWS)
        return [torch.cat(spread[k * each : (k + 1) * each]) for k in range(len(NUM_ROWS))]

    def learn(self, code: Coder, step: int) -> None:
        """Take a step on the samples of all ranks."""
        batch = self.clicks.batch("train", step, NUM_RANKS * NUM_SAMPLES)
        logits = self.model(torch.from_numpy(batch.dense), self.look_up(code, step, torch.from_numpy(batch.ids)))
        nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.clicks)).backward()
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()


def train(way: str, seed: int, num_steps: int = NUM_STEPS, num_test_batches: int = NUM_TEST_BATCHES) -> Run:
    """Train with vectors that are sent in a way, and return what came of it."""
    start = time.perf_counter()
    training, code = Training(seed), WAYS[way]()
    for step in range(num_steps):
        training.learn(code, step)
    sizes = training.num_bytes, training.num_distinct_bytes, training.num_sent

    def score(dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return training.model(dense, training.look_up(code, num_steps, ids))

    return Run(evaluate(score, training.clicks, num_test_batches), *sizes, time.perf_counter() - start)


def path(way: str, seed: int) -> Path:
    """Return where a run is kept."""
    return CACHE / f"{way.replace(',', '').replace(' ', '-')}-{seed}.json"


def load(way: str, seed: int) -> Run | None:
    """Return a run that was made before."""
    return Run(**json.loads(path(way, seed).read_text())) if path(way, seed).exists() else None


def steps(rate: str, num_rounds: int) -> dict[str, Any]:
    """Time steps over links of a rate, or return what was timed before."""
    kept = CACHE / f"steps-{rate}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        out = kept.with_suffix(".part")
        numbers = {"--bandwidth": parse_rate(rate) / 8, "--rounds": num_rounds, "--steps": NUM_TURN_STEPS}
        words = [str(word) for pair in (numbers | {"--warm-up": NUM_WARM_UP, "--out": out}).items() for word in pair]
        with Netlab(nodes=NUM_RANKS, ranks_per_node=1, rate=rate) as lab:
            result = lab.run([sys.executable, "-m", "bench.embedding_ranks", *words], timeout=1800).check()
        kept.write_text(json.dumps(json.loads(out.read_text()) | {"mode": result.mode}) + "\n")
        out.unlink()
    return json.loads(kept.read_text())


def main(argv: Sequence[str] | None = None) -> None:
    """Make the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--rates", nargs="*", default=[], help="time steps over links of these rates, in place of training"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(NUM_SEEDS)))
    given: Any = parser.parse_args(argv)
    CACHE.mkdir(parents=True, exist_ok=True)
    for rate in given.rates:
        print(f"{rate}: {steps(rate, NUM_ROUNDS)['seconds']}", file=sys.stderr)
    for way in given.ways if not given.rates else ():
        for seed in given.seeds:
            if load(way, seed) is None:
                run = train(way, seed)
                path(way, seed).write_text(json.dumps(run._asdict()) + "\n")
                print(f"{way}, seed {seed}: {run}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
