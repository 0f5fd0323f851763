"""How AE-SZ's autoencoder is trained: PyTorch's part, which nothing but `AESZ.fit` needs.

The linear part of both halves is the principal components of the fields' blocks. The stacks of layers learn what these
leave, as a sliced-Wasserstein autoencoder (Kolouri et al., arXiv 1804.01947): the mean square of what the decoder
misses, plus the distance of the latents' distribution to a normal one along random directions. Afterwards the latents
are turned and scaled (an eigenproblem) so that they are uncorrelated and an error of one unit costs the same in each:
one step then suits them all, and what little a component tells takes few bits. Weights become whole numbers last.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.codecs.autoencoder import (
    HIDDEN_BITS,
    INPUT_BITS,
    LARGEST_HIDDEN,
    LARGEST_INPUT,
    LARGEST_LATENT,
    MAX_SHIFT,
    OUTPUT_BITS,
    Architecture,
    Decoder,
    Encoder,
    Layer,
    Stack,
)
from trimtab.codecs.blocking import Blocking
from trimtab.kernels.layer.ref import EXACT, largest_sum
from trimtab.kernels.regression.ref import ONE

_BATCH = 256
_LEARNING_RATE = 2e-3
_WARM_UP = 0.1  # of the steps
_NUM_PROJECTIONS = 50
_WASSERSTEIN = 1e-3  # what the squared distance to a normal distribution weighs beside the mean square
_WORTH = 0.95  # times the linear part's error is what the stacks have to reach
_SAMPLE = 4096  # blocks from which latents are turned and scaled
_PROBE = 256  # blocks at which the decoder's slope is taken
_REACH = 0.9  # of the largest latent is what the sample reaches
_CEILING = LARGEST_HIDDEN / 2**HIDDEN_BITS


def train(
    fields: Sequence[np.ndarray], architecture: Architecture, *, num_steps: int, seed: int, quiet: bool
) -> tuple[Encoder, Decoder]:
    """Train on fields (two or three axes, between -1 and 1) and return the network in whole numbers.

    It has no channels where the stacks have not learnt what is worth their weights and time.
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):  # the caller's generator is left alone
        torch.manual_seed(seed)
        blocks = _crops(fields, architecture, max(_SAMPLE, 4 * architecture.block_size), rng)
        network, linear = _Network(architecture, blocks), _Network(replace(architecture, channels=()), blocks)
        if not architecture.channels:
            return _exported(network, fields, rng)
        optimiser = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step / num_steps))
        for step in range(num_steps):
            x = torch.from_numpy(_crops(fields, architecture, _BATCH, rng))
            z = network.encode(x)
            error = (network.decode(z) - x).square().mean()
            optimiser.zero_grad()
            (error + _WASSERSTEIN * _distance_to_normal(z)).backward()
            optimiser.step()
            schedule.step()
            if not quiet and (step % 50 == 49 or step == num_steps - 1):
                share = 50 * math.sqrt(error.item())  # the range is 2
                end = "\n" if step == num_steps - 1 else ""
                text = f"\rtraining: step {step + 1} of {num_steps}, error {share:.2f} % of the range"
                print(text, end=end, file=sys.stderr, flush=True)  # noqa: T201
        with torch.no_grad():
            x = torch.from_numpy(_crops(fields, architecture, _SAMPLE, rng))
            errors = [(own.decode(own.encode(x)) - x).square().mean().sqrt().item() for own in (network, linear)]
            if not quiet:
                text = " and ".join(f"{50 * error:.2f} %" for error in errors)
                print(f"error of the network and of its linear part alone: {text}", file=sys.stderr)  # noqa: T201
            return _exported(network if errors[0] < _WORTH * errors[1] else linear, fields, rng)


def _rate(share: float) -> float:
    """Return the learning rate after this share of the steps, as a part of the largest."""
    return 0.01 + share / _WARM_UP if share < _WARM_UP else 0.5 + 0.5 * math.cos(math.pi * (share - 0.1) / 0.9)


def _distance_to_normal(z: torch.Tensor) -> torch.Tensor:
    """Return the squared sliced Wasserstein distance between latents and as many samples of a normal distribution."""
    directions = torch.randn(z.shape[1], _NUM_PROJECTIONS)
    directions /= directions.norm(dim=0)
    found, wanted = (side.sort(dim=0).values for side in (z @ directions, torch.randn(z.shape) @ directions))
    return (found - wanted).square().mean()


