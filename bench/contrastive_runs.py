"""The runs behind `bench.contrastive`, each a process of its own, kept in .cache/contrastive of the checkout.

A run that is there is not repeated, so the same command goes on where it stopped. Settings are chosen on a seed of
their own by recall on validation pairs, six tries for every loss; then five seeds train with the best.

    python -m bench.contrastive_runs tune         # a minute or two a run on an idle core
    python -m bench.contrastive_runs seeds        # the same; first runs what is missing of `tune`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import jobs
from bench.contrastive_ways import REGIMES, SETTINGS
from bench.jobs import ProcessJob

CACHE = Path(__file__).parents[1] / ".cache" / "contrastive"
TUNING_SEED = 100


@dataclass(frozen=True, slots=True)
class Run(ProcessJob):
    """One job, or what it found."""

    module = "bench.contrastive_job"

    regime: str
    way: str
    choice: int
    """Which of the settings of the way."""
    seed: int

    @property
    def path(self) -> Path:
        words = f"{self.way}-{self.choice}-seed {self.seed}.json"
        return CACHE / _file_name(self.regime) / _file_name(words)

    @property
    def depends_on(self) -> dict[str, Any]:
        regime = msgspec.to_builtins(REGIMES[self.regime])
        for name in ("ways", "num_seeds", "num_tries"):  # which runs there are
            del regime[name]
        return {
            "run": msgspec.to_builtins(self),
            "regime": regime,
            "settings": SETTINGS[self.way][self.choice],
        }

    @property
    def arguments(self) -> list[str]:
        words = ["--regime", self.regime, "--way", self.way, "--choice", str(self.choice), "--seed", str(self.seed)]
        return words if self.seed == TUNING_SEED else [*words, "--test"]


def _file_name(words: str) -> str:
    return words.replace(" ", "_").replace(",", "")


def tuning_runs(regime: str, ways: Sequence[str]) -> Iterator[Run]:
    """Yield the runs that settings are chosen by."""
    for way in ways:
        for choice in range(len(SETTINGS[way]))[: REGIMES[regime].num_tries]:
            yield Run(regime, way, choice, TUNING_SEED)


def best(regime: str, way: str) -> int:
    """Return which settings of a way have the best recall on validation pairs, starting runs that are missing."""
    found = [run.results()["validation"]["recall"] for run in tuning_runs(regime, [way])]
    return found.index(max(found))


def seed_runs(regime: str, ways: Sequence[str]) -> Iterator[Run]:
    """Yield the runs of the claims, seed by seed."""
    chosen = {way: best(regime, way) for way in ways}
    for seed in range(REGIMES[regime].num_seeds):
        for way, choice in chosen.items():
            yield Run(regime, way, choice, seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    kinds: dict[str, Callable[..., Iterator[Run]]] = {"tune": tuning_runs, "seeds": seed_runs}
    parser = jobs.parser("bench.contrastive_runs", __doc__, kinds)
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=[name for name in REGIMES if name != "small"])
    args = parser.parse_args(argv)
    for regime in args.regimes:
        ways = [way for way in REGIMES[regime].ways if not args.ways or way in args.ways]
        jobs.run_missing([*kinds[args.kind](regime, ways)], args.limit)


if __name__ == "__main__":
    main()
