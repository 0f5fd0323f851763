"""The runs behind `bench.embedding`, each a job, kept in .cache/embedding of the checkout.

A run that is there is not repeated, so the same command goes on where it stopped.

    python -m bench.embedding_runs areas    # trains; ten minutes on an idle core
    python -m bench.embedding_runs steps    # times; the machine should be idle
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import jobs
from bench.embedding_training import NUM_COLUMNS, NUM_RANKS, NUM_SAMPLES, NUM_TEST_BATCHES, RATE, train
from bench.embedding_ways import BOTH_WAYS, HEADLINE, STEP_WAYS, WAYS
from bench.harness import NUM_ROUNDS
from bench.jobs import Job, RanksJob
from examples.dlrm import NUM_ROWS
from trimtab.codecs.embedding_choice import NANOSECONDS
from trimtab.comm.embedding import EmbeddingExchange
from trimtab.comm.netlab import parse_rate

CACHE = Path(__file__).parents[1] / ".cache" / "embedding"
NUM_STEPS, NUM_SEEDS = 150, 5
STEP_RATES = ("25mbit", "50mbit", "100mbit")
NUM_TURN_STEPS, NUM_WARM_UP = 2, 4
CLAIMED = ("exact", "int8", HEADLINE, BOTH_WAYS)
"""The ways that bars are about."""

_MODEL = {"rows": NUM_ROWS, "columns": NUM_COLUMNS, "ranks": NUM_RANKS, "samples": NUM_SAMPLES, "rate": RATE}


@dataclass(frozen=True, slots=True)
class Area(Job):
    """A training run and the area under its curve; see `bench.embedding_training.train`."""

    way: str
    seed: int

    @property
    def path(self) -> Path:
        return CACHE / f"{self.way.replace(',', '').replace(' ', '-')}-{self.seed}.json"

    @property
    def depends_on(self) -> dict[str, Any]:
        way = WAYS[self.way]
        settings = self.way
        if isinstance(way, EmbeddingExchange):
            settings = {**msgspec.to_builtins(way), "costs": NANOSECONDS}
        numbers = {"seed": self.seed, "steps": NUM_STEPS, "test_batches": NUM_TEST_BATCHES}
        return {"way": settings, **numbers, "model": _MODEL}

    def work(self, out: Path) -> dict[str, Any]:
        return train(WAYS[self.way], self.seed, NUM_STEPS)


@dataclass(frozen=True, slots=True)
class Steps(RanksJob):
    """Timed steps in which the ways of `STEP_WAYS` take turns over links of a rate."""

    module = "bench.embedding_ranks"
    nodes, ranks_per_node = NUM_RANKS, 1

    rate: str
    num_rounds: int = NUM_ROUNDS

    @property
    def path(self) -> Path:
        return CACHE / f"steps-{self.rate}.json"

    @property
    def depends_on(self) -> dict[str, Any]:
        ways = {way: msgspec.to_builtins(make(parse_rate(self.rate) / 8)) for way, make in STEP_WAYS.items()}
        turns = {"rounds": self.num_rounds, "steps": NUM_TURN_STEPS, "warm_up": NUM_WARM_UP}
        return {"ways": ways, "turns": turns, "model": _MODEL}

    @property
    def arguments(self) -> list[str]:
        return ["--rate", self.rate, "--rounds", str(self.num_rounds)]

    @property
    def link_rate(self) -> str:
        return self.rate


def areas(ways: Sequence[str] = tuple(WAYS)) -> Iterator[Area]:
    """Yield the training runs, those that bars are about first."""
    for way in sorted(ways, key=lambda way: way not in CLAIMED):
        for seed in range(NUM_SEEDS):
            yield Area(way, seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    kinds: dict[str, Callable[[], Iterator[Area | Steps]]] = {
        "areas": lambda: areas(args.ways or tuple(WAYS)),
        "steps": lambda: (Steps(rate) for rate in STEP_RATES),
    }
    parser = jobs.parser("bench.embedding_runs", __doc__, kinds)
    args = parser.parse_args(argv)
    jobs.run_missing(list(kinds[args.kind]()), args.limit)


if __name__ == "__main__":
    main()
