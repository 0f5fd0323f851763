"""COMET: what is saved comes back as promised, whatever autograd does with it."""

from __future__ import annotations

import contextlib
import copy
import gc
import threading
import warnings
from collections.abc import Callable

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import trimtab as tt
from tests.train.networks import images, resnet, vgg
from trimtab.train import COMET

WITHOUT_LOSS = COMET(min_bytes=0, batch_norm="exact")
NOTHING = nn.Linear(1, 1)


def loss_of(model: nn.Module, num: int = 16, seed: int = 0) -> Tensor:
    x, y = images(num, seed)
    return F.cross_entropy(model(x), y)


def gradients(model: nn.Module, run: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    run().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest relative difference of two sets of gradients, over the parameters."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).norm() / a[n].norm().clamp(min=1e-12)) for n in a)


def seen(layer: nn.Linear, y: Tensor) -> Tensor:
    """Run the backward pass so that the weight's gradient is the layer's input, sample by sample."""
    layer.zero_grad()
    y.backward(torch.eye(y.shape[0]))
    return layer.weight.grad


FUNCTIONS = {
    "relu": F.relu,
    "relu_inplace": lambda x: F.relu(x * 1, inplace=True),
    "relu_method": lambda x: (x * 1).relu_(),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu_inplace": lambda x: F.leaky_relu(x * 1, 0.2, inplace=True),
    "relu6": lambda x: F.relu6(8 * x),
    "nn_relu6": lambda x: nn.ReLU6()(8 * x),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 1.0),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "max_pool_overlapping": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "max_pool_dilated": lambda x: F.max_pool2d(x, (2, 3), (1, 2), padding=(1, 0), dilation=(2, 1), ceil_mode=True),
    "max_pool_indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "max_pool_torch": lambda x: torch.max_pool2d(x, 2),
    "max_pool_large": lambda x: F.max_pool2d(x, 12),
    "max_pool_1d": lambda x: F.max_pool1d(x.flatten(2), 3, padding=1),
    "max_pool_3d": lambda x: F.max_pool3d(x.unflatten(1, (2, 4)), 2),
    "max_pool_unbatched": lambda x: F.max_pool2d(x[0], 3),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 5),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, padding=1),
    "avg_pool_1d": lambda x: F.avg_pool1d(x.flatten(2), 3),
    "adaptive_avg_pool": lambda x: F.adaptive_avg_pool2d(x, 5),
    "adaptive_avg_pool_1": lambda x: F.adaptive_avg_pool2d(x, 1),
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout_inplace": lambda x: F.dropout(x * 1, 0.3, inplace=True),
    "dropout_channels": lambda x: F.dropout2d(x, 0.3),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "gelu": F.gelu,
    "softmax": lambda x: x.softmax(1),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "batch_norm_torch": lambda x: torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False),
    "chain": lambda x: F.avg_pool2d(F.max_pool2d(F.relu(x * 2), 2), 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("form", ["plain", "channels_last", "strided", "nan"])
def test_functions_without_loss_keep_gradients_to_the_bit(name, form):
    def run(comet) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        x = torch.randn(4, 8, 12, 12)
        if form == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        if form == "nan":
            x[1, 2, 3, 4], x[0, 0, 0, 0] = float("nan"), float("inf")
        x.requires_grad_()
        y = FUNCTIONS[name](x.transpose(2, 3)[:, ::2] if form == "strided" and name != "max_pool_3d" else x)
        y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
        return y.detach(), x.grad

    expected = run(None)
    comet = WITHOUT_LOSS(NOTHING)
    with comet:
        found = run(comet)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "hardtanh", "dropout"])
