"""Huffman coding of bytes, the specification.

Codes are canonical: symbols sorted by (length, value) take consecutive code words, each sent with its most
significant bit first. Streams fill bytes from the least significant bit. The lengths are optimal under the limit of
11 bits (package-merge: Larmore and Hirschberg, "A fast algorithm for optimal length-limited Huffman codes", J. ACM,
1990).

A block is self-contained::

    lengths     the 256 code lengths as nibbles, low nibble first, padded to a byte
    sizes       7 little-endian uint32: bytes of the first seven streams; the eighth takes the rest
    streams     8 bit streams; stream s holds symbols[s * per : (s + 1) * per] with per = ceil(n / 8)

Nibbles of the lengths: 0 to 11 a length; 12 r: 2 + r zeros; 13 r: 3 + r times the length before; 14 lo hi: 18 + lo +
16 hi zeros. The list ends at 256 lengths. A block whose alphabet is one symbol ends after its lengths: it needs no
bits.
"""

from __future__ import annotations

import numpy as np

MAX_LENGTH = 11
NUM_STREAMS = 8
MAX_HEADER = 128 + 4 * (NUM_STREAMS - 1)


def max_block_size(num_symbols: int) -> int:
    """Return how many bytes a block of `num_symbols` symbols may take at most."""
    return MAX_HEADER + num_symbols * MAX_LENGTH // 8 + 2 * NUM_STREAMS + 16


def histogram(symbols: np.ndarray, counts: np.ndarray) -> None:
    """Write into `counts` (int64[256]) how often each value occurs in `symbols` (uint8)."""
    counts[...] = np.bincount(symbols, minlength=256)


def code_lengths(counts: np.ndarray, lengths: np.ndarray) -> None:
    """Write into `lengths` (uint8[256]) the best code lengths for `counts` (int64[256]); 0 marks an absent symbol."""
    lengths[...] = 0
    leaves = sorted((int(count), symbol) for symbol, count in enumerate(counts) if count)
    if len(leaves) < 2:
        for _, symbol in leaves:
            lengths[symbol] = 1
        return
    levels: list[list[tuple[int, bool]]] = []  # (weight, whether it is a leaf), lightest first
    merged: list[tuple[int, bool]] = []
    for _ in range(MAX_LENGTH):
        packages = [(merged[i][0] + merged[i + 1][0], False) for i in range(0, len(merged) - 1, 2)]
        # a leaf goes before a package of the same weight
        merged = sorted([(count, True) for count, _ in leaves] + packages, key=lambda item: (item[0], not item[1]))
        levels.append(merged)
    taken = 2 * len(leaves) - 2
    for level in reversed(levels):
        num_leaves = sum(is_leaf for _, is_leaf in level[:taken])
        for _, symbol in leaves[:num_leaves]:
            lengths[symbol] += 1
        taken = 2 * (taken - num_leaves)


def coded_bits(counts: np.ndarray, lengths: np.ndarray) -> int:
    """Return how many bits symbols with these counts take with these code lengths."""
    return int(np.dot(counts, lengths.astype(np.int64)))


