"""The runs behind `bench.tensor_parallel`, each a job on four nodes of one rank, kept in .cache/tensor of the checkout.

A run that is there is not repeated, so the same command goes on where it stopped.

    python -m bench.tensor_runs losses            # trains; an hour on two idle cores
    python -m bench.tensor_runs steps             # times; the machine should be idle
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.gpt import Size
from trimtab.comm.netlab import Netlab

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
        num_rows=8,
        num_steps=400,
        learning_rate=2e-3,
        seeds=3,
        num_held_out=512,
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
TRAINED = ("stock", "fp8", "int8", "fp8-1", "exact", "bf16", "int6", "fp8, sequence", "int8, sequence", "int8, chosen")
TRAINED_2D = (EXACT_2D, "2-D both", "2-D TACO", "2-D SDP4Bit")
TIMED = (EXACT, "bf16", "fp8", "fp8-1", "int8", "int6")
BLOCK, NUM_ROUNDS = 2, 7
"""Steps of a turn, and turns, where steps are timed."""


@dataclass(frozen=True, slots=True)
class Run:
    """One job, or what it found."""

    scale: str
    job: str
    ways: tuple[str, ...]
    seed: int = 0
    block: int = 1
    num_rounds: int = 0
    rate: str | None = None

    @property
    def path(self) -> Path:
        """Where its results are kept."""
        words = [self.job, *self.ways, self.rate or ("unshaped" if self.job == "steps" else f"seed {self.seed}")]
        return CACHE / self.scale.replace(" ", "_") / ("-".join(words).replace(" ", "_").replace(",", "") + ".json")

    @property
    def settings(self) -> dict[str, Any]:
        """What the results depend on."""
        settings = {"run": msgspec.to_builtins(self), "scale": msgspec.to_builtins(SCALES[self.scale])}
        return json.loads(json.dumps(settings))  # lists for tuples, as they are read

    def found(self) -> dict[str, Any] | None:
        """Return the results, if they are there and of these settings."""
        if not self.path.exists():
            return None
        kept = json.loads(self.path.read_text())
        return kept["results"] if kept["settings"] == self.settings else None

    def results(self) -> dict[str, Any]:
        """Return the results; start the job unless they are there.

        Raises:
            CommError: a rank failed.
        """
        found = self.found()
        if found is not None:
            return found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        out = self.path.with_suffix(".part")
        command = [sys.executable, "-m", "bench.tensor_ranks", self.job, "--scale", self.scale, "--ways", *self.ways]
        command += ["--seed", str(self.seed), "--block", str(self.block), "--rounds", str(self.num_rounds)]
        with Netlab(nodes=NUM_RANKS, ranks_per_node=1, rate=self.rate) as lab:
            result = lab.run([*command, "--out", str(out)], timeout=7200).check()
        found = json.loads(out.read_text()) | {"mode": result.mode}
        out.write_text(json.dumps({"settings": self.settings, "results": found}))
        out.replace(self.path)
        return found


def loss_runs(scale: str) -> Iterator[Run]:
    """Yield the runs that train, seed by seed, those of the claims first."""
    for ways in (TRAINED[:4], TRAINED_2D, TRAINED[4:]):
        for seed in range(SCALES[scale].seeds):
            for way in ways:
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
    for ways in (TIMED, TRAINED_2D):
        yield Run(scale, "steps", ways, block=BLOCK, num_rounds=NUM_ROUNDS, rate=half(scale, ways[0]))


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tensor_runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds: dict[str, Callable[[], Iterator[Run]]] = {
        "losses": lambda: loss_runs(args.scale),
        "steps": lambda: step_runs(args.scale),
    }
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--scale", choices=SCALES, default="4 layers")
    parser.add_argument("--limit", type=int, help="how many missing runs to start at most")
    parser.add_argument("--ways", nargs="*", help="only runs of these (default all)")
    args = parser.parse_args(argv)
    missing = [run for run in kinds[args.kind]() if run.found() is None and (not args.ways or run.ways[0] in args.ways)]
    for number, run in enumerate(missing[: args.limit], 1):
        print(f"{number} of {len(missing)}: {run.path.stem}", file=sys.stderr, flush=True)
        run.results()


if __name__ == "__main__":
    main()
