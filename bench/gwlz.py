"""What a learned enhancer gains: PSNR with GWLZ, and of its base codec at the same total bytes.

Four fields of about 128^3 and a density-like one of 256^3, under two bounds relative to the value range, on one thread.
The base codec alone, and SZ3, run under bounds from the same to a fifth (SZ3 from three times it); their PSNR at the
bytes that GWLZ takes is interpolated, linearly in the logarithm of bytes, between the best points below and above.
On the large field the number of groups, the hidden layers and the steps of training vary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

import trimtab as tt
from bench import harness
from bench.contenders import trimtab_contender
from bench.fields import fields, logn
from bench.harness import Options, at_least, exact
from bench.tables import gwlz_tables
from trimtab.bounds import Abs, largest_error, psnr, value_range
from trimtab.codecs import GWLZ, SZ
from trimtab.files import Reader
from trimtab.peers import SZ3, Peer
from trimtab.records import Bar, Metric, Record

RELATIVE_BOUNDS = (1e-2, 1e-3)
BASES = {"SZ": SZ(), "SZ ratio": SZ(level="ratio")}
CODECS = {name: GWLZ(base=base) for name, base in BASES.items()}
RELAXED = {f"{name}, relaxed": GWLZ(base=base, relaxed=2) for name, base in BASES.items()}
VARIANTS = {
    "1 group": GWLZ(groups=1),
    "8 groups": GWLZ(groups=8),
    "no hidden layer": GWLZ(hidden=()),
    "8 hidden units": GWLZ(hidden=(8,)),
    "32 and 16 hidden units": GWLZ(hidden=(32, 16)),
    "500 steps": GWLZ(steps=500),
    "8000 steps": GWLZ(steps=8000),
}
"""Settings tried on the headline, beside the default: 4 groups, 16 and 8 hidden units, 2000 steps."""
BASE_BOUNDS = (1.0, 0.93, 0.86, 0.78, 0.7, 0.6, 0.5, 0.35, 0.2)
PEER_BOUNDS = (3.0, 2.0, 1.5, 1.2, *BASE_BOUNDS)
"""Times the bound that GWLZ is given."""

Curve = Sequence[tuple[int, float]]
"""Bytes and PSNR under several bounds."""


def run(arrays: Mapping[str, np.ndarray], headline: str, options: Options, peers: Sequence[Peer] = (SZ3(),)) -> Record:
    """Measure every array under every bound, variants on the array called `headline`, and return the record."""
    failed = {peer.name: reason for peer in peers if (reason := peer.unavailable()) is not None}
    installed = [peer for peer in peers if peer.name not in failed]
    metrics: dict[str, Metric] = {}
    subjects = []
    with tt.threads(1):
        for name, x in arrays.items():
            for relative in RELATIVE_BOUNDS if name != headline else RELATIVE_BOUNDS[:1]:
                subjects.append(f"{name}, {relative:.0e}")
                bound = Abs(relative * value_range(x))
                curves = {f"{peer.name}_at_bytes": _peer_curve(peer, x, bound.value) for peer in installed}
                bases = {base: _base_curve(base, x, bound.value) for base in BASES.values()}
                for setting, codec in (CODECS | (RELAXED | VARIANTS if name == headline else {})).items():
                    beside = {"base_at_bytes": bases[codec.base], **curves}
                    metrics |= _measure(f"{subjects[-1]}/{setting}", x, bound, codec, beside)
        subject = f"{headline}, {RELATIVE_BOUNDS[0]:.0e}"
        bound = Abs(RELATIVE_BOUNDS[0] * value_range(arrays[headline]))
        running = [trimtab_contender(name, [arrays[headline]], [codec], bound) for name, codec in CODECS.items()]
        timings = harness.measure(running, options.num_rounds)
        metrics |= harness.speeds(subject, timings, arrays[headline].nbytes, next(iter(CODECS)))
    return Record.new(
        options.name,
        command=options.command,
        packages=tuple(sorted({peer.package for peer in peers})),
        seed=GWLZ().seed,
        data={name: {"dtype": x.dtype.name, "shape": list(x.shape)} for name, x in arrays.items()},
        encoding={
            "contenders": {
                name: str(msgspec.to_builtins(codec)) for name, codec in (CODECS | RELAXED | VARIANTS).items()
            },
            "relative_bounds": list(RELATIVE_BOUNDS),
            "headline": subject,
            "failed": failed,
        },
        optimization={"steps": GWLZ().steps},
        inference={"num_threads": 1, "num_rounds": options.num_rounds, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=_bars(subjects, subject, metrics),
    )


def _measure(key: str, x: np.ndarray, bound: Abs, codec: GWLZ, curves: Mapping[str, Curve]) -> dict[str, Metric]:
    blob = tt.compress(x, bound, codec=codec)
    y, header = tt.decompress(blob), Reader(blob).packed("").header
    if not header.bound.allows(x, y):
        raise RuntimeError(f"{key} broke its promise")
    base_bytes, base_psnr = curves["base_at_bytes"][0]
    found = {
        "bytes": exact(len(blob), "B"),
        "base_bytes": exact(base_bytes, "B"),
        "overhead": exact(len(blob) / base_bytes - 1, "of the base's bytes"),
        "error": exact(largest_error(x, y) / bound.value, "bound"),
    }
    qualities = {"psnr": psnr(x, y), "base_psnr": base_psnr}
    if header.codec["id"] == "gwlz":
        qualities |= {name: psnr_at(curve, len(blob)) for name, curve in curves.items()}
        qualities["gain"] = qualities["psnr"] - qualities["base_at_bytes"]
    else:
        qualities |= {"base_at_bytes": base_psnr, "gain": 0.0}
    found |= {what: exact(value, "dB") for what, value in qualities.items() if math.isfinite(value)}
    return {f"{key}/{what}": metric for what, metric in found.items()}


def _base_curve(base: SZ, x: np.ndarray, limit: float) -> Curve:
    """Return bytes and PSNR of the base codec, those under `limit` first."""
    blobs = [tt.compress(x, Abs(times * limit), codec=base) for times in BASE_BOUNDS]
    return [(len(blob), psnr(x, tt.decompress(blob))) for blob in blobs]


def _peer_curve(peer: Peer, x: np.ndarray, limit: float) -> Curve:
    made = [peer.compress(x, Abs(times * limit)) for times in PEER_BOUNDS]
    return [(encoded.num_bytes, psnr(x, peer.decompress(encoded))) for encoded in made]


def psnr_at(curve: Curve, num_bytes: int) -> float:
    """Return the PSNR at some bytes: no point with fewer bytes is better than one with more, by the best so far.

    inf beyond the curve's end: what was not measured is not beaten.
    """
    points = sorted(curve)
    if num_bytes > points[-1][0]:
        return math.inf
    best = np.maximum.accumulate([quality for _, quality in points])
    return float(np.interp(math.log(num_bytes), [math.log(size) for size, _ in points], best))


def _bars(subjects: Sequence[str], headline: str, metrics: Mapping[str, Metric]) -> list[Bar]:
    gains = [
        metrics[key].value if (key := f"{subject}/{name}/gain") in metrics else -1.0
        for subject in subjects
        for name in CODECS
    ]
    errors = [metrics[f"{subject}/{name}/error"].value for subject in subjects for name in CODECS]
    bars = []
    for name in CODECS:
        bars += [
            at_least(
                f"GWLZ on {name}: gain at equal bytes, {headline}", 1.0, metrics[f"{headline}/{name}/gain"], " dB"
            ),
            at_least(
                f"GWLZ on {name}: decoding on one core, {headline}",
                0.02,
                metrics.get(f"{headline}/{name}/decode"),
                " GB/s",
            ),
        ]
    never_below = exact(sum(gain >= 0 for gain in gains), "cells")
    held = exact(sum(error <= 1 for error in errors), "cells")
    bars.append(
        at_least(f"GWLZ: cells of {len(gains)} not below the base codec at equal bytes", len(gains), never_below)
    )
    bars.append(at_least(f"GWLZ: cells of {len(gains)} where the bound holds", len(gains), held))
    return bars


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("gwlz", __doc__, argv)
    headline = 64 if options.quick else 256
    name = f"synthetic logn {headline}^3"
    arrays = {field: make() for field, make in fields(options.quick).items()} | {name: logn(headline)}
    record = run(arrays, name, options)
    print(gwlz_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
