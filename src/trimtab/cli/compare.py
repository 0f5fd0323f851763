"""``trimtab compare``: ours and the installed peers on the user's own file, array by array."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli import options
from trimtab.cli.output import bound_text, print_json, print_table, progress, say, size_text

if TYPE_CHECKING:
    from trimtab.bounds import Bound
    from trimtab.cli.contenders import Contender, Piece
    from trimtab.sources import Source, Spec
    from trimtab.tune import Choice
    from trimtab.tune.sample import Box


@click.command("compare")
@click.argument("path", metavar="FILE", type=options.PATH)
@options.bound_options
@click.option("--min-speed", type=float, metavar="MB/s", help="Recommend what packs and unpacks at least this fast.")
@click.option(
    "--plot",
    type=options.PATH,
    metavar="PICTURE",
    help="Draw PSNR against bits a value, or without a bound ratio against speed, as .png or .svg.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    metavar="MB",
    help="Use at most this much of FILE; of larger ones blocks are drawn.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Alternating rounds."
)
@options.tensors_only_option
@options.quiet_option
@options.json_option
def verb(
    path: Path,
    min_speed: float | None,
    plot: Path | None,
    limit: int,
    rounds: int,
    tensors_only: bool,
    quiet: bool,
    as_json: bool,
    **chosen: float | None,
) -> None:
    """Measure trimtab and the installed peers on the arrays of FILE, one thread each, and recommend the best ratio.

    Compressors take turns on every array; a speed is that of the median rounds, in bytes of the arrays. With an
    error bound, only real floating-point arrays are used; under --psnr, peers that take error bounds only get the
    largest one that keeps it. Exits with 1 if nothing is fast enough.
    """
    from trimtab.bounds import Lossless
    from trimtab.cli.contenders import measure, of_peer, ours
    from trimtab.cli.curves import Curve, check_plot, draw_curves, draw_speeds
    from trimtab.dtypes import FLOATS
    from trimtab.errors import NoFeasibleChoice, UsageError
    from trimtab.kernels import threads
    from trimtab.peers import PEERS
    from trimtab.sources import open_source

    bound = options.bound_from(chosen)
    lossless = isinstance(bound, Lossless)
    if min_speed is not None and not 0 < min_speed < math.inf:
        raise UsageError(f"--min-speed must be a positive finite number, got {min_speed:g}")
    if plot is not None:
        check_plot(plot)
    peers = [peer for peer in PEERS if peer.lossless == lossless]
    missing = {peer.name: reason for peer in peers if (reason := peer.unavailable())}
    contenders = [*ours(lossless=lossless), *(of_peer(peer) for peer in peers if peer.name not in missing)]
    curves = [Curve(contender) for contender in contenders if plot is not None and not lossless]
    with open_source(path, tensors_only=tensors_only) as source, threads(1):
        usable = {name: spec for name, spec in source.specs.items() if lossless or spec.dtype in FLOATS}
        if not usable:
            raise UsageError(f"{path} has no arrays that {bound_text(bound)} applies to; leave the bound out")
        taken = _taken(usable, limit * 10**6)
        num_bytes = sum(_num_bytes(usable[name], box) for name, boxes in taken.items() for box in boxes)
        num_pieces = sum(map(len, taken.values()))
        file_bytes = sum(spec.num_bytes for spec in usable.values())
        if not quiet:
            if num_bytes < file_bytes:
                say(
                    f"a sample: {num_pieces} blocks, {size_text(num_bytes)} of {size_text(file_bytes)}, "
                    f"drawn to stay within --limit {limit}; ratios are estimates"
                )
            if len(usable) < len(source.specs):
                num_exact = len(source.specs) - len(usable)
                say(f"{num_exact} of {len(source.specs)} arrays are left out: {bound_text(bound)} does not apply")
        with progress("comparing", num_bytes, quiet=quiet) as advance:
            for piece in _pieces(source, taken, bound):
                measure(contenders, piece, rounds)
                for curve in curves:
                    curve.add(piece)
                advance(piece.x.nbytes)
    choice, refusal = None, None
    try:
        choice = _recommend(contenders, num_pieces, min_speed)
    except NoFeasibleChoice as error:
        refusal = error
    ours_best = _ours_best(contenders, num_pieces, min_speed)
    command = None if ours_best is None else _command(path, bound, ours_best, tensors_only=tensors_only)
    if plot is not None and lossless:
        draw_speeds(plot, contenders, f"{path.name}: ratio against speed")
    elif plot is not None:
        draw_curves(plot, curves, f"{path.name}: error against size")
    if as_json:
        print_json(
            {
                "file": str(path),
                "bound": bound,
                "num_arrays": len(taken),
                "num_pieces": num_pieces,
                "array_bytes": num_bytes,
                "file_array_bytes": file_bytes,
                "rounds": rounds,
                "threads": 1,
                "contenders": [contender.report() for contender in contenders],
                "recommendation": choice and {"name": choice.value, **choice.metrics, "trimtab_command": command},
                "curves": {curve.contender.name: curve.report() for curve in curves if curve.refusal is None},
                "missing": missing,
            }
        )
    else:
        _print(contenders, num_pieces, bound)
        if choice is not None:
            click.echo(f"\n{_sentence(choice, ours_best, command, bound)}")
    if not quiet and not as_json:
        for contender in contenders:
            if contender.refused:
                reasons = "; ".join(dict.fromkeys(contender.refused.values()))
                say(f"{contender.name} left out {len(contender.refused)} of {len(taken)} arrays: {reasons}")
        for curve in curves:
            if curve.refusal is not None:
                say(f"{curve.contender.name} is not drawn: {curve.refusal}")
        if missing:
            packages = dict.fromkeys(peer.package for peer in peers if peer.name in missing)
            say(f"not here: {', '.join(missing)}; pip install {' '.join(packages)}")
    if refusal is not None:
        raise refusal


def _taken(specs: Mapping[str, Spec], max_bytes: int) -> dict[str, list[Box]]:
    """Return what is used of each array: all, or blocks drawn where they are too large together."""
    from trimtab.dtypes import numpy_dtype
    from trimtab.tune.sample import draw

    if sum(spec.num_bytes for spec in specs.values()) <= max_bytes:
        return {name: [(slice(None),) * len(spec.shape)] for name, spec in specs.items()}
    drawn = draw({name: (spec.shape, numpy_dtype(spec.dtype).itemsize) for name, spec in specs.items()}, max_bytes)
    return {name: drawn[name] for name in specs if name in drawn}


def _num_bytes(spec: Spec, box: Box) -> int:
    """Return the bytes of a box of an array."""
    from trimtab.dtypes import numpy_dtype

    sizes = (len(range(*part.indices(n))) for part, n in zip(box, spec.shape, strict=True))
    return math.prod(sizes) * numpy_dtype(spec.dtype).itemsize


def _pieces(source: Source, taken: Mapping[str, Sequence[Box]], bound: Bound) -> Iterator[Piece]:
    """Yield what is used of each array, one in memory at a time."""
    import numpy as np

    from trimtab.bounds import Lossless, value_range
    from trimtab.cli.contenders import Piece
    from trimtab.tune.sample import local_bound

    for name, boxes in taken.items():
        whole = source.read(name)
        span = 0.0 if isinstance(bound, Lossless) else value_range(whole)
        if whole[boxes[0]].size == whole.size:
            yield Piece(name, whole, bound, span)
            continue
        blocks = [np.array(whole[box], order="C") for box in boxes]
        del whole
        for block in blocks:
            yield Piece(name, block, local_bound(bound, block, span), span)


def _recommend(contenders: Sequence[Contender], num_pieces: int, min_speed: float | None) -> Choice:
    """Return the best ratio among those that took every array, kept the bound, and are fast enough.

    Of ratios next to equal it is the one that packs fastest.

    Raises:
        NoFeasibleChoice: there is none.
    """
    from trimtab.tune import pick

    able = {c.name: c.metrics for c in contenders if c.num_arrays == num_pieces and c.kept}
    needed = {"pack MB/s": min_speed, "unpack MB/s": min_speed} if min_speed else {}
    return pick(able, "ratio", needed, then="pack MB/s")


def _ours_best(contenders: Sequence[Contender], num_pieces: int, min_speed: float | None) -> Contender | None:
    """Return the level to recommend, if one is fast enough."""
    from trimtab.errors import NoFeasibleChoice

    levels = [contender for contender in contenders if contender.level is not None]
    try:
        best = _recommend(levels, num_pieces, min_speed).value
    except NoFeasibleChoice:
        return None
    return next(contender for contender in levels if contender.name == best)


def _command(path: Path, bound: Bound, contender: Contender, *, tensors_only: bool) -> str:
    """Return the command that packs FILE as recommended."""
    from trimtab.bounds import Lossless

    words = ["trimtab", "pack", str(path), f"{path.stem}.tt"]
    if not isinstance(bound, Lossless):
        words += [f"--{type(bound).__struct_config__.tag}".replace("_", "-"), repr(bound.value).removesuffix(".0")]
    words += ["--level", str(contender.level)]
    return shlex.join([*words, "--tensors-only"] if tensors_only else words)


def _sentence(choice: Choice, ours: Contender | None, command: str | None, bound: Bound) -> str:
    """Say what is recommended, and how to run it."""
    asked = bound_text(bound)
    text = f"Best ratio, {asked}: {choice.value} with {choice.metrics['ratio']:.3f}"
    if ours is None:
        return f"{text}; no level of trimtab is fast enough."
    if ours.name != choice.value:
        text += f"; of trimtab's levels {ours.level} with {ours.metrics['ratio']:.3f}"
    return f"{text}. Run: {command}"


def _print(contenders: Sequence[Contender], num_pieces: int, bound: Bound) -> None:
    from trimtab import bounds

    lossless, of_errors = isinstance(bound, bounds.Lossless), isinstance(bound, bounds.Abs | bounds.Rel)

    def cells(contender: Contender) -> list[str]:
        report: dict[str, Any] = contender.report()
        if not contender.num_arrays:
            return [contender.name, contender.setting, f"0 of {num_pieces}", *["-"] * (len(columns) - 3)]
        row = [
            contender.name,
            contender.setting,
            f"{contender.num_arrays} of {num_pieces}",
            f"{report['ratio']:.3f}",
            f"{report['compress_megabytes_per_second']:.0f}",
            f"{report['decompress_megabytes_per_second']:.0f}",
        ]
        row += [] if lossless else [f"{contender.distortion.psnr:.1f}"]
        row += [f"{contender.largest_error:.4f}"] if of_errors else []
        return [*row, "yes" if contender.kept else "NO"]

    columns = ["compressor", "setting", "arrays", "ratio", "pack MB/s", "unpack MB/s"]
    columns += [] if lossless else ["PSNR dB"]
    columns += ["error / limit"] if of_errors else []
    columns.append("exact" if lossless else "bound kept")
    rows = sorted(contenders, key=lambda contender: -(contender.report()["ratio"] or 0))
    print_table(columns, [cells(contender) for contender in rows], left=2)
