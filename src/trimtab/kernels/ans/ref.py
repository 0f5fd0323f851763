"""Tabled asymmetric numeral systems with contexts, the specification (Duda, arXiv 1311.2540, 2013).

The tokens stand in rows. What a token is coded with depends on its *activity*, a sum over tokens that the decoder
already has, each cut at 42: 2 x the one above, 1 x each neighbour of that one (the row's ends repeated), and 2 x the
one at the same place `back` rows before (above, where there is no such row). In the first row it is 0. The activity
chooses a context by thresholds, and each context has a table of 2048 slots, shared out by how often its tokens occur.

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

Where a payload says that contexts come from elsewhere, the block is the same, but for the meaning of the thresholds and
for the number of contexts, and rows may differ in length. Where it says that activities do, all else is the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

TABLE_BITS = 11
MAX_CONTEXTS = 8
NUM_TOKENS = 124
_SIZE = 1 << TABLE_BITS
_STEP = 1283


def max_block_size(num_tokens: int) -> int:
    """Return how many bytes a block of `num_tokens` tokens may take at most, with room to write in words."""
    return num_tokens * TABLE_BITS // 8 + MAX_CONTEXTS * (NUM_TOKENS * 3 + 2) + 64


def encode_block(tokens: np.ndarray, back: int, out: np.ndarray) -> int:
    """Encode `tokens` (uint8[rows, n], each below `NUM_TOKENS`) into `out` (uint8) and return the block's size.

    `out` holds at least `max_block_size(tokens.size)` bytes; bytes of `out` after the block may be overwritten.
    """
    activities = [_activities(tokens, r, back) for r in range(len(tokens))]
    thresholds = _choose_thresholds(tokens, activities)
    contexts = [np.searchsorted(thresholds, row, side="right") for row in activities]
    counts = np.zeros((len(thresholds) + 1, NUM_TOKENS), np.int64)
    for row, places in zip(tokens, contexts, strict=True):
        np.add.at(counts, (places, row), 1)
    return _encode_rows(list(zip(tokens, contexts, strict=True)), counts, thresholds, out)


def encode_mixed(
    tokens: np.ndarray,
    contexts: np.ndarray,
    rows: np.ndarray,
    counts: np.ndarray,
    thresholds: np.ndarray,
    out: np.ndarray,
) -> int:
    """Encode `tokens` (uint8, flat) into `out`, each in its context (uint8), and return the block's size.

    `rows` (int64[m, 2]) has how many rows of what length stand one after another, `counts` (int64[contexts, 128]) how
    often each context has each token. There is one context more than `thresholds` (uint8), which only stand in the
    block: what they mean is up to the caller.
    """
    lengths = [int(length) for count, length in rows for _ in range(int(count))]
    ends = np.cumsum([0, *lengths])
    pieces = [(tokens[a:b], contexts[a:b].astype(np.int64)) for a, b in itertools.pairwise(ends)]
    return _encode_rows(pieces, counts[:, :NUM_TOKENS], [int(t) for t in thresholds], out)


def read_tables(block: np.ndarray, max_contexts: int, table: np.ndarray, states: np.ndarray) -> int:
    """Read what stands before a block's stream; return the bit of the block where that begins, or -1 if it is corrupt.

    Slot s of context c goes to ``table[2048 c + s]`` (uint32) as w | token << 8 | ((n << w) - 2048) << 16, the eight
    states to `states` (uint64).
    """
    num_contexts = int(block[0]) if block.size else 0
    if not 1 <= num_contexts <= max_contexts or block.size < num_contexts:
        return -1
    bits = "".join(map(str, np.unpackbits(block[num_contexts:], bitorder="little")))
    at = 0
    for c in range(num_contexts):
        at, shares = _unpack_shares(bits, at)
        if shares is None:
            return -1
        for slot, (token, n) in enumerate(_slots(shares)):
            width = TABLE_BITS + 1 - n.bit_length()
            table[c * _SIZE + slot] = width | token << 8 | ((n << width) - _SIZE) << 16
    head = num_contexts + (at + 7) // 8
    if block.size < head + 25 or block[head] > 7:
        return -1
    states[:] = block[head + 1 : head + 17].copy().view("<u2")
    return 8 * (head + 17) + int(block[head]) if states.max() < _SIZE else -1


def decode_block(block: np.ndarray, back: int, tokens: np.ndarray) -> int:
    """Fill `tokens` (uint8[rows, n]) from `block` (uint8, exactly one block); return 0, or -1 if it is corrupt."""
    table, states = np.empty(MAX_CONTEXTS * _SIZE, np.uint32), np.empty(8, np.uint64)
    start = read_tables(block, MAX_CONTEXTS, table, states)
    if start < 0:
        return -1
    return _decode_rows(block, start, table, states, tokens, lambda r: _activities(tokens, r, back))


def decode_given(block: np.ndarray, activities: np.ndarray, tokens: np.ndarray) -> int:
    """Fill `tokens` (uint8, flat) from a block of one row whose activities (uint8) are given, not those of its tokens.

    Returns 0, or -1 if the block is corrupt.
    """
    table, states = np.empty(MAX_CONTEXTS * _SIZE, np.uint32), np.empty(8, np.uint64)
    start = read_tables(block, MAX_CONTEXTS, table, states)
    if start < 0:
        return -1
    return _decode_rows(block, start, table, states, tokens.reshape(1, -1), lambda _: activities)


def _decode_rows(
    block: np.ndarray,
    start: int,
    table: np.ndarray,
    states: np.ndarray,
    tokens: np.ndarray,
    activities: Callable[[int], np.ndarray],
) -> int:
    """Fill `tokens` from the stream that begins at bit `start`; `activities` returns those of a row when it is due."""
    bits = "".join(map(str, np.unpackbits(block, bitorder="little"))) + "0" * TABLE_BITS
    at, state = start, states.astype(int).tolist()
    for r in range(len(tokens)):
        # a threshold is reached or not on its own: hostile ones may be out of order
        contexts = (activities(r)[:, None] >= block[1 : block[0]]).sum(axis=1)
        for k, c in enumerate(contexts):
            entry = int(table[c * _SIZE + state[k % 8]])
            width = entry & 255
            state[k % 8] = (entry >> 16) + int(bits[at : at + width][::-1] or "0", 2)
            at += width
            tokens[r, k] = entry >> 8 & 255
            if at > len(bits):
                return -1
    return 0 if not any(state) and block.size == max((at + 7) // 8, start // 8 + 8) else -1


def _encode_rows(
    rows: list[tuple[np.ndarray, np.ndarray]], counts: np.ndarray, thresholds: list[int], out: np.ndarray
) -> int:
    """Encode rows of tokens with the contexts of their places; `counts` (int64[contexts, tokens]) are theirs."""
    text, tables = "", []
    for of_context in counts:
        shares = _normalise(of_context)
        tables.append({(token, n): slot for slot, (token, n) in enumerate(_slots(shares))})
        text += _pack_shares(shares)
        tables[-1] |= {("share", token): share for token, share in enumerate(shares)}
    states, shed = [0] * 8, []
    for row, places in reversed(rows):
        for k in range(len(row) - 1, -1, -1):
            table, token = tables[places[k]], int(row[k])
            n, width = states[k % 8] + _SIZE, 0
            while n >= 2 * table["share", token]:
                n, width = n >> 1, width + 1
            if width:
                shed.append(format(states[k % 8] + _SIZE, "b")[-width:][::-1])
            states[k % 8] = table[token, n]
    stream = "".join(reversed(shed))
    skip = -len(stream) % 8
    block = bytes([len(thresholds) + 1, *thresholds]) + _bytes(text) + bytes([skip])
    block += np.array(states, "<u2").tobytes() + _bytes("0" * skip + stream).ljust(8, b"\0")
    out[: len(block)] = np.frombuffer(block, np.uint8)
    return len(block)


def _activities(tokens: np.ndarray, r: int, back: int) -> np.ndarray:
    if r == 0:
        return np.zeros(tokens.shape[1], np.uint8)
    above = np.pad(np.minimum(tokens[r - 1], 42), 1, mode="edge") if tokens.shape[1] else np.zeros(2, np.uint8)
    behind = np.minimum(tokens[r - back if r >= back else r - 1], 42)
    return 2 * above[1:-1] + above[:-2] + above[2:] + 2 * behind


def _choose_thresholds(tokens: np.ndarray, activities: list[np.ndarray]) -> list[int]:
    """Split the activities into contexts of like weight, judged on every eighth row of a big block."""
    rows = range(0, len(tokens), 8 if len(tokens) >= 64 else 1)
    weights = np.zeros(256, np.int64)
    active = 0
    for r in rows:
        # places that are almost surely zero are many and cheap
        weights += np.bincount(activities[r], minlength=256)
        weights += 32 * np.bincount(activities[r][tokens[r] > 0], minlength=256)
        active += np.count_nonzero(tokens[r])
    active = active * tokens.size // max(len(rows) * tokens.shape[1], 1)
    wanted = 1 if active < 1000 else 4 if active < 16000 else MAX_CONTEXTS
    thresholds: list[int] = []
    total, passed = int(weights.sum()), 0
    for s in range(255):
        passed += int(weights[s])
        num = len(thresholds) + 1
        if num < wanted and weights[s] > 0 and passed * wanted >= num * total and passed < total:
            thresholds.append(s + 1)
    return thresholds


def _normalise(counts: np.ndarray) -> list[int]:
    """Scale counts to shares that sum to the table size, none of a present token below 1."""
    total = int(counts.sum())
    shares = [max(1, (int(n) * _SIZE + total // 2) // total) if n else 0 for n in counts]
    present = [token for token, n in enumerate(counts) if n]
    while present and sum(shares) < _SIZE:  # one slot more to the token that gains most
        shares[max(present, key=lambda t: counts[t] / (2.0 * shares[t] + 1.0))] += 1
    while sum(shares) > _SIZE:  # one slot less to the token that loses least
        shares[min((t for t in present if shares[t] > 1), key=lambda t: counts[t] / (2.0 * shares[t] - 1.0))] -= 1
    return shares


def _slots(shares: list[int]) -> list[tuple[int, int]]:
    """Return for each slot of a table its token and the slot's number n among those of the token."""
    dealt = [0] * _SIZE
    at = 0
    for token, share in enumerate(shares):
        for _ in range(share):
            dealt[at] = token
            at = (at + _STEP) % _SIZE
    numbers = list(shares)
    slots = []
    for token in dealt:
        slots.append((token, numbers[token]))
        numbers[token] += 1
    return slots


