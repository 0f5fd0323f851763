"""One tile of an AE-SZ array, some of whose blocks are predicted by the network: floats to a payload of bytes and back.

Blocks cover the tile on a grid (`trimtab.codecs.blocking`), in C order. The payload, numbers little-endian:

- uint8 254; uint16 latent step D; five uint32: bytes of the kinds, of the latents' tokens and extra bits, of the means'
  tokens and extra bits
- kinds: a token block (`trimtab.kernels.ans`) of one token a block, a row the last axis of the grid; ``back`` is the
  length of its second axis, or 2 where the first is 1. Kind 0 is interpolated, 1 the network's, 2 constant
- latents, where there are blocks of kind 1: what `trimtab.kernels.regression` leaves of their latents, 0 for all other
  blocks. Component by component, each in ceil(n / 64) rows of 64 with zeros behind the n blocks of kind 1, they are
  tokens and extra bits (`trimtab.kernels.tokens`); ``back`` of the token block is the rows of a component. D times an
  integer, held within -2047 and 2047, is the latent that the decoder takes
- means, where there are blocks of kind 2: one row of integers m, each as the difference to the one before (modulo
  2^32), as tokens and extra bits; ``back`` is 2
- the payload of an interpolated tile (`trimtab.codecs.sz_interpolated`) of which kinds 1 and 2 are known beforehand

A number b that the network gives is known as (low / 2 + high / 2) + b ((high / 2 - low / 2) / 4096), the elements of a
constant block as m (step / 8), with low, high and step from the params; both in float64, rounded to the working dtype.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from trimtab import kernels
from trimtab.codecs.autoencoder import LARGEST_LATENT, LARGEST_OUTPUT, Decoder, Encoder
from trimtab.codecs.blocking import Blocking
from trimtab.codecs.interpolation import Interpolation, Prior, applies
from trimtab.codecs.sz_interpolated import INTERPOLATED, decode_interpolated, encode_interpolated, three_axes
from trimtab.codecs.sz_tokens import decode_tokens, encode_tokens
from trimtab.codecs.tiling import Tile
from trimtab.errors import Corrupt

AUTOENCODED = 254
"""The first byte of the payload of a tile that has blocks of the network's."""

Choice = Literal["bits", "l1", "network"]
"""How blocks choose: by estimated bits, by their predictions' absolute error (the paper's rule), or all alike."""

INTERPOLATION, NETWORK, CONSTANT = 0, 1, 2

_HEAD = struct.Struct("<BH5I")
_ROW = 64
_MEAN_STEPS = 8
_REACH = 2**30
_TRIALS = 4  # of latent steps in each direction
_MARGINS = (32.0, 4.0)  # bits that the network has to save in a block, as estimated: both are tried


@dataclass(frozen=True)
class Mixture:
    """What each block of a tile is: its kind (uint8), latents (int32[blocks, latent]) and mean (int32)."""

    kinds: np.ndarray
    latent_step: int
    latents: np.ndarray
    means: np.ndarray


