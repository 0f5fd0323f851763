"""``trimtab verify``: is a packed file sound, and did it keep its promise?"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli import options
from trimtab.cli.output import bound_text, print_json, print_table, progress

if TYPE_CHECKING:
    import numpy as np

    from trimtab.arrays import Array
    from trimtab.bounds import Bound
    from trimtab.files import Reader
    from trimtab.sources import Source


@click.command("verify")
@click.argument("path", metavar="FILE", type=options.PATH)
@click.option("--against", type=options.PATH, metavar="ORIGINAL", help="The file that was packed.")
@options.base_option
@options.shared_model_option
@options.tensors_only_option
@options.threads_option
@options.quiet_option
@options.json_option
def verb(
    path: Path,
    against: Path | None,
    base: Path | None,
    tensors_only: bool,
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Decode every array of FILE and check its checksum; exit with 1 if anything is wrong.

    With --against, also check that names, dtypes and shapes are those of ORIGINAL, and that every element is within
    its bound. What was packed with --base needs the same BASE.
    """
    from trimtab.errors import FormatError, NewerVersion
    from trimtab.sources import open_source

    arrays: list[dict[str, Any]] = []
    failures: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(options.chosen_threads(threads))
        bases = options.open_base(base)
        original = stack.enter_context(open_source(against, tensors_only=tensors_only)) if against else None
        try:
            reader = options.open_packed(path)
        except NewerVersion:
            raise  # the file may well be sound: there is no answer
        except FormatError as error:
            failures.append(str(error))
        else:
            if original is not None:
                if not original.named and len(reader) == 1:
                    original.rename(next(iter(reader)))
                failures += [f"{name!r} is missing; {against} has it" for name in original.specs if name not in reader]
            num_bytes = sum(reader.header(name).num_bytes for name in reader)
            advance = stack.enter_context(progress("verifying", num_bytes, quiet=quiet))
            for name in reader:
                checked = _check(reader, name, original, bases)
                arrays.append(checked)
                failures += [f"{name!r}: {checked['failure']}"] if checked["failure"] else []
                advance(reader.header(name).num_bytes)
    _print(path, against, arrays, failures, quiet=quiet, as_json=as_json)
    return 1 if failures else 0


def _check(reader: Reader, name: str, original: Source | None, bases: Mapping[str, Array]) -> dict[str, Any]:
    """Return what was found out about one array; ``failure`` is None if all is well."""
    from trimtab.errors import FormatError
    from trimtab.sources import Spec
    from trimtab.store import decode

    header = reader.header(name)
    checked: dict[str, Any] = {"name": name, "bound": header.bound, "failure": None}
    try:
        y = decode(reader, name, bases)
    except FormatError as error:
        return {**checked, "failure": str(error)}
    reader.release()  # room for the original
    options.release(bases)
    if original is None:
        return checked
    if name not in original.specs:
        return {**checked, "failure": f"{original.path} has no such array"}
    expected = original.specs[name]
    if expected != Spec(header.dtype, header.shape):
        return {
            **checked,
            "failure": f"is {header.dtype} {list(header.shape)}, the original {expected.dtype} {list(expected.shape)}",
        }
    x = original.read(name)
    checked |= _measure(header.bound, x, y)
    if not header.bound.allows(x, y):
        checked["failure"] = f"differs from the original by more than {bound_text(header.bound)} allows"
    return checked


def _measure(bound: Bound, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return what was reached and what the bound asks for, in the bound's own measure."""
    from trimtab import bounds

    if isinstance(bound, bounds.PSNR):
        return {"measure": "PSNR in dB", "reached": bounds.psnr(x, y), "limit": bound.value}
    if isinstance(bound, bounds.PointwiseRel):
        return {"measure": "largest relative error", "reached": _relative_error(x, y), "limit": bound.value}
    if isinstance(bound, bounds.Lossless):
        return {"measure": "differing bits", "reached": 0.0 if bound.allows(x, y) else None, "limit": 0.0}
    limit = bound.value * (bounds.value_range(x) if isinstance(bound, bounds.Rel) else 1)
    return {"measure": "largest error", "reached": bounds.largest_error(x, y), "limit": limit}


def _relative_error(x: np.ndarray, y: np.ndarray) -> float:
    import numpy as np

    largest = 0.0
    flat_x, flat_y, step = x.reshape(-1), y.reshape(-1), 1 << 20
    for start in range(0, x.size, step):
        a, b = (flat[start : start + step].astype(np.float64) for flat in (flat_x, flat_y))
        usable = np.isfinite(a) & (a != 0)
        if usable.any():
            largest = max(largest, float((np.abs(a - b)[usable] / np.abs(a[usable])).max()))
    return largest


def _print(
    path: Path, against: Path | None, arrays: list[dict[str, Any]], failures: list[str], *, quiet: bool, as_json: bool
) -> None:
    if as_json:
        report = {"file": str(path), "against": str(against) if against else None, "ok": not failures}
        print_json({**report, "failures": failures, "arrays": arrays})
        return
    if quiet:
        return
    rows = [
        (
            checked["name"],
            bound_text(checked["bound"]),
            checked["measure"],
            f"{checked['reached']:.6g}",
            f"{checked['limit']:.6g}",
        )
        for checked in arrays
        if checked.get("measure") not in (None, "differing bits")
    ]
    if rows:
        print_table(("name", "bound", "measure", "reached", "limit"), rows, left=3)
    if failures:
        for failure in failures:
            click.echo(f"no: {failure}")
    elif against:
        click.echo(f"yes: {path} keeps its promise: {len(arrays)} of {len(arrays)} arrays checked against {against}")
    else:
        click.echo(f"yes: {path} is sound: {len(arrays)} of {len(arrays)} checksums match")
