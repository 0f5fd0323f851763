"""``trimtab unpack``: a packed file in, a file of arrays out, one array in memory at a time."""

from __future__ import annotations

import time
from pathlib import Path

import click

from trimtab.cli import options
from trimtab.cli.output import count_text, print_json, progress, say, size_text


@click.command("unpack")
@click.argument("source", metavar="IN", type=options.PATH)
@click.argument("out", metavar="OUT", type=options.PATH)
@click.option("--entry", "entries", metavar="NAME", multiple=True, help="Take only this array; may be given again.")
@options.base_option
@options.shared_model_option
@options.force_option
@options.threads_option
@options.quiet_option
@options.json_option
def verb(
    source: Path,
    out: Path,
    entries: tuple[str, ...],
    base: Path | None,
    force: bool,
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Unpack the arrays of IN into OUT, whose suffix says what is written.

    .npy (one array), .npz, .safetensors, .pt or .pth, .h5, .hdf5, .nc or .nc4, or a folder .zarr. The checksum of
    every array is checked. OUT appears only when it is complete. What was packed with --base needs the same BASE.
    """
    from trimtab.errors import BaseError, FormatError, UsageError
    from trimtab.sources import Spec, create_target
    from trimtab.store import decode

    begun = time.perf_counter()
    reader = options.open_packed(source)
    with options.chosen_threads(threads):
        options.check_output(out, source, force=force)
        if out.is_dir() != (out.suffix.lower() == ".zarr") and out.exists():
            raise UsageError(f"{out} is a {'folder' if out.is_dir() else 'file'}; move it away first")
        missing = [name for name in entries if name not in reader]
        if missing:
            raise UsageError(f"{source} has no array {missing[0]!r}; 'trimtab inspect {source}' lists its arrays")
        headers = {name: reader.header(name) for name in (dict.fromkeys(entries) if entries else reader)}
        specs = {name: Spec(header.dtype, header.shape) for name, header in headers.items()}
        num_bytes = sum(header.num_bytes for header in headers.values())
        bases = options.open_base(base)
        target = create_target(out, specs, reader.metadata)
        if reader.metadata and not target.keeps_metadata and not quiet:
            say(f"not kept: the metadata ({', '.join(reader.metadata)}); {target.kind} files have no place for it")
        with target, progress("unpacking", num_bytes, quiet=quiet) as advance:
            for name in target.order:
                try:
                    target.add(name, decode(reader, name, bases))
                except (BaseError, FormatError) as error:
                    raise type(error)(f"{source}: {name!r}: {error}") from None
                reader.release()
                options.release(bases)
                advance(specs[name].num_bytes)
    seconds = time.perf_counter() - begun
    if as_json:
        print_json(
            {
                "in": str(source),
                "out": str(out),
                "kind": target.kind,
                "num_arrays": len(specs),
                "array_bytes": num_bytes,
                "out_file_bytes": options.file_size(out),
                **options.report_times(num_bytes, seconds),
            }
        )
    elif not quiet:
        click.echo(
            f"{out}: {count_text(len(specs), 'array')}, {size_text(num_bytes)}, "
            f"{seconds:.2f} s, {options.speed(num_bytes, seconds):.0f} MB/s"
        )
