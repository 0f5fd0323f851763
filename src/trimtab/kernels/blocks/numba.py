"""Floats within an absolute error bound, in blocks of bit planes, fast: see ref.py for the bytes.

A chunk's elements become bytes in a few passes that vectorise. Comparing the 64 bytes of a block gives a word of a bit
an element, and moving the bits of that word by a mask drops the elements that a plane leaves out.

The decoder is safe on hostile input: it reads words only from positions within a chunk, and copies the last chunks, so
that there are 16 bytes behind each.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from trimtab.kernels.blocks.ref import (
    BFLOAT16,
    BLOCK,
    CHUNK,
    DITHER_BITS,
    DITHER_FACTORS,
    DITHER_SHIFT,
    FLOAT16,
    LEAST,
    NONE,
    PLAIN,
    ROUNDS,
    most_bytes,
)
from trimtab.kernels.jit import kernel
from trimtab.kernels.words import (
    bit_word,
    count_ones,
    deposit_bits,
    extract_bits,
    greater_bytes,
    leading_zeros,
    load64,
    marked_bytes,
    raise_bytes,
    store64,
)

__all__ = ["BFLOAT16", "BLOCK", "CHUNK", "FLOAT16", "NONE", "ROUNDS", "decode", "encode", "most_bytes", "restore"]

_PLAIN = PLAIN
_CHUNK, _BLOCK, _BLOCKS, _ROUNDS = CHUNK, BLOCK, CHUNK // BLOCK, ROUNDS
_FLOAT16, _BFLOAT16 = FLOAT16, BFLOAT16
_LIMIT = (1 << 22) - 1
_ZERO, _MIXED, _FULL, _KEPT = range(4)
_SIGNED, _CODE_BITS = 32, 22
_ALL = np.uint64(2**64 - 1)
_BEHIND = 16
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_FLOATS = types.Array(types.float32, 1, "C", readonly=True)
_SIZES = types.Array(types.uint16, 1, "C", readonly=True)
u8, u16, u32, u64, i32 = np.uint8, np.uint16, np.uint32, np.uint64, np.int32
f32, uintp = np.float32, np.uintp

_LANE = ir.IntType(32)
_WIDE, _CODES, _NARROW = (ir.VectorType(lane, BLOCK) for lane in (ir.FloatType(), _LANE, ir.IntType(8)))


def _quantise_as(rounding, dithers):
    """Return the function that quantises the block of float32 at `x`, for one dtype, with dither or without.

    It writes c - 1 (int32, -1 for zeros) to `rest`, and returns words that tell which elements are not zero, which
    are negative and which cannot be coded, the sums of the c - 1 of those that are not zero and of their bit lengths,
    and that of the squared errors.
    """

    @intrinsic
    def quantise(typingctx, x, inverse, error, start, rest):
        returned = types.Tuple((types.uint64, types.uint64, types.uint64, types.int32, types.int32, types.float32))

        def codegen(context, b, signature, args):
            address, inverse, error, start, rest = args
            inverse, error = (_in_all_lanes(b, value, _WIDE) for value in (inverse, error))
            nothing, limit = (ir.Constant(_WIDE, [float(value)] * BLOCK) for value in (0, _LIMIT))
            x = b.load(b.inttoptr(address, _WIDE.as_pointer()), align=1)
            magnitude = _magnitudes(b, x)
            scaled = b.fmul(magnitude, inverse)
            if dithers:
                noise = _dither(b, start)
                scaled = b.fadd(scaled, noise)
            scaled = b.select(b.fcmp_ordered("<", scaled, limit), scaled, limit)
            floor = b.fptosi(scaled, _CODES)
            y = b.sitofp(b.add(b.add(floor, floor), _codes(1)), _WIDE)
            if dithers:
                least = ir.Constant(_WIDE, [LEAST] * BLOCK)
                y = b.fsub(y, b.fadd(noise, noise))
                y = b.select(b.fcmp_ordered(">", y, least), y, least)
            y = b.fmul(y, error)
            if rounding == BFLOAT16:
                y = _as_bfloat16(b, y)
            elif rounding == FLOAT16:
                y = _as_float16(b, y)
            miss = _magnitudes(b, b.fsub(y, magnitude))
            some = b.fcmp_unordered("!=", magnitude, nothing)
            bad = b.fcmp_unordered(">=" if dithers and rounding == NONE else ">", miss, error)
            if dithers:
                bad = b.or_(bad, b.fcmp_ordered("==", y, nothing))
            bad = b.and_(bad, some)
            negative = b.fcmp_ordered("<", x, nothing)
            b.store(b.select(some, floor, _codes(-1)), b.inttoptr(rest, _CODES.as_pointer()), align=4)
            add = cgutils.get_or_insert_function(
                b.module, ir.FunctionType(_LANE, [_CODES]), f"llvm.vector.reduce.add.v{BLOCK}i32"
            )
            squares = b.select(some, b.fmul(miss, miss), nothing)
            half = BLOCK // 2
            while half:
                low, high = (ir.Constant(ir.VectorType(_LANE, half), list(range(o, o + half))) for o in (0, half))
                squares = b.fadd(b.shuffle_vector(squares, squares, low), b.shuffle_vector(squares, squares, high))
                half //= 2
            length = b.sub(b.ashr(b.bitcast(scaled, _CODES), _codes(23)), _codes(126))  # that of the floor, if above 0
            length = b.select(b.icmp_signed(">", length, _codes(0)), length, _codes(0))
            found = [bit_word(b, lanes) for lanes in (some, negative, bad)]
            found += [b.call(add, [b.select(some, floor, _codes(0))]), b.call(add, [length])]
            found.append(b.extract_element(squares, _LANE(0)))
            return context.make_tuple(b, signature.return_type, found)

        return returned(types.uintp, types.float32, types.float32, types.uint32, types.uintp), codegen

    return quantise


def _dither(b, start):
    """Return u of a block whose first element is number `start`."""
    first, second = DITHER_FACTORS
    numbers = b.add(
        _in_all_lanes(b, b.mul(start, _LANE(first)), _CODES),
        ir.Constant(_CODES, [first * lane % 2**32 for lane in range(BLOCK)]),
    )
    numbers = b.mul(b.xor(numbers, b.lshr(numbers, _codes(DITHER_SHIFT))), _codes(second))
    numbers = b.sitofp(b.lshr(numbers, _codes(32 - DITHER_BITS)), _WIDE)
    return b.fmul(numbers, ir.Constant(_WIDE, [2.0**-DITHER_BITS] * BLOCK))


def _in_all_lanes(b, value, kind):
    place = b.insert_element(ir.Constant(kind, ir.Undefined), value, _LANE(0))
    return b.shuffle_vector(place, place, ir.Constant(_CODES, [0] * BLOCK))


def _codes(value):
    return ir.Constant(_CODES, [value] * BLOCK)


def _magnitudes(b, x):
    return b.bitcast(b.and_(b.bitcast(x, _CODES), _codes(0x7FFFFFFF)), _WIDE)


def _rounded_at(b, bits, place):
    """Round the bits of positive float32 to the bit at `place`, ties to even."""
    odd = b.and_(b.lshr(bits, _codes(place)), _codes(1))
    bits = b.add(bits, b.add(odd, _codes((1 << (place - 1)) - 1)))
    return b.and_(bits, _codes(-1 << place))


def _as_bfloat16(b, y):
    return b.bitcast(_rounded_at(b, b.bitcast(y, _CODES), 16), _WIDE)


def _as_float16(b, y):
    """Round positive float32 to float16; what is beyond becomes infinite."""
    bits = b.bitcast(y, _CODES)
    half, beyond, infinite = (ir.Constant(_WIDE, [value] * BLOCK) for value in (0.5, 65520.0, float("inf")))
    denormal = b.fsub(b.fadd(y, half), half)  # the last bit of the sum is that of a denormal float16
    normal = b.bitcast(_rounded_at(b, bits, 13), _WIDE)
    normal = b.select(b.fcmp_ordered("<", y, beyond), normal, infinite)
    return b.select(b.icmp_signed("<", bits, _codes(113 << 23)), denormal, normal)


_quantise, _quantise_float16, _quantise_bfloat16 = (_quantise_as(to, False) for to in (NONE, FLOAT16, BFLOAT16))
_dithered, _dithered_float16, _dithered_bfloat16 = (_quantise_as(to, True) for to in (NONE, FLOAT16, BFLOAT16))


@intrinsic
def _store_rounds(typingctx, rest, shift, q):
    """Write a block's ``((c - 1) >> shift) + 1``, at most 255, as bytes."""

    def codegen(context, b, signature, args):
        rest = b.load(b.inttoptr(args[0], _CODES.as_pointer()), align=4)
        shifted = b.ashr(rest, _in_all_lanes(b, args[1], _CODES))
        shifted = b.select(b.icmp_signed("<", shifted, _codes(254)), shifted, _codes(254))
        b.store(b.trunc(b.add(shifted, _codes(1)), _NARROW), b.inttoptr(args[2], _NARROW.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.int32, types.uintp), codegen


@intrinsic
def _store_low(typingctx, rest, shift, low):
    """Write the byte from bit `shift` on of a block's c - 1."""

    def codegen(context, b, signature, args):
        rest = b.load(b.inttoptr(args[0], _CODES.as_pointer()), align=4)
        shifted = b.ashr(rest, _in_all_lanes(b, args[1], _CODES))
        b.store(b.trunc(shifted, _NARROW), b.inttoptr(args[2], _NARROW.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.int32, types.uintp), codegen


@intrinsic
def _move_back(typingctx, magnitudes, start, error):
    """Make, of the 2 c - 1 of a block (float32; 0 for zeros), what they decode to with dither."""

    def codegen(context, b, signature, args):
        place = b.inttoptr(args[0], _WIDE.as_pointer())
        odd, noise = b.load(place, align=4), _dither(b, args[1])
        nothing, least = (ir.Constant(_WIDE, [value] * BLOCK) for value in (0.0, LEAST))
        y = b.fsub(odd, b.fadd(noise, noise))
        y = b.fmul(b.select(b.fcmp_ordered(">", y, least), y, least), _in_all_lanes(b, args[2], _WIDE))
        b.store(b.select(b.fcmp_ordered(">", odd, nothing), y, nothing), place, align=4)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uint32, types.float32), codegen


@kernel(
    types.Tuple((types.int64, types.float64))(
        _FLOATS, _BYTES, types.float32, types.int64, types.int64, types.uint16[::1], types.uint8[::1]
    )
)
def encode(x, words, error, rounding, start, sizes, out):
    itemsize = words.size // max(x.size, 1)
    inverse = f32(1) / f32(error + error)
    padded = np.empty(_CHUNK, f32)
    rest = np.empty(_CHUNK, i32)
    q = np.empty(_BLOCK, u8)
    low = np.empty(_BLOCK, u8)
    kinds = np.empty(_BLOCKS, u8)
    masks = np.empty(_BLOCKS, u64)
    negatives = np.empty(_BLOCKS, u64)
    squares = np.empty(_BLOCKS, f32)
    rest_at, q_at, low_at, out_at = (
        uintp(rest.ctypes.data), uintp(q.ctypes.data), uintp(low.ctypes.data), uintp(out.ctypes.data)
    )  # fmt: skip
    at, total = 0, 0.0
    for begin in range(0, x.size, _CHUNK):
        v = x[begin : min(begin + _CHUNK, x.size)]
        num_blocks = (v.size + _BLOCK - 1) // _BLOCK
        v_at = uintp(v.ctypes.data)
        if v.size < num_blocks * _BLOCK:
            p = padded[: num_blocks * _BLOCK]
            for i in range(v.size):
                p[i] = v[i]
            for i in range(v.size, p.size):
                p[i] = f32(0)
            v_at = uintp(padded.ctypes.data)
        shifts, num_coded, any_negative, any_kind = 0, 0, u64(0), u8(0)
        for b in range(num_blocks):
            block, target = v_at + uintp(4 * b * _BLOCK), rest_at + uintp(4 * b * _BLOCK)
            number = u32(start + begin + b * _BLOCK)
            if start != _PLAIN:
                if rounding == _FLOAT16:
                    found = _dithered_float16(block, inverse, error, number, target)
                elif rounding == _BFLOAT16:
                    found = _dithered_bfloat16(block, inverse, error, number, target)
                else:
                    found = _dithered(block, inverse, error, number, target)
            elif rounding == _FLOAT16:
                found = _quantise_float16(block, inverse, error, number, target)
            elif rounding == _BFLOAT16:
                found = _quantise_bfloat16(block, inverse, error, number, target)
            else:
                found = _quantise(block, inverse, error, number, target)
            mask, negative, bad, rest_sum, lengths, square = found
            masks[b], negatives[b], squares[b] = mask, negative, square
            kind = u8(_FULL if mask == _ALL else _MIXED)
            if bad:
                kind = u8(_KEPT)
            elif mask:
                any_negative |= negative
                n = u64(count_ones(mask))
                mean, length = (u64(2 * rest_sum) + n) // (n + n), (u64(2 * lengths) + n) // (n + n)
                shifts += np.int64(min(max(u64(64) - leading_zeros(mean), u64(1)) - u64(1), length))
                num_coded += 1
            else:
                kind = u8(_ZERO)
            kinds[b] = kind
            any_kind |= kind
        if any_kind == 0:
            sizes[begin // _CHUNK] = u16(0)
            continue
        signed = any_negative != u64(0)
        r = (2 * shifts + num_coded) // max(2 * num_coded, 1)

        head = 1 + (num_blocks + 3) // 4
        place = out_at + uintp(at + head)
        word, fill = u64(0), u64(0)
        any_kept = False
        for b in range(num_blocks):
            if kinds[b] == _ZERO:
                continue
            if kinds[b] == _KEPT:
                any_kept = True
                continue
            block, mask = rest_at + uintp(4 * b * _BLOCK), masks[b]
            before_place, before_word, before_fill = place, word, fill
            n = u64(count_ones(mask))
            if kinds[b] == _MIXED:
                store64(place, word | (mask << fill))
                word = (mask >> u64(1)) >> (u64(63) - fill)
                place += uintp(8)
            if signed:
                bits = extract_bits(negatives[b], mask)
                word |= bits << fill
                store64(place, word)
                end = fill + n
                full = u64(0) - (end >> u64(6))
                word = (word & ~full) | (((bits >> u64(1)) >> (u64(63) - fill)) & full)
                place += uintp(full & u64(8))
                fill = end & u64(63)
            for plane in range(r):
                if plane & 7 == 0:
                    _store_low(block, i32(plane), low_at)
                bits = extract_bits(marked_bytes(low_at, u8(1 << (plane & 7))), mask)
                word |= bits << fill
                store64(place, word)
                end = fill + n
                full = u64(0) - (end >> u64(6))
                word = (word & ~full) | (((bits >> u64(1)) >> (u64(63) - fill)) & full)
                place += uintp(full & u64(8))
                fill = end & u64(63)
            _store_rounds(block, i32(r), q_at)
            alive, above = mask, 1
            while alive != u64(0) and above <= _ROUNDS:
                more = greater_bytes(q_at, u8(above))
                bits = extract_bits(more, alive)
                word |= bits << fill
                store64(place, word)
                end = fill + u64(count_ones(alive))
                full = u64(0) - (end >> u64(6))
                word = (word & ~full) | (((bits >> u64(1)) >> (u64(63) - fill)) & full)
                place += uintp(full & u64(8))
                fill = end & u64(63)
                alive = more
                above += 1
            if alive != u64(0):
                n = u64(count_ones(alive))
                for plane in range(r, _CODE_BITS):
                    if plane == r or plane & 7 == 0:
                        _store_low(block, i32(plane & ~7), low_at)
                    bits = extract_bits(marked_bytes(low_at, u8(1 << (plane & 7))), alive)
                    word |= bits << fill
                    store64(place, word)
                    end = fill + n
                    full = u64(0) - (end >> u64(6))
                    word = (word & ~full) | (((bits >> u64(1)) >> (u64(63) - fill)) & full)
                    place += uintp(full & u64(8))
                    fill = end & u64(63)
            num_bits = np.int64(8 * (place - before_place)) + np.int64(fill) - np.int64(before_fill)
            plain = (min((b + 1) * _BLOCK, v.size) - b * _BLOCK) * itemsize
            if num_bits >= 8 * plain:
                kinds[b], any_kept = u8(_KEPT), True
                place, word, fill = before_place, before_word, before_fill
            else:
                total += np.float64(squares[b])
        store64(place, word)
        end_at = np.int64(place - out_at) + np.int64((fill + u64(7)) >> u64(3))

        out[at] = u8(r | (_SIGNED if signed else 0))
        for four in range(head - 1):
            byte = 0
            for b in range(4 * four, min(4 * four + 4, num_blocks)):
                byte |= np.int64(kinds[b]) << (2 * (b & 3))
            out[at + 1 + four] = u8(byte)
        if any_kept:
            for b in range(num_blocks):
                if kinds[b] == _KEPT:
                    first = (begin + b * _BLOCK) * itemsize
                    last = min(first + _BLOCK * itemsize, words.size)
                    source, kept = words[first:last], out[end_at : end_at + last - first]
                    for i in range(source.size):
                        kept[i] = source[i]
                    end_at += last - first
        sizes[begin // _CHUNK] = u16(end_at - at)
        at = end_at
    return np.int64(at), total


@kernel(types.int64(_BYTES, _SIZES, types.float32, types.int64, types.int64, types.float32[::1]))
def decode(data, sizes, error, start, itemsize, y):
    scale = error if start == _PLAIN else f32(1)
    q = np.empty(_CHUNK, u8)
    negative = np.empty(_CHUNK, u8)
    low = np.empty(3 * _CHUNK, u8)
    last = np.zeros(_BLOCK, f32)
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
        if first >= 2 * _SIGNED or r > _CODE_BITS:
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
        low_bytes = (r + 7) // 8
        for i in range(low_bytes * _CHUNK):
            low[i] = u8(0)

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
                if bit > end:
                    return -1
                if rounds == _ROUNDS:
                    break
                place, skip = at + uintp(bit >> 3), u64(bit & 7)
                bits = u64((load64(place) >> skip) | ((load64(place + uintp(8)) << u64(1)) << (u64(63) - skip)))
                bit += count_ones(alive)
                alive = deposit_bits(bits, alive)
                raise_bytes(q_block, alive, u8(1))
                rounds += 1
            if alive:
                for i in range(low_bytes * _CHUNK, low.size):
                    low[i] = u8(0)
                low_bytes = 3
                raise_bytes(q_block, alive, u8(256 - _ROUNDS))
                n = count_ones(alive)
                for plane in range(r, _CODE_BITS):
                    if bit > end:
                        return -1
                    place, skip = at + uintp(bit >> 3), u64(bit & 7)
                    bits = u64((load64(place) >> skip) | ((load64(place + uintp(8)) << u64(1)) << (u64(63) - skip)))
                    raise_bytes(
                        low_block + uintp((plane >> 3) * _CHUNK), deposit_bits(bits, alive), u8(1 << (plane & 7))
                    )
                    bit += n
            if bit > end:
                return -1
        if (bit + 7) >> 3 != end >> 3:
            return -1

        s = i32(r)
        if low_bytes == 0:
            for i in range(v.size):
                c = i32(qs[i])
                t = f32(i32(c + c - i32(1))) * scale
                v[i] = t if qs[i] != u8(0) else f32(0)
        elif low_bytes == 1:
            ls = low[:size]
            for i in range(v.size):
                c = i32(i32(i32(i32(qs[i]) - i32(1)) << s) | i32(ls[i]))
                t = f32(i32(c + c + i32(1))) * scale
                v[i] = t if qs[i] != u8(0) else f32(0)
        else:
            ls, ms, hs = low[:size], low[_CHUNK : _CHUNK + size], low[2 * _CHUNK : 2 * _CHUNK + size]
            if low_bytes == 2:
                for i in range(size):
                    hs[i] = u8(0)
            for i in range(v.size):
                c = i32(i32(ls[i]) | i32(i32(ms[i]) << 8) | i32(i32(hs[i]) << 16))
                c = i32(i32(i32(i32(qs[i]) - i32(1)) << s) | c)
                t = f32(i32(c + c + i32(1))) * scale
                v[i] = t if qs[i] != u8(0) else f32(0)
        if start != _PLAIN:
            place, num_whole = uintp(v.ctypes.data), v.size // _BLOCK
            for b in range(num_whole):
                _move_back(place + uintp(4 * b * _BLOCK), u32(start + k * _CHUNK + b * _BLOCK), error)
            rest = v[num_whole * _BLOCK :]
            if rest.size:
                for i in range(rest.size):
                    last[i] = rest[i]
                _move_back(uintp(last.ctypes.data), u32(start + k * _CHUNK + num_whole * _BLOCK), error)
                for i in range(rest.size):
                    rest[i] = last[i]
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
