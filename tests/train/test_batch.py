"""The batch tuner finds the largest batch that fits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import trimtab as tt
from tests.train.networks import images, resnet
from trimtab.train import COMET, largest_batch


@pytest.fixture
def model():
    torch.manual_seed(0)
    return resnet()


def loss_of(model, num: int) -> Tensor:
    x, y = images(num)
    return F.cross_entropy(model(x), y)


def saved(model, num: int, comet=None) -> int:
    trial = COMET()(model) if comet is None else comet.twin(measuring=False)
    with trial:
        loss_of(model, num).backward()
    return trial.report["saved_bytes_before" if comet is None else "saved_bytes_after"]


@pytest.mark.parametrize("compressed", [False, True])
def test_finds_the_largest_that_fits(model, compressed):
    comet = None
    if compressed:
        comet = COMET(memory_ratio=6)(model)
        for _ in range(3):
            with comet:
                loss_of(model, 16).backward()
    budget = saved(model, 50, comet)
    choice = largest_batch(model, lambda num: loss_of(model, num), budget=budget, comet=comet, probes=(4, 8))
    assert 48 <= choice.batch_size <= 50 if not compressed else 47 <= choice.batch_size <= 53
    assert 0.95 * budget <= choice.num_bytes <= budget
    assert choice.samples_per_second > 0
    assert len(choice.report["trials"]) <= 6
    assert str(choice.batch_size) in repr(choice)


def test_compression_allows_a_larger_batch(model):
    comet = COMET(memory_ratio=6)(model)
    for _ in range(3):
        with comet:
            loss_of(model, 16).backward()
    budget = saved(model, 12)
    plain, small = (
        largest_batch(model, lambda num: loss_of(model, num), budget=budget, comet=c, probes=(4, 8)).batch_size
        for c in (None, comet)
    )
    assert plain == 12
    assert small > 5 * plain


def test_leaves_the_model_alone(model):
    state = {name: x.clone() for name, x in model.state_dict().items()}
    generator = torch.get_rng_state()
    largest_batch(model, lambda num: loss_of(model, num), budget=10**6, probes=(1, 2))
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_slice_of_a_data_set_counts_as_a_batch(model):
    x, y = images(64)

    def loss_of_slice(num: int) -> Tensor:
        return F.cross_entropy(model(x[:num]), y[:num])

    budget = saved(model, 20)
    assert largest_batch(model, loss_of_slice, budget=budget, probes=(4, 8)).batch_size == 20


def test_smaller_than_the_probes(model):
    budget = saved(model, 3)
    assert largest_batch(model, lambda num: loss_of(model, num), budget=budget, probes=(8, 16)).batch_size == 3


def test_largest(model):
    choice = largest_batch(model, lambda num: loss_of(model, num), budget=10**12, probes=(2, 4), largest=9)
    assert choice.batch_size == 9


def test_budget_that_nothing_fits(model):
    with pytest.raises(tt.errors.NoFeasibleChoice, match="over the budget"):
        largest_batch(model, lambda num: loss_of(model, num), budget=1000, probes=(2, 4))


@pytest.mark.parametrize("wrong", [{"probes": (4, 4)}, {"probes": (0, 4)}, {"budget": 0}, {"largest": 3}])
def test_arguments_that_make_no_sense(model, wrong):
    with pytest.raises(tt.UsageError):
        largest_batch(model, lambda num: loss_of(model, num), **{"budget": 10**6, "probes": (2, 4), **wrong})
