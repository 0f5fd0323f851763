"""Runs of zero tokens as symbols of their own, the specification.

Symbols below 241 are tokens. Symbol 240 + j, for j from 1 to 15, is a run of 2^j zeros. A run of zeros of any length is
cut into such runs and at most one single zero: as many of 2^15 as fit, then the binary digits of the rest, lowest
first.
"""

from __future__ import annotations

import numpy as np

NUM_TOKENS = 241
MAX_POWER = 15


def fold(tokens: np.ndarray, symbols: np.ndarray) -> int:
    """Fill `symbols` (uint8) from `tokens` (uint8, each below `NUM_TOKENS`); return their number.

    There is room for 8 symbols more than there are tokens; what lies behind the symbols may be overwritten.
    """
    found: list[int] = []
    edges = np.flatnonzero(np.diff(tokens != 0, prepend=True, append=True))  # where runs of zeros begin and end
    begin = 0
    for start, end in edges.reshape(-1, 2).tolist():
        found += tokens[begin:start].tolist()
        whole, rest = divmod(end - start, 1 << MAX_POWER)
        found += [NUM_TOKENS - 1 + MAX_POWER] * whole
        found += [NUM_TOKENS - 1 + j if j else 0 for j in range(MAX_POWER) if rest >> j & 1]
        begin = end
    found += tokens[begin:].tolist()
    symbols[: len(found)] = found
    return len(found)


def unfold(symbols: np.ndarray, tokens: np.ndarray) -> int:
    """Fill `tokens` (uint8) from `symbols` (uint8); return 0, or -1 if these are not the symbols of so many tokens."""
    powers = np.maximum(symbols.astype(np.int64) - (NUM_TOKENS - 1), 0)
    if (1 << powers).sum() != tokens.size:
        return -1
    tokens[:] = np.repeat(np.where(powers > 0, 0, symbols), 1 << powers)
    return 0
