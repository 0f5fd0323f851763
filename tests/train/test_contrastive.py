"""FastCLIP: gradients, estimates and temperatures against plain references, its state, bad input, and real ranks."""

from __future__ import annotations

import io
import math
import warnings

import pytest
import torch

from tests.dist.launch import run_ranks
from tests.train.objective import (
    SCALE,
    TEMPERATURE,
    VERSIONS,
    Towers,
    features,
    inner,
    objective,
    order,
    reference,
    relative,
    samples,
)
from trimtab.errors import Corrupt, NotFinite, UsageError
from trimtab.train import FastCLIP, accumulate

RANKS = "tests.train.contrastive_ranks"


def test_one_rank(tmp_path):
    run_ranks(RANKS, 1, "gradients", str(tmp_path), folder=tmp_path)


def test_two_ranks(tmp_path):
    run_ranks(RANKS, 2, "gradients+data_parallel+accumulated+state+faults", str(tmp_path), folder=tmp_path)


def test_four_ranks(tmp_path):
    run_ranks(RANKS, 4, "gradients+data_parallel+faults", str(tmp_path), folder=tmp_path)


def call(loss: FastCLIP, num: int = 10, seed: int = 0, dtype=torch.float64, scale: float = SCALE, index=None):
    """Return the loss, and the gradients by images, texts and logit scale."""
    inputs = [x.to(dtype).requires_grad_() for x in (*features(num, seed), torch.tensor(scale))]
    value = loss(*inputs, torch.arange(num) if index is None else index)
    value.backward()
    return value.detach(), [x.grad for x in inputs]


@pytest.mark.parametrize("version", VERSIONS)
def test_estimates(version):
    """Over epochs, u mixes old and new; samples that are new in a later epoch begin with their g."""
    loss = FastCLIP(samples=30, version=version, gamma_min=0.3, decay_epochs=2, eps=0, temperature_lr=0)
    u = torch.zeros(2, 30).double()
    for epoch, gamma in enumerate((1.0, 0.65, 0.3, 0.3)):
        loss.set_epoch(epoch)
        assert loss.gamma == pytest.approx(gamma)
        index = torch.arange(10) + 2 * epoch  # two that are new in each epoch
        images, texts = (x.requires_grad_() for x in features(10, epoch))
        scale = torch.tensor(SCALE).double().requires_grad_()
        tau = torch.full((2, 10), TEMPERATURE).double() if version == "v2" else (1 / scale).expand(2, 10)
        g = inner(images, texts, tau)
        old = u[:, index]
        u[:, index] = torch.where(old > 0, (1 - gamma) * old + gamma * g, g).detach()
        objective(g, tau, version, loss.rho, u[:, index]).backward()
        value, found = call(loss, seed=epoch, index=index)
        assert value.item() == pytest.approx(objective(u[:, index], tau, version, loss.rho).item(), rel=1e-6)
        learned = 3 if version in ("v0", "v3") else 2
        for x, y in zip(found[:learned], [images.grad, texts.grad, scale.grad], strict=False):
            assert relative(x, y) < 1e-5  # tables are float32
        torch.testing.assert_close(loss.log_u[index].T.double().exp(), u[:, index], rtol=1e-5, atol=0)
    assert loss.report["seen_samples"] == 16
    assert loss.log_u[16:].isneginf().all()


def test_schedules():
    loss = FastCLIP(samples=2, gamma_min=0.2, decay_epochs=10)
    gammas = []
    for epoch in range(15):
        loss.set_epoch(epoch)
        gammas.append(loss.gamma)
    assert gammas[0] == 1 and gammas[5] == pytest.approx(0.6) and gammas[10:] == [0.2] * 5
    assert gammas == sorted(gammas, reverse=True)
    loss = FastCLIP(samples=2, schedule="constant", gamma_min=0.7)
    assert loss.gamma == 1
    loss.set_epoch(1)
    assert loss.gamma == 0.7


