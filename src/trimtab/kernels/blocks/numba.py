"""Floats within an absolute error bound, in blocks of bit planes, fast: see ref.py for the bytes.

A chunk's elements become bytes in a few passes that vectorise. Comparing the 64 bytes of a block gives a word of a bit
an element, and moving the bits of that word by a mask drops the elements that a plane leaves out.

The decoder is safe on hostile input: it reads words only from positions within a chunk, and copies the last chunks, so
that there are 16 bytes behind each.
"""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.blocks.ref import BFLOAT16, BLOCK, CHUNK, FLOAT16, LARGEST, NONE, most_bytes
from trimtab.kernels.jit import kernel
from trimtab.kernels.words import (
    count_ones,
    deposit_bits,
    extract_bits,
    greater_bytes,
    leading_zeros,
    load64,
    marked_bytes,
    raise_bytes,
    shift_right32,
    store64,
)

__all__ = ["BFLOAT16", "BLOCK", "CHUNK", "FLOAT16", "LARGEST", "NONE", "decode", "encode", "most_bytes", "restore"]

_CHUNK, _BLOCK, _BLOCKS, _LARGEST = CHUNK, BLOCK, CHUNK // BLOCK, LARGEST
_FLOAT16, _BFLOAT16 = FLOAT16, BFLOAT16
_LIMIT = np.float32(1 << 22)
_ZERO, _MIXED, _FULL, _KEPT = range(4)
_SIGNED, _CHOICES, _LARGEST_SHIFT = 32, 5, 22
_IS_ZERO, _IS_NEGATIVE, _IS_BAD = np.uint8(1), np.uint8(2), np.uint8(4)
_ALL = np.uint64(2**64 - 1)
_BEHIND = 16
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_FLOATS = types.Array(types.float32, 1, "C", readonly=True)
_SIZES = types.Array(types.uint16, 1, "C", readonly=True)
u8, u16, u64, i32, f32, uintp = np.uint8, np.uint16, np.uint64, np.int32, np.float32, np.uintp


@kernel(types.void(types.float32[::1], types.int64))
def _round(y, rounding):
    """Round positive float32 to a shorter type; what is beyond float16 becomes an infinity."""
    bits = y.view(i32)
    if rounding == _BFLOAT16:
        for k in range(bits.size):
            b = bits[k]
            bits[k] = i32(i32(b + i32(0x7FFF) + i32((b >> 16) & 1)) & i32(-0x10000))
    else:
        for k in range(bits.size):
            b = bits[k]
            # adding and taking away 1/2 leaves what a denormal float16 has of a float32
            small = f32(f32(y[k] + f32(0.5)) - f32(0.5))
            bits[k] = i32(i32(b + i32(0xFFF) + i32((b >> 13) & 1)) & i32(-0x2000))
            normal = y[k] if y[k] < f32(65520) else f32(np.inf)
            y[k] = small if b < i32(113 << 23) else normal


