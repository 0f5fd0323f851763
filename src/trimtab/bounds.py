"""What may be lost: the promise a codec makes about every element.

All bounds are evaluated in float64 on the array as the decoder returns it, in its own dtype. Of integers, differences
and value ranges are exact, in 64 bits too, and compared with the limit rounded down, which is the same promise. All
but `Lossless` are for real numbers only. Special values:

- NaN (with its payload bits), +inf and -inf come back bit for bit, under every bound.
- The value range of `Rel` and `PSNR` is taken over the finite elements only.
- -0.0 may come back as +0.0 under `Abs`, `Rel` and `PSNR`; `Lossless` and `PointwiseRel` keep its sign.
- Denormals count as the numbers they are. None are flushed to zero, unless the bound allows that error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from trimtab.errors import BoundError, ShapeError

_PIECE = 1 << 20  # elements compared at a time: keeps the float64 copies small


class _Bound(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """The part that all bounds share: comparison piece by piece."""

    def _piece_allowed(self, x: np.ndarray, y: np.ndarray, limit: float) -> bool:
        raise NotImplementedError

    def _limit(self, x: np.ndarray) -> float:
        """The number that the whole array contributes to the comparison."""
        return 0.0

    def allows(self, x: np.ndarray, y: np.ndarray) -> bool:
        """Return whether `y` is an acceptable stand-in for `x` (same shape and dtype, in any byte order).

        Raises:
            ShapeError: the two differ in shape or dtype, or are complex and the bound is not `Lossless`.
        """
        _check_comparable(x, y, real=not isinstance(self, Lossless))
        limit = self._limit(x)
        return all(self._piece_allowed(a, b, limit) for a, b in _pieces(x, y))


class Lossless(_Bound, frozen=True, tag="lossless"):
    """Nothing may be lost: every bit comes back."""

    def _piece_allowed(self, x: np.ndarray, y: np.ndarray, limit: float) -> bool:
        return bool(np.array_equal(_bits(x), _bits(y)))


class Abs(_Bound, frozen=True, tag="abs"):
    """``|x - y| <= value`` for every element, in the unit of the data."""

    value: float

    def __post_init__(self) -> None:
        _set_value(self)

    def _limit(self, x: np.ndarray) -> float:
        return self.value

    def _piece_allowed(self, x: np.ndarray, y: np.ndarray, limit: float) -> bool:
        return _special_kept(x, y) and _within(x, y, np.float64(limit))


class Rel(_Bound, frozen=True, tag="rel"):
    """``|x - y| <= value * (max(x) - min(x))`` for every element: relative to the value range."""

    value: float

    def __post_init__(self) -> None:
        _set_value(self)

    def _limit(self, x: np.ndarray) -> float:
        span = value_range(x)
        if math.isinf(span):  # max - min overflows float64; a multiple of it need not
            with np.errstate(invalid="ignore"):  # signalling NaN
                return 4 * (self.value * value_range(x * 0.25))
        return self.value * span

    _piece_allowed = Abs._piece_allowed


class PointwiseRel(_Bound, frozen=True, tag="pointwise_rel"):
    """``|x - y| <= value * |x|`` for every element; zeros keep their sign and stay zero."""

    value: float

    def __post_init__(self) -> None:
        _set_value(self)

    def _piece_allowed(self, x: np.ndarray, y: np.ndarray, limit: float) -> bool:
        if not _special_kept(x, y):
            return False
        finite = np.where(is_finite(x), x, 0).astype(np.float64)
        zero = finite == 0  # NaN and infinities among them, which are known to be the same in both
        with np.errstate(over="ignore"):  # a limit beyond float64 allows every finite stand-in
            limits = self.value * np.abs(finite)
        same_signs = np.array_equal(np.signbit(x)[zero], np.signbit(y)[zero])
        return same_signs and _within(x, y, limits)


class PSNR(_Bound, frozen=True, tag="psnr"):
    """Peak signal-to-noise ratio of at least `value` dB: ``20 log10(range) - 10 log10(mean((x - y)^2))``."""

    value: float

    def __post_init__(self) -> None:
        _set_value(self)

    def _piece_allowed(self, x: np.ndarray, y: np.ndarray, limit: float) -> bool:
        return _special_kept(x, y)

    def allows(self, x: np.ndarray, y: np.ndarray) -> bool:
        return _Bound.allows(self, x, y) and psnr(x, y) >= self.value


Bound = Lossless | Abs | Rel | PointwiseRel | PSNR


def make_bound(settings: Bound | Mapping[str, Any]) -> Bound:
    """Return the bound that plain data such as ``{"kind": "rel", "value": 1e-3}`` describes; a bound stays as it is.

    Raises:
        BoundError: there is no such kind, or the value is not one.
    """
    if isinstance(settings, Bound):
        return settings
    try:
        return msgspec.convert(settings, type=Bound)
    except msgspec.ValidationError as error:
        raise BoundError(f"bad bound {settings!r}: {error}") from None


def is_finite(x: np.ndarray) -> np.ndarray:
    """Return `np.isfinite(x)` without the warning that signalling NaN of bfloat16 cause."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(x)


