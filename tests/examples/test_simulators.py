"""The simulators: ptychography keeps energy, universes keep mass and have the spectrum they were made with."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from examples import cosmology, ptychography
from examples.cosmology import Cosmology

SIDE = 16


def contents(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {f"{group}/{name}": file[group][name][:] for group in ("train", "test") for name in file[group]}


@pytest.mark.parametrize(
    ("main", "settings"),
    [(ptychography.main, {"side": SIDE, "photons": 1e6}), (cosmology.main, {"side": SIDE, "box": 128.0})],
    ids=["ptychography", "cosmology"],
)
def test_a_sample_depends_on_the_seed_and_its_number(main, settings, tmp_path, capsys):
    """Not on how many are made: 70 are more than one piece of either simulator, and no multiple of it."""
    made = {}
    for name, arguments in {
        "some": "--samples 70",
        "more": "--samples 75 --test-samples 9 --chunk 16",
        "other": "--samples 70 --seed 1",
    }.items():
        main([str(tmp_path / name), "--side", str(SIDE), *arguments.split()])
        made[name] = contents(tmp_path / name)
    for name, rows in made["some"].items():
        assert len(rows) == (70 if name.startswith("train") else 8)
        assert np.array_equal(rows, made["more"][name][: len(rows)]), name
        assert not np.isclose(rows, made["other"][name]).all(), name
        assert rows.dtype == np.float32 and np.isfinite(rows).all() and len(np.unique(rows, axis=0)) == len(rows)
    with h5py.File(tmp_path / "more") as file:
        found = json.loads(file.attrs["settings"])
        assert {name: found[name] for name in ("seed", *settings)} == {"seed": 0, **settings}
        assert all(data.chunks[0] in (9, 16) for group in file.values() for data in group.values())
    assert "70 of 70 samples" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"some", "more", "other"}


@pytest.mark.parametrize(
    "arguments", ["--side 20", "--samples 0", "--samples 4 --test-samples 0", "--samples 4 --chunk 0"]
)
@pytest.mark.parametrize("main", [ptychography.main, cosmology.main], ids=["ptychography", "cosmology"])
def test_mistakes_are_told(main, arguments, tmp_path):
    with pytest.raises(SystemExit, match="side|at least one"):
        main([str(tmp_path / "no.h5"), *arguments.split()])
    assert not [*tmp_path.iterdir()]


def test_the_detector_sees_all_energy_and_nothing_of_the_phase_it_cannot():
    rng = np.random.default_rng(0)
    beam, whole = ptychography.probe(64), ptychography.phantom(rng, 128, 4)
    patch = whole[None, 10:74, 30:94]
    seen = ptychography.intensity(beam, patch)
    assert seen.shape == (1, 64, 64) and (seen >= 0).all()
    assert np.linalg.norm(beam) == pytest.approx(1)
    assert seen.sum() == pytest.approx((np.abs(beam * patch) ** 2).sum(), rel=1e-12)  # Parseval
    assert np.allclose(ptychography.intensity(beam, patch * np.exp(0.7j)), seen, rtol=1e-12, atol=0)
    ramp = np.exp(2j * np.pi * 5 * np.arange(64) / 64)  # a prism: the pattern moves by five pixels
    np.testing.assert_allclose(
        ptychography.intensity(beam, patch * ramp), np.roll(seen, 5, axis=2), rtol=1e-9, atol=1e-18
    )
    mirrored = np.conj(patch[:, ::-1, ::-1])
    twin = ptychography.intensity(beam, mirrored)
    assert np.abs(twin - seen).sum() > 0.05 * seen.sum(), "a curved beam tells an object from its twin"


def test_without_an_object_the_pattern_is_that_of_the_beam():
    beam = ptychography.probe(32, defocus=0.0)
    seen = ptychography.intensity(beam, np.ones((1, 32, 32)))[0]
    k = 2 * np.pi * np.fft.fftshift(np.fft.fftfreq(32))
    width = 32 / 6  # the transform of a Gaussian, whose tails beyond the frame are missing
    expected = np.exp(-((k[:, None] ** 2 + k**2) * width**2))
    np.testing.assert_allclose(seen / seen.max(), expected, atol=6e-3)


def test_objects_are_within_their_ranges_and_photons_are_counted():
    piece = next(ptychography.scans(3, 0, 32, photons=1e5))
    clean = next(ptychography.scans(3, 0, 32, photons=1e5, noise=False))
    assert piece["amplitude"].shape == piece["phase"].shape == (64, 16, 16)
    assert 0.39 < piece["amplitude"].min() < 0.5 and 0.9 < piece["amplitude"].max() <= 1
    assert np.ptp(piece["phase"]) > 1 and np.abs(piece["phase"]).max() < 2 * ptychography.PHASE
    light = np.abs(ptychography.middle(ptychography.probe(32))) ** 2
    np.testing.assert_allclose((piece["phase"] * light).sum((1, 2)), 0, atol=1e-6)
    counts, mean = piece["diffraction"].astype(np.float64), clean["diffraction"].astype(np.float64)
    assert np.array_equal(counts, counts.round())
    assert np.array_equal(piece["phase"], clean["phase"])
    bright = mean > 5
    deviations = (counts - mean)[bright] / np.sqrt(mean[bright])
    assert abs(deviations.mean()) < 0.05 and deviations.std() == pytest.approx(1, abs=0.05)


def test_the_spectrum_has_its_sigma_8_and_its_slopes():
    cosmology_, x = Cosmology(0.3, 0.8, 0.95), np.linspace(1e-4, 20, 200_000)
    window = 3 * (np.sin(8 * x) - 8 * x * np.cos(8 * x)) / (8 * x) ** 3
    variance = np.trapezoid(x**2 * cosmology_.spectrum(x) * window**2, x) / (2 * np.pi**2)
    assert np.sqrt(variance) == pytest.approx(0.8, rel=2e-3)
    large = cosmology_.spectrum(np.array([1e-5, 2e-5]))
    assert np.log2(large[1] / large[0]) == pytest.approx(0.95, abs=0.01)
    peaks = [x[np.argmax(Cosmology(m, 0.8, 0.95).spectrum(x))] for m in (0.15, 0.3)]
    assert peaks[1] == pytest.approx(2 * peaks[0], rel=0.01), "matter and radiation were equal earlier"
    assert 0.01 < peaks[1] < 0.03
    assert cosmology_.spectrum(np.zeros(1)) == 0


def test_fields_have_the_spectrum_they_were_made_with():
    own, side, box = Cosmology(0.3, 0.8, 1.0), 24, 200.0
    modes = [cosmology.linear_modes(np.random.default_rng(seed), own, side, box) for seed in range(20)]
    x, y, z = cosmology.wave_numbers(side, box)
    k = np.sqrt(x**2 + y**2 + z**2)
    power = np.mean([np.abs(m) ** 2 for m in modes], axis=0) * box**3 / side**6
    edges = np.linspace(1.5, 11.5, 6) * 2 * np.pi / box
    for low, high in itertools.pairwise(edges):
        band = (k >= low) & (k < high)
        found = (power[band] / own.spectrum(k[band])).mean()
        assert found == pytest.approx(1, abs=5 / np.sqrt(20 * band.sum() / 2))
    assert modes[0][0, 0, 0] == 0


def test_the_displacement_has_the_density_as_its_divergence():
    side, box = 16, 80.0
    modes = cosmology.linear_modes(np.random.default_rng(1), Cosmology(0.3, 0.8, 1.0), side, box)
    axes = cosmology.wave_numbers(side, box)
    nyquist = np.pi * side / box
    low = np.ones(modes.shape, bool)
    for k in axes:
        low &= abs(k) < nyquist * (1 - 1e-9)
    modes = np.where(low, modes, 0)
    moved = cosmology.displacements(modes, box)
    divergence = sum(
        np.fft.irfftn(1j * k * np.fft.rfftn(m), s=(side,) * 3, axes=(0, 1, 2)) for k, m in zip(axes, moved, strict=True)
    )
    np.testing.assert_allclose(divergence, -np.fft.irfftn(modes, s=(side,) * 3, axes=(0, 1, 2)), atol=1e-10)


def test_mass_is_kept_and_lies_where_the_particles_are():
    rng = np.random.default_rng(0)
    positions = rng.uniform(-20, 40, (3, 5000))
    mass = cosmology.deposit(positions, 8)
    assert mass.sum() == pytest.approx(5000, rel=1e-12) and (mass >= 0).all()
    np.testing.assert_allclose(
        cosmology.deposit(positions + np.array([[1], [0], [-2]]), 8), np.roll(mass, (1, -2), (0, 2))
    )
    one = cosmology.deposit(np.array([[7.25], [2.0], [0.5]]), 8)
    expected = {(7, 2, 0): 0.375, (7, 2, 1): 0.375, (0, 2, 0): 0.125, (0, 2, 1): 0.125}
    assert {tuple(map(int, at)): one[tuple(at)] for at in np.argwhere(one)} == expected
    assert (cosmology.deposit(np.indices((8, 8, 8)).reshape(3, -1), 8) == 1).all()
    made = cosmology.density(rng, Cosmology(0.3, 0.8, 1.0), 16, 64.0)
    assert made.sum() == pytest.approx(16**3, rel=1e-12) and made.std() > 0.3


def test_small_ripples_grow_as_the_linear_field():
    """Where nothing has moved far, the density is the linear one, but for the smoothing of a cell."""
    own, side, box = Cosmology(0.3, 0.01, 1.0), 32, 512.0
    modes = cosmology.linear_modes(np.random.default_rng(5), own, side, box)
    found = np.fft.rfftn(cosmology.density(np.random.default_rng(5), own, side, box))
    k = np.sqrt(sum(a**2 for a in cosmology.wave_numbers(side, box)))
    large = (k > 0) & (k < 3 * 2 * np.pi / box)
    share = (found[large] * modes[large].conj()).sum() / (np.abs(modes[large]) ** 2).sum()
    assert share.real == pytest.approx(1, abs=0.05) and abs(share.imag) < 0.01
