"""AE-SZ: an autoencoder as the predictor of an error-bounded codec (Liu et al., CLUSTER 2021, arXiv 2105.11730).

A small network, trained once on earlier snapshots of a field, predicts blocks from a few numbers each; blocks where it
does not help are interpolated, or constant. What predictions miss is coded as SZ codes it, so that the bound holds
whatever the network does. Differences from the paper:

- the decoder's network runs in whole numbers (`trimtab.codecs.autoencoder`): it gives the same bits on every machine,
  for any number of threads and any library, and so the bound that was verified while packing holds everywhere;
- blocks choose by estimated bits, those of their latents included; the paper's rule, by the sum of absolute errors, is
  ``choice="l1"``. The rival is the fitted interpolation of SZ's level "ratio", where the paper has Lorenzo; of whole
  tiles, SZ's other predictors as well. What the network misses in a block is interpolated from what it misses nearby;
- latents are turned and scaled after training so that they are uncorrelated and errors cost alike in all, predicted
  from those of the blocks before, and coded in contexts; their step starts at the bound's share for a block and is then
  doubled or halved while that helps, where the paper takes a tenth of the bound in the latents' own range;
- both halves have a linear part beside their layers, principal components, so that minutes of training on a processor
  do where the paper takes hours on a graphics card; layers that learn nothing beyond it are dropped;
- convolutions of stride 2 see 2 points along each axis, not 3; rectifiers with a ceiling stand for GDN;
- means, kinds of blocks, latents and weights all stand in the file and count.

The entry
=========
What the network does not shorten, weights included, is stored by codec "sz" (or as that stores it). Else the array is
folded and cut into tiles as in codec "sz". params: ``step``, a positive float64; ``low`` and ``high``, float64, with
low < high. The codec's own settings name the model, and tell whether its decoder is in the entry.

- ``tiles``, ``data``: the payloads of the tiles, as in codec "sz" with scale "linear". One that begins with the byte
  254 is that of a tile in blocks (`trimtab.codecs.aesz_tile`)
- ``model``, with weights "inline" only: the bytes of the decoder (`trimtab.codecs.autoencoder`)

A model's own file is a packed file with entries ``decoder`` and ``encoder``, the bytes of both halves (uint8).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.bounds import Abs, Bound, Lossless, Rel
from trimtab.codecs.aesz_tile import AUTOENCODED, Choice, MixedCoder
from trimtab.codecs.autoencoder import Architecture, Decoder, Encoder
from trimtab.codecs.codec import describe, make_codec
from trimtab.codecs.enec import ENEC
from trimtab.codecs.sz import SZ
from trimtab.codecs.sz_plan import Params as BaseParams
from trimtab.codecs.sz_tile import WORKING_DTYPES, TileCoder, widened
from trimtab.codecs.tiling import Fold, Tile, tile_payloads
from trimtab.dtypes import FLOATS, numpy_dtype
from trimtab.errors import BackendUnavailable, Corrupt, FormatError, UsageError
from trimtab.files import Reader, Writer, checksum
from trimtab.packed import Header, Packed, digest

Weights = Literal["inline", "shared"]
"""Where a packed array has the decoder from: its own entry, or the models that the reader has loaded."""

_CHANNELS = {2: (16, 32, 64), 3: (24, 48)}
_BLOCKS = {2: 32, 3: 8}
_BASE = SZ(level="ratio")


@dataclass(frozen=True)
class _Model:
    decoder: Decoder
    encoder: Encoder


_models: dict[str, _Model] = {}
"""The models that `AESZ.fit` and `AESZ.load` have brought into this process, by name."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the decoder has to know of an array."""

    step: Annotated[float, msgspec.Meta(gt=0)]
    low: float
    high: float