@pytest.mark.parametrize("shape", [(1, 8, 12, 12), (4, 1, 12, 12), (4, 8, 1, 12)])
def test_axes_of_one_element_have_any_stride(name, shape):
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    odd = [5 if n == 1 else stride for n, stride in zip(shape, x.stride(), strict=True)]
    for layout in (x, x.transpose(1, 3), x.as_strided(shape, odd)):
        found = []
        for comet in (None, WITHOUT_LOSS(NOTHING)):
            y = layout.detach().requires_grad_()
            torch.manual_seed(1)
            with comet or contextlib.nullcontext():
                z = FUNCTIONS[name](y)
                (z * torch.linspace(-1, 1, z.numel()).reshape(z.shape)).exp().sum().backward()
            found.append(y.grad)
        assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "factor"),
    [("relu", 31), ("leaky_relu", 31), ("hardtanh", 31), ("dropout", 31), ("avg_pool", 1e9)],
)
def test_functions_take_a_bit_a_value_or_none(name, factor):
    comet = WITHOUT_LOSS(NOTHING)
    x = torch.randn(4, 8, 12, 12, requires_grad=True)
    with comet:
        FUNCTIONS[name](x).sum().backward()
    assert comet.report["saved_bytes_before"] == x.nbytes
    assert comet.report["saved_bytes_after"] * factor <= x.nbytes


def test_places_of_maxima_take_two_bits():
    comet = WITHOUT_LOSS(NOTHING)
    x = torch.randn(4, 8, 12, 12, requires_grad=True)
    with comet:
        y = F.max_pool2d(x, 2)
        y.sum().backward()
    assert comet.report["saved_bytes_before"] == x.nbytes + 8 * y.numel()
    assert comet.report["saved_bytes_after"] == y.numel() // 4


FLOATS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 70)),
    elements=st.floats(width=32) | st.sampled_from([0.0, -0.0, 1e-40, -1e30, float("nan"), float("inf")]),
)


@settings(max_examples=60, deadline=None)
@given(FLOATS, st.floats(1e-6, 1.0))
def test_what_a_layer_reads_is_within_its_bound(x, part):
    layer = nn.Linear(x.shape[1], x.shape[0], bias=False)
    comet = COMET(min_bytes=0, initial_bound=part)(layer)
    with comet:
        y = layer(torch.from_numpy(x))
        record = next(iter(comet.report["layers"].values()))
        bounded = list(comet._bounded.values())
        values = bounded[0].decode().numpy() if bounded else x
    bound = tt.Abs(record["error_bound"]) if bounded else tt.Lossless()
    assert bound.allows(x, values)
    np.testing.assert_array_equal(np.sign(x), np.sign(values))
    assert bounded or record["error_bound"] is None
    del y


def test_layer_reads_each_value_within_the_bound():
    layer = nn.Linear(700, 50, bias=False)
    comet = COMET()(layer)
    x = torch.randn(50, 700)
    with comet:
        found = seen(layer, layer(x))
    (record,) = comet.report["layers"].values()
    bound = record["measured_bound"]
    assert 0.05 < bound < 0.07
    assert 0.9 * bound < float((found - x).abs().max()) <= bound * 1.0001