def published(image, text, scale, version: str, rho: float, eps: float):
    """The gradient by the scale that the published form gives: both halves of its loss carry the scale."""
    detached = image.detach(), text.detach()
    own = torch.eye(len(image), dtype=torch.bool)
    matching = (image * text).sum(1, keepdim=True)
    halves = []
    for (left, right), anchors in (((image, text), detached), (detached, (image, text))):
        diagonal = matching if anchors is detached else matching.detach()
        for first, second in ((left, anchors[1]), (right, anchors[0])):
            g = ((first @ second.T - diagonal) * scale).exp().masked_fill(own, 0).sum(1) / (len(image) - 1)
            halves.append(g / (g.detach() + eps))
            u = g.detach()
            if version == "v3":
                halves[-1] = halves[-1] / scale.detach() + (u.log() + rho) / (2 * scale)
    return sum(halves).mean() / 2


@pytest.mark.parametrize("version", ["v0", "v3"])
def test_released_temperature_gradient(version):
    """As released, the similarities count twice; the features' gradient is the same."""
    loss = FastCLIP(samples=10, version=version, gamma_min=1, as_released=True)
    _, (by_images, by_texts, by_scale) = call(loss)
    image, text, scale = (x.requires_grad_() for x in (*features(10), torch.tensor(SCALE).double()))
    published(image, text, scale, version, loss.rho, loss.eps).backward()
    assert relative(by_images, image.grad) < 1e-6
    assert relative(by_texts, text.grad) < 1e-6
    assert relative(by_scale, scale.grad) < 1e-6
    _, wanted = reference(*features(10), version, loss.rho)
    assert relative(by_images, wanted[0]) < 1e-6
    assert relative(by_scale, wanted[2]) > 0.1


def test_temperatures_follow_adam():
    """Samples that come every time follow torch's Adam on the gradient of their own objective, clipped."""
    loss = FastCLIP(samples=10, version="v2", gamma_min=1, temperature=0.05, temperature_lr=0.004, rho=4.0)
    tau = torch.full((2, 10), 0.05).double().requires_grad_()
    adam = torch.optim.Adam([tau], lr=0.004)
    for step in range(8):
        adam.zero_grad()
        (tau * (inner(*features(10, step), tau).log() + loss.rho)).sum().backward()
        tau.grad.clamp_(-5, 5)
        call(loss, seed=step)
        adam.step()
        with torch.no_grad():
            tau.clamp_(0.01, 1)
        torch.testing.assert_close(loss.temperatures.T.double(), tau.detach(), rtol=1e-4, atol=0)
    assert 0.01 < tau.min() < tau.max() < 0.05
    assert loss.visits.eq(8).all()
    assert loss.report["mean_temperature_image"] == pytest.approx(tau[0].mean().item(), rel=1e-4)


def test_released_temperatures():
    """As released: the step is divided by the second moment, epochs are counted, and moments begin in epoch 1."""
    loss = FastCLIP(
        samples=10, version="v2", gamma_min=0.5, decay_epochs=1, temperature_lr=0.0133, eps=0, as_released=True
    )
    tau, u = torch.full((2, 10), 0.03).double(), None
    first = second = torch.zeros(2, 10).double()
    for epoch in range(4):
        loss.set_epoch(epoch)
        gamma, betas = (1, (0, 0)) if epoch == 0 else (0.5, (0.9, 0.999))
        image, text = (x.requires_grad_() for x in features(10, epoch))
        varied = tau.clone().requires_grad_()
        g = inner(image, text, varied)
        u = g.detach() if u is None else (1 - gamma) * u + gamma * g.detach()
        (varied * g / u).sum().backward()  # tau dg / u and g / u
        gradient = (varied.grad - g.detach() / u + u.log() + 7).clamp(-5, 5)
        first, second = (betas[k] * m + (1 - betas[k]) * gradient ** (k + 1) for k, m in enumerate((first, second)))
        mean, square = (m / (1 - beta ** (epoch + 1)) for m, beta in zip((first, second), betas, strict=True))
        _, (by_images, _, _) = call(loss, seed=epoch)
        image.grad = None
        (inner(image, text, tau) / u).mean().backward()  # no row is scaled by its temperature
        assert relative(by_images, image.grad) < 1e-4
        tau = (tau - 0.0133 * mean / (square + 1e-8)).clamp(0.01, 1)
        torch.testing.assert_close(loss.temperatures.T.double(), tau, rtol=1e-4, atol=0)


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_overflows(version):
    """At the least temperature, with features that point away from their own: exp(200) has no float32."""
    images = features(8)[0].float()
    inputs = [x.requires_grad_() for x in (images.clone(), -images, torch.tensor(100.0))]
    loss = FastCLIP(samples=8, version=version, gamma_min=1, temperature=0.01)
    value = loss(*inputs, torch.arange(8))
    value.backward()
    tau = torch.full((2, 8), 0.01).double()
    exact = [images.double().requires_grad_(), (-images.double()).requires_grad_()]
    wanted = objective(inner(*exact, tau), tau, version, loss.rho)
    wanted.backward()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert all(relative(x.grad, y.grad) < 1e-4 for x, y in zip(inputs, exact, strict=False))
    assert loss.log_u.isfinite().all()


