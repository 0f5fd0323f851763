"""Two small surrogates of the kind that SOLAR's paper feeds: PtychoNN in 2-D, CosmoFlow in 3-D.

A module says which fields of a sample it needs, and what the loss and the errors of its outputs are. None of them
normalises over the batch: a loader may give a sample to any rank, and the gradient must not depend on which.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import nn

from examples.cosmology import RANGES

Batch = Mapping[str, torch.Tensor]


class PtychoNN(nn.Module):
    """Amplitude and phase of an object from its diffraction pattern, after PtychoNN (arXiv 2004.08247).

    One encoder halves the picture three times, two decoders double it twice: ``[n, side, side]`` becomes amplitude and
    phase ``[n, side / 2, side / 2]``. `examples.ptychography` simulates the samples.

    Differences: padding, so that sides need not be 64; photons are taken as logarithms, unscaled, for their sum
    says how much the object absorbs.
    """

    inputs = "diffraction"
    fields = ("diffraction", "amplitude", "phase")

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [1, width, 2 * width, 4 * width]
        stages = [[*_convolutions(a, b), nn.MaxPool2d(2)] for a, b in itertools.pairwise(widths)]
        self.encoder = nn.Sequential(*itertools.chain(*stages))
        self.amplitude, self.phase = self._decoder(width), self._decoder(width)
        for module in self.modules():  # torch's own start lets the signal fade from layer to layer
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if module.out_channels > 1 else "linear")
                nn.init.zeros_(module.bias)

    @staticmethod
    def _decoder(width: int) -> nn.Sequential:
        return nn.Sequential(
            *_convolutions(4 * width, 4 * width), nn.Upsample(scale_factor=2),
            *_convolutions(4 * width, 2 * width), nn.Upsample(scale_factor=2),
            *_convolutions(2 * width, width), nn.Conv2d(width, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, pattern: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the amplitude, from 0 to 1, and the phase, in radians."""
        x = self.encoder(torch.log1p(pattern[:, None]) / 4)
        return {"amplitude": self.amplitude(x)[:, 0].sigmoid(), "phase": math.pi * self.phase(x)[:, 0].tanh()}

    @staticmethod
    def loss(found: Batch, batch: Batch) -> torch.Tensor:
        """Return the mean absolute error of amplitude and phase together."""
        return sum(nn.functional.l1_loss(found[name], batch[name]) for name in found)

    @staticmethod
    def errors(found: Batch, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the mean squared errors of each sample, [n]; phases in radians."""
        return {name: (found[name] - batch[name]).square().mean((1, 2)) for name in found}


class CosmoFlow(nn.Module):
    """Parameters of a cosmology from a cube of densities, after CosmoFlow (arXiv 1808.04728).

    Convolutions that halve the cube as long as its side is even and above 4, then three linear layers:
    ``[n, side, side, side]`` becomes ``[n, 3]``, each parameter in units of half its range. `examples.cosmology`
    simulates the samples.

    Differences: convolutions wrap around, as the box does; fewer channels, unless `width` is 16.
    """

    inputs = "density"
    fields = ("density", "parameters")

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        while side > 4 and side % 2 == 0:
            wider = 2 * channels if channels > 1 else width
            layers += [
                nn.Conv3d(channels, wider, 3, padding=1, padding_mode="circular"),
                nn.LeakyReLU(0.3),
                nn.MaxPool3d(2),
            ]
            channels, side = wider, side // 2
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Sequential(
            nn.Linear(channels * side**3, 128), nn.LeakyReLU(0.3),
            nn.Linear(128, 64), nn.LeakyReLU(0.3),
            nn.Linear(64, len(RANGES)),
        )  # fmt: skip
        limits = torch.tensor(list(RANGES.values()))
        self.register_buffer("centre", limits.mean(1), persistent=False)
        self.register_buffer("unit", (limits[:, 1] - limits[:, 0]) / 2, persistent=False)

    def forward(self, density: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parameters."""
        x = self.features(torch.log1p(density)[:, None])
        return {"parameters": self.centre + self.unit * self.head(x)}

    def loss(self, found: Batch, batch: Batch) -> torch.Tensor:
        """Return the mean squared error of the parameters, in units of half their range."""
        return ((found["parameters"] - batch["parameters"]) / self.unit).square().mean()

    @staticmethod
    def errors(found: Batch, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the squared error of each parameter and sample, [n]."""
        squares = (found["parameters"] - batch["parameters"]).square()
        return dict(zip(RANGES, squares.T, strict=True))


Surrogate = PtychoNN | CosmoFlow
SURROGATES: dict[str, type[Surrogate]] = {"ptycho": PtychoNN, "cosmo": CosmoFlow}


def make_surrogate(name: str, width: int, shape: tuple[int, ...]) -> Surrogate:
    """Return a surrogate for samples whose input has this shape.

    Raises:
        ValueError: it is too small, or no square or cube.
    """
    kind = SURROGATES[name]
    dims, least = (2, 16) if kind is PtychoNN else (3, 8)
    side = shape[0] if shape else 0
    if shape != (side,) * dims or side % least or side < least:
        raise ValueError(f"{kind.inputs} must have {dims} axes of one length, a multiple of {least}; it is {shape}")
    return PtychoNN(width) if kind is PtychoNN else CosmoFlow(width, side)


def _convolutions(channels: int, wider: int) -> list[nn.Module]:
    """Return two convolutions with ReLU, the first of which changes the number of channels."""
    sizes = itertools.pairwise([channels, wider, wider])
    return [layer for a, b in sizes for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
