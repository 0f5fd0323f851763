"""Floats as packed integers of 2 to 8 bits with one scale a group, the specification.

After the quantiser of SDP4Bit (Jia et al., NeurIPS 2024, arXiv 2410.15526): symmetric levels, a Hadamard transform
before them, stochastic rounding. Differences:

- the noise comes from a counter-based generator (`noise_key`), where the published code asks the clock: one seed, one
  result, on every machine;
- any number of elements and 2 to 8 bits, where the published code takes multiples of the group and 4 or 8 bits;
- a group of zeros has the scale 0.

Elements are float32, or bfloat16 as uint16 words, which are widened first; all sums, products and quotients below are
rounded to float32, one by one. A payload holds the float32 scales of all groups and then their codes, little-endian.

A group is `group` elements, a power of two; the last one has as many as are left, rounded up to a power of two of at
least max(order, 8), zeros behind. With a Hadamard transform (`order` not 0) each `order` elements are transformed
first (`trimtab.kernels.hadamard`), and the codes stand for the transformed elements z. With L = 2^(bits - 1) - 1:

    scale = largest |z| / L              0 where that is below 2^-118; NaN where it is infinite or NaN
    t     = z (L / largest |z|)          held within -L and L; 0 where the scale is 0 or NaN
    code  = L + round(t + noise)         to the nearest integer, ties to even
    z     = (code - L) scale             decoded

So a group with NaN or an infinity in it decodes to NaN throughout: what is broken stays visibly broken. Without a key
there is no noise; with one, that of element i is (k + 1/2) / 2^16 - 1/2, where k is the upper half of a hash of i:

    h = i + key                          the lower 32 bits of both
    h = (h ^ h >> 16) 0x7feb352d
    h = (h ^ h >> 15) + (key >> 32) + 0x9e3779b9 (i >> 32)
    h = (h ^ h >> 16) 0x846ca68b
    k = (h ^ h >> 16) >> 16              all modulo 2^32

so that whole numbers t stay what they are. Codes are cut into parts of 8, 4, 2 or 1 bits, those of the number `bits` in
binary, the widest at the low end of the code and first in the payload. A part of w bits of n codes takes m = n w / 8
bytes: byte j holds those of codes j, j + m, j + 2 m, ..., from the lowest bits up.
"""

from __future__ import annotations

import numpy as np

from trimtab.kernels.hadamard import ref as hadamard

BITS = range(2, 9)
SMALLEST = 2.0**-118
"""A group whose elements are all smaller is sent as zeros: its scale could not be inverted."""

_MASK64 = (1 << 64) - 1


def noise_key(seed: int, rank: int = 0, step: int = 0, bucket: int = 0, stage: int = 0) -> int:
    """Return the 64-bit key of the noise: a mix of the numbers that tell one payload from all others.

    The mix is splitmix64's (Steele, Lea and Flood, OOPSLA 2014), over one number after another.
    """
    key = 0
    for number in (seed, rank, step, bucket, stage):
        key = (key + number + 0x9E3779B97F4A7C15) & _MASK64
        key = ((key ^ key >> 30) * 0xBF58476D1CE4E5B9) & _MASK64
        key = ((key ^ key >> 27) * 0x94D049BB133111EB) & _MASK64
        key ^= key >> 31
    return key


def padded(num: int, group: int, order: int) -> int:
    """Return how many codes stand for `num` elements."""
    rest = num % group
    return num - rest + (max(1 << (rest - 1).bit_length(), order, 8) if rest else 0)