def _crops(
    fields: Sequence[np.ndarray], architecture: Architecture, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return blocks (float32[count, elements]) from anywhere in the fields."""
    dims, side = architecture.dims, architecture.block
    blocks = np.empty((count, side**dims), np.float32)
    for block, which in zip(blocks, rng.integers(len(fields), size=count), strict=True):
        field = fields[which]
        corner = [int(rng.integers(max(n - side, 0) + 1)) for n in field.shape]
        sides = (1,) * (field.ndim - dims) + (side,) * dims
        crop = field[tuple(slice(at, at + n) for at, n in zip(corner, sides, strict=True))]
        padding = [(0, n - m) for n, m in zip(sides, crop.shape, strict=True)]
        block[:] = np.pad(crop, padding, mode="edge").reshape(-1)
    return blocks


class _Network(nn.Module):
    """The network in real numbers. Channels come last where a dense layer joins, as in the format."""

    def __init__(self, architecture: Architecture, blocks: np.ndarray) -> None:
        super().__init__()
        self.architecture = architecture
        mean = blocks.mean(axis=0, dtype=np.float64)
        variance, components = np.linalg.eigh((blocks - mean).T.astype(np.float64) @ (blocks - mean) / len(blocks))
        latent = min(architecture.latent, architecture.block_size)
        deviation = np.sqrt(np.maximum(variance[::-1][:latent], 1e-9 * variance[-1] + 1e-12))
        components = components[:, ::-1][:, :latent]
        self.mean = torch.from_numpy(mean.astype(np.float32))
        self.into = torch.zeros(architecture.block_size, architecture.latent)
        self.out_of = torch.zeros(architecture.latent, architecture.block_size)
        self.into[:, :latent] = torch.from_numpy((components / deviation).astype(np.float32))
        self.out_of[:latent] = torch.from_numpy((components * deviation).T.astype(np.float32))
        if not architecture.channels:
            return
        dims, channels = architecture.dims, architecture.channels
        convolution, doubling = ((nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d))[dims - 2]
        self.halvings, self.doublings = nn.ModuleList(), nn.ModuleList()
        for before, own in zip((1, *channels), channels, strict=False):
            self.halvings += [convolution(before, own, 2, 2), convolution(own, own, 3, padding=1)]
        self.to_latent = nn.Linear(architecture.hidden, architecture.latent)
        self.from_latent = nn.Linear(architecture.latent, architecture.hidden)
        for before, own in zip(channels[:0:-1], channels[-2::-1], strict=True):
            self.doublings += [doubling(before, own, 2, 2), convolution(own, own, 3, padding=1)]
        self.doublings.append(doubling(channels[0], 1, 2, 2))
        for last in (self.to_latent, self.doublings[-1]):  # start from the linear part alone
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        linear = (x - self.mean) @ self.into
        if not self.architecture.channels:
            return linear
        a = x.reshape(-1, 1, *(self.architecture.block,) * self.architecture.dims)
        for layer in self.halvings:
            a = layer(a).clamp(0, _CEILING)
        return linear + self.to_latent(a.movedim(1, -1).flatten(1))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        architecture = self.architecture
        linear = self.mean + z @ self.out_of
        if not architecture.channels:
            return linear
        side = (architecture.block >> len(architecture.channels),) * architecture.dims
        a = self.from_latent(z).clamp(0, _CEILING).reshape(-1, *side, architecture.channels[-1]).movedim(-1, 1)
        for layer in self.doublings[:-1]:
            a = layer(a).clamp(0, _CEILING)
        return linear + self.doublings[-1](a).flatten(1)


def _exported(network: _Network, fields: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[Encoder, Decoder]:
    """Return the network in whole numbers, its latents turned and scaled."""
    architecture = network.architecture
    z = network.encode(torch.from_numpy(_crops(fields, architecture, _SAMPLE, rng)))
    centre = z.mean(dim=0)
    turn = _turn(network, z, centre)
    turned = (z - centre).double() @ turn
    unit = _REACH * LARGEST_LATENT / max(float(turned.abs().max()), 1e-9)  # latent units for a unit of error
    turn, back, centre = turn * unit, torch.linalg.inv(turn) / unit, centre.double()
    hidden, output = 2.0**HIDDEN_BITS, 2.0**OUTPUT_BITS
    encoder: list[Layer] = []
    decoder: list[Layer] = []
    if architecture.channels:
        for layer in network.halvings:
            first = not encoder
            scale = 2.0**INPUT_BITS if first else hidden
            encoder.append(_layer(*_matrix(layer), scale, hidden, LARGEST_INPUT if first else LARGEST_HIDDEN))
        weight, bias = network.to_latent.weight.double(), network.to_latent.bias.double()
        encoder.append(_layer(weight.T @ turn, bias @ turn, hidden, 1.0, LARGEST_HIDDEN))
        weight, bias = network.from_latent.weight.double(), network.from_latent.bias.double()
        decoder.append(_layer(back @ weight.T, weight @ centre + bias, 1.0, hidden, LARGEST_LATENT))
        for layer in network.doublings[:-1]:
            decoder.append(_layer(*_matrix(layer), hidden, hidden, LARGEST_HIDDEN))
        decoder.append(_layer(*_matrix(network.doublings[-1]), hidden, output, LARGEST_HIDDEN))
    into, out_of, mean = network.into.double() @ turn, network.out_of.double(), network.mean.double()
    offset = -(mean @ into) - centre @ turn
    linear = _layer(back @ out_of, centre @ out_of + mean, 1.0, output, LARGEST_LATENT)
    exact = Encoder(
        architecture,
        Stack(architecture.encoder, encoder),
        into.numpy().astype(np.float32),
        offset.numpy().astype(np.float32),
        unit,
    )
    stacks = Stack(architecture.decoder, decoder), Stack([architecture.linear], [linear])
    return exact, Decoder(architecture, *stacks, _regression(exact, fields))


def _turn(network: _Network, z: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Return the matrix that makes latents uncorrelated, and errors in each cost alike, by falling variance."""
    probe, step = z[:_PROBE], 0.1 * z.std(dim=0)
    slopes = []
    for component, size in enumerate(step.tolist()):
        there = torch.zeros_like(probe)
        there[:, component] = max(size, 1e-6)
        slopes.append((network.decode(probe + there) - network.decode(probe - there)) / (2 * max(size, 1e-6)))
    slope = torch.stack(slopes, dim=1).double()
    values, vectors = torch.linalg.eigh(torch.einsum("nip,njp->ij", slope, slope) / len(slope))
    root = vectors * values.clamp(min=1e-6 * float(values.max()) + 1e-12).sqrt() @ vectors.T
    even = (z - centre).double() @ root
    _, order = torch.linalg.eigh(even.T @ even)
    return root @ order.flip(1)


def _matrix(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights [fan-in, width] and biases of a layer at each of its places, in the format's order."""
    weight, bias = layer.weight.double(), layer.bias.double()
    if isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d):
        return weight.movedim(1, -1).flatten(1), bias.repeat(weight[0, 0].numel())
    return weight.movedim((0, 1), (-1, -2)).flatten(0, -2), bias


def _layer(weight: torch.Tensor, bias: torch.Tensor, scale_in: float, scale_out: float, largest: int) -> Layer:
    """Return a layer in whole numbers, for inputs and outputs that count in 1 / `scale_in` and 1 / `scale_out`.

    For each output the weights are multiplied by the largest power of two with which they fit a byte and sums stay
    exact.
    """
    w, b = weight.numpy() * (scale_out / scale_in), bias.numpy() * scale_out
    weights, biases = np.zeros(w.shape, np.int8), np.zeros(b.size, np.int32)
    shifts = np.zeros(b.size, np.uint8)
    for c in range(b.size):
        for shift in range(MAX_SHIFT, -1, -1):
            scaled = np.rint(w[:, c : c + 1] * 2.0**shift)
            start = np.rint(b[c : c + 1] * 2.0**shift) + (1 << shift >> 1)
            fits = np.abs(scaled).max() <= 127 and largest_sum(scaled, start, largest) < EXACT
            if fits or shift == 0:
                break
        weights[:, c] = np.clip(scaled[:, 0], -127, 127)
        biases[c], shifts[c] = np.clip(start[0], -(2**22), 2**22), shift
    return Layer(weights, biases, shifts)


def _regression(encoder: Encoder, fields: Sequence[np.ndarray]) -> np.ndarray:
    """Return the weights by which the latents of blocks side by side tell one another: int32[3, latent, latent]."""
    architecture = encoder.architecture
    num = architecture.latent
    gram, moments = np.zeros((3 * num, 3 * num)), np.zeros((3 * num, num))
    for field in fields[:: max(len(fields) // 4, 1)]:
        blocking = Blocking.of(field.shape, architecture.dims, architecture.block)
        grid = encoder.latents(blocking.cut(field)).astype(np.float64).reshape(*blocking.grid, num)
        before = np.zeros((3, *grid.shape))
        before[0, 1:], before[1, :, 1:], before[2, :, :, 1:] = grid[:-1], grid[:, :-1], grid[:, :, :-1]
        before[: 3 - architecture.dims] = 0
        vectors = before.transpose(1, 2, 3, 0, 4).reshape(-1, 3 * num)
        gram += vectors.T @ vectors
        moments += vectors.T @ grid.reshape(-1, num)
    gram.flat[:: 3 * num + 1] += 1e-3 * np.trace(gram) / (3 * num) + 1e-9
    solution = np.linalg.solve(gram, moments).reshape(3, num, num).transpose(0, 2, 1)
    return np.ascontiguousarray(np.clip(np.rint(solution * ONE), -127, 127), np.int32)
