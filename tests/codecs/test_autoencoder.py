"""The autoencoder in whole numbers: what a decoder gives is that of other libraries, and damaged bytes are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import trimtab as tt
from tests.networks import pooling
from trimtab.codecs import aesz
from trimtab.codecs.aesz_training import train
from trimtab.codecs.autoencoder import (
    LARGEST_HIDDEN,
    LARGEST_LATENT,
    LARGEST_OUTPUT,
    Architecture,
    Decoder,
    Encoder,
    Stack,
)
from trimtab.codecs.blocking import Blocking
from trimtab.errors import Corrupt, UsageError

SHAPES = [
    Architecture(2, 8, 5, (3, 4)),
    Architecture(3, 8, 6, (4,)),
    Architecture(3, 4, 7, ()),
    Architecture(2, 16, 4, (2, 3, 4)),
]


def fields(dims: int, count: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(dims)
    walks = (rng.normal(0, 1, (24,) * dims) for _ in range(count))
    summed = [np.cumsum(np.cumsum(walk, 0), 1) for walk in walks]
    return [(2 * (x - x.min()) / (x.max() - x.min()) - 1).astype(np.float32) for x in summed]


def trained(architecture: Architecture, num_steps: int = 12) -> tuple[Encoder, Decoder]:
    return train(fields(architecture.dims), architecture, num_steps=num_steps, seed=3, quiet=True)


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def halves(request) -> tuple[Encoder, Decoder]:
    return trained(request.param)


def latents(decoder: Decoder, count: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(-LARGEST_LATENT, LARGEST_LATENT + 1, (count, decoder.architecture.latent))


def by_torch(decoder: Decoder, z: np.ndarray) -> np.ndarray:
    """Decode with PyTorch's own layers in float64, whose sums are exact far beyond those here."""
    architecture = decoder.architecture
    dims, channels = architecture.dims, architecture.channels
    own = torch.nn.functional
    convolve, double = ((own.conv2d, own.conv_transpose2d), (own.conv3d, own.conv_transpose3d))[dims - 2]

    def finished(sums: torch.Tensor, layer, low: float, high: float, axis: int) -> torch.Tensor:
        width = sums.shape[axis]
        shape = [width if k == axis else 1 for k in range(sums.dim())]
        bias, shift = (
            torch.from_numpy(part[:width].astype(np.float64)).reshape(shape) for part in (layer.bias, layer.shift)
        )
        return ((sums + bias) * 0.5**shift).floor().clamp(low, high)

    inputs = torch.from_numpy(z.astype(np.float64))
    linear = decoder.linear.layers[0]
    out = finished(
        inputs @ torch.from_numpy(linear.weights.astype(np.float64)), linear, -LARGEST_OUTPUT, LARGEST_OUTPUT, 1
    )
    if not channels:
        return out.numpy()
    first, *layers = decoder.stack.layers
    a = finished(inputs @ torch.from_numpy(first.weights.astype(np.float64)), first, 0, LARGEST_HIDDEN, 1)
    side = (architecture.block >> len(channels),) * dims
    a = a.reshape(-1, *side, channels[-1]).movedim(-1, 1)
    for number, layer in enumerate(layers):
        weights = torch.from_numpy(layer.weights.astype(np.float64))
        last = number == len(layers) - 1
        if number % 2:
            kernel = weights.reshape(*(3,) * dims, -1, weights.shape[1]).movedim((-1, -2), (0, 1))
            a = finished(convolve(a, kernel, padding=1), layer, 0, LARGEST_HIDDEN, 1)
            continue
        # children of a point share a shift only where the layer has one for all: take them one by one
        kernel = weights.reshape(weights.shape[0], *(2,) * dims, -1).movedim(-1, 1)
        sums = double(a, kernel, stride=2)
        children = layer.weights.shape[1] // kernel.shape[1]
        limits = (-LARGEST_OUTPUT, LARGEST_OUTPUT) if last else (0, LARGEST_HIDDEN)
        for child, offset in enumerate(np.ndindex(*(2,) * dims)):
            places = (slice(None), slice(None), *(slice(o, None, 2) for o in offset))
            span = slice(child * kernel.shape[1], (child + 1) * kernel.shape[1])
            part = type(layer)(layer.weights, layer.bias[span], layer.shift[span])
            sums[places] = finished(sums[places].clone(), part, *limits, 1)
        assert children == 2**dims
        a = sums
    return (out + a.flatten(1)).clamp(-LARGEST_OUTPUT, LARGEST_OUTPUT).numpy()


