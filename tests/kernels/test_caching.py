"""Caches replayed: back ends agree, and both rules are what they say."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.kernels.caching import numba, ref


def replay(twin, samples, offsets, next_keys, equal, num, num_units, slots):
    owner, keys = np.full(num, -1, np.int32), np.zeros(num, np.int64)
    heap, place, sizes = np.zeros((num_units, slots), np.int32), np.zeros(num, np.int32), np.zeros(num_units, np.int32)
    unit, source = np.full(len(samples), -7, np.int32), np.full(len(samples), -7, np.int32)
    twin.replay(samples, offsets, next_keys, equal, owner, keys, heap, place, sizes, unit, source)
    return unit, source, owner, np.where(owner >= 0, keys, 0)


def next_uses(samples):
    """When each sample is used next; later than all, and each at a time of its own, if never."""
    found, later = np.empty(len(samples), np.int64), {}
    for position in reversed(range(len(samples))):
        found[position] = later.get(samples[position], len(samples) + position)
        later[samples[position]] = position
    return found


@settings(deadline=None)
@given(
    num_units=st.integers(1, 4),
    size=st.integers(1, 5),
    num_steps=st.integers(1, 12),
    num=st.integers(1, 30),
    slots=st.integers(0, 9),
    equal=st.booleans(),
    belady=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_twins_agree(num_units, size, num_steps, num, slots, equal, belady, seed):
    num = max(num, num_units * size)
    rng = np.random.default_rng(seed)
    samples = np.concatenate([rng.permutation(num)[: num_units * size] for _ in range(num_steps)]).astype(np.int32)
    offsets = num_units * size * np.arange(num_steps + 1)
    keys = next_uses(samples) if belady else -np.arange(len(samples))
    found = [replay(twin, samples, offsets, keys, equal, num, num_units, slots) for twin in (ref, numba)]
    assert all(map(np.array_equal, *found))
    unit, source, owner, _ = found[0]
    assert ((source == -1) | (source == unit)).all()
    assert (np.bincount(owner[owner >= 0], minlength=num_units) <= slots).all()
    for t in range(num_steps):
        batches = np.bincount(unit[offsets[t] : offsets[t + 1]], minlength=num_units)
        assert batches.sum() == num_units * size
        assert not equal or (batches == size).all()


def sequence(seed, length=400, num=30):
    return np.random.default_rng(seed).integers(0, num, length).astype(np.int32)


@pytest.mark.parametrize("twin", [ref, numba])
@pytest.mark.parametrize("slots", [1, 7, 29])
def test_least_recently_used(twin, slots):
    samples = sequence(slots)
    keys = -np.arange(len(samples))
    source = replay(twin, samples, np.arange(len(samples) + 1), keys, True, 30, 1, slots)[1]
    cache, hits = OrderedDict(), []
    for sample in samples.tolist():
        hits.append(sample in cache)
        cache[sample] = True
        cache.move_to_end(sample)
        if len(cache) > slots:
            cache.popitem(last=False)
    assert np.array_equal(source == 0, hits)


@pytest.mark.parametrize("twin", [ref, numba])
def test_belady_misses_least(twin):
    """Against a search over all that could be evicted, with few samples."""
    for seed in range(20):
        samples = sequence(seed, 12, 5)
        source = replay(twin, samples, np.arange(13), next_uses(samples), True, 5, 1, 2)[1]
        states = {frozenset(): 0}
        for sample in samples.tolist():
            after = {}
            for held, misses in states.items():
                options = (
                    [held] if sample in held else [held, *({*held, sample} - {out} for out in held if len(held) == 2)]
                )
                if sample not in held and len(held) < 2:
                    options.append({*held, sample})
                for option in map(frozenset, options):
                    after[option] = min(after.get(option, 99), misses + (sample not in held))
            states = after
        assert (source < 0).sum() == min(states.values())


def test_twins_assign_alike():
    rng = np.random.default_rng(0)
    samples, units = rng.integers(0, 40, 200).astype(np.int32), rng.integers(0, 3, 200).astype(np.int32)
    found = []
    for twin in (ref, numba):
        free, owner = np.array([5, 0, 9], np.int32), np.full(40, -1, np.int32)
        twin.assign(samples, units, free, owner)
        found.append((free, owner))
        assert np.bincount(owner[owner >= 0], minlength=3).tolist() == [5, 0, 9]
    assert all(map(np.array_equal, *found))
