"""The best of a list of candidates that meet a budget."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.errors import NoFeasibleChoice
from trimtab.tune.choice import Choice


def pick(candidates: Mapping[str, Mapping[str, float]], goal: str, at_least: Mapping[str, float]) -> Choice:
    """Return the candidate with the largest `goal` among those whose metrics are all `at_least` as large as asked.

    `candidates` maps a name to its metrics; one that lacks a metric does not meet it.

    Raises:
        NoFeasibleChoice: none meets them all; the nearest are those that miss by the smallest factor.

    >>> pick({"a": {"ratio": 9, "speed": 10}, "b": {"ratio": 5, "speed": 80}}, "ratio", {"speed": 50}).value
    'b'
    """
    shares = {
        name: min((metrics.get(metric, 0.0) / least for metric, least in at_least.items()), default=1.0)
        for name, metrics in candidates.items()
    }
    meeting = [name for name, share in shares.items() if share >= 1]
    if meeting:
        best = max(meeting, key=lambda name: candidates[name][goal])
        return Choice(best, dict(candidates[best]))
    asked = " and ".join(f"{metric} of at least {least:g}" for metric, least in at_least.items())
    order = sorted(shares, key=lambda name: -shares[name])
    nearest = [Choice(name, dict(candidates[name])) for name in order]
    hint = ""
    if nearest:
        reached = ", ".join(f"{metric} {nearest[0].metrics.get(metric, 0.0):.4g}" for metric in at_least)
        hint = f"; the nearest is {nearest[0].value} with {reached}"
    raise NoFeasibleChoice(f"none of {len(candidates)} candidates has {asked or 'anything to offer'}{hint}", nearest)
