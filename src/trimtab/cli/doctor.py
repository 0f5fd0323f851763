"""``trimtab doctor``: what runs here, how, and what is missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import click

from trimtab import __version__
from trimtab.cli import options
from trimtab.cli.output import print_json, print_table
from trimtab.errors import UsageError

_NEEDED = ("numpy", "numba", "msgspec", "safetensors", "xxhash", "zstandard", "ml_dtypes", "click", "rich")
_OPTIONAL = {
    "torch": "torch",
    "triton": "gpu",
    "h5py": "hdf5",
    "zarr": "zarr",
    "numcodecs": "zarr",
    "matplotlib": "plot",
    "nibabel": "demo",
}


@click.command("doctor")
@click.option("--warm", is_flag=True, help="Compile all kernels now, so that no later run has to wait.")
@click.option("--link", is_flag=True, help="Measure the link between ranks instead: will compressing pay there?")
@click.option(
    "--parameters",
    type=click.FloatRange(min=1),
    metavar="N",
    help="With --link: the model's number of parameters (default 124e6).",
)
@click.option(
    "--compute-seconds",
    type=click.FloatRange(min=0),
    metavar="S",
    help="With --link: what a step takes without communication.",
)
@options.json_option
def verb(warm: bool, link: bool, parameters: float | None, compute_seconds: float | None, as_json: bool) -> int:
    """Report versions, machine, threads, kernels, caches and optional packages.

    Exits with 1 if something that is needed does not work; with --link, if compressing would not pay.

    \b
    trimtab netlab --rate 100mbit -- trimtab doctor --link
    torchrun --nnodes 2 ... -m trimtab doctor --link
    """
    if link:
        from trimtab.cli import link as links

        return links.report(int(parameters or 124e6), compute_seconds, as_json=as_json)
    if parameters is not None or compute_seconds is not None:
        raise UsageError("--parameters and --compute-seconds belong to --link; give that too")
    for package in ("numpy", "msgspec"):  # without them not even a report can be made
        if problem := _import_problem(package):
            click.echo(f"no: {problem}")
            return 1
    problems = [problem for package in _NEEDED if (problem := _import_problem(package))]
    from trimtab.kernels import num_threads
    from trimtab.records import machine, versions

    with warnings.catch_warnings():  # the reasons stand in the report
        warnings.simplefilter("ignore")
        kernels = _kernels(warm)
    packages = {"trimtab": __version__, **versions((*_NEEDED, *_OPTIONAL))}
    problems += [f"kernel {kernel['kernel']}: {kernel['note']}" for kernel in kernels if kernel["back_end"] is None]
    missing = {name: f"pip install 'trimtab[{extra}]'" for name, extra in _OPTIONAL.items() if name not in packages}
    report: dict[str, Any] = {
        "ok": not problems,
        "problems": problems,
        "versions": packages,
        "missing": missing,
        "machine": machine(),
        "threads": {"used": num_threads(), "set_by": _threads_set_by()},
        "kernels": kernels,
        "device": _device(packages),
        "cache": _cache(),
        "executable": sys.executable,
    }
    if as_json:
        print_json(report)
    else:
        _print(report)
    return 1 if problems else 0


def _import_problem(package: str) -> str | None:
    """Return why a package cannot be used, or None."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        return f"{package} does not import ({error}); pip install {package}"
    return None


def _kernels(warm: bool) -> list[dict[str, Any]]:
    from trimtab import kernels
    from trimtab.errors import TrimtabError

    forced = os.environ.get("TRIMTAB_BACKEND")
    rows = []
    for operation in kernels.operations():
        row: dict[str, Any] = {"kernel": operation, "back_end": None, "seconds": None}
        cached = cached_files(operation)
        if not (forced or warm or cached) and importlib.util.find_spec("numba"):
            row |= {"back_end": "numba", "note": "compiles when first used; 'trimtab doctor --warm' does it now"}
            rows.append(row)
            continue
        begun = time.perf_counter()
        try:
            row["back_end"] = kernels.load(operation).__name__.rsplit(".", 1)[1]
            row["note"] = _why(operation, row["back_end"], forced)
            if row["back_end"] == "numba":
                row["note"] += (
                    "; loaded from the cache" if cached and cached_files(operation) == cached else "; compiled now"
                )
        except TrimtabError as error:
            row["note"] = str(error)
        row["seconds"] = time.perf_counter() - begun
        rows.append(row)
    return rows


