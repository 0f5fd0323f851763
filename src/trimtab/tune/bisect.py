"""The setting at the edge of a target: the least loss that reaches a ratio, the most that keeps a quality.

The measured function may be noisy and rise in steps, as long as it rises or falls on the whole. A bracket around the
edge is found first, then narrowed by false position on a scale where the function is about straight in the logarithm
of the setting; where that does not halve the bracket in two trials, the next one is its middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from trimtab.errors import NoFeasibleChoice
from trimtab.tune.choice import Choice, Trial

_DIGITS = 4  # of a setting: what is printed is what was tried
_NARROW = 2e-3  # ends of a bracket closer than this part of each other count as one
_FIRST_STEP = math.log(8)
_LONGEST_STEP = math.log(64)


@dataclass(frozen=True, slots=True)
class Target:
    """A metric that must reach `least`; up to ``least + slack`` a search looks no further.

    `rises` says whether the metric rises with the setting. `straight`, a rising function, maps it to a scale that is
    about linear in the logarithm of the setting.
    """

    metric: str
    least: float
    slack: float
    rises: bool
    straight: Callable[[float], float]


def ratio_target(ratio: float, *, tolerance: float = 0.05) -> Target:
    """Return the target of a compression ratio of at least `ratio`, exceeded by at most the part `tolerance`.

    Bits a value, the inverse of the ratio, fall about linearly in the logarithm of an error bound.
    """
    return Target("ratio", ratio, tolerance * ratio, rises=True, straight=lambda r: -1 / r if r > 0 else -math.inf)


def psnr_target(decibels: float, *, tolerance: float = 0.1) -> Target:
    """Return the target of a peak signal-to-noise ratio of at least `decibels`, exceeded by at most `tolerance` dB."""
    return Target("psnr", decibels, tolerance, rises=False, straight=float)


def bisect(
    measure: Callable[[float], float],
    target: Target,
    space: tuple[float, float],
    *,
    start: float,
    sample: Callable[[float], float] | None = None,
    budget: int = 24,
) -> Choice:
    """Return the setting within `space` that meets the target with least to spare.

    That is the smallest one where the metric rises with it, else the largest. `measure` is called once a setting, and
    at most `budget` times. Where it is expensive, `sample` is a cheaper stand-in: it is searched first, and `measure`
    only verifies and corrects what came out.

    Raises:
        NoFeasibleChoice: no setting that was tried meets the target.

    >>> bisect(lambda bound: 100 * bound, ratio_target(20), (1e-6, 1), start=1e-3).value
    0.204
    """
    slope, rehearsed = None, ()
    if sample is not None:
        try:
            found = _search(sample, target, space, start, None, budget)
            start, trials = float(found.value), found.trace
        except NoFeasibleChoice as error:  # the whole may be kinder
            start = space[1] if target.rises else space[0]
            trials = error.nearest[0].trace
        slope = _slope(trials, start, target)
        rehearsed = tuple(Trial(trial.value, trial.reached, sampled=True) for trial in trials)
    found = _search(measure, target, space, start, slope, budget)
    return Choice(found.value, found.metrics, rehearsed + found.trace)


def _search(
    measure: Callable[[float], float],
    target: Target,
    space: tuple[float, float],
    start: float,
    slope: float | None,
    budget: int,
) -> Choice:
    """Search on the axis u, the logarithm of the setting, turned so that the metric rises along it."""
    sign = 1 if target.rises else -1
    strictest, surest = sorted(sign * math.log(value) for value in space)
    trials: dict[float, float] = {}
    fails: tuple[float, float] | None = None  # the furthest u that fails, and its metric
    meets: tuple[float, float] | None = None
    widths: list[float] = []
    step = _LONGEST_STEP
    u = sign * math.log(start)
    while len(trials) < budget:
        u = min(max(u, strictest), surest)
        value = min(max(float(f"{math.exp(sign * u):.{_DIGITS}g}"), space[0]), space[1])
        if value in trials:
            break
        reached = trials[value] = measure(value)
        if reached >= target.least:
            meets = (u, reached)
            if reached <= target.least + target.slack or u <= strictest:
                break
        else:
            fails = (u, reached)
            if u >= surest:
                break
        if fails and meets:
            widths.append(meets[0] - fails[0])
            if widths[-1] <= _NARROW:
                break
            u = _between(fails, meets, target, halve=len(widths) > 2 and widths[-1] > widths[-3] / 2)
            continue
        slope = _slope(tuple(Trial(v, r) for v, r in trials.items()), value, target) or slope
        u += _outwards(reached, target, slope, step)
        step *= 2
    trace = tuple(Trial(value, reached) for value, reached in trials.items())
    if meets is None:
        nearest = max(trace, key=lambda trial: trial.reached)
        raise NoFeasibleChoice(
            f"no setting from {space[0]:g} to {space[1]:g} reaches {target.metric} {target.least:g}; "
            f"the nearest is {nearest.value:g} with {nearest.reached:.4g}",
            (Choice(nearest.value, {target.metric: nearest.reached}, trace),),
        )
    # noise may let one meet that stands below the bracket
    chosen = min(
        (trial for trial in trace if trial.reached >= target.least), key=lambda trial: sign * math.log(trial.value)
    )
    return Choice(chosen.value, {target.metric: chosen.reached}, trace)


def _between(fails: tuple[float, float], meets: tuple[float, float], target: Target, *, halve: bool) -> float:
    """Return the next u of a bracket: where a straight line meets the middle of the slack, or the bracket's middle."""
    (low, under), (high, over) = fails, meets
    width = high - low
    if not halve:
        below, above = target.straight(under), target.straight(over)
        part = (_aim(target) - below) / (above - below) if above > below else math.nan
        if math.isfinite(part) and math.isfinite(above - below):
            return low + width * min(max(part, 0.05), 0.95)
    return low + width / 2


def _outwards(reached: float, target: Target, slope: float | None, longest: float) -> float:
    """Return the step from a setting on the wrong side of the target to one that may be on the other."""
    direction = 1 if reached < target.least else -1
    missing = abs(_aim(target) - target.straight(reached))
    if slope is None or not math.isfinite(missing):
        return direction * min(_FIRST_STEP, longest)
    return direction * min(max(missing / slope, 4 * _NARROW), longest)


def _aim(target: Target) -> float:
    return (target.straight(target.least) + target.straight(target.least + target.slack)) / 2


def _slope(trials: tuple[Trial, ...], value: float, target: Target) -> float | None:
    """Return how fast the straightened metric rises along u between the two trials nearest to `value`, if it does."""
    near = sorted(trials, key=lambda trial: abs(math.log(trial.value / value)))[:2]
    if len(near) < 2:
        return None
    rise = target.straight(near[1].reached) - target.straight(near[0].reached)
    slope = rise / math.log(near[1].value / near[0].value) * (1 if target.rises else -1)
    return slope if math.isfinite(slope) and slope > 0 else None
