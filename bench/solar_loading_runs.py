"""The runs behind `bench.solar_loading`, each a job of its own, kept in .cache/solar_loading of the checkout.

A run that is there is not repeated, so the same command goes on where it stopped. The files of samples, up to 2 GiB,
are kept beside them.

    python -m bench.solar_loading_runs slow --rounds 3       # a throttled store; up to a minute a run
    python -m bench.solar_loading_runs cached --rounds 5     # everything in the page cache; seconds a run
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import jobs
from bench.jobs import ProcessJob
from bench.solar_loading_ways import LOOK_AHEAD, NETWORK, NUM_THREADS, Shape

CACHE = Path(__file__).parents[1] / ".cache" / "solar_loading"

STOCK = ("DataLoader 0", "DataLoader 2", "DataLoader 4")
OURS = ("trimtab 0", "trimtab 0.5", "trimtab 0.9", "trimtab 1")
POOLED, NETWORKED = "pooled 0.5", "pooled, network 0.5"
WAYS = (*STOCK, *OURS, POOLED, NETWORKED)
LATENCIES = (0.5e-3, 2e-3)
NUM_RANKS = (4, 8)
SAMPLE_BYTES = (65_536, 1_048_576)


def slow_shapes() -> dict[str, Shape]:
    """Return name -> shape: samples on a throttled store."""
    return {
        f"{latency * 1e3:g} ms, {ranks} ranks, {size // 1024} KiB": Shape(
            num_samples=4096 if size < 2**20 else 2048, sample_bytes=size, num_ranks=ranks, batch_size=16,
            num_epochs=10, latency=latency,
        )
        for latency in LATENCIES
        for ranks in NUM_RANKS
        for size in SAMPLE_BYTES
    }  # fmt: skip


def cached_shapes() -> dict[str, Shape]:
    """Return name -> shape: samples in the page cache."""
    return {
        f"page cache, {ranks} ranks, {size // 1024} KiB": Shape(
            num_samples=4096 if size < 2**20 else 1024, sample_bytes=size, num_ranks=ranks, batch_size=16,
            num_epochs=10, latency=None,
        )
        for ranks in (1, 4)
        for size in SAMPLE_BYTES
    }  # fmt: skip


def small_shapes() -> dict[str, Shape]:
    """Return name -> shape: what shows in seconds that all ways run."""
    return {"small": Shape(256, 16_384, 2, 8, 3, 0.5e-3)}


@dataclass(frozen=True, slots=True)
class Load(ProcessJob):
    """One run, or what it found."""

    module = "bench.solar_loading_job"

    shape: Shape
    way: str
    round: int

    @property
    def path(self) -> Path:
        shape = self.shape
        latency = "cached" if shape.latency is None else f"{shape.latency * 1e3:g}ms"
        folder = f"{latency}-{shape.num_ranks}x{shape.batch_size}-{shape.num_samples}x{shape.sample_bytes}"
        return CACHE / folder / f"{self.way.replace(', ', '_').replace(' ', '_')}-{self.round}.json"

    @property
    def depends_on(self) -> dict[str, Any]:
        found = {"shape": msgspec.to_builtins(self.shape), "way": self.way, "round": self.round}
        if self.way not in STOCK:
            found |= {"look_ahead": LOOK_AHEAD, "num_threads": NUM_THREADS}
        return found | {"network": [*NETWORK]} if self.way == NETWORKED else found

    @property
    def arguments(self) -> list[str]:
        return ["--way", self.way, "--shape", msgspec.json.encode(self.shape).decode(), "--data", str(CACHE / "data")]


def loads(shapes: dict[str, Shape], ways: Sequence[str], num_rounds: int) -> Iterator[Load]:
    """Yield runs, round by round: within one, all ways of a shape take turns."""
    for number in range(num_rounds):
        for shape in shapes.values():
            for way in ways:
                if shape.latency is not None or way in (*STOCK, *OURS):
                    yield Load(shape, way, number)


KINDS: dict[str, Callable[[], dict[str, Shape]]] = {
    "slow": slow_shapes,
    "cached": cached_shapes,
    "small": small_shapes,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    parser = jobs.parser("bench.solar_loading_runs", __doc__, dict.fromkeys(KINDS, loads))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    ways = [way for way in WAYS if not args.ways or way in args.ways]
    jobs.run_missing([*loads(KINDS[args.kind](), ways, args.rounds)], args.limit)


if __name__ == "__main__":
    main()
