"""The error picture of ``choosing-a-bound.md``: ``python -m docs.error_picture`` draws ``assets/errors.png``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import trimtab as tt

TARGET = Path(__file__).parent / "assets" / "errors.png"
FITTING, TOO_LOOSE = 0.05, 2.0
"""Bounds in kelvin."""
_SHOWN = 128  # points along each side of a map: each is seen
BLUE, RED, GREY = "#0969da", "#cf222e", "#57606a"


def field(num_points: int = 256) -> np.ndarray:
    """Return the temperatures of the guide."""
    wave_number = np.hypot(np.fft.fftfreq(num_points)[:, None], np.fft.rfftfreq(num_points)) * num_points
    wave_number[0, 0] = 1
    noise = np.fft.rfft2(np.random.default_rng(0).standard_normal((num_points, num_points)))
    x = np.fft.irfft2(noise * wave_number**-2.0, (num_points, num_points))
    return (280 + 8 * x / x.std()).astype(np.float32)


def draw(path: Path = TARGET) -> None:
    """Draw the field, its errors under both bounds, their histograms and spectra."""
    x = field()
    decoded = {bound: np.asarray(tt.decompress(tt.compress(x, tt.Abs(bound)))) for bound in (FITTING, TOO_LOOSE)}
    errors = {bound: y.astype(float) - x for bound, y in decoded.items()}
    figure = Figure(figsize=(10, 6.2), dpi=80, layout="constrained")
    maps, plots = figure.subplots(2, 3)
    _map(maps[0], x, "the field, K", cmap="viridis")
    for axes, (bound, error), verdict in zip(maps[1:], errors.items(), ("fits", "too loose"), strict=True):
        _map(axes, error, f"error, Abs({bound:g}): {verdict}", cmap="RdBu_r", vmin=-bound, vmax=bound)
    waves = np.arange(1, x.shape[1] // 2 + 1)
    for values, colour, label, at in (
        (x, GREY, "the field", 3),
        (errors[TOO_LOOSE], RED, f"error, Abs({TOO_LOOSE:g})", 10),
        (errors[FITTING], BLUE, f"error, Abs({FITTING:g})", 1),
    ):
        power = (np.abs(np.fft.rfft(values, axis=1)) ** 2).mean(axis=0)[1:]
        plots[0].loglog(waves, power, color=colour)
        plots[0].annotate(label, (waves[at], power[at]), (4, 8), textcoords="offset points", color=colour)
    plots[0].set(title="power spectra", xlabel="wave number", ylabel="power")
    for axes, (bound, error), colour in zip(plots[1:], errors.items(), (BLUE, RED), strict=True):
        axes.hist(error.ravel(), bins=61, range=(-1.2 * bound, 1.2 * bound), color=colour)
        axes.set(title=f"histogram of errors, Abs({bound:g})", xlabel="error, K", yticks=[])
    for axes in plots:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, pil_kwargs={"optimize": True})


def _map(axes: Any, values: np.ndarray, title: str, **style: Any) -> None:
    shown = axes.imshow(values[:_SHOWN, :_SHOWN], interpolation="nearest", **style)
    axes.set_title(title)
    axes.set_axis_off()
    axes.figure.colorbar(shown, ax=axes, shrink=0.85)


if __name__ == "__main__":
    draw()
