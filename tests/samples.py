"""Arrays that the tests share: every dtype, with the special values that it has, from a seed."""

from __future__ import annotations

import numpy as np

from trimtab.bounds import Abs, Bound, Rel
from trimtab.codecs import Codec
from trimtab.dtypes import FLOATS, NAMES, numpy_dtype

SHAPES = [(), (0,), (1,), (3, 0, 2), (2,), (997,), (31, 37), (13, 17, 19), (5, 3, 4, 7), (2, 3, 5, 3, 7)]
"""Empty, 0-d, one element, prime sizes, one to five axes."""

WIDE = {"int16", "int32", "int64", "uint16", "uint32", "uint64"}


def sample(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return elements as trained weights, fields and counts have them: of few magnitudes."""
    rng = np.random.default_rng(seed)
    dtype = numpy_dtype(name)
    if name == "bool":
        return np.asarray(rng.random(shape) < 0.2)
    if name in WIDE or name in ("int8", "uint8"):
        return np.asarray(rng.integers(0, 50, shape)).astype(dtype)
    if name.startswith("complex"):
        return np.asarray(rng.normal(0, 0.02, shape) + 1j * rng.normal(0, 0.02, shape)).astype(dtype)
    if name == "float8_e8m0fnu":  # powers of two only
        return np.asarray(rng.integers(120, 130, shape), np.uint8).view(dtype)
    return np.asarray(rng.normal(0, 0.02, shape)).astype(dtype)


def random_bits(name: str, size: int, seed: int = 0) -> np.ndarray:
    """Return elements of any bit pattern: NaN payloads, infinities, -0.0 and denormals among them."""
    dtype = numpy_dtype(name)
    raw = np.random.default_rng(seed).integers(0, 256, size * dtype.itemsize, np.uint8)
    return (raw & 1).astype(bool) if name == "bool" else raw.view(dtype)


def special(name: str) -> np.ndarray:
    """Return one of each special value of a real floating-point dtype, two NaN payloads included."""
    dtype = numpy_dtype(name)
    assert name in FLOATS
    bits = np.dtype(f"u{dtype.itemsize}")
    sign = 1 << (8 * dtype.itemsize - 1)
    infinity = int(np.array(np.inf).astype(dtype).view(bits))
    values = [0, sign, 1, sign | 1, infinity - 1, sign | infinity, infinity, infinity + 1, sign | (sign - 1)]
    return np.array(values, bits).view(dtype)


def same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays agree in dtype, shape and every bit, whatever their byte order and strides."""
    if x.dtype.newbyteorder("=") != y.dtype.newbyteorder("=") or x.shape != y.shape:
        return False
    little = [np.ascontiguousarray(a, a.dtype.newbyteorder("<")).tobytes() for a in (x, y)]
    return little[0] == little[1]


def promised(codec: Codec, bound: Bound) -> Bound:
    """Return the loosest bound that a codec may state, and keep, where `bound` is asked for."""
    relaxed = getattr(codec, "relaxed", 1)
    return type(bound)(relaxed * bound.value) if relaxed > 1 and isinstance(bound, Abs | Rel) else bound


ALL = list(NAMES)
