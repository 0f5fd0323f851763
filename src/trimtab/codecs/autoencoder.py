"""Autoencoder: a small convolutional network in whole numbers, whose decoder gives the same bits everywhere.

A block of ``block`` elements along each of ``dims`` axes becomes ``latent`` numbers and back. Both halves are the sum
of a linear part and of a stack of layers, which is left out where there are no ``channels``. The encoder's stack halves
the resolution once for each entry of ``channels``, by a layer that sees blocks of 2 along each axis (width: the entry)
and one that sees the 3 around each point, and ends in a dense layer. The decoder's begins with a dense layer and
doubles the resolution as often: each point gives 2 along each axis, then a layer sees the 3 around each point; the last
doubling gives one number a point and has no such layer. All layers but the last of each clip to 0 ... 1023 (a rectifier
with a ceiling); the last of the decoder's, its linear part and the sum of both clip to -4096 ... 4096. Numbers are
whole (`trimtab.kernels.layer`): inputs and hidden numbers count in 2^-9 and 2^-8, outputs in 2^-12, latents in a unit
of the model's own, up to 2047.

The bytes of a half, numbers little-endian: uint8 version 1; uint8 dims (2 or 3); uint8 block; uint8 latent; uint8
number of channels; a uint16 each; then one zstd frame that states its content size: for each layer the weights, int8
[fan-in, width]; the biases, int32, with the half that rounds; the shifts, uint8, at most 24. The decoder's linear part
is one more layer, behind the others, that sees the latents and gives the elements of the block in C order. Inputs of a
layer stand channel by channel for each point, points in C order; those of a halving or a convolution, for each of the 2
or 3 per axis points in C order. A doubling's outputs stand likewise. At the end of the decoder's frame stand the
weights of the latents' regression (`trimtab.kernels.regression`), int8[dims, latent, latent], for the last axes, in
units of 1/128. At that of the encoder's stands its linear part, which need not be exact: float32[elements, latent] for
the elements from -1 to 1, float32[latent] to add, and a float32, by how much a latent changes for a block to change by
1 (root of the sum of squares). The name of a model is the BLAKE2b digest, 16 bytes in hex, of the decoder's bytes with
the frame decompressed.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trimtab import kernels
from trimtab.codecs.sections import deflate, inflate
from trimtab.errors import Corrupt, UsageError
from trimtab.kernels.layer.ref import EXACT, largest_sum

INPUT_BITS, HIDDEN_BITS, OUTPUT_BITS = 9, 8, 12
"""The binary places of what goes into the encoder, between layers, and out of the decoder."""

LARGEST_INPUT, LARGEST_HIDDEN, LARGEST_LATENT, LARGEST_OUTPUT = 1023, 1023, 2047, 1 << OUTPUT_BITS
MAX_SHIFT = 24
_MAX_BLOCK = 4096  # elements
_MAX_TABLE = 1 << 22  # entries of a layer's index
_BATCH = 64  # blocks at a time: what passes between layers stays in the cache
_HEAD = struct.Struct("<5B")


@dataclass(frozen=True)
class Architecture:
    """What the layers of a network look like; see the module's docstring."""

    dims: int = 3
    block: int = 8
    latent: int = 16
    channels: tuple[int, ...] = (24, 48)

    def __post_init__(self) -> None:
        halvings = len(self.channels)
        if self.dims not in (2, 3):
            raise UsageError(f"an autoencoder has 2 or 3 dims, got {self.dims}")
        if halvings > 5 or not all(1 <= width <= 1024 for width in self.channels):
            raise UsageError(f"channels are up to 5 numbers from 1 to 1024, got {self.channels}")
        if self.block < 1 or self.block % 2**halvings or self.block**self.dims > _MAX_BLOCK:
            raise UsageError(
                f"block must be a multiple of {2**halvings} for {halvings} channels, and have at most {_MAX_BLOCK} "
                f"elements, got {self.block} along each of {self.dims} axes"
            )
        if not 1 <= self.latent <= 255:
            raise UsageError(f"latent is a number from 1 to 255, got {self.latent}")
        sizes = [
            (self.block >> level) ** self.dims * width * 3**self.dims for level, width in enumerate(self.channels, 1)
        ]
        if max(sizes, default=0) > _MAX_TABLE or self.hidden * self.latent > _MAX_TABLE:
            raise UsageError(f"channels {self.channels} are too wide for blocks of {self.block}; take fewer")

    @property
    def block_size(self) -> int:
        """Elements of a block."""
        return self.block**self.dims

    @property
    def hidden(self) -> int:
        """How many numbers the dense layers see or give."""
        return (self.block >> len(self.channels)) ** self.dims * self.channels[-1] if self.channels else 0

    @cached_property
    def encoder(self) -> list[Connections]:
        """The layers of the encoder's stack."""
        if not self.channels:
            return []
        found, width, side = [], 1, self.block
        order = np.arange(side**self.dims)
        for channels in self.channels:
            side //= 2
            found.append(Connections(_pooled(order, side, self.dims, width), channels))
            order = np.arange(side**self.dims)
            found.append(Connections(_around(order, side, self.dims, channels), channels))
            width = channels
        found.append(Connections(_whole(self.hidden), self.latent))
        return found

    @cached_property
    def decoder(self) -> list[Connections]:
        """The layers of the decoder's stack."""
        if not self.channels:
            return []
        found = [Connections(_whole(self.latent), self.hidden)]
        width, side = self.channels[-1], self.block >> len(self.channels)
        for channels in (*self.channels[-2::-1], 1):
            found.append(Connections(_points(side**self.dims, width), channels * 2**self.dims))
            side *= 2
            if side < self.block:
                found.append(Connections(_around(_scattered(side, self.dims), side, self.dims, channels), channels))
            width = channels
        return found

    @cached_property
    def linear(self) -> Connections:
        """The decoder's linear part."""
        return Connections(_whole(self.latent), self.block_size)

    @cached_property
    def output_order(self) -> np.ndarray:
        """Where the outputs of the decoder's stack hold each element of a block in C order."""
        return _scattered(self.block, self.dims)


