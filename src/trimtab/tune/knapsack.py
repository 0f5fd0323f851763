"""One option for each of many items, so that one sum is smallest while another stays within a budget.

This is the multiple-choice knapsack problem, solved by dynamic programming with back-tracking: item by item, of all
partial choices only those are kept that no other beats in both sums (Kellerer, Pferschy and Pisinger, "Knapsack
Problems", 2004, chapter 11). Sums are of the numbers as they are; nothing is rounded to a grid.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.errors import NoFeasibleChoice, UsageError
from trimtab.tune.choice import Choice


def knapsack(
    items: Mapping[str, Mapping[Any, Mapping[str, float]]],
    minimise: str,
    within: Mapping[str, float],
    *,
    num_states: int = 1 << 14,
) -> Choice:
    """Return the options, one of each item, with the smallest sum of one metric and a sum of another within a budget.

    `items` maps a name to its options, and an option to its metrics; `within` is the one metric whose sum is limited,
    and the limit. Options with a metric that is not finite are left out. The choice's value maps each name to its
    option; its metrics are the sums. It is the best there is as long as no more than `num_states` partial choices are
    worth keeping; from then on only the best in each of that many steps of the limited sum is, and the choice may be
    worse than the best by about one such step.

    Raises:
        NoFeasibleChoice: no choice is within the budget; the nearest is that with the smallest limited sum.
        UsageError: `within` is not one metric.

    >>> layers = {
    ...     "a": {"fine": {"bytes": 9, "loss": 0.1}, "coarse": {"bytes": 2, "loss": 0.3}},
    ...     "b": {"fine": {"bytes": 5, "loss": 0.0}, "coarse": {"bytes": 4, "loss": 0.2}},
    ... }
    >>> knapsack(layers, "bytes", {"loss": 0.3})
    Choice({'a': 'coarse', 'b': 'fine'}: bytes 7, loss 0.3)
    """
    if len(within) != 1:
        raise UsageError(f"within takes one metric and its limit, got {dict(within)}")
    ((limited, budget),) = within.items()
    options = {name: _finite(name, found, (minimise, limited)) for name, found in items.items()}
    costs = [np.array([metrics[limited] for _, metrics in found], np.float64) for found in options.values()]
    goals = [np.array([metrics[minimise] for _, metrics in found], np.float64) for found in options.values()]
    least = [float(cost.min()) for cost in costs]
    if not math.fsum(least) <= budget:
        picks = [int(np.lexsort((goal, cost))[0]) for cost, goal in zip(costs, goals, strict=True)]
        nearest = _choice(options, picks, (minimise, limited))
        raise NoFeasibleChoice(
            f"no choice for {len(options)} items has {limited} of at most {budget:g}; "
            f"the nearest has {nearest.metrics[limited]:.4g}",
            (nearest,),
        )
    picks = _search(costs, goals, budget, num_states)
    return _choice(options, picks, (minimise, limited))


def _search(costs: Sequence[np.ndarray], goals: Sequence[np.ndarray], budget: float, num_states: int) -> list[int]:
    """Return the option of each item."""
    left = [math.fsum(float(cost.min()) for cost in costs[i + 1 :]) for i in range(len(costs))]
    slack = 1e-12 * (abs(budget) + sum(float(np.abs(cost).max()) for cost in costs))  # sums in another order
    cost, goal = np.zeros(1), np.zeros(1)
    steps: list[tuple[np.ndarray, int]] = []
    for item_costs, item_goals, rest in zip(costs, goals, left, strict=True):
        all_costs = (cost[:, None] + item_costs).reshape(-1)
        all_goals = (goal[:, None] + item_goals).reshape(-1)
        kept = np.flatnonzero(all_costs + rest <= budget + slack)
        kept = kept[np.lexsort((all_goals[kept], all_costs[kept]))]
        best = np.minimum.accumulate(all_goals[kept])
        kept = kept[np.concatenate([[True], best[1:] < best[:-1]])]
        if kept.size > num_states:
            low, high = all_costs[kept[0]], all_costs[kept[-1]]
            bucket = ((all_costs[kept] - low) * (num_states / (high - low))).astype(np.int64)
            kept = kept[np.concatenate([bucket[1:] != bucket[:-1], [True]])]  # the last of a step has the smallest goal
        cost, goal = all_costs[kept], all_goals[kept]
        steps.append((kept, item_costs.size))
    at, picks = goal.size - 1, []  # goals fall as costs rise
    for kept, count in reversed(steps):
        at, pick = divmod(int(kept[at]), count)
        picks.append(pick)
    return picks[::-1]


def _finite(
    name: str, options: Mapping[Any, Mapping[str, float]], metrics: tuple[str, str]
) -> list[tuple[Hashable, Mapping[str, float]]]:
    found = [(option, m) for option, m in options.items() if all(math.isfinite(m[metric]) for metric in metrics)]
    if not found:
        raise NoFeasibleChoice(f"{name!r} has no option with finite {' and '.join(metrics)} among {len(options)}")
    return found


def _choice(
    options: Mapping[str, list[tuple[Hashable, Mapping[str, float]]]], picks: Sequence[int], metrics: tuple[str, str]
) -> Choice:
    picked = {name: found[pick] for (name, found), pick in zip(options.items(), picks, strict=True)}
    sums = {metric: math.fsum(m[metric] for _, m in picked.values()) for metric in metrics}
    return Choice({name: option for name, (option, _) in picked.items()}, sums)