@pytest.mark.parametrize("version", VERSIONS)
def test_autocast(version):
    """Under autocast the loss is that of float32, and narrow features get narrow gradients."""
    value, gradients = call(FastCLIP(samples=10, version=version), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        same, others = call(FastCLIP(samples=10, version=version), dtype=torch.float32)
    assert torch.equal(value, same)
    assert all(torch.equal(x, y) for x, y in zip(gradients, others, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        near, narrow = call(FastCLIP(samples=10, version=version), dtype=torch.bfloat16)
    assert near.dtype == torch.float32 and narrow[0].dtype == torch.bfloat16
    assert near.item() == pytest.approx(value.item(), rel=0.02)
    assert relative(narrow[0], gradients[0]) < 0.05


def test_evaluation():
    loss = FastCLIP(samples=10, version="v3", gamma_min=0.5, decay_epochs=1)
    call(loss)
    before = loss.log_u.clone()
    loss.set_epoch(3)
    loss.eval()
    value = loss(*features(6, 1), SCALE)
    assert value.item() == pytest.approx(reference(*features(6, 1), "v3", loss.rho)[0], rel=1e-6)
    assert torch.equal(loss.log_u, before) and loss.steps == 1
    mean = FastCLIP(samples=10, version="v2").eval()(*features(6, 1), None)
    assert mean.item() == pytest.approx(reference(*features(6, 1), "v2", 7.0)[0], rel=1e-6)


def test_forms_of_the_call():
    loss = FastCLIP(samples=10, gamma_min=1)
    images, texts = features(10)
    scale = torch.tensor([SCALE], requires_grad=True)
    found = loss(images, texts, scale, torch.arange(10, dtype=torch.int32), output_dict=True)
    assert list(found) == ["contrastive_loss"] and found["contrastive_loss"].shape == ()
    found["contrastive_loss"].backward()
    assert scale.grad.shape == (1,)
    with torch.no_grad():
        assert not loss(images, texts, scale, torch.arange(10)).requires_grad
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(images, texts, SCALE, torch.arange(10)), images, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()
    assert repr(loss) == "FastCLIP(samples=10, version='v3', epoch=0, gamma=1)"
    assert "as_released" in repr(FastCLIP(samples=2, as_released=True))


def train(loss, model, optimizer, epochs, stop=None) -> list[float]:
    """Train, in small batches of which the last is smaller; end after `stop` steps."""
    images, texts = samples(30)
    values = []
    for epoch in epochs:
        loss.set_epoch(epoch)
        for index in order(30, epoch, 8):
            if len(values) == stop:
                return values
            value = loss(*model(images[index], texts[index]), index)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            values.append(value.item())
    return values


def start(version: str) -> tuple[FastCLIP, Towers, torch.optim.Optimizer]:
    model = Towers()
    loss = FastCLIP(samples=30, version=version, gamma_min=0.4, decay_epochs=2)
    return loss, model, torch.optim.AdamW(model.parameters(), lr=0.03)


@pytest.mark.parametrize("version", VERSIONS)
def test_resuming_repeats_the_run(version):
    whole = start(version)
    values = train(*whole, range(5))
    assert sum(values[-4:]) < sum(values[:4])
    first = start(version)
    train(*first, range(2))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = start(version)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert second[0].epoch == 1 and second[0].steps == 8
    assert train(*second, range(2, 5)) == values[8:]
    for name, table in whole[0].state_dict().items():
        other = second[0].state_dict()[name]
        assert table == other if isinstance(table, dict) else torch.equal(table, other), name


@pytest.mark.parametrize("version", VERSIONS)
def test_more_samples_after_resuming(version):
    old = FastCLIP(samples=10, version=version)
    call(old)
    new = FastCLIP(samples=14, version=version, gamma_min=0.5, decay_epochs=1)
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.log_u[:10], old.log_u) and new.log_u[10:].isneginf().all()
    new.set_epoch(5)
    call(new, index=torch.arange(4, 14))
    fresh = FastCLIP(samples=14, version=version)
    call(fresh, index=torch.arange(4, 14))
    torch.testing.assert_close(new.log_u[10:], fresh.log_u[10:])
    assert not torch.allclose(new.log_u[4:10], fresh.log_u[4:10]) or version == "v1"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"version": "v3"}, UsageError, "of FastCLIP v3, this is v2"),
        ({"samples": 11}, UsageError, "11 samples, more than the 10 here"),
        ({"samples": 9}, Corrupt, "of shape (10, 2), for 9 samples"),
        ({"world_size": 4}, UsageError, "saved by 4 ranks, here are 1"),
        ({"epoch": -1}, Corrupt, "no whole numbers"),
        ({"steps": "x"}, Corrupt, "no whole numbers"),
        ({"other": 1}, Corrupt, "not what FastCLIP saves"),
    ],
    ids=str,
)
def test_states_that_do_not_fit(change, error, words):
    state = FastCLIP(samples=10, version="v2").state_dict()
    state["_extra_state"] = {**state["_extra_state"], **change}
    loss = FastCLIP(samples=10, version="v2")
    before = {name: table for name, table in loss.state_dict().items() if name != "_extra_state"}
    with pytest.raises(error) as caught:
        loss.load_state_dict(state)
    assert words in str(caught.value)
    assert loss.epoch == 0 and all(torch.equal(table, loss.state_dict()[name]) for name, table in before.items())


