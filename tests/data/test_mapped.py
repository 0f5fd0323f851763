"""Map-style data sets: batches are those that a DataLoader collates."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest

from trimtab.data import SOLAR, BatchSampler, MapStore, Plan
from trimtab.errors import ShapeError, UsageError

Pair = namedtuple("Pair", "image label")


class Images:
    """Samples of one kind."""

    def __init__(self, make, num_samples=23):
        self.make, self.num_samples = make, num_samples

    def __len__(self):
        return self.num_samples

    def __getitem__(self, i):
        return self.make(i)


class Fetched(Images):
    """The same, several at a time, and not singly but for the first."""

    def __getitem__(self, i):
        assert i == 0
        return self.make(i)

    def __getitems__(self, numbers):
        return [self.make(i) for i in numbers]


def array(i):
    return np.full((2, 3), i, np.float32)


KINDS = {
    "array": array,
    "tuple": lambda i: (array(i), i),
    "nested": lambda i: {"image": array(i), "more": [float(i), {"even": i % 2 == 0}]},
    "named": lambda i: Pair(array(i), np.int16(i)),
    "number": float,
}


def same(ours, theirs) -> None:
    torch = pytest.importorskip("torch")
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert [*ours] == [*theirs]
        for key in ours:
            same(ours[key], theirs[key])
    else:
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"transform": lambda sample, random: sample}])
def test_batches_are_those_of_a_stock_loader(kind, changes):
    """Which a batch sampler tells the samples."""
    data = pytest.importorskip("torch.utils.data")
    for dataset in (Images(KINDS[kind]), Fetched(KINDS[kind])):
        ours = SOLAR(dataset, 4, 3, "21 samples", num_ranks=2, rank=1, num_threads=2, **changes)
        stock = data.DataLoader(dataset, batch_sampler=BatchSampler(ours.plan, 1))
        assert len(stock) == len(ours)
        for _ in range(3):
            for batch, theirs in zip(ours, stock, strict=True):
                same(batch, theirs)


def test_tensors_and_their_classes():
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(torch.arange(12.0).reshape(6, 2), torch.arange(6))
    for x, y in SOLAR(dataset, 3, 1, 0):
        assert torch.equal(x[:, 0], 2.0 * y)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda i: np.zeros(2 + (i == 7)), r"field 'x' of sample 7 is float64\[3\], and of sample 0 float64\[2\]"),
        (lambda i: (array(i), i if i != 7 else 0.5), "field '1' of sample 7 is float64"),
        (lambda i: {"a": i} if i != 7 else {"b": i}, "sample 7 has other parts than sample 0"),
    ],
)
def test_samples_must_be_alike(make, words):
    loader = SOLAR(Images(make), 4, 1, 0, tensors=False, num_threads=1)
    with pytest.raises(ShapeError, match=words):
        for _ in loader:
            pass


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ([], "has no sample"),
        (["text"], "field 'x' is str"),
        ([(1, None)], "field '1' is NoneType"),
        ([()], "hold nothing"),
    ],
)
def test_what_is_no_sample(dataset, words):
    with pytest.raises(UsageError, match=words):
        SOLAR(dataset, 1, 1, 0, tensors=False)


def test_numbers_out_of_range():
    store = MapStore(Images(array))
    for wrong in (-1, 23):
        with pytest.raises(UsageError, match="from 0 to 22"):
            store.read(np.array([wrong]), {"x": np.empty((1, 2, 3), np.float32)})


def test_epochs_of_a_batch_sampler():
    plan = Plan(num_samples=30, batch_size=4, num_epochs=3, num_ranks=2, num_slots=5)
    sampler = BatchSampler(plan, 1)
    passes = [[*sampler] for _ in range(3)]
    with pytest.raises(UsageError, match="no epoch 3"):
        next(iter(sampler))
    sampler.set_epoch(1)
    assert [*sampler] == passes[1]
    sampler.set_epoch(1)
    next(iter(sampler))  # a pass that is left early
    assert [*sampler] == passes[2]
    both = [[*BatchSampler(plan, rank)] for rank in range(2)]
    assert both[1] == passes[0]
    for step, batches in enumerate(zip(*both, strict=True)):
        theirs = plan.shuffle.samples(0)[plan.shuffle.offsets[step] : plan.shuffle.offsets[step + 1]]
        assert sorted([*batches[0], *batches[1]]) == sorted(theirs.tolist())
