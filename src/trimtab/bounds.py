"""What may be lost: the promise a codec makes about every element.

All bounds are evaluated in float64 on the array as the decoder returns it, in its own dtype. Special values:

- NaN (with its payload bits), +inf and -inf come back bit for bit, under every bound.
- The value range of `Rel` and `PSNR` is taken over the finite elements only.
- -0.0 may come back as +0.0 under `Abs`, `Rel` and `PSNR`; `Lossless` and `PointwiseRel` keep its sign.
- Denormals count as the numbers they are. None are flushed to zero, unless the bound allows that error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

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
        """Return whether `y` is an acceptable stand-in for `x` (same shape and dtype).

        Raises:
            ShapeError: the two differ in shape or dtype.
        """
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
        _check_positive("abs", self.value)

    def _limit(self, x: np.ndarray) -> float:
        return self.value

    def _piece_allowed(self, x: np.ndarray, y: np.ndarray, limit: float) -> bool:
        return _special_kept(x, y) and bool((_error(x, y) <= limit).all())


class Rel(_Bound, frozen=True, tag="rel"):
    """``|x - y| <= value * (max(x) - min(x))`` for every element: relative to the value range."""

    value: float

    def __post_init__(self) -> None:
        _check_positive("rel", self.value)

    def _limit(self, x: np.ndarray) -> float:
        return self.value * value_range(x)

    _piece_allowed = Abs._piece_allowed


class PointwiseRel(_Bound, frozen=True, tag="pointwise_rel"):
    """``|x - y| <= value * |x|`` for every element; zeros keep their sign and stay zero."""

    value: float

    def __post_init__(self) -> None:
        _check_positive("pointwise_rel", self.value)

    def _piece_allowed(self, x: np.ndarray, y: np.ndarray, limit: float) -> bool:
        if not _special_kept(x, y) or not np.array_equal(np.signbit(x)[x == 0], np.signbit(y)[x == 0]):
            return False
        return bool((_error(x, y) <= self.value * np.abs(np.where(np.isfinite(x), x, 0).astype(np.float64))).all())


class PSNR(_Bound, frozen=True, tag="psnr"):
    """Peak signal-to-noise ratio of at least `value` dB: ``20 log10(range) - 10 log10(mean((x - y)^2))``."""

    value: float

    def __post_init__(self) -> None:
        _check_positive("psnr", self.value)

    def _piece_allowed(self, x: np.ndarray, y: np.ndarray, limit: float) -> bool:
        return _special_kept(x, y)

    def allows(self, x: np.ndarray, y: np.ndarray) -> bool:
        return _Bound.allows(self, x, y) and psnr(x, y) >= self.value


Bound = Lossless | Abs | Rel | PointwiseRel | PSNR


def value_range(x: np.ndarray) -> float:
    """Return max - min over the finite elements of `x` in float64; 0.0 where there are none."""
    low, high = math.inf, -math.inf
    for (piece,) in _pieces(x):
        finite = piece[np.isfinite(piece)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return high - low if high >= low else 0.0


def largest_error(x: np.ndarray, y: np.ndarray) -> float:
    """Return max ``|x - y|`` in float64 over the elements of `x` that are finite; 0.0 where there are none."""
    return max((float(_error(a, b).max()) for a, b in _pieces(x, y) if a.size), default=0.0)


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB over the finite elements of `x`; inf where they are equal."""
    total = sum(float(np.square(_error(a, b)).sum()) for a, b in _pieces(x, y))
    count = sum(int(np.isfinite(a).sum()) for (a,) in _pieces(x))
    span = value_range(x)
    if total == 0:
        return math.inf
    return 20 * math.log10(span) - 10 * math.log10(total / count) if span > 0 else -math.inf


def _check_positive(kind: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise BoundError(
            f"the {kind} bound must be a positive finite number, got {value} at $.bound.value; "
            "for no loss at all use Lossless()"
        )


def _pieces(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield flat pieces of arrays that agree in shape and dtype."""
    first = arrays[0]
    for other in arrays[1:]:
        if other.shape != first.shape or other.dtype != first.dtype:
            raise ShapeError(
                f"cannot compare {first.dtype} of shape {first.shape} with {other.dtype} of shape {other.shape}"
            )
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, first.size, _PIECE):
        yield tuple(array[start : start + _PIECE] for array in flat)


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint8)


def _special_kept(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether NaN and infinities of `x` stand in `y` bit for bit, and no new ones appeared."""
    special = ~np.isfinite(x)
    if not np.array_equal(special, ~np.isfinite(y)):
        return False
    return bool(np.array_equal(_bits(x[special]), _bits(y[special])))


def _error(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ``|x - y|`` in float64, 0 where `x` is not finite."""
    finite = np.isfinite(x)
    with np.errstate(over="ignore"):  # the difference of two huge numbers may be inf: that is a violation
        difference = np.where(finite, x, 0).astype(np.float64) - np.where(finite, y, 0).astype(np.float64)
    return np.abs(difference)
