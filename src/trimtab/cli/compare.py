"""``trimtab compare``: ours and the installed peers on the user's own file, array by array."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli import options
from trimtab.cli.output import bound_text, print_json, print_table, progress, ratio, say

if TYPE_CHECKING:
    import numpy as np

    from trimtab.bounds import Bound


@dataclass
class _Contender:
    """A compressor in the comparison, and what it reached so far."""

    name: str
    setting: str
    compress: Callable[[np.ndarray, Bound], Any]
    decompress: Callable[[Any], Any]
    size: Callable[[Any], int]
    refuses: Callable[[np.ndarray, Bound], str | None]
    refused: dict[str, str] = field(default_factory=dict)
    num_arrays: int = 0
    array_bytes: int = 0
    packed_bytes: int = 0
    compress_seconds: float = 0.0
    decompress_seconds: float = 0.0
    largest_error: float = 0.0
    kept: bool = True

    def report(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "setting": self.setting,
            "num_arrays": self.num_arrays,
            "array_bytes": self.array_bytes,
            "packed_bytes": self.packed_bytes,
            "ratio": ratio(self.array_bytes, self.packed_bytes) if self.num_arrays else None,
            "compress_megabytes_per_second": options.speed(self.array_bytes, self.compress_seconds),
            "decompress_megabytes_per_second": options.speed(self.array_bytes, self.decompress_seconds),
            "largest_error_over_limit": self.largest_error,
            "bound_kept": self.kept,
            "refused": self.refused,
        }


@click.command("compare")
@click.argument("path", metavar="FILE", type=options.PATH)
@options.bound_options
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    metavar="MB",
    help="Use at most this much of FILE.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Alternating rounds."
)
@options.tensors_only_option
@options.quiet_option
@options.json_option
def verb(
    path: Path, limit: int, rounds: int, tensors_only: bool, quiet: bool, as_json: bool, **chosen: float | None
) -> None:
    """Measure trimtab and the installed peers on the arrays of FILE, one thread each.

    Compressors take turns on every array; a speed is that of the median rounds, in bytes of the arrays. With an
    error bound, only real floating-point arrays are used.
    """
    from trimtab.bounds import Lossless
    from trimtab.dtypes import FLOATS
    from trimtab.errors import UsageError
    from trimtab.kernels import threads
    from trimtab.peers import PEERS
    from trimtab.sources import open_source

    bound = options.bound_from(chosen)
    lossless = isinstance(bound, Lossless)
    peers = [peer for peer in PEERS if peer.lossless == lossless]
    missing = {peer.name: reason for peer in peers if (reason := peer.unavailable())}
    contenders = [_ours(), *(_peer(peer) for peer in peers if peer.name not in missing)]
    with open_source(path, tensors_only=tensors_only) as source, threads(1):
        usable = {name: spec for name, spec in source.specs.items() if lossless or spec.dtype in FLOATS}
        taken, num_bytes = [], 0
        for name, spec in usable.items():
            if num_bytes + spec.num_bytes <= limit * 10**6:
                taken.append(name)
                num_bytes += spec.num_bytes
        if not taken:
            raise UsageError(
                f"every array of {path} is larger than {limit} MB; raise --limit"
                if usable
                else f"{path} has no arrays that {bound_text(bound)} applies to; leave the bound out"
            )
        if not quiet:
            if len(taken) < len(usable):
                say(f"{len(usable) - len(taken)} of {len(usable)} arrays are left out to stay within --limit {limit}")
            if len(usable) < len(source.specs):
                num_exact = len(source.specs) - len(usable)
                say(f"{num_exact} of {len(source.specs)} arrays are left out: {bound_text(bound)} does not apply")
        with progress("comparing", num_bytes, quiet=quiet) as advance:
            for name in taken:
                _measure(contenders, name, source.read(name), bound, rounds)
                advance(source.specs[name].num_bytes)
    if as_json:
        print_json(
            {
                "file": str(path),
                "bound": bound,
                "num_arrays": len(taken),
                "array_bytes": num_bytes,
                "rounds": rounds,
                "threads": 1,
                "contenders": [contender.report() for contender in contenders],
                "missing": missing,
            }
        )
        return
    _print(contenders, len(taken), bound)
    if not quiet:
        for contender in contenders:
            if contender.refused:
                reasons = "; ".join(dict.fromkeys(contender.refused.values()))
                say(f"{contender.name} left out {len(contender.refused)} of {len(taken)} arrays: {reasons}")
        if missing:
            packages = dict.fromkeys(peer.package for peer in peers if peer.name in missing)
            say(f"not here: {', '.join(missing)}; pip install {' '.join(packages)}")


def _ours() -> _Contender:
    import msgspec

    from trimtab.files import Reader
    from trimtab.store import compress, decompress

    def size(blob: bytes) -> int:
        # what the array adds to a packed file, about; the file's own frame is paid once, not for every array
        packed = Reader(blob).packed("")
        return packed.num_bytes + len(msgspec.json.encode(packed.header))

    return _Contender(
        "trimtab", "default, 1 thread, bound verified, checksum", compress, decompress, size, lambda x, bound: None
    )


def _peer(peer: Any) -> _Contender:
    return _Contender(
        f"{peer.name} {peer.version()}",
        peer.setting,
        peer.compress,
        peer.decompress,
        lambda encoded: encoded.num_bytes,
        peer.refuses,
    )


def _measure(contenders: list[_Contender], name: str, x: np.ndarray, bound: Bound, rounds: int) -> None:
    """Let all contenders that take `x` pack and unpack it in turns, and add up what they reached."""
    entrants, times = [], []
    for contender in contenders:
        reason, packed, y = _trial(contender, x, bound)
        if reason is not None:
            contender.refused[name] = reason
            continue
        contender.num_arrays += 1
        contender.array_bytes += x.nbytes
        contender.packed_bytes += contender.size(packed)
        contender.largest_error = max(contender.largest_error, _error_over_limit(x, y, bound))
        contender.kept &= bound.allows(x, y)
        entrants.append(contender)
        times.append(([], []))
    for turn in range(rounds):
        for step in range(len(entrants)):
            at = (turn + step) % len(entrants)
            begun = time.perf_counter()
            packed = entrants[at].compress(x, bound)
            between = time.perf_counter()
            entrants[at].decompress(packed)
            ended = time.perf_counter()
            times[at][0].append(between - begun)
            times[at][1].append(ended - between)
    for contender, (compress, decompress) in zip(entrants, times, strict=True):
        contender.compress_seconds += statistics.median(compress)
        contender.decompress_seconds += statistics.median(decompress)


def _trial(contender: _Contender, x: np.ndarray, bound: Bound) -> tuple[str | None, Any, Any]:
    """Return why a contender does not take `x`, or what it makes of it; not timed, as kernels may be compiled."""
    reason = contender.refuses(x, bound)
    if reason is not None:
        return reason, None, None
    try:
        packed = contender.compress(x, bound)
        return None, packed, contender.decompress(packed)
    except Exception as error:  # whatever a peer raises is its answer
        if contender.name == "trimtab":
            raise
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:120]}", None, None


def _error_over_limit(x: np.ndarray, y: np.ndarray, bound: Bound) -> float:
    """Return the largest error as a part of what the bound allows; 0.0 for bounds that are not of errors."""
    from trimtab import bounds

    if not isinstance(bound, bounds.Abs | bounds.Rel):
        return 0.0
    limit = bound.value * (bounds.value_range(x) if isinstance(bound, bounds.Rel) else 1)
    error = bounds.largest_error(x, y)
    return error / limit if limit else float(error > 0)


def _print(contenders: list[_Contender], num_arrays: int, bound: Bound) -> None:
    from trimtab import bounds

    def cells(contender: _Contender) -> list[str]:
        report = contender.report()
        if not contender.num_arrays:
            return [contender.name, contender.setting, f"0 of {num_arrays}", *["-"] * (len(columns) - 3)]
        row = [
            contender.name,
            contender.setting,
            f"{contender.num_arrays} of {num_arrays}",
            f"{report['ratio']:.3f}",
            f"{report['compress_megabytes_per_second']:.0f}",
            f"{report['decompress_megabytes_per_second']:.0f}",
        ]
        if isinstance(bound, bounds.Abs | bounds.Rel):
            row.append(f"{contender.largest_error:.4f}")
        return [*row, "yes" if contender.kept else "NO"]

    columns = ["compressor", "setting", "arrays", "ratio", "pack MB/s", "unpack MB/s"]
    if isinstance(bound, bounds.Abs | bounds.Rel):
        columns.append("error / limit")
    columns.append("exact" if isinstance(bound, bounds.Lossless) else "bound kept")
    rows = sorted(contenders, key=lambda contender: -(contender.report()["ratio"] or 0))
    print_table(columns, [cells(contender) for contender in rows], left=2)