@pytest.mark.parametrize("codec", [None, tt.codecs.SZ(level="fast")])
def test_one_handle_serves_rectifier_and_layers(codec):
    """Bytes are those of one packed tensor; with a codec that loses signs, those and a bit a value."""
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    comet = COMET(codec=codec)(model)
    x = torch.randn(4, 8, 12, 12, requires_grad=True)
    expected = gradients(model, lambda: model(x).square().sum())
    before, x.grad = x.grad.clone(), None
    with comet:
        found = gradients(model, lambda: model(x).square().sum())
    functions = comet.report["functions"]
    assert functions["relu"]["kept_bytes"].get("signs", 0) == (0 if codec is None else x.numel() // 8)
    assert functions["relu"]["before_bytes"] == 0
    assert functions["conv2d"]["before_bytes"] == x.nbytes
    assert 0 < functions["conv2d"]["after_bytes"] < x.nbytes / 5
    assert distance(expected, found) < 0.1
    torch.testing.assert_close(x.grad, before)


def test_signs_are_dropped_where_a_layer_keeps_values_later():
    """The bits are made already when the layer comes, since another function has saved something between."""
    model = nn.Conv2d(8, 8, 3)
    comet = COMET()(model)
    x = torch.randn(4, 8, 12, 12, requires_grad=True)
    with comet:
        y = F.relu(x)
        z = (torch.ones(4) * 2).requires_grad_().exp()
        (model(y).sum() + z.sum()).backward()
    assert comet.report["functions"]["relu"]["kept_bytes"] == {"signs": 0}
    assert comet.report["functions"]["relu"]["after_bytes"] == 0


def test_rectifier_after_its_layer_reads_the_layer():
    """The layer saved the tensor first: here a rectifier in place of a tensor that is positive already."""
    model = nn.Linear(64, 64)
    comet = COMET()(model)
    x = torch.rand(64, 64).requires_grad_()
    with comet:
        y = F.relu(x)
        model(y).sum().backward()
        y = F.relu(x)
        first = model(y)
        (first.sum() + torch.ops.aten.relu(y).sum()).backward()
    assert comet.report["saved_bytes_after"] < x.nbytes


def test_layers_that_share_an_input_keep_it_once_within_the_tighter_bound():
    model = nn.ModuleList([nn.Linear(64, 256, bias=False), nn.Linear(64, 256, bias=False)])
    comet = COMET()(model)
    x = torch.randn(256, 64)
    for bounds in ((0.3, 0.01), (0.01, 0.3)):
        with comet:
            (model[0](x).sum() + model[1](x).sum()).backward()
        comet.measured_layers()
        for layer, bound in zip(comet._layers.values(), bounds, strict=True):
            layer.bound = bound
        comet._num_steps = 20  # a step that measures nothing
        with comet:
            loss = model[0](x), model[1](x)
        assert len(comet._bounded) == 1
        for layer, y in zip(model, loss, strict=True):
            assert float((seen(layer, y) - x).abs().max()) <= 0.01


def test_memory_that_is_used_again_is_another_tensor():
    layers = nn.ModuleList(nn.Linear(96, 64, bias=False) for _ in range(12))
    comet = COMET(initial_bound=0.001)(layers)
    values, results, places = [], [], set()
    with comet:
        for n, layer in enumerate(layers):
            x = torch.full((64, 96), float(n + 1))
            places.add(x.data_ptr())
            results.append(layer(x))
            values.append(n + 1)
            del x
        assert len(places) < len(layers)
        for value, layer, y in zip(values, layers, results, strict=True):
            torch.testing.assert_close(seen(layer, y), torch.full((64, 96), float(value)), rtol=2e-3, atol=0)


def test_views_are_kept_without_the_rest():
    layer = nn.Linear(64, 64, bias=False)
    comet = COMET()(layer)
    x = torch.randn(64, 10, 64, requires_grad=True) * 1
    with comet:
        found = seen(layer, layer(x[:, 3]))
    assert comet.report["saved_bytes_before"] == x.nbytes
    assert comet.report["saved_bytes_after"] < x.nbytes / 50
    assert float((found - x[:, 3].detach()).abs().max()) < 0.1


def test_change_in_place_is_an_error_as_without():
    comet = COMET(min_bytes=0)(NOTHING)
    x = torch.randn(2000, requires_grad=True)
    with comet:
        y = F.relu(x)
        y.add_(1)
        z = y.sin()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()


def test_change_in_place_does_not_reach_what_was_packed():
    """Without COMET this is an error, since the result of the rectifier itself is kept."""
    comet = COMET(min_bytes=0)(NOTHING)
    x = torch.randn(2000, requires_grad=True)
    with comet:
        y = F.relu(x)
        z = y.exp()
        y.detach().add_(1)
        z.sum().backward()
    assert torch.equal(x.grad, torch.where(x > 0, x.exp(), 0))


def test_exact_tensors_that_change_are_an_error():
    comet = COMET()(NOTHING)
    x = torch.randn(2000, requires_grad=True)
    with comet:
        y = x.exp()
        y.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("make", [vgg, resnet])
def test_gradients_are_near_those_without(make):
    torch.manual_seed(0)
    model = make()
    torch.manual_seed(5)
    expected = gradients(model, lambda: loss_of(model))
    comet = COMET(initial_bound=1 / 64, batch_norm="bounded")(model)
    torch.manual_seed(5)
    with comet:
        found = gradients(model, lambda: loss_of(model))
    assert 0 < distance(expected, found) < 0.05


@pytest.mark.parametrize("make", [vgg, resnet])
def test_global_generator_is_left_alone(make):
    model = make()
    torch.manual_seed(3)
    loss_of(model).backward()
    expected = torch.get_rng_state()
    comet = COMET()(model)
    torch.manual_seed(3)
    with comet:
        loss_of(model).backward()
    assert torch.equal(torch.get_rng_state(), expected)


def test_graph_that_is_retained_is_read_twice():
    model = vgg().eval()
    comet = COMET()(model)
    with comet:
        loss = loss_of(model)
        loss.backward(retain_graph=True)
        first = {n: p.grad.clone() for n, p in model.named_parameters()}
        model.zero_grad()
        loss.backward()
    assert distance(first, {n: p.grad for n, p in model.named_parameters()}) == 0


def test_gradients_of_gradients():
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    x = torch.randn(256, 64, requires_grad=True)

    def penalty() -> Tensor:
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return gradient.square().sum()

    expected = gradients(model, penalty)
    with COMET(initial_bound=1 / 256)(model):
        found = gradients(model, penalty)
    assert distance(expected, found) < 0.02


def test_backward_on_another_thread():
    model = resnet()
    comet = COMET(initial_bound=1 / 64, batch_norm="bounded")(model)
    expected = gradients(model, lambda: loss_of(model))
    model.zero_grad()
    with comet:
        losses = [loss_of(model), loss_of(model)]
    workers = [threading.Thread(target=loss.backward) for loss in losses]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert distance(expected, {n: p.grad / 2 for n, p in model.named_parameters()}) < 0.1


def test_failed_forward_leaves_nothing_behind():
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("on purpose")

    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), Fails())
    comet = COMET()(model)
    for _ in range(2):
        with pytest.raises(KeyError, match="on purpose"), comet:
            loss_of(model)
        gc.collect()
        assert not comet._bounded
        assert not comet._signs
        assert comet._pending is None
    model[-1] = nn.Flatten()
    with comet:
        model(images(4)[0]).sum().backward()
    assert comet.report["ratio"] > 3


