from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import NoFeasibleChoice, UsageError
from trimtab.tune import knapsack

NUMBERS = st.integers(-3, 12) | st.floats(-1, 9, allow_subnormal=False)
ITEMS = st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5), max_size=5)


def as_items(tables):
    return {
        f"item {i}": {j: {"size": size, "cost": cost} for j, (size, cost) in enumerate(table)}
        for i, table in enumerate(tables)
    }


@given(tables=ITEMS, budget=st.floats(-5, 40), goal=st.sampled_from(["size", "cost"]))
def test_as_good_as_trying_all(tables, budget, goal):
    items = as_items(tables)
    limited = "cost" if goal == "size" else "size"
    allowed = []
    for picks in itertools.product(*(table for table in items.values())):
        chosen = [table[pick] for table, pick in zip(items.values(), picks, strict=True)]
        total = math.fsum(metrics[limited] for metrics in chosen)
        if total <= budget:
            allowed.append(math.fsum(metrics[goal] for metrics in chosen))
    try:
        choice = knapsack(items, goal, {limited: budget})
    except NoFeasibleChoice as error:
        assert not allowed
        (nearest,) = error.nearest
        smallest = math.fsum(min(m[limited] for m in table.values()) for table in items.values())
        assert nearest.metrics[limited] == pytest.approx(smallest, abs=1e-9)
        return
    picked = [items[name][option] for name, option in choice.value.items()]
    assert list(choice.value) == list(items)
    assert math.fsum(m[limited] for m in picked) <= budget + 1e-9
    assert choice.metrics[goal] == pytest.approx(math.fsum(m[goal] for m in picked), abs=1e-9)
    assert choice.metrics[goal] <= min(allowed, default=math.inf) + 1e-9


@given(tables=ITEMS, budget=st.floats(0, 40))
def test_few_states_stay_within_the_budget(tables, budget):
    items = as_items(tables)
    try:
        choice = knapsack(items, "size", {"cost": budget}, num_states=3)
    except NoFeasibleChoice:
        return
    assert choice.metrics["cost"] <= budget + 1e-9
    assert choice.metrics["size"] >= knapsack(items, "size", {"cost": budget}).metrics["size"] - 1e-9


def test_many_layers_are_quick_and_near_the_best():
    """200 items of 12 options each: the relaxation, which may mix options, is a bound from below."""
    tables = [[(1000 / (1 + k) + i % 7, 0.001 * k * k * (1 + i % 5)) for k in range(12)] for i in range(200)]
    choice = knapsack(as_items(tables), "size", {"cost": 5.0})
    assert choice.metrics["cost"] <= 5.0
    weight = max(
        (w / 100 for w in range(0, 400_000, 500)),
        key=lambda w: sum(min(size + w * cost for size, cost in table) for table in tables) - 5.0 * w,
    )
    bound = sum(min(size + weight * cost for size, cost in table) for table in tables) - 5.0 * weight
    assert bound <= choice.metrics["size"] <= 1.005 * bound


def test_options_that_could_not_be_measured_are_left_out():
    items = {"a": {"x": {"size": 1, "cost": math.nan}, "y": {"size": 5, "cost": 1}}}
    assert knapsack(items, "size", {"cost": 3}).value == {"a": "y"}
    with pytest.raises(NoFeasibleChoice, match="no option with finite"):
        knapsack({"a": {"x": {"size": 1, "cost": math.inf}}}, "size", {"cost": 3})


def test_nothing_to_choose():
    assert knapsack({}, "size", {"cost": 0}).value == {}


def test_one_budget_only():
    with pytest.raises(UsageError, match="one metric"):
        knapsack({}, "size", {"cost": 1, "time": 2})
