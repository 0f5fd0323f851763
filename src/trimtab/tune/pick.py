"""The best of a list of candidates that meet a budget."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.errors import NoFeasibleChoice
from trimtab.tune.choice import Choice

_EQUAL = 0.998  # a goal of this part of the best is as good


def pick(
    candidates: Mapping[str, Mapping[str, float]], goal: str, at_least: Mapping[str, float], *, then: str
) -> Choice:
    """Return the candidate with the largest `goal` among those whose metrics are all `at_least` as large as asked.

    Of those whose goals are next to equal it is the one with the largest metric `then`. `candidates` maps a name to its
    metrics; one that lacks a metric does not meet it.

    Raises:
        NoFeasibleChoice: none meets them all; the nearest are those that miss by the smallest factor.

    >>> candidates = {"a": {"ratio": 9, "speed": 10}, "b": {"ratio": 5, "speed": 80}}
    >>> pick(candidates, "ratio", {"speed": 50}, then="speed").value
    'b'
    """
    shares = {
        name: min((metrics.get(metric, 0.0) / least for metric, least in at_least.items()), default=1.0)
        for name, metrics in candidates.items()
    }
    meeting = [name for name, share in shares.items() if share >= 1]
    if meeting:
        least = _EQUAL * max(candidates[name][goal] for name in meeting)
        equal = [name for name in meeting if candidates[name][goal] >= least]
        best = max(equal, key=lambda name: candidates[name][then])
        return Choice(best, dict(candidates[best]))
    asked = " and ".join(f"{metric} of at least {least:g}" for metric, least in at_least.items())
    order = sorted(shares, key=lambda name: -shares[name])
    nearest = [Choice(name, dict(candidates[name])) for name in order]
    hint = ""
    if nearest:
        reached = ", ".join(f"{metric} {nearest[0].metrics.get(metric, 0.0):.4g}" for metric in at_least)
        hint = f"; the nearest is {nearest[0].value} with {reached}"
    raise NoFeasibleChoice(f"none of {len(candidates)} candidates has {asked or 'anything to offer'}{hint}", nearest)
