"""The compressors that ``trimtab compare`` lets run against each other: our levels and the installed peers."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from trimtab.cli import options
from trimtab.cli.output import ratio

if TYPE_CHECKING:
    from trimtab.bounds import Bound
    from trimtab.peers import Peer


class Piece(NamedTuple):
    """What compressors get of an array: all of it or a block, the bound there, and the whole array's value range."""

    name: str
    x: np.ndarray
    bound: Bound
    span: float


@dataclass
class Contender:
    """A compressor in the comparison, and what it reached so far."""

    name: str
    setting: str
    compress: Callable[[np.ndarray, Bound], Any]
    decompress: Callable[[Any], Any]
    size: Callable[[Any], int]
    refuses: Callable[[np.ndarray, Bound], str | None]
    own_bound: Callable[[np.ndarray, Bound], Bound] = lambda x, bound: bound
    """The bound under which it keeps the bound asked for, where it has no such mode."""
    level: str | None = None
    """Our level; None for peers."""
    refused: dict[str, str] = field(default_factory=dict)
    num_arrays: int = 0
    array_bytes: int = 0
    packed_bytes: int = 0
    compress_seconds: float = 0.0
    decompress_seconds: float = 0.0
    largest_error: float = 0.0
    distortion: Distortion = field(default_factory=lambda: Distortion())
    kept: bool = True

    @property
    def metrics(self) -> dict[str, float]:
        """What a choice is made by."""
        return {
            "ratio": ratio(self.array_bytes, self.packed_bytes),
            "pack MB/s": options.speed(self.array_bytes, self.compress_seconds),
            "unpack MB/s": options.speed(self.array_bytes, self.decompress_seconds),
        }

    def report(self) -> dict[str, Any]:
        metrics = self.metrics
        return {
            "name": self.name,
            "setting": self.setting,
            "num_arrays": self.num_arrays,
            "array_bytes": self.array_bytes,
            "packed_bytes": self.packed_bytes,
            "ratio": metrics["ratio"] if self.num_arrays else None,
            "compress_megabytes_per_second": metrics["pack MB/s"],
            "decompress_megabytes_per_second": metrics["unpack MB/s"],
            "largest_error_over_limit": self.largest_error,
            "psnr_decibels": self.distortion.psnr,
            "bound_kept": self.kept,
            "refused": self.refused,
        }

    def attempt(self, x: np.ndarray, bound: Bound) -> tuple[Bound, Any, np.ndarray] | str:
        """Return the bound used, the packed array and what it decodes to, or why this contender does not take it."""
        try:
            own = self.own_bound(x, bound)
            reason = self.refuses(x, own)
            if reason is not None:
                return reason
            packed = self.compress(x, own)
            return own, packed, self.decompress(packed)
        except Exception as error:  # whatever a peer raises is its answer
            if self.level is not None:
                raise
            return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:120]}"


@dataclass
class Distortion:
    """Squared errors relative to the value range of their array, summed over pieces."""

    total: float = 0.0
    count: int = 0

    def add(self, piece: Piece, y: np.ndarray) -> None:
        from trimtab.bounds import is_finite, psnr, value_range

        count = int(np.count_nonzero(is_finite(piece.x)))
        quality, own = psnr(piece.x, y), value_range(piece.x)
        if quality == -math.inf:  # of a constant block: its own range says nothing
            quality, own = -10 * math.log10(float(np.nanmean(np.square(piece.x.astype(float) - y)))), 1.0
        self.total += count * 10 ** (-quality / 10) * (own / piece.span) ** 2 if piece.span else 0.0
        self.count += count

    @property
    def psnr(self) -> float:
        """The peak signal-to-noise ratio over all pieces, in dB; inf where nothing was lost."""
        return -10 * math.log10(self.total / self.count) if self.total else math.inf


