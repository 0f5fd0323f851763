"""Two threads against one, on arrays above 16 MB: wall time, and whether the bytes are the same.

The largest tensor of MiniLM and all its weights as one array for ENEC, a synthetic field of 256^3 points for SZ. A
control says what a second thread can bring on this machine: it hashes data that stay in the cache, for some 5 and
100 ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import xxhash

import trimtab as tt
from bench import harness
from bench.contenders import trimtab_contender
from bench.fields import grf
from bench.harness import Contender, Options, Phase, at_least, exact
from bench.tables import scaling_table
from bench.weights import DTYPES, load_weights
from trimtab.bounds import Bound
from trimtab.codecs import ENEC, SZ, Codec
from trimtab.codecs.sz_tokens import Level
from trimtab.kernels import for_each
from trimtab.records import Bar, Metric, Record

THREADS = (1, 2)


@dataclass(frozen=True, slots=True)
class Case:
    """One array, and how it is packed."""

    x: np.ndarray
    codec: Codec
    bound: Bound


def run(cases: Mapping[str, Case], options: Options) -> Record:
    """Measure every case with one and two threads, and return the record."""
    metrics: dict[str, Metric] = {}
    bars: list[Bar] = []
    for subject, case in cases.items():
        contenders = [_with_threads(trimtab_contender("", [case.x], [case.codec], case.bound), n) for n in THREADS]
        blobs = [contender.encode() for contender in contenders]
        same = blobs[0] == blobs[1] and all(
            np.array_equal(_bits(contenders[0].decode(blobs[0])[0]), _bits(contender.decode(blobs[0])[0]))
            for contender in contenders
        )
        timings = harness.measure(contenders, options.num_rounds)
        one, two = (timings[contender.name] for contender in contenders)
        phases: tuple[Phase, ...] = ("encode", "decode")
        for phase in phases:
            for contender in contenders:
                metrics[f"{subject}/{contender.name}/{phase}"] = harness.speed(
                    timings[contender.name], case.x.nbytes, phase, "wall"
                )
            gain = harness.speedup(two, one, phase, "wall")
            metrics[f"{subject}/2 threads/{phase}_gain"] = gain
            bars.append(at_least(f"{subject}: {phase[:-1]}ing speed of 2 threads over 1", 1.7, gain, "x"))
        bars.append(at_least(f"{subject}: same bytes with 1 and 2 threads", 1, exact(same, "")))
    for milliseconds in (5, 100):
        metrics[f"control, {milliseconds} ms/2 threads/gain"] = _control(milliseconds, options.num_rounds)
    return Record.new(
        options.name,
        command=options.command,
        data={
            s: {"dtype": c.x.dtype.name, "shape": list(c.x.shape), "num_bytes": c.x.nbytes} for s, c in cases.items()
        },
        encoding={s: {"codec": repr(c.codec), "bound": repr(c.bound)} for s, c in cases.items()},
        inference={"num_threads": list(THREADS), "num_rounds": options.num_rounds, "clock": "wall"},
        metrics=metrics,
        bars=bars,
    )


def _with_threads(contender: Contender, num_threads: int) -> Contender:
    def limited(call: Callable[..., Any]) -> Callable[..., Any]:
        def run_limited(*arguments: Any) -> Any:
            with tt.threads(num_threads):
                return call(*arguments)

        return run_limited

    name = f"{num_threads} thread{'s' if num_threads > 1 else ''}"
    return Contender(name, limited(contender.encode), limited(contender.decode))


def _control(milliseconds: int, num_rounds: int) -> Metric:
    """Return the gain of a second thread on hashing a piece of data over and over, which the cache holds."""
    piece = np.zeros(1 << 18, np.uint8)
    begin = time.perf_counter()
    for _ in range(100):
        xxhash.xxh3_64_intdigest(piece)
    repeats = max(1, round(milliseconds / 1e3 / (time.perf_counter() - begin) * 100 / 8))

    def hash_often(_: int) -> None:
        for _ in range(repeats):
            xxhash.xxh3_64_intdigest(piece)

    def run_control() -> list[Any]:
        for_each(hash_often, 8)
        return []

    contenders = [_with_threads(Contender("", run_control, lambda encoded: encoded), n) for n in THREADS]
    timings = harness.measure(contenders, num_rounds)
    one, two = (timings[contender.name] for contender in contenders)
    return harness.speedup(two, one, "encode", "wall")


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint8)


def cases(quick: bool) -> dict[str, Case]:
    """Return the arrays to measure, smaller ones where `quick`."""
    weights = load_weights("MiniLM")
    largest = max(weights.values(), key=lambda x: x.size)
    if quick:
        largest = largest[:2000]
    field = grf(64 if quick else 256)
    whole = np.concatenate([x.reshape(-1) for x in weights.values() if x.dtype == np.float32])
    if quick:
        whole = whole[:100_000]
    lossless = {
        "MiniLM embedding bf16": Case(largest.astype(DTYPES["bf16"]), ENEC(), tt.Lossless()),
        "MiniLM bf16 as one array": Case(whole.astype(DTYPES["bf16"]), ENEC(), tt.Lossless()),
        "MiniLM bf16 as one array, mode ratio": Case(whole.astype(DTYPES["bf16"]), ENEC(mode="ratio"), tt.Lossless()),
        "MiniLM fp32 as one array": Case(whole, ENEC(), tt.Lossless()),
    }
    lossy = {
        f"synthetic grf {len(field)}^3, 1e-03, {level}": Case(field, SZ(level=level), tt.Rel(1e-3))
        for level in get_args(Level)
    }
    return lossless | lossy


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("scaling", __doc__, argv)
    record = run(cases(options.quick), options)
    print(scaling_table(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
