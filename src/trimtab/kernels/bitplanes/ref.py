"""Short fixed-length codes for bfloat16 exponents, stored as bit planes, with escapes: the specification.

A bfloat16 splits into a byte ``sign << 7 | mantissa`` and an exponent byte, of which a trained weight uses few values.
With `base` b, the distance of an exponent E is ``d = (b - E) mod 256``. Its code of `width` w bits is
``min(d, 2**w - 1)``; the code of all ones is an escape. The escapes' distances form a list that is coded once more:
a code of `next_width` v bits is the position of d in a list of ``2**v - 1`` distances, and all ones again means that
the byte d itself stands in a last list.

Both lists of codes are stored in blocks of 4096 as planes of ``stride = ceil(n / 8)`` bytes, where n is the number of
codes of the block: bit j of byte i of plane k is bit k of code ``j * stride + i``. What is missing at the end of a last
block has code 0. Escapes are listed block by block, within a block by byte i, then by bit j: in the order of the set
bits of the AND of all planes.
"""

from __future__ import annotations

import numpy as np

BLOCK = 4096
LANES = 8
RUN = 64
WIDTHS = (2, 3, 4)


def plane_bytes(num_elements: int, width: int) -> int:
    """Return the size of the planes of an array, which starts at a block's edge."""
    whole, rest = divmod(num_elements, BLOCK)
    return width * (whole * (BLOCK // LANES) + -(-rest // LANES))


def survey(halves: np.ndarray, step: int, counts: np.ndarray) -> None:
    """Count the exponents (int64[256]) in runs of 64 elements, one run every `step` elements of uint16 `halves`."""
    sampled = np.arange(halves.size) % max(step, RUN) < RUN
    counts[...] = np.bincount((halves[sampled] >> 7) & 255, minlength=256)


def choose(counts: np.ndarray, distances: np.ndarray) -> tuple[int, int, int, int]:
    """Choose the cheapest code for these exponent counts (int64[256]).

    Returns (base, width, next_width, price in quarter bits) and writes the list of the second code into
    `distances` (uint8[15]), padded with zeros. An escape is priced a quarter bit above its size, for its time.
    """
    best: tuple[int, int, int, int] | None = None
    for width in WIDTHS:
        window = (1 << width) - 1
        inside = [sum(int(counts[(base - d) % 256]) for d in range(window)) for base in range(256)]
        base = inside.index(max(inside))
        outside = sorted(range(window, 256), key=lambda d: -int(counts[(base - d) % 256]))
        num_escapes = int(counts.sum()) - inside[base]
        for next_width in WIDTHS:
            listed = outside[: (1 << next_width) - 1]
            num_raw = num_escapes - sum(int(counts[(base - d) % 256]) for d in listed)
            price = 4 * width * int(counts.sum()) + (4 * next_width + 1) * num_escapes + 32 * num_raw
            if best is None or price < best[3]:
                best = (base, width, next_width, price)
                distances[...] = 0
                distances[: len(listed)] = listed
    assert best is not None
    return best


def encode(
    halves: np.ndarray,
    base: int,
    width: int,
    next_width: int,
    distances: np.ndarray,
    signs: np.ndarray,
    planes: np.ndarray,
    tail: np.ndarray,
) -> tuple[int, int]:
    """Encode uint16 `halves`; return the number of escapes and of those outside the list.

    `signs` (uint8, one an element) and `planes` (uint8, `plane_bytes`) are filled. `tail` (uint8) holds at least
    ``plane_bytes(n, next_width) + n`` bytes; the second planes and the last list are written to its start.
    """
    signs[...] = (halves >> 8 & 0x80) | (halves & 0x7F)
    far = ((base - (halves >> 7 & 255).astype(np.int64)) % 256).astype(np.uint8)
    codes = np.minimum(far, (1 << width) - 1)
    planes[...] = _pack(codes, width)
    far = far[_escapes(codes, width)]
    listed = distances[: (1 << next_width) - 1].tolist()
    codes = np.array([listed.index(d) if d in listed else len(listed) for d in far.tolist()], np.uint8)
    raw = far[_escapes(codes, next_width)]
    packed = np.concatenate([_pack(codes, next_width), raw])
    tail[: packed.size] = packed
    return far.size, raw.size


def decode(
    signs: np.ndarray,
    planes: np.ndarray,
    tail: np.ndarray,
    num_escapes: int,
    base: int,
    width: int,
    next_width: int,
    distances: np.ndarray,
    halves: np.ndarray,
) -> bool:
    """Fill uint16 `halves` from what `encode` wrote; return False where the parts contradict each other.

    `signs` and `planes` have the sizes that `halves` demands, `tail` is at least as long as its second planes.
    """
    num_coded = plane_bytes(num_escapes, next_width)
    listed = (1 << next_width) - 1
    codes = _unpack(tail[:num_coded], next_width, num_escapes)
    far = _unpack(planes, width, halves.size)
    if codes is None or far is None:
        return False
    raw, escapes = _escapes(codes, next_width), _escapes(far, width)
    if raw.size != tail.size - num_coded or escapes.size != num_escapes:
        return False
    values = np.append(distances[:listed], np.uint8(0))[codes]
    values[raw] = tail[num_coded:]
    far[escapes] = values
    exponents = (base - far.astype(np.int64)) % 256
    low = signs.astype(np.int64)
    halves[...] = (low & 0x80) << 8 | exponents << 7 | low & 0x7F
    return True


def _lanes(codes: np.ndarray) -> np.ndarray:
    """Return the codes of one block as 8 lanes, filled up with zeros."""
    stride = -(-codes.size // LANES)
    return np.pad(codes, (0, LANES * stride - codes.size)).reshape(LANES, stride)


def _pack(codes: np.ndarray, width: int) -> np.ndarray:
    planes = [np.empty(0, np.uint8)]
    for start in range(0, codes.size, BLOCK):
        lanes = _lanes(codes[start : start + BLOCK])
        planes += [np.packbits(lanes >> k & 1, axis=0, bitorder="little").reshape(-1) for k in range(width)]
    return np.concatenate(planes)


def _unpack(planes: np.ndarray, width: int, num_codes: int) -> np.ndarray | None:
    """Return the codes, or None if a missing one is not 0."""
    codes = np.empty(num_codes, np.uint8)
    for start in range(0, num_codes, BLOCK):
        piece = codes[start : start + BLOCK]
        at = plane_bytes(start, width)
        block = planes[at : at + plane_bytes(piece.size, width)].reshape(width, 1, -1)
        bits = np.unpackbits(block, axis=1, bitorder="little")
        lanes = sum((bits[k] << k for k in range(1, width)), bits[0]).reshape(-1)
        if lanes[piece.size :].any():
            return None
        piece[...] = lanes[: piece.size]
    return codes


def _escapes(codes: np.ndarray, width: int) -> np.ndarray:
    """Return the positions of the codes of all ones, in the order in which escapes are listed."""
    positions = [np.empty(0, np.int64)]
    for start in range(0, codes.size, BLOCK):
        lanes = _lanes(codes[start : start + BLOCK])
        byte, bit = np.nonzero(np.equal(lanes.T, (1 << width) - 1))
        positions.append(start + bit * lanes.shape[1] + byte)
    return np.concatenate(positions)
