"""The runs behind `bench.sharded`, each a job on two nodes of two ranks, kept in .cache/sharded of the checkout.

A run that is there is not repeated, so the same command goes on where it stopped. Ranks of one node talk over its
loopback; the link between the nodes is shaped where steps are timed.

    python -m bench.sharded_runs losses            # trains; hours
    python -m bench.sharded_runs steps --limit 1   # times; the machine should be idle
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import jobs
from bench.gpt import SIZES, Size
from bench.harness import NUM_ROUNDS
from bench.jobs import RanksJob

CACHE = Path(__file__).parents[1] / ".cache" / "sharded"
NODES, RANKS_PER_NODE = 2, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the model is, and how long it trains."""

    size: Size
    num_rows: int
    """Sequences a rank and step."""
    num_steps: int
    learning_rate: float
    seeds: int
    num_curve_rows: int
    """Sequences of the validation text for the points of a curve."""
    num_held_out: int
    """Sequences of the validation text for the loss that counts."""


SCALES = {
    "10M": Scale(
        size=SIZES["10M"],
        num_rows=4,
        num_steps=200,
        learning_rate=1e-3,
        seeds=3,
        num_curve_rows=64,
        num_held_out=1024,
    ),
    "small": Scale(
        size=SIZES["small"],
        num_rows=2,
        num_steps=20,
        learning_rate=3e-3,
        seeds=1,
        num_curve_rows=16,
        num_held_out=64,
    ),
}
"""Name -> scale: of the claims, and of a quick check."""

STOCK, OURS, AUTO = "stock", "SDP4Bit", "SDP4Bit, auto"
TRAINED = (STOCK, "qW", "qWD", "TLq", "TLq-HS", OURS, "ZeRO++-style")
"""The ways whose losses are compared: those of the paper's Table 1, and a peer."""
NUM_WARM_UP = 3
"""Steps of each way before any is timed: PowerSGD begins with the third."""
NUM_REPEATED = 25
"""Steps of a run that is repeated."""
TIMED = (
    STOCK,
    "stock, resharding",
    "exact, flat",
    "exact, two levels",
    "ZeRO++-style",
    "TLq-HS",
    "DDP",
    "DDP, fp16 hook",
    "DDP, PowerSGD",
    "DDP, SDP4Bit",
)
"""The ways that take turns with ours, and with ours as it decides for itself."""
RATES = {"100mbit": 1, "300mbit": 2, "1gbit": 3}
"""Rate of the link -> steps of a turn."""
DRAWN = (STOCK, "exact, two levels", "DDP, fp16 hook")
"""The ways that take turns with ours at every rate; the others only at the first and the last."""


@dataclass(frozen=True, slots=True)
class Run(RanksJob):
    """One job, or what it found."""

    module = "bench.sharded_ranks"
    nodes, ranks_per_node = NODES, RANKS_PER_NODE

    scale: str
    job: str
    ways: tuple[str, ...]
    seed: int = 0
    num_steps: int = 0
    num_rounds: int = 0
    rate: str | None = None
    label: str = ""

    @property
    def path(self) -> Path:
        words = [self.job, *self.ways, self.rate or f"seed {self.seed}", self.label]
        return CACHE / self.scale / ("-".join(word for word in words if word).replace(" ", "_") + ".json")

    @property
    def depends_on(self) -> dict[str, Any]:
        return {"run": msgspec.to_builtins(self), "scale": msgspec.to_builtins(SCALES[self.scale])}

    @property
    def arguments(self) -> list[str]:
        numbers = ["--seed", str(self.seed), "--steps", str(self.num_steps), "--rounds", str(self.num_rounds)]
        return [self.job, "--scale", self.scale, "--ways", *self.ways, *numbers]

    @property
    def link_rate(self) -> str | None:
        return self.rate


def loss_runs(scale: str) -> Iterator[Run]:
    """Yield the runs that train, seed by seed, and one that repeats the start of another."""
    num_steps = SCALES[scale].num_steps
    for seed in range(SCALES[scale].seeds):
        for way in TRAINED:
            yield Run(scale, "losses", (way,), seed=seed, num_steps=num_steps)
    yield repeated(scale)


def repeated(scale: str) -> Run:
    """Return the run that repeats the first steps of ours."""
    return Run(scale, "losses", (OURS,), num_steps=min(NUM_REPEATED, SCALES[scale].num_steps), label="again")


def step_runs(scale: str, num_rounds: int) -> Iterator[Run]:
    """Yield the runs that time steps, each of one way and ours by turns."""
    for rate, block in RATES.items():
        for way in DRAWN if 0 < list(RATES).index(rate) < len(RATES) - 1 else TIMED:
            yield Run(scale, "steps", (way, OURS, AUTO), num_steps=block, num_rounds=num_rounds, rate=rate)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    kinds: dict[str, Callable[[], Iterator[Run]]] = {
        "losses": lambda: loss_runs(args.scale),
        "steps": lambda: step_runs(args.scale, args.rounds),
    }
    parser = jobs.parser("bench.sharded_runs", __doc__, kinds)
    parser.add_argument("--scale", choices=SCALES, default="10M")
    parser.add_argument(
        "--rounds", type=int, default=NUM_ROUNDS, help=f"timed turns of each way (default {NUM_ROUNDS})"
    )
    args = parser.parse_args(argv)
    jobs.run_missing([run for run in kinds[args.kind]() if not args.ways or run.ways[0] in args.ways], args.limit)


if __name__ == "__main__":
    main()
