"""The noise that errors make in gradients is what the formulas say, and bounds follow from it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trimtab as tt
from tests.train.networks import images, resnet, vgg
from trimtab.train import COMET
from trimtab.train.gradient_error import Curve

LAYERS = {
    "linear": (nn.Linear(64, 48), (400, 64)),
    "linear_3d": (nn.Linear(64, 48), (20, 20, 64)),
    "conv": (nn.Conv2d(16, 24, 3), (8, 16, 14, 14)),
    "conv_padded": (nn.Conv2d(16, 24, 5, padding=2), (8, 16, 8, 8)),
    "conv_same": (nn.Conv2d(16, 24, 3, padding="same", dilation=2), (8, 16, 10, 10)),
    "conv_strided": (nn.Conv2d(16, 24, 3, stride=2, padding=1, dilation=2), (8, 16, 14, 14)),
    "conv_grouped": (nn.Conv2d(16, 32, 3, padding=1, groups=4), (8, 16, 14, 14)),
    "conv_1d": (nn.Conv1d(16, 24, 9, padding=4), (16, 16, 30)),
    "conv_3d": (nn.Conv3d(8, 8, 3, padding=1), (4, 8, 6, 6, 6)),
    "conv_unbatched": (nn.Conv2d(16, 24, 3, padding=1), (16, 30, 30)),
    "conv_transposed": (nn.ConvTranspose2d(16, 24, 3, stride=2, padding=1, output_padding=1), (8, 16, 10, 10)),
    "conv_transposed_1d": (nn.ConvTranspose1d(16, 24, 4, dilation=2), (16, 16, 30)),
    "batch_norm": (nn.BatchNorm2d(400), (8, 400, 6, 6)),
    "batch_norm_1d": (nn.BatchNorm1d(400), (200, 400)),
    "batch_norm_eval": (nn.BatchNorm2d(400).eval(), (8, 400, 6, 6)),
}


def ratio(found: dict[str, float]) -> float:
    return found["measured"] / found["predicted"]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bound", [1 / 16, 1 / 2])
def test_noise_is_as_predicted(name, bound):
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    x = torch.relu(torch.randn(shape) - 0.3) if not name.startswith("batch") else 3 * torch.randn(shape) + 1
    with torch.no_grad():
        weights = torch.randn(layer(x).shape)
    (found,) = COMET(initial_bound=bound)(layer).check(lambda: (layer(x) * weights).sum()).values()
    assert 0.9 < ratio(found) < 1.1


@pytest.mark.parametrize("dither", [False, True])
def test_dither_keeps_errors_of_smooth_inputs_apart(dither):
    """Where inputs and gradients are smooth, as behind images, rounding errors add up; dithered ones do not."""
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 3, padding=1)

    def smooth(channels: int) -> Tensor:
        return F.interpolate(torch.randn(8, channels, 3, 3), size=(28, 28), mode="bicubic")

    x, weights = torch.relu(smooth(16)), smooth(24)
    comet = COMET(initial_bound=1 / 4, codec=tt.codecs.Blocks(dither=dither))(layer)
    (found,) = comet.check(lambda: (layer(x) * weights).sum()).values()
    assert 0.85 < ratio(found) < 1.15 if dither else ratio(found) > 1.5


def test_paper_form_of_noise():
    layer, x = nn.Conv2d(16, 24, 3), torch.relu(torch.randn(8, 16, 14, 14))
    (found,) = COMET(model="comet")(layer).check(lambda: layer(x).square().sum()).values()
    assert 0.7 < ratio(found) < 1.4


NUM_BATCHES = 16
"""Over which noise is averaged: 9 taps over one channel, or 16 of a normalisation, say little of a deviation alone."""


@pytest.mark.parametrize("make", [vgg, resnet])
def test_every_layer_of_a_network(make):
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    comet = COMET(memory_ratio=8)(model, optimizer)
    for step in range(9):
        with comet:
            train(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    squares: dict[str, list[float]] = {}
    for step in range(NUM_BATCHES):
        for name, found in comet.check(lambda step=step: train(model, 100 + step)).items():
            entry = squares.setdefault(name, [0.0, 0.0])
            entry[0] += found["measured"] ** 2
            entry[1] += found["predicted"] ** 2
    assert len(squares) == sum(isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d) for m in model.modules())
    off = {name: math.sqrt(measured / predicted) for name, (measured, predicted) in squares.items()}
    assert all(abs(value - 1) < 0.15 for value in off.values()), off


def train(model: nn.Module, seed: int) -> Tensor:
    x, y = images(32, seed)
    return F.cross_entropy(model(x), y)


def test_whole_steps_have_the_noise_of_each_layer_where_nothing_comes_from_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 144, 10))
    for found in COMET(initial_bound=1 / 4)(model).check(lambda: train(model, 0)).values():
        assert found["measured"] == pytest.approx(found["whole_step"], rel=1e-3)


def test_noise_of_a_layer_that_is_called_twice_and_in_short_floats():
    layer, x = nn.Linear(64, 48, bias=False), torch.relu(torch.randn(2, 600, 64))
    weights = torch.randn(2, 600, 48)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return sum((layer(x[k]) * weights[k]).sum() for k in range(2))

    (found,) = COMET(initial_bound=1 / 4)(layer).check(loss).values()
    assert 0.9 < ratio(found) < 1.1


def test_check_leaves_everything_alone():
    model = resnet()
    comet = COMET()(model)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    generator = torch.get_rng_state()
    assert comet.check(lambda: train(model, 0))
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert comet.report["steps"] == 0
    with comet, pytest.raises(tt.UsageError, match="leave the context"):
        comet.check(lambda: train(model, 0))
    with pytest.raises(tt.UsageError, match="finite"):
        comet.check(lambda: train(model, 0) * float("nan"))
    with pytest.raises(tt.UsageError, match="loss"):
        comet.check(lambda: torch.zeros(()))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, None])
@pytest.mark.parametrize("form", ["closed", "comet"])
def test_bounds_give_the_noise_that_was_asked_for(optimizer, form):
    torch.manual_seed(0)
    model = vgg().eval()
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    optimizer = optimizer(model.parameters(), lr=1e-4, **options) if optimizer else None
    comet = COMET(tolerance=0.05, model=form)(model, optimizer)
    for _ in range(9):
        with comet:
            train(model, 0).backward()
        if optimizer:
            optimizer.step()
        model.zero_grad()
    comet.measured_layers()
    records = comet.report["layers"]
    for name, found in comet.check(lambda: train(model, 0)).items():
        record = records[name]
        target = record["mean_abs_momentum"] if optimizer else record["mean_abs_gradient"]
        assert (record["mean_abs_momentum"] is None) == (optimizer is None)
        assert 0.85 < found["predicted"] / target / 0.05 < 1.15


def test_memory_ratio_is_met_on_all_bytes():
    model = resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    comet = COMET(memory_ratio=10)(model, optimizer)
    for step in range(6):
        with comet:
            train(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert step < 2 or 9.9 < comet.report["ratio"] < 10.6
    assert comet.report["tolerance"] > 0


def test_noise_is_not_made_smaller_than_matters():
    """Signs and places alone nearly give the ratio: bounds stay where noise is the least, from step to step."""
    model = vgg()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    comet = COMET(memory_ratio=3)(model, optimizer)
    ratios = []
    for step in range(8):
        with comet:
            train(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        ratios.append(comet.report["ratio"])
    assert comet.report["tolerance"] == 1e-3
    assert all(ratio > 3 for ratio in ratios[3:]) and max(ratios[3:]) < 1.1 * min(ratios[3:])


def test_memory_ratio_with_layers_that_share_an_input():
    """What is kept once is foretold once."""
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(256, 256) for _ in range(4))
    comet = COMET(memory_ratio=6)(model)
    for step in range(4):
        x = torch.randn(256, 256, generator=torch.Generator().manual_seed(step))
        with comet:
            sum(layer(x).sum() for layer in model).backward()
    report = comet.report
    assert 5.9 < report["ratio"] < 6.2
    assert len({record["error_bound"] for record in report["layers"].values()}) == 1


def test_normalisation_without_weights_follows_the_other_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32, affine=False), nn.Conv2d(32, 32, 3))
    comet = COMET(tolerance=1e-4)(model)
    for _ in range(3):
        with comet:
            model(images(16)[0]).square().sum().backward()
    records = comet.report["layers"]
    assert records["1.running_mean"]["error_bound"] < records["1.running_mean"]["measured_bound"] * 1.5 < 0.1


def test_memory_ratio_that_cannot_be_met_says_so():
    model = vgg()
    comet = COMET(memory_ratio=1000)(model)
    with comet:
        train(model, 0).backward()
    with pytest.warns(UserWarning, match=r"memory_ratio=1000 cannot be met"), comet:
        train(model, 1).backward()
    assert comet.report["ratio"] > 10
    with comet:  # once
        train(model, 1).backward()


@pytest.mark.parametrize("memory_ratio", [None, 6])
def test_fixed_schedule(memory_ratio):
    torch.manual_seed(0)
    model = vgg()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    comet = COMET(adaptive=False, memory_ratio=memory_ratio)(model, optimizer)
    bounds = []
    for step in range(5):
        with comet:
            train(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        bounds.append([record["error_bound"] for record in comet.report["layers"].values()])
    assert bounds[1:] == bounds[1:2] * 4
    assert (bounds[0] == bounds[1]) == (memory_ratio is None)
    if memory_ratio:
        assert 5 < comet.report["ratio"] < 8


def test_bounds_are_final_when_packed():
    """What is chosen between forward and backward pass holds for the next forward pass."""
    model = nn.Linear(256, 64, bias=False)
    comet = COMET()(model)
    x = torch.randn(64, 256)
    with comet:
        y = model(x)
    next(iter(comet._layers.values())).bound = 1e3
    y.backward(torch.eye(64))
    assert float((model.weight.grad - x).abs().max()) < 0.1


def test_layers_without_gradient_take_the_coarsest_bound():
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    comet = COMET(tolerance=0.01)(model)
    for _ in range(3):
        with comet:
            (model(torch.randn(64, 256)) * 0).sum().backward()
    records = comet.report["layers"].values()
    assert all(math.isfinite(record["error_bound"]) for record in records)
    comet = COMET(tolerance=0.01)(model)
    for _ in range(3):
        with comet:
            (model(torch.randn(64, 256)) * float("nan")).sum().backward()
    assert all(math.isfinite(record["error_bound"]) for record in comet.report["layers"].values())


def test_scaled_losses_are_known():
    def noise(scale: float) -> list[float]:
        torch.manual_seed(0)
        model = vgg().eval()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
        comet = COMET()(model, scaler=scaler)
        with comet:
            loss = train(model, 0)
            (scaler.scale(loss) if scaler else loss).backward()
        comet.measured_layers()
        return [record["predicted_sigma"] for record in comet.report["layers"].values()]

    assert noise(1024.0) == pytest.approx(noise(0), rel=1e-3)


def test_curves_ascend_and_are_inverted():
    torch.manual_seed(0)
    curve = Curve.measure(torch.relu(torch.randn(100_000)), tt.codecs.Blocks())
    assert list(curve.bounds) == sorted(curve.bounds)
    assert list(curve.errors) == sorted(curve.errors)
    assert list(curve.bits) == sorted(curve.bits, reverse=True)
    for bound, error in zip(curve.bounds, curve.errors, strict=True):
        assert curve.bound_of_error(error) == pytest.approx(bound)
    assert curve.errors[2] == pytest.approx(curve.bounds[2] ** 2 / 6, rel=0.1)  # half of the values are zero
    assert curve.bounds[3] < curve.bound_of_error((curve.errors[3] + curve.errors[4]) / 2) < curve.bounds[4]
    assert curve.bits_of(curve.bounds[0] / 2) == pytest.approx(curve.bits[0] + 1)
    assert Curve.measure(torch.zeros(100), tt.codecs.Blocks()) is None
    assert Curve.measure(torch.full((100,), float("inf")), tt.codecs.Blocks()) is None
