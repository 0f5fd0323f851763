"""Plans: every rank follows its own, and together they are a training that loses no sample and keeps its promises."""

from __future__ import annotations

import itertools
from collections import Counter

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import kernels
from trimtab.data import Plan, Tally
from trimtab.data.plan import STORE
from trimtab.data.tally import tallies, tally
from trimtab.errors import UsageError


class Job:
    """All ranks of a training in step with each other, with real buffers: slot -> sample."""

    def __init__(self, plan: Plan, start: tuple[int, int] = (0, 0)) -> None:
        self.plan = plan
        self.ranks = [plan.rank(rank, start=start) for rank in range(plan.num_ranks)]
        self.buffers: list[dict[int, int]] = [{} for _ in range(plan.num_units)]
        self.cold: list[set[int]] = [set() for _ in range(plan.num_units)]
        for rank, steps in enumerate(self.ranks):
            unit, expected = rank // plan.ranks_per_node, steps.expected
            held = dict(zip(expected[1].tolist(), expected[0].tolist(), strict=True))
            assert len(held) == len(expected[0])
            assert self.buffers[unit] in ({}, held)
            self.buffers[unit], self.cold[unit] = held, set(held)
        self.reads = 0

    def batches(self):
        """Run the job, and yield (epoch, step, samples of all ranks, sizes of their batches)."""
        per_node = self.plan.ranks_per_node
        for steps in zip(*self.ranks, strict=True):
            assert len({(step.epoch, step.number) for step in steps}) == 1
            sent = {}
            for rank, step in enumerate(steps):
                for sample, slot, to in zip(
                    step.lent.tolist(), step.lent_slot.tolist(), step.lent_to.tolist(), strict=True
                ):
                    assert self.buffers[rank // per_node][slot] == sample
                    self.warm(rank // per_node, slot)
                    sent[rank, to] = [*sent.get((rank, to), []), sample]
            for rank, step in enumerate(steps):
                unit = rank // per_node
                for sample, source, slot, lender in zip(step.samples, step.source, step.slot, step.lender, strict=True):
                    assert (slot >= 0) == (source == unit)
                    assert (lender >= 0) == (source not in (unit, STORE))
                    if slot >= 0:
                        assert self.buffers[unit][slot] == sample
                        self.warm(unit, slot)
                    elif lender >= 0:
                        assert lender // per_node == source
                        sent[int(lender), rank].remove(sample)
                    else:
                        self.reads += 1
            assert not any(sent.values())
            for rank, step in enumerate(steps):
                for slot in step.released.tolist():
                    del self.buffers[rank // per_node][slot]
                    self.cold[rank // per_node].discard(slot)
            for rank, step in enumerate(steps):
                kept = step.keep >= 0
                assert (step.source[kept] != rank // per_node).all()
                for sample, slot in zip(step.samples[kept].tolist(), step.keep[kept].tolist(), strict=True):
                    assert slot not in self.buffers[rank // per_node]
                    assert slot < self.plan.unit_slots
                    self.buffers[rank // per_node][slot] = sample
            inside = [sample for buffer in self.buffers for sample in buffer.values()]
            assert len(inside) == len(set(inside))
            total = sum(len(step.samples) for step in steps)
            assert sum(step.weight for step in steps) == pytest.approx(self.plan.num_ranks)
            for step in steps:
                assert step.weight == len(step.samples) * self.plan.num_ranks / total
            yield (
                steps[0].epoch,
                steps[0].number,
                np.concatenate([step.samples for step in steps]),
                [len(step.samples) for step in steps],
            )

    def warm(self, unit: int, slot: int) -> None:
        """A sample that was expected and is not there is read when it is used first."""
        if slot in self.cold[unit]:
            self.cold[unit].remove(slot)
            self.reads += 1


plans = st.builds(
    dict,
    num_samples=st.integers(1, 90),
    nodes=st.integers(1, 5),
    ranks_per_node=st.integers(1, 3),
    batch_size=st.integers(1, 7),
    num_epochs=st.integers(1, 4),
    held=st.floats(0, 1.3),
    seed=st.integers(0, 99),
    drop_last=st.booleans(),
    batch_slack=st.integers(0, 3),
)


def make(nodes: int, held: float, **settings) -> Plan:
    num_ranks = nodes * settings["ranks_per_node"]
    settings["batch_slack"] = min(settings["batch_slack"], settings["batch_size"] - 1)
    settings["drop_last"] &= num_ranks * settings["batch_size"] <= settings["num_samples"]
    return Plan(num_ranks=num_ranks, num_slots=int(held * settings["num_samples"] / num_ranks), **settings)


@settings(deadline=None)
@given(plans)
def test_no_sample_is_lost_or_doubled(drawn):
    """Nor is a batch another than the sampler's, or a slot used twice; and reads are those that were counted."""
    plan = make(**drawn)
    shuffle, job, epochs = plan.shuffle, Job(plan), plan.epochs(1)
    for epoch, step, samples, sizes in job.batches():
        theirs = shuffle.samples(epoch)[shuffle.offsets[step] : shuffle.offsets[step + 1]]
        assert Counter(samples.tolist()) == Counter(theirs.tolist())
        assert max(abs(size - shuffle.sizes[step]) for size in sizes) <= plan.batch_slack
        assert min(sizes) > 0
        if step == plan.num_steps - 1 and epoch < plan.num_epochs - 1:
            later = next(epochs)
            first = slice(0, plan.num_samples)
            for unit, buffer in enumerate(job.buffers):
                assert set(buffer.values()) == set(later.samples[first][later.source[first] == unit].tolist())
    counted = sum(tallies(plan), Tally())
    assert job.reads == counted.num_reads
    assert counted.num_uses == plan.num_epochs * int(shuffle.offsets[-1])
    repeated = 0 if plan.drop_last else plan.num_epochs * (plan.num_ranks - 1)
    assert counted.num_uses - counted.num_reads <= (plan.num_epochs - 1) * plan.most_hits + repeated


@settings(deadline=None)
@given(plans, st.integers(0, 10**6), st.sampled_from([1, 2, 3, 5]))
def test_a_training_goes_on_anywhere_also_with_another_number_of_ranks(drawn, position, fewer):
    plan = make(**drawn)
    total = plan.num_epochs * plan.num_steps
    start = divmod(position % total, plan.num_steps)
    found = {(epoch, step): samples for epoch, step, samples, _ in Job(plan).batches()}
    job = Job(plan, start)
    again = {(epoch, step): samples for epoch, step, samples, _ in job.batches()}
    assert list(again) == [key for key in found if key >= start]
    assert all(np.array_equal(samples, found[key]) for key, samples in again.items())  # rank by rank
    if plan.num_ranks * plan.batch_size % fewer == 0:
        size = plan.num_ranks * plan.batch_size // fewer
        changes = {"num_ranks": fewer, "batch_size": size, "ranks_per_node": 1, "batch_slack": 0}
        other = msgspec.structs.replace(plan, **changes)
        assert other.stream_digest == plan.stream_digest
        first = plan.num_samples  # what is repeated behind them depends on the number of ranks
        for epoch, step, samples, _ in Job(other, start).batches():
            end = (step + 1) * plan.shuffle.global_batch
            if end <= first:
                assert Counter(samples.tolist()) == Counter(found[epoch, step].tolist())
            else:
                theirs = plan.shuffle.samples(epoch)[step * plan.shuffle.global_batch : first]
                assert not Counter(theirs.tolist()) - Counter(samples.tolist())


@pytest.mark.parametrize("held", [0, 0.1, 0.25, 0.5, 0.8, 0.9, 1])
@pytest.mark.parametrize("num_epochs", [5, 20])
def test_reads_are_as_few_and_as_even_as_can_be(held, num_epochs):
    plan = Plan(num_samples=16384, num_ranks=16, batch_size=32, num_epochs=num_epochs, num_slots=int(held * 1024))
    first, *later = tallies(plan)
    rest = sum(later, Tally())
    assert first.num_reads == 16384
    assert rest.num_reads == (num_epochs - 1) * (16384 - plan.most_hits)
    assert rest.excess_reads <= 0.05
    assert rest.largest_batch == 32
    assert rest.num_sent == 0 or held == 1


def test_surplus_is_sent_or_makes_batches_differ():
    shape = {"num_samples": 8192, "num_ranks": 8, "batch_size": 32, "num_epochs": 6, "num_slots": 1024}
    sent = []
    for slack in (0, 2, 31):
        rest = sum(list(tallies(Plan(**shape, batch_slack=slack)))[1:], Tally())
        assert rest.num_reads == 0
        assert 32 <= rest.largest_batch <= 32 + slack
        sent.append(rest.num_sent)
    assert sent[0] > sent[1] > sent[2]
    assert sent[0] < 0.08 * 5 * 8192


def test_nodes_share_their_slots():
    """Fewer, larger buffers: less is sent, and a rank never reads more than its part of what its node reads."""
    shape = {"num_samples": 8192, "num_ranks": 8, "batch_size": 32, "num_epochs": 4, "num_slots": 1024}
    counted = [sum(tallies(Plan(**shape, ranks_per_node=ranks)), Tally()) for ranks in (1, 4, 8)]
    assert counted[0].num_reads == counted[1].num_reads == counted[2].num_reads == 8192
    assert counted[0].num_sent > counted[1].num_sent > counted[2].num_sent == 0
    plan = Plan(**shape | {"num_slots": 500}, ranks_per_node=4)
    for epoch in plan.epochs():
        reads = [
            [len(step.reads) for step in itertools.islice(plan.rank(rank, start=(epoch.number, 0)), plan.num_steps)]
            for rank in range(8)
        ]
        most = np.max(reads, axis=0).sum()
        assert most == tally(epoch, num_units=2, ranks_per_node=4).slowest_reads


def test_one_rank_needs_no_placement():
    plan = Plan(num_samples=1000, batch_size=10, num_epochs=3, num_slots=700)
    counted = sum(tallies(plan), Tally())
    assert counted.num_reads == 1000 + 2 * 300
    assert counted.excess_reads == 0


def test_samples_left_out_by_the_next_epoch_are_not_held():
    """With drop_last, a slot should not be spent on a sample that the next epoch drops."""
    plan = Plan(num_samples=1500, num_ranks=2, batch_size=250, num_epochs=6, num_slots=250, drop_last=True)
    short = msgspec.structs.replace(plan, num_samples=1400)
    for case in (plan, short):
        rest = sum(list(tallies(case))[1:], Tally())
        assert rest.num_uses - rest.num_reads >= 0.999 * 5 * case.most_hits


def test_back_ends_plan_alike():
    plan = Plan(num_samples=300, num_ranks=4, batch_size=7, num_epochs=3, num_slots=60, ranks_per_node=2, batch_slack=1)
    found = []
    for name in ("ref", "numba"):
        with kernels.backend(name):
            found.append(list(plan.epochs()))
    for ours, theirs in zip(*found, strict=True):
        for name in ("samples", "offsets", "unit", "source", "keeper"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))


def test_plans_stay_what_they_were():
    """Who changes the algorithm gives it a new number, and this test new sums: trainings go on by it."""
    plan = Plan(num_samples=1000, num_ranks=4, batch_size=5, num_epochs=3, num_slots=200, seed=1)
    found = xxhash.xxh3_64()
    for epoch in plan.epochs():
        for array in (epoch.unit, epoch.source, epoch.keeper):
            found.update(array.tobytes())
    assert plan.digest == "7a86d49217803a30fdcea5a4e759f2b5"
    assert found.hexdigest() == "ecdaccb013ce54d4"


def test_digests_name_what_matters():
    plan = Plan(num_samples=1000, num_ranks=4, batch_size=5, num_epochs=3, num_slots=200)
    assert plan.digest == msgspec.structs.replace(plan).digest
    other = msgspec.structs.replace(plan, num_slots=100)
    assert other.digest != plan.digest
    assert other.stream_digest == plan.stream_digest
    assert msgspec.structs.replace(plan, seed=1).stream_digest != plan.stream_digest
    assert msgspec.structs.replace(plan, num_ranks=2).stream_digest != plan.stream_digest
    assert msgspec.structs.replace(plan, num_ranks=2, batch_size=10).stream_digest == plan.stream_digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_epochs": 0}, "num_epochs must be at least 1"),
        ({"num_slots": -1}, "num_slots must be at least 0"),
        ({"ranks_per_node": 3}, "4 ranks do not fill nodes of 3"),
        ({"batch_slack": 5}, "batch_slack must be less than batch_size"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 300, "drop_last": True}, "nothing is left"),
    ],
)
def test_mistakes(changes, words):
    shape = {"num_samples": 1000, "num_ranks": 4, "batch_size": 5, "num_epochs": 3}
    with pytest.raises(UsageError, match=words):
        Plan(**shape | changes)


@pytest.mark.parametrize(("rank", "start"), [(4, (0, 0)), (-1, (0, 0)), (0, (3, 0)), (0, (0, 50)), (0, (-1, 0))])
def test_there_must_be_such_a_rank_and_step(rank, start):
    with pytest.raises(UsageError, match="rank must be|there is no step"):
        Plan(num_samples=1000, num_ranks=4, batch_size=5, num_epochs=3).rank(rank, start=start)
