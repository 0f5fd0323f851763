"""``trimtab pack``: a file of arrays in, a packed file out, one array in memory at a time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trimtab.cli import options
from trimtab.cli.output import bound_text, count_text, names, print_json, ratio, say, size_text
from trimtab.cli.packing import Packing, reach

if TYPE_CHECKING:
    from trimtab.bounds import Bound
    from trimtab.store import Level


@click.command("pack")
@click.argument("source", metavar="IN", type=options.PATH)
@click.argument("out", metavar="OUT", type=options.PATH)
@options.bound_options
@click.option(
    "--target-ratio",
    type=float,
    metavar="X",
    help="Choose the smallest --rel for which OUT is at least X times smaller than the arrays.",
)
@click.option(
    "--codec",
    type=click.Choice(["enec", "sz", "gwlz", "embedding", "raw"]),
    help="Without it, enec where nothing may be lost, else sz. gwlz is sz and small networks that bring fields closer; "
    "embedding is for tables of vectors of which many are alike.",
)
@click.option(
    "--sparse",
    is_flag=True,
    help="For arrays with many zeros, such as pruned weights: codec sparse, and the usual one where that is shorter.",
)
@click.option(
    "--model",
    type=options.PATH,
    metavar="FILE",
    help="Predict with the AE-SZ model in FILE where that makes an array smaller; its weights go into OUT.",
)
@options.level_option
@options.base_option
@click.option("--integers", is_flag=True, help="Let the bound apply to integer arrays (images, counts), too.")
@options.tensors_only_option
@options.force_option
@options.threads_option
@options.quiet_option
@options.json_option
def verb(
    source: Path,
    out: Path,
    target_ratio: float | None,
    codec: str | None,
    model: Path | None,
    sparse: bool,
    level: Level | None,
    base: Path | None,
    integers: bool,
    tensors_only: bool,
    force: bool,
    threads: int | None,
    quiet: bool,
    as_json: bool,
    **chosen: float | None,
) -> None:
    """Pack the arrays of IN into OUT, losslessly or within one error bound.

    IN is a NumPy .npy or .npz, safetensors, PyTorch .pt or .pth, HDF5 or NetCDF-4 file, or a Zarr folder. A bound
    applies to real floating-point arrays, with --integers to those of integers too, and is verified; all other arrays
    are kept exactly. OUT (by custom .tt) appears only when it is complete. Exits with 1 if a target ratio cannot be
    reached.

    With --base, a safetensors or packed file such as the checkpoint that IN was tuned from, the differences from the
    arrays of the same names, dtypes and shapes are packed where they are smaller. unpack and verify need that file too.
    """
    from trimtab.bounds import Lossless
    from trimtab.codecs import AESZ
    from trimtab.errors import UsageError
    from trimtab.sources import open_source
    from trimtab.store import bound_applies, check_base, codec_named

    bound = _bound(chosen, target_ratio)
    lossless = isinstance(bound, Lossless) and target_ratio is None
    if integers and lossless:
        raise UsageError("--integers needs an error bound, for instance --abs 1; leave it out to lose nothing")
    if codec in ("sz", "gwlz") and lossless:
        raise UsageError(f"--codec {codec} needs an error bound, for instance --rel 1e-3; leave it out to lose nothing")
    if codec in ("enec", "raw") and target_ratio is not None:
        raise UsageError(f"--codec {codec} loses nothing, so there is no bound to choose for --target-ratio")
    if sparse and codec:
        raise UsageError(f"--sparse is a codec; leave out --codec {codec}")
    if sparse and level:
        raise UsageError(f"--sparse always packs for the best ratio; leave out --level {level}")
    if codec in ("raw", "embedding") and level:
        raise UsageError(f"--codec {codec} has no levels; leave out --level {level}")
    codec = "sparse" if sparse else codec
    made = codec_named(codec, level) if codec else None
    if base is not None and not lossless:
        raise UsageError("--base packs differences losslessly; leave out the bound, or --base")
    check_base(base, bound, made)
    if model and (codec or level or lossless):
        raise UsageError("--model needs a bound, for instance --rel 1e-2, and none of --codec, --sparse and --level")
    begun = time.perf_counter()
    with open_source(source, tensors_only=tensors_only) as arrays, options.chosen_threads(threads):
        options.check_output(out, source, force=force)
        if out.is_dir():
            raise UsageError(f"{out} is a folder; OUT must be a file")
        if not arrays.specs:
            raise UsageError(f"{source} holds no arrays of numbers; there is nothing to pack")
        exact = [name for name, spec in arrays.specs.items() if not bound_applies(spec.dtype, integers=integers)]
        if not quiet:
            if arrays.left_out:
                say(f"left out, not arrays of numbers: {names(arrays.left_out)}")
            if arrays.not_kept:
                say(f"not kept: {arrays.not_kept}")
            if exact and not lossless:
                what = bound_text(bound) if target_ratio is None else "the chosen bound"
                say(f"{what} does not apply to {names(exact)}; kept exactly")
        made = AESZ.load(model) if model else made
        packing = Packing(arrays, made, None if made else level, integers, quiet, base, options.open_base(base))
        choice, num_differences = None, 0
        if target_ratio is None:
            num_differences = packing.write(out, bound)
        else:
            choice = reach(packing, out, target_ratio)
            bound = choice.value
        num_arrays, num_bytes = len(arrays.specs), packing.num_bytes
    seconds = time.perf_counter() - begun
    packed_bytes = options.file_size(out)
    if as_json:
        print_json(
            {
                "in": str(source),
                "out": str(out),
                "kind": arrays.kind,
                "bound": bound,
                **({"base": str(base), "num_differences": num_differences} if base else {}),
                "num_arrays": num_arrays,
                "left_out": arrays.left_out,
                "not_kept": arrays.not_kept,
                "in_file_bytes": options.file_size(source),
                "array_bytes": num_bytes,
                "packed_file_bytes": packed_bytes,
                "ratio": ratio(num_bytes, packed_bytes),
                **({"trials": choice.report["trace"]} if choice else {}),
                **options.report_times(num_bytes, seconds),
            }
        )
    elif not quiet:
        if choice:
            say(f"{bound_text(bound)} is the smallest bound found that reaches ratio {target_ratio:g}")
        if base:
            say(f"{num_differences} of {count_text(num_arrays, 'array')} packed as differences from {base}")
        click.echo(
            f"{out}: {count_text(num_arrays, 'array')}, {size_text(num_bytes)} -> "
            f"{size_text(packed_bytes)}, ratio {ratio(num_bytes, packed_bytes):.3f}, {bound_text(bound)}, "
            f"{seconds:.2f} s, {options.speed(num_bytes, seconds):.0f} MB/s"
        )


def _bound(chosen: dict[str, float | None], target_ratio: float | None) -> Bound:
    """Return the bound that the options state; with a target ratio there must be none."""
    from trimtab.errors import UsageError

    if target_ratio is None:
        return options.bound_from(chosen)
    given = [f"--{name.replace('_', '-')}" for name, value in chosen.items() if value is not None]
    if given:
        raise UsageError(f"--target-ratio chooses the bound; leave out {' and '.join(given)}")
    if not 1 < target_ratio < float("inf"):
        raise UsageError(f"--target-ratio must be a finite number above 1, got {target_ratio:g}")
    return options.bound_from({})
