"""Integers as byte tokens and raw extra bits, the specification.

An int32 ``d`` is first folded to an unsigned ``z``: 2 d for d >= 0 and -2 d - 1 below, so that small numbers of either
sign are small. Values z < 8 are tokens of their own. A larger z with its highest bit at e (3 to 31) becomes the token
``4 e - 4 + m``, where m are the two bits below the highest, and its e - 2 lowest bits are extra bits. Tokens thus grow
with the logarithm of the magnitude, stay below `NUM_TOKENS`, and no integer needs an escape. Extra bits stand one after
another in the order of the integers and fill bytes from the least significant bit. Where there are any, zeros fill them
up to at least 8 bytes.
"""

from __future__ import annotations

import numpy as np

NUM_TOKENS = 124
NUM_DIRECT = 8


def max_extra_size(num_values: int) -> int:
    """Return how many bytes the extra bits of `num_values` integers may take at most, with room to write in words."""
    return (num_values * 29 + 7) // 8 + 8


def encode(rows: np.ndarray, margin: int, tokens: np.ndarray, extra: np.ndarray) -> int:
    """Split integers into `tokens` (uint8[m, n]) and the bits in `extra` (uint8); return the bytes of the extra bits.

    The integers are ``rows[:, margin : margin + n]`` (int32), in C order. `extra` holds at least `max_extra_size(m *
    n)` bytes.
    """
    values = rows[:, margin : margin + tokens.shape[1]]
    folded = ((values << 1) ^ (values >> 31)).view(np.uint32).reshape(-1)
    text, flat = [], tokens.reshape(-1)
    for i, z in enumerate(map(int, folded)):
        width = z.bit_length() - 3
        flat[i] = z if z < NUM_DIRECT else 4 * width + 4 + (z >> width & 3)
        if width > 0:
            text.append(format(z & ((1 << width) - 1), f"0{width}b")[::-1])
    bits = np.frombuffer("".join(text).encode(), np.uint8) - ord("0")
    packed = np.packbits(bits, bitorder="little")
    if packed.size:
        packed = np.pad(packed, (0, max(8 - packed.size, 0)))
    extra[: packed.size] = packed
    return packed.size


def decode(tokens: np.ndarray, extra: np.ndarray, margin: int, rows: np.ndarray) -> int:
    """Fill ``rows[:, margin : margin + n]`` (int32) from `tokens` (uint8[m, n], each below `NUM_TOKENS`) and `extra`.

    Returns 0, or -1 if the two disagree.
    """
    bits = np.unpackbits(extra, bitorder="little")
    at = 0
    for (r, k), token in np.ndenumerate(tokens):
        width = max(int(token) // 4 - 1, 0)
        if at + width > bits.size:
            return -1
        z = int(token) if width == 0 else (4 | int(token) & 3) << width
        for b in range(width):
            z |= int(bits[at + b]) << b
        at += width
        rows[r, margin + k] = (z >> 1) ^ -(z & 1)
    end = (at + 7) // 8
    return 0 if extra.size == (max(end, 8) if end else 0) else -1
