"""Exponents in two widths, packed by halving, as ENEC was published (Yang et al., ISCA 2026): the specification.

An exponent x becomes ``y = (base - x) mod 2**bits``; back, y is sign-extended from `bits` bits and ``x = base - y``.
Blocks of 16384 elements are cut into groups of `group` elements that stand ``block / group`` apart. All elements store
the `low_bits` low bits of y; where the OR of a group exceeds them, its mask bit is set and its elements store the
``bits - low_bits`` high bits as well. High bits are collected in the order of the elements, over all blocks, and
packed 16384 at a time; the last pack is filled up with zeros to a multiple of 256.

The last block is filled up to a multiple of 128 with y = 0. Mask bits stand in order, lowest bit of a byte first; where
`bits` equals `low_bits` there are none.

Packing lanes of a width: while the width is below 8, the second half of the lanes is moved above the first, which
doubles the width and halves the lanes; then their low bytes are emitted and the bits above them go on in the same way.
Of the bytes emitted, those of the second half alternate with those of the first (a pair is one 16-bit word).
"""

from __future__ import annotations

import numpy as np

BLOCK = 16384
GRAIN = 128
HIGH_GRAIN = 256


def padded(num_elements: int) -> int:
    """Return the number of elements with those that fill up the last block."""
    return -(-num_elements // GRAIN) * GRAIN


def packed_bytes(num_lanes: int, width: int) -> int:
    """Return the bytes that lanes of this width take, filled up as a last block is."""
    return padded(num_lanes) * width // 8


def mask_bytes(num_elements: int, bits: int, low_bits: int, group: int) -> int:
    """Return the bytes that the mask bits take."""
    return padded(num_elements) // group // 8 if bits > low_bits else 0


def high_bytes(num_high: int, width: int) -> int:
    """Return the bytes that the high bits of `num_high` elements take."""
    return -(-num_high // HIGH_GRAIN) * HIGH_GRAIN * width // 8


def pack(lanes: np.ndarray, width: int, out: np.ndarray) -> None:
    """Pack `lanes` (uint8, of at most `width` bits) block by block into `out` (uint8, `packed_bytes`)."""
    at = 0
    for start in range(0, lanes.size, BLOCK):
        block = _filled(lanes[start : start + BLOCK], GRAIN)
        size = block.size * width // 8
        out[at : at + size] = _pack_block(block, width)
        at += size


def unpack(packed: np.ndarray, width: int, lanes: np.ndarray) -> None:
    """Fill `lanes` (uint8) with what `pack` packed."""
    at = 0
    for start in range(0, lanes.size, BLOCK):
        num = min(BLOCK, lanes.size - start)
        size = packed_bytes(num, width)
        lanes[start : start + num] = _unpack_block(packed[at : at + size], width, padded(num))[:num]
        at += size


def encode(
    exponents: np.ndarray,
    base: int,
    bits: int,
    low_bits: int,
    group: int,
    low: np.ndarray,
    masks: np.ndarray,
    high: np.ndarray,
) -> int:
    """Encode `exponents` (uint8) and return the number of elements that store high bits.

    `low` and `masks` (uint8, ``packed_bytes(n, low_bits)`` and `mask_bytes`) are filled; `high` (uint8) holds at least
    ``high_bytes(padded(n), bits - low_bits)``, of which the first ``high_bytes(returned, bits - low_bits)`` are filled.
    """
    mapped = ((base - exponents.astype(np.int64)) % (1 << bits)).astype(np.uint8)
    pack(mapped & ((1 << low_bits) - 1), low_bits, low)
    above = [np.empty(0, np.uint8)]
    flags = [np.empty(0, np.bool_)]
    for start in range(0, mapped.size, BLOCK):
        if bits == low_bits:
            break
        y = _filled(mapped[start : start + BLOCK], GRAIN)
        merged = y
        while merged.size > y.size // group:
            merged = merged[: merged.size // 2] | merged[merged.size // 2 :]
        flags.append(merged > (1 << low_bits) - 1)
        above.append((y[np.tile(flags[-1], group)] >> low_bits).astype(np.uint8))
    masks[...] = np.packbits(np.concatenate(flags), bitorder="little")
    values = np.concatenate(above)
    at = 0
    for start in range(0, values.size, BLOCK):
        block = _pack_block(_filled(values[start : start + BLOCK], HIGH_GRAIN), bits - low_bits)
        high[at : at + block.size] = block
        at += block.size
    return values.size


def decode(
    low: np.ndarray,
    masks: np.ndarray,
    high: np.ndarray,
    base: int,
    bits: int,
    low_bits: int,
    group: int,
    exponents: np.ndarray,
) -> None:
    """Fill `exponents` (uint8) from what `encode` wrote; the sizes of the parts must be those that `encode` fills."""
    mapped = np.zeros(padded(exponents.size), np.uint8)
    unpack(low, low_bits, mapped)
    flags = np.unpackbits(masks, bitorder="little").astype(np.bool_)
    values = np.empty(int(flags.sum()) * group, np.uint8)
    at = 0
    for start in range(0, values.size, BLOCK):
        piece = values[start : start + BLOCK]
        size = high_bytes(piece.size, bits - low_bits)
        lanes = _unpack_block(high[at : at + size], bits - low_bits, size * 8 // (bits - low_bits))
        piece[...] = lanes[: piece.size]
        at += size
    used = 0
    for start in range(0, mapped.size if bits > low_bits else 0, BLOCK):
        y = mapped[start : start + BLOCK]
        masked = np.tile(flags[start // group : (start + y.size) // group], group)
        num = int(masked.sum())
        y[masked] |= values[used : used + num] << low_bits
        used += num
    y = mapped[: exponents.size].astype(np.int64)
    half = 1 << bits >> 1
    exponents[...] = (base - ((y + half) % (1 << bits) - half)) % 256


def _filled(lanes: np.ndarray, grain: int) -> np.ndarray:
    return np.pad(lanes, (0, -lanes.size % grain))


def _pack_block(lanes: np.ndarray, width: int) -> np.ndarray:
    data = lanes.astype(np.uint32)
    emitted = [np.empty(0, np.uint8)]
    while width > 0:
        while width < 8:
            half = data.size // 2
            data = data[:half] | data[half:] << width
            width *= 2
        emitted.append((data & 255).astype(np.uint8))
        data = data >> 8
        width -= 8
    return np.concatenate(emitted).reshape(2, -1).T.reshape(-1)


def _unpack_block(packed: np.ndarray, width: int, num_lanes: int) -> np.ndarray:
    emitted = packed.reshape(-1, 2).T.reshape(-1).astype(np.uint32)
    stages = []  # (number of lanes, width before folding, folds), as the packer went through them
    size, residue = num_lanes, width
    while residue > 0:
        folds = 0
        while residue << folds < 8:
            folds += 1
        size >>= folds
        stages.append((size, residue, folds))
        residue = (residue << folds) - 8
    data = np.zeros(size, np.uint32)
    end = emitted.size
    for size, residue, folds in reversed(stages):
        data = data << 8 | emitted[end - size : end]
        end -= size
        for fold in reversed(range(folds)):
            narrow = residue << fold
            data = np.concatenate([data & ((1 << narrow) - 1), data >> narrow])
    return (data if width else np.zeros(num_lanes, np.uint32)).astype(np.uint8)
