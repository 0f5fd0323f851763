from __future__ import annotations

import pytest

from trimtab.errors import NoFeasibleChoice
from trimtab.tune import pick

CANDIDATES = {
    "slow": {"ratio": 9, "speed": 10},
    "middle": {"ratio": 5, "speed": 60},
    "quick": {"ratio": 2, "speed": 80},
}


@pytest.mark.parametrize(("speed", "best"), [(1, "slow"), (10, "slow"), (11, "middle"), (61, "quick")])
def test_best_of_those_that_meet_the_budget(speed, best):
    choice = pick(CANDIDATES, "ratio", {"speed": speed}, then="speed")
    assert choice.value == best
    assert choice.metrics == CANDIDATES[best]


def test_without_a_budget_the_best():
    assert pick(CANDIDATES, "speed", {}, then="ratio").value == "quick"


def test_among_equals_the_quickest():
    close = {"slow": {"ratio": 8.501, "speed": 45}, "quick": {"ratio": 8.499, "speed": 224}}
    assert pick(close, "ratio", {}, then="speed").value == "quick"
    assert pick(close | {"quick": {"ratio": 8.4, "speed": 224}}, "ratio", {}, then="speed").value == "slow"


def test_none_meets_the_budget():
    with pytest.raises(NoFeasibleChoice, match=r"speed of at least 100; the nearest is quick with speed 80") as caught:
        pick(CANDIDATES, "ratio", {"speed": 100}, then="speed")
    assert [choice.value for choice in caught.value.nearest] == ["quick", "middle", "slow"]
    with pytest.raises(NoFeasibleChoice, match="none of 0"):
        pick({}, "ratio", {}, then="speed")
    with pytest.raises(NoFeasibleChoice, match="with psnr 0"):
        pick({"a": {"ratio": 2}}, "ratio", {"psnr": 40}, then="psnr")
