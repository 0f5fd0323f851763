"""Words that move bits by a mask, with and without the processor's help."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from trimtab.kernels import words


@numba.njit
def moved(word, mask):
    return (
        words.extract_bits(word, mask),
        words.extract_bits_plainly(word, mask),
        words.deposit_bits(word, mask),
        words.deposit_bits_plainly(word, mask),
    )


@numba.njit
def looked_at(data, value):
    at = np.uintp(data.ctypes.data)
    found = words.greater_bytes(at, value), words.marked_bytes(at, value)
    words.raise_bytes(at, found[0], value)
    return found


def masks() -> list[int]:
    rng = np.random.default_rng(0)
    dense = rng.integers(0, 2**64, (3, 100), np.uint64)
    return [0, 1, 2**63, 2**64 - 1, *dense[0].tolist(), *(dense[0] & dense[1] & dense[2]).tolist()]


@pytest.mark.parametrize("word", [0, 2**64 - 1, 0x0123456789ABCDEF, 0xF0E1D2C3B4A59687])
def test_bits_move_by_a_mask(word: int) -> None:
    for mask in masks():
        places = [place for place in range(64) if mask >> place & 1]
        down = sum((word >> place & 1) << k for k, place in enumerate(places))
        up = sum((word >> k & 1) << place for k, place in enumerate(places))
        assert moved(np.uint64(word), np.uint64(mask)) == (down, down, up, up)


@pytest.mark.parametrize("value", [0, 1, 5, 128, 254, 255])
def test_bytes_of_a_block_are_compared_and_raised(value: int) -> None:
    data = np.random.default_rng(1).integers(0, 256, 64).astype(np.uint8)
    data[:3] = value, max(value - 1, 0), min(value + 1, 255)
    before, byte = data.copy(), np.uint8(value)
    greater, marked = looked_at(data, byte)
    assert greater == int.from_bytes(np.packbits(before > byte, bitorder="little").tobytes(), "little")
    assert marked == int.from_bytes(np.packbits(before & byte != 0, bitorder="little").tobytes(), "little")
    assert np.array_equal(data, before + np.where(before > byte, byte, np.uint8(0)))
