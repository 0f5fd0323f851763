"""Options that several verbs share: the error bound, the number of threads, and what may be written where."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.errors import UsageError

if TYPE_CHECKING:
    from trimtab.arrays import Array
    from trimtab.bounds import Bound
    from trimtab.files import Reader

PATH = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print a report in JSON to stdout.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No talk, no progress bar, no summary.")
force_option = click.option("--force", is_flag=True, help="Replace OUT if it exists.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads to use; without it, one a core."
)
level_option = click.option(
    "--level",
    type=click.Choice(["fast", "balanced", "ratio"]),
    help="Time against size: fast, balanced (the default) or the best ratio.",
)
tensors_only_option = click.option(
    "--tensors-only", is_flag=True, help="Leave out texts, objects and whatever else is not an array of numbers."
)
base_option = click.option(
    "--base", type=PATH, metavar="BASE", help="The file that arrays are packed as differences from."
)
shared_model_option = click.option(
    "--model",
    type=PATH,
    metavar="FILE",
    expose_value=False,
    callback=lambda context, option, path: _load_model(path),
    help="The AE-SZ model, where arrays were packed without its weights.",
)


def _load_model(path: Path | None) -> None:
    """Make a model known, for arrays that name it."""
    if path is not None:
        from trimtab.codecs import AESZ

        AESZ.load(path)


def bound_options(function: Callable) -> Callable:
    """Add --abs, --rel, --pointwise-rel and --psnr."""
    for flag, text in (
        ("--psnr", "Keep a peak signal-to-noise ratio of at least this many dB."),
        ("--pointwise-rel", "Largest error of an element, as a part of that element."),
        ("--rel", "Largest error of any element, as a part of the array's value range."),
        ("--abs", "Largest error of any element, in the unit of the data."),
    ):
        function = click.option(flag, type=float, metavar="X", help=text)(function)
    return function


def bound_from(chosen: dict[str, float | None]) -> Bound:
    """Return the bound that the user chose among `bound_options`.

    Raises:
        UsageError: more than one was given.
        BoundError: its value is not a positive finite number.
    """
    from trimtab import bounds

    given = {name: value for name, value in chosen.items() if value is not None}
    if len(given) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{flags} exclude each other; give one of them")
    kinds = {"abs": bounds.Abs, "rel": bounds.Rel, "pointwise_rel": bounds.PointwiseRel, "psnr": bounds.PSNR}
    for name, value in given.items():
        if not value > 0 or value == float("inf"):
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} must be a positive finite number, got {value:g}; leave it out to lose nothing")
        return kinds[name](value)
    return bounds.Lossless()


@contextmanager
def chosen_threads(count: int | None) -> Iterator[int]:
    """Use `count` threads inside the ``with`` block, where given; yield how many may run."""
    from trimtab.kernels import num_threads, threads

    if count is None:
        yield num_threads()
        return
    with threads(count):
        yield count


def check_output(out: Path, source: Path, *, force: bool) -> None:
    """Check that OUT may be written.

    Raises:
        UsageError: it is the source, or exists and `force` is off, or its folder is missing or not writable.
    """
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError(f"IN and OUT are the same file, {out}; choose another name for OUT")
    if out.exists() and not force:
        raise UsageError(f"{out} exists; choose another name, or replace it with --force")
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise UsageError(f"{out} is a device or a pipe; OUT must be a file")
    if not out.parent.is_dir():
        raise UsageError(f"the folder {out.parent} does not exist; make it first: mkdir -p {out.parent}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise UsageError(f"the folder {out.parent} cannot be written; check who may: ls -ld {out.parent}")


def open_packed(path: Path) -> Reader:
    """Open a packed file.

    Raises:
        UsageError: the file is of another kind.
        FormatError: it is damaged.
    """
    from trimtab.errors import FormatError
    from trimtab.files import Reader
    from trimtab.sources import sniff

    try:
        kind = sniff(path)
    except FormatError as error:
        raise type(error)(f"{error}; expected a packed file") from None
    if kind != "packed":
        raise UsageError(f"{path} is not packed (kind: {kind}); pack it first, or try 'trimtab compare {path}'")
    try:
        return Reader(path)
    except FormatError as error:
        raise type(error)(f"{path}: {error}") from None


def open_base(path: Path | None) -> Mapping[str, Array]:
    """Return the arrays of a base by name, read when they are asked for; none without a base.

    Raises:
        UsageError: the file is of a kind that a base cannot be, or was packed against a base itself.
        FormatError: it is damaged.
    """
    from trimtab import store
    from trimtab.errors import FormatError
    from trimtab.sources import sniff

    if path is None:
        return {}
    if (kind := sniff(path)) not in ("packed", "safetensors"):
        raise UsageError(
            f"{path} is of kind {kind}; a base is a safetensors or packed file: 'trimtab pack {path} BASE.tt' makes one"
        )
    try:
        return store.open_base(path)
    except FormatError as error:
        raise type(error)(f"{path}: {error}") from None


def release(bases: Mapping[str, Array]) -> None:
    """Let the system take back the memory of a base's pages read so far."""
    from trimtab.store import Tensors

    if isinstance(bases, Tensors):
        bases.reader.release()


def file_size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def speed(num_bytes: int, seconds: float) -> float:
    """Return MB/s."""
    return num_bytes / 1e6 / seconds if seconds else float("inf")


def report_times(num_bytes: int, seconds: float) -> dict[str, Any]:
    """Return the part of a report that says how long it took."""
    return {"seconds": seconds, "megabytes_per_second": speed(num_bytes, seconds)}
