"""Rate and distortion of three-dimensional fields: bits a value against PSNR, beside SZ3, zfp and SPERR.

Our levels run under five bounds relative to the value range; the best level also runs as one would who cares for PSNR:
with the PSNR that each bound gave it as its target. The peers run under looser bounds as well, so that their curves
cover the same PSNR, and SPERR also in its own PSNR mode, at the PSNR of errors that are uniform within each bound. What
is compared is the size at equal PSNR: the peer's bits are interpolated between its points, linearly in their logarithm,
at the PSNR that ours has. The bars count the points under a PSNR target. Nothing is timed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import msgspec
import numpy as np

import trimtab as tt
from bench import harness
from bench.contenders import Trial, attempt, peer_contender, trimtab_contender
from bench.fields import fields
from bench.harness import Options, at_least, exact
from bench.tables import rate_distortion_tables
from trimtab.bounds import PSNR, Abs, Bound, psnr, value_range
from trimtab.codecs import SZ
from trimtab.peers import PEERS, SPERR, Peer
from trimtab.records import Bar, Metric, Record

(LEVELS,) = (get_args(setting.type) for setting in msgspec.structs.fields(SZ) if setting.name == "level")
OURS = {f"trimtab SZ {level}": SZ(level=level) for level in LEVELS}
BOUNDED = f"trimtab SZ {LEVELS[-1]}"
BEST = f"{BOUNDED}, PSNR"
"""The best level with a PSNR as its target, which has to be as small as the peers."""
RELATIVE_BOUNDS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
PEER_BOUNDS = (3e-1, 1e-1, 3e-2, *RELATIVE_BOUNDS)
LOSSY_PEERS = (*(peer for peer in PEERS if not peer.lossless), SPERR(mode="psnr"))
RIVALS = {"sperr": ("sperr", "sperr-psnr"), "zfp": ("zfp",)}
"""The peers that the bars are about, the shorter of a peer's modes counting; SZ3 is shown."""


class Point(NamedTuple):
    """What a contender reached under one bound; PSNR is inf where nothing was lost."""

    bits: float
    psnr: float


def run(arrays: Mapping[str, np.ndarray], options: Options, peers: Sequence[Peer] = LOSSY_PEERS) -> Record:
    """Measure the curves of every array, and return the record."""
    failed = {peer.name: reason for peer in peers if (reason := peer.unavailable()) is not None}
    installed = [peer for peer in peers if peer.name not in failed]
    metrics: dict[str, Metric] = {}
    present = {peer.name for peer in peers}
    reached = {rival: 0 for rival, modes in RIVALS.items() if present.intersection(modes)}
    with tt.threads(1):
        for field, x in arrays.items():
            curves = _curves(field, x, installed, failed)
            for name, curve in curves.items():
                for bound, point in curve.items():
                    metrics |= _metrics(f"{field}/{name}/{bound:.0e}", point)
            for name in (*OURS, BEST):
                for bound, point in curves[name].items():
                    needed = {peer.name: bits_at(list(curves[peer.name].values()), point.psnr) for peer in installed}
                    needed = {peer: bits for peer, bits in needed.items() if bits is not None}
                    for peer, bits in needed.items():
                        metrics[f"{field}/{name}/{bound:.0e}/{peer}_bits"] = exact(bits, "bit/value")
                    if name == BEST:
                        for rival in reached:
                            modes = [needed[mode] for mode in RIVALS[rival] if mode in needed]
                            reached[rival] += bool(modes) and min(modes) >= point.bits
    return Record.new(
        options.name,
        command=options.command,
        packages=tuple(sorted({peer.package for peer in peers})),
        data={name: {"dtype": x.dtype.name, "shape": list(x.shape)} for name, x in arrays.items()},
        encoding={
            "contenders": {
                **dict.fromkeys(OURS, "in a packed file with checksum"),
                BEST: f"the same, asked for the PSNR that {BOUNDED} has under the bound, where that lost anything",
                **{peer.name: peer.setting for peer in peers},
            },
            "relative_bounds": list(RELATIVE_BOUNDS),
            "peer_bounds": list(PEER_BOUNDS),
            "failed": failed,
        },
        inference={"num_threads": 1},
        metrics=metrics,
        bars=_bars(reached, len(arrays) * len(RELATIVE_BOUNDS)),
    )