def test_nothing_is_kept_after_a_step():
    model = resnet()
    comet = COMET()(model)
    with comet:
        loss_of(model).backward()
        assert not comet._bounded
        assert not comet._signs


def test_nothing_happens_without_gradients():
    model = resnet()
    comet = COMET()(model)
    expected = model.eval()(images(4)[0])
    with comet, torch.no_grad():
        assert torch.equal(model(images(4)[0]), expected)
    assert comet.report["steps"] == 0
    assert comet.report["saved_bytes_before"] == 0


def test_normalisation_in_eval_mode():
    model = resnet()
    loss_of(model)
    model.eval()
    expected = gradients(model, lambda: loss_of(model))
    with COMET(initial_bound=1 / 128)(model):
        found = gradients(model, lambda: loss_of(model))
    assert distance(expected, found) < 0.05


def test_accumulated_gradients_and_several_losses():
    model = vgg().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    comet = COMET(initial_bound=1 / 64)(model, optimizer)

    def run() -> dict[str, Tensor]:
        model.zero_grad()
        for seed in range(2):
            loss_of(model, seed=seed).backward()
        one, two = loss_of(model, seed=2), loss_of(model, seed=3)
        (one + two).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    expected = run()
    with comet:
        found = run()
    assert distance(expected, found) < 0.05
    assert comet.report["steps"] == 3


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_inside(reentrant):
    model = vgg().eval()
    x, y = images(16)
    x.requires_grad_()

    def run() -> Tensor:
        return F.cross_entropy(model[4:](checkpoint(model[:4], x, use_reentrant=reentrant)), y)

    expected = gradients(model, run)
    with COMET(initial_bound=1 / 64)(model):
        found = gradients(model, run)
    assert distance(expected, found) < 0.05