def _pack_shares(shares: list[int]) -> str:
    last = max((token + 1 for token, share in enumerate(shares) if share), default=0)
    text = _lowest_first(last, 7)
    for share in shares[:last]:
        width = (share + 1).bit_length() - 1
        text += "0" * width + "1" + _lowest_first(share + 1 - (1 << width), width)
    return text


def _unpack_shares(bits: str, at: int) -> tuple[int, list[int] | None]:
    if at + 7 > len(bits):
        return at, None
    last = int(bits[at : at + 7][::-1], 2)
    at += 7
    shares = []
    for _ in range(last):
        width = 0
        while width <= TABLE_BITS and bits[at + width : at + width + 1] == "0":
            width += 1
        if width > TABLE_BITS or at + 2 * width + 1 > len(bits):
            return at, None
        shares.append((1 << width) + int(bits[at + width + 1 : at + 2 * width + 1][::-1] or "0", 2) - 1)
        at += 2 * width + 1
    if not shares or sum(shares) == 0:
        shares = [_SIZE]
    return at, shares if last <= NUM_TOKENS and sum(shares) == _SIZE else None


def _lowest_first(value: int, width: int) -> str:
    return format(value, f"0{width}b")[::-1] if width else ""


def _bytes(text: str) -> bytes:
    """Return a text of bits, lowest first, as bytes."""
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0"), bitorder="little").tobytes()
