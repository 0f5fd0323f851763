"""DeepSZ on small networks that learn to tell seeded clusters of points apart."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import trimtab as tt
from tests.samples import same_bits
from trimtab.compact import DeepSZ, load
from trimtab.compact.calibration import Divergence, as_calls
from trimtab.compact.pruning import keep_rates, magnitude_mask, masked, prune
from trimtab.errors import NoFeasibleChoice, UsageError

NUM_CLASSES = 6
NUM_INPUTS = 48


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def clusters(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(NUM_CLASSES, NUM_INPUTS, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (size,), generator=generator)
    return centres[labels] + 2.2 * torch.randn(size, NUM_INPUTS, generator=generator), labels


NUMBERS = itertools.count()
TRAIN, CHECK = clusters(2000, 1), clusters(1000, 2)


def fit(model: nn.Module, epoch: int = 0) -> None:
    optimiser = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(epoch)
    model.train()
    for picked in torch.randperm(len(TRAIN[1]), generator=generator).split(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(TRAIN[0][picked]), TRAIN[1][picked]).backward()
        optimiser.step()


def correct(model: nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return (model(CHECK[0]).argmax(1) == CHECK[1]).numpy()


def accuracy(model: nn.Module) -> float:
    return float(correct(model).mean())


def trained(make, num_epochs: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        for epoch in range(num_epochs):
            fit(model, epoch)
    return model.eval()


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(NUM_INPUTS, 120), nn.ReLU(), nn.Linear(120, NUM_CLASSES))


class Convolutional(nn.Module):
    """Convolutions with normalisation, a buffer that counts, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.narrow = nn.Linear(256, 64, bias=False)
        self.inner = nn.Linear(64, 64)
        self.again = nn.Linear(64, 64)
        self.again.weight = self.inner.weight
        self.last = nn.Linear(64, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.convolution(x.reshape(-1, 3, 4, 4))).relu().flatten(1)
        return self.last(self.again(self.inner(self.narrow(x)).relu()).relu())


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return trained(perceptron)


@pytest.fixture(scope="module")
def pruned(dense) -> nn.Module:
    model = copy.deepcopy(dense)
    prune(model, keep_rates(model, {"0.weight": 0.15, "2.weight": 0.5}), fit, 5)
    return model.eval()


