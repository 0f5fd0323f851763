from __future__ import annotations

import math

import numpy as np
import pytest

import trimtab as tt
from trimtab.errors import NoFeasibleChoice
from trimtab.tune import bisect, psnr_target, ratio_target

SPACE = (1e-40, 1.0)


def ratio_of(bound: float) -> float:
    """A compressor of noise of unit deviation: bits fall by one an octave, and level out."""
    return 32 / (0.05 + 0.5 * math.log2(1 + (1 / bound) ** 2 / 12))


class Counted:
    """A function that remembers what it was asked."""

    def __init__(self, function):
        self.function = function
        self.asked = []

    def __call__(self, value):
        self.asked.append(value)
        return self.function(value)


@pytest.mark.parametrize("target", [1.2, 2, 4, 10, 30, 100, 200])
def test_ratio_is_reached_in_few_trials(target):
    measure = Counted(ratio_of)
    choice = bisect(measure, ratio_target(target), SPACE, start=1e-3)
    assert target <= choice.metrics["ratio"] <= 1.05 * target
    assert choice.metrics["ratio"] == ratio_of(choice.value)
    assert len(measure.asked) == len(set(measure.asked)) == len(choice.trace) <= 8


@pytest.mark.parametrize("target", [20, 60, 120, 300])
def test_psnr_is_kept_by_the_largest_bound(target):
    measure = Counted(lambda bound: -20 * math.log10(bound / math.sqrt(3)))
    choice = bisect(measure, psnr_target(target), SPACE, start=0.3)
    assert target <= choice.metrics["psnr"] <= target + 0.1
    assert len(measure.asked) <= 8


def test_steps_are_bracketed_to_their_edge():
    """Compressors such as zfp take only powers of two of a bound."""
    choice = bisect(
        lambda bound: -20 * math.log10(2.0 ** math.floor(math.log2(bound))), psnr_target(50), SPACE, start=1
    )
    edge = 2.0**-8  # 48.2 dB from there on, 54.2 below
    assert choice.metrics["psnr"] == pytest.approx(54.2, abs=0.1)
    assert edge * 0.997 <= choice.value <= edge


def test_noise_does_not_mislead():
    for seed in range(20):
        noise = iter(np.random.default_rng(seed).uniform(0.99, 1.01, 100))
        choice = bisect(lambda bound, noise=noise: ratio_of(bound) * next(noise), ratio_target(20), SPACE, start=1e-3)
        assert 20 <= choice.metrics["ratio"] <= 21


def test_sample_spares_the_whole():
    whole, sample = Counted(ratio_of), Counted(lambda bound: 0.8 * ratio_of(bound))
    choice = bisect(whole, ratio_target(20), SPACE, start=1e-3, sample=sample)
    assert 20 <= choice.metrics["ratio"] <= 21
    assert len(whole.asked) <= 3
    assert [trial.value for trial in choice.trace if trial.sampled] == sample.asked
    assert [trial.value for trial in choice.trace if not trial.sampled] == whole.asked


def test_sample_that_never_reaches_the_target_is_not_the_last_word():
    choice = bisect(ratio_of, ratio_target(20), SPACE, start=1e-3, sample=lambda bound: 1.0)
    assert 20 <= choice.metrics["ratio"] <= 21


def test_no_setting_reaches_the_target():
    with pytest.raises(NoFeasibleChoice, match=r"from 1e-40 to 1 reaches ratio 100; the nearest is 1 with 7") as caught:
        bisect(lambda bound: 7 * bound**0.1, ratio_target(100), SPACE, start=1e-3)
    (nearest,) = caught.value.nearest
    assert nearest.value == 1
    assert nearest.metrics == {"ratio": 7.0}
    assert len(nearest.trace) > 1


def test_target_that_even_the_strictest_setting_exceeds():
    choice = bisect(lambda bound: 50.0, ratio_target(20), (1e-6, 1), start=1e-3)
    assert choice.value == 1e-6
    choice = bisect(lambda bound: math.inf, psnr_target(20), (1e-6, 1), start=1e-3)
    assert choice.value == 1


def test_budget_bounds_the_trials():
    measure = Counted(lambda bound: 1.0 if bound < 0.012345 else 1000.0)
    assert bisect(measure, ratio_target(20), SPACE, start=1e-3, budget=6).metrics["ratio"] == 1000
    assert len(measure.asked) == 6
    with pytest.raises(NoFeasibleChoice):
        bisect(measure, ratio_target(20), SPACE, start=1e-30, budget=2)


def test_choice_reads_well():
    choice = bisect(lambda bound: 100 * bound, ratio_target(20), (1e-6, 1), start=1e-3)
    assert repr(choice) == f"Choice({choice.value!r}: ratio {choice.metrics['ratio']:.4g})"
    assert choice.report["trace"][0] == {"value": 1e-3, "reached": pytest.approx(0.1), "sampled": False}
    assert tt.tune.bisect is bisect
