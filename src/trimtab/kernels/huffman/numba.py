"""Huffman coding of bytes, fast: see ref.py for the format.

The decoder looks up 11 bits at a time and takes five symbols from each 64-bit load. It is safe on hostile input without
a test a symbol: every table entry has a length of 1 to 11, loads are clamped to the block, output positions come from
the size of `out` alone, and the ends of the streams are compared afterwards.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.huffman.ref import (
    MAX_HEADER,
    MAX_LENGTH,
    NUM_STREAMS,
    coded_bits,
    max_block_size,
)
from trimtab.kernels.jit import kernel
from trimtab.kernels.words import load64, store64

__all__ = [
    "MAX_LENGTH",
    "NUM_STREAMS",
    "code_lengths",
    "coded_bits",
    "decode_block",
    "encode_block",
    "histogram",
    "max_block_size",
]

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_COUNTS = types.Array(types.int64, 1, "C", readonly=True)
_TABLE_SIZE = 1 << MAX_LENGTH
_TABLE_MASK = np.uint64(_TABLE_SIZE - 1)
_LOW_BYTE = np.uint64(255)
_MAX_LENGTH = MAX_LENGTH
_MAX_HEADER = MAX_HEADER
_SIZES_BYTES = 4 * (NUM_STREAMS - 1)
u64 = np.uint64


@kernel(types.void(_BYTES, types.int64[::1]))
def histogram(symbols, counts):
    # four tables, since counting runs of one value in a single table waits for its own stores
    parts = np.zeros((4, 256), np.uint32)
    a, b, c, d = parts[0], parts[1], parts[2], parts[3]
    counts[:] = 0
    for start in range(0, symbols.size, 1 << 30):  # uint32 counters cannot overflow within one piece
        piece = symbols[start : min(start + (1 << 30), symbols.size)]
        parts[:] = 0
        whole = piece.size // 4 * 4
        for i in range(0, whole, 4):
            a[piece[i]] += np.uint32(1)
            b[piece[i + 1]] += np.uint32(1)
            c[piece[i + 2]] += np.uint32(1)
            d[piece[i + 3]] += np.uint32(1)
        for i in range(whole, piece.size):
            a[piece[i]] += np.uint32(1)
        for k in range(256):
            counts[k] += np.int64(a[k]) + np.int64(b[k]) + np.int64(c[k]) + np.int64(d[k])


@kernel(types.void(_COUNTS, types.uint8[::1]))
def code_lengths(counts, lengths):
    lengths[:] = 0
    symbols = np.empty(256, np.int64)
    num = 0
    for symbol in range(256):
        if counts[symbol] > 0:  # insertion sort by (count, symbol)
            k = num
            while k > 0 and counts[symbols[k - 1]] > counts[symbol]:
                symbols[k] = symbols[k - 1]
                k -= 1
            symbols[k] = symbol
            num += 1
    if num < 2:
        for k in range(num):
            lengths[symbols[k]] = np.uint8(1)
        return
    is_leaf = np.zeros((_MAX_LENGTH, 512), np.uint8)
    weights = np.empty(512, np.int64)
    packages = np.empty(256, np.int64)
    size = 0
    for level in range(_MAX_LENGTH):
        num_packages = size // 2
        for k in range(num_packages):
            packages[k] = weights[2 * k] + weights[2 * k + 1]
        leaf, package = 0, 0
        size = num + num_packages
        for k in range(size):
            if leaf < num and (package == num_packages or counts[symbols[leaf]] <= packages[package]):
                weights[k] = counts[symbols[leaf]]
                is_leaf[level, k] = np.uint8(1)
                leaf += 1
            else:
                weights[k] = packages[package]
                package += 1
    taken = 2 * num - 2
    for level in range(_MAX_LENGTH - 1, -1, -1):
        num_leaves = 0
        for k in range(taken):
            num_leaves += np.int64(is_leaf[level, k])
        for k in range(num_leaves):
            lengths[symbols[k]] = np.uint8(lengths[symbols[k]] + 1)
        taken = 2 * (taken - num_leaves)


@kernel(types.int64(_BYTES, types.uint8[::1]))
def _pack_lengths(lengths, out):
    nibbles = np.zeros(520, np.uint8)
    at, i, before = 0, 0, -1
    while i < 256:
        length = np.int64(lengths[i])
        run = 1
        while i + run < 256 and np.int64(lengths[i + run]) == length:
            run += 1
        if length == 0 and run >= 18:
            run = min(run, 18 + 255)
            nibbles[at], nibbles[at + 1], nibbles[at + 2] = 14, (run - 18) & 15, (run - 18) >> 4
            at += 3
        elif length == 0 and run >= 2:
            nibbles[at], nibbles[at + 1] = 12, run - 2
            at += 2
        elif length == before and run >= 3:
            run = min(run, 18)
            nibbles[at], nibbles[at + 1] = 13, run - 3
            at += 2
        else:
            run = 1
            nibbles[at] = length
            at += 1
        before = length
        i += run
    size = (at + 1) // 2
    for k in range(size):
        out[k] = np.uint8(nibbles[2 * k] | (nibbles[2 * k + 1] << np.uint8(4)))
    return size


@kernel(types.int64(_BYTES, types.uint8[::1]))
def _unpack_lengths(block, lengths):
    num_nibbles = 2 * min(block.size, _MAX_HEADER)
    nibbles = np.zeros(2 * _MAX_HEADER + 2, np.int64)
    for k in range(num_nibbles // 2):
        nibbles[2 * k] = np.int64(block[k]) & 15
        nibbles[2 * k + 1] = np.int64(block[k]) >> 4
    at, filled = 0, 0
    while filled < 256:
        code = nibbles[at]
        if code <= _MAX_LENGTH:
            value, run, used = code, 1, 1
        elif code == 12:
            value, run, used = 0, 2 + nibbles[at + 1], 2
        elif code == 13:
            if filled == 0:
                return -1
            value, run, used = np.int64(lengths[filled - 1]), 3 + nibbles[at + 1], 2
        elif code == 14:
            value, run, used = 0, 18 + nibbles[at + 1] + 16 * nibbles[at + 2], 3
        else:
            return -1
        at += used
        if at > num_nibbles or filled + run > 256:
            return -1
        for k in range(filled, filled + run):
            lengths[k] = np.uint8(value)
        filled += run
    return (at + 1) // 2


@kernel(types.int64(_BYTES, types.uint32[::1]))
def _code_table(lengths, table):
    """Fill `table[symbol]` with reversed code word | length << 16; return the number of symbols, -1 if too many."""
    num_symbols, code, width = 0, 0, 0
    for length in range(1, _MAX_LENGTH + 1):
        for symbol in range(256):
            if np.int64(lengths[symbol]) == length:
                code <<= length - width
                width = length
                if code >= 1 << length:
                    return -1
                reverse = 0
                for k in range(length):
                    reverse |= ((code >> k) & 1) << (length - 1 - k)
                table[symbol] = np.uint32(reverse | length << 16)
                code += 1
                num_symbols += 1
    return num_symbols


@kernel(types.int64(_BYTES, _COUNTS, types.uint8[::1]))
def encode_block(symbols, counts, out):
    lengths = np.empty(256, np.uint8)
    code_lengths(counts, lengths)
    size = _pack_lengths(lengths, out)
    table = np.zeros(256, np.uint32)
    if _code_table(lengths, table) <= 1:
        return size
    top = np.zeros(256, np.uint64)  # the code word in the highest bits, its length in the lowest
    for symbol in range(256):
        length = u64(table[symbol] >> 16)
        if length > u64(0):
            top[symbol] = u64(table[symbol] & 0xFFFF) << (u64(64) - length) | length
    start = size
    size += _SIZES_BYTES
    out_address = types.uintp(out.ctypes.data)
    per = (symbols.size + 7) // 8
    low, high = u64(0xFFFF), u64(16)
    for s in range(8):
        segment = symbols[min(s * per, symbols.size) : min((s + 1) * per, symbols.size)]
        address = out_address + types.uintp(size)
        bits, num_bits = u64(0), u64(0)
        whole = segment.size // 4 * 4
        for i in range(0, whole, 4):
            # later words come in above earlier ones, which they shift down; below all code is what is not code
            a, b, c, d = top[segment[i]], top[segment[i + 1]], top[segment[i + 2]], top[segment[i + 3]]
            cd_width = c + d
            ab, cd = (a >> (b & u64(63))) | b, (c >> (d & u64(63))) | d
            width = (a + b + cd_width) & u64(255)
            bits |= (((ab >> (cd_width & u64(63))) | cd) >> (u64(64) - width)) << num_bits
            num_bits += width  # at most 7 + 44
            store64(address, bits)
            address += num_bits >> u64(3)
            bits >>= num_bits & u64(56)
            num_bits &= u64(7)
        for i in range(whole, segment.size):
            a = u64(table[segment[i]])
            bits |= (a & low) << num_bits
            num_bits += a >> high
            store64(address, bits)
            address += num_bits >> u64(3)
            bits >>= num_bits & u64(56)
            num_bits &= u64(7)
        end = np.int64(address - out_address)
        if num_bits > u64(0):
            out[end] = np.uint8(bits)
            end += 1
        if s < 7:
            for k in range(4):
                out[start + 4 * s + k] = np.uint8(((end - size) >> (8 * k)) & 255)
        size = end
    return size


@kernel(types.int64(_BYTES, types.uint16[::1]))
def _decode_table(lengths, table):
    """Fill `table[next 11 bits]` with length | symbol << 8; return the number of symbols, -1 if they cannot be."""
    codes = np.zeros(256, np.uint32)
    num_symbols = _code_table(lengths, codes)
    if num_symbols < 1:
        return -1
    table[:] = np.uint16(1)  # bits that no code word starts with: corrupt, yet of a length that keeps loads in bounds
    for symbol in range(256):
        if codes[symbol] > 0:
            width = np.int64(codes[symbol]) >> 16
            for k in range(np.int64(codes[symbol]) & 0xFFFF, _TABLE_SIZE, 1 << width):
                table[k] = np.uint16(width | symbol << 8)
    return num_symbols


@numba.njit(forceinline=True, boundscheck=False, error_model="numpy")
def _five(base, limit, position, table):
    """Decode five symbols at a bit position: return them, first in the lowest byte, and the position after them."""
    at = min(position >> u64(3), limit)
    bits = load64(base + at) >> ((position - (at << u64(3))) & u64(63))
    a = u64(table[bits & _TABLE_MASK])
    bits >>= a & u64(63)
    b = u64(table[bits & _TABLE_MASK])
    bits >>= b & u64(63)
    c = u64(table[bits & _TABLE_MASK])
    bits >>= c & u64(63)
    d = u64(table[bits & _TABLE_MASK])
    bits >>= d & u64(63)
    e = u64(table[bits & _TABLE_MASK])
    high = u64(0xFF00)
    symbols = (a >> u64(8)) | (b & high) | ((c & high) << u64(8)) | ((d & high) << u64(16)) | ((e & high) << u64(24))
    return symbols, position + ((a + b + c + d + e) & u64(255))


@kernel(types.int64(_BYTES, types.uint8[::1]))
def decode_block(block, out):
    lengths = np.empty(256, np.uint8)
    used = _unpack_lengths(block, lengths)
    if used < 0:
        return -1
    table = np.empty(_TABLE_SIZE, np.uint16)
    num_symbols = _decode_table(lengths, table)
    if num_symbols < 1:
        return -1
    if num_symbols == 1:
        out[:] = np.uint8(table[0] >> 8)
        return 0 if used == block.size else -1
    start = used + _SIZES_BYTES
    if block.size < start:
        return -1
    begins, positions = np.empty(9, np.int64), np.empty(8, np.uint64)
    begins[0] = start
    for s in range(7):
        size = np.int64(0)
        for k in range(4):
            size |= np.int64(block[used + 4 * s + k]) << (8 * k)
        begins[s + 1] = begins[s] + size
    begins[8] = block.size
    if begins[7] > block.size:
        return -1
    for s in range(8):
        positions[s] = u64(begins[s]) << u64(3)
    # a block with two or more symbols is longer than its sizes, so 8 bytes can be loaded from `limit`
    base, limit = types.uintp(block.ctypes.data), u64(block.size - 8)
    per = (out.size + 7) // 8
    last = max(out.size - 7 * per, 0)
    whole = (
        max(last - 3, 0) // 5 * 5
    )  # a store writes three bytes too many, which must stay within the stream's own part
    p0, p1, p2, p3 = positions[0], positions[1], positions[2], positions[3]
    p4, p5, p6, p7 = positions[4], positions[5], positions[6], positions[7]
    to, step = types.uintp(out.ctypes.data), types.uintp(per)
    for i in range(0, whole, 5):
        at = to + types.uintp(i)
        v0, p0 = _five(base, limit, p0, table)
        v1, p1 = _five(base, limit, p1, table)
        v2, p2 = _five(base, limit, p2, table)
        v3, p3 = _five(base, limit, p3, table)
        v4, p4 = _five(base, limit, p4, table)
        v5, p5 = _five(base, limit, p5, table)
        v6, p6 = _five(base, limit, p6, table)
        v7, p7 = _five(base, limit, p7, table)
        store64(at, v0)
        store64(at + step, v1)
        store64(at + u64(2) * step, v2)
        store64(at + u64(3) * step, v3)
        store64(at + u64(4) * step, v4)
        store64(at + u64(5) * step, v5)
        store64(at + u64(6) * step, v6)
        store64(at + u64(7) * step, v7)
    positions[0], positions[1], positions[2], positions[3] = p0, p1, p2, p3
    positions[4], positions[5], positions[6], positions[7] = p4, p5, p6, p7
    for s in range(8):
        position = positions[s]
        for i in range(min(s * per + whole, out.size), min((s + 1) * per, out.size)):
            at = min(position >> u64(3), limit)
            entry = table[(load64(base + at) >> ((position - (at << u64(3))) & u64(63))) & _TABLE_MASK]
            out[i] = np.uint8(entry >> 8)
            position += u64(entry & 255)
        if (position + u64(7)) >> u64(3) != u64(begins[s + 1]):
            return -1
    return 0
