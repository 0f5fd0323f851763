"""Small networks of the kinds that COMET is for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def vgg() -> nn.Sequential:
    """Return convolutions with rectifiers and pooling, without normalisation, for images of 1 x 16 x 16."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10),
    )  # fmt: skip


class Residual(nn.Module):
    """Two convolutions with normalisation, and a way around them."""

    def __init__(self, channels: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, outputs, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.around = nn.Conv2d(channels, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(y + self.around(x), inplace=True)


def resnet() -> nn.Sequential:
    """Return a small residual network for images of 1 x 16 x 16."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        Residual(16, 16), Residual(16, 32, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def images(num: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return smooth images, and classes that they depend on."""
    generator = torch.Generator().manual_seed(seed)
    x = F.avg_pool2d(torch.randn(num, 1, 20, 20, generator=generator), 5, stride=1) * 5
    return x, (x.mean((1, 2, 3)) * 20).long().remainder(10)
