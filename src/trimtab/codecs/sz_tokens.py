"""The entropy stage of SZ: a tile's tokens to a block of bytes and back."""

from __future__ import annotations

from typing import Literal

import numpy as np

from trimtab import kernels
from trimtab.errors import Corrupt

Level = Literal["fast", "balanced", "ratio"]
"""How much time the encoder and the decoder may take for a better ratio."""

CONTEXTS, HUFFMAN, RUNS = 0, 1, 2
_RUNS_PAY = 0.6  # share of zeros from which runs make a Huffman code shorter, and quicker


def encode_tokens(tokens: np.ndarray, context_distance: int, level: Level) -> tuple[int, np.ndarray]:
    """Return how `tokens` (uint8[rows, n]) are coded, and the block (uint8)."""
    if level == "balanced":
        ans = kernels.load("ans")
        block = np.empty(ans.max_block_size(tokens.size), np.uint8)
        return CONTEXTS, block[: ans.encode_block(tokens, context_distance, block)]
    huffman = kernels.load("huffman")
    symbols, counts = tokens.reshape(-1), np.empty(256, np.int64)
    huffman.histogram(symbols, counts)
    if counts[0] < _RUNS_PAY * symbols.size:
        block = np.empty(huffman.max_block_size(symbols.size), np.uint8)
        return HUFFMAN, block[: huffman.encode_block(symbols, counts, block)]
    folded = np.empty(symbols.size + 8, np.uint8)
    folded = folded[: kernels.load("runs").fold(symbols, folded)]
    huffman.histogram(folded, counts)
    block = np.empty(4 + huffman.max_block_size(folded.size), np.uint8)
    block[:4] = np.array([folded.size], "<u4").view(np.uint8)
    return RUNS, block[: 4 + huffman.encode_block(folded, counts, block[4:])]


def decode_tokens(coding: int, block: np.ndarray, context_distance: int, tokens: np.ndarray) -> None:
    """Fill `tokens` (uint8[rows, n]) from a block.

    Raises:
        Corrupt: the coding is unknown, or the block is not that of so many tokens.
    """
    good = False
    if coding == CONTEXTS:
        good = kernels.load("ans").decode_block(block, context_distance, tokens) == 0
    elif coding == HUFFMAN:
        good = kernels.load("huffman").decode_block(block, tokens.reshape(-1)) == 0
    elif coding == RUNS and block.size >= 4:
        num_symbols = int(block[:4].copy().view("<u4")[0])
        if num_symbols <= tokens.size:
            symbols = np.empty(num_symbols, np.uint8)
            good = kernels.load("huffman").decode_block(block[4:], symbols) == 0
            good = good and kernels.load("runs").unfold(symbols, tokens.reshape(-1)) == 0
    if not good:
        raise Corrupt(f"a tile's token block of {block.size} bytes, coding {coding}, is damaged")