def value_range(x: np.ndarray) -> float:
    """Return max - min over the finite elements of `x` in float64; 0.0 where there are none."""
    _check_real(x)
    low, high = math.inf, -math.inf
    for (piece,) in _pieces(x):
        finite = piece[is_finite(piece)]
        if finite.size:
            low, high = min(low, finite.min().item()), max(high, finite.max().item())
    return float(high - low) if high >= low else 0.0


def largest_error(x: np.ndarray, y: np.ndarray) -> float:
    """Return max ``|x - y|`` in float64 over the elements of `x` that are finite; 0.0 where there are none."""
    _check_comparable(x, y, real=True)
    return max((float(_error(a, b).max()) for a, b in _pieces(x, y)), default=0.0)


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB over the finite elements of `x`; inf where they are equal."""
    _check_comparable(x, y, real=True)
    with np.errstate(over="ignore"):  # an error whose square overflows makes the ratio -inf
        total = sum(float(np.square(_error(a, b)).sum()) for a, b in _pieces(x, y))
    count = sum(int(is_finite(a).sum()) for (a,) in _pieces(x))
    span = value_range(x)
    if total == 0:
        return math.inf
    return 20 * math.log10(span) - 10 * math.log10(total / count) if span > 0 else -math.inf


def _set_value(bound: Abs | Rel | PointwiseRel | PSNR) -> None:
    """Make the bound's value a plain float (it may be a NumPy scalar, which JSON does not know), and check it."""
    kind = type(bound).__struct_config__.tag
    try:
        value = math.nan if isinstance(bound.value, str) else float(bound.value)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise BoundError(
            f"the {kind} bound must be a positive finite number, got {bound.value!r} at $.bound.value; "
            "for no loss at all use Lossless()"
        )
    msgspec.structs.force_setattr(bound, "value", value)


def _check_comparable(x: np.ndarray, y: np.ndarray, *, real: bool) -> None:
    if x.shape != y.shape or x.dtype.newbyteorder("=") != y.dtype.newbyteorder("="):
        raise ShapeError(f"cannot compare {x.dtype} of shape {x.shape} with {y.dtype} of shape {y.shape}")
    if real:
        _check_real(x)


def _check_real(x: np.ndarray) -> None:
    if x.dtype.kind == "c":
        raise ShapeError(f"error bounds are for real numbers, got {x.dtype}; use Lossless(), or x.real and x.imag")


def _pieces(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield flat pieces, in the machine's byte order, of arrays that agree in shape."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, arrays[0].size, _PIECE):
        yield tuple(array[start : start + _PIECE].astype(array.dtype.newbyteorder("="), copy=False) for array in flat)


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint8)


def _special_kept(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether NaN and infinities of `x` stand in `y` bit for bit, and no new ones appeared."""
    special = ~is_finite(x)
    if not np.array_equal(special, ~is_finite(y)):
        return False
    return bool(np.array_equal(_bits(x[special]), _bits(y[special])))


def _within(x: np.ndarray, y: np.ndarray, limits: np.ndarray | np.float64) -> bool:
    """Whether ``|x - y| <= limits``, elements that are not finite aside."""
    if x.dtype.kind in "iu":
        whole = np.floor(limits)
        huge = whole >= 2.0**64
        return bool((huge | (_distance(x, y) <= np.where(huge, 0, whole).astype(np.uint64))).all())
    return bool((_error(x, y) <= limits).all())


def _distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ``|x - y|`` of integers, exactly: the difference of two int64 fits in uint64."""
    return (np.maximum(x, y) - np.minimum(x, y)).view(f"u{x.itemsize}")


def _error(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ``|x - y|`` in float64: 0 where `x` is not finite, inf where only `y` is not."""
    if x.dtype.kind == "b":
        return (x != y).astype(np.float64)
    if x.dtype.kind in "iu":
        return _distance(x, y).astype(np.float64)
    finite = is_finite(x)
    with np.errstate(over="ignore"):  # the difference of two huge numbers may be inf: that is a violation
        difference = np.where(finite, x, 0).astype(np.float64) - np.where(finite, y, 0).astype(np.float64)
    return np.where(np.isnan(difference), np.inf, np.abs(difference))