class AESZ(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="id", tag="aesz"):
    """Pack fields of two or three axes within an absolute or relative bound, with a network trained on earlier ones.

    Made by `fit` or `load`; `model` is the content hash of the decoder. With weights "inline" every packed array
    carries the decoder, so that anyone can read it; with "shared", readers load the model's file first. The network is
    used only where it makes an array smaller, inline weights included, so that none is larger than with
    ``SZ(level="ratio")``; choices "l1" (the paper's rule) and "network" (all blocks) are for comparison, and give up
    that promise.

    >>> codec = AESZ.fit(earlier_snapshots)  # doctest: +SKIP
    >>> blob = tt.compress(x, tt.Rel(1e-2), codec=codec)  # doctest: +SKIP
    """

    id: ClassVar[str] = "aesz"
    fixed_size: ClassVar[bool] = False

    model: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    weights: Weights = "inline"
    choice: Choice = "bits"

    @classmethod
    def fit(
        cls,
        snapshots: Iterable[np.ndarray],
        *,
        dims: Literal[2, 3] | None = None,
        block: int | None = None,
        latent: int = 16,
        channels: tuple[int, ...] | None = None,
        num_steps: int = 1500,
        seed: int = 0,
        quiet: bool = False,
        weights: Weights = "inline",
        choice: Choice = "bits",
    ) -> Self:
        """Train a network on earlier snapshots of a field, with PyTorch, and return the codec that uses it.

        Snapshots are arrays of floats with at least `dims` axes, 3 where the first one has as many, else 2. A block
        has `block` elements along each axis (8 of 3, 32 of 2) and `latent` numbers; `channels` are the layers' widths,
        the finest first. Training takes `num_steps` steps of 256 blocks, a few minutes, and tells its progress on
        standard error unless `quiet`. The same seed, versions and machine give the same model.

        Raises:
            UsageError: there is nothing to train on, or the network's settings contradict one another.
            BackendUnavailable: PyTorch is not installed.
        """
        fields = [_normalised(x) for x in snapshots]
        if not fields:
            raise UsageError("fit needs at least one array; pass a list of snapshots")
        axes = min(field.ndim for field in fields)
        dims = dims or (3 if axes >= 3 else 2)
        if axes < dims:
            raise UsageError(f"a network of {dims} dims needs arrays of as many axes that are not 1, got {axes}")
        shape = Architecture(dims, block or _BLOCKS[dims], latent, _CHANNELS[dims] if channels is None else channels)
        try:
            from trimtab.codecs.aesz_training import train
        except ImportError as error:
            raise BackendUnavailable(
                f"AESZ.fit trains with PyTorch ({error}); install trimtab[torch]. Packing and unpacking need none"
            ) from None
        encoder, decoder = train(fields, shape, num_steps=num_steps, seed=seed, quiet=quiet)
        return cls.of(encoder, decoder, weights=weights, choice=choice)

    @classmethod
    def of(cls, encoder: Encoder, decoder: Decoder, *, weights: Weights = "inline", choice: Choice = "bits") -> Self:
        """Return the codec of a network in whole numbers; the process knows the model from then on."""
        _models[decoder.name] = _Model(decoder, encoder)
        return cls(model=decoder.name, weights=weights, choice=choice)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, weights: Weights = "inline", choice: Choice = "bits") -> Self:
        """Read a model that `save` wrote, and return the codec that uses it; arrays with shared weights then unpack.

        Raises:
            FormatError: it is not the file of a model, or damaged.
        """
        reader = Reader(path)
        if set(reader) != {"decoder", "encoder"}:
            raise FormatError(f"{path} is not the file of an AESZ model, which has entries 'decoder' and 'encoder'")
        halves = []
        for name in ("decoder", "encoder"):
            packed = reader.packed(name)
            if packed.header.codec.get("id") not in ("raw", "enec") or packed.header.dtype != "uint8":
                raise Corrupt(f"{path}: entry {name!r} is not that of a model")
            codec = make_codec(packed.header.codec)
            y = codec.decode(packed)
            if checksum([digest(piece) for piece in codec.pieces(y)]) != reader.checksum(name):
                raise Corrupt(f"{path}: the checksum of entry {name!r} does not match: the file was damaged")
            halves.append(y.reshape(-1))
        decoder, encoder = Decoder.from_bytes(halves[0]), Encoder.from_bytes(halves[1])
        if decoder.architecture != encoder.architecture:
            raise Corrupt(f"{path}: decoder and encoder are not of one model")
        return cls.of(encoder, decoder, weights=weights, choice=choice)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a packed file, from which `load` makes the codec again."""
        model = self._loaded()
        with Writer(path) as writer:
            for name, half in (("decoder", model.decoder), ("encoder", model.encoder)):
                data = half.to_bytes()
                writer.add(name, ENEC().encode(data), checksum([digest(data)]))

    @property
    def num_model_bytes(self) -> int:
        """Bytes of the decoder, which inline weights add to each array that uses it."""
        return self._loaded().decoder.to_bytes().size

    @np.errstate(invalid="ignore")  # signalling NaN only pass through
    def encode(self, x: np.ndarray, bound: Bound = Lossless()) -> Packed:
        """Pack an array of real floats or of integers, of any shape and strides.

        The network serves floats under an absolute or a relative bound, in arrays with as many axes as it has dims;
        SZ packs all else.

        Raises:
            UsageError: the model was neither fitted nor loaded in this process.
            BoundError, ShapeError: as SZ does.
        """
        model = self._loaded()
        base = _BASE.encode(x, bound)
        name = base.header.dtype
        if base.header.codec.get("id") != SZ.id or name not in FLOATS or not isinstance(bound, Abs | Rel):
            return base
        plan = base.params(BaseParams)
        flat = np.ascontiguousarray(x, x.dtype.newbyteorder("=")).reshape(-1)
        low, high = kernels.load("quantiser").extent(widened(flat))
        if plan.scale != "linear" or not low / 2 < high / 2 or not math.isfinite(high - low):
            return base
        tiles = Fold.of(x.shape).tiles()
        limit = bound.value * (high - low) if isinstance(bound, Rel) else bound.value
        payloads = tile_payloads(base, len(tiles))
        digests = list(base.digests or [])
        weights = {"model": model.decoder.to_bytes()} if self.weights == "inline" else {}
        params = Params(step=plan.step, low=low, high=high)

        def encode_tile(index: int) -> None:
            coder = _mixed_coder(tiles[index], model.decoder, params, flat.dtype)
            if not coder.applies:
                return
            coded = coder.encode(model.encoder, flat, limit, payloads[index].size, self.choice)
            if coded is not None:
                payloads[index], digests[index] = coded

        kernels.for_each(encode_tile, len(tiles))
        data = np.concatenate(payloads)
        mixed = any(payload[0] == AUTOENCODED for payload in payloads)
        saved = base.buffers["data"].size - data.size - sum(part.size for part in weights.values())
        if not mixed or (self.choice == "bits" and saved <= 0):
            return base
        header = Header(
            codec=describe(self), bound=bound, dtype=name, shape=x.shape, params=msgspec.to_builtins(params)
        )
        sizes = np.array([payload.size for payload in payloads], np.uint64)
        return Packed(header, {"tiles": sizes, "data": data, **weights}, digests)

    def decode(self, packed: Packed, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return the array; every machine, back end and number of threads gives the same bits.

        Raises:
            Corrupt: the buffers or params contradict themselves or the header.
            FormatError: the weights are shared, and the model was neither fitted nor loaded in this process.
            ShapeError: `out` does not fit.
        """
        header = packed.header
        if header.dtype not in FLOATS:
            raise Corrupt(f"codec aesz cannot hold {header.dtype}; expected one of {', '.join(FLOATS)}")
        params = packed.params(Params)
        if not (math.isfinite(params.step) and math.isfinite(params.high - params.low) and params.low < params.high):
            raise Corrupt(f"step {params.step}, low {params.low} and high {params.high} do not fit, at $.params")
        decoder = self._decoder(packed)
        fold = Fold.of(header.shape)
        payloads = tile_payloads(packed, fold.num_tiles)
        tiles = fold.tiles()
        y = packed.output(out)
        flat = y.reshape(-1)

        def decode_tile(index: int) -> None:
            payload = payloads[index]
            if payload.size and payload[0] == AUTOENCODED:
                _mixed_coder(tiles[index], decoder, params, flat.dtype).decode(payload, flat)
            else:
                TileCoder(tiles[index], "linear", params.step).decode(payload, flat)

        kernels.for_each(decode_tile, len(tiles))
        return y

    def pieces(self, y: np.ndarray) -> list[np.ndarray]:
        """Return the tiles of an array."""
        return _BASE.pieces(y)

    def count_blocks(self, packed: Packed) -> dict[str, int]:
        """Return how many blocks of an array that this codec packed are of which kind: interpolated, network, constant.

        Tiles that SZ packed count as interpolated.

        Raises:
            FormatError: as `decode` does.
        """
        params, decoder = packed.params(Params), self._decoder(packed)
        counts = np.zeros(3, np.int64)
        fold = Fold.of(packed.header.shape)
        for tile, payload in zip(fold.tiles(), tile_payloads(packed, fold.num_tiles), strict=True):
            counts += _mixed_coder(tile, decoder, params, numpy_dtype(packed.header.dtype)).count(payload)
        return dict(zip(("interpolated", "network", "constant"), counts.tolist(), strict=True))

    def _loaded(self) -> _Model:
        model = _models.get(self.model)
        if model is None:
            raise UsageError(
                f"model {self.model} is not loaded; make the codec with AESZ.load(path) or AESZ.fit(arrays)"
            )
        return model

    def _decoder(self, packed: Packed) -> Decoder:
        """Return the decoder that packed the array."""
        if self.weights == "shared":
            model = _models.get(self.model)
            if model is None:
                raise FormatError(
                    f"the array needs model {self.model}, which is not loaded; read its file with AESZ.load(path) first"
                )
            return model.decoder
        decoder = Decoder.from_bytes(packed.buffer("model"))
        if decoder.name != self.model:
            raise Corrupt(f"buffer 'model' holds model {decoder.name}; expected {self.model}")
        return decoder


def _mixed_coder(tile: Tile, decoder: Decoder, params: Params, dtype: np.dtype) -> MixedCoder:
    return MixedCoder(tile, decoder, params.low, params.high, params.step, WORKING_DTYPES[dtype.name])


def _normalised(x: np.ndarray) -> np.ndarray:
    """Return a snapshot between -1 and 1 (float32), folded to at most three axes; zeros where it is not finite."""
    x = np.asarray(x)
    fold = Fold.of(x.shape)
    if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
        raise UsageError(f"fit takes arrays of floats, got {x.dtype}")
    wide = np.ascontiguousarray(x, np.float64).reshape(fold.shape)
    finite = np.isfinite(wide)
    low, high = wide.min(where=finite, initial=np.inf), wide.max(where=finite, initial=-np.inf)
    if fold.lane != 1 or not low < high or not math.isfinite(high - low):
        raise UsageError(f"an array of shape {x.shape} between {low} and {high} is nothing to train on")
    return np.where(finite, (wide - (low / 2 + high / 2)) / (high / 2 - low / 2), 0).astype(np.float32)
