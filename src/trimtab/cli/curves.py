"""The pictures of ``trimtab compare``: PSNR against bits a value, or ratio against speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.cli.contenders import Contender, Distortion, Piece

RELATIVE_BOUNDS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""Where the curves have their points."""

_PEERS = ("#57606a", "#bc4c00", "#8250df", "#1a7f37", "#9a6700", "#cf222e", "#bf3989", "#1b7c83")
_OURS = ("#80b3ff", "#2f81f7", "#0a3069")
_INK, _FAINT = "#1f2328", "#d0d7de"


@dataclass
class Curve:
    """What one contender reached under each bound, over all pieces; `refusal` says why it has no curve."""

    contender: Contender
    packed_bytes: dict[float, int] = field(default_factory=lambda: dict.fromkeys(RELATIVE_BOUNDS, 0))
    distortion: dict[float, Distortion] = field(
        default_factory=lambda: {bound: Distortion() for bound in RELATIVE_BOUNDS}
    )
    num_values: int = 0
    refusal: str | None = None

    def add(self, piece: Piece) -> None:
        """Pack a piece under every bound; a contender that does not take it drops out."""
        from trimtab.bounds import Rel
        from trimtab.tune.sample import local_bound

        for relative in RELATIVE_BOUNDS:
            if self.refusal is not None:
                return
            trial = self.contender.attempt(piece.x, local_bound(Rel(relative), piece.x, piece.span))
            if isinstance(trial, str):
                self.refusal = trial
                return
            _, packed, y = trial
            self.packed_bytes[relative] += self.contender.size(packed)
            self.distortion[relative].add(piece, y)
        self.num_values += piece.x.size

    def report(self) -> list[dict[str, float]]:
        """Return the points, by bound."""
        return [
            {
                "relative_bound": bound,
                "bits_per_value": 8 * self.packed_bytes[bound] / self.num_values,
                "psnr_decibels": self.distortion[bound].psnr,
            }
            for bound in RELATIVE_BOUNDS
            if self.num_values
        ]


def check_plot(path: Path) -> None:
    """Check that a picture can be drawn, before anything is measured.

    Raises:
        UsageError: it is not a .png or .svg, or its folder does not exist.
        BackendUnavailable: matplotlib is missing.
    """
    from importlib.util import find_spec

    from trimtab.errors import BackendUnavailable, UsageError

    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot draws .png or .svg, got {path.name!r}")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; make it first: mkdir -p {path.parent}")
    if find_spec("matplotlib") is None:
        raise BackendUnavailable("matplotlib is missing; pip install 'trimtab[plot]', or leave out --plot")


def draw_curves(path: Path, curves: Sequence[Curve], title: str) -> None:
    """Draw PSNR against bits a value, one line a contender, its name at its upper end."""
    points = {}
    for curve in curves:
        report = [point for point in curve.report() if math.isfinite(point["psnr_decibels"])]
        if curve.refusal is None and report:
            points[curve.contender.name] = [(point["bits_per_value"], point["psnr_decibels"]) for point in report]
    bits = [x for line in points.values() for x, _ in line]

    def fill(axes: Any, colours: Mapping[str, str]) -> None:
        for name, line in points.items():
            ours = name.startswith("trimtab")
            axes.plot(*zip(*line, strict=True), color=colours[name], marker="o", ms=4.5, lw=2.4 if ours else 1.5)
        if bits and max(bits) / max(min(bits), 1e-9) > 30:
            _logarithmic(axes)
        axes.set_xlabel("bits a value (further left is smaller)")
        axes.set_ylabel("PSNR, dB (higher is closer to the original)")

    _draw(path, title, list(points), fill, {name: line[-1] for name, line in points.items()})


def draw_speeds(path: Path, contenders: Sequence[Contender], title: str) -> None:
    """Draw the ratio against the packing speed, one point a contender."""
    points = {
        contender.name: (contender.metrics["pack MB/s"], contender.metrics["ratio"])
        for contender in contenders
        if contender.num_arrays
    }

    def fill(axes: Any, colours: Mapping[str, str]) -> None:
        for name, (x, y) in points.items():
            axes.plot([x], [y], "o", color=colours[name], ms=9 if name.startswith("trimtab") else 7)
        _logarithmic(axes)
        axes.set_xlabel("packing speed, MB/s on one thread")
        axes.set_ylabel("ratio, lossless")

    _draw(path, title, list(points), fill, points)


def _logarithmic(axes: Any) -> None:
    """Make the lower axis logarithmic, with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")


def _draw(
    path: Path,
    title: str,
    names: Sequence[str],
    fill: Callable[[Any, Mapping[str, str]], None],
    ends: Mapping[str, tuple[float, float]],
) -> None:
    """Draw one panel with a name beside the end of each line, moved apart where they would overlap."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ours = [name for name in names if name.startswith("trimtab")]
    peers = [name for name in names if name not in ours]
    colours = dict(zip(ours, _OURS[-len(ours) :] if ours else (), strict=False))
    colours |= {name: _PEERS[position % len(_PEERS)] for position, name in enumerate(peers)}
    with mpl.rc_context({"font.size": 11, "svg.hashsalt": "trimtab", "text.color": _INK, "axes.labelcolor": _INK}):
        figure = Figure(figsize=(8, 5), dpi=100, facecolor="white")
        axes = figure.add_axes((0.09, 0.12, 0.65, 0.78))
        fill(axes, colours)
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
        axes.grid(color=_FAINT, lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        _label(axes, ends, colours)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _label(axes: Any, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Write the names to the right of the panel at the height of their points, at least a line apart."""
    line = 0.055
    leader = {"arrowstyle": "-", "lw": 0.6, "alpha": 0.6, "shrinkB": 4, "relpos": (0, 0.5)}
    to_panel = axes.transData + axes.transAxes.inverted()
    heights = {name: float(to_panel.transform(end)[1]) for name, end in ends.items()}
    # among points of one height the nearest gets the lowest name, so that the thin lines do not cross
    order = sorted(heights, key=lambda name: (round(heights[name] / line), -ends[name][0]))
    placed: list[float] = []
    for name in order:
        placed.append(max(heights[name], placed[-1] + line if placed else 0.0))
    excess = max(0.0, placed[-1] - 1.0) if placed else 0.0
    for position in reversed(range(len(placed))):  # push down what stands above the panel
        ceiling = placed[position + 1] - line if position + 1 < len(placed) else placed[position] - excess
        placed[position] = min(placed[position], ceiling)
    for name, height in zip(order, placed, strict=True):
        axes.annotate(
            name,
            xy=ends[name],
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=colours[name],
            fontweight="bold" if name.startswith("trimtab") else "normal",
            annotation_clip=False,
            arrowprops=leader | {"color": colours[name]},
        )