def _curves(field: str, x: np.ndarray, peers: Sequence[Peer], failed: dict[str, str]) -> dict[str, dict[float, Point]]:
    """Return the points of every contender by relative bound."""
    span = value_range(x)
    curves: dict[str, dict[float, Point]] = {name: {} for name in (*OURS, BEST, *(peer.name for peer in peers))}
    for relative in PEER_BOUNDS:
        bound = Abs(relative * span)
        asked = [(peer, _asked(peer, relative, bound)) for peer in peers]
        running = [peer_contender(peer, [x], of_it) for peer, of_it in asked if _takes(peer, x, of_it, field, failed)]
        if relative in RELATIVE_BOUNDS:
            running += [trimtab_contender(name, [x], [codec], bound) for name, codec in OURS.items()]
        for contender in running:
            trial = attempt(contender)
            if isinstance(trial, str):
                failed[f"{field}/{contender.name}/{relative:.0e}"] = trial
                continue
            (y,) = trial.decoded
            if not contender.is_peer and not bound.allows(x, y):
                raise RuntimeError(f"{contender.name} broke its promise")
            curves[contender.name][relative] = Point(8 * trial.num_bytes / x.size, psnr(x, y))
    for relative, point in curves[BOUNDED].items():
        curves[BEST][relative] = _under_target(x, point)
    return curves


def _under_target(x: np.ndarray, point: Point) -> Point:
    """Return what the best level reaches when it is asked for the PSNR of a point; the point if that lost nothing."""
    if math.isinf(point.psnr):
        return point
    target = PSNR(point.psnr)
    trial = attempt(trimtab_contender(BEST, [x], [OURS[BOUNDED]], target), lambda decoded: target.allows(x, decoded[0]))
    assert isinstance(trial, Trial)
    return Point(8 * trial.num_bytes / x.size, psnr(x, trial.decoded[0]))


def _asked(peer: Peer, relative: float, bound: Bound) -> Bound:
    """Return what a peer is asked for: the bound, or the PSNR of errors that are uniform within it."""
    if isinstance(peer, SPERR) and peer.mode == "psnr":
        return PSNR(20 * math.log10(math.sqrt(3) / relative))
    return bound


def _takes(peer: Peer, x: np.ndarray, bound: Bound, field: str, failed: dict[str, str]) -> bool:
    refusal = peer.refuses(x, bound)
    if refusal is not None:
        failed[f"{field}/{peer.name}"] = refusal
    return refusal is None


def _metrics(key: str, point: Point) -> dict[str, Metric]:
    found = {f"{key}/bits": exact(point.bits, "bit/value")}
    if math.isfinite(point.psnr):  # a record holds finite numbers
        found[f"{key}/psnr"] = exact(point.psnr, "dB")
    return found


def bits_at(curve: Sequence[Point], decibels: float) -> float | None:
    """Return the bits a value that a curve has at a PSNR, by a straight line through the logarithms of two points.

    Beyond the ends it is the line of the last two. Where ours lost nothing (a PSNR of inf), it is the fewest bits of
    the peer's points that lost nothing either, else those of its best point: fewer than it would need. None where
    there are too few points.
    """
    finite = sorted((point for point in curve if math.isfinite(point.psnr)), key=lambda point: point.psnr)
    exact_ones = [point.bits for point in curve if point.psnr == math.inf]
    if math.isinf(decibels):
        return min(exact_ones) if exact_ones else finite[-1].bits if finite else None
    if len(finite) < 2:
        return min(exact_ones, default=None)
    above = next((at for at, point in enumerate(finite) if point.psnr >= decibels), len(finite) - 1)
    low, high = finite[max(above, 1) - 1], finite[max(above, 1)]
    if high.psnr == low.psnr:
        return low.bits
    part = (decibels - low.psnr) / (high.psnr - low.psnr)
    bits = math.exp(math.log(low.bits) + part * (math.log(high.bits) - math.log(low.bits)))
    return min([bits, *exact_ones])


def _bars(reached: Mapping[str, int], num_points: int) -> list[Bar]:
    return [
        at_least(
            f"{BOUNDED} under a PSNR target: points of {num_points} with at most the bits of {rival} at equal PSNR",
            num_points,
            exact(reached[rival], "points") if rival in reached else None,
        )
        for rival in RIVALS
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("rate_distortion", __doc__, argv)
    record = run({name: make() for name, make in fields(options.quick).items()}, options)
    print(rate_distortion_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
