"""Halving packs and two-width exponents: the fast twin agrees with the specification."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.halving import numba, ref

SIZES = (0, 1, 127, 128, 129, 5000, 16384, 16385, 40001)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", range(9))
def test_packs_agree_and_round_trip(size: int, width: int) -> None:
    lanes = np.random.default_rng(size).integers(0, 1 << width, size, dtype=np.uint8)
    fast, slow = (np.empty(ref.packed_bytes(size, width), np.uint8) for _ in range(2))
    numba.pack(lanes, width, fast)
    ref.pack(lanes, width, slow)
    assert np.array_equal(fast, slow)
    for module in (numba, ref):
        unpacked = np.full(size, 77, np.uint8)
        module.unpack(fast, width, unpacked)
        assert np.array_equal(unpacked, lanes)


def test_pack_of_three_bits_is_the_published_one() -> None:
    """16384 lanes of 3 bits -> 8192 of 6 -> 4096 of 12 -> 4096 low bytes, and 4096 of 4 bits -> 2048 bytes."""
    lanes = np.random.default_rng(3).integers(0, 8, 16384, dtype=np.uint8)
    packed = np.empty(6144, np.uint8)
    numba.pack(lanes, 3, packed)
    emitted = packed.reshape(-1, 2).T.reshape(-1).astype(int)
    for i in (0, 1, 1000, 2047):
        # lanes i and i + 8192 share six bits, and i + 4096 with i + 12288 stand above them
        twelve = int(lanes[i]) | int(lanes[i + 8192]) << 3 | int(lanes[i + 4096]) << 6 | int(lanes[i + 12288]) << 9
        assert emitted[i] == twelve & 255
        assert emitted[4096 + i] & 15 == twelve >> 8


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("base", "bits", "low_bits"), [(123, 6, 3), (127, 8, 4), (5, 3, 3), (7, 0, 0), (7, 1, 1), (122, 5, 1), (11, 5, 3)]
)
@pytest.mark.parametrize("group", [1, 2, 16])
def test_twins_agree_and_round_trip(size: int, base: int, bits: int, low_bits: int, group: int) -> None:
    half = 1 << bits >> 1
    drawn = np.round(np.random.default_rng(size).standard_normal(size) * 2 + 2)
    exponents = ((base - np.clip(drawn, -half, max(half - 1, 0)).astype(int)) % 256).astype(np.uint8)
    parts = []
    for module in (numba, ref):
        low = np.empty(ref.packed_bytes(size, low_bits), np.uint8)
        masks = np.empty(ref.mask_bytes(size, bits, low_bits, group), np.uint8)
        high = np.zeros(ref.high_bytes(ref.padded(size), bits - low_bits), np.uint8)
        num_high = module.encode(exponents, base, bits, low_bits, group, low, masks, high)
        parts.append((low, masks, high[: ref.high_bytes(num_high, bits - low_bits)]))
    assert all(np.array_equal(a, b) for a, b in zip(*parts, strict=True))
    for module in (numba, ref):
        decoded = np.full(size, 99, np.uint8)
        module.decode(*parts[0], base, bits, low_bits, group, decoded)
        assert np.array_equal(decoded, exponents)


def test_interleaved_groups() -> None:
    exponents = np.full(16384, 123, np.uint8)
    exponents[3 + 1024 * 5] = 123 - 8  # y = 8 does not fit in three bits
    low, masks, high = np.empty(6144, np.uint8), np.empty(128, np.uint8), np.empty(6144, np.uint8)
    assert ref.encode(exponents, 123, 6, 3, 16, low, masks, high) == 16
    assert np.flatnonzero(np.unpackbits(masks, bitorder="little")).tolist() == [3]
