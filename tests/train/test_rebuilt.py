"""Inputs of batch normalisation that are rebuilt from the rectifier behind it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.train.test_activations import gradients
from trimtab.train import COMET
from trimtab.train.compressed import CompressedActivations

NAMES = ("rebuilt", "bounded")


def network(rectifier: nn.Module | None = None, norm: nn.Module | None = None) -> nn.Sequential:
    """Return convolution, normalisation, rectifier, convolution; gamma of either sign and beta of any."""
    torch.manual_seed(0)
    norm = norm or nn.BatchNorm2d(16)
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 1.5, 16) * torch.tensor([1.0, -1.0]).repeat(8))
            norm.bias.copy_(torch.linspace(-1, 1, 16))
    return nn.Sequential(nn.Conv2d(4, 16, 3), norm, rectifier or nn.ReLU(), nn.Conv2d(16, 8, 3, bias=False))


def inputs(num: int = 8) -> Tensor:
    return torch.randn(num, 4, 14, 14, generator=torch.Generator().manual_seed(1)) * 3 + 1


def loss_of(model: nn.Module, num: int = 8) -> Tensor:
    y = model(inputs(num))
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    return (y * weights).mean() + y.square().mean()


def kept(comet: CompressedActivations) -> set[str]:
    return set(comet.report["functions"]["batch_norm"]["kept_bytes"]) - {"exact: statistics", "exact: small"}


@pytest.mark.parametrize("inplace", [False, True])
def test_what_is_behind_is_as_with_bounds(inplace):
    model = network(nn.ReLU(inplace))
    found = {}
    for how in NAMES:
        comet = COMET(batch_norm=how)(model)
        with comet:
            found[how] = gradients(model, lambda: loss_of(model))
        assert kept(comet) == {how}
        record = comet.report["layers"]["1"]
        assert record["before_bytes"] == 8 * 16 * 12 * 12 * 4 + 2 * 16 * 4
    assert torch.equal(found["rebuilt"]["3.weight"], found["bounded"]["3.weight"])
    assert torch.equal(found["rebuilt"]["1.bias"], found["bounded"]["1.bias"])
