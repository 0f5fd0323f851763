"""How SZ quantises an array under a bound: the ways to try, best first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.bounds import PSNR, Abs, Bound, Lossless, PointwiseRel, Rel
from trimtab.codecs.sz_tile import Scale, TileCoder, widened
from trimtab.codecs.tiling import MAX_TILE_SIZE, Tile
from trimtab.kernels.quantiser.ref import LARGEST_INTEGER

_LATTICE_SAMPLE = 4096
_REACH = 2**30  # no integer of the quantiser's is as large
_LARGEST_STEP = 2**48  # of integers: its products stay exact in float64
_LARGEST_RELATIVE = 0.9  # under the point-wise relative bound: beyond it, steps would soon be endless
_PSNR_SAMPLE = 1 << 17  # elements
_PSNR_TRIALS = 30
_PSNR_MEASUREMENTS = 5
_PSNR_AIM = 0.05  # dB above the target
_PSNR_SURPLUS = 0.4  # dB above the target with which the search is content
_LARGEST_SURPLUS = 20.0  # dB
_PSNR_SLACK = 1e-6  # dB, for sums in another order
_SIGNIFICANT_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
_MIN_EXPONENTS = {"float16": -13, "bfloat16": -125, "float32": -125, "float64": -1021}


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the decoder has to know of a plan."""

    scale: Scale
    step: Annotated[float, msgspec.Meta(gt=0)]
    offset: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = 0


@dataclass(frozen=True)
class Plan:
    """One way to quantise: an element that misses `limit` is an outlier, and no integer exceeds `largest`."""

    params: Params
    limit: float
    largest: int
    exact: bool = False
    """Whether nothing is lost, as far as a sample of the elements shows."""
    error_share: float = 0.0
    """Where only the sum of squared errors counts: how many times that of quantisation alone it may be; else 0."""


def plans(flat: np.ndarray, tiles: list[Tile], bound: Bound) -> Iterator[Plan]:
    """Yield the plans for an array, flat, under a bound; none where only exact storage will do."""
    if flat.dtype.kind in "iu":
        yield from _integer_plans(flat, tiles, bound)
        return
    low, high = _extent(flat)
    if low > high or not math.isfinite(high - low):
        return
    significant_bits = _SIGNIFICANT_BITS[flat.dtype.name]
    if isinstance(bound, PointwiseRel):
        margin = min(bound.value - math.ldexp(1.0, -significant_bits), _LARGEST_RELATIVE)
        if margin > 0:  # the magnitudes that an integer stands for are (1 + margin) / (1 - margin) wide
            step = 2 * math.atanh(margin) / math.log(2)
            yield Plan(Params(scale="log2", step=step), bound.value, min(math.ceil(1100 / step), _REACH))
        return
    if isinstance(bound, PSNR):
        limit = _psnr_limit(bound.value, high - low)
    else:
        assert isinstance(bound, Abs | Rel)
        limit = bound.value * (high - low) if isinstance(bound, Rel) else bound.value
    largest = max(abs(low), abs(high))
    if largest >= limit * 2 * _REACH:  # no integer reaches so far: fill values such as 1e20, which are kept as they are
        largest = _largest_below(flat, limit * 2 * _REACH)
    lattice = _lattice(flat, low, high)
    if lattice >= 2 * limit and largest < lattice * _REACH:
        # a sum of errors is not measured here: what the sample did not show is kept exactly
        lattice_limit = 0.0 if isinstance(bound, PSNR) else limit
        yield Plan(Params(scale="linear", step=lattice), lattice_limit, math.ceil(largest / lattice), exact=True)
    if isinstance(bound, PSNR):
        step, error_share = _psnr_step(flat, tiles, bound.value, high - low, 2 * limit, largest)
        limit = step  # as in the measurement: what misses it by far, or overflows the output dtype, is kept exactly
    else:
        error_share = 0.0
        ulp = math.ldexp(1.0, max(math.frexp(largest)[1], _MIN_EXPONENTS[flat.dtype.name]) - significant_bits)
        step = 2 * max(limit - ulp, limit / 2 if flat.dtype.itemsize == 2 else 0.0)
        if lattice <= limit and largest + limit < lattice * 2.0**significant_bits:
            wide = lattice * (2 * math.floor(limit / lattice) + 1)
            if step < wide:
                yield Plan(Params(scale="linear", step=wide), limit, math.ceil(largest / wide) + 1)
    if step > 0 and largest < step * _REACH:
        params = Params(scale="linear", step=step)
        yield Plan(params, limit, math.ceil(largest / step) + 1, error_share=error_share)


