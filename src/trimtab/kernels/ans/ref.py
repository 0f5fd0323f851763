"""Tabled asymmetric numeral systems with contexts, the specification (Duda, arXiv 1311.2540, 2013).

The tokens stand in rows. What a token is coded with depends on its *activity*, a sum over tokens that the decoder
already has, each cut at 42: 2 x the one above, 1 x each neighbour of that one (the row's ends repeated), and 2 x the
one at the same place `back` rows before (above, where there is no such row). In the first row it is 0. The activity chooses
a context by thresholds, and each context has a table of 2048 slots, shared out by how often its tokens occur.

A block::

    contexts    1 byte: their number, 1 to 8; then one threshold a byte, for all but the first: a place belongs to the
                last context whose threshold its activity reaches
    shares      for each context 7 bits n, then for tokens 0 to n - 1 the share plus one as an Elias gamma code (zero
                bits, a one, and as many more bits as there were zeros); shares sum to 2048, or n is 0 in a context that
                never occurs. Numbers stand lowest bit first; zeros fill the last byte
    skip        1 byte: bits of the stream's first byte that belong to nothing, 0 to 7
    states      8 little-endian uint16 below 2048
    stream      bits, lowest first, at least 8 bytes

Token k of a row is read with state k % 8: slot `state` of its context's table gives the token, and as the n-th slot of
that token (n from the token's share up, in slot order) the next state ``(n << w) - 2048 + next w bits`` with
the w for which 2048 <= n << w < 4096. After the last token all states are 0. Slots are dealt to the tokens in
ascending order, each share on the next places of the walk ``i -> (i + 1283) % 2048`` from 0.
"""

from __future__ import annotations

import numpy as np

TABLE_BITS = 11
MAX_CONTEXTS = 8
NUM_TOKENS = 124


def max_block_size(num_tokens: int) -> int:
    """Return how many bytes a block of `num_tokens` tokens may take at most, with room to write in words."""
    return num_tokens * TABLE_BITS // 8 + MAX_CONTEXTS * (NUM_TOKENS * 3 + 2) + 64
