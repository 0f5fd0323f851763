"""A network by formula, without training: its latents are means of parts of a block, and it decodes to these."""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.codecs import AESZ
from trimtab.codecs.autoencoder import Architecture, Connections, Decoder, Encoder, Layer, Stack


def pooling(dims: int, *, block: int = 8, halvings: int = 2, **settings: Any) -> AESZ:
    """Return the codec of a network whose hidden channels are the positive and the negative part of a mean."""
    side, children = block >> halvings, 2**dims
    latent = side**dims
    architecture = Architecture(dims, block, latent, (2,) * halvings)
    signs = np.array([1, -1], np.int8)
    centre = 3**dims // 2

    def layer(own: Connections, weights: np.ndarray, shift: int) -> Layer:
        assert weights.shape == (own.fan_in, own.width)
        return Layer(weights.astype(np.int8), np.zeros(own.width, np.int32), np.full(own.width, shift, np.uint8))

    def around(own: Connections) -> Layer:  # each point sees itself
        weights = np.zeros((own.fan_in, own.width), np.int8)
        weights[2 * centre : 2 * centre + 2] = np.eye(2)
        return layer(own, weights, 0)

    halving, convolution, *others = architecture.encoder
    encoder = [layer(halving, np.tile(64 // children * signs, (children, 1)), 7), around(convolution)]
    for number, own in enumerate(others[:-1]):
        mean = np.tile(64 // children * np.eye(2, dtype=np.int8), (children, 1))
        encoder.append(around(own) if number % 2 else layer(own, mean, 6))
    encoder.append(layer(others[-1], np.kron(np.eye(latent), signs[:, None]), 0))
    first, *doublings = architecture.decoder
    decoder = [layer(first, np.kron(np.eye(latent), signs[None]), 0)]
    for own in doublings[:-1]:
        decoder.append(around(own) if own.fan_in != 2 else layer(own, np.tile(np.eye(2), children), 0))
    decoder.append(layer(doublings[-1], np.tile(16 * signs[:, None], (1, children)), 0))
    regression = np.zeros((3, latent, latent), np.int32)
    regression[2] = 100 * np.eye(latent)
    unit = 256 / np.sqrt(architecture.block_size / latent)
    silent = layer(architecture.linear, np.zeros((latent, architecture.block_size)), 0)
    stacks = Stack(architecture.decoder, decoder), Stack([architecture.linear], [silent])
    into = np.zeros((architecture.block_size, latent), np.float32)
    first_half = Encoder(architecture, Stack(architecture.encoder, encoder), into, np.zeros(latent, np.float32), unit)
    return AESZ.of(first_half, Decoder(architecture, *stacks, regression), **settings)


def required(codec_id: str) -> dict[str, Any]:
    """Return the settings that a codec cannot be made without."""
    return {"model": pooling(2).model} if codec_id == "aesz" else {}