def encode_block(symbols: np.ndarray, counts: np.ndarray, out: np.ndarray) -> int:
    """Encode `symbols` (uint8) with their `counts` (int64[256]) into `out` (uint8) and return the block's size.

    `out` holds at least `max_block_size(symbols.size)` bytes; bytes of `out` after the block may be overwritten.
    """
    lengths = np.zeros(256, np.uint8)
    code_lengths(counts, lengths)
    block = _pack_lengths(lengths)
    if np.count_nonzero(lengths) > 1:
        codes = _code_words(lengths)
        per = -(-symbols.size // NUM_STREAMS)
        streams = []
        for s in range(NUM_STREAMS):
            text = "".join(codes[symbol] for symbol in symbols[s * per : (s + 1) * per])
            bits = np.frombuffer(text.encode(), np.uint8) - ord("0")
            streams.append(np.packbits(bits, bitorder="little").tobytes())
        block += b"".join(len(stream).to_bytes(4, "little") for stream in streams[:-1]) + b"".join(streams)
    out[: len(block)] = np.frombuffer(block, np.uint8)
    return len(block)


def decode_block(block: np.ndarray, out: np.ndarray) -> int:
    """Fill `out` (uint8) with the symbols of `block` (uint8, exactly one block) and return 0, or -1 if it is corrupt.

    Bits after a stream's last symbol, up to the byte's end, are not looked at.
    """
    lengths = np.zeros(256, np.uint8)
    used = _unpack_lengths(block, lengths)
    if used < 0 or sum(2.0 ** -int(length) for length in lengths if length) > 1 or not lengths.any():
        return -1
    if np.count_nonzero(lengths) == 1:
        out[...] = np.flatnonzero(lengths)[0]
        return 0 if used == block.size else -1
    if block.size < used + 4 * (NUM_STREAMS - 1):
        return -1
    sizes = [int.from_bytes(block[used + 4 * s : used + 4 * s + 4].tobytes(), "little") for s in range(NUM_STREAMS - 1)]
    start = used + 4 * (NUM_STREAMS - 1)
    sizes.append(block.size - start - sum(sizes))
    if sizes[-1] < 0:
        return -1
    symbol_of = {code: symbol for symbol, code in _code_words(lengths).items()}
    per = -(-out.size // NUM_STREAMS)
    for s, size in enumerate(sizes):
        text = "".join(map(str, np.unpackbits(block[start : start + size], bitorder="little")))
        at = 0
        for i in range(min(s * per, out.size), min((s + 1) * per, out.size)):
            width = next((w for w in range(1, MAX_LENGTH + 1) if text[at : at + w] in symbol_of), 0)
            if width == 0:
                return -1
            out[i] = symbol_of[text[at : at + width]]
            at += width
        if -(-at // 8) != size:
            return -1
        start += size
    return 0


def _code_words(lengths: np.ndarray) -> dict[int, str]:
    """Return the canonical code word of each present symbol as a text of 0 and 1, first bit first."""
    words, code, width = {}, 0, 0
    for length, symbol in sorted((int(length), symbol) for symbol, length in enumerate(lengths) if length):
        code <<= length - width
        width = length
        words[symbol] = format(code, f"0{width}b")
        code += 1
    return words


def _pack_lengths(lengths: np.ndarray) -> bytes:
    nibbles: list[int] = []
    i, before = 0, -1
    while i < 256:
        length = int(lengths[i])
        run = 1
        while i + run < 256 and lengths[i + run] == length:
            run += 1
        if length == 0 and run >= 18:
            run = min(run, 18 + 255)
            nibbles += [14, (run - 18) & 15, (run - 18) >> 4]
        elif length == 0 and run >= 2:
            nibbles += [12, run - 2]
        elif length == before and run >= 3:
            run = min(run, 18)
            nibbles += [13, run - 3]
        else:
            run = 1
            nibbles.append(length)
        before = length
        i += run
    nibbles += [0] * (len(nibbles) % 2)
    return bytes(nibbles[k] | nibbles[k + 1] << 4 for k in range(0, len(nibbles), 2))


def _unpack_lengths(block: np.ndarray, lengths: np.ndarray) -> int:
    """Read the lengths at the start of `block`; return the bytes they took, or -1."""
    nibbles = np.stack([block[:MAX_HEADER] & 15, block[:MAX_HEADER] >> 4], axis=1).reshape(-1).tolist()
    filled: list[int] = []
    at = 0
    while len(filled) < 256:
        if at >= len(nibbles):
            return -1
        code = nibbles[at]
        arguments = nibbles[at + 1 : at + 1 + (0, 1, 1, 2)[max(code - 11, 0)]] if code < 15 else []
        if code == 15 or len(arguments) < (0, 1, 1, 2)[max(code - 11, 0)] or (code == 13 and not filled):
            return -1
        if code <= MAX_LENGTH:
            filled.append(code)
        elif code == 12:
            filled += [0] * (2 + arguments[0])
        elif code == 13:
            filled += [filled[-1]] * (3 + arguments[0])
        else:
            filled += [0] * (18 + arguments[0] + 16 * arguments[1])
        at += 1 + len(arguments)
    if len(filled) > 256:
        return -1
    lengths[...] = filled
    return -(-at // 2)