def _why(operation: str, chosen: str, forced: str | None) -> str:
    """Return why the back end `chosen` runs `operation`."""
    from trimtab import kernels
    from trimtab.errors import BackendUnavailable
    from trimtab.kernels.backend import BACKENDS

    if forced == chosen:
        return "TRIMTAB_BACKEND asks for it"
    if chosen == BACKENDS[0]:
        return "the fastest there is"
    try:
        with kernels.backend(BACKENDS[0]):
            kernels.load(operation)
    except BackendUnavailable as error:
        return str(error)
    raise AssertionError("the better back end works, and was not chosen")


def _device(packages: dict[str, str]) -> dict[str, Any]:
    """Return what works on CUDA tensors, or why nothing does."""
    for package in ("torch", "triton"):
        if package not in packages:
            return {"back_end": None, "note": f"{package} is missing; pip install 'trimtab[gpu]'"}
    import torch

    if not torch.cuda.is_available():
        return {"back_end": None, "note": f"torch {torch.__version__} finds no CUDA device"}
    from trimtab import kernels
    from trimtab.errors import TrimtabError

    served = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for operation in kernels.operations():
                package = importlib.util.find_spec(f"trimtab.kernels.{operation}.triton")
                if package is not None and kernels.load_for(operation, "cuda") is not None:
                    served.append(operation)
    except TrimtabError as error:
        return {"back_end": None, "note": str(error)}
    name = torch.cuda.get_device_name()
    if not served:
        return {"back_end": None, "note": f"{name}; triton does not work, or TRIMTAB_BACKEND asks for another back end"}
    return {"back_end": "triton", "note": f"{name}; {', '.join(served)}"}


def cached_files(operation: str) -> dict[Path, int]:
    """Return Numba's cache files of an operation and when they were written.

    Numba keeps them in NUMBA_CACHE_DIR, else beside the source, else in the user's cache folder.
    """
    package = importlib.util.find_spec(f"trimtab.kernels.{operation}")
    assert package is not None
    assert package.origin is not None
    files = set((Path(package.origin).parent / "__pycache__").glob("numba.*.nb[ci]"))
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"
    for folder in (os.environ.get("NUMBA_CACHE_DIR"), user):
        if folder:
            files.update(Path(folder).glob(f"**/{operation}_*/numba.*.nb[ci]"))
    return {file: file.stat().st_mtime_ns for file in files}


def _cache() -> dict[str, Any]:
    """Return where compiled kernels are kept. Numba tries NUMBA_CACHE_DIR, the package, then the user's cache."""
    from trimtab import kernels

    chosen = os.environ.get("NUMBA_CACHE_DIR")
    assert kernels.__file__ is not None
    folder = Path(chosen) if chosen else Path(kernels.__file__).parent
    probe = folder if folder.exists() else folder.parent
    writable = os.access(probe, os.W_OK)
    note = "kept there" if writable else "not writable: the user's cache folder serves, or each run compiles anew"
    return {
        "folder": str(folder),
        "set_by": "NUMBA_CACHE_DIR" if chosen else "default",
        "writable": writable,
        "note": note,
    }


def _threads_set_by() -> str:
    for variable in ("TRIMTAB_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(variable):
            return variable
    return "the cores of this process"


def _print(report: dict[str, Any]) -> None:
    machine = report["machine"]
    sets = ", ".join(machine["instruction_sets"]) or "none of those looked for"
    click.echo(f"machine   {machine['processor']}, {machine['num_cores']} cores, {machine['memory_gib']} GiB, {sets}")
    click.echo(f"python    {report['versions']['python']} at {report['executable']}")
    click.echo(f"threads   {report['threads']['used']}, set by {report['threads']['set_by']}")
    click.echo(f"cache     {report['cache']['folder']}: {report['cache']['note']}")
    click.echo(f"device    {report['device']['back_end'] or 'none'}: {report['device']['note']}\n")
    rows = [
        (
            row["kernel"],
            row["back_end"] or "none",
            row["note"],
            "" if row["seconds"] is None else f"{row['seconds']:.2f}",
        )
        for row in report["kernels"]
    ]
    print_table(("kernel", "back end", "why", "seconds"), rows, left=3)
    click.echo()
    found = [(name, version, "") for name, version in report["versions"].items() if name != "python"]
    found += [(name, "missing", advice) for name, advice in report["missing"].items()]
    print_table(("package", "version", "to install it"), found, left=3)
    click.echo()
    for problem in report["problems"]:
        click.echo(f"no: {problem}")
    if report["ok"]:
        click.echo("yes: everything that is needed works")