@dataclass(frozen=True)
class MixedCoder:
    """Packs and unpacks one tile in blocks; `low`, `high` and `step` are the array's, `dtype` the working dtype."""

    tile: Tile
    decoder: Decoder
    low: float
    high: float
    step: float
    dtype: np.dtype

    @property
    def applies(self) -> bool:
        """Whether the tile can be cut into blocks and interpolated."""
        architecture = self.decoder.architecture
        fits = self.tile.lane == 1 and len(self.tile.extents) >= architecture.dims
        return fits and min(self.tile.extents) > 0 and applies(three_axes(self.tile))

    def encode(
        self, encoder: Encoder, flat: np.ndarray, limit: float, rival: int, choice: Choice
    ) -> tuple[np.ndarray, int] | None:
        """Return the payload (uint8) and the digest of what it decodes to.

        None if no block is the network's, or if too many elements miss the limit. `rival` is how many bytes the tile
        takes without the network; what does not take fewer by choice "bits" is None, too.
        """
        x = np.ascontiguousarray(self.tile.view(flat)).astype(self.dtype, copy=False).reshape(three_axes(self.tile))
        found = None
        for mixture in self._mixtures(encoder, x, limit, rival, choice):
            head = self._pack(mixture)
            prior = self._prior(mixture)
            coded = encode_interpolated(self.tile, self.dtype, flat, self.step, limit, prior)
            if coded is not None and (choice != "bits" or len(head) + coded[0].size < rival):
                rival = len(head) + coded[0].size
                found = np.concatenate([np.frombuffer(head, np.uint8), coded[0]]), coded[1]
        return found

    def decode(self, payload: np.ndarray, flat: np.ndarray) -> None:
        """Write the tile's elements into `flat`, the whole array in C order.

        Raises:
            Corrupt: the payload contradicts itself.
        """
        if not self.applies:
            raise Corrupt(f"a tile of extents {self.tile.extents} has no blocks of {self._blocking.sides}")
        mixture, rest = self._unpack(payload)
        if not rest.size or rest[0] != INTERPOLATED:
            raise Corrupt("a tile in blocks is not interpolated")
        decode_interpolated(rest, self.tile, self.dtype, flat, self._prior(mixture))

    def count(self, payload: np.ndarray) -> np.ndarray:
        """Return how many blocks of each kind there are in a tile (int64[3]).

        Raises:
            Corrupt: the payload contradicts itself.
        """
        if not payload.size or payload[0] != AUTOENCODED:
            return np.array([self._blocking.num_blocks, 0, 0])
        return np.bincount(self._unpack(payload)[0].kinds, minlength=3)

    @property
    def _blocking(self) -> Blocking:
        architecture = self.decoder.architecture
        return Blocking.of(three_axes(self.tile), architecture.dims, architecture.block)

    # what blocks are

    def _mixtures(self, encoder: Encoder, x: np.ndarray, limit: float, rival: int, choice: Choice) -> Iterator[Mixture]:
        """Yield what the blocks of a tile may be, as far as estimates tell; nothing where none is the network's.

        The step of the latents is doubled or halved from a start for as long as that helps.
        """
        blocking, snap = self._blocking, 2 * limit <= self.step
        interpolation = Interpolation(x.shape, self.step, self.dtype)
        centre, reach = self.low / 2 + self.high / 2, self.high / 2 - self.low / 2
        blocks = blocking.cut(np.where(np.isfinite(x), x, np.array(centre, self.dtype)))
        exact = encoder.latents((blocks.astype(np.float64) - centre) / reach)
        start = float(encoder.unit) * limit / reach * math.sqrt(blocks.shape[1] / exact.shape[1])
        means, constant_bits = self._means(blocks, limit)

        def all_network(latent_step: int) -> Mixture:
            latents = np.rint(exact / latent_step).astype(np.int32)
            return Mixture(np.full(len(blocks), NETWORK, np.uint8), latent_step, latents, means)

        if choice == "network":
            yield all_network(_latent_step(start))
            return
        codes, y = interpolation.codes(x, snap)
        own = _bits(blocking.cut(codes))
        scale = min(8 * rival / max(own.sum(), 1.0), 1.0)  # contexts save more than estimates know
        missed = np.abs(blocks - blocking.cut(y.astype(np.float64) - codes * self.step)).sum(axis=1)

        def trial(latent_step: int) -> tuple[float, np.ndarray, Mixture]:
            mixture = all_network(latent_step)
            prior = self._prior(mixture)
            network = scale * _bits(blocking.cut(interpolation.codes(x, snap, prior)[0])) + self._latent_bits(mixture)
            rivals = np.stack([scale * own, network, constant_bits])
            if choice == "l1":
                better = np.abs(blocks - blocking.cut(prior.values)).sum(axis=1) < missed
                rivals[0, better], rivals[1, ~better], rivals[2] = np.inf, np.inf, np.inf
            return float(rivals.min(axis=0).sum()), rivals, mixture

        rivals, mixture = _best(trial, _latent_step(start))
        for margin in _MARGINS if choice == "bits" else (0.0,):
            kinds = np.argmin(rivals + np.array([[0.0], [margin], [margin]]), axis=0).astype(np.uint8)
            if (kinds == NETWORK).any():
                yield replace(mixture, kinds=kinds)

    def _means(self, blocks: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
        """Return each block's mean, as a number of steps of means (int32), and about how many bits it takes.

        They are infinite where the block is not as good as constant.
        """
        wide = blocks.astype(np.float64)
        with np.errstate(over="ignore"):
            mean = np.rint(wide.mean(axis=1) / (self.step / _MEAN_STEPS))
        fits = (wide.max(axis=1) - wide.min(axis=1) <= limit) & (np.abs(mean) < _REACH)
        mean = np.where(fits, mean, 0)
        bits = 1 + 2 * np.log2(1 + np.abs(np.diff(mean, prepend=0)))
        return mean.astype(np.int32), np.where(fits, bits, np.inf)

    def _latent_bits(self, mixture: Mixture) -> np.ndarray:
        """Return about how many bits each block's latents take, were all blocks the network's."""
        latents = mixture.latents
        residual = self._residual(latents, np.ones(len(latents), np.uint8))
        bits = np.zeros(len(latents))
        for component in np.clip(residual, -2047, 2047).T + 2047:
            counts = np.bincount(component, minlength=1)
            bits += np.log2(len(latents) / counts[component])
        return bits

    def _residual(self, latents: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return what predictions from blocks before leave of latents (int32[blocks, latent])."""
        grid = latents.reshape(*self._blocking.grid, -1).copy()
        residual = np.empty_like(grid)
        kernels.load("regression").encode(grid, known.reshape(grid.shape[:3]), self.decoder.regression, residual)
        return residual.reshape(latents.shape)

    def _prior(self, mixture: Mixture) -> Prior:
        """Return what kinds, latents and means tell of the tile's elements."""
        blocking, decoder = self._blocking, self.decoder
        of_network, constant = mixture.kinds == NETWORK, mixture.kinds == CONSTANT
        values = np.zeros((blocking.num_blocks, decoder.architecture.block_size), self.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            if of_network.any():
                whole = decoder.blocks(mixture.latents[of_network].astype(np.int64) * mixture.latent_step)
                unit = (self.high / 2 - self.low / 2) / LARGEST_OUTPUT
                values[of_network] = (self.low / 2 + self.high / 2) + whole.astype(np.float64) * unit
            values[constant] = (mixture.means[constant] * (self.step / _MEAN_STEPS))[:, None]
        known = blocking.spread((mixture.kinds != INTERPOLATION).astype(np.uint8))
        return Prior(blocking.join(values), known)

    # bytes

    def _pack(self, mixture: Mixture) -> bytes:
        grid = self._blocking.grid
        of_network = mixture.kinds == NETWORK
        sections = [encode_tokens(mixture.kinds.reshape(grid[0] * grid[1], grid[2]), self._back).tobytes()]
        residual = self._residual(mixture.latents, of_network.astype(np.uint8))[of_network]
        rows = -(-len(residual) // _ROW)
        padded = np.zeros((residual.shape[1], rows * _ROW), np.int32)
        padded[:, : len(residual)] = residual.T
        sections += _pack_integers(padded.reshape(-1, _ROW), rows)
        means = mixture.means[mixture.kinds == CONSTANT]
        sections += _pack_integers(np.diff(means, prepend=np.int32(0)).astype(np.int32)[None], 2)
        return _HEAD.pack(AUTOENCODED, mixture.latent_step, *map(len, sections)) + b"".join(sections)

    def _unpack(self, payload: np.ndarray) -> tuple[Mixture, np.ndarray]:
        """Return what a payload says of the blocks, and what follows."""
        if payload.size < _HEAD.size:
            raise Corrupt(f"a tile in blocks of {payload.size} bytes has no room for its head of {_HEAD.size}")
        _, latent_step, *lengths = _HEAD.unpack(payload[: _HEAD.size].tobytes())
        if not 1 <= latent_step <= LARGEST_LATENT or _HEAD.size + sum(lengths) > payload.size:
            raise Corrupt(f"a tile's head does not fit it: latent step {latent_step}, sections of {lengths} bytes")
        ends = np.cumsum([_HEAD.size, *lengths])
        first, latent_tokens, latent_extra, tokens, extra = (payload[a:b] for a, b in itertools.pairwise(ends))
        grid, latent = self._blocking.grid, self.decoder.architecture.latent
        kinds = np.empty((grid[0] * grid[1], grid[2]), np.uint8)
        decode_tokens(first, self._back, kinds)
        kinds = kinds.reshape(-1)
        if kinds.max() > CONSTANT:
            raise Corrupt(f"a block is of kind {kinds.max()}")
        of_network, constant = kinds == NETWORK, kinds == CONSTANT
        num = int(of_network.sum())
        rows = -(-num // _ROW)
        latents = np.zeros((*grid, latent), np.int32)
        residual = _unpack_integers(latent_tokens, latent_extra, (latent * rows, _ROW), rows).reshape(latent, -1)
        latents.reshape(-1, latent)[of_network] = residual[:, :num].T
        kernels.load("regression").decode(latents, self.decoder.regression)
        means = np.zeros(kinds.size, np.int32)
        differences = _unpack_integers(tokens, extra, (1, int(constant.sum())), 2)
        means[constant] = np.cumsum(differences[0], dtype=np.int32)
        return Mixture(kinds, latent_step, latents.reshape(-1, latent), means), payload[ends[-1] :]

    @property
    def _back(self) -> int:
        """Rows back to the row of the plane before, or two rows where there is none."""
        grid = self._blocking.grid
        return grid[1] if grid[0] > 1 else 2


def _latent_step(step: float) -> int:
    return round(min(max(step, 1.0), float(LARGEST_LATENT)))


def _best(trial: Callable[[int], tuple[float, np.ndarray, Mixture]], step: int) -> tuple[np.ndarray, Mixture]:
    """Return what the best trial found, from a latent step on that is doubled, else halved, while that helps."""
    least, rivals, mixture = trial(step)
    for factor in (2.0, 0.5):
        helped = False
        for _ in range(_TRIALS):
            following = _latent_step(step * factor)
            if following == step:
                break
            bits, other_rivals, other = trial(following)
            if bits >= least:
                break
            step, least, helped = following, bits, True
            rivals, mixture = other_rivals, other
        if helped:
            break
    return rivals, mixture


def _bits(codes: np.ndarray) -> np.ndarray:
    """Return about how many bits blocks of codes take: those of a geometric distribution of their mean, and signs."""
    magnitudes = np.abs(codes.astype(np.float64))
    mean = magnitudes.mean(axis=1)
    entropy = (1 + mean) * np.log2(1 + mean) - mean * np.log2(np.maximum(mean, 1e-300))
    return codes.shape[1] * entropy + np.count_nonzero(codes, axis=1)


def _pack_integers(rows: np.ndarray, back: int) -> list[bytes]:
    """Return the sections of integers (int32[m, n]): tokens and extra bits, both empty where there are none."""
    if not rows.size:
        return [b"", b""]
    coder = kernels.load("tokens")
    tokens, extra = np.empty(rows.shape, np.uint8), np.empty(coder.max_extra_size(rows.size), np.uint8)
    size = coder.encode(rows, 0, tokens, extra)
    return [encode_tokens(tokens, back).tobytes(), extra[:size].tobytes()]


def _unpack_integers(block: np.ndarray, extra: np.ndarray, shape: tuple[int, int], back: int) -> np.ndarray:
    """Return the integers (int32) in two sections.

    Raises:
        Corrupt: the sections are not those of so many.
    """
    rows = np.zeros(shape, np.int32)
    if not rows.size:
        if block.size or extra.size:
            raise Corrupt("a tile has integers of blocks that there are none of")
        return rows
    tokens = np.empty(shape, np.uint8)
    decode_tokens(block, back, tokens)
    if kernels.load("tokens").decode(tokens, extra, 0, rows) != 0:
        raise Corrupt("a tile's extra bits do not match its tokens")
    return rows
