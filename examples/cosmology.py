"""Simulated universes: cubes of matter density, and the parameters of the cosmology that made each.

    python -m examples.cosmology universes.h5 --samples 8192

A Gaussian random field has the spectrum of the early universe's ripples; the Zel'dovich approximation moves particles
along straight lines by its displacement, and they are counted in cells. Samples are what CosmoFlow (Mathuriya et al.,
SC 2018, arXiv 1808.04728) learns from: a cube of densities, and the parameters to find.

Sources: Bardeen, Bond, Kaiser, Szalay, Astrophysical Journal 304 (1986), eq. G3, for the transfer function;
Zel'dovich, Astronomy and Astrophysics 5 (1970). Lengths are in Mpc/h, wave numbers in h/Mpc.

Fields, for ``side ** 3`` cells:

- ``density`` float32[side, side, side]: matter in each cell over the mean;
- ``parameters`` float32[3]: the matter density Omega_m, sigma_8, and the spectral index n_s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from examples import simulation

HUBBLE = 0.7
"""The Hubble constant over 100 km/s/Mpc."""
RANGES = {"omega_m": (0.1, 0.5), "sigma_8": (0.5, 1.1), "n_s": (0.8, 1.2)}
"""Each parameter is drawn evenly from its range."""
PIECE = 8
"""Universes that are made at a time."""


class Cosmology(NamedTuple):
    """The parameters of a universe."""

    omega_m: float
    """The density of matter over the critical one."""
    sigma_8: float
    """The standard deviation of the linear density in spheres of 8 Mpc/h."""
    n_s: float
    """The power of the early spectrum: P(k) ~ k^n_s."""

    def spectrum(self, k: np.ndarray) -> np.ndarray:
        """Return the linear power spectrum in (Mpc/h)^3 at wave numbers in h/Mpc; 0 where these are 0."""
        grid = np.geomspace(1e-5, 1e2, 4096)
        x = 8 * grid
        window = 3 * (np.sin(x) - x * np.cos(x)) / x**3
        integrand = grid**3 * self._shape(grid) * window**2 / (2 * np.pi**2)  # over log k
        variance = np.trapezoid(integrand, np.log(grid))
        power = np.zeros_like(k, np.float64)
        power[k > 0] = self.sigma_8**2 / variance * self._shape(k[k > 0])
        return power

    def _shape(self, k: np.ndarray) -> np.ndarray:
        """Return the spectrum but for a factor."""
        q = k / (self.omega_m * HUBBLE)
        polynomial = 1 + 3.89 * q + (16.1 * q) ** 2 + (5.46 * q) ** 3 + (6.71 * q) ** 4
        transfer = np.log1p(2.34 * q) / (2.34 * q) * polynomial**-0.25
        return k**self.n_s * transfer**2


def wave_numbers(side: int, box: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the components of the wave vectors of a real transform, in h/Mpc, as arrays that broadcast."""
    full = 2 * np.pi * np.fft.fftfreq(side, box / side)
    half = 2 * np.pi * np.fft.rfftfreq(side, box / side)
    return full[:, None, None], full[None, :, None], half[None, None, :]


def linear_modes(rng: np.random.Generator, cosmology: Cosmology, side: int, box: float) -> np.ndarray:
    """Return the transform of a random linear density contrast on ``side ** 3`` points, by ``numpy.fft.rfftn``.

    The power of its modes is the spectrum times ``side ** 6 / box ** 3``, in the mean over universes.
    """
    x, y, z = wave_numbers(side, box)
    power = cosmology.spectrum(np.sqrt(x**2 + y**2 + z**2))
    return np.fft.rfftn(rng.standard_normal((side, side, side))) * np.sqrt(power * (side / box) ** 3)


def displacements(modes: np.ndarray, box: float) -> np.ndarray:
    """Return how far the particles of each lattice point move, [3, side, side, side] in Mpc/h.

    That is the field psi without curl whose divergence is minus the density contrast: i k / k^2 times its modes.
    """
    side = modes.shape[0]
    axes = wave_numbers(side, box)
    squared = sum(k**2 for k in axes)
    squared[0, 0, 0] = 1
    found = np.empty((3, side, side, side))
    for component, k in zip(found, axes, strict=True):
        # the sign of the highest frequency of an even side is not known, so that it has no derivative
        slope = np.where(np.isclose(abs(k), np.pi * side / box), 0, k)
        component[...] = np.fft.irfftn(1j * slope / squared * modes, s=(side,) * 3, axes=(0, 1, 2))
    return found


def deposit(positions: np.ndarray, side: int) -> np.ndarray:
    """Return the mass in ``side ** 3`` cells of a periodic box, of particles of mass 1 at [3, n], in units of cells.

    Each is a cube as large as a cell, divided among the eight cells that it touches (cloud in cell). A particle at
    whole numbers is all in one cell.
    """
    below = np.floor(positions).astype(np.int64)
    above_share = positions - below
    mass = np.zeros(side**3)
    for corner in np.ndindex(2, 2, 2):
        x, y, z = ((first + step) % side for first, step in zip(below, corner, strict=True))
        weights = np.prod([s if step else 1 - s for s, step in zip(above_share, corner, strict=True)], axis=0)
        mass += np.bincount((x * side + y) * side + z, weights, side**3)
    return mass.reshape((side,) * 3)


def density(rng: np.random.Generator, cosmology: Cosmology, side: int, box: float) -> np.ndarray:
    """Return the density of a random universe over its mean, float64[side, side, side]."""
    moved = displacements(linear_modes(rng, cosmology, side, box), box) * (side / box)
    return deposit((np.indices((side,) * 3) + moved).reshape(3, -1), side)


def universes(seed: int, group: int, side: int, box: float) -> Iterator[simulation.Piece]:
    """Yield universes in pieces of `PIECE`; each depends on the seed, the group and its number."""
    number = 0
    while True:
        cubes, parameters = [], []
        for _ in range(PIECE):
            rng = np.random.default_rng((seed, group, number))
            cosmology = Cosmology(*(rng.uniform(*limits) for limits in RANGES.values()))
            cubes.append(density(rng, cosmology, side, box))
            parameters.append(cosmology)
            number += 1
        yield {"density": np.float32(cubes), "parameters": np.float32(parameters)}


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    simulation.add_options(parser)
    parser.add_argument("--side", type=int, default=32, help="cells along each axis, a multiple of 8 (default 32)")
    parser.add_argument("--box", type=float, default=128.0, help="length of an axis, in Mpc/h (default 128)")
    options = parser.parse_args(argv)
    try:
        if options.side < 8 or options.side % 8 or not 0 < options.box < 1e5:
            raise ValueError("--side must be a multiple of 8, and --box a length")
        simulation.run(
            options,
            lambda group: universes(options.seed, group, options.side, options.box),
            {"simulator": "cosmology", "side": options.side, "box": options.box},
        )
    except (ValueError, OSError) as error:
        sys.exit(f"cosmology: {error}")


if __name__ == "__main__":
    main()
