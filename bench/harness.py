"""The stop-watch: contenders take turns, round by round, and are compared within the round.

A machine that slows down for a second slows all contenders of that round, so the paired ratio stays. The order
is shuffled anew each round, by a seed; the garbage collector is off; each contender runs once before anything is
timed. Allocation of the results is part of the time; freeing them is not.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trimtab.records import Bar, Metric, Record, machine_slug

RESULTS = Path(__file__).parent / "results"
NUM_ROUNDS = 9
NUM_QUICK_ROUNDS = 2

Phase = Literal["encode", "decode"]
Timer = Literal["cpu", "wall"]


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that encodes and decodes one input. `decode` gets what `encode` returned."""

    name: str
    encode: Callable[[], Any]
    decode: Callable[[Any], Any]
    is_peer: bool = False
    """Whether it is someone else's: a failure is then a finding, not a bug of ours."""


@dataclass(slots=True)
class Timings:
    """Seconds of each round, of one contender; `cpu` counts all threads of the process."""

    cpu: dict[Phase, list[float]] = field(default_factory=lambda: {"encode": [], "decode": []})
    wall: dict[Phase, list[float]] = field(default_factory=lambda: {"encode": [], "decode": []})

    def seconds(self, phase: Phase, timer: Timer) -> list[float]:
        """Return the seconds of each round."""
        return self.cpu[phase] if timer == "cpu" else self.wall[phase]


def measure(contenders: Sequence[Contender], num_rounds: int) -> dict[str, Timings]:
    """Run all contenders alternately, after one round that is not timed, and return their timings by name."""
    timings = {contender.name: Timings() for contender in contenders}
    with no_garbage_collection():
        for number in range(-1, num_rounds):
            # rotating alone would leave each contender behind the same one, with the caches that this one leaves
            for contender in random.Random(number).sample(contenders, len(contenders)):
                _run(contender, timings[contender.name] if number >= 0 else Timings())
    return timings


def _run(contender: Contender, timings: Timings) -> None:
    encoded = _timed("encode", contender.encode, timings)
    _timed("decode", partial(contender.decode, encoded), timings)


def _timed(phase: Phase, call: Callable[[], Any], timings: Timings) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    timings.cpu[phase].append(cpu)
    timings.wall[phase].append(wall)
    return result


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect what is garbage, and leave the collector off inside."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def metric(values: Sequence[float], unit: str, claim: str | None = None) -> Metric:
    """Return the median of `values` with its quartiles."""
    low, middle, high = (float(np.quantile(values, q)) for q in (0.25, 0.5, 0.75))
    return Metric(
        value=_rounded(middle), unit=unit, low=_rounded(low), high=_rounded(high), num_rounds=len(values), claim=claim
    )


def exact(value: float, unit: str, claim: str | None = None) -> Metric:
    """Return a number that does not vary from round to round."""
    return Metric(value=_rounded(value), unit=unit, claim=claim)


def speed(timings: Timings, num_bytes: int, phase: Phase, timer: Timer) -> Metric:
    """Return the bytes of input that are handled per second, in GB/s (1e9 bytes)."""
    return metric([num_bytes / 1e9 / seconds for seconds in timings.seconds(phase, timer)], "GB/s")


def speedup(ours: Timings, theirs: Timings, phase: Phase, timer: Timer) -> Metric:
    """Return how many times as fast as `theirs` `ours` is, paired within each round."""
    pairs = zip(ours.seconds(phase, timer), theirs.seconds(phase, timer), strict=True)
    return metric([their_seconds / our_seconds for our_seconds, their_seconds in pairs], "x")


def speeds(subject: str, timings: dict[str, Timings], num_bytes: int, ours: str) -> dict[str, Metric]:
    """Return the metrics of all contenders on one subject: speeds by both clocks, and how much faster `ours` is.

    Keys are ``subject/contender/what``; what is ``encode``, ``decode`` (CPU seconds), ``encode_wall``,
    ``decode_wall``, and ``encode_times``, ``decode_times``: the speed of `ours` over that contender's, by CPU seconds.
    """
    metrics: dict[str, Metric] = {}
    phases: tuple[Phase, ...] = ("encode", "decode")
    for name, timing in timings.items():
        for phase in phases:
            key = f"{subject}/{name}/{phase}"
            metrics[key] = speed(timing, num_bytes, phase, "cpu")
            metrics[f"{key}_wall"] = speed(timing, num_bytes, phase, "wall")
            if name != ours:
                metrics[f"{key}_times"] = speedup(timings[ours], timing, phase, "cpu")
    return metrics


def _rounded(value: float) -> float:
    """Six significant digits: more than any measurement here carries."""
    return float(f"{value:.6g}")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line of a benchmark says."""

    name: str
    """The benchmark, and the record that it writes."""
    quick: bool = False
    num_rounds: int = NUM_ROUNDS
    results: Path | None = None
    """The folder that records go to; None where nothing is written."""

    @property
    def command(self) -> str:
        """The command line that repeats this run."""
        usual = NUM_QUICK_ROUNDS if self.quick else NUM_ROUNDS
        rounds = "" if self.num_rounds == usual else f" --rounds {self.num_rounds}"
        return f"python -m bench.{self.name}{' --quick' if self.quick else ''}{rounds}"


def results_folder() -> Path:
    """Return where the records of this machine are kept."""
    return RESULTS / machine_slug()


def parse(name: str, description: str | None, argv: Sequence[str] | None = None) -> Options:
    """Read the options that all benchmarks share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller inputs; writes no record")
    parser.add_argument("--rounds", type=int, help=f"timed rounds (default {NUM_ROUNDS}, quick {NUM_QUICK_ROUNDS})")
    parser.add_argument("--results", type=Path, help="folder for the record (default bench/results/<this machine>)")
    given = parser.parse_args(argv)
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds must be at least 1")
    num_rounds = given.rounds or (NUM_QUICK_ROUNDS if given.quick else NUM_ROUNDS)
    results = given.results or (None if given.quick else results_folder())
    return Options(name=name, quick=given.quick, num_rounds=num_rounds, results=results)


def at_least(name: str, required: float, metric: Metric | None, unit: str = "") -> Bar:
    """Return the bar that a metric must reach; one that could not be measured is not passed."""
    words = f">= {required:g}{unit}"
    if metric is None:
        return Bar(name=name, required=f"{words} (not measured)", reached=0.0, passed=False)
    return Bar(name=name, required=words, reached=metric.value, passed=metric.value >= required)


def write(record: Record, options: Options) -> None:
    """Save a record where the options say, and tell which bars it passed."""
    if options.results is not None:
        path = record.save(options.results / f"{record.name}.json")
        print(f"\nwrote {path}", file=sys.stderr)
    for bar in record.bars:
        print(
            f"{'pass' if bar.passed else 'FAIL'}  {bar.name}: {bar.reached:.4g} (required {bar.required})",
            file=sys.stderr,
        )
