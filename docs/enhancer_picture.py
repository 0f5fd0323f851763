"""The error maps of ``enhancers.md``: ``python -m docs.enhancer_picture`` draws ``assets/enhancer.png``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import trimtab as tt
from trimtab.bounds import psnr

TARGET = Path(__file__).parent / "assets" / "enhancer.png"
BOUND = 0.01
"""Relative to the value range."""
BLUE, RED, GREY = "#0969da", "#cf222e", "#57606a"


def density(num_points: int = 128) -> np.ndarray:
    """Return the densities of the guide: log-normal, with more power at large scales than at small ones."""
    axis = np.fft.fftfreq(num_points) * num_points
    k = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + (np.fft.rfftfreq(num_points) * num_points) ** 2)
    k[0, 0, 0] = 1
    noise = np.fft.rfftn(np.random.default_rng(0).standard_normal((num_points,) * 3))
    x = np.fft.irfftn(noise * k**-1.5 * np.exp(-((k / 24) ** 2)), (num_points,) * 3, axes=(0, 1, 2))
    return np.exp(1.5 * x / x.std()).astype(np.float32)


def draw(path: Path = TARGET) -> None:
    """Draw a plane of the field and of the errors before and after, their histograms and spectra."""
    x = density()
    limit = BOUND * float(np.ptp(x))
    decoded = {
        "SZ": np.asarray(tt.decompress(tt.compress(x, tt.Rel(BOUND)))),
        "with GWLZ": np.asarray(tt.decompress(tt.compress(x, tt.Rel(BOUND), codec=tt.codecs.GWLZ()))),
    }
    plane = int(np.argmax(x.max(axis=(1, 2))))
    figure = Figure(figsize=(10, 6.2), dpi=80, layout="constrained")
    maps, plots = figure.subplots(2, 3)
    _map(maps[0], x[plane], "the field", cmap="viridis", norm=LogNorm())
    errors = {name: (y.astype(float) - x) / limit for name, y in decoded.items()}
    for axes, (name, error) in zip(maps[1:], errors.items(), strict=True):
        _map(axes, error[plane], f"error, {name}: {psnr(x, decoded[name]):.1f} dB", cmap="RdBu_r", vmin=-1, vmax=1)
    for (name, error), colour in zip(errors.items(), (RED, BLUE), strict=True):
        plots[0].hist(error.ravel(), bins=81, range=(-1.05, 1.05), color=colour, histtype="step", log=True, label=name)
    plots[0].set(title="histogram of errors", xlabel="error / bound", yticks=[])
    waves = np.arange(1, x.shape[2] // 2 + 1)
    shown = {"the field": (x / limit, GREY), "SZ": (errors["SZ"], RED), "with GWLZ": (errors["with GWLZ"], BLUE)}
    for name, (values, colour) in shown.items():
        power = (np.abs(np.fft.rfft(values, axis=2)) ** 2).mean(axis=(0, 1))[1:]
        plots[1].loglog(waves, power, color=colour, label=name if name == "the field" else f"error, {name}")
    plots[1].set(title="power spectra", xlabel="wave number", ylabel="power")
    steep = np.abs(np.gradient(x, axis=2)[plane]).ravel() / limit
    edges = np.quantile(steep, np.linspace(0, 1, 13))
    for (name, error), colour in zip(errors.items(), (RED, BLUE), strict=True):
        square = error[plane].ravel() ** 2
        means = [square[(steep >= a) & (steep <= b)].mean() ** 0.5 for a, b in itertools.pairwise(edges)]
        plots[2].semilogx(np.maximum(edges[1:], 1e-3), means, color=colour, marker=".", label=name)
    plots[2].set(title="error by steepness", xlabel="change from point to point / bound", ylabel="rms error / bound")
    for axes in plots:
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, pil_kwargs={"optimize": True})


def _map(axes: Any, values: np.ndarray, title: str, **style: Any) -> None:
    shown = axes.imshow(values, interpolation="nearest", **style)
    axes.set_title(title)
    axes.set_axis_off()
    axes.figure.colorbar(shown, ax=axes, shrink=0.85)


if __name__ == "__main__":
    draw()