def test_checkpoint_around():
    model = vgg().eval()
    comet = COMET(initial_bound=1 / 64)(model)

    def inside(x: Tensor) -> Tensor:
        with comet:
            return model(x)

    x, y = images(16)
    expected = gradients(model, lambda: F.cross_entropy(model(x), y))
    found = gradients(model, lambda: F.cross_entropy(checkpoint(inside, x, use_reentrant=False), y))
    assert distance(expected, found) < 0.05


def test_autocast():
    model = resnet()
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(model, lambda: loss_of(model))
    comet = COMET()(model)
    with comet, torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, lambda: loss_of(model))
    assert distance(expected, found) < 0.3
    entry = comet.report["functions"]["conv2d"]
    assert 0 < entry["kept_bytes"]["bounded"] < 0.6 * entry["before_bytes"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiled_function_is_refused():
    compiled = torch.compile(lambda x: F.gelu(x) * 2, backend="aot_eager")
    with pytest.raises(tt.UsageError, match="compile"), COMET()(vgg()):
        compiled(torch.randn(64, 64, requires_grad=True))


def test_compiled_model_is_refused():
    with pytest.raises(tt.UsageError, match="compile"):
        COMET()(torch.compile(vgg(), backend="aot_eager"))
    model = nn.Sequential(vgg())
    model[0] = torch.compile(model[0], backend="aot_eager")
    with pytest.raises(tt.UsageError, match="compile"):
        COMET()(model)


def test_channels_last():
    model = vgg().eval().to(memory_format=torch.channels_last)
    x, y = images(16)
    x = x.to(memory_format=torch.channels_last)
    expected = gradients(model, lambda: F.cross_entropy(model(x), y))
    comet = COMET(initial_bound=1 / 64)(model)
    with comet:
        found = gradients(model, lambda: F.cross_entropy(model(x), y))
    assert distance(expected, found) < 0.05
    assert comet.report["ratio"] > 4


def test_frozen_layers_keep_nothing_and_pass_gradients():
    model = vgg().eval()
    for parameter in (*model[2].parameters(), *model[5].parameters(), *model[9].parameters()):
        parameter.requires_grad_(False)
    expected = gradients(model, lambda: loss_of(model))
    comet = COMET(initial_bound=1 / 64)(model)
    with comet:
        found = gradients(model, lambda: loss_of(model))
    assert distance(expected, found) < 0.05
    assert "2" not in comet.report["layers"] or comet.report["layers"]["2"]["after_bytes"] == 0


def test_tied_weights_add_up():
    layer = nn.Linear(128, 128, bias=False)
    x = torch.randn(128, 128)

    def run() -> Tensor:
        return layer(torch.tanh(layer(x))).square().sum()

    expected = gradients(layer, run)
    comet = COMET(initial_bound=1 / 64)(layer)
    with comet:
        found = gradients(layer, run)
    assert distance(expected, found) < 0.02
    (record,) = comet.measured_layers().values()
    assert record.gradient == pytest.approx(float(found["weight"].abs().mean()), rel=1e-4)


def test_plain_calls_are_treated_like_modules():
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(8, 8, 3, 3))
    comet = COMET()(model)
    with comet:
        F.conv2d(torch.randn(2, 8, 20, 20), model.weight).sum().backward()
    assert comet.report["layers"]["weight"]["kept_bytes"]["bounded"] > 0


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda m: F.linear(torch.randn(64, 64), m.weight * 2), "no parameter of the model"),
        (lambda m: F.linear(torch.randn(64, 64).double(), m.weight.double()), "no parameter"),
        (lambda m: m(torch.full((64, 64), float("nan"))), "NaN"),
        (lambda m: m(torch.zeros(64, 64)), "zero"),
        (lambda m: m(torch.randn(3, 64)), "small"),
    ],
)
def test_what_cannot_be_bounded_is_exact_and_says_why(run, reason):
    model = nn.Linear(64, 64)
    comet = COMET()(model)
    with comet:
        run(model).sum().backward()
    assert any(reason in how for how in comet.report["functions"]["linear"]["kept_bytes"])


