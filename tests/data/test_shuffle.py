"""Shuffles: those of torch.utils.data, without torch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.data import Shuffle
from trimtab.data.shuffle import MOST_SAMPLES, permutation
from trimtab.errors import UsageError

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("num_samples", [1, 2, 7, 4096, 100_003])
@pytest.mark.parametrize("seed", [0, 3, 2**32 + 5, 2**63 - 1])
def test_permutations_are_those_of_torch(num_samples, seed):
    drawn = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    assert np.array_equal(permutation(num_samples, seed), drawn)


@settings(deadline=None)
@given(
    num_samples=st.integers(1, 60),
    num_ranks=st.integers(1, 9),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
    drop_last=st.booleans(),
)
def test_global_batches_are_those_of_a_distributed_sampler(num_samples, num_ranks, batch_size, seed, epoch, drop_last):
    shape = {"num_samples": num_samples, "num_ranks": num_ranks, "batch_size": batch_size, "seed": seed}
    if drop_last and num_ranks * batch_size > num_samples:
        with pytest.raises(UsageError, match="nothing is left"):
            Shuffle(**shape, drop_last=True)
        return
    shuffle = Shuffle(**shape, drop_last=drop_last)
    loaders = []
    for rank in range(num_ranks):
        sampler = torch.utils.data.DistributedSampler(
            range(num_samples), num_ranks, rank, shuffle=True, seed=seed, drop_last=drop_last
        )
        sampler.set_epoch(epoch)
        loaders.append(list(torch.utils.data.BatchSampler(sampler, batch_size, drop_last)))
    samples, offsets = shuffle.samples(epoch), shuffle.offsets
    assert shuffle.num_steps == len(loaders[0])
    assert len(samples) - offsets[-1] < shuffle.global_batch if drop_last else len(samples) == offsets[-1]
    for t in range(shuffle.num_steps):
        theirs = sorted(sample for batches in loaders for sample in batches[t])
        assert sorted(samples[offsets[t] : offsets[t + 1]].tolist()) == theirs
        assert {len(batches[t]) for batches in loaders} == {shuffle.sizes[t]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"num_samples": MOST_SAMPLES}, "less than 214748364"),
        ({"num_samples": 9, "num_ranks": 0}, "num_ranks"),
        ({"num_samples": 9, "batch_size": -1}, "batch_size"),
        ({"num_samples": 9, "seed": -1}, "seed"),
        ({"num_samples": 9, "seed": 2**63}, "seed"),
        ({"num_samples": 9, "batch_size": 2**31}, "at most 2\\^31"),
    ],
)
def test_mistakes(settings, words):
    with pytest.raises(UsageError, match=words):
        Shuffle(**settings)
