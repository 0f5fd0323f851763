"""The entropy stage of SZ: a tile's tokens to a block of bytes and back."""

from __future__ import annotations

from typing import Literal

import numpy as np

from trimtab import kernels
from trimtab.errors import Corrupt

Level = Literal["fast", "balanced", "ratio"]
"""How much time the encoder and the decoder may take for a better ratio."""

CONTEXTS, CHUNKS = 0, 1
"""What a payload holds of its integers: tokens coded in contexts, or what `trimtab.codecs.sz_chunks` makes of them."""


def encode_tokens(tokens: np.ndarray, context_distance: int) -> np.ndarray:
    """Return the block (uint8) of `tokens` (uint8[rows, n])."""
    ans = kernels.load("ans")
    block = np.empty(ans.max_block_size(tokens.size), np.uint8)
    return block[: ans.encode_block(tokens, context_distance, block)]


def decode_tokens(block: np.ndarray, context_distance: int, tokens: np.ndarray) -> None:
    """Fill `tokens` (uint8[rows, n]) from a block.

    Raises:
        Corrupt: the block is not that of so many tokens.
    """
    if kernels.load("ans").decode_block(block, context_distance, tokens) != 0:
        raise Corrupt(f"a tile's token block of {block.size} bytes is damaged")