def test_the_decoder_is_that_of_another_library(halves):
    _, decoder = halves
    z = latents(decoder)
    assert np.array_equal(decoder.blocks(z), by_torch(decoder, z))


def test_nothing_depends_on_batches_or_back_ends(halves):
    encoder, decoder = halves
    z = latents(decoder, 70)
    blocks = decoder.blocks(z)
    assert np.array_equal(blocks[:3], decoder.blocks(z[:3]))
    x = np.random.default_rng(0).uniform(-1, 1, (5, decoder.architecture.block_size))
    with tt.backend("ref"):
        assert np.array_equal(decoder.blocks(z), blocks)
        again = encoder.latents(x)
    assert np.array_equal(encoder.latents(x), again)


def test_whole_numbers_cost_little():
    """What rounding the network adds to its error, in units of half the range."""
    architecture = Architecture(2, 8, 6, (6,))
    encoder, decoder = trained(architecture, 60)
    blocks = Blocking.of((24, 24), 2, 8).cut(fields(2)[0])
    error = np.sqrt(np.square(decoder.blocks(encoder.latents(blocks)) / LARGEST_OUTPUT - blocks).mean())
    coarse = np.sqrt(np.square(blocks - blocks.mean(axis=1, keepdims=True)).mean())
    assert error < 0.6 * coarse


def test_halves_come_back_from_their_bytes(halves):
    encoder, decoder = halves
    again = Decoder.from_bytes(decoder.to_bytes())
    z = latents(decoder)
    assert again.name == decoder.name
    assert np.array_equal(again.blocks(z), decoder.blocks(z))
    assert np.array_equal(again.regression, decoder.regression)
    x = np.random.default_rng(0).uniform(-1, 1, (5, decoder.architecture.block_size))
    assert np.array_equal(Encoder.from_bytes(encoder.to_bytes()).latents(x), encoder.latents(x))


def test_the_same_seed_gives_the_same_model():
    state = torch.random.get_rng_state()
    first, second = (trained(SHAPES[0])[1].name for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), state)


def test_damaged_bytes_are_refused(halves):
    encoder, decoder = halves
    for kind, half in ((Decoder, decoder), (Encoder, encoder)):
        data = half.to_bytes()
        for size in {*range(24), *range(24, data.size, 97)}:
            with pytest.raises(Corrupt):
                kind.from_bytes(data[:size])
        for byte in range(24):
            for value in (0, 1, 127, 255):
                damaged = data.copy()
                damaged[byte] = value
                try:
                    kind.from_bytes(damaged)
                except Corrupt:
                    continue


def test_sums_that_might_not_be_exact_are_refused():
    decoder = aesz._models[pooling(2).model].decoder
    first, *others = decoder.stack.layers
    bias = np.full_like(first.bias, 2**24)
    stack = Stack(decoder.stack.connections, [replace(first, bias=bias), *others])
    with pytest.raises(Corrupt, match="exact"):
        Decoder.from_bytes(replace(decoder, stack=stack).to_bytes())


@pytest.mark.parametrize(
    "settings",
    [
        {"dims": 4}, {"channels": (1,) * 6}, {"channels": (0,)}, {"block": 6}, {"block": 24}, {"latent": 0},
        {"latent": 256}, {"dims": 2, "block": 64, "channels": (1024,)},
    ],
    ids=str,
)  # fmt: skip
def test_networks_that_cannot_be(settings):
    with pytest.raises(UsageError):
        Architecture(**settings)


@pytest.mark.parametrize(("extents", "dims"), [((5, 17), 2), ((3, 9, 10), 2), ((9, 8, 17), 3), ((1, 1), 2)])
def test_blocks_cover_a_tile(extents, dims):
    x = np.arange(np.prod(extents)).reshape(extents)
    blocking = Blocking.of(extents, dims, 8)
    blocks = blocking.cut(x)
    assert blocks.shape == (blocking.num_blocks, 8**dims)
    assert np.array_equal(blocking.join(blocks).reshape(extents), x)
    assert blocking.spread(np.arange(blocking.num_blocks)).max() == blocking.num_blocks - 1