def test_other_functions_are_exact_and_counted():
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, dropout=0.0)
    comet = COMET(min_bytes=0, initial_bound=1 / 64)(layer)
    x = torch.randn(4, 50, 32)
    expected = gradients(layer, lambda: layer(x).square().sum() + layer(x).sum())
    with comet:
        found = gradients(layer, lambda: layer(x).square().sum() + layer(x).sum())
    assert distance(expected, found) < 0.05
    for name in ("multi_head_attention_forward", "layer_norm"):
        entry = comet.report["functions"][name]
        assert entry["after_bytes"] == entry["before_bytes"] > 0


@pytest.mark.parametrize("make", [vgg, resnet])
def test_all_saved_bytes_are_counted(make):
    """As an independent count of unique storages has it; parameters and buffers aside."""
    model = make()
    constants = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    kept, sizes = [], {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in constants:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = loss_of(model)
    comet = COMET()(model)
    with comet:
        loss_of(model)
    report = comet.report
    assert report["saved_bytes_before"] == sum(sizes.values())
    part = report["functions"].values()
    assert sum(entry["before_bytes"] for entry in part) == report["saved_bytes_before"]
    assert sum(entry["after_bytes"] for entry in part) == report["saved_bytes_after"]
    assert all(sum(entry["kept_bytes"].values()) == entry["after_bytes"] for entry in part)
    assert report["peak_resident_bytes"] > 10**7
    del loss


def test_context_is_left_after_an_error_and_not_entered_twice():
    comet = COMET()(vgg())
    with comet, pytest.raises(tt.UsageError, match="entered already"):
        comet.__enter__()
    with comet:
        pass


def test_once_for_many_steps_is_the_same_as_each_step():
    def run(each: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = vgg()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        comet = COMET(memory_ratio=6)(model, optimizer)

        def step(seed: int) -> None:
            loss_of(model, seed=seed).backward()
            optimizer.step()
            optimizer.zero_grad()

        if each:
            for seed in range(5):
                with comet:
                    step(seed)
        else:
            with comet:
                for seed in range(5):
                    step(seed)
        assert comet.report["steps"] == 5
        return copy.deepcopy(model.state_dict())

    one, two = run(True), run(False)
    assert all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tolerance": 0.1, "memory_ratio": 6},
        {"tolerance": 0.0},
        {"tolerance": float("nan")},
        {"memory_ratio": 1},
        {"memory_ratio": float("inf")},
        {"model": "open"},
        {"batch_norm": "none"},
        {"initial_bound": 0},
        {"initial_bound": 2},
        {"update_every": 0},
        {"min_bytes": -1},
    ],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(tt.UsageError):
        COMET(**wrong)


def test_wrong_models_and_optimizers():
    model = vgg()
    with pytest.raises(tt.UsageError, match="Module"):
        COMET()("model")
    with pytest.raises(tt.UsageError, match=r"torch\.optim\.Optimizer"):
        COMET()(model, "sgd")
    with pytest.raises(tt.UsageError, match="none of the model's parameters"):
        COMET()(model, torch.optim.SGD(vgg().parameters(), lr=0.1))
    with pytest.raises(tt.UsageError, match="codec"):
        COMET(codec="blocks")(model)


def test_settings_need_no_torch_and_are_readable():
    assert "tolerance" in repr(COMET())
    comet = COMET()(vgg())
    assert "no step" in repr(comet)
    with warnings.catch_warnings(), comet:
        loss_of(comet.model).backward()
    assert "ratio" in repr(comet)
