"""What the encoders of looked-up vectors take, as a sum of costs: what `trimtab.codecs.embedding_choice` chooses by.

Slices of many sizes, made of few or many different rows, are encoded and decoded by each encoder. To these CPU seconds
a sum is fitted, with costs that are not negative and the least squares of relative errors: so much a slice, a row, an
element, and an element of rows that the payload holds. `NANOSECONDS` there are these costs, in two digits; the command
prints them as that module has them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np

from bench import harness
from bench.harness import Options, exact
from trimtab.codecs.embedding_choice import num_held
from trimtab.codecs.embedding_slice import ENCODERS, Encoder, Slice, decode_slice
from trimtab.kernels import threads
from trimtab.records import Bar, Metric, Record

ROWS, COLUMNS = (64, 256, 1024, 4096), (16, 32, 64, 128)
SHARES = (1 / 64, 1 / 4, 1)
"""Of different rows among all."""
LIMITS = (0.003, 0.03)
"""Relative to the range."""
COSTS = ("slice", "row", "element", "held")
LARGEST_ERROR = 0.25
_ELEMENTS = 200_000  # so many are coded before the clock is read, or 20 slices


def slices(quick: bool) -> Iterator[Slice]:
    """Yield what is timed: normal elements from a seed."""
    rng = np.random.default_rng(0)
    for num_rows, num_columns, share in itertools.product(ROWS[:2] if quick else ROWS, COLUMNS, SHARES):
        rows = rng.standard_normal((int(num_rows * share), num_columns), np.float32)
        x = rows[rng.permutation(np.arange(num_rows) % len(rows))]
        for limit in LIMITS:
            yield Slice(x, limit * float(np.ptp(x)))


def seconds(given: Slice, encoder: Encoder, num_rounds: int) -> float:
    """Return the median CPU seconds to encode and decode, behind a round that is not timed."""
    out = np.empty_like(given.x)
    repeats = max(1, min(20, _ELEMENTS // given.x.size))
    times = []
    for _ in range(num_rounds + 1):
        begun = time.process_time()
        for _ in range(repeats):
            decode_slice(Slice(given.x, given.limit).encode(encoder), out)
        times.append((time.process_time() - begun) / repeats)
    return float(np.median(times[1:]))


def fitted(terms: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return costs [n], none negative, of which ``terms @ costs`` has the least relative errors to `times`."""
    relative = terms / times[:, None]
    used = terms.any(axis=0)
    while True:  # a few terms: costs that come out negative are left out, the most negative first
        costs = np.zeros(terms.shape[1])
        costs[used] = np.linalg.lstsq(relative[:, used], np.ones(len(times)))[0]
        if (costs >= 0).all():
            return costs
        used[np.argmin(costs * np.abs(terms).max(axis=0))] = False


def run(options: Options) -> Record:
    """Time, fit, and put the record together."""
    metrics: dict[str, Metric] = {}
    parts = list(slices(options.quick))
    with threads(1):
        for encoder in ENCODERS:
            terms = np.array([_terms(part, encoder) for part in parts])
            times = np.array([1e9 * seconds(part, encoder, options.num_rounds) for part in parts])
            costs = fitted(terms, times)
            for what, cost in zip(COSTS, costs, strict=True):
                metrics[f"{encoder}/{what}"] = exact(float(cost), "ns")
            metrics[f"{encoder}/error"] = harness.metric(np.abs(terms @ costs / times - 1).tolist(), "of the time")
    worst = max(metrics[f"{encoder}/error"].value for encoder in ENCODERS)
    name = "median error of the predicted time, worst encoder"
    return Record.new(
        options.name,
        command=options.command,
        seed=0,
        data={"rows": list(ROWS), "columns": list(COLUMNS), "different": list(SHARES), "limits": list(LIMITS)},
        encoding={"encoders": list(ENCODERS)},
        inference={"num_threads": 1, "num_rounds": options.num_rounds},
        metrics=metrics,
        bars=[Bar(name=name, required=f"<= {LARGEST_ERROR}", reached=worst, passed=worst <= LARGEST_ERROR)],
    )


def _terms(part: Slice, encoder: Encoder) -> tuple[int, int, int, int]:
    num_rows, num_columns = part.x.shape
    held = 0 if encoder in ("exact", "entropy") else num_held(part, encoder)  # these hold all rows: no cost of its own
    return 1, num_rows, num_rows * num_columns, held * num_columns


def costs_of(record: Record) -> dict[str, tuple[float, ...]]:
    """Return the costs of each encoder in two digits."""
    found = {e: [record.metrics[f"{e}/{what}"].value for what in COSTS] for e in record.encoding["encoders"]}
    return {encoder: tuple(float(f"{value:.2g}") for value in costs) for encoder, costs in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("encoders", __doc__, argv)
    record = run(options)
    for encoder, costs in costs_of(record).items():
        print(f'    "{encoder}": ({", ".join(f"{cost:g}" for cost in costs)}),')
    harness.write(record, options)


if __name__ == "__main__":
    main()