@dataclass(frozen=True)
class Connections:
    """Which inputs each place of a layer sees (int32[places, fan-in]), and how many outputs it has."""

    index: np.ndarray
    width: int

    @property
    def fan_in(self) -> int:
        return self.index.shape[1]


@dataclass(frozen=True)
class Layer:
    """The parameters of one layer: `weights` int8[fan-in, width], `bias` int32[width], `shift` uint8[width]."""

    weights: np.ndarray
    bias: np.ndarray
    shift: np.ndarray

    @property
    def sections(self) -> list[bytes]:
        return [self.weights.tobytes(), self.bias.astype("<i4").tobytes(), self.shift.tobytes()]


class Stack:
    """Layers with their parameters, one behind the other."""

    def __init__(self, connections: list[Connections], layers: list[Layer]) -> None:
        self.connections, self.layers = connections, layers
        self._ready = [
            (
                layer.weights.astype(np.float32),
                layer.bias.astype(np.float32),
                np.ldexp(np.float32(1), -layer.shift.astype(np.int32)),
            )
            for layer in layers
        ]

    def run(self, inputs: np.ndarray, largest: int) -> np.ndarray:
        """Return the outputs (float32[n, m]), up to `largest`, for inputs (float32[n, k]); all are whole numbers."""
        forward = kernels.load("layer").forward
        last = len(self.layers) - 1
        results = np.empty((len(inputs), len(self.connections[-1].index) * self.connections[-1].width), np.float32)
        for start in range(0, len(inputs), _BATCH):
            part = inputs[start : start + _BATCH]
            a = np.zeros((len(part), part.shape[1] + 1), np.float32)
            a[:, :-1] = part
            for number, (connections, parameters) in enumerate(zip(self.connections, self._ready, strict=True)):
                out = np.empty((len(a), len(connections.index) * connections.width + 1), np.float32)
                low, high = (-largest, largest) if number == last else (0, LARGEST_HIDDEN)
                forward(a, connections.index, *parameters, low, high, out)
                a = out
            results[start : start + len(part)] = a[:, :-1]
        return results


