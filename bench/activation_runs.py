"""The runs behind `bench.activations`, each a process of its own, kept in .cache/activations of the checkout.

A run that is there is not repeated, so the same command goes on where it stopped.

    python -m bench.activation_runs accuracy      # trains; hours on an idle core, two minutes a run
    python -m bench.activation_runs steps         # times; the machine should be idle
    python -m bench.activation_runs memory        # resident memory
    python -m bench.activation_runs noise         # the error of gradients, against its prediction
    python -m bench.activation_runs batch         # the largest batch under a budget; the machine should be idle
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import jobs
from bench.activation_networks import DEEP, RATES, SCALES, TRAINED, USUAL_RATE
from bench.activation_ways import CHECKPOINTS, EXACT, HEADLINE, WAYS
from bench.jobs import ProcessJob

CACHE = Path(__file__).parents[1] / ".cache" / "activations"
NUM_SEEDS = 5
SMALLER = {"VGG": "COMET, 21x", "ResNet": "COMET, 13x"}
"""Network -> the way that is compared with 4 bits: without BatchNorm, more of the bytes are masks and indices."""
LEARNT = {
    network: tuple(way for way in WAYS if way != CHECKPOINTS and (network, way) != ("ResNet", SMALLER["VGG"]))
    for network in TRAINED
}
ONCE = ("bfloat16", "2 bits")
"""Ways that train with the first seed alone: their bytes are compared, not their accuracy."""
COMPARED = {"VGG": ("COMET, 13x", "COMET, 21x"), "ResNet": (HEADLINE, "COMET, 13x")}
TIMED = (EXACT, HEADLINE, "COMET, 13x", CHECKPOINTS)
BATCHED = (EXACT, HEADLINE, "COMET, 13x")
"""Ways whose accuracy, whose errors, whose times and memory, and whose largest batch are measured."""


@dataclass(frozen=True, slots=True)
class Run(ProcessJob):
    """One job, or what it found."""

    module = "bench.activation_job"

    scale: str
    kind: str
    network: str
    ways: tuple[str, ...]
    seed: int = 0

    @property
    def path(self) -> Path:
        ways = self.ways if len(self.ways) == 1 else ()
        words = " ".join([self.kind, self.network, *ways, f"seed {self.seed}"])
        return CACHE / self.scale / (words.replace(" ", "_").replace(",", "") + ".json")

    @property
    def depends_on(self) -> dict[str, Any]:
        notes = {way: WAYS[way].note for way in self.ways}
        return {
            "run": msgspec.to_builtins(self),
            "scale": msgspec.to_builtins(SCALES[self.scale]),
            "rate": RATES.get(self.network, USUAL_RATE),
            "notes": notes,
        }

    @property
    def arguments(self) -> list[str]:
        return [
            self.kind,
            "--scale",
            self.scale,
            "--network",
            self.network,
            "--seed",
            str(self.seed),
            "--ways",
            *self.ways,
        ]


def num_seeds(scale: str) -> int:
    """Return how often each way trains."""
    return NUM_SEEDS if scale == "trained" else 1


def accuracy_runs(scale: str) -> Iterator[Run]:
    """Yield the runs that train, seed by seed."""
    for seed in range(num_seeds(scale)):
        for network in TRAINED:
            for way in LEARNT[network]:
                if seed and way in ONCE:
                    continue
                yield Run(scale, "accuracy", network, (way,), seed)


def step_runs(scale: str) -> Iterator[Run]:
    """Yield the runs in which ways take turns, at the scale of the accuracies and with usual widths."""
    for name in dict.fromkeys((scale, larger(scale, "wide"))):
        for network in TRAINED:
            yield Run(name, "steps", network, TIMED)


def memory_runs(scale: str) -> Iterator[Run]:
    """Yield the runs whose resident memory is watched, a process a way."""
    for network in (*TRAINED, DEEP):
        for way in TIMED:
            yield Run(larger(scale, "large"), "memory", network, (way,))


def noise_runs(scale: str) -> Iterator[Run]:
    """Yield the runs that compare errors of gradients with their prediction."""
    for network in TRAINED:
        for way in COMPARED[network]:
            yield Run(scale, "noise", network, (way,))


def batch_runs(scale: str) -> Iterator[Run]:
    """Yield the runs that look for the largest batch under a budget."""
    for network in TRAINED:
        yield Run(larger(scale, "wide"), "batch", network, BATCHED)


def larger(scale: str, name: str) -> str:
    """Return the scale called `name`, which goes with that of the accuracies; a quick check has one scale alone."""
    return name if scale == "trained" else scale


KINDS: dict[str, Callable[[str], Iterator[Run]]] = {
    "accuracy": accuracy_runs,
    "steps": step_runs,
    "memory": memory_runs,
    "noise": noise_runs,
    "batch": batch_runs,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    parser = jobs.parser("bench.activation_runs", __doc__, KINDS)
    parser.add_argument("--scale", choices=("trained", "small"), default="trained")
    args = parser.parse_args(argv)
    found = KINDS[args.kind](args.scale)
    jobs.run_missing([run for run in found if not args.ways or set(run.ways) <= set(args.ways)], args.limit)


if __name__ == "__main__":
    main()