def state(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("max_drop", [0.0, 0.002, 0.01, 0.05])
def test_is_within_the_budget(pruned, tmp_path, max_drop):
    before, score = state(pruned), accuracy(pruned)
    small = DeepSZ(max_drop=max_drop)(pruned, accuracy)
    assert all(same_bits(x, state(pruned)[name]) for name, x in before.items()), "the given model has changed"
    small.save(tmp_path / "m.tt")
    found = load(tmp_path / "m.tt", perceptron()).eval()
    assert score - accuracy(found) <= max_drop
    assert accuracy(found) == accuracy(small.model) == small.report["score"]
    assert small.report["drop"] == score - small.report["score"]
    assert (tmp_path / "m.tt").stat().st_size == small.report["file_bytes"]
    assert small.report["ratio"] == sum(x.nbytes for x in before.values()) / small.report["file_bytes"]


def test_larger_budgets_make_smaller_files(pruned):
    sizes = [DeepSZ(max_drop=budget)(pruned, accuracy).report["file_bytes"] for budget in (0.0, 0.01, 0.2)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < 0.8 * sizes[0]


def test_a_frontier_shares_what_was_measured(pruned):
    budgets = [0.0, 0.005, 0.02, 0.1]
    curve = DeepSZ(max_drop=0).frontier(pruned, accuracy, budgets)
    for small, budget in zip(curve, budgets, strict=True):
        assert accuracy(pruned) - accuracy(small.model) == small.report["drop"] <= budget == small.report["max_drop"]
    sizes = [small.report["file_bytes"] for small in curve]
    assert sizes[0] > sizes[-1]
    alone = [DeepSZ(max_drop=budget)(pruned, accuracy).report["num_evaluations"] for budget in budgets]
    assert curve[-1].report["num_evaluations"] < sum(alone)


def test_the_file_is_what_was_evaluated(pruned, tmp_path):
    small = DeepSZ(max_drop=0.01)(pruned, accuracy)
    small.save(tmp_path / "m.tt")
    loaded = tt.load(tmp_path / "m.tt")
    assert list(loaded) == list(pruned.state_dict())
    for name, x in state(small.model).items():
        assert same_bits(loaded[name], x)
        bound = small.report["tensors"][name]["bound"]
        assert np.abs(x - state(pruned)[name]).max() <= bound * (1 + 1e-6)
    assert {header["codec"]["id"] for header in loaded.report["arrays"].values()} == {"sparse"}


def test_prunes_and_retrains(dense, tmp_path):
    epochs = []

    def retrain(model: nn.Module, epoch: int) -> None:
        epochs.append(epoch)
        fit(model, epoch)
        counts.append(int(model[0].weight.count_nonzero()))

    counts: list[int] = []
    small = DeepSZ(max_drop=0.03, keep={"0.weight": 0.2}, num_epochs=4)(dense, accuracy, retrain=retrain)
    assert epochs == [0, 1, 2, 3]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == math.ceil(0.2 * dense[0].weight.numel())
    assert small.model[0].weight.count_nonzero() <= counts[-1]
    assert small.report["drop"] == accuracy(dense) - accuracy(small.model) <= 0.03
    assert small.report["score_of_baseline"] == accuracy(dense)
    assert not small.model.training


def test_pruning_alone_may_break_the_budget(dense, pruned):
    with pytest.raises(NoFeasibleChoice, match="before any weight is quantised") as caught:
        DeepSZ(max_drop=0.001, keep=0.01)(dense, accuracy)
    assert caught.value.nearest[0].metrics["drop"] > 0.001
    ideal = trained(perceptron, 12)
    budget = max(accuracy(ideal) - accuracy(pruned) - 0.001, 0)
    if accuracy(ideal) > accuracy(pruned):
        with pytest.raises(NoFeasibleChoice):
            DeepSZ(max_drop=budget)(pruned, accuracy, baseline=ideal)


def test_a_ratio_can_be_asked_for(pruned):
    drops, divergences = [], []
    for ratio in (8, 12, 16):
        report = DeepSZ(min_ratio=ratio)(pruned, accuracy).report
        assert report["ratio"] >= ratio
        divergences.append(report["divergence"])
        drops.append(report["drop"])
    assert divergences == sorted(divergences)
    with pytest.raises(NoFeasibleChoice):
        DeepSZ(min_ratio=10_000)(pruned, accuracy)


def test_convolutions_normalisation_and_tied_weights(tmp_path):
    model = trained(Convolutional)
    small = DeepSZ(max_drop=0.01, keep=0.3, num_epochs=3)(model, accuracy, retrain=fit)
    small.save(tmp_path / "m.tt")
    loaded = tt.load(tmp_path / "m.tt")
    assert "again.weight" not in loaded, "tied weights are stored once"
    assert {name for name, _ in small.model.named_buffers()} <= set(loaded)
    for name, buffer in small.model.named_buffers():
        assert same_bits(loaded[name], buffer.numpy())
    found = load(tmp_path / "m.tt", Convolutional()).eval()
    assert found.again.weight is found.inner.weight
    assert accuracy(found) == small.report["score"] >= accuracy(model) - 0.01
    assert all(same_bits(x, state(small.model)[name]) for name, x in state(found).items())


def test_confidence_asks_for_more(pruned):
    sure = DeepSZ(max_drop=0.02, confidence=0.95)(pruned, correct)
    assert sure.report["drop"] <= 0.02
    assert sure.report["drop"] > accuracy(pruned) - accuracy(sure.model), "the drop is an upper limit"
    assert sure.report["file_bytes"] >= DeepSZ(max_drop=0.02)(pruned, correct).report["file_bytes"]
    with pytest.raises(UsageError, match="score of each sample"):
        DeepSZ(max_drop=0.02, confidence=0.95)(pruned, accuracy)


def test_special_weights_are_kept(pruned):
    model = copy.deepcopy(pruned)
    with torch.no_grad():
        model[2].bias[0], model[0].bias[3], model[0].weight[3, 5] = -math.inf, math.nan, math.inf
    evaluated = DeepSZ(max_drop=0.5)(model, accuracy).model
    assert evaluated[2].bias[0] == -math.inf
    assert evaluated[0].bias[3].isnan()
    assert evaluated[0].weight[3, 5] == math.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(pruned, dtype, tmp_path):
    model = copy.deepcopy(pruned).to(dtype)

    def evaluate(model: nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return model(CHECK[0].to(dtype)).argmax(1) == CHECK[1]

    small = DeepSZ(max_drop=0.01)(model, evaluate)
    small.save(tmp_path / "m.tt")
    found = load(tmp_path / "m.tt", perceptron().to(dtype))
    assert found[0].weight.dtype == dtype
    assert torch.equal(found[0].weight, small.model[0].weight)
    assert small.report["drop"] <= 0.01


def test_same_inputs_whether_given_or_recorded(pruned):
    given = DeepSZ(max_drop=0.01)(pruned, accuracy, calibration=CHECK[0][:512])
    parts = DeepSZ(max_drop=0.01)(pruned, accuracy, calibration=[(CHECK[0][:200],), {"input": CHECK[0][200:512]}])
    recorded = DeepSZ(max_drop=0.01, num_samples=512)(pruned, accuracy)
    assert given.report["tensors"] == recorded.report["tensors"] == parts.report["tensors"]


def test_regression_is_assessed_by_squares(tmp_path):
    model = nn.Linear(NUM_INPUTS, 1)

    def score(model: nn.Module) -> float:
        with torch.inference_mode():
            return -float((model(CHECK[0]).squeeze(1) - CHECK[1]).square().mean())

    with pytest.raises(UsageError, match='measure="mse"'):
        DeepSZ(max_drop=0.1)(model, score)
    small = DeepSZ(max_drop=0.1, measure="mse")(model, score)
    assert score(model) - score(small.model) <= 0.1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "either max_drop"),
        ({"max_drop": 0.1, "min_ratio": 3}, "either max_drop"),
        ({"max_drop": -1}, "max_drop"),
        ({"max_drop": math.nan}, "max_drop"),
        ({"min_ratio": 0}, "min_ratio"),
        ({"max_drop": 0.1, "confidence": 1.0}, "confidence"),
        ({"max_drop": 0.1, "max_trials": 0}, "max_trials"),
    ],
)
def test_settings_are_checked(settings, text):
    with pytest.raises(UsageError, match=text):
        DeepSZ(**settings)


