"""Short fixed-length codes for bfloat16 exponents, fast: see ref.py for the format.

Escapes are found as the set bits of a word, four at a time: a fixed number of steps mispredicts less often than a loop
over the bits, and what it does too much lands in spare space. The decoder is safe on hostile input: positions come from
the size of `halves` alone, and the escapes that a word claims are counted before they are read.
"""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.bitplanes.ref import BLOCK, LANES, RUN, WIDTHS, plane_bytes
from trimtab.kernels.jit import kernel
from trimtab.kernels.words import count_ones, prefetch, trailing_zeros

__all__ = ["choose", "decode", "encode", "plane_bytes", "survey"]

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_HALVES = types.Array(types.uint16, 1, "C", readonly=True)
_WORDS = types.Array(types.uint64, 1, "C", readonly=True)
_COUNTS = types.Array(types.int64, 1, "C", readonly=True)
_STRIDE = BLOCK // LANES
_GROUP = 4
_AHEAD = 16  # runs of the survey that are asked for before they are looked at
_SPARE = 8  # bytes after a list of escapes that a group may read or write too much
_ONE = np.uint64(1)
_BLOCK, _LANES, _RUN, _WIDTHS = BLOCK, LANES, RUN, WIDTHS
u8, u16, u64 = np.uint8, np.uint16, np.uint64


@kernel(types.void(_HALVES, types.int64, types.int64[::1]))
def survey(halves, step, counts):
    parts = np.zeros((4, 256), np.int64)  # four tables, so that equal neighbours do not wait for each other's stores
    a, b, c, d = parts[0], parts[1], parts[2], parts[3]
    step = max(step, _RUN)
    address = types.uintp(halves.ctypes.data)
    for start in range(0, halves.size, step):
        # runs are far from each other: without being asked for ahead, each would be waited for
        prefetch(address + types.uintp(2 * (start + _AHEAD * step)))
        prefetch(address + types.uintp(2 * (start + _AHEAD * step) + 64))
        run = halves[start : min(start + _RUN, halves.size)]
        whole = run.size // 4 * 4
        for i in range(0, whole, 4):
            a[(run[i] >> 7) & 255] += 1
            b[(run[i + 1] >> 7) & 255] += 1
            c[(run[i + 2] >> 7) & 255] += 1
            d[(run[i + 3] >> 7) & 255] += 1
        for i in range(whole, run.size):
            a[(run[i] >> 7) & 255] += 1
    for e in range(256):
        counts[e] = a[e] + b[e] + c[e] + d[e]


@kernel(types.UniTuple(types.int64, 4)(_COUNTS, types.uint8[::1]))
def choose(counts, distances):
    total = np.int64(0)
    for e in range(256):
        total += counts[e]
    best_base, best_width, best_next, best_price = 0, 0, 0, np.int64(-1)
    outside = np.empty(256, np.int64)
    for width in _WIDTHS:
        window = (1 << width) - 1
        inside = np.int64(0)
        for d in range(window):
            inside += counts[(0 - d) & 255]
        base, most = 0, inside
        for b in range(1, 256):
            inside += counts[b] - counts[(b - window) & 255]
            if inside > most:
                base, most = b, inside
        num = min((1 << _WIDTHS[-1]) - 1, 256 - window)
        filled = 0
        for d in range(window, 256):  # the commonest distances outside the window, by insertion
            count = counts[(base - d) & 255]
            if filled == num and count <= counts[(base - outside[num - 1]) & 255]:
                continue
            k = min(filled, num - 1)
            while k > 0 and counts[(base - outside[k - 1]) & 255] < count:
                outside[k] = outside[k - 1]
                k -= 1
            outside[k] = d
            filled = min(filled + 1, num)
        for next_width in _WIDTHS:
            num_listed = (1 << next_width) - 1
            num_raw = total - most
            for k in range(num_listed):
                num_raw -= counts[(base - outside[k]) & 255]
            price = 4 * width * total + (4 * next_width + 1) * (total - most) + 32 * num_raw
            if best_price < 0 or price < best_price:
                best_base, best_width, best_next, best_price = base, width, next_width, price
                for k in range(distances.size):
                    distances[k] = u8(outside[k]) if k < num_listed else u8(0)
    return best_base, best_width, best_next, best_price


@kernel(types.void(types.uint8[::1], types.int64, types.int64, types.uint8[::1]))
def _pack(codes, width, stride, planes):
    """Pack 8 * stride codes into `width` planes; the codes are overwritten."""
    half = 4 * stride
    low, high = codes[:half], codes[half : 2 * half]
    for i in range(half):  # lanes j and j + 4 share a byte, so half as many bytes are left to take apart
        low[i] = u8(low[i] | (high[i] << 4))
    a, b = codes[:stride], codes[stride : 2 * stride]
    c, d = codes[2 * stride : 3 * stride], codes[3 * stride : half]
    for k in range(width):
        plane = planes[k * stride : (k + 1) * stride]
        for i in range(stride):
            ab = ((a[i] >> k) & 17) | (((b[i] >> k) & 17) << 1)
            cd = ((c[i] >> k) & 17) | (((d[i] >> k) & 17) << 1)
            plane[i] = u8(ab | (cd << 2))


