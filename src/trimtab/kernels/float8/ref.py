"""Floats as 8-bit floats with one or two scales a group, the specification.

After TACO ("TACO: Efficient Communication Compression of Intermediate Tensors for Scalable Tensor-Parallel LLM
Training", HPDC 2026, arXiv 2604.24088), whose two scales are algebraically one: alpha multiplies what the quantisation
scale divides by. Differences:

- values are held within the largest number of the format that is in use;
- the last group is filled up with zeros and sent whole, since a transform cannot be undone from a part of it;
- NaN and infinities make their group NaN throughout, where the published code makes them 0: what is broken stays
  visibly broken. So do elements too large for the two scales, which the published code cuts off;
- one scale a group is offered beside two.

Elements are float32, or bfloat16 as uint16 words, which are widened first; all sums, products, quotients and roots
below are rounded to float32, one by one. A payload holds a byte an element, then the float32 scales q of all groups,
then, with two scales, those called alpha; numbers are little-endian. A group is `group` elements, a power of two.

    alpha = MAX / sqrt(mean(x^2) + 1e-6)       held within 1e-3 and 1e3; 1 with one scale
    z     = x alpha                            with a Hadamard transform, transformed and times 1 / sqrt(group)
    q     = largest |z| / target               with two scales, held within 1e-12 and 1e6
    byte  = z (1 / q)                          held within -MAX and MAX, rounded to the nearest, ties to even
    z     = byte (q / alpha)                   decoded

MAX is the largest number of the format: 448 of "e4m3", 57344 of "e5m2". The mean is a sum by halves, the second half of
the squares added to the first until one is left, times 1 / group. Where largest |z| is NaN or infinite, or, with two
scales, above 1e6 target, q is NaN, alpha is 1 and the bytes are 0. With one scale q and the bytes are 0 where largest
|z| is below 2^-110.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from trimtab.kernels.groups.ref import _narrow, _wide
from trimtab.kernels.hadamard import ref as hadamard

MAXIMUM = {"e4m3": 448.0, "e5m2": 57344.0}
SMALLEST = 2.0**-110
"""With one scale, a group whose elements are all smaller is sent as zeros: its scale could not be inverted."""

LAMBDA = np.float32(1e-6)
ALPHA_RANGE = np.float32(1e-3), np.float32(1e3)
SCALE_RANGE = np.float32(1e-12), np.float32(1e6)

_DTYPES = {"e4m3": np.dtype(ml_dtypes.float8_e4m3fn), "e5m2": np.dtype(ml_dtypes.float8_e5m2)}


def payload_bytes(num: int, group: int, scales: int) -> int:
    """Return the bytes of the payload of `num` elements."""
    return -(-num // group) * (group + 4 * scales)


def encode(x: np.ndarray, payload: np.ndarray, format: str, group: int, order: int, scales: int, target: float) -> None:
    """Fill `payload` (uint8) with what stands for `x` (flat float32 or uint16).

    `group` is one of `hadamard.ORDERS`, and `order` is 0 or `group`. `target` is what the largest element of a group
    becomes, at most the largest number of the format.
    """
    num_groups = -(-x.size // group)
    wide = np.zeros(num_groups * group, np.float32)
    wide[: x.size] = _wide(x)
    codes = payload[: wide.size].reshape(num_groups, group)
    steps, alphas = np.zeros(num_groups, np.float32), np.ones(num_groups, np.float32)
    maximum, aim = np.float32(MAXIMUM[format]), np.float32(target)
    with np.errstate(over="ignore", invalid="ignore"):
        for g, z in enumerate(wide.reshape(num_groups, group)):
            if scales == 2:
                root = np.sqrt(_sum_by_halves(z * z) * np.float32(1 / group) + LAMBDA)
                alphas[g] = np.clip(maximum / root, *ALPHA_RANGE)
                z *= alphas[g]
            if order:
                hadamard.transform(z, order)
                z *= _unit(order)
            largest = np.abs(z).max()
            codes[g] = 0
            if not largest <= (SCALE_RANGE[1] * aim if scales == 2 else np.finfo(np.float32).max):
                steps[g], alphas[g] = np.nan, 1
            elif scales == 2 or largest >= SMALLEST:
                steps[g] = largest / aim
                if scales == 2:
                    steps[g] = np.clip(steps[g], *SCALE_RANGE)
                t = np.clip(z * (np.float32(1) / steps[g]), -maximum, maximum)
                codes[g] = t.astype(_DTYPES[format]).view(np.uint8)
    numbers = np.concatenate([steps, alphas] if scales == 2 else [steps])
    payload[wide.size :] = np.frombuffer(numbers.astype("<f4").tobytes(), np.uint8)


def decode(payload: np.ndarray, y: np.ndarray, format: str, group: int, order: int, scales: int) -> None:
    """Fill `y` (flat float32 or uint16) with what a payload of as many elements stands for."""
    decode_sum(payload[None], y, format, group, order, scales, 1.0)


def decode_sum(
    payloads: np.ndarray, y: np.ndarray, format: str, group: int, order: int, scales: int, scale: float
) -> None:
    """Fill `y` with `scale` times the sum of what the rows of `payloads` (uint8[rows, bytes]) stand for.

    Rows are added up in their order, transformed elements where there is a transform, which is undone once; the result
    is then multiplied by the float32 of scale / sqrt(order) (of scale without a transform).
    """
    num_groups = -(-y.size // group)
    size = num_groups * group
    total = np.empty((num_groups, group), np.float32)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for r, payload in enumerate(payloads):
            numbers = np.frombuffer(payload[size:].tobytes(), "<f4").reshape(scales, num_groups)
            steps = numbers[0] / numbers[1] if scales == 2 else numbers[0]
            values = payload[:size].view(_DTYPES[format]).astype(np.float32).reshape(num_groups, group)
            z = values * steps[:, None]
            total[...] = total + z if r else z
        z = total.reshape(-1)
        if order:
            hadamard.transform(z, order)
        y[...] = _narrow(z[: y.size] * np.float32(scale / math.sqrt(order) if order else scale), y.dtype)


def _sum_by_halves(squares: np.ndarray) -> np.float32:
    while squares.size > 1:
        half = squares.size // 2
        squares = squares[:half] + squares[half:]
    return squares[0]


def _unit(order: int) -> np.float32:
    return np.float32(1 / math.sqrt(order))
