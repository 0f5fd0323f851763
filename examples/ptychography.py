"""Simulated ptychography: diffraction patterns of a scanned beam, and the part of the object that made each.

    python -m examples.ptychography scans.h5 --samples 16384

A coherent beam, the probe, lights a small part of a thin object, and a detector far away counts photons. Its picture is
the squared modulus of the Fourier transform of the wave behind the object, which is the probe times the object's
complex transmission; the phase of the transform is lost. Samples are what PtychoNN (Cherukara et al., Applied Physics
Letters 117, 2020, arXiv 2004.08247) learns to invert: from the pattern, amplitude and phase of the object.

Fields, for a detector of ``side * side`` pixels:

- ``diffraction`` float32[side, side]: photons, the centre of the beam in the middle;
- ``amplitude``, ``phase`` float32[side / 2, side / 2]: of the lit part of the object, the middle of the patch. No
  detector sees a constant added to the phase, so its mean, weighted by the light, is taken out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from examples import simulation

POINTS = 64
"""Positions of the beam on each object."""
STRONGEST = 0.6
"""What the object takes of the amplitude at most."""
PHASE = 1.2
"""The largest phase shift, in radians, either way."""


def probe(side: int, defocus: float = 1.5) -> np.ndarray:
    """Return a beam, complex128[side, side], of unit energy: a Gaussian whose wave front is curved.

    Its amplitude falls to 1/e at ``sqrt(2) / 6`` of the side; `defocus` is the phase in radians where it is at
    ``exp(-1/2)``. Without it, an object and its mirrored complex conjugate would make the same pattern.
    """
    axis = (np.arange(side) - (side - 1) / 2) / (side / 6)
    squared = axis[:, None] ** 2 + axis**2
    beam = np.exp((-0.5 + 1j * defocus) * squared)
    return beam / np.linalg.norm(beam)


def smooth_field(rng: np.random.Generator, side: int, scale: float) -> np.ndarray:
    """Return a periodic Gaussian random field [side, side], mean 0 and variance 1, smooth over `scale` pixels."""
    k = 2 * np.pi * np.fft.fftfreq(side)
    noise = np.fft.fft2(rng.standard_normal((side, side)))
    noise *= np.exp(-0.5 * scale**2 * (k[:, None] ** 2 + k**2))
    noise[0, 0] = 0
    field = np.fft.ifft2(noise).real
    return field / field.std()


def phantom(rng: np.random.Generator, side: int, scale: float) -> np.ndarray:
    """Return an object's transmission, complex128[side, side]: random shapes with smooth edges and an uneven ground.

    Amplitudes are from ``1 - STRONGEST`` to 1, phases within `PHASE` of 0; the two have some shapes in common.
    """
    shapes, own, ground = (smooth_field(rng, side, scale * factor) for factor in (1, 1, 3))
    absorbed = 0.5 + 0.5 * np.tanh(4 * shapes)
    shift = 0.5 * np.tanh(4 * (0.6 * shapes + 0.8 * own)) + 0.5 * np.tanh(ground)
    return (1 - STRONGEST * absorbed) * np.exp(1j * PHASE * shift)


def intensity(beam: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Return what reaches the detector, float64[n, side, side], as shares of the beam's energy.

    That is ``|F(beam * patch)|^2`` with the unitary transform F: as much energy as in the wave behind the object.
    """
    wave = np.fft.fft2(beam * patches, norm="ortho")
    return np.fft.fftshift(wave.real**2 + wave.imag**2, axes=(1, 2))


def middle(x: np.ndarray) -> np.ndarray:
    """Return the middle half of the last two axes."""
    side = x.shape[-1]
    part = slice(side // 4, side // 4 + side // 2)
    return x[..., part, part]


def scans(seed: int, group: int, side: int, photons: float, *, noise: bool = True) -> Iterator[simulation.Piece]:
    """Yield the patterns of one object after the other, `POINTS` of each.

    Args:
        seed: That of all randomness, with `group` and the number of the object.
        group: Tells apart what is for training from what is held out.
        side: Pixels of the detector.
        photons: Photons in the beam.
        noise: Whether they are counted as they come; else the detector shows how many are expected.
    """
    beam = probe(side)
    light = np.abs(middle(beam)) ** 2
    number = 0
    while True:
        rng = np.random.default_rng((seed, group, number))
        whole = phantom(rng, 4 * side, side / 8)
        corners = rng.integers(0, 3 * side + 1, (POINTS, 2))
        patches = np.stack([whole[y : y + side, x : x + side] for y, x in corners])
        seen = intensity(beam, patches)
        lit = middle(patches)
        phase = np.angle(lit)
        phase -= np.average(phase, axis=(1, 2), weights=np.broadcast_to(light, phase.shape))[:, None, None]
        fields = {
            "diffraction": rng.poisson(photons * seen) if noise else photons * seen,
            "amplitude": np.abs(lit),
            "phase": phase,
        }
        yield {name: x.astype(np.float32) for name, x in fields.items()}
        number += 1


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    simulation.add_options(parser)
    parser.add_argument("--side", type=int, default=128, help="pixels of the detector, a multiple of 16 (default 128)")
    parser.add_argument("--photons", type=float, default=1e6, help="of the beam, for each pattern (default 1e6)")
    parser.add_argument("--no-noise", action="store_true", help="expected photons in place of counted ones")
    options = parser.parse_args(argv)
    try:
        if options.side < 16 or options.side % 16 or not 0 < options.photons < 1e15:
            raise ValueError("--side must be a multiple of 16, and --photons above 0, below 1e15")
        simulation.run(
            options,
            lambda group: scans(options.seed, group, options.side, options.photons, noise=not options.no_noise),
            {
                "simulator": "ptychography",
                "side": options.side,
                "photons": options.photons,
                "noise": not options.no_noise,
            },
        )
    except (ValueError, OSError) as error:
        sys.exit(f"ptychography: {error}")


if __name__ == "__main__":
    main()