def payload_bytes(num: int, bits: int, group: int, order: int) -> int:
    """Return the bytes of the payload of `num` elements."""
    return 4 * -(-num // group) + padded(num, group, order) * bits // 8


def encode(x: np.ndarray, payload: np.ndarray, bits: int, group: int, order: int, key: int | None) -> None:
    """Fill `payload` (uint8) with what stands for `x` (flat float32 or uint16); round to nearest where `key` is None.

    `group` is a power of two, at least 8 and at least `order`, which is 0 or one of `hadamard.ORDERS`.
    """
    z = np.zeros(padded(x.size, group, order), np.float32)
    z[: x.size] = _wide(x)
    if order:
        hadamard.transform(z, order)
    _quantise(z, payload, bits, group, key)


def decode(payload: np.ndarray, y: np.ndarray, bits: int, group: int, order: int) -> None:
    """Fill `y` (flat float32 or uint16) with what a payload of as many elements stands for."""
    decode_sum(payload[None], y, bits, group, order, 1.0)


def decode_sum(payloads: np.ndarray, y: np.ndarray, bits: int, group: int, order: int, scale: float) -> None:
    """Fill `y` with `scale` times the sum of what the rows of `payloads` (uint8[rows, bytes]) stand for.

    Rows are added up in their order, transformed elements where there is a transform, which is undone once; the result
    is then multiplied by the float32 of scale / order (of scale without a transform).
    """
    z = _summed(payloads, padded(y.size, group, order), bits, group)
    if order:
        hadamard.transform(z, order)
    with np.errstate(over="ignore", invalid="ignore"):
        y[...] = _narrow(z[: y.size] * np.float32(scale / max(order, 1)), y.dtype)


def decode_sum_encode(
    payloads: np.ndarray,
    out: np.ndarray,
    num: int,
    bits: int,
    group: int,
    out_bits: int,
    out_group: int,
    order: int,
    key: int | None,
) -> None:
    """Sum the rows of `payloads` as `decode_sum` does and fill the payload `out` with the sum, both still transformed.

    `num` elements went into each row. `out` is a payload of them, with `out_bits`, `out_group` and the same order.
    """
    size, out_size = padded(num, group, order), padded(num, out_group, order)
    z = np.zeros(max(size, out_size), np.float32)
    z[:size] = _summed(payloads, size, bits, group)
    _quantise(z[:out_size], out, out_bits, out_group, key)


def encode_difference(
    x: np.ndarray, reference: np.ndarray, payload: np.ndarray, bits: int, group: int, key: int | None
) -> None:
    """Fill `payload` with what stands for ``x - reference`` (each flat float32 or uint16), without a transform."""
    with np.errstate(over="ignore", invalid="ignore"):
        encode(_wide(x) - _wide(reference), payload, bits, group, 0, key)


def decode_add(payload: np.ndarray, reference: np.ndarray, bits: int, group: int) -> None:
    """Add what `payload` stands for to `reference` (flat float32 or uint16), rounded to its type."""
    y = np.empty(reference.size, np.float32)
    decode(payload, y, bits, group, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        reference[...] = _narrow(_wide(reference) + y, reference.dtype)


def _quantise(z: np.ndarray, payload: np.ndarray, bits: int, group: int, key: int | None) -> None:
    levels = np.float32((1 << (bits - 1)) - 1)
    num_groups = -(-z.size // group)
    noise = np.zeros_like(z) if key is None else _noise(np.arange(z.size, dtype=np.uint64), key)
    scales, place = np.zeros(num_groups, np.float32), 4 * num_groups
    for g, start in enumerate(range(0, z.size, group)):
        v = z[start : start + group]
        largest = np.abs(v).max()
        t = np.zeros_like(v)
        if not np.isfinite(largest):
            scales[g] = np.nan
        elif largest >= SMALLEST:
            scales[g] = largest / levels
            t = np.clip(v * (levels / largest), -levels, levels)
            t = np.rint(t + noise[start : start + group])
        packed = _pack((t + levels).astype(np.uint8), bits)
        payload[place : place + packed.size] = packed
        place += packed.size
    payload[: 4 * num_groups] = np.frombuffer(scales.astype("<f4").tobytes(), np.uint8)


def _summed(payloads: np.ndarray, size: int, bits: int, group: int) -> np.ndarray:
    """Return the sum of `size` elements of each row, in the order of rows."""
    total = np.empty(size, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for r, payload in enumerate(payloads):
            z = _dequantised(payload, size, bits, group)
            total[...] = total + z if r else z
    return total


def _dequantised(payload: np.ndarray, size: int, bits: int, group: int) -> np.ndarray:
    levels = (1 << (bits - 1)) - 1
    num_groups = -(-size // group)
    scales = np.frombuffer(payload[: 4 * num_groups].tobytes(), "<f4")
    z, place = np.empty(size, np.float32), 4 * num_groups
    for g, start in enumerate(range(0, size, group)):
        v = z[start : start + group]
        codes = _unpack(payload[place : place + v.size * bits // 8], bits)
        v[...] = (codes.astype(np.float32) - np.float32(levels)) * scales[g]
        place += v.size * bits // 8
    return z


def _noise(i: np.ndarray, key: int) -> np.ndarray:
    """Return the noise of elements `i` (uint64)."""
    h = (i + np.uint64(key & 0xFFFFFFFF)).astype(np.uint32)
    h = (h ^ h >> np.uint32(16)) * np.uint32(0x7FEB352D)
    h = (h ^ h >> np.uint32(15)) + np.uint32(key >> 32) + (i >> np.uint64(32)).astype(np.uint32) * np.uint32(0x9E3779B9)
    h = (h ^ h >> np.uint32(16)) * np.uint32(0x846CA68B)
    k = (h ^ h >> np.uint32(16)) >> np.uint32(16)
    return (k.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-16) - np.float32(0.5)


def _parts(bits: int) -> list[int]:
    return [width for width in (8, 4, 2, 1) if bits & width]


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    parts, done = [], 0
    for width in _parts(bits):
        fields = (codes >> done & ((1 << width) - 1)).reshape(8 // width, -1)
        parts.append(np.bitwise_or.reduce(fields << (width * np.arange(8 // width, dtype=np.uint8))[:, None], axis=0))
        done += width
    return np.concatenate(parts).astype(np.uint8)


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    size = packed.size * 8 // bits
    codes, place, done = np.zeros(size, np.uint8), 0, 0
    for width in _parts(bits):
        part = packed[place : place + size * width // 8]
        fields = part >> (width * np.arange(8 // width, dtype=np.uint8))[:, None] & ((1 << width) - 1)
        codes |= (fields.reshape(-1) << done).astype(np.uint8)
        place, done = place + part.size, done + width
    return codes


def _wide(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x


def _narrow(y: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round to the nearest bfloat16, ties to even, where `dtype` is uint16; NaN become 0x7fc0."""
    if dtype != np.uint16:
        return y
    bits = np.ascontiguousarray(y).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(y), 0x7FC0, rounded).astype(np.uint16)
