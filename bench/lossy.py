"""Error-bounded packing of three-dimensional fields: ratio, error and speed beside SZ3 and zfp.

Four fields (three synthetic, one MRI template) under three bounds relative to the value range, on one thread. All
get the same absolute bound, worked out beforehand. Ours is ``trimtab.compress``: header, verification and checksum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median

import numpy as np

import trimtab as tt
from bench import harness
from bench.contenders import attempt, peer_contender, trimtab_contender
from bench.fields import fields
from bench.harness import Contender, Options, at_least, exact
from bench.tables import lossy_tables
from trimtab.bounds import Abs, largest_error, psnr, value_range
from trimtab.codecs import SZ
from trimtab.peers import PEERS, Peer
from trimtab.records import Bar, Metric, Record

OURS = {"trimtab SZ": SZ(), "trimtab SZ fast": SZ(level="fast"), "trimtab SZ ratio": SZ(level="ratio")}
BALANCED = "trimtab SZ"
FAST = "trimtab SZ fast"
"""The level whose speed is compared with the peers'."""
RATIO = "trimtab SZ ratio"
"""The level whose ratio is compared with SZ3's, by whichever of its two predictors is better."""
RELATIVE_BOUNDS = (1e-2, 1e-3, 1e-4)
BOUNDED_PEERS = tuple(peer for peer in PEERS if not peer.lossless)


def run(arrays: Mapping[str, np.ndarray], options: Options, peers: Sequence[Peer] = BOUNDED_PEERS) -> Record:
    """Measure every array under every bound, and return the record."""
    metrics: dict[str, Metric] = {}
    failed = {peer.name: reason for peer in peers if (reason := peer.unavailable()) is not None}
    installed = [peer for peer in peers if peer.name not in failed]
    subjects = []
    with tt.threads(1):
        for name, x in arrays.items():
            for relative in RELATIVE_BOUNDS:
                subject = f"{name}, {relative:.0e}"
                subjects.append(subject)
                bound = Abs(relative * value_range(x))
                metrics |= _measure(subject, x, bound, installed, options.num_rounds, failed)
    return Record.new(
        options.name,
        command=options.command,
        packages=tuple(sorted({peer.package for peer in peers})),
        data={name: {"dtype": x.dtype.name, "shape": list(x.shape)} for name, x in arrays.items()},
        encoding={
            "contenders": {
                **{name: f'level "{codec.level}", in a packed file with checksum' for name, codec in OURS.items()},
                **{p.name: p.setting for p in peers},
            },
            "relative_bounds": list(RELATIVE_BOUNDS),
            "failed": failed,
        },
        inference={"num_threads": 1, "num_rounds": options.num_rounds, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=_bars(subjects, metrics),
    )


def _measure(
    subject: str, x: np.ndarray, bound: Abs, peers: Sequence[Peer], num_rounds: int, failed: dict[str, str]
) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    running: list[Contender] = [trimtab_contender(name, [x], [codec], bound) for name, codec in OURS.items()]
    for peer in peers:
        refusal = peer.refuses(x, bound)
        if refusal is None:
            running.append(peer_contender(peer, [x], bound))
        else:
            failed[f"{subject}/{peer.name}"] = refusal
    for contender in tuple(running):
        # a peer beyond its bound is shown as that; for ours it would be a bug
        trial = attempt(contender, None if contender.is_peer else partial(_within, bound, x))
        key = f"{subject}/{contender.name}"
        if isinstance(trial, str):
            failed[key] = trial
            running.remove(contender)
            continue
        (y,) = trial.decoded
        metrics[f"{key}/ratio"] = exact(x.nbytes / trial.num_bytes, "x")
        # the share of the bound that the largest error uses: above 1 the bound is broken
        metrics[f"{key}/error"] = exact(largest_error(x, y) / bound.value, "bound")
        quality = psnr(x, y)
        if math.isfinite(quality):  # nothing was lost otherwise; a record holds finite numbers
            metrics[f"{key}/psnr"] = exact(quality, "dB")
    return metrics | harness.speeds(subject, harness.measure(running, num_rounds), x.nbytes, FAST)


def _within(bound: Abs, x: np.ndarray, decoded: list[np.ndarray]) -> bool:
    return bound.allows(x, decoded[0])


def _bars(subjects: Sequence[str], metrics: Mapping[str, Metric]) -> list[Bar]:
    needed = -(-3 * len(subjects) // 4)  # 9 of 12
    bars = []
    for name in OURS:
        over_lorenzo = [_quotient(metrics, f"{s}/{name}/ratio", f"{s}/sz3-lorenzo/ratio") for s in subjects]
        held = [(error := metrics.get(f"{s}/{name}/error")) is not None and error.value <= 1 for s in subjects]
        bars += [
            at_least(
                f"{name}: cells of {len(subjects)} with at least 0.9x the ratio of sz3-lorenzo",
                needed,
                exact(sum(quotient >= 0.9 for quotient in over_lorenzo), "cells"),
            ),
            at_least(
                f"{name}: cells of {len(subjects)} where the bound holds", len(subjects), exact(sum(held), "cells")
            ),
        ]
    over_better = [
        min(_quotient(metrics, f"{s}/{RATIO}/ratio", f"{s}/{peer}/ratio") for peer in ("sz3", "sz3-lorenzo"))
        for s in subjects
    ]
    for times, num_cells in ((1.0, len(subjects)), (1.08, -(-2 * len(subjects) // 3))):  # all, and 8 of 12
        bars.append(
            at_least(
                f"{RATIO}: cells of {len(subjects)} with at least {times:g}x the ratio of the better of sz3 and "
                "sz3-lorenzo",
                num_cells,
                exact(sum(quotient >= times for quotient in over_better), "cells"),
            )
        )
    for name, (encoding, decoding) in {FAST: (3.0, 1.5), BALANCED: (1.0, 1.0)}.items():
        for what, required in (("encode", encoding), ("decode", decoding)):
            reached = _median_speed(metrics, subjects, name, f"{what}_times")
            bars.append(at_least(f"{name}: median {what[:-1]}ing speed over sz3's", required, reached, "x"))
    return bars


def _quotient(metrics: Mapping[str, Metric], ours: str, theirs: str) -> float:
    """Return ours over theirs; 0 where one of them was not measured."""
    if ours not in metrics or theirs not in metrics:
        return 0.0
    return metrics[ours].value / metrics[theirs].value


def _median_speed(metrics: Mapping[str, Metric], subjects: Sequence[str], name: str, what: str) -> Metric | None:
    """Return how many times as fast `name` is as sz3, the median over subjects; times are given beside `FAST`."""
    found = []
    for subject in subjects:
        theirs = metrics.get(f"{subject}/sz3/{what}")
        ours = metrics.get(f"{subject}/{name}/{what}")
        if theirs is not None and (ours is not None or name == FAST):
            found.append(theirs.value / (ours.value if ours is not None else 1.0))
    return exact(median(found), "x") if found else None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("lossy", __doc__, argv)
    record = run({name: make() for name, make in fields(options.quick).items()}, options)
    print(lossy_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
