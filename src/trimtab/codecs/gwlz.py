"""GWLZ: small networks learn from an array what a lossy codec took from it (Jia et al., arXiv 2404.13470, 2024).

The array is packed by a base codec and decoded at once. Networks, one for each group of like values, are trained on
what is missing, travel with the array, and give part of it back to whoever decodes. NeurLZ (Jia et al., arXiv
2409.05785, 2024) added the choice between the bound asked for and a relaxed one of twice that. Only the abstracts were
at hand, so the shape of the networks is ours. Differences:

- a network sees whole numbers and computes in whole numbers, so that every machine, back end and number of threads
  decodes to the same bits, and the bound that was verified holds everywhere;
- its first layer sees the neighbours within a ball, and what follows is computed for each element alone: decoding keeps
  up, where stacked convolutions do not;
- the encoder measures what the bytes would buy in the base codec, takes the networks, their number and their largest
  corrections by that price, among them networks without hidden layers (least squares), and leaves all out where they do
  not pay;
- elements that the correction would take beyond the bound keep what the base codec gave; where they stand is coded, and
  counted.

The entry
=========
Only arrays of floats under an absolute bound or one relative to the value range, and only where it pays; all else is an
entry of the base codec. Where ``relaxed`` is 2, the entry's bound is twice the one that the base codec kept, and the
elements that are kept are those beyond that.

params: ``base``, the params of the base codec's entry, whose bound is ``base_bound``; ``unit``, a positive float64. The
base codec's buffers have their names after "base.".

- ``networks``: uint8 groups G (1 to 16); uint8 hidden layers (at most 2); for each a uint8, its units (1 to 64); a
  zstd frame that states its content size. It holds: G - 1 int32, edges, ascending; G int32, origins; G uint8, limits,
  at most 128; uint8 shifts, at most 31, of all units of the first group, of the second, and so on; int32 biases,
  likewise; int8 weights of the first layer of each group; int16 weights of the other layers of each group.
  `trimtab.kernels.enhancer` defines the order within a group, what is computed, and the sums that no unit may reach.
  Edges and origins are within 2^30, exclusive.
- ``kept_counts``: for each tile a uint32, how many of its elements are kept.
- ``kept``: empty where there are none; else a uint32, the bytes of a token block; the block, of `trimtab.kernels.ans`
  with ``back`` 2, in rows of 64 tokens, zeros fill the last one; extra bits. Together they give, by
  `trimtab.kernels.tokens`, an integer for each kept element, tile by tile. Its folded form is the element's position in
  the tile, in C order, minus that of the one before in the tile and minus 1; for the first of a tile the position.

The array is folded and cut into tiles as by codec "sz". The block of a tile is the tile and on all sides as many
elements of the base codec's array as the networks see, 8, 3 or 2 for one, two or three axes, along the last axis times
the lane; beyond the array's ends its outermost elements stand again. All are divided by the unit in float64, rounded to
integers, ties to even, and cut to within 2^30, exclusive; for NaN and infinities stands the integer of the last finite
element before in the row of the block, or 0. The neighbours of an element are those whose distances along the axes,
along the last one in lanes, have squares that sum up to at most 64, 10 or 6 for one, two or three axes; they come in
ascending order of the distance along the first axis, then the second and the third. The correction times (unit / 32) is
added in float64 and rounded to the array's dtype, for 2-byte dtypes by way of float32. NaN, infinities, elements whose
correction is 0, and kept elements stay as they are.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.bounds import Abs, Bound, Lossless, Rel, value_range
from trimtab.codecs.codec import describe
from trimtab.codecs.gwlz_networks import MAX_GROUPS, MAX_HIDDEN_LAYERS, MAX_UNITS, Networks, View, corrected, reach
from trimtab.codecs.gwlz_training import Fitted, Price, Samples, fit
from trimtab.codecs.surroundings import Surroundings
from trimtab.codecs.sz import SZ
from trimtab.codecs.sz_tokens import decode_tokens, encode_tokens
from trimtab.codecs.tiling import Fold, Tile
from trimtab.dtypes import FLOATS
from trimtab.errors import Corrupt, UsageError
from trimtab.packed import Header, Packed, digest

_SMALL = 1 << 12  # elements below which networks cannot pay
_SAMPLES = 1 << 19
_TRIAL = 0.75  # of the bound, under which the base codec's price of quality is measured
_WORTH_A_NETWORK = 0.98  # of the squared error must be left at most by least squares, or nothing is learnt
_FLATTEST, _STEEPEST = 0.1, 50.0
_HOPED_FOR = 0.25  # of the squared error that least squares leave, the least that networks may
_ROW = 64
_PIECE = 1 << 18

Units = Annotated[int, msgspec.Meta(ge=1, le=MAX_UNITS)]


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the decoder has to know beside the networks."""

    base: dict[str, Any]
    base_bound: Abs | Rel
    unit: Annotated[float, msgspec.Meta(gt=0)]