@kernel(types.void(_BYTES, types.int64, types.int64, types.uint8[::1]))
def _unpack(planes, width, stride, codes):
    """Unpack `width` planes (2, 3 or 4) into 8 * stride codes."""
    p0, p1 = planes[:stride], planes[stride : 2 * stride]
    p2, p3 = planes[min(2, width - 1) * stride :][:stride], planes[(width - 1) * stride :][:stride]
    for j in range(_LANES):
        lane = codes[j * stride : (j + 1) * stride]
        if width == 2:
            for i in range(stride):
                lane[i] = u8(((p0[i] >> j) & 1) | (((p1[i] >> j) & 1) << 1))
        elif width == 3:
            for i in range(stride):
                lane[i] = u8(((p0[i] >> j) & 1) | (((p1[i] >> j) & 1) << 1) | (((p2[i] >> j) & 1) << 2))
        else:
            for i in range(stride):
                low = u8(((p0[i] >> j) & 1) | (((p1[i] >> j) & 1) << 1))
                lane[i] = u8(low | (((p2[i] >> j) & 1) << 2) | (((p3[i] >> j) & 1) << 3))


@kernel(types.void(_BYTES, types.int64, types.int64, types.uint8[::1]))
def _mark(planes, width, stride, mask):
    """Set the bits of the codes of all ones in `mask`, a block's worth of bytes."""
    m = mask[:stride]
    plane = planes[:stride]
    for i in range(stride):
        m[i] = plane[i]
    for k in range(1, width):
        plane = planes[k * stride : (k + 1) * stride]
        for i in range(stride):
            m[i] = u8(m[i] & plane[i])
    for i in range(stride, mask.size):
        mask[i] = u8(0)


@kernel(types.void(types.int64, types.uint64[::1]))
def _place_bits(stride, places):
    """Fill `places[bit]` with the code that a bit of the mask's first word stands for; no bit (64): spare space."""
    for bit in range(64):
        places[bit] = (bit & 7) * stride + (bit >> 3)
    places[64] = _BLOCK


@kernel(types.int64(_WORDS, types.uint64[::1], _BYTES, types.uint8[::1]))
def _gather(words, places, values, listed):
    """List the values whose bits are set; return how many. `listed` has spare space after them."""
    num = 0
    for w in range(words.size):
        word = words[w]
        count = np.int64(count_ones(word))
        source, target = values[8 * w :], listed[num:]
        done = u64(0)
        while True:
            for _ in range(_GROUP):
                target[done] = source[places[trailing_zeros(word)]]
                word &= word - _ONE
                done += _ONE
            if done >= u64(count):
                break
        num += count
    return num


@kernel(types.int64(_WORDS, types.uint64[::1], _BYTES, types.int64, types.uint8[::1]))
def _scatter(words, places, listed, num_listed, values):
    """Put what is listed to the values whose bits are set; return how many, or -1 where the list is too short."""
    num = 0
    for w in range(words.size):
        word = words[w]
        count = np.int64(count_ones(word))
        if num + count > num_listed:
            return -1
        source, target = listed[num:], values[8 * w :]
        done = u64(0)
        while True:
            for _ in range(_GROUP):
                target[places[trailing_zeros(word)]] = source[done]
                word &= word - _ONE
                done += _ONE
            if done >= u64(count):
                break
        num += count
    return num


