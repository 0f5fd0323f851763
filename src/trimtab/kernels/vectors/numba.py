"""Looked-up vectors as small integers, fast: see ref.py.

Rows are told apart by an open hash table of their numbers, twice as large as there can be rows, at least. Codes are
packed from blocks of whole rows, as many as make whole bytes, by shifts of wider words.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.vectors.ref import BITS, MAGIC, MAGIC_BITS, MAX_CODE, MAX_MATCH, packed_size
from trimtab.kernels.words import load64, store64

__all__ = [
    "BITS",
    "MAX_CODE",
    "MAX_MATCH",
    "distinct_rows",
    "find_matches",
    "follow_matches",
    "pack",
    "packed_size",
    "quantise",
    "refer",
    "resolve",
    "unpack",
]

_MAX_CODE, _MAX_MATCH, _MAGIC, _MAGIC_BITS = MAX_CODE, MAX_MATCH, MAGIC, MAGIC_BITS
_BLOCK = 4096
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_NUMBERS = types.Array(types.int32, 1, "C", readonly=True)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_OTHER_MIX = np.uint64(0xC2B2AE3D27D4EB4F)
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")
f32, i16, i32, u8, u32, u64 = np.float32, np.int16, np.int32, np.uint8, np.uint32, np.uint64


@kernel(
    types.UniTuple(types.int64, 3)(
        types.Array(types.float32, 1, "C", readonly=True),
        types.float32,
        types.float32,
        types.float32,
        types.int16[::1],
        types.int64[::1],
    )
)
def quantise(x, limit, step, inverse, codes, places):
    num_places = np.int64(0)
    low, high = i16(_MAX_CODE), i16(-_MAX_CODE)
    shifted = np.empty(_BLOCK, np.float32)
    words = shifted.view(np.int32)
    for o in range(0, x.size, _BLOCK):
        v = x[o : min(o + _BLOCK, x.size)]
        q, s, c = words[: v.size], shifted[: v.size], codes[o : o + v.size]
        for k in range(v.size):
            s[k] = f32(v[k] * inverse) + f32(_MAGIC)
        failed = u32(0)
        for k in range(v.size):
            code = i32(q[k] - i32(_MAGIC_BITS))
            kept = abs(v[k] - f32(f32(code) * step)) <= limit and code >= i32(-_MAX_CODE) and code <= i32(_MAX_CODE)
            c[k] = i16(code) if kept else i16(0)
            failed += u32(not kept)
        for k in range(v.size):
            low, high = min(low, c[k]), max(high, c[k])
        if failed > u32(0):
            for k in range(v.size):
                code = i32(q[k] - i32(_MAGIC_BITS))
                kept = abs(v[k] - f32(f32(code) * step)) <= limit and code >= i32(-_MAX_CODE) and code <= i32(_MAX_CODE)
                if not kept:
                    if num_places < places.size:
                        places[num_places] = o + k
                    num_places += 1
    return (np.int64(low), np.int64(high), num_places) if x.size > 0 else (0, 0, 0)


@kernel(types.int64(types.Array(types.uint8, 2, "C", readonly=True), types.int32[::1], types.int32[::1]))
def distinct_rows(rows, numbers, firsts):
    num_rows, width = rows.shape
    bits = 4
    while (1 << bits) < 2 * num_rows:
        bits += 1
    table, mask = np.full(1 << bits, i32(-1), np.int32), (1 << bits) - 1
    base = types.uintp(rows.ctypes.data)
    whole, pairs = width // 8 * 8, width // 16 * 16
    found = 0
    for r in range(num_rows):
        row = base + types.uintp(r * width)
        h, g = u64(width), u64(0)
        for k in range(0, pairs, 16):
            h = (h ^ load64(row + types.uintp(k))) * _MIX
            g = (g ^ load64(row + types.uintp(k + 8))) * _OTHER_MIX
            h, g = h ^ (h >> u64(29)), g ^ (g >> u64(31))
        if pairs < whole:
            h = (h ^ load64(row + types.uintp(pairs))) * _MIX
            h ^= h >> u64(29)
        for k in range(whole, width):
            g = (g ^ u64(rows[r, k])) * _OTHER_MIX
        h = (h ^ (g >> u64(17)) ^ g) * _MIX
        slot = np.int64(h >> u64(64 - bits))
        while True:
            number = table[slot]
            if number < 0:
                table[slot] = i32(found)
                firsts[found] = i32(r)
                numbers[r] = i32(found)
                found += 1
                break
            other = base + types.uintp(np.int64(firsts[number]) * width)
            k = 0
            while k < whole and load64(row + types.uintp(k)) == load64(other + types.uintp(k)):
                k += 8
            if k == whole:
                while k < width and rows[r, k] == rows[firsts[number], k]:
                    k += 1
            if k == width:
                numbers[r] = number
                break
            slot = (slot + 1) & mask
    return found


@kernel(types.void(_NUMBERS, types.int32[::1]))
def refer(numbers, references):
    seen = 0
    for r in range(numbers.size):
        number = np.int64(numbers[r])
        z = 1 + number
        if number == seen:
            z = 0
            seen += 1
        references[r] = i32((z >> 1) ^ -(z & 1))


@kernel(types.int64(_NUMBERS, types.int64, types.int32[::1]))
def resolve(references, num_distinct, numbers):
    seen = np.int64(0)
    for r in range(references.size):
        d = references[r]
        z = np.int64(u32(u32(d) << u32(1)) ^ u32(-i32(u32(d) >> u32(31))))
        if z > seen:
            return -1
        numbers[r] = i32(seen if z == 0 else z - 1)
        seen += np.int64(z == 0)
    return 0 if seen == num_distinct else -1


@kernel(types.UniTuple(types.int64, 3)(_NUMBERS, types.uint8[::1], types.uint8[::1], types.int32[::1]))
def find_matches(numbers, flags, pairs, literals):
    last = np.full(numbers.size, -_MAX_MATCH - 1, np.int64)
    r, num_steps, num_matches, num_literals = 0, 0, 0, 0
    while r < numbers.size:
        offset, length = r - last[numbers[r]], 1
        if offset <= _MAX_MATCH:
            most = min(_MAX_MATCH, numbers.size - r)
            while length < most and numbers[r + length] == numbers[r + length - offset]:
                length += 1
            pairs[2 * num_matches] = u8(length)
            pairs[2 * num_matches + 1] = u8(offset)
            num_matches += 1
            flags[num_steps] = u8(1)
        else:
            literals[num_literals] = i32(r)
            num_literals += 1
            flags[num_steps] = u8(0)
        num_steps += 1
        for k in range(r, r + length):
            last[numbers[k]] = k
        r += length
    return num_steps, num_matches, num_literals


@kernel(types.int64(_BYTES, _BYTES, types.int64, types.int32[::1]))
def follow_matches(flags, pairs, num_literals, numbers):
    r, step, at, literal = 0, 0, 0, 0
    while r < numbers.size:
        if step == flags.size:
            return -1
        if flags[step] > 0:
            if at + 2 > pairs.size:
                return -1
            length, offset = np.int64(pairs[at]), np.int64(pairs[at + 1])
            if offset < 1 or offset > r or length < 1 or length > numbers.size - r:
                return -1
            for k in range(r, r + length):
                numbers[k] = numbers[k - offset]
            at += 2
            r += length
        else:
            numbers[r] = i32(literal)
            literal += 1
            r += 1
        step += 1
    if flags.size - step >= 8:
        return -1
    for k in range(step, flags.size):
        if flags[k] > 0:
            return -1
    return 0 if at == pairs.size and literal == num_literals else -1


@_inline
def _fold_bytes(narrow, bits, out):
    """Pack codes, a byte each and zeros up to a whole word, to `bits` each."""
    if bits == 8:
        for k in range(out.size):
            out[k] = narrow[k]
    elif bits == 4:
        words = narrow.view(np.uint16)[: out.size]
        for k in range(out.size):
            out[k] = u8(words[k] | (words[k] >> np.uint16(4)))
    elif bits == 2:
        words = narrow.view(np.uint32)[: out.size]
        for k in range(out.size):
            w = words[k]
            out[k] = u8(w | (w >> u32(6)) | (w >> u32(12)) | (w >> u32(18)))
    else:
        words = narrow.view(np.uint64)[: out.size]
        for k in range(out.size):
            w = words[k] | (words[k] >> u64(7))
            w |= w >> u64(14)
            out[k] = u8(w | (w >> u64(28)))


@kernel(
    types.void(types.Array(types.int16, 2, "C", readonly=True), _NUMBERS, types.int64, types.int64, types.uint8[::1])
)
def pack(codes, rows, low, bits, packed):
    num_columns = codes.shape[1]
    base, total = i16(low), rows.size * num_columns
    if bits == 0 or total == 0:
        return
    if bits == 16:
        lows, highs = packed[:total], packed[total:]
        for r in range(rows.size):
            row = codes[rows[r]]
            a, b = lows[r * num_columns : (r + 1) * num_columns], highs[r * num_columns : (r + 1) * num_columns]
            for k in range(row.size):
                value = np.uint16(np.uint16(row[k]) - np.uint16(base))
                a[k] = u8(value)
                b[k] = u8(value >> np.uint16(8))
        return
    step = max(_BLOCK // num_columns // 8, 1) * 8  # rows at a time: they make whole bytes
    narrow = np.empty((min(step, rows.size) * num_columns + 7) // 8 * 8, np.uint8)
    for o in range(0, rows.size, step):
        num = min(step, rows.size - o)
        for r in range(num):
            row = codes[rows[o + r]]
            to = narrow[r * num_columns : (r + 1) * num_columns]
            for k in range(row.size):
                to[k] = u8(row[k] - base)
        for k in range(num * num_columns, narrow.size):
            narrow[k] = u8(0)
        start = o * num_columns * bits // 8
        _fold_bytes(narrow, bits, packed[start : start + (num * num_columns * bits + 7) // 8])


@kernel(types.void(_BYTES, types.int64, types.int64, types.float32, types.float32[::1]))
def unpack(packed, low, bits, step, y):
    base = i32(low)
    if bits == 0:
        y[:] = f32(f32(base) * step)
    elif bits == 8:
        for o in range(0, y.size, _BLOCK):
            to = y[o : min(o + _BLOCK, y.size)]
            s = packed[o : o + to.size]
            for k in range(to.size):
                to[k] = f32(f32(i32(i32(s[k]) + base)) * step)
    elif bits == 16:
        for o in range(0, y.size, _BLOCK):
            to = y[o : min(o + _BLOCK, y.size)]
            a, b = packed[o : o + to.size], packed[y.size + o : y.size + o + to.size]
            for k in range(to.size):
                to[k] = f32(f32(i32(i32(i32(a[k]) | i32(i32(b[k]) << i32(8))) + base)) * step)
    else:
        each = 8 // bits
        table = np.empty((256, each), np.float32)
        for byte in range(256):
            for k in range(each):
                table[byte, k] = f32(f32(i32(((byte >> (k * bits)) & ((1 << bits) - 1)) + low)) * step)
        pairs = table.reshape(-1).view(np.uint64)
        to, whole = types.uintp(y.ctypes.data), y.size // each
        if bits == 4:
            for k in range(whole):
                store64(to + types.uintp(8 * k), pairs[packed[k]])
        elif bits == 2:
            for k in range(whole):
                at = 2 * np.int64(packed[k])
                store64(to + types.uintp(16 * k), pairs[at])
                store64(to + types.uintp(16 * k + 8), pairs[at + 1])
        else:
            for k in range(whole):
                at = 4 * np.int64(packed[k])
                store64(to + types.uintp(32 * k), pairs[at])
                store64(to + types.uintp(32 * k + 8), pairs[at + 1])
                store64(to + types.uintp(32 * k + 16), pairs[at + 2])
                store64(to + types.uintp(32 * k + 24), pairs[at + 3])
        for k in range(whole * each, y.size):
            y[k] = table[packed[whole], k - whole * each]
