"""Three-dimensional fields: three synthetic ones, seeded, and one MRI template.

The synthetic fields are white noise shaped by a power spectrum ``k^slope * exp(-(k / cutoff)^2)``, with unit
standard deviation: rough (grf), its exponential, like a density (logn), and smooth, like turbulence (turb). Each is a
moment of a series in time (`snapshots`), in which every mode turns as fast as eddies of its size do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np

from bench.weights import package_file

MNI_T1 = ("nilearn", "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")


def gaussian(num_points: int, slope: float, cutoff: float, seed: int) -> np.ndarray:
    """Return a Gaussian random field in float64, a cube of `num_points` along each axis.

    `slope` and `cutoff` shape the spectrum; wave numbers are counted in periods per box.
    """
    return next(gaussian_series(num_points, slope, cutoff, seed, [0.0]))


def gaussian_series(
    num_points: int, slope: float, cutoff: float, seed: int, times: Sequence[float]
) -> Iterator[np.ndarray]:
    """Yield the field at several times, in units of the first one's standard deviation.

    Every Fourier mode turns from one random amplitude to another and back, by ``k^(2/3)`` radians a unit of time: the
    rate at which eddies of that size turn over in Kolmogorov's turbulence. The spectrum is the same at all times.
    """
    rng = np.random.default_rng(seed)
    axis = np.fft.fftfreq(num_points) * num_points
    half = np.fft.rfftfreq(num_points) * num_points
    k = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + half[None, None, :] ** 2)
    k[0, 0, 0] = 1
    amplitude = np.sqrt(k**slope * np.exp(-((k / cutoff) ** 2)))
    amplitude[0, 0, 0] = 0  # no mean
    shape = (num_points,) * 3
    first, second = (np.fft.rfftn(rng.standard_normal(shape)) * amplitude for _ in range(2))
    deviation = np.fft.irfftn(first, shape, axes=(0, 1, 2)).std()
    for time in times:
        modes = first if time == 0 else first * np.cos(time * k ** (2 / 3)) + second * np.sin(time * k ** (2 / 3))
        yield np.fft.irfftn(modes, shape, axes=(0, 1, 2)) / deviation


def grf(num_points: int = 128) -> np.ndarray:
    """Return a rough Gaussian field, float32 (synthetic)."""
    return snapshots("grf", [0.0], num_points)[0]


def logn(num_points: int = 128) -> np.ndarray:
    """Return a log-normal field, float32, like a density (synthetic)."""
    return snapshots("logn", [0.0], num_points)[0]


def turb(num_points: int = 128) -> np.ndarray:
    """Return a smooth field with the spectrum of turbulence, float32 (synthetic)."""
    return snapshots("turb", [0.0], num_points)[0]


def snapshots(
    kind: Literal["grf", "logn", "turb"], times: Sequence[float], num_points: int = 128, seed: int | None = None
) -> list[np.ndarray]:
    """Return one of the synthetic fields at several times, float32; another seed is another run of it."""
    slope, cutoff, own = (-11 / 3, 24, 1) if kind == "turb" else (-2.5, 40, 0)
    series = gaussian_series(num_points, slope, cutoff, own if seed is None else seed, times)
    values = {"grf": lambda g: g * 1e7, "logn": lambda g: np.exp(1.5 * g), "turb": lambda g: g}[kind]
    return [values(field).astype(np.float32) for field in series]


def mni_t1(step: int = 1) -> np.ndarray:
    """Return the ICBM152 T1 template of nilearn, 189 x 233 x 197, as float32: whole grey levels, many zeros.

    `step` thins every axis.
    """
    import nibabel

    image = nibabel.Nifti1Image.from_filename(package_file(*MNI_T1))
    stored = np.asarray(image.dataobj).T  # NIfTI counts the fastest axis first
    return np.ascontiguousarray(stored[::step, ::step, ::step], dtype=np.float32)


def fields(quick: bool = False) -> dict[str, partial[np.ndarray]]:
    """Return the fields of the lossy benchmark by name, smaller where `quick`."""
    num_points = 32 if quick else 128
    synthetic = {"synthetic grf": grf, "synthetic logn": logn, "synthetic turb": turb}
    return {f"{name} {num_points}^3": partial(make, num_points) for name, make in synthetic.items()} | {
        "MNI T1": partial(mni_t1, 4 if quick else 1)
    }
