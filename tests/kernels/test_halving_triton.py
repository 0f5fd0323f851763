"""Halving packs and two-width exponents on the device: the bytes are those of the specification, chunk by chunk."""

from __future__ import annotations

import numpy as np
import pytest

from tests.device import DEVICE
from trimtab.kernels.halving import ref

torch = pytest.importorskip("torch")
triton = pytest.importorskip("trimtab.kernels.halving.triton", exc_type=ImportError)

CHUNK = 2 * ref.BLOCK
SIZES = (0, 1, 127, 129, 5000, 16_385, 50_001)


def there(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.copy()).to(DEVICE)


def room(size: int) -> torch.Tensor:
    return torch.full((size,), 77, dtype=torch.uint8, device=DEVICE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", range(9))
def test_packs_agree_and_read_back(size: int, width: int) -> None:
    lanes = np.random.default_rng(size).integers(0, 1 << width, size, dtype=np.uint8)
    expected, packed = np.empty(ref.packed_bytes(size, width), np.uint8), room(ref.packed_bytes(size, width))
    ref.pack(lanes, width, expected)
    triton.pack(there(lanes), width, packed)
    assert np.array_equal(packed.cpu().numpy(), expected)
    back = room(size)
    triton.unpack(packed, width, back)
    assert np.array_equal(back.cpu().numpy(), lanes)


def by_reference(exponents: np.ndarray, base: int, bits: int, low_bits: int):
    parts = []
    for start in range(0, exponents.size, CHUNK):
        piece = exponents[start : start + CHUNK]
        low = np.empty(ref.packed_bytes(piece.size, low_bits), np.uint8)
        masks = np.empty(ref.mask_bytes(piece.size, bits, low_bits, triton.GROUP), np.uint8)
        high = np.zeros(ref.high_bytes(ref.padded(piece.size), bits - low_bits), np.uint8)
        num = ref.encode(piece, base, bits, low_bits, triton.GROUP, low, masks, high)
        parts.append((low, masks, high[: ref.high_bytes(num, bits - low_bits)], [num]))
    empty = (np.empty(0, np.uint8),) * 3 + (np.empty(0, np.int64),)
    return tuple(map(np.concatenate, zip(*parts, strict=True))) if parts else empty


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("base", "bits", "low_bits"), [(123, 6, 3), (127, 8, 4), (7, 0, 0), (1, 1, 1), (122, 5, 1)])
@pytest.mark.parametrize("spread", [0, 2, 60])
def test_device_agrees_and_reads_back(size: int, base: int, bits: int, low_bits: int, spread: int) -> None:
    half = 1 << bits >> 1
    drawn = np.round(np.random.default_rng(size).standard_normal(size) * spread)
    exponents = ((base - np.clip(drawn, -half, max(half - 1, 0)).astype(int)) % 256).astype(np.uint8)
    low, masks, high, num_high = by_reference(exponents, base, bits, low_bits)
    device_low, device_masks = room(low.size), room(masks.size)
    made = triton.encode_chunks(there(exponents), CHUNK, base, bits, low_bits, device_low, device_masks)
    assert np.array_equal(made[0], num_high)
    for got, expected in ((device_low, low), (device_masks, masks), (made[1], high)):
        assert np.array_equal(got.cpu().numpy(), expected)
    back = room(size)
    assert triton.decode_chunks(device_low, device_masks, made[1], CHUNK, base, bits, low_bits, back)
    assert np.array_equal(back.cpu().numpy(), exponents)


def test_high_bits_of_another_length_are_refused() -> None:
    exponents = np.full(5000, 123 - 9, np.uint8)
    low, masks, high, _ = (there(part) for part in by_reference(exponents, 123, 6, 3))
    assert triton.decode_chunks(low, masks, high, CHUNK, 123, 6, 3, room(5000))
    assert not triton.decode_chunks(low, masks, high[1:], CHUNK, 123, 6, 3, room(5000))
    masks[:4] = 0
    assert not triton.decode_chunks(low, masks, high, CHUNK, 123, 6, 3, room(5000))