def _integer_plans(flat: np.ndarray, tiles: list[Tile], bound: Bound) -> Iterator[Plan]:
    """Yield the plans for integers; all arithmetic is exact.

    An error limit of e allows steps of 2e + 1, or of g (2 floor(e / g) + 1) where all elements are multiples of g.
    """
    low, high = int(flat.min()), int(flat.max())
    sample = flat[:: max(flat.size // _LATTICE_SAMPLE, 1)].tolist()
    divisor = math.gcd(*sample)
    divisor = divisor if 0 < divisor <= _LARGEST_STEP else 1
    extent = low, high, sorted(sample)[len(sample) // 2]
    if isinstance(bound, PSNR):
        mean = 2 * _psnr_limit(bound.value, high - low)
        if mean > divisor:
            offset = _offset(extent, mean)
            largest = min(max(abs(low - offset), abs(high - offset)), _LARGEST_STEP // 4)
            step, _ = _psnr_step(flat, tiles, bound.value, high - low, min(mean, _LARGEST_STEP), largest, offset)
            if step > divisor:
                yield _integer_plan(extent, step, step, offset)
                return
        limit = 0
    else:
        limit = min(_integer_limit(flat, low, high, bound), _LARGEST_STEP // 2)
    for factor in sorted({divisor, 1}, reverse=True):
        step = factor * (2 * (limit // factor) + 1)
        yield _integer_plan(extent, step, limit, _offset(extent, step), exact=limit < factor)


def _integer_plan(extent: tuple[int, int, int], step: float, limit: float, offset: int, *, exact: bool = False) -> Plan:
    low, high, _ = extent
    largest = min(math.ceil(max(abs(low - offset), abs(high - offset)) / step) + 1, _REACH)
    params = Params(scale="linear", step=float(step), offset=_as_int64(offset))
    return Plan(params, float(limit), largest, exact)


def _integer_limit(flat: np.ndarray, low: int, high: int, bound: Bound) -> int:
    """Return the largest error that `bound` allows in every element."""
    if isinstance(bound, Lossless):
        return 0
    if isinstance(bound, Abs):
        return math.floor(bound.value)
    if isinstance(bound, Rel):
        return math.floor(bound.value * float(high - low))
    assert isinstance(bound, PointwiseRel)
    nearest = [int(flat.min(where=flat > 0, initial=np.iinfo(flat.dtype).max))]
    if low < 0:
        nearest.append(-int(flat.max(where=flat < 0, initial=np.iinfo(flat.dtype).min)))
    return math.floor(bound.value * float(min(nearest)))  # zero, too, is kept: it is on every lattice


def _offset(extent: tuple[int, int, int], step: float) -> int:
    """Return what is taken from integers to bring them within reach: nothing, or the multiple of `step` amid them."""
    low, high, middle = extent
    if max(abs(low), abs(high)) < min(step * (_REACH - 1), LARGEST_INTEGER):
        return 0
    return middle // int(step) * int(step) if step == int(step) else middle


def _as_int64(number: int) -> int:
    """Return the int64 that is the same modulo 2^64."""
    return (number + 2**63) % 2**64 - 2**63


def _extent(flat: np.ndarray) -> tuple[float, float]:
    """Return the least and the largest finite element; (inf, -inf) where there is none."""
    lows, highs = zip(*map(kernels.load("quantiser").extent, _pieces(flat)), strict=True)
    return min(lows), max(highs)


def _largest_below(flat: np.ndarray, reach: float) -> float:
    """Return the largest magnitude below `reach`; 0 where there is none."""
    magnitudes = map(np.abs, _pieces(flat))
    return float(max(np.max(piece, where=piece < reach, initial=0) for piece in magnitudes))


def _pieces(flat: np.ndarray) -> Iterator[np.ndarray]:
    """Yield pieces of `flat` in the dtype that it is quantised in."""
    for start in range(0, flat.size, MAX_TILE_SIZE):
        yield widened(flat[start : start + MAX_TILE_SIZE])


def _lattice(flat: np.ndarray, low: float, high: float) -> float:
    """Return the largest power of two, or the one value there is, that a sample consists of whole multiples of."""
    if low == high:
        return abs(low) or 1.0
    sample = flat[:: max(flat.size // _LATTICE_SAMPLE, 1)].astype(np.float64)
    fractions, exponents = np.frexp(sample[np.isfinite(sample) & (sample != 0)])
    if not fractions.size:
        return 0.0
    digits = np.abs(np.ldexp(fractions, 53).astype(np.int64))
    lowest_bits = np.frexp((digits & -digits).astype(np.float64))[1] - 1
    return math.ldexp(1.0, int((exponents - 53 + lowest_bits).min()))


def _psnr_limit(decibels: float, value_range: float) -> float:
    """Return the absolute bound whose error, uniform between its limits, has this PSNR."""
    return math.sqrt(3) * value_range * 10 ** (-decibels / 20)


def _psnr_step(
    flat: np.ndarray,
    tiles: list[Tile],
    decibels: float,
    value_range: float,
    step: float,
    largest: float,
    offset: int = 0,
) -> tuple[float, float]:
    """Return a step, near the largest, whose measured PSNR is at least `decibels`; 0.0 if none was found.

    With it comes how many times its squared errors there may be, so that they still are.

    It is looked for from `step` on in a sample of the rows, and then measured in all of them. No element exceeds
    `largest`, so that steps beyond twice that make no difference.
    """
    surplus = partial(_psnr_surplus, flat, tiles, decibels, value_range, offset)
    stride = max(flat.size // _PSNR_SAMPLE, 1) | 1
    if stride > 1:
        step, _ = _search(partial(surplus, stride=stride), step, 4 * largest, _PSNR_TRIALS)
    step, excess = _search(surplus, step, 4 * largest, _PSNR_MEASUREMENTS if stride > 1 else _PSNR_TRIALS)
    return step, 10 ** (min(excess, _LARGEST_SURPLUS) / 10)


def _search(surplus: Callable[[float], float], step: float, largest: float, num_trials: int) -> tuple[float, float]:
    """Return a step of at most `largest` whose surplus, in dB, is not negative and small, and the surplus.

    Both are 0.0 if none was found.
    """
    found, found_excess, too_large = 0.0, 0.0, math.inf
    for _ in range(num_trials):
        if not step > 0:
            break
        excess = surplus(step)
        if excess >= 0:
            if step > found:
                found, found_excess = step, excess
            if excess <= _PSNR_SURPLUS or step >= largest:
                break
        else:
            too_large = min(too_large, step)
        step *= 10 ** (min(max(excess - _PSNR_AIM, -20.0), 20.0) / 20)
        if not found < step < too_large:
            step = math.sqrt(found * too_large) if found else too_large / 2
        step = min(step, largest)
    return found, found_excess


def _psnr_surplus(
    flat: np.ndarray,
    tiles: list[Tile],
    decibels: float,
    value_range: float,
    offset: int,
    step: float,
    stride: int = 1,
) -> float:
    """Return by how many dB the PSNR with `step` exceeds the target, in every `stride`-th row of each tile."""
    errors, counts = [0.0] * len(tiles), [0] * len(tiles)

    def measure(index: int) -> None:
        coder = TileCoder(tiles[index], "linear", step, _as_int64(offset))
        errors[index], counts[index] = coder.squared_error(flat, stride)

    kernels.for_each(measure, len(tiles))
    total = math.fsum(errors)
    if total == 0:
        return math.inf
    return 20 * math.log10(value_range) - 10 * math.log10(total / sum(counts)) - decibels - _PSNR_SLACK
