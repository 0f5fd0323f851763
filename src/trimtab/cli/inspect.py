"""``trimtab inspect``: what a packed file holds, told from its header; nothing is decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trimtab.cli import options
from trimtab.cli.output import bound_text, count_text, print_json, print_table, ratio, shape_text, size_text


@click.command("inspect")
@click.argument("path", metavar="FILE", type=options.PATH)
@options.json_option
def verb(path: Path, as_json: bool) -> None:
    """List the arrays of a packed FILE: dtype, shape, codec, bound, sizes and ratio."""
    reader = options.open_packed(path)
    entries: dict[str, dict[str, Any]] = {}
    for name in reader:
        header, packed_bytes = reader.header(name), reader.packed(name).num_bytes
        entries[name] = {
            "dtype": header.dtype,
            "shape": header.shape,
            "codec": header.codec,
            "bound": header.bound,
            "array_bytes": header.num_bytes,
            "packed_bytes": packed_bytes,
            "ratio": ratio(header.num_bytes, packed_bytes),
            "checksum": reader.checksum(name),
            **({"base": header.base} if header.base else {}),
        }
    array_bytes = sum(entry["array_bytes"] for entry in entries.values())
    if as_json:
        print_json(
            {
                "file": str(path),
                "format_version": reader.manifest.version,
                "array_bytes": array_bytes,
                "packed_file_bytes": reader.num_bytes,
                "ratio": ratio(array_bytes, reader.num_bytes),
                **({"base": reader.manifest.base} if reader.manifest.base else {}),
                "metadata": reader.metadata,
                "arrays": entries,
            }
        )
        return
    rows = [
        (
            name,
            entry["dtype"],
            shape_text(entry["shape"]),
            entry["codec"]["id"] + (" difference" if "base" in entry else ""),
            bound_text(entry["bound"]),
            size_text(entry["packed_bytes"]),
            f"{entry['ratio']:.3f}",
        )
        for name, entry in entries.items()
    ]
    print_table(("name", "dtype", "shape", "codec", "bound", "packed", "ratio"), rows, left=5)
    click.echo(
        f"{count_text(len(rows), 'array')}, {size_text(array_bytes)} in {size_text(reader.num_bytes)}, "
        f"ratio {ratio(array_bytes, reader.num_bytes):.3f}, format version {reader.manifest.version}"
    )
    differences = sum("base" in entry for entry in entries.values())
    if differences:
        base = repr(reader.manifest.base) if reader.manifest.base else "arrays in memory"
        click.echo(f"{differences} of {count_text(len(rows), 'array')} are differences from those of {base}")
    for key, text in reader.metadata.items():
        click.echo(f"metadata {key}: {text if len(text) <= 200 else text[:200] + ' ...'}")