class GWLZ(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="id", tag="gwlz"):
    """Pack by a base codec, and let small networks, trained on the array, bring the result closer to it.

    The bound holds for every element, as with the base codec; with ``relaxed=2`` errors may be up to twice the bound,
    which is then the bound that the file states, and no bytes go into keeping the single one. Arrays for which the
    networks' bytes do not pay are those of the base codec alone.

    `groups` is the most networks there may be, each for a range of values; `hidden` has the units of their hidden
    layers (none: least squares alone); training takes `steps` steps for each number of groups tried, from `seed`.

    >>> import numpy as np, trimtab as tt
    >>> x = np.sin(np.add.outer(np.linspace(0, 60, 300), np.linspace(0, 37, 400) ** 1.1))
    >>> plain, better = (tt.compress(x, tt.Abs(0.05), codec=codec) for codec in (tt.codecs.SZ(), tt.codecs.GWLZ()))
    >>> bool(abs(tt.decompress(better) - x).mean() < 0.5 * abs(tt.decompress(plain) - x).mean())
    True
    """

    id: ClassVar[str] = "gwlz"
    fixed_size: ClassVar[bool] = False

    base: SZ = SZ()
    relaxed: Literal[1, 2] = 1
    groups: Annotated[int, msgspec.Meta(ge=1, le=MAX_GROUPS)] = 4
    hidden: Annotated[tuple[Units, ...], msgspec.Meta(max_length=MAX_HIDDEN_LAYERS)] = (16, 8)
    steps: Annotated[int, msgspec.Meta(ge=1, le=10**6)] = 2000
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0

    def __post_init__(self) -> None:
        units_fit = len(self.hidden) <= MAX_HIDDEN_LAYERS and all(1 <= units <= MAX_UNITS for units in self.hidden)
        if not (units_fit and self.relaxed in (1, 2) and 1 <= self.groups <= MAX_GROUPS and 1 <= self.steps <= 10**6):
            raise UsageError(
                f"{self} is out of range; expected relaxed 1 or 2, 1 to {MAX_GROUPS} groups, at most "
                f"{MAX_HIDDEN_LAYERS} hidden layers of 1 to {MAX_UNITS} units, and 1 to 1000000 steps"
            )

    @np.errstate(invalid="ignore")  # signalling NaN only pass through
    def encode(self, x: np.ndarray, bound: Bound = Lossless()) -> Packed:
        """Pack an array of any shape and strides that the base codec takes; parameters and errors are the base's."""
        packed = self.base.encode(x, bound)
        networks_may_pay = packed.header.codec["id"] == self.base.id and packed.header.dtype in FLOATS
        if not (networks_may_pay and isinstance(bound, Abs | Rel)) or x.size < _SMALL:
            return packed
        limit = bound.value * (value_range(x) if isinstance(bound, Rel) else 1.0)
        if not (limit / 128 > 0 and max(limit, bound.value) * self.relaxed < math.inf):
            return packed
        x = np.ascontiguousarray(x, x.dtype.newbyteorder("<"))
        price = _price(self.base, packed, x, limit)
        if price is None:
            return packed
        array = _Array(self.base.decode(packed), Fold.of(x.shape), limit / 4, x)
        fitted = self._fit(array.samples(limit, self.seed), x.size, price)
        if fitted is None:
            return packed
        buffers = {"networks": fitted.networks.to_bytes()}
        networks = Networks.from_bytes(buffers["networks"], len(array.fold.shape))
        kept, digests, before, after = array.judge(networks, limit * self.relaxed)
        buffers |= dict(zip(("kept_counts", "kept"), _packed_positions(kept), strict=True))
        if not price.cost(after, sum(buffer.nbytes for buffer in buffers.values())) < before:
            return packed
        params = Params(base=packed.header.params, base_bound=bound, unit=array.unit)
        header = Header(
            codec=describe(self),
            bound=type(bound)(bound.value * self.relaxed),
            dtype=packed.header.dtype,
            shape=packed.header.shape,
            params=msgspec.to_builtins(params),
        )
        return Packed(header, buffers | {f"base.{name}": buffer for name, buffer in packed.buffers.items()}, digests)

    def decode(self, packed: Packed, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return the array; every machine, back end and number of threads gives the same bits.

        Raises:
            Corrupt: the buffers or params contradict themselves or the header.
            ShapeError: `out` does not fit.
        """
        header, params = packed.header, packed.params(Params)
        if header.dtype not in FLOATS:
            raise Corrupt(f"codec gwlz cannot hold {header.dtype}; expected one of {', '.join(FLOATS)}")
        if not math.isfinite(params.unit):
            raise Corrupt(f"unit {params.unit} is not finite, at $.params.unit")
        kind, value = type(params.base_bound), params.base_bound.value * self.relaxed
        if not isinstance(header.bound, Abs | Rel) or (type(header.bound), header.bound.value) != (kind, value):
            raise Corrupt(f"the bound {header.bound} is not {self.relaxed} times {params.base_bound}, at $.bound")
        fold = Fold.of(header.shape)
        networks = Networks.from_bytes(packed.buffer("networks"), len(fold.shape))
        counts = packed.buffer("kept_counts", "uint32", fold.num_tiles)
        tiles = fold.tiles()
        kept = _positions(counts, packed.buffer("kept"), tiles)
        base = Header(
            codec=describe(self.base),
            bound=params.base_bound,
            dtype=header.dtype,
            shape=header.shape,
            params=params.base,
        )
        names = [name for name in packed.buffers if name.startswith("base.")]
        y = self.base.decode(Packed(base, {name[5:]: packed.buffers[name] for name in names}), out=out)
        _Array(y, fold, params.unit).correct(networks, kept)
        return y

    def pieces(self, y: np.ndarray) -> list[np.ndarray]:
        """Return the tiles of an array."""
        flat = y.reshape(-1)
        return [tile.view(flat) for tile in Fold.of(y.shape).tiles()]

    def _fit(self, samples: Samples, num_elements: int, price: Price) -> Fitted | None:
        """Return the best networks of those tried; None where none pays."""
        counts = sorted({1, self.groups})
        rest = (self.seed, price, self.relaxed)
        found = list(filter(None, (fit(samples, num_elements, count, (), 0, *rest) for count in counts)))
        least = min((fitted.relative_error for fitted in found), default=1.0)
        if self.hidden and least < _WORTH_A_NETWORK:
            for count in counts:
                if price.cost(least * _HOPED_FOR, self._expected_bytes(samples, count)) < 1:
                    learnt = fit(samples, num_elements, count, self.hidden, self.steps, *rest)
                    found += [learnt] if learnt else []
        best = min(found, key=lambda fitted: fitted.relative_cost, default=None)
        return best if best is not None and best.relative_cost < 1 else None

    def _expected_bytes(self, samples: Samples, num_groups: int) -> float:
        """Return about how many bytes networks with hidden layers take: that of a weight, packed."""
        sizes = (samples.near.shape[1] + 1, *self.hidden, 1)
        return 0.8 * num_groups * sum(a * b for a, b in itertools.pairwise(sizes))


@dataclass(frozen=True)
class _Array:
    """What the base codec decoded to, to be corrected tile by tile; the encoder has the original beside it."""

    y: np.ndarray
    fold: Fold
    unit: float
    x: np.ndarray | None = None

    def correct(self, networks: Networks, kept: list[np.ndarray]) -> None:
        """Correct all elements in place but those at the positions kept in each tile."""
        flat, tiles, around = self.y.reshape(-1), self.fold.tiles(), self._surroundings()

        def correct_tile(index: int) -> None:
            tile = tiles[index]
            own = tile.view(flat)
            corrections = networks.corrections(View.of(tile, around.block(tile), self.unit))
            corrections[kept[index]] = 0
            own[...] = corrected(own.reshape(-1), corrections, self.unit).reshape(own.shape)

        kernels.for_each(correct_tile, len(tiles))

    def samples(self, limit: float, seed: int) -> Samples:
        """Return samples of all tiles, by their sizes; what is not finite is left out."""
        flat, tiles, around = self.y.reshape(-1), self.fold.tiles(), self._surroundings()
        assert self.x is not None
        original = self.x.reshape(-1)
        drawn: list[Samples | None] = [None] * len(tiles)

        def draw(index: int) -> None:
            tile = tiles[index]
            view = View.of(tile, around.block(tile), self.unit)
            share = min(_SAMPLES, flat.size) * tile.num_elements // flat.size
            places = np.random.default_rng([seed, index]).integers(0, tile.num_elements, share)
            at = np.unravel_index(places, tile.extents)
            error = tile.view(original)[at].astype(np.float64) - tile.view(flat)[at].astype(np.float64)
            drawn[index] = Samples.draw(view, places, error / limit)

        kernels.for_each(draw, len(tiles))
        return Samples.join([part for part in drawn if part is not None])

    def judge(self, networks: Networks, limit: float) -> tuple[list[np.ndarray], list[int], float, float]:
        """Return the positions to keep in each tile, the digests of what comes out, and squared errors in all.

        The first is that of the base codec, the second that of the corrected array.
        """
        flat, tiles, around = self.y.reshape(-1), self.fold.tiles(), self._surroundings()
        assert self.x is not None
        original = self.x.reshape(-1)
        kept, digests = [np.empty(0, np.int64)] * len(tiles), [0] * len(tiles)
        before, after = [0.0] * len(tiles), [0.0] * len(tiles)

        def judge_tile(index: int) -> None:
            tile = tiles[index]
            corrections = networks.corrections(View.of(tile, around.block(tile), self.unit))
            x, base = tile.view(original).reshape(-1), tile.view(flat).reshape(-1)
            y = corrected(base, corrections, self.unit)
            missed = []
            for start in range(0, x.size, _PIECE):
                piece = slice(start, start + _PIECE)
                missed.append(
                    start + np.flatnonzero((_distance(x[piece], y[piece]) > limit) & (corrections[piece] != 0))
                )
            kept[index] = np.concatenate(missed)
            y[kept[index]] = base[kept[index]]
            digests[index] = digest(y)
            before[index], after[index] = _squared_error(x, base, limit), _squared_error(x, y, limit)

        kernels.for_each(judge_tile, len(tiles))
        return kept, digests, math.fsum(before), math.fsum(after)

    def _surroundings(self) -> Surroundings:
        return Surroundings(self.y.reshape(-1), self.fold, reach(self.fold.tiles()[0]))


def _price(base: SZ, packed: Packed, x: np.ndarray, limit: float) -> Price | None:
    """Return what the base codec pays for quality, from a trial under a tighter bound; None where nothing is lost."""
    errors, sizes = [], []
    for trial in (packed, base.encode(x, Abs(_TRIAL * limit)) if limit * _TRIAL > 0 else packed):
        y = base.decode(trial) if trial.header.codec["id"] == base.id else None
        errors.append(_squared_error(x.reshape(-1), y.reshape(-1), limit) if y is not None else 0.0)
        sizes.append(trial.num_bytes)
    if not errors[0] > 0 or not math.isfinite(errors[0]):
        return None
    if sizes[1] <= sizes[0]:
        return Price(sizes[0], _STEEPEST)
    exponent = math.log(errors[0] / errors[1]) / math.log(sizes[1] / sizes[0]) if errors[1] > 0 else _STEEPEST
    return Price(sizes[0], min(max(exponent, _FLATTEST), _STEEPEST))


def _distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ``|x - y|`` in float64; NaN where `x` is not finite, or inf where only `y` is not."""
    with np.errstate(over="ignore"):
        return abs(x.astype(np.float64) - y.astype(np.float64))


def _squared_error(x: np.ndarray, y: np.ndarray, limit: float) -> float:
    """Return the sum of squared errors of finite elements, in limits."""
    total = 0.0
    for start in range(0, x.size, _PIECE):
        distance = _distance(x[start : start + _PIECE], y[start : start + _PIECE])
        total += float(np.square(distance[np.isfinite(distance)] / limit).sum())
    return total


def _packed_positions(kept: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of positions in each tile (uint32), and the bytes of all of them."""
    counts = np.array([positions.size for positions in kept], np.uint32)
    if not counts.any():
        return counts, np.empty(0, np.uint8)
    gaps = np.concatenate([np.diff(positions, prepend=-1) - 1 for positions in kept])
    rows = np.zeros((-(-gaps.size // _ROW), _ROW), np.int32)
    rows.reshape(-1)[: gaps.size] = (gaps >> 1) ^ -(gaps & 1)
    coder = kernels.load("tokens")
    tokens, extra = np.empty(rows.shape, np.uint8), np.empty(coder.max_extra_size(rows.size), np.uint8)
    extra = extra[: coder.encode(rows, 0, tokens, extra)]
    block = encode_tokens(tokens, 2)
    return counts, np.concatenate([np.array([block.size], "<u4").view(np.uint8), block, extra])


def _positions(counts: np.ndarray, data: np.ndarray, tiles: list[Tile]) -> list[np.ndarray]:
    """Return the positions that are kept in each tile.

    Raises:
        Corrupt: they are not positions in the tiles, or there are more or fewer of them.
    """
    if any(int(count) > tile.num_elements for count, tile in zip(counts, tiles, strict=True)):
        raise Corrupt("a tile keeps more elements than it has")
    total = int(counts.sum(dtype=np.uint64))
    if not total:
        if data.size:
            raise Corrupt(f"no element is kept, but buffer 'kept' holds {data.size} bytes")
        return [np.empty(0, np.int64)] * len(tiles)
    size = int(data[:4].copy().view("<u4")[0]) if data.size >= 4 else data.size
    if data.size < 4 or size > data.size - 4:
        raise Corrupt(f"buffer 'kept' of {data.size} bytes has no room for a block of {size}")
    # each token takes eight bytes here: a block of few bytes cannot claim many, unless all are alike
    tokens = np.empty((-(-total // _ROW), _ROW), np.uint8)
    rows = np.empty(tokens.shape, np.int32)
    decode_tokens(data[4 : 4 + size], 2, tokens)
    if kernels.load("tokens").decode(tokens, data[4 + size :], 0, rows) != 0:
        raise Corrupt("the extra bits of kept positions do not match their tokens")
    folded = rows.reshape(-1)[:total].astype(np.int64)
    gaps = np.where(folded < 0, -2 * folded - 1, 2 * folded)
    kept = []
    for tile, part in zip(tiles, np.split(gaps, np.cumsum(counts.astype(np.int64))[:-1]), strict=True):
        positions = np.cumsum(part + 1) - 1
        if positions.size and positions[-1] >= tile.num_elements:
            raise Corrupt(f"a kept element stands at {positions[-1]} in a tile of {tile.num_elements} elements")
        kept.append(positions)
    return kept