@kernel(
    types.UniTuple(types.int64, 2)(
        _HALVES,
        types.int64,
        types.int64,
        types.int64,
        _BYTES,
        types.uint8[::1],
        types.uint8[::1],
        types.uint8[::1],
    )
)
def encode(halves, base, width, next_width, distances, signs, planes, tail):
    top, limit = u8(base), u8((1 << width) - 1)
    far = np.empty(_BLOCK + _STRIDE, np.uint8)
    codes = np.empty(_BLOCK, np.uint8)
    mask = np.zeros(_STRIDE, np.uint8)
    words = mask.view(np.uint64)
    places = np.empty(65, np.uint64)
    escapes = np.empty(halves.size + _SPARE, np.uint8)
    num_escapes, at, placed = 0, 0, 0
    for start in range(0, halves.size, _BLOCK):
        x = halves[start : min(start + _BLOCK, halves.size)]
        s = signs[start : start + x.size]
        stride = (x.size + _LANES - 1) // _LANES
        if stride != placed:
            _place_bits(stride, places)
            placed = stride
        for i in range(x.size):
            s[i] = u8(((x[i] >> 8) & 0x80) | (x[i] & 0x7F))
            d = u8(top - u8((x[i] >> 7) & 0xFF))
            far[i] = d
            codes[i] = min(d, limit)
        codes[x.size : _LANES * stride] = u8(0)
        block = planes[at : at + width * stride]
        at += width * stride
        _pack(codes, width, stride, block)
        _mark(block, width, stride, mask)
        num_escapes += _gather(words[: (stride + 7) // 8], places, far, escapes[num_escapes:])
    escape = (1 << next_width) - 1
    raw = np.empty(num_escapes + _SPARE, np.uint8)
    num_raw, at = 0, 0
    for start in range(0, num_escapes, _BLOCK):
        d = escapes[start : min(start + _BLOCK, num_escapes)]
        stride = (d.size + _LANES - 1) // _LANES
        if stride != placed:
            _place_bits(stride, places)
            placed = stride
        code = codes[: d.size]
        for i in range(d.size):
            far[i] = d[i]
            code[i] = u8(escape)
        for k in range(escape):  # the distances differ from each other, so at most one of them toggles a code
            toggle, distance = u8(k ^ escape), distances[k]
            for i in range(d.size):
                code[i] ^= toggle if far[i] == distance else u8(0)
        codes[d.size : _LANES * stride] = u8(0)
        block = tail[at : at + next_width * stride]
        at += next_width * stride
        _pack(codes, next_width, stride, block)
        _mark(block, next_width, stride, mask)
        num_raw += _gather(words[: (stride + 7) // 8], places, far, raw[num_raw:])
    tail[at : at + num_raw] = raw[:num_raw]
    return num_escapes, num_raw


@kernel(
    types.boolean(
        _BYTES,
        _BYTES,
        _BYTES,
        types.int64,
        types.int64,
        types.int64,
        types.int64,
        _BYTES,
        types.uint16[::1],
    )
)
def decode(signs, planes, tail, num_escapes, base, width, next_width, distances, halves):
    far = np.empty(_BLOCK + _STRIDE, np.uint8)
    values = np.empty(_BLOCK + _STRIDE, np.uint8)
    mask = np.zeros(_STRIDE, np.uint8)
    words = mask.view(np.uint64)
    places = np.empty(65, np.uint64)
    escapes = np.empty(num_escapes + _SPARE, np.uint8)
    rest = num_escapes % _BLOCK
    num_coded = next_width * (num_escapes // _BLOCK * _STRIDE + (rest + _LANES - 1) // _LANES)
    num_raw = tail.size - num_coded
    raw = np.empty(num_raw + _SPARE, np.uint8)
    raw[:num_raw] = tail[num_coded:]
    escape = (1 << next_width) - 1
    used, at, placed = 0, 0, 0
    for start in range(0, num_escapes, _BLOCK):
        d = escapes[start : min(start + _BLOCK, num_escapes)]
        stride = (d.size + _LANES - 1) // _LANES
        if stride != placed:
            _place_bits(stride, places)
            placed = stride
        block = tail[at : at + next_width * stride]
        at += next_width * stride
        _mark(block, next_width, stride, mask)
        _unpack(block, next_width, stride, far)
        for i in range(d.size, _LANES * stride):
            if far[i] != 0:
                return False
        for i in range(d.size):
            values[i] = u8(0)
        for k in range(escape):
            position, distance = u8(k), distances[k]
            for i in range(d.size):
                values[i] |= distance if far[i] == position else u8(0)
        num = _scatter(words[: (stride + 7) // 8], places, raw[used:], num_raw - used, values)
        if num < 0:
            return False
        used += num
        for i in range(d.size):
            d[i] = values[i]
    if used != num_raw:
        return False
    top = u8(base)
    used, at = 0, 0
    for start in range(0, halves.size, _BLOCK):
        x = halves[start : min(start + _BLOCK, halves.size)]
        s = signs[start : start + x.size]
        stride = (x.size + _LANES - 1) // _LANES
        if stride != placed:
            _place_bits(stride, places)
            placed = stride
        block = planes[at : at + width * stride]
        at += width * stride
        _mark(block, width, stride, mask)
        _unpack(block, width, stride, far)
        for i in range(x.size, _LANES * stride):
            if far[i] != 0:
                return False
        num = _scatter(words[: (stride + 7) // 8], places, escapes[used:], num_escapes - used, far)
        if num < 0:
            return False
        used += num
        for i in range(x.size):
            t = u16(s[i])
            e = u16(u8(top - far[i]))
            x[i] = u16(((t & 0x80) << 8) | (e << 7) | (t & 0x7F))
    return used == num_escapes
