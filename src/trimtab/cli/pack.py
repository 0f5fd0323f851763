"""``trimtab pack``: a file of arrays in, a packed file out, one array in memory at a time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trimtab.cli import options
from trimtab.cli.output import bound_text, count_text, print_json, progress, ratio, say, size_text

if TYPE_CHECKING:
    from trimtab.store import Level


@click.command("pack")
@click.argument("source", metavar="IN", type=options.PATH)
@click.argument("out", metavar="OUT", type=options.PATH)
@options.bound_options
@click.option(
    "--codec",
    type=click.Choice(["enec", "sz", "raw"]),
    help="Without it, enec where nothing may be lost, else sz.",
)
@options.level_option
@click.option("--integers", is_flag=True, help="Let the bound apply to integer arrays (images, counts), too.")
@options.tensors_only_option
@options.force_option
@options.threads_option
@options.quiet_option
@options.json_option
def verb(
    source: Path,
    out: Path,
    codec: str | None,
    level: Level | None,
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
    are kept exactly. OUT (by custom .tt)
    appears only when it is complete.
    """
    from trimtab.bounds import Lossless
    from trimtab.dtypes import numpy_dtype
    from trimtab.errors import ShapeError, UsageError
    from trimtab.files import Writer
    from trimtab.sources import open_source
    from trimtab.store import bound_applies, codec_named, encode, for_dtype

    bound = options.bound_from(chosen)
    if integers and isinstance(bound, Lossless):
        raise UsageError("--integers needs an error bound, for instance --abs 1; leave it out to lose nothing")
    if codec == "sz" and isinstance(bound, Lossless):
        raise UsageError("--codec sz needs an error bound, for instance --rel 1e-3; leave it out to lose nothing")
    if codec == "raw" and level:
        raise UsageError(f"--codec raw stores arrays as they are; leave out --level {level}")
    made = codec_named(codec, level) if codec else None
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
                say(f"left out, not arrays of numbers: {_names(arrays.left_out)}")
            if arrays.not_kept:
                say(f"not kept: {arrays.not_kept}")
            if exact and not isinstance(bound, Lossless):
                say(f"{bound_text(bound)} does not apply to {_names(exact)}; kept exactly")
        num_bytes = sum(spec.num_bytes for spec in arrays.specs.values())
        with Writer(out, metadata=arrays.metadata) as writer, progress("packing", num_bytes, quiet=quiet) as advance:
            for name, spec in arrays.specs.items():
                x = arrays.read(name)
                try:
                    chosen_codec = for_dtype(
                        numpy_dtype(spec.dtype), bound, made, None if made else level, integers=integers
                    )
                    writer.add(name, *encode(x, *chosen_codec))
                except ShapeError as error:
                    raise ShapeError(f"{source}: {name!r}: {error}") from None
                del x  # before the next one is read
                advance(spec.num_bytes)
        num_arrays = len(arrays.specs)
    seconds = time.perf_counter() - begun
    packed_bytes = options.file_size(out)
    if as_json:
        print_json(
            {
                "in": str(source),
                "out": str(out),
                "kind": arrays.kind,
                "bound": bound,
                "num_arrays": num_arrays,
                "left_out": arrays.left_out,
                "not_kept": arrays.not_kept,
                "in_file_bytes": options.file_size(source),
                "array_bytes": num_bytes,
                "packed_file_bytes": packed_bytes,
                "ratio": ratio(num_bytes, packed_bytes),
                **options.report_times(num_bytes, seconds),
            }
        )
    elif not quiet:
        click.echo(
            f"{out}: {count_text(num_arrays, 'array')}, {size_text(num_bytes)} -> "
            f"{size_text(packed_bytes)}, ratio {ratio(num_bytes, packed_bytes):.3f}, {bound_text(bound)}, "
            f"{seconds:.2f} s, {options.speed(num_bytes, seconds):.0f} MB/s"
        )


def _names(names: list[str]) -> str:
    """Return a few of the names, and how many more there are."""
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