@kernel(
    types.UniTuple(types.float64, 2)(_FLOATS, _BYTES, types.float32, types.int64, types.uint16[::1], types.uint8[::1])
)
def _encode(x, words, error, rounding, sizes, out):
    itemsize = words.size // max(x.size, 1)
    inverse = f32(1) / f32(error + error)
    padded = np.zeros(_CHUNK, f32)
    y = np.empty(_CHUNK, f32)
    errors = np.empty(_CHUNK, f32)
    rest = np.empty(_CHUNK, i32)  # c - 1: -1 for zeros
    flags = np.empty(_CHUNK, u8)
    q = np.empty(_CHUNK, u8)  # q + 1: 0 for zeros
    low = np.empty(3 * _CHUNK, u8)
    parts = np.empty(_BLOCK, f32)
    largest = np.empty(_BLOCKS, i32)
    kinds = np.empty(_BLOCKS, u8)
    masks = np.empty(_BLOCKS, u64)
    flags_at, q_at, low_at, out_at = (
        uintp(flags.ctypes.data), uintp(q.ctypes.data), uintp(low.ctypes.data), uintp(out.ctypes.data)
    )  # fmt: skip
    at, total = 0, 0.0
    for start in range(0, x.size, _CHUNK):
        v = x[start : min(start + _CHUNK, x.size)]
        num_blocks = (v.size + _BLOCK - 1) // _BLOCK
        size = num_blocks * _BLOCK
        if v.size < size:
            p = padded[:size]
            for i in range(v.size):
                p[i] = v[i]
            for i in range(v.size, size):
                p[i] = f32(0)
        w = padded[:size] if v.size < size else v
        z, er, c, fl = y[:size], errors[:size], rest[:size], flags[:size]
        for i in range(size):
            t = abs(w[i]) * inverse
            t = t if t < _LIMIT else _LIMIT
            k = i32(t)
            z[i] = f32(i32(k + k + 1)) * error
            c[i] = k
        if rounding:
            _round(z, rounding)
        for i in range(size):
            a = abs(w[i])
            miss = abs(f32(z[i] - a))
            zero = a == f32(0)
            good = (miss <= error) & (c[i] < i32(_LIMIT)) & (z[i] > f32(0))
            c[i] = i32(-1) if zero else c[i]
            er[i] = f32(0) if zero else miss
            fl[i] = u8(
                (_IS_ZERO if zero else u8(0))
                | (_IS_NEGATIVE if w[i] < f32(0) else u8(0))
                | (u8(0) if good | zero else _IS_BAD)
            )
        num, lengths, num_coded, any_negative, any_kind = 0, 0, 0, u64(0), 0
        for b in range(num_blocks):
            f_at = flags_at + uintp(b * _BLOCK)
            cb = rest[b * _BLOCK : (b + 1) * _BLOCK]
            mask = u64(~marked_bytes(f_at, _IS_ZERO))
            masks[b] = mask
            most = i32(0)
            if marked_bytes(f_at, _IS_BAD):
                kinds[b] = _KEPT
                for i in range(_BLOCK):
                    cb[i] = i32(-1)
            elif mask == u64(0):
                kinds[b] = _ZERO
            else:
                kinds[b] = _FULL if mask == _ALL else _MIXED
                any_negative |= marked_bytes(f_at, _IS_NEGATIVE)
                for i in range(_BLOCK):
                    most = max(most, cb[i])
                num += count_ones(mask)
                lengths += 64 - np.int64(leading_zeros(u64(most)))
                num_coded += 1
            largest[b] = most
            any_kind |= kinds[b]
        if any_kind == 0:
            sizes[start // _CHUNK] = u16(0)
            continue
        signed = any_negative != u64(0)

        # the shift
        lowest = max(lengths // max(num_coded, 1) - (_CHOICES - 1), 0)
        r, best = lowest, np.int64(-1)
        for shift in range(lowest, lowest + _CHOICES):
            s = i32(shift)
            q_sum = i32(0)
            for i in range(size):
                q_sum += max(min(shift_right32(c[i], s), i32(_LARGEST + 1)), i32(0))
            num_kept, any_left = 0, i32(0)
            for b in range(num_blocks):
                over = shift_right32(largest[b], s)
                any_left |= over
                num_kept += over > _LARGEST
            cost = num * (shift + 1) + np.int64(q_sum) + num_kept * 8 * _BLOCK * itemsize
            if best < 0 or cost < best:
                r, best = shift, cost
            if any_left == 0:
                break

        s = i32(r)
        qs = q[:size]
        for i in range(size):
            qs[i] = u8(i32(min(shift_right32(c[i], s), i32(254)) + i32(1)))
        for byte in range((r + 7) // 8):
            s = i32(8 * byte)
            ls = low[byte * _CHUNK : byte * _CHUNK + size]
            for i in range(size):
                ls[i] = u8(shift_right32(c[i], s) & i32(255))

        # the bits
        head = 1 + (num_blocks + 3) // 4
        place = out_at + uintp(at + head)
        word, fill = u64(0), u64(0)
        kept_bytes = 0
        for b in range(num_blocks):
            if kinds[b] == _ZERO:
                continue
            first = b * _BLOCK
            last = min(first + _BLOCK, v.size)
            plain = (last - first) * itemsize
            mask = masks[b]
            n = count_ones(mask)
            if kinds[b] != _KEPT:
                qb = q[first : first + _BLOCK]
                q_sum = i32(0)
                for i in range(_BLOCK):
                    q_sum += i32(qb[i])
                num_bits = n * (r + signed) + np.int64(q_sum) + (_BLOCK if kinds[b] == _MIXED else 0)
                if shift_right32(largest[b], i32(r)) > _LARGEST or num_bits >= 8 * plain:
                    kinds[b] = _KEPT
            if kinds[b] == _KEPT:
                kept_bytes += plain
                eb = errors[first : first + _BLOCK]
                for i in range(_BLOCK):
                    eb[i] = f32(0)
                continue
            q_block, low_block = q_at + uintp(first), low_at + uintp(first)
            if kinds[b] == _MIXED:
                store64(place, u64(word | (mask << fill)))
                word = u64((mask >> u64(1)) >> (u64(63) - fill))
                place += uintp(8)
            if signed:
                bits = extract_bits(marked_bytes(flags_at + uintp(first), _IS_NEGATIVE), mask)
                word = u64(word | (bits << fill))
                store64(place, word)
                end = u64(fill + u64(n))
                if end >= u64(64):
                    word = u64((bits >> u64(1)) >> (u64(63) - fill))
                    place += uintp(8)
                fill = u64(end & u64(63))
            for plane in range(r):
                bits = marked_bytes(low_block + uintp((plane >> 3) * _CHUNK), u8(1 << (plane & 7)))
                bits = extract_bits(bits, mask)
                word = u64(word | (bits << fill))
                store64(place, word)
                end = u64(fill + u64(n))
                if end >= u64(64):
                    word = u64((bits >> u64(1)) >> (u64(63) - fill))
                    place += uintp(8)
                fill = u64(end & u64(63))
            alive, above = mask, u8(1)
            while alive:
                more = greater_bytes(q_block, above)
                bits = extract_bits(more, alive)
                word = u64(word | (bits << fill))
                store64(place, word)
                end = u64(fill + u64(count_ones(alive)))
                if end >= u64(64):
                    word = u64((bits >> u64(1)) >> (u64(63) - fill))
                    place += uintp(8)
                fill = u64(end & u64(63))
                alive, above = more, u8(above + 1)
        store64(place, word)
        end_at = np.int64(place - out_at) + np.int64((fill + u64(7)) >> u64(3))

        out[at] = u8(r | (_SIGNED if signed else 0))
        for four in range(head - 1):
            byte = 0
            for b in range(4 * four, min(4 * four + 4, num_blocks)):
                byte |= np.int64(kinds[b]) << (2 * (b & 3))
            out[at + 1 + four] = u8(byte)
        if kept_bytes:
            for b in range(num_blocks):
                if kinds[b] == _KEPT:
                    first = (start + b * _BLOCK) * itemsize
                    last = min(first + _BLOCK * itemsize, words.size)
                    source, target = words[first:last], out[end_at : end_at + last - first]
                    for i in range(source.size):
                        target[i] = source[i]
                    end_at += last - first
        sizes[start // _CHUNK] = u16(end_at - at)
        at = end_at

        for i in range(_BLOCK):
            parts[i] = f32(0)
        for b in range(num_blocks):
            eb = errors[b * _BLOCK : (b + 1) * _BLOCK]
            for i in range(_BLOCK):
                parts[i] += eb[i] * eb[i]
        chunk_total = 0.0
        for i in range(_BLOCK):
            chunk_total += np.float64(parts[i])
        total += chunk_total
    return np.float64(at), total


def encode(
    x: np.ndarray, words: np.ndarray, error: float, rounding: int, sizes: np.ndarray, out: np.ndarray
) -> tuple[int, float]:
    num_bytes, total = _encode(x, words, error, rounding, sizes, out)
    return int(num_bytes), total


@kernel(types.int64(_BYTES, _SIZES, types.float32, types.int64, types.float32[::1]))
def decode(data, sizes, error, itemsize, y):
    q = np.empty(_CHUNK, u8)
    negative = np.empty(_CHUNK, u8)
    low = np.empty(3 * _CHUNK, u8)
    copied = np.zeros(_CHUNK * 4 + 1 + _BLOCKS // 4 + _BEHIND, u8)
    q_at, negative_at, low_at, data_at, copied_at = (
        uintp(q.ctypes.data), uintp(negative.ctypes.data), uintp(low.ctypes.data), uintp(data.ctypes.data),
        uintp(copied.ctypes.data)
    )  # fmt: skip
    begin, all_kept = 0, 0
    for k in range(sizes.size):
        v = y[k * _CHUNK : min((k + 1) * _CHUNK, y.size)]
        chunk_bytes = np.int64(sizes[k])
        if chunk_bytes == 0:
            for i in range(v.size):
                v[i] = f32(0)
            continue
        num_blocks = (v.size + _BLOCK - 1) // _BLOCK
        size = num_blocks * _BLOCK
        head = 1 + (num_blocks + 3) // 4
        if chunk_bytes < head or chunk_bytes > head + v.size * itemsize:
            return -1
        chunk = data[begin : begin + chunk_bytes]
        at = data_at + uintp(begin)
        begin += chunk_bytes
        if begin + _BEHIND > data.size:
            for i in range(chunk.size):
                copied[i] = chunk[i]
            at = copied_at
        first = np.int64(chunk[0])
        r, signed = first & (_SIGNED - 1), first >= _SIGNED
        if first >= 2 * _SIGNED or r > _LARGEST_SHIFT:
            return -1
        kept_bytes, num_kept = 0, 0
        for b in range(4 * (head - 1)):
            kind = (np.int64(chunk[1 + (b >> 2)]) >> (2 * (b & 3))) & 3
            if kind != 0 and b >= num_blocks:
                return -1
            if kind == _KEPT:
                kept_bytes += (min((b + 1) * _BLOCK, v.size) - b * _BLOCK) * itemsize
                num_kept += 1
        end = 8 * (chunk_bytes - kept_bytes)
        if end < 8 * head:
            return -1
        all_kept += num_kept
        bit = 8 * head

        qs, ns = q[:size], negative[:size]
        for i in range(size):
            qs[i] = u8(0)
        if signed:
            for i in range(size):
                ns[i] = u8(0)
        for byte in range((r + 7) // 8):
            ls = low[byte * _CHUNK : byte * _CHUNK + size]
            for i in range(size):
                ls[i] = u8(0)

        for b in range(num_blocks):
            kind = (np.int64(chunk[1 + (b >> 2)]) >> (2 * (b & 3))) & 3
            if kind not in (_MIXED, _FULL):
                continue
            q_block, low_block = q_at + uintp(b * _BLOCK), low_at + uintp(b * _BLOCK)
            mask = _ALL
            if kind == _MIXED:
                place, skip = at + uintp(bit >> 3), u64(bit & 7)
                mask = u64((load64(place) >> skip) | ((load64(place + uintp(8)) << u64(1)) << (u64(63) - skip)))
                bit += _BLOCK
            n = count_ones(mask)
            if bit > end:
                return -1
            if signed:
                place, skip = at + uintp(bit >> 3), u64(bit & 7)
                bits = u64((load64(place) >> skip) | ((load64(place + uintp(8)) << u64(1)) << (u64(63) - skip)))
                raise_bytes(negative_at + uintp(b * _BLOCK), deposit_bits(bits, mask), u8(128))
                bit += n
            for plane in range(r):
                if bit > end:
                    return -1
                place, skip = at + uintp(bit >> 3), u64(bit & 7)
                bits = u64((load64(place) >> skip) | ((load64(place + uintp(8)) << u64(1)) << (u64(63) - skip)))
                raise_bytes(low_block + uintp((plane >> 3) * _CHUNK), deposit_bits(bits, mask), u8(1 << (plane & 7)))
                bit += n
            raise_bytes(q_block, mask, u8(1))
            alive, rounds = mask, 0
            while alive:
                if bit > end or rounds > _LARGEST:
                    return -1
                place, skip = at + uintp(bit >> 3), u64(bit & 7)
                bits = u64((load64(place) >> skip) | ((load64(place + uintp(8)) << u64(1)) << (u64(63) - skip)))
                bit += count_ones(alive)
                alive = deposit_bits(bits, alive)
                raise_bytes(q_block, alive, u8(1))
                rounds += 1
            if bit > end:
                return -1
        if (bit + 7) >> 3 != end >> 3:
            return -1

        s = i32(r)
        if r == 0:
            for i in range(v.size):
                c = i32(qs[i])
                t = f32(i32(c + c - i32(1))) * error
                v[i] = t if qs[i] != u8(0) else f32(0)
        elif r <= 8:
            ls = low[:size]
            for i in range(v.size):
                c = i32(i32(i32(i32(qs[i]) - i32(1)) << s) | i32(ls[i]))
                t = f32(i32(c + c + i32(1))) * error
                v[i] = t if qs[i] != u8(0) else f32(0)
        else:
            ls, ms, hs = low[:size], low[_CHUNK : _CHUNK + size], low[2 * _CHUNK : 2 * _CHUNK + size]
            if r <= 16:
                for i in range(size):
                    hs[i] = u8(0)
            for i in range(v.size):
                c = i32(i32(ls[i]) | i32(i32(ms[i]) << 8) | i32(i32(hs[i]) << 16))
                c = i32(i32(i32(i32(qs[i]) - i32(1)) << s) | c)
                t = f32(i32(c + c + i32(1))) * error
                v[i] = t if qs[i] != u8(0) else f32(0)
        if signed:
            vs = v.view(i32)
            for i in range(v.size):
                vs[i] = i32(vs[i] | i32(i32(ns[i]) << 24))
    return all_kept


@kernel(types.void(_BYTES, _SIZES, types.int64, types.uint8[::1]))
def restore(data, sizes, itemsize, words):
    end = 0
    for k in range(sizes.size):
        chunk_bytes = np.int64(sizes[k])
        chunk = data[end : end + chunk_bytes]
        end += chunk_bytes
        if chunk_bytes == 0:
            continue
        part = words[k * _CHUNK * itemsize : min((k + 1) * _CHUNK * itemsize, words.size)]
        at = chunk_bytes
        for b in range((part.size + _BLOCK * itemsize - 1) // (_BLOCK * itemsize) - 1, -1, -1):
            if (chunk[1 + (b >> 2)] >> (2 * (b & 3))) & 3 == _KEPT:
                block = part[b * _BLOCK * itemsize : min((b + 1) * _BLOCK * itemsize, part.size)]
                at -= block.size
                source = chunk[at : at + block.size]
                for i in range(block.size):
                    block[i] = source[i]
