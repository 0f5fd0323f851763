"""The runs behind `bench.tensor_parallel`, each a job on four nodes of one rank, kept in .cache/tensor of the checkout.

A run that is there is not repeated, so the same command goes on where it stopped.

    python -m bench.tensor_runs losses            # trains; an hour on two idle cores
    python -m bench.tensor_runs steps             # times; the machine should be idle
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import jobs
from bench.gpt import Size
from bench.jobs import RanksJob

CACHE = Path(__file__).parents[1] / ".cache" / "tensor"
NUM_RANKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the model is, and how long it trains."""

    size: Size
    num_rows: int
    """Sequences a step."""
    num_steps: int
    learning_rate: float
    seeds: int
    num_held_out: int
    """Sequences of the validation text."""
    num_warm_up: int
    """Steps of each way before any is timed or counted."""


SCALES = {
    "4 layers": Scale(
        size=Size(width=128, num_heads=4, num_blocks=4, context=128),
        num_rows=16,
        num_steps=400,
        learning_rate=1e-3,
        seeds=3,
        num_held_out=1024,
        num_warm_up=3,
    ),
    "small": Scale(
        size=Size(width=64, num_heads=4, num_blocks=1, context=64),
        num_rows=4,
        num_steps=8,
        learning_rate=2e-3,
        seeds=1,
        num_held_out=16,
        num_warm_up=2,
    ),
}
"""Name -> scale: of the claims, and of a quick check."""

EXACT = "stock"
EXACT_2D = "2-D stock"
TRAINED = (EXACT, "fp8", "int8", "fp8-1", EXACT_2D, "2-D both")
TIMED = (EXACT, "bf16", "fp8", "fp8-1", "int8", "int6", "fp8, sequence", "int8, sequence", "int8, chosen")
TIMED_2D = (EXACT_2D, "2-D both", "2-D TACO", "2-D SDP4Bit")
"""Ways that are trained, from all seeds; those that take turns; and those that take turns on a mesh of two axes."""
BLOCK, NUM_ROUNDS = 2, 7
"""Steps of a turn, and turns, where steps are timed."""


@dataclass(frozen=True, slots=True)
class Run(RanksJob):
    """One job, or what it found."""

    module = "bench.tensor_ranks"
    nodes, ranks_per_node = NUM_RANKS, 1

    scale: str
    job: str
    ways: tuple[str, ...]
    seed: int = 0
    block: int = 1
    num_rounds: int = 0
    rate: str | None = None

    @property
    def path(self) -> Path:
        words = [self.job, *self.ways, self.rate or ("unshaped" if self.job == "steps" else f"seed {self.seed}")]
        return CACHE / self.scale.replace(" ", "_") / ("-".join(words).replace(" ", "_").replace(",", "") + ".json")

    @property
    def depends_on(self) -> dict[str, Any]:
        return {"run": msgspec.to_builtins(self), "scale": msgspec.to_builtins(SCALES[self.scale])}

    @property
    def arguments(self) -> list[str]:
        numbers = ["--seed", str(self.seed), "--steps", str(self.block), "--rounds", str(self.num_rounds)]
        return [self.job, "--scale", self.scale, "--ways", *self.ways, *numbers]

    @property
    def link_rate(self) -> str | None:
        return self.rate


def loss_runs(scale: str) -> Iterator[Run]:
    """Yield the runs that train, seed by seed."""
    for seed in range(SCALES[scale].seeds):
        for way in TRAINED:
            yield Run(scale, "losses", (way,), seed=seed)


def unshaped(scale: str, exact: str) -> Run:
    """Return the run whose steps cost next to nothing but computation: the links are as fast as the machine."""
    return Run(scale, "steps", (exact,), block=BLOCK, num_rounds=NUM_ROUNDS)


def half(scale: str, exact: str) -> str:
    """Return the rate of a link at which exact communication takes half of a step: as long as the computation."""
    found = unshaped(scale, exact).results()
    seconds, num_bytes = (statistics.median(found[key][exact]) for key in ("seconds", "sent_bytes"))
    return f"{8e-6 * num_bytes / seconds:.3g}mbit"


def step_runs(scale: str) -> Iterator[Run]:
    """Yield the runs in which ways take turns, exact communication being half of the step."""
    for ways in (TIMED, TIMED_2D):
        yield Run(scale, "steps", ways, block=BLOCK, num_rounds=NUM_ROUNDS, rate=half(scale, ways[0]))


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    kinds: dict[str, Callable[[], Iterator[Run]]] = {
        "losses": lambda: loss_runs(args.scale),
        "steps": lambda: step_runs(args.scale),
    }
    parser = jobs.parser("bench.tensor_runs", __doc__, kinds)
    parser.add_argument("--scale", choices=SCALES, default="4 layers")
    args = parser.parse_args(argv)
    jobs.run_missing([run for run in kinds[args.kind]() if not args.ways or run.ways[0] in args.ways], args.limit)


if __name__ == "__main__":
    main()
