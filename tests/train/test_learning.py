"""COMET from end to end: networks learn noisy digits as well as without it, at a sixth of the bytes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from tests.train.networks import resnet, vgg  # noqa: E402
from trimtab.train import COMET  # noqa: E402

SEGMENTS = {  # rows and columns of the strokes of a display
    "top": (slice(2, 4), slice(4, 10)),
    "middle": (slice(7, 9), slice(4, 10)),
    "bottom": (slice(12, 14), slice(4, 10)),
    "upper left": (slice(2, 9), slice(3, 5)),
    "upper right": (slice(2, 9), slice(9, 11)),
    "lower left": (slice(7, 14), slice(3, 5)),
    "lower right": (slice(7, 14), slice(9, 11)),
}
MISSING = {
    0: ["middle"],
    1: ["top", "middle", "bottom", "upper left", "lower left"],
    2: ["upper left", "lower right"],
    3: ["upper left", "lower left"],
    4: ["top", "bottom", "lower left"],
    5: ["upper right", "lower left"],
    6: ["upper right"],
    7: ["middle", "bottom", "upper left", "lower left"],
    8: [],
    9: ["lower left"],
}


def digits(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return digits of a display under noise, moved by up to two pixels: float32[num, 1, 16, 16], and what they are."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.zeros(10, 16, 16)
    for digit, missing in MISSING.items():
        for name, place in SEGMENTS.items():
            if name not in missing:
                shapes[(digit, *place)] = 1
    labels = torch.randint(10, (num,), generator=generator)
    moves = torch.randint(-2, 3, (num, 2), generator=generator).tolist()
    images = torch.stack([shapes[d].roll(move, (0, 1)) for d, move in zip(labels.tolist(), moves, strict=True)])
    return (images + 0.4 * torch.randn(images.shape, generator=generator)).unsqueeze(1), labels


def learn(make, settings: COMET | None, seed: int) -> tuple[float, list[float]]:
    """Train; return the accuracy on other digits, and the ratio of all saved bytes at every step."""
    torch.manual_seed(seed)
    model = make().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    comet = settings(model, optimizer) if settings else None
    x, labels = digits(3200, seed=seed)
    ratios = []
    for step, picked in enumerate(torch.cat([torch.randperm(len(x)), torch.randperm(len(x))]).split(64)):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 100)
        optimizer.zero_grad()
        if comet is None:
            F.cross_entropy(model(x[picked]), labels[picked]).backward()
        else:
            with comet:
                F.cross_entropy(model(x[picked]), labels[picked]).backward()
            ratios.append(comet.report["ratio"])
        optimizer.step()
    x, labels = digits(2000, seed=1000)
    with torch.inference_mode():
        return float((model.eval()(x).argmax(1) == labels).float().mean()), ratios


@pytest.mark.parametrize(("make", "least"), [(vgg, 0.75), (resnet, 0.8)], ids=["vgg", "resnet"])
def test_a_sixth_of_the_bytes_learns_as_well(make, least):
    changes, exacts = [], []
    for seed in range(2):
        exact, _ = learn(make, None, seed)
        ours, ratios = learn(make, COMET(memory_ratio=6, update_every=10), seed)
        exacts.append(exact)
        changes.append(ours - exact)
        later = ratios[10:]
        assert sum(later) / len(later) >= 6, "all saved bytes, the mean of the steps after the first"
    assert min(exacts) > least, "there is something to lose"
    assert sum(changes) / 2 > -0.02, f"{changes} beside exact training"
