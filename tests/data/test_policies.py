"""Policies: what they hold is what they say, and none beats the bound that the plan reaches."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from trimtab.data import Plan, Tally
from trimtab.data.policies import POLICIES, epoch_order, pooled, remap, stock, unbuffered
from trimtab.data.tally import tallies
from trimtab.errors import UsageError

PLAN = Plan(num_samples=4096, num_ranks=8, batch_size=16, num_epochs=6, num_slots=256)


def total(found) -> Tally:
    return sum(found, Tally())


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_reads_less_than_the_plan(name):
    counted, ours = total(POLICIES[name](PLAN)), total(tallies(PLAN))
    assert counted.num_uses == ours.num_uses == 6 * 4096
    assert counted.num_steps == ours.num_steps
    assert counted.num_reads >= ours.num_reads == 6 * 4096 - 5 * 2048
    assert counted.slowest_reads >= counted.least_slowest_reads
    assert counted.slowest_reads >= ours.slowest_reads


def test_rules_rank_as_they_should():
    rates = {name: total(policy(PLAN)).hit_rate for name, policy in POLICIES.items()}
    assert rates["DistributedSampler, LRU"] < rates["DistributedSampler, Belady"] < rates["pooled, as NoPFS"]
    assert rates["remap, LRU, equal batches"] < rates["remap, Belady, equal batches"]
    assert rates["remap, Belady, equal batches"] < rates["remap, Belady, equal reads"]
    assert rates["remap, Belady, equal reads"] == pytest.approx(5 / 12, abs=1e-3)


def test_the_order_of_epochs_brings_nothing():
    order = epoch_order(PLAN)
    assert sorted(order) == list(range(6))
    assert order != list(range(6))
    there, here = (total(remap(PLAN, rule="belady", equal="reads", order=o)) for o in (order, None))
    assert there.hit_rate == pytest.approx(here.hit_rate, abs=2e-3)


def test_the_heaviest_path_is_found_among_few_epochs():
    plan = msgspec.structs.replace(PLAN, num_samples=200, batch_size=5, num_slots=5, num_epochs=5)
    shuffle = plan.shuffle
    ends, begins = [set(shuffle.samples(e)[-40:]) for e in range(5)], [set(shuffle.samples(e)[:40]) for e in range(5)]

    def weight(order):
        return sum(len(ends[a] & begins[b]) for a, b in itertools.pairwise(order))

    assert weight(epoch_order(plan)) == max(map(weight, itertools.permutations(range(5))))


def test_a_lru_cache_on_each_rank():
    """Against caches of plain lists: what a batch finds there is touched, then what it read comes in."""
    plan = msgspec.structs.replace(PLAN, num_samples=250, num_ranks=3, batch_size=4, num_slots=60)
    caches, offsets = [[] for _ in range(3)], plan.shuffle.offsets
    for e, counted in enumerate(stock(plan, rule="lru")):
        hits = 0
        for begin, end in itertools.pairwise(offsets.tolist()):
            for rank, cache in enumerate(caches):
                batch = plan.shuffle.samples(e)[begin:end].tolist()[rank::3]
                found = [sample for sample in batch if sample in cache]
                hits += len(found)
                for sample in [*found, *(sample for sample in batch if sample not in found)]:
                    cache[:] = [*[other for other in cache if other != sample][-59:], sample]
        assert counted.num_uses - counted.num_reads == hits
        assert hits > 0 or e == 0


def test_a_pool_sends_what_others_hold():
    """All but one in eight of the hits, with eight ranks, and less where a rank's frequent samples are its own."""
    counted = total(pooled(PLAN))
    hits = counted.num_uses - counted.num_reads
    assert hits == pytest.approx(5 * 2048, rel=0.02)
    assert 0.5 * hits < counted.num_sent < 7 / 8 * hits + 2048
    with pytest.raises(UsageError, match="pooled buffer"):
        pooled(Plan(num_samples=10**8, num_ranks=100, batch_size=1, num_epochs=1))


def test_without_a_buffer_all_is_read():
    plan = msgspec.structs.replace(PLAN, num_samples=4090)
    counted = total(unbuffered(plan))
    assert counted == total(tallies(msgspec.structs.replace(plan, num_slots=0)))
    assert counted.hit_rate == 0
    assert Tally().hit_rate == Tally().excess_reads == 0


@pytest.mark.parametrize("held", [0.1, 0.9])
def test_samples_that_epochs_leave_out_or_repeat(held):
    for drop_last in (False, True):
        plan = Plan(
            num_samples=1001, num_ranks=4, batch_size=9, num_epochs=4, num_slots=int(250 * held), drop_last=drop_last
        )
        for name, policy in POLICIES.items():
            counted = total(policy(plan))
            assert counted.num_uses == 4 * int(np.diff(plan.shuffle.offsets).sum()), name
            assert counted.num_uses - counted.num_reads <= 3 * plan.most_hits + 4 * 3