@dataclass(frozen=True)
class Decoder:
    """The half that a reader needs: latents to blocks, and latents from their neighbours' ones."""

    architecture: Architecture
    stack: Stack
    linear: Stack
    """One layer, beside the stack."""

    regression: np.ndarray
    """The weights by which latents are predicted: int32[3, latent, latent]."""

    @cached_property
    def name(self) -> str:
        """The digest of the decoder's bytes."""
        return hashlib.blake2b(_head(self.architecture) + self._body, digest_size=16).hexdigest()

    @property
    def _body(self) -> bytes:
        own = self.regression[3 - self.architecture.dims :].astype(np.int8)
        layers = [*self.stack.layers, *self.linear.layers]
        return b"".join([*itertools.chain(*(layer.sections for layer in layers)), own.tobytes()])

    def to_bytes(self) -> np.ndarray:
        """Return the bytes (uint8)."""
        return _join(self.architecture, self._body)

    @classmethod
    def from_bytes(cls, data: np.ndarray) -> Decoder:
        """Return the decoder that `to_bytes` made into bytes.

        Raises:
            Corrupt: they are not those of a decoder, or its sums might not be exact.
        """
        architecture = _architecture(data)
        extra = architecture.dims * architecture.latent**2
        body, at = _body(data, [*architecture.decoder, architecture.linear], extra), 0
        layers, at = _layers(body, at, architecture.decoder, LARGEST_LATENT)
        linear, at = _layers(body, at, [architecture.linear], LARGEST_LATENT)
        regression = np.zeros((3, architecture.latent, architecture.latent), np.int32)
        regression[3 - architecture.dims :] = body[at:].view(np.int8).reshape(-1, *regression.shape[1:])
        stacks = Stack(architecture.decoder, layers), Stack([architecture.linear], linear)
        return cls(architecture, *stacks, regression)

    def blocks(self, latents: np.ndarray) -> np.ndarray:
        """Return the blocks (float32[n, elements], whole numbers up to 2^12) of latents (integers[n, latent])."""
        inputs = np.clip(latents, -LARGEST_LATENT, LARGEST_LATENT).astype(np.float32)
        blocks = self.linear.run(inputs, LARGEST_OUTPUT)
        if self.stack.layers:
            blocks += self.stack.run(inputs, LARGEST_OUTPUT)[:, self.architecture.output_order]
            np.clip(blocks, -LARGEST_OUTPUT, LARGEST_OUTPUT, out=blocks)
        return blocks


@dataclass(frozen=True)
class Encoder:
    """The half that a writer needs besides: blocks to latents.

    `unit` is how far a latent has to change for the block to change by 1 in all, root of the sum of squares.
    """

    architecture: Architecture
    stack: Stack
    linear: np.ndarray
    """The linear part, float32[elements, latent], for elements from -1 to 1."""

    offset: np.ndarray
    """What is added, float32[latent]."""

    unit: float

    def to_bytes(self) -> np.ndarray:
        """Return the bytes (uint8)."""
        sections = itertools.chain(*(layer.sections for layer in self.stack.layers))
        reals = (self.linear, self.offset, np.float32(self.unit))
        return _join(self.architecture, b"".join([*sections, *(np.asarray(part, "<f4").tobytes() for part in reals)]))

    @classmethod
    def from_bytes(cls, data: np.ndarray) -> Encoder:
        """Return the encoder that `to_bytes` made into bytes.

        Raises:
            Corrupt: they are not those of an encoder, or its sums might not be exact.
        """
        architecture = _architecture(data)
        size, latent = architecture.block_size, architecture.latent
        body, at = _body(data, architecture.encoder, 4 * (latent * (size + 1) + 1)), 0
        layers, at = _layers(body, at, architecture.encoder, LARGEST_INPUT)
        reals = body[at:].copy().view("<f4").astype(np.float32)
        if not np.isfinite(reals).all() or reals[-1] <= 0:
            raise Corrupt("an encoder's linear part is not finite")
        linear, offset = reals[: latent * size].reshape(size, latent), reals[latent * size : -1]
        return cls(architecture, Stack(architecture.encoder, layers), linear, offset, float(reals[-1]))

    def latents(self, blocks: np.ndarray) -> np.ndarray:
        """Return the latents (float64[n, latent]) of blocks (float64[n, elements], about -1 to 1)."""
        latents = np.clip(blocks, -2, 2) @ self.linear.astype(np.float64) + self.offset
        if self.stack.layers:
            inputs = np.rint(np.clip(blocks * 2.0**INPUT_BITS, -LARGEST_INPUT, LARGEST_INPUT)).astype(np.float32)
            latents += self.stack.run(inputs, LARGEST_LATENT)
        return np.clip(latents, -LARGEST_LATENT, LARGEST_LATENT)


