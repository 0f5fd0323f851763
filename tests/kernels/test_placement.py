"""Placement: back ends agree, and no slot or sample is used twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.kernels.placement import numba, ref


@settings(deadline=None)
@given(st.data())
def test_twins_share_alike_and_batches_stay_within_the_slack(data):
    num_steps, num_units, size = (data.draw(st.integers(1, most)) for most in (4, 7, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    sizes = np.full(num_steps, size, np.int32)
    slack = np.full(num_steps, data.draw(st.integers(0, size - 1)), np.int32)
    # each sample of a step is held by a unit or, more or less often, by nobody
    owners = rng.integers(-data.draw(st.integers(0, 3)), num_units, (num_steps, num_units * size))
    held = np.stack([np.bincount(row[row >= 0], minlength=num_units) for row in owners]).astype(np.int32)
    missing = (num_units * size - held.sum(axis=1)).astype(np.int32)
    found = []
    for twin in (ref, numba):
        room, fetches, loans = np.empty(num_steps, np.int32), np.empty_like(held), np.empty_like(held)
        twin.shares(held, sizes, missing, slack, room, fetches, loans)
        found.append((room, fetches, loans))
    assert all(map(np.array_equal, *found))
    room, fetches, loans = found[0]
    batches = np.minimum(held, room[:, None]) + fetches + loans
    assert (fetches >= 0).all() and (loans >= 0).all()
    assert np.array_equal(fetches.sum(axis=1), missing)
    assert np.array_equal(batches.sum(axis=1), num_units * sizes)
    assert (abs(batches - size) <= slack[:, None]).all()


def test_reads_are_levelled():
    """With slack, units that hold less do not read more; without it, they must."""
    held = np.array([[3, 1, 2, 0]], np.int32)
    arguments = held, np.array([4], np.int32), np.array([10], np.int32)
    for slack, fetches, room in ((0, [1, 3, 2, 4], 4), (1, [2, 3, 2, 3], 5), (3, [3, 3, 2, 2], 7)):
        found = np.empty(1, np.int32), np.empty_like(held), np.empty_like(held)
        ref.shares(*arguments, np.array([slack], np.int32), *found)
        assert found[1].tolist() == [fetches]
        assert found[0].tolist() == [room]
        assert not found[2].any()


def test_what_does_not_fit_is_lent():
    """One unit holds six of eight: without slack it uses four."""
    held = np.array([[6, 0]], np.int32)
    room, fetches, loans = np.empty(1, np.int32), np.empty_like(held), np.empty_like(held)
    ref.shares(held, *(np.array([n], np.int32) for n in (4, 2, 0)), room, fetches, loans)
    assert (room[0], fetches.tolist(), loans.tolist()) == (4, [[0, 2]], [[0, 2]])


class State:
    """An epoch in the middle of a training, with samples held at random."""

    def __init__(self, num_units: int, size: int, num_steps: int, pads: int, tail: int, held: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        used = num_units * size * num_steps
        self.pads = min(pads, used - 1, num_units * size)
        self.num = used - self.pads + (tail if not self.pads else 0)
        self.offsets = num_units * size * np.arange(num_steps + 1)
        order = rng.permutation(self.num)
        self.samples = np.concatenate([order, np.resize(order, self.pads)]).astype(np.int32)
        self.num_distinct = min(self.num, len(self.samples))
        slots = max(0, int(held * self.num / num_units))
        self.owner = np.full(self.num, -1, np.int32)
        for k in range(num_units):
            mine = rng.permutation(np.flatnonzero(self.owner < 0))[: rng.integers(0, slots + 1)]
            self.owner[mine] = k
        own = np.bincount(self.owner[self.owner >= 0], minlength=num_units)
        self.free = (max(slots, own.max()) - own).astype(np.int32)
        self.following = rng.integers(0, num_steps + 1, self.num).astype(np.int32)
        self.target = rng.integers(0, size + 1, num_steps + 1).astype(np.int32)
        self.target[num_steps] = 0
        self.counts = np.zeros((num_steps + 1, num_units), np.int32)
        np.add.at(self.counts, (self.following[self.owner >= 0], self.owner[self.owner >= 0]), 1)
        held_now = np.zeros((num_steps, num_units), np.int32)
        for t in range(num_steps):
            step = self.samples[self.offsets[t] : min(self.offsets[t + 1], self.num_distinct)]
            held_now[t] = np.bincount(self.owner[step][self.owner[step] >= 0], minlength=num_units)
        self.sizes = np.full(num_steps, size, np.int32)
        self.missing = (num_units * size - held_now.sum(axis=1)).astype(np.int32)
        self.held = held_now

    def place(self, twin, slack: int, decide: bool):
        num_steps = len(self.sizes)
        room, fetches, loans = np.empty(num_steps, np.int32), np.empty_like(self.held), np.empty_like(self.held)
        ref.shares(self.held, self.sizes, self.missing, np.full(num_steps, slack, np.int32), room, fetches, loans)
        owner, free, counts = self.owner.copy(), self.free.copy(), self.counts.copy()
        found = [np.full(len(self.samples), -7, np.int32) for _ in range(3)]
        twin.place(
            *(self.samples, self.offsets, self.num_distinct, self.following, self.target, counts, room, fetches, loans),
            *(owner, free, decide, *found),
        )
        assert not fetches.any()
        assert not loans.any()
        return *found, owner, free, counts


@settings(deadline=None)
@given(
    num_units=st.integers(1, 5),
    size=st.integers(1, 6),
    num_steps=st.integers(1, 5),
    pads=st.integers(0, 4),
    tail=st.integers(0, 9),
    held=st.floats(0, 1.2),
    slack=st.integers(0, 5),
    decide=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_twins_place_alike_and_nothing_is_lost(num_units, size, num_steps, pads, tail, held, slack, decide, seed):
    state = State(num_units, size, num_steps, pads, tail, held, seed)
    slack = min(slack, size - 1)
    by_ref, by_numba = (state.place(twin, slack, decide) for twin in (ref, numba))
    assert all(map(np.array_equal, by_ref, by_numba))
    unit, source, keeper, owner, free, counts = by_ref
    used = int(state.offsets[-1])
    assert (unit[:used] >= 0).all()
    assert (unit[used:] == -1).all()
    assert (free >= 0).all()
    assert np.array_equal(np.bincount(owner[owner >= 0], minlength=num_units) + free, slots_of(state))
    assert ((keeper == source) | (keeper == unit) | (keeper == -1)).all()
    expected = np.zeros_like(counts)
    np.add.at(expected, (state.following[owner >= 0], owner[owner >= 0]), 1)
    assert np.array_equal(counts, expected)
    for t in range(num_steps):
        batches = np.bincount(unit[state.offsets[t] : state.offsets[t + 1]], minlength=num_units)
        assert (abs(batches - size) <= slack).all()
    if not decide:
        assert np.array_equal(owner, state.owner)
    # at every moment, no more samples are held than there are slots
    inside = state.free * 0 + np.bincount(state.owner[state.owner >= 0], minlength=num_units)
    for t in range(-1, num_steps):
        step = slice(used, None) if t < 0 else slice(state.offsets[t], state.offsets[t + 1])
        changed = source[step] != keeper[step]
        for holders, sign in ((source[step][changed], -1), (keeper[step][changed], 1)):
            inside += sign * np.bincount(holders[holders >= 0], minlength=num_units)
        assert (inside <= slots_of(state)).all()


def slots_of(state: State) -> np.ndarray:
    return np.bincount(state.owner[state.owner >= 0], minlength=len(state.free)) + state.free


@pytest.mark.parametrize("twin", [ref, numba])
def test_steps_of_samples(twin):
    steps = np.full(6, -1, np.int32)
    twin.first_steps(np.array([5, 0, 3, 1, 4], np.int32), np.array([0, 2, 4]), steps)
    assert steps.tolist() == [0, 1, 2, 1, 2, 0]


@pytest.mark.parametrize("twin", [ref, numba])
def test_a_sample_is_kept_by_the_unit_that_lacks_it(twin):
    """Unit 0 holds samples 0 and 1, both of which the next epoch uses in step 0; unit 1 reads 2 and 3, of step 1."""
    samples, offsets = np.array([0, 2, 1, 3], np.int32), np.array([0, 2, 4])
    owner, free = np.array([0, 0, -1, -1], np.int32), np.array([0, 1], np.int32)
    following = np.array([0, 0, 1, 1], np.int32)
    target = np.array([1, 1, 0], np.int32)
    counts = np.array([[2, 0], [0, 0], [0, 0]], np.int32)
    room = np.array([1, 1], np.int32)
    fetches, loans = np.array([[0, 1], [0, 1]], np.int32), np.zeros((2, 2), np.int32)
    unit, source, keeper = (np.empty(4, np.int32) for _ in range(3))
    twin.place(
        *(samples, offsets, 4, following, target, counts, room, fetches, loans),
        *(owner, free, True, unit, source, keeper),
    )
    assert unit.tolist() == [0, 1, 0, 1]
    assert source.tolist() == [0, -1, 0, -1]
    assert keeper.tolist() == [
        0,
        1,
        0,
        -1,
    ]  # unit 0 would like to forget one of its own, and reads nothing to put there
    assert owner.tolist() == [0, 0, 1, -1]
