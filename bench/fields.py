"""Three-dimensional fields: three synthetic ones, seeded, and one MRI template.

The synthetic fields are white noise shaped by a power spectrum ``k^slope * exp(-(k / cutoff)^2)``, with unit
standard deviation: rough (grf), its exponential, like a density (logn), and smooth, like turbulence (turb).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from bench.weights import package_file

MNI_T1 = ("nilearn", "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")


def gaussian(num_points: int, slope: float, cutoff: float, seed: int) -> np.ndarray:
    """Return a Gaussian random field in float64, a cube of `num_points` along each axis.

    `slope` and `cutoff` shape the spectrum; wave numbers are counted in periods per box.
    """
    noise = np.random.default_rng(seed).standard_normal((num_points,) * 3)
    axis = np.fft.fftfreq(num_points) * num_points
    half = np.fft.rfftfreq(num_points) * num_points
    k = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + half[None, None, :] ** 2)
    k[0, 0, 0] = 1
    amplitude = np.sqrt(k**slope * np.exp(-((k / cutoff) ** 2)))
    amplitude[0, 0, 0] = 0  # no mean
    field = np.fft.irfftn(np.fft.rfftn(noise) * amplitude, noise.shape, axes=(0, 1, 2))
    return field / field.std()


def grf(num_points: int = 128) -> np.ndarray:
    """Return a rough Gaussian field, float32 (synthetic)."""
    return (gaussian(num_points, -2.5, 40, seed=0) * 1e7).astype(np.float32)


def logn(num_points: int = 128) -> np.ndarray:
    """Return a log-normal field, float32, like a density (synthetic)."""
    return np.exp(1.5 * gaussian(num_points, -2.5, 40, seed=0)).astype(np.float32)


def turb(num_points: int = 128) -> np.ndarray:
    """Return a smooth field with the spectrum of turbulence, float32 (synthetic)."""
    return gaussian(num_points, -11 / 3, 24, seed=1).astype(np.float32)


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