def _head(architecture: Architecture) -> bytes:
    a = architecture
    return _HEAD.pack(1, a.dims, a.block, a.latent, len(a.channels)) + np.array(a.channels, "<u2").tobytes()


def _join(architecture: Architecture, body: bytes) -> np.ndarray:
    return np.frombuffer(_head(architecture) + deflate(np.frombuffer(body, np.uint8)), np.uint8)


def _architecture(data: np.ndarray) -> Architecture:
    if data.size < _HEAD.size:
        raise Corrupt(f"a network of {data.size} bytes has no room for its head of {_HEAD.size}")
    version, dims, block, latent, halvings = _HEAD.unpack(data[: _HEAD.size].tobytes())
    if version != 1 or data.size < _HEAD.size + 2 * halvings:
        raise Corrupt(f"a network of version {version} with {halvings} channels in {data.size} bytes")
    channels = data[_HEAD.size : _HEAD.size + 2 * halvings].copy().view("<u2").tolist()
    try:
        return Architecture(dims, block, latent, tuple(channels))
    except UsageError as error:
        raise Corrupt(f"a network that cannot be: {error}") from None


def _size(connections: Connections) -> int:
    """Return the bytes of a layer's parameters."""
    return connections.width * (connections.fan_in + 5)


def _body(data: np.ndarray, connections: list[Connections], extra: int) -> np.ndarray:
    """Return what the frame of a half holds: the parameters of its layers and `extra` bytes."""
    start = _HEAD.size + 2 * int(data[4])
    return inflate(data[start:], "u1", sum(map(_size, connections)) + extra)


def _layers(body: np.ndarray, at: int, connections: list[Connections], largest: int) -> tuple[list[Layer], int]:
    """Return the layers of a stack whose inputs reach up to `largest`, from byte `at` on, and where they end."""
    layers = []
    for number, own in enumerate(connections):
        part = body[at : at + _size(own)]
        split = own.width * own.fan_in
        weights = part[:split].view(np.int8).reshape(own.fan_in, own.width)
        bias = part[split : split + 4 * own.width].copy().view("<i4").astype(np.int32)
        layer = Layer(weights, bias, part[split + 4 * own.width :])
        if layer.shift.max() > MAX_SHIFT or largest_sum(weights, bias, largest) >= EXACT:
            raise Corrupt(f"layer {number} of a network has sums that might not be exact")
        layers.append(layer)
        largest, at = LARGEST_HIDDEN, at + _size(own)
    return layers, at


def _whole(size: int) -> np.ndarray:
    """One place that sees everything."""
    return np.arange(size, dtype=np.int32)[None]


def _points(num: int, width: int) -> np.ndarray:
    """Each point sees its own channels."""
    return np.arange(num * width, dtype=np.int32).reshape(num, width)


def _pooled(order: np.ndarray, side: int, dims: int, width: int) -> np.ndarray:
    """Each point of a grid half as fine sees 2 points along each axis; `order` says where points stand."""
    grid = order.reshape((2 * side,) * dims)
    offsets = itertools.product(range(2), repeat=dims)
    near = np.stack([grid[tuple(slice(o, None, 2) for o in offset)].reshape(-1) for offset in offsets], axis=1)
    return _channels(near, width)


def _around(order: np.ndarray, side: int, dims: int, width: int) -> np.ndarray:
    """Each point sees the 3 around it along each axis; beyond the edge stands the zero after all inputs."""
    grid = np.pad(order.reshape((side,) * dims), 1, constant_values=-1)
    offsets = itertools.product(range(3), repeat=dims)
    near = np.stack([grid[tuple(slice(o, o + side) for o in offset)].reshape(-1) for offset in offsets], axis=1)
    index = _channels(near, width)
    index[index < 0] = order.size * width
    return index


def _scattered(side: int, dims: int) -> np.ndarray:
    """Where points in C order stand when each point of a grid half as fine has given 2 along each axis."""
    half = side // 2
    blocks = np.arange(side**dims).reshape((half,) * dims + (2,) * dims)
    axes = list(itertools.chain(*((k, dims + k) for k in range(dims))))
    return blocks.transpose(axes).reshape(-1)


def _channels(points: np.ndarray, width: int) -> np.ndarray:
    """Return the inputs of points: `width` channels each."""
    index = points[:, :, None] * width + np.where(points >= 0, 1, 0)[:, :, None] * np.arange(width)
    return index.reshape(len(points), -1).astype(np.int32)
