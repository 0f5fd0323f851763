"""Huffman coding of bytes, fast: see ref.py for the format.

The decoder looks up 11 bits at a time, which hold up to three symbols, five times for each 64-bit load. It is safe on
hostile input without a test a symbol: every table entry has a length of 1 to 11, streams go on only while there is
room for the most that a step can read and write, single loads are clamped to the block, and the ends are compared.
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
from trimtab.kernels.words import leading_zeros, load16, load64, store32, store64

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
_HIGHEST = np.uint64(1 << 63)
_MAX_LENGTH = MAX_LENGTH
_MAX_HEADER = MAX_HEADER
_SIZES_BYTES = 4 * (NUM_STREAMS - 1)
_COUNTED_IN_PAIRS, _ENCODED_IN_PAIRS = 1 << 17, 1 << 15  # symbols from which a table of all pairs is worth filling
_PAIRED_SYMBOLS = 64  # symbols of which the pairs in use fit into the first cache, about
_WORTH_STRIDES = 256  # symbols a stream from which a table of several symbols at a time is worth filling
u32, u64 = np.uint32, np.uint64
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")


@kernel(types.void(_BYTES, types.int64[::1]))
def _count_pairs(symbols, counts):
    """Do the work of `histogram` for many symbols, but fewer than 2**32: half as many steps, and a large table."""
    largest = np.uint8(0)
    for i in range(symbols.size):
        largest = max(largest, symbols[i])
    table, seconds = np.zeros((np.int64(largest) + 1, 256), np.uint32), np.zeros(256, np.uint32)
    counts[:] = 0
    pairs, address = table.reshape(-1), types.uintp(symbols.ctypes.data)
    whole = symbols.size // 4 * 4
    for i in range(0, whole, 4):
        pairs[load16(address + types.uintp(i))] += u32(1)
        pairs[load16(address + types.uintp(i + 2))] += u32(1)
    for second in range(len(table)):
        row = table[second]
        total = u32(0)
        for first in range(256):
            total += row[first]
        for first in range(256):
            seconds[first] += row[first]
        counts[second] = np.int64(total)
    for first in range(256):
        counts[first] += np.int64(seconds[first])
    for i in range(whole, symbols.size):
        counts[symbols[i]] += 1


@kernel(types.void(_BYTES, types.int64[::1]))
def histogram(symbols, counts):
    if _COUNTED_IN_PAIRS <= symbols.size < 1 << 32:
        _count_pairs(symbols, counts)
        return
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
    num_symbols = _code_table(lengths, table)
    if num_symbols <= 1:
        return size
    top = np.zeros(256, np.uint64)  # the code word in the highest bits, its length in the lowest
    for symbol in range(256):
        length = u64(table[symbol] >> 16)
        if length > u64(0):
            top[symbol] = u64(table[symbol] & 0xFFFF) << (u64(64) - length) | length
    in_pairs = symbols.size >= _ENCODED_IN_PAIRS and num_symbols <= _PAIRED_SYMBOLS
    # the code words of two symbols above the bits of both; rows of symbols that do not occur are left as they are
    num_rows = 0
    for symbol in range(256):
        if in_pairs and lengths[symbol] > 0:
            num_rows = symbol + 1
    pairs = np.empty((num_rows, 256), np.uint32)
    for second in range(num_rows):
        if lengths[second] > 0:
            row, word, width = pairs[second], u32(table[second] & 0xFFFF), u32(lengths[second])
            for first in range(256):
                first_width = u32(lengths[first])
                words = u32(u32(word << first_width) | u32(u32(table[first]) & u32(0xFFFF)))
                row[first] = u32(u32(words << u32(5)) | u32(first_width + width))
    start = size
    size += _SIZES_BYTES
    flat = pairs.reshape(-1)
    out_address = types.uintp(out.ctypes.data)
    per = (symbols.size + 7) // 8
    low, high = u64(0xFFFF), u64(16)
    for s in range(8):
        segment = symbols[min(s * per, symbols.size) : min((s + 1) * per, symbols.size)]
        address = out_address + types.uintp(size)
        bits, num_bits = u64(0), u64(0)
        whole = segment.size // 4 * 4
        source = types.uintp(segment.ctypes.data)
        for i in range(0, whole if in_pairs else 0, 4):
            a, b = u64(flat[load16(source + types.uintp(i))]), u64(flat[load16(source + types.uintp(i + 2))])
            a_width, b_width = a & u64(31), b & u64(31)
            bits |= ((a >> u64(5)) | ((b >> u64(5)) << a_width)) << num_bits
            num_bits += a_width + b_width
            store64(address, bits)
            address += num_bits >> u64(3)
            bits >>= num_bits & u64(56)
            num_bits &= u64(7)
        for i in range(0, 0 if in_pairs else whole, 4):
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


@kernel(types.void(types.uint16[::1], types.uint64[::1]))
def _fill_strides(table, strides):
    """Fill `strides[next 11 bits]` with the whole codes among them: bits | up to three symbols << 8 | count << 32."""
    for k in range(_TABLE_SIZE):
        width, count, symbols = u64(0), u64(0), u64(0)
        while count < u64(3):
            entry = u64(table[u64(k) >> width])
            if width + (entry & u64(63)) > u64(_MAX_LENGTH):
                break
            symbols |= (entry >> u64(8)) << (count << u64(3))
            width += entry & u64(63)
            count += u64(1)
        strides[k] = count << u64(32) | symbols << u64(8) | width


@_inline
def _next_bits(base, position):
    """Return 57 bits or more from a bit position on, below a highest bit that is set."""
    return load64(base + (position >> u64(3))) >> (position & u64(7)) | _HIGHEST


@_inline
def _stride(bits, strides, to):
    """Decode up to three symbols: store them at address `to`, with a fourth byte; return the bits and `to` after."""
    entry = strides[bits & _TABLE_MASK]
    store32(to, entry >> u64(8))
    return bits >> (entry & u64(63)), to + (entry >> u64(32))


@_inline
def _five_strides(base, strides, p0, p1, p2, p3, t0, t1, t2, t3):
    """Decode up to 15 symbols from one load of each of four streams; return their bit positions and addresses.

    The streams take turns stride by stride, so that the processor sees four chains of look-ups at a time.
    """
    a, b, c, d = _next_bits(base, p0), _next_bits(base, p1), _next_bits(base, p2), _next_bits(base, p3)
    for _ in range(5):
        a, t0 = _stride(a, strides, t0)
        b, t1 = _stride(b, strides, t1)
        c, t2 = _stride(c, strides, t2)
        d, t3 = _stride(d, strides, t3)
    # as many bits were used as the highest one has moved
    p0, p1 = p0 + leading_zeros(a), p1 + leading_zeros(b)
    return p0, p1, p2 + leading_zeros(c), p3 + leading_zeros(d), t0, t1, t2, t3


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
    begins = np.empty(9, np.int64)
    begins[0] = start
    for s in range(7):
        size = np.int64(0)
        for k in range(4):
            size |= np.int64(block[used + 4 * s + k]) << (8 * k)
        begins[s + 1] = begins[s] + size
    begins[8] = block.size
    if begins[7] > block.size:
        return -1
    # a block with two or more symbols is longer than its sizes, so 8 bytes can be loaded from `limit`
    base, limit = types.uintp(block.ctypes.data), u64(block.size - 8)
    origin, per = types.uintp(out.ctypes.data), (out.size + 7) // 8
    strides = np.empty(_TABLE_SIZE, np.uint64)
    if per >= _WORTH_STRIDES:
        _fill_strides(table, strides)
    positions, places = np.empty(4, np.uint64), np.empty(4, np.int64)
    for h in range(0, 8, 4):  # four streams at a time: more would not fit into the registers
        p0, p1 = u64(begins[h]) << u64(3), u64(begins[h + 1]) << u64(3)
        p2, p3 = u64(begins[h + 2]) << u64(3), u64(begins[h + 3]) << u64(3)
        t0 = origin + types.uintp(min(h * per, out.size))
        t1 = end0 = origin + types.uintp(min((h + 1) * per, out.size))
        t2 = end1 = origin + types.uintp(min((h + 2) * per, out.size))
        t3 = end2 = origin + types.uintp(min((h + 3) * per, out.size))
        end3 = origin + types.uintp(min((h + 4) * per, out.size))
        left = per if per >= _WORTH_STRIDES else 0
        while left > 0:
            least = min(np.int64(end0 - t0), np.int64(end1 - t1), np.int64(end2 - t2), np.int64(end3 - t3))
            furthest = np.int64(max(max(p0, p1), max(p2, p3)) >> u64(3))
            # a step writes at most 16 bytes, 15 symbols and one too many, and goes on by at most 55 bits
            left = min((least - 1) // 15, (np.int64(limit) - furthest) // 7)
            for _ in range(left):
                p0, p1, p2, p3, t0, t1, t2, t3 = _five_strides(base, strides, p0, p1, p2, p3, t0, t1, t2, t3)
        positions[0], positions[1], positions[2], positions[3] = p0, p1, p2, p3
        places[0], places[1] = np.int64(t0 - origin), np.int64(t1 - origin)
        places[2], places[3] = np.int64(t2 - origin), np.int64(t3 - origin)
        for s in range(4):
            position = positions[s]
            for i in range(places[s], min((h + s + 1) * per, out.size)):
                at = min(position >> u64(3), limit)
                entry = table[(load64(base + at) >> ((position - (at << u64(3))) & u64(63))) & _TABLE_MASK]
                out[i] = np.uint8(entry >> 8)
                position += u64(entry & 255)
            if (position + u64(7)) >> u64(3) != u64(begins[h + s + 1]):
                return -1
    return 0
