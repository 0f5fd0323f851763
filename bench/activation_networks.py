"""Convolutional networks whose activations `bench.activations` keeps, and how they are trained on Fashion-MNIST.

Two shapes at any width: after VGG (Simonyan and Zisserman, 2014) without BatchNorm, with dropout, and after ResNet (He
et al., 2015) with BatchNorm behind every convolution. Both see images of 28 x 28 at three resolutions, whose widths
double. The
scale is small: the minutes that a run may take decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bench.networks import Split, images

NUM_CLASSES = 10
RATES, USUAL_RATE, MOMENTUM, WEIGHT_DECAY = {"VGG": 0.02}, 0.05, 0.9, 5e-4
"""Network -> its largest rate: without BatchNorm, the usual one lets some runs die."""


def vgg(width: int) -> nn.Module:
    """Return six 3 x 3 convolutions in three pairs, each pair before a pooling, and two linear layers."""
    layers: list[nn.Module] = []
    channels = 1
    for wide in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels = wide
    head = [nn.Flatten(), nn.Linear(9 * channels, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, NUM_CLASSES)]
    return _initialised(nn.Sequential(*layers, *head))


class Residual(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm beside a short cut, float32[batch, channels, height, width]."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False), nn.BatchNorm2d(num_out))
        self.second = nn.Sequential(nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False), nn.BatchNorm2d(num_out))
        self.shortcut: nn.Module = nn.Identity()
        if num_in != num_out or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def resnet(width: int, num_blocks: int = 1) -> nn.Module:
    """Return a convolution and three stages of residual blocks, the second and the third at half the resolution."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for stage in range(3):
        for block in range(num_blocks):
            layers.append(Residual(channels, width << stage, 2 if stage and not block else 1))
            channels = width << stage
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, NUM_CLASSES)]
    return _initialised(nn.Sequential(*layers, *head))


def _initialised(model: nn.Module) -> nn.Module:
    """Draw the weights as He et al. (2015) do, without which the deep VGG does not begin to learn."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


DEEP = "ResNet, 3 blocks a stage"
NETWORKS: dict[str, Callable[[int], nn.Module]] = {"VGG": vgg, "ResNet": resnet, DEEP: partial(resnet, num_blocks=3)}
TRAINED = ("VGG", "ResNet")
"""The networks of the accuracies; the deep one is for memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How wide a network is, and how long it trains."""

    width: int
    """Channels at the first resolution."""
    batch: int
    num_images: int
    """Training images, the first ones of the set."""
    num_epochs: int
    num_tested: int

    @property
    def num_steps(self) -> int:
        return self.num_epochs * (self.num_images // self.batch)


SCALES = {
    "trained": Scale(width=32, batch=64, num_images=24_000, num_epochs=2, num_tested=10_000),
    "wide": Scale(width=64, batch=64, num_images=4096, num_epochs=1, num_tested=1000),
    "large": Scale(width=64, batch=128, num_images=4096, num_epochs=1, num_tested=1000),
    "small": Scale(width=8, batch=32, num_images=1920, num_epochs=1, num_tested=1000),
}
"""Name -> scale: of accuracies, of times (widths as published networks have them), of memory, and of a quick check."""


class Trainer:
    """A network on its way from a seed: SGD with momentum, a rate that warms up and falls as a cosine.

    Ways of keeping activations that draw no numbers from torch's own generator see the same images in the same
    order, and the same dropout.
    """

    def __init__(self, network: str, scale: Scale, seed: int) -> None:
        self.scale, self.seed, self.num_steps = scale, seed, 0
        torch.manual_seed(seed)
        self.model = NETWORKS[network](scale.width).train()
        self.rate = RATES.get(network, USUAL_RATE)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), self.rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, foreach=True
        )
        self._batches = self._picked(torch.Generator().manual_seed(seed))

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return the next images and labels."""
        picked = next(self._batches)
        split = images().train
        return split.images[picked], split.labels[picked]

    def step(self, around: Callable[[], AbstractContextManager] = nullcontext) -> float:
        """Train for one step inside `around()`, and return the loss before it."""
        x, labels = self.batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * self._schedule()
        with around():
            loss = nn.functional.cross_entropy(self.model(x), labels)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_steps += 1
        return loss.item()

    def _schedule(self) -> float:
        warm = max(self.scale.num_steps // 10, 1)
        done = (self.num_steps - warm) / max(self.scale.num_steps - warm, 1)
        return (self.num_steps + 1) / warm if self.num_steps < warm else 0.5 + 0.5 * math.cos(math.pi * done)

    def _picked(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the numbers of the images of each batch, epoch after epoch without end."""
        num = self.scale.num_images // self.scale.batch
        while True:
            yield from torch.randperm(self.scale.num_images, generator=generator).split(self.scale.batch)[:num]

    def accuracy(self) -> float:
        """Return the share of the test images whose label the network finds; it is back in training mode after."""
        test = images().test
        some = Split(test.images[: self.scale.num_tested], test.labels[: self.scale.num_tested])
        share = float(some.correct(self.model).mean())
        self.model.train()
        return share
