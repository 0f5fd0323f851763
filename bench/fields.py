"""Three-dimensional fields: three synthetic ones, seeded, and one MRI template.

The synthetic fields are white noise shaped by a power spectrum ``k^slope * exp(-(k / cutoff)^2)``, with unit
standard deviation: rough (grf), its exponential, like a density (logn), and smooth, like turbulence (turb). Each is a
moment of a series in time (`snapshots`), in which every mode turns as fast as eddies of its size do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np

from bench.weights import package_file

MNI_T1 = ("nilearn", "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")


def gaussian(num_points: int, slope: float, cutoff: float, seed: int) -> np.ndarray:
    """Return a Gaussian random field in float64, a cube of `num_points` along each axis.

    `slope` and `cutoff` shape the spectrum; wave numbers are counted in periods per box.
    """
    return next(series((num_points,) * 3, partial(power_law, slope, cutoff), 2 / 3, seed, [0.0]))


def power_law(slope: float, cutoff: float, k: np.ndarray) -> np.ndarray:
    """Return the amplitudes of modes of wave numbers `k`, in periods per box; there is no mean."""
    k = np.where(k == 0, 1, k)
    amplitude = np.sqrt(k**slope * np.exp(-((k / cutoff) ** 2)))
    amplitude.flat[0] = 0
    return amplitude


def shell(radius: float, k: np.ndarray) -> np.ndarray:
    """Return the amplitudes of modes whose wave numbers are near `radius`, a twentieth off at most mostly."""
    return np.exp(-(((k - radius) / (0.05 * radius)) ** 2) / 2)


def series(
    shape: tuple[int, ...],
    spectrum: Callable[[np.ndarray], np.ndarray],
    rate: float,
    seed: int,
    times: Sequence[float],
) -> Iterator[np.ndarray]:
    """Yield a random field (float64) at several times, in units of the first one's standard deviation.

    Every Fourier mode turns from one random amplitude to another and back, by ``k^rate`` radians a unit of time, k in
    periods per box; the spectrum is the same at all times.
    """
    rng = np.random.default_rng(seed)
    axes = [np.fft.fftfreq(n) * n for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1]) * shape[-1]]
    k = np.sqrt(sum(grid**2 for grid in np.meshgrid(*axes, indexing="ij", sparse=True)))
    amplitude = spectrum(k)
    first, second = (np.fft.rfftn(rng.standard_normal(shape)) * amplitude for _ in range(2))
    whole = tuple(range(len(shape)))
    deviation = np.fft.irfftn(first, shape, axes=whole).std()
    for time in times:
        modes = first if time == 0 else first * np.cos(time * k**rate) + second * np.sin(time * k**rate)
        yield np.fft.irfftn(modes, shape, axes=whole) / deviation


def grf(num_points: int = 128) -> np.ndarray:
    """Return a rough Gaussian field, float32 (synthetic)."""
    return snapshots("grf", [0.0], num_points)[0]


def logn(num_points: int = 128) -> np.ndarray:
    """Return a log-normal field, float32, like a density (synthetic)."""
    return snapshots("logn", [0.0], num_points)[0]


def turb(num_points: int = 128) -> np.ndarray:
    """Return a smooth field with the spectrum of turbulence, float32 (synthetic)."""
    return snapshots("turb", [0.0], num_points)[0]


Kind = Literal["grf", "logn", "turb", "fronts", "waves"]


def snapshots(
    kind: Kind,
    times: Sequence[float],
    num_points: int = 128,
    seed: int | None = None,
) -> list[np.ndarray]:
    """Return one of the synthetic fields at several times, float32; another seed is another run of it.

    In cubes modes turn by ``k^(2/3)`` radians a unit of time: the rate at which eddies of that size turn over in
    Kolmogorov's turbulence. Waves are planes of eight times as many points along each axis, with nearly one wave length
    of eight points, like swell or ultrasound; their modes turn by k radians, as waves of one speed do. Fronts are two
    phases, -1 and 1, and what is between them: the hyperbolic tangent of a smooth field.
    """
    if kind == "waves":
        plane = series((8 * num_points,) * 2, partial(shell, num_points), 1.0, 2 if seed is None else seed, times)
        return [field.astype(np.float32) for field in plane]
    slope, cutoff, own = {"turb": (-11 / 3, 24, 1), "fronts": (-11 / 3, 8, 3)}.get(kind, (-2.5, 40, 0))
    spectrum = partial(power_law, slope, cutoff)
    cubes = series((num_points,) * 3, spectrum, 2 / 3, own if seed is None else seed, times)
    values = {
        "grf": lambda g: g * 1e7,
        "logn": lambda g: np.exp(1.5 * g),
        "turb": lambda g: g,
        "fronts": lambda g: np.tanh(6 * g),
    }[kind]
    return [values(field).astype(np.float32) for field in cubes]


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