@pytest.mark.parametrize(
    ("evaluate", "text"),
    [
        (lambda model: "good", "must return a number"),
        (lambda model: math.nan, "finite"),
        (lambda model: [], "must return a number"),
        (lambda model: 0.5, "does not call the model"),
        (lambda model: next(NUMBERS), "must not be random"),
    ],
    ids=["a text", "not finite", "nothing", "no call", "random"],
)
def test_bad_evaluations_are_refused(pruned, evaluate, text):
    with pytest.raises(UsageError, match=text):
        DeepSZ(max_drop=0.1)(pruned, evaluate)


def test_bad_arguments_are_refused(pruned, dense):
    with pytest.raises(UsageError, match="retrain is for pruning"):
        DeepSZ(max_drop=0.1)(pruned, accuracy, retrain=fit)
    with pytest.raises(UsageError, match="keep names 'no.weight'"):
        DeepSZ(max_drop=0.1, keep={"no.weight": 0.5})(dense, accuracy)
    with pytest.raises(UsageError, match="above 0"):
        DeepSZ(max_drop=0.1, keep=0.0)(dense, accuracy)
    with pytest.raises(UsageError, match="no batch"):
        as_calls([])


def test_loading_into_another_model_is_refused(pruned, tmp_path):
    DeepSZ(max_drop=0.1)(pruned, accuracy).save(tmp_path / "m.tt")
    with pytest.raises(UsageError, match="disagree about"):
        load(tmp_path / "m.tt", nn.Linear(3, 4))
    with pytest.raises(UsageError, match=r"'0\.weight' is \[120, 48\]"):
        load(tmp_path / "m.tt", nn.Sequential(nn.Linear(9, 120), nn.ReLU(), nn.Linear(120, NUM_CLASSES)))


def test_masks_hold_while_training():
    model = perceptron()
    masks = {"0.weight": torch.rand(120, NUM_INPUTS) < 0.3}
    optimiser = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1)
    nn.functional.cross_entropy(model(TRAIN[0][:50]), TRAIN[1][:50]).backward()
    optimiser.step()  # momentum from before
    with masked(model, masks):
        for _ in range(3):
            optimiser.step()
            assert not model[0].weight[~masks["0.weight"]].any()
    optimiser.step()
    assert model[0].weight[~masks["0.weight"]].any(), "masks end with the block"


def test_magnitude_mask_keeps_the_largest():
    weight = torch.tensor([[0.0, -3.0, 2.0], [math.nan, 0.5, 0.0]])
    assert magnitude_mask(weight, 0.5).tolist() == [[False, True, True], [True, False, False]]
    assert magnitude_mask(weight, 1.0).tolist() == [[False, True, True], [True, True, False]]


def test_divergence_is_that_of_the_softmax():
    model = nn.Linear(5, 3)
    x = torch.randn(40, 5)
    divergence = Divergence(model, as_calls(x), "kl")
    assert divergence(model) == 0
    with torch.no_grad():
        p = model(x).softmax(-1)
        model.weight += 0.1 * torch.randn(3, 5)
        q = model(x).softmax(-1)
    assert divergence(model) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