def ours(*, lossless: bool) -> list[Contender]:
    """Return a contender for each level; levels that come to the same codec are one."""
    import msgspec

    from trimtab.codecs.codec import describe
    from trimtab.codecs.sz import SZ
    from trimtab.files import Reader
    from trimtab.store import Level, codec_named, compress, decompress

    def size(blob: bytes) -> int:
        # what the array adds to a packed file, about; the file's own frame is paid once, not for every array
        packed = Reader(blob).packed("")
        return packed.num_bytes + len(msgspec.json.encode(packed.header))

    if lossless:
        groups: dict[str, list[Any]] = {}
        for level in get_args(Level):
            groups.setdefault(str(describe(codec_named("enec", level))), []).append(level)
    else:
        (levels,) = (get_args(setting.type) for setting in msgspec.structs.fields(SZ) if setting.name == "level")
        groups = {level: [level] for level in levels}
    return [
        Contender(
            f"trimtab {', '.join(levels)}",
            "1 thread, bound verified, checksum",
            lambda x, bound, level=levels[-1]: compress(x, bound, level=level),
            decompress,
            size,
            lambda x, bound: None,
            level=levels[-1],
        )
        for levels in groups.values()
    ]


def of_peer(peer: Peer) -> Contender:
    """Return a peer as a contender. Under a PSNR, error-bounded peers get the largest bound that keeps it."""
    from trimtab.bounds import PSNR, Abs
    from trimtab.tune import for_psnr

    def own_bound(x: np.ndarray, bound: Bound) -> Bound:
        if not isinstance(bound, PSNR) or peer.refuses(x, Abs(1.0)) is not None:
            return bound
        return for_psnr(x, bound.value, peer.compress, peer.decompress).value

    return Contender(
        f"{peer.name} {peer.version()}",
        peer.setting,
        peer.compress,
        peer.decompress,
        lambda encoded: encoded.num_bytes,
        peer.refuses,
        own_bound,
    )


def measure(contenders: Sequence[Contender], piece: Piece, rounds: int) -> None:
    """Let all contenders that take a piece pack and unpack it in turns, and add up what they reached."""
    from trimtab.bounds import Lossless

    entrants, times = [], []
    for contender in contenders:
        trial = contender.attempt(piece.x, piece.bound)  # not timed, as kernels may be compiled
        if isinstance(trial, str):
            contender.refused[piece.name] = trial
            continue
        own, packed, y = trial
        contender.num_arrays += 1
        contender.array_bytes += piece.x.nbytes
        contender.packed_bytes += contender.size(packed)
        contender.largest_error = max(contender.largest_error, _error_over_limit(piece, y))
        contender.kept &= piece.bound.allows(piece.x, y)
        if not isinstance(piece.bound, Lossless):
            contender.distortion.add(piece, y)
        entrants.append((contender, own))
        times.append(([], []))
    for turn in range(rounds):
        for step in range(len(entrants)):
            at = (turn + step) % len(entrants)
            contender, own = entrants[at]
            begun = time.perf_counter()
            packed = contender.compress(piece.x, own)
            between = time.perf_counter()
            contender.decompress(packed)
            ended = time.perf_counter()
            times[at][0].append(between - begun)
            times[at][1].append(ended - between)
    for (contender, _), (compress, decompress) in zip(entrants, times, strict=True):
        contender.compress_seconds += statistics.median(compress)
        contender.decompress_seconds += statistics.median(decompress)


def _error_over_limit(piece: Piece, y: np.ndarray) -> float:
    """Return the largest error as a part of what the bound allows; 0.0 for bounds that are not of errors."""
    from trimtab import bounds

    x, bound = piece.x, piece.bound
    if not isinstance(bound, bounds.Abs | bounds.Rel):
        return 0.0
    limit = bound.value * (bounds.value_range(x) if isinstance(bound, bounds.Rel) else 1)
    error = bounds.largest_error(x, y)
    return error / limit if limit else float(error > 0)