def test_damaged_tables():
    for name, value in (("log_u", math.nan), ("temperatures", math.inf), ("moments", math.nan)):
        state = FastCLIP(samples=10, version="v2").state_dict()
        state[name][3, 1] = value
        with pytest.raises(Corrupt, match=f"{name} has NaN or infinite"):
            FastCLIP(samples=10, version="v2").load_state_dict(state)
    state = FastCLIP(samples=10).state_dict()
    del state["log_u"]
    with pytest.raises(RuntimeError, match="log_u"):
        FastCLIP(samples=10).load_state_dict(state)


NAN = torch.full((4, 16), math.nan)
ROWS = torch.eye(4, 16)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((ROWS, ROWS[:3], 10, torch.arange(4)), UsageError, "(4, 16) and (3, 16)"),
        ((ROWS[0], ROWS[0], 10, torch.arange(4)), UsageError, "expected [b, d]"),
        ((ROWS, ROWS.double(), 10, torch.arange(4)), UsageError, "one floating-point dtype"),
        ((ROWS.int(), ROWS.int(), 10, torch.arange(4)), UsageError, "one floating-point dtype"),
        ((ROWS, ROWS, 10), UsageError, "index is missing"),
        ((ROWS, ROWS, 10, torch.arange(3)), UsageError, "index is torch.int64 of shape (3,)"),
        ((ROWS, ROWS, 10, torch.arange(4.0)), UsageError, "index is torch.float32"),
        ((ROWS, ROWS, 10, torch.tensor([0, 1, 10, 2])), UsageError, "index 10 is out of range"),
        ((ROWS, ROWS, 10, torch.tensor([0, -1, 3, 2])), UsageError, "index -1 is out of range"),
        ((ROWS, ROWS, 10, torch.tensor([0, 3, 3, 2])), UsageError, "index 3 is repeated"),
        ((ROWS, ROWS, None, torch.arange(4)), UsageError, "logit_scale"),
        ((ROWS, ROWS, torch.ones(2), torch.arange(4)), UsageError, "logit_scale"),
        ((ROWS, ROWS, -1.0, torch.arange(4)), UsageError, "logit_scale"),
        ((ROWS, ROWS, torch.tensor(math.inf), torch.arange(4)), UsageError, "logit_scale"),
        ((ROWS[:1], ROWS[:1], 10, torch.arange(1)), UsageError, "at least two"),
        ((ROWS, torch.cat([ROWS[:2], NAN[:2]]), 10, torch.arange(4)), NotFinite, "text_features have NaN or infinite"),
        ((ROWS / 0, ROWS, 10, torch.arange(4)), NotFinite, "first in row 0"),
        ((ROWS * 1e25, ROWS * 1e25, 10, torch.arange(4)), NotFinite, "length 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input(arguments, error, words):
    loss = FastCLIP(samples=10)
    with pytest.raises(error) as caught:
        loss(*arguments)
    assert words in str(caught.value)
    assert loss.log_u.isneginf().all() and loss.steps == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"samples": 1},
        {"samples": 10.5},
        {"version": "v4"},
        {"rho": -1.0},
        {"rho": math.nan},
        {"rho": 1.0, "version": "v1"},
        {"schedule": "linear"},
        {"gamma_min": 0.0},
        {"decay_epochs": 0},
        {"eps": -1e-9},
        {"temperature": 0.001},
        {"temperature_lr": math.inf},
    ],
    ids=str,
)
def test_bad_settings(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        FastCLIP(**{"samples": 10, **settings})


def test_bad_epochs_and_casts():
    loss = FastCLIP(samples=10)
    for epoch in (-1, 0.5, None):
        with pytest.raises(UsageError, match="epoch"):
            loss.set_epoch(epoch)
    with pytest.raises(UsageError, match="cast to torch.float16"):
        call(loss.half())


def test_a_forgotten_epoch_is_told():
    loss = FastCLIP(samples=10)
    call(loss)
    with pytest.warns(UserWarning, match="call set_epoch") as caught:
        call(loss)
    assert caught[0].filename == __file__
    loss.set_epoch(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(loss)


@pytest.mark.parametrize("version", VERSIONS)
def test_accumulated_parts_equal_the_whole(version):
    """With dropout, too, and no number is drawn beyond those of one forward pass."""
    images, texts = samples(12, torch.float64)
    parts = [(images[:5], texts[:5]), (images[5:9], texts[5:9]), (images[9:], texts[9:])]
    index = torch.randperm(30, generator=torch.Generator().manual_seed(1))[:12]
    found = []
    for together in (True, False):
        torch.manual_seed(7)
        model, loss = Towers(dropout=0.3, dtype=torch.float64), FastCLIP(samples=30, version=version)
        if together:
            outputs = [model(*part) for part in parts]
            pairs = (torch.cat([output[k] for output in outputs]) for k in (0, 1))
            value = loss(*pairs, outputs[0][2], index)
            value.backward()
        else:
            value = accumulate(loss, model, parts, index)
        found.append((value.detach(), [x.grad for x in model.parameters()], torch.get_rng_state()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][2], found[1][2])
    assert all(relative(x, y) < 1e-12 for x, y in zip(found[1][1], found[0][1], strict=True))
    with pytest.raises(UsageError, match="at least one part"):
        accumulate(loss, model, [], index)
