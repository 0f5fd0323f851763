"""Tabled asymmetric numeral systems with contexts, fast: see ref.py for the format.

The decoder is safe on hostile input without a test a symbol: tables are built from counts that were checked to sum to
their size, so that every state leads to a state; loads are clamped to the block; and positions come from the shape of
the output. The end of the bits and the final states are compared afterwards.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.ans.ref import MAX_CONTEXTS, NUM_TOKENS, TABLE_BITS, max_block_size
from trimtab.kernels.jit import kernel
from trimtab.kernels.words import load64, store64

__all__ = [
    "MAX_CONTEXTS",
    "NUM_TOKENS",
    "TABLE_BITS",
    "decode_block",
    "decode_given",
    "encode_block",
    "encode_mixed",
    "max_block_size",
    "read_tables",
]

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_ROWS = types.Array(types.uint8, 2, "C", readonly=True)
_LONGS = types.Array(types.int64, 2, "C", readonly=True)
_SIZE = 1 << TABLE_BITS
_STEP = (_SIZE >> 1) + (_SIZE >> 3) + 3
_BITS = TABLE_BITS
_TOKENS = NUM_TOKENS
_CONTEXTS = MAX_CONTEXTS
u8, u64 = np.uint8, np.uint64
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")


@kernel(types.void(_ROWS, types.int64, types.int64, types.uint8[::1], types.uint8[::1]))
def _activities(tokens, r, back, padded, activities):
    """Write the activity of each place of row `r`; `padded` is room for a row and one more at either end."""
    num = tokens.shape[1]
    if r == 0:
        activities[:] = u8(0)
        return
    above, behind = tokens[r - 1], tokens[r - back if r >= back else r - 1]
    inner = padded[1 : num + 1]
    for k in range(num):
        inner[k] = min(above[k], u8(42))
    padded[0], padded[num + 1] = padded[1], padded[num]
    left, right = padded[:num], padded[2 : num + 2]
    for k in range(num):
        activities[k] = u8(u8(inner[k] << 1) + left[k] + right[k] + u8(min(behind[k], u8(42)) << 1))


@_inline
def _bases(activities, thresholds, spacing, bases):
    """Write for each place where the tables of its context begin: 2^spacing times the thresholds it reaches."""
    t0, t1, t2, t3 = thresholds[0], thresholds[1], thresholds[2], thresholds[3]
    t4, t5, t6 = thresholds[4], thresholds[5], thresholds[6]
    for k in range(activities.size):
        a = activities[k]
        low = u8(u8(a >= t0) + u8(a >= t1) + u8(a >= t2) + u8(a >= t3))
        bases[k] = np.uint16(np.uint16(u8(low + u8(a >= t4) + u8(a >= t5) + u8(a >= t6))) << np.uint16(spacing))


@kernel(types.int64(types.Array(types.uint32, 2, "C"), types.uint8[::1], types.int64))
def _choose_contexts(joint, thresholds, num_tokens):
    """Split the activities, counted with tokens on a sample, into contexts of like weight; return their number."""
    weights = np.zeros(256, np.int64)
    total, active, sampled = np.int64(0), np.int64(0), np.int64(0)
    for s in range(256):
        some = np.int64(0)
        for token in range(1, _TOKENS):
            some += np.int64(joint[s, token])
        active += some
        sampled += some + np.int64(joint[s, 0])
        weights[s] = 33 * some + np.int64(joint[s, 0])  # places that are almost surely zero are many and cheap
        total += weights[s]
    active = active * num_tokens // max(sampled, 1)
    wanted = 1 if active < 1000 else (4 if active < 16000 else _CONTEXTS)
    num, passed = 1, np.int64(0)
    for s in range(255):
        passed += weights[s]
        if num < wanted and weights[s] > 0 and passed * wanted >= num * total and passed < total:
            thresholds[num - 1] = u8(s + 1)
            num += 1
    return num


@kernel(types.void(types.int64[::1], types.int64[::1]))
def _normalise(counts, shares):
    """Scale counts to shares that sum to the table size, none of a present token below 1."""
    total, used = np.int64(0), np.int64(0)
    for t in range(_TOKENS):
        total += counts[t]
    for t in range(_TOKENS):
        shares[t] = 0
        if counts[t] > 0:
            shares[t] = max(1, (counts[t] * _SIZE + total // 2) // total)
        used += shares[t]
    while used != _SIZE and total > 0:
        best, chosen = -1.0, 0
        for t in range(_TOKENS):
            if used < _SIZE and counts[t] > 0:  # the token that gains most from one slot more
                gain = counts[t] / (2.0 * shares[t] + 1.0)
                if gain > best:
                    best, chosen = gain, t
            if used > _SIZE and shares[t] > 1:  # the token that loses least with one slot less
                loss = counts[t] / (2.0 * shares[t] - 1.0)
                if best < 0 or loss < best:
                    best, chosen = loss, t
        change = 1 if used < _SIZE else -1
        shares[chosen] += change
        used += change


@kernel(types.void(types.int64[::1], types.uint8[::1]))
def _spread(shares, slots):
    """Deal the slots of a table to the tokens."""
    at = 0
    for t in range(_TOKENS):
        for _ in range(shares[t]):
            slots[at] = u8(t)
            at = (at + _STEP) & (_SIZE - 1)


@_inline
def _width(value):
    width = 0
    while value > 0:
        value >>= 1
        width += 1
    return width


@kernel(types.int64(types.uint8[::1], types.int64, types.int64, types.int64))
def _put_bits(out, position, value, width):
    for k in range(width):
        if (value >> k) & 1:
            out[(position + k) >> 3] |= u8(1 << ((position + k) & 7))
    return position + width


@_inline
def _put(state, at, steps, following):
    """Push one token: return the new state, the bits that the old one shed, and their number."""
    step = steps[at]
    width = ((state + u64(step)) & u64(0xFFFFFFFF)) >> u64(16)
    low = state & ((u64(1) << width) - u64(1))
    return u64(following[u64(np.int64(state >> width) + (step >> 32))]), low, width


@_inline
def _put_four(a, b, c, d, bases, tokens, steps, following, bits, num_bits):
    """Push four tokens, the last one first: return the new states and the bits with those that were shed."""
    d, low_d, width_d = _put(d, u64(bases[3]) + u64(tokens[3]), steps, following)
    c, low_c, width_c = _put(c, u64(bases[2]) + u64(tokens[2]), steps, following)
    b, low_b, width_b = _put(b, u64(bases[1]) + u64(tokens[1]), steps, following)
    a, low_a, width_a = _put(a, u64(bases[0]) + u64(tokens[0]), steps, following)
    width = width_a + width_b
    shed = (low_d << width_c | low_c) << width | (low_b << width_a | low_a)
    width += width_c + width_d
    return a, b, c, d, bits << width | shed, num_bits + width


@_inline
def _flush(address, bits, num_bits):
    """Write whole bytes, the oldest bits highest; up to 7 bits stay."""
    store64(address - types.uintp(8), bits << ((u64(64) - num_bits) & u64(63)))
    return address - (num_bits >> u64(3)), num_bits & u64(7)


@_inline
def _get(state, base, table, bits):
    """Pop one token: return the new state, the table entry (width | token << 8 | ...) and the bits that remain."""
    entry = u64(table[u64(base) + state])
    width = entry & u64(63)
    state = (entry >> u64(16)) + (bits & ((u64(1) << width) - u64(1)))
    return state, entry, bits >> width


@_inline
def _take_bits(block, position, width):
    value = 0
    for k in range(width):
        value |= ((np.int64(block[(position + k) >> 3]) >> ((position + k) & 7)) & 1) << k
    return value


@_inline
def _page_aligned(num_bytes):
    """Return zeroed room that begins at a page: tables that the caches see alike in every call, for an even speed."""
    room = np.zeros(num_bytes + 4096, np.uint8)
    skip = np.int64(types.uintp(4096) - types.uintp(room.ctypes.data) % types.uintp(4096))
    return room[skip : skip + num_bytes]


@kernel(
    types.int64(
        types.Array(types.uint32, 2, "C"),
        _BYTES,
        types.int64,
        types.int64[::1],
        types.uint16[::1],
        types.uint8[::1],
    )
)
def _write_tables(tallies, thresholds, num_contexts, steps, following, out):
    """Write a block's contexts and shares, and the tables to encode with; return where the block goes on.

    The counts of token t in context c are in column 128 c + t of the tallies.
    """
    counts, shares, slots = np.empty(_TOKENS, np.int64), np.empty(_TOKENS, np.int64), np.empty(_SIZE, np.uint8)
    begins = np.empty(_TOKENS, np.int64)
    out[: 1 + num_contexts + num_contexts * _TOKENS * 3] = u8(0)
    out[0] = u8(num_contexts)
    for c in range(num_contexts - 1):
        out[1 + c] = thresholds[c]
    position = 8 * num_contexts
    for c in range(num_contexts):
        for t in range(_TOKENS):
            counts[t] = 0
            for lane in range(tallies.shape[0]):
                counts[t] += np.int64(tallies[lane, 128 * c + t])
        _normalise(counts, shares)
        _spread(shares, slots)
        begin, last = 0, 0
        for t in range(_TOKENS):
            share = shares[t]
            begins[t] = begin
            if share > 0:
                last = t + 1
                most = _BITS + 1 - _width(share)
                # state + low half has the width above bit 16; the high half leads to the following state
                steps[128 * c + t] = (c * _SIZE + begin - share) << 32 | ((most << 16) - (share << most)) & 0xFFFFFFFF
            begin += share
        for slot in range(begin):  # none in a context that never occurs
            t = slots[slot]
            following[c * _SIZE + begins[t]] = np.uint16(_SIZE + slot)
            begins[t] += 1
        position = _put_bits(out, position, last, 7)
        for t in range(last):
            width = _width(shares[t] + 1)
            position = _put_bits(out, position, 0, width - 1)
            position = _put_bits(out, position, 1, 1)
            position = _put_bits(out, position, shares[t] + 1 - (1 << (width - 1)), width - 1)
    return (position + 7) >> 3


@kernel(
    types.int64(
        types.uint8[::1], types.int64, types.uintp, types.uint64, types.uint64, types.Array(types.uint64, 1, "C")
    )
)
def _finish(out, head, address, bits, num_bits, states):
    """Put the stream, which ends with `out` and begins at `address`, behind the tables; return the block's size."""
    first = np.int64(address - types.uintp(out.ctypes.data))
    skip = np.int64(0)
    if num_bits > u64(0):
        skip = np.int64(u64(8) - num_bits)
        first -= 1
        out[first] = u8((bits << u64(skip)) & u64(255))
    out[head] = u8(skip)
    for k in range(8):
        state = np.int64(states[k]) - _SIZE
        out[head + 1 + 2 * k], out[head + 2 + 2 * k] = u8(state & 255), u8(state >> 8)
    head += 17
    for i in range(out.size - first):
        out[head + i] = out[first + i]
    size = head + out.size - first
    while size < head + 8:  # so that the decoder can load a word from anywhere
        out[size] = u8(0)
        size += 1
    return size


@kernel(types.int64(_ROWS, types.int64, types.uint8[::1]))
def encode_block(tokens, back, out):
    num_rows, num = tokens.shape
    room = _page_aligned(2 * _CONTEXTS * _SIZE + (8 + 16) * 128 * _CONTEXTS + 4 * ((num + 2 + 63) // 64 * 64))
    following = room[: 2 * _CONTEXTS * _SIZE].view(np.uint16)
    room = room[2 * _CONTEXTS * _SIZE :]
    steps, room = room[: 8 * 128 * _CONTEXTS].view(np.int64), room[8 * 128 * _CONTEXTS :]
    tallies, room = (
        room[: 16 * 128 * _CONTEXTS].view(np.uint32).reshape(4, 128 * _CONTEXTS),
        room[16 * 128 * _CONTEXTS :],
    )
    line = (num + 2 + 63) // 64 * 64
    bases, activities, padded = room[: 2 * num].view(np.uint16), room[2 * line :][:num], room[3 * line :][: num + 2]
    joint = np.zeros((256, _TOKENS), np.uint32)
    for r in range(0, num_rows, 8 if num_rows >= 64 else 1):
        _activities(tokens, r, back, padded, activities)
        row = tokens[r]
        for k in range(num):
            joint[activities[k], row[k]] += np.uint32(1)
    thresholds = np.full(_CONTEXTS - 1, u8(255))  # no activity reaches it
    num_contexts = _choose_contexts(joint, thresholds, tokens.size)
    # four tables, since counting a run of one token in a single table waits for its own stores
    n0, n1, n2, n3 = tallies[0], tallies[1], tallies[2], tallies[3]
    for r in range(num_rows):
        _activities(tokens, r, back, padded, activities)
        _bases(activities, thresholds, 7, bases)
        row = tokens[r]
        whole = num // 4 * 4
        for k in range(0, whole, 4):
            a, t = bases[k : k + 4], row[k : k + 4]
            n0[u64(a[0]) + u64(t[0])] += np.uint32(1)
            n1[u64(a[1]) + u64(t[1])] += np.uint32(1)
            n2[u64(a[2]) + u64(t[2])] += np.uint32(1)
            n3[u64(a[3]) + u64(t[3])] += np.uint32(1)
        for k in range(whole, num):
            n0[u64(bases[k]) + u64(row[k])] += np.uint32(1)

    head = _write_tables(tallies, thresholds, num_contexts, steps, following, out)

    states = np.full(8, _SIZE, np.uint64)
    end = types.uintp(out.ctypes.data) + types.uintp(out.size)
    address, bits, num_bits = end, u64(0), u64(0)
    for r in range(num_rows - 1, -1, -1):
        _activities(tokens, r, back, padded, activities)
        _bases(activities, thresholds, 7, bases)
        row = tokens[r]
        whole = num // 8 * 8
        for k in range(num - 1, whole - 1, -1):
            at = u64(bases[k]) + u64(row[k])
            states[k - whole], low, width = _put(states[k - whole], at, steps, following)
            bits, num_bits = bits << width | low, num_bits + width
            address, num_bits = _flush(address, bits, num_bits)
        x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
        x4, x5, x6, x7 = states[4], states[5], states[6], states[7]
        for g in range(whole - 8, -1, -8):
            a, t = bases[g + 4 : g + 8], row[g + 4 : g + 8]
            x4, x5, x6, x7, bits, num_bits = _put_four(x4, x5, x6, x7, a, t, steps, following, bits, num_bits)
            address, num_bits = _flush(address, bits, num_bits)
            a, t = bases[g : g + 4], row[g : g + 4]
            x0, x1, x2, x3, bits, num_bits = _put_four(x0, x1, x2, x3, a, t, steps, following, bits, num_bits)
            address, num_bits = _flush(address, bits, num_bits)
        states[0], states[1], states[2], states[3] = x0, x1, x2, x3
        states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return _finish(out, head, address, bits, num_bits, states)


@kernel(types.int64(_BYTES, _BYTES, _LONGS, _LONGS, _BYTES, types.uint8[::1]))
def encode_mixed(tokens, contexts, rows, counts, thresholds, out):
    num_contexts = thresholds.size + 1
    following, steps = np.zeros(num_contexts * _SIZE, np.uint16), np.zeros(num_contexts * 128, np.int64)
    tallies = counts.astype(np.uint32).reshape(1, num_contexts * 128)
    head = _write_tables(tallies, thresholds, num_contexts, steps, following, out)
    states = np.full(8, _SIZE, np.uint64)
    address, bits, num_bits = types.uintp(out.ctypes.data) + types.uintp(out.size), u64(0), u64(0)
    end = tokens.size
    for m in range(rows.shape[0] - 1, -1, -1):
        num = rows[m, 1]
        whole = num // 8 * 8
        bases = np.empty(num, np.uint16)
        for _ in range(rows[m, 0]):
            row, c = tokens[end - num : end], contexts[end - num : end]
            end -= num
            for k in range(num):
                bases[k] = np.uint16(np.uint16(c[k]) << np.uint16(7))
            for k in range(num - 1, whole - 1, -1):
                at = u64(bases[k]) + u64(row[k])
                states[k - whole], low, width = _put(states[k - whole], at, steps, following)
                bits, num_bits = bits << width | low, num_bits + width
                address, num_bits = _flush(address, bits, num_bits)
            x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
            x4, x5, x6, x7 = states[4], states[5], states[6], states[7]
            for g in range(whole - 8, -1, -8):
                a, t = bases[g + 4 : g + 8], row[g + 4 : g + 8]
                x4, x5, x6, x7, bits, num_bits = _put_four(x4, x5, x6, x7, a, t, steps, following, bits, num_bits)
                address, num_bits = _flush(address, bits, num_bits)
                a, t = bases[g : g + 4], row[g : g + 4]
                x0, x1, x2, x3, bits, num_bits = _put_four(x0, x1, x2, x3, a, t, steps, following, bits, num_bits)
                address, num_bits = _flush(address, bits, num_bits)
            states[0], states[1], states[2], states[3] = x0, x1, x2, x3
            states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return _finish(out, head, address, bits, num_bits, states)


@kernel(types.int64(_BYTES, types.int64, types.uint32[::1], types.uint64[::1]))
def read_tables(block, max_contexts, table, states):
    if block.size < 1:
        return -1
    num_contexts = np.int64(block[0])
    if num_contexts < 1 or num_contexts > max_contexts or block.size < num_contexts:
        return -1
    shares, slots, seen = np.empty(_TOKENS, np.int64), np.empty(_SIZE, np.uint8), np.empty(_TOKENS, np.int64)
    position, end = 8 * num_contexts, 8 * block.size
    for c in range(num_contexts):
        shares[:] = 0
        if position + 7 > end:
            return -1
        last = _take_bits(block, position, 7)
        position += 7
        if last > _TOKENS:
            return -1
        total = 0
        for t in range(last):
            width = 0
            while position < end and width <= _BITS and _take_bits(block, position, 1) == 0:
                width += 1
                position += 1
            if width > _BITS or position + 1 + width > end:
                return -1
            shares[t] = (1 << width) + _take_bits(block, position + 1, width) - 1
            position += 1 + width
            total += shares[t]
        if total == 0:  # a context that never occurs; zeros keep its table whole
            shares[0], total = _SIZE, _SIZE
        if total != _SIZE:
            return -1
        _spread(shares, slots)
        for t in range(_TOKENS):
            seen[t] = shares[t]
        for slot in range(_SIZE):
            t = slots[slot]
            width = _BITS + 1 - _width(seen[t])
            base = (seen[t] << width) - _SIZE
            table[c * _SIZE + slot] = np.uint32(width | np.int64(t) << 8 | base << 16)
            seen[t] += 1
    head = (position + 7) >> 3
    if block.size < head + 25:
        return -1
    skip = np.int64(block[head])
    for k in range(8):
        state = np.int64(block[head + 1 + 2 * k]) | np.int64(block[head + 2 + 2 * k]) << 8
        if state >= _SIZE:
            return -1
        states[k] = u64(state)
    return 8 * (head + 17) + skip if skip <= 7 else -1


@kernel(types.int64(_BYTES, types.int64, types.uint8[:, ::1]))
def decode_block(block, back, tokens):
    num_rows, num = tokens.shape
    num_contexts = np.int64(block[0]) if block.size > 0 else 0
    if num_contexts < 1 or num_contexts > _CONTEXTS:
        return -1
    table, states = np.empty(num_contexts * _SIZE, np.uint32), np.empty(8, np.uint64)
    start = read_tables(block, _CONTEXTS, table, states)
    if start < 0:
        return -1
    thresholds, bases = np.full(_CONTEXTS - 1, u8(255)), np.empty(num, np.uint16)  # no activity reaches 255
    thresholds[: num_contexts - 1] = block[1:num_contexts]
    padded, activities = np.empty(num + 2, np.uint8), np.empty(num, np.uint8)
    base, limit, at_bit = types.uintp(block.ctypes.data), u64(block.size - 8), u64(start)
    out_address = types.uintp(tokens.ctypes.data)
    for r in range(num_rows):
        _activities(tokens, r, back, padded, activities)
        _bases(activities, thresholds, _BITS, bases)
        whole = num // 8 * 8
        s0, s1, s2, s3 = states[0], states[1], states[2], states[3]
        s4, s5, s6, s7 = states[4], states[5], states[6], states[7]
        address = out_address + types.uintp(r * num)
        for g in range(0, whole, 8):
            a = bases[g : g + 8]
            at = min(at_bit >> u64(3), limit)
            bits = load64(base + at) >> ((at_bit - (at << u64(3))) & u64(63))
            s0, e0, bits = _get(s0, a[0], table, bits)
            s1, e1, bits = _get(s1, a[1], table, bits)
            s2, e2, bits = _get(s2, a[2], table, bits)
            s3, e3, bits = _get(s3, a[3], table, bits)
            at_bit += (e0 + e1 + e2 + e3) & u64(255)
            at = min(at_bit >> u64(3), limit)
            bits = load64(base + at) >> ((at_bit - (at << u64(3))) & u64(63))
            s4, e4, bits = _get(s4, a[4], table, bits)
            s5, e5, bits = _get(s5, a[5], table, bits)
            s6, e6, bits = _get(s6, a[6], table, bits)
            s7, e7, bits = _get(s7, a[7], table, bits)
            at_bit += (e4 + e5 + e6 + e7) & u64(255)
            byte = u64(0xFF00)
            low = (e0 & byte) >> u64(8) | (e1 & byte) | (e2 & byte) << u64(8) | (e3 & byte) << u64(16)
            high = (e4 & byte) << u64(24) | (e5 & byte) << u64(32) | (e6 & byte) << u64(40) | (e7 & byte) << u64(48)
            store64(address + types.uintp(g), low | high)
        states[0], states[1], states[2], states[3] = s0, s1, s2, s3
        states[4], states[5], states[6], states[7] = s4, s5, s6, s7
        for k in range(whole, num):
            at = min(at_bit >> u64(3), limit)
            bits = load64(base + at) >> ((at_bit - (at << u64(3))) & u64(63))
            state, entry, bits = _get(states[k - whole], bases[k], table, bits)
            states[k - whole] = state
            at_bit += entry & u64(255)
            tokens[r, k] = u8(entry >> u64(8))
    for k in range(8):
        if states[k] != u64(0):
            return -1
    return 0 if block.size == max(np.int64((at_bit + u64(7)) >> u64(3)), (start >> 3) + 8) else -1


@kernel(types.int64(_BYTES, _BYTES, types.uint8[::1]))
def decode_given(block, activities, tokens):
    num_contexts = np.int64(block[0]) if block.size > 0 else 0
    if num_contexts < 1 or num_contexts > _CONTEXTS:
        return -1
    table, states = np.empty(num_contexts * _SIZE, np.uint32), np.empty(8, np.uint64)
    start = read_tables(block, _CONTEXTS, table, states)
    if start < 0:
        return -1
    bases = np.zeros(256, np.uint16)  # where the tables of an activity's context begin
    for s in range(256):
        for c in range(1, num_contexts):
            bases[s] += np.uint16(_SIZE if s >= block[c] else 0)
    base, limit, at_bit = types.uintp(block.ctypes.data), u64(block.size - 8), u64(start)
    address, whole = types.uintp(tokens.ctypes.data), tokens.size // 8 * 8
    s0, s1, s2, s3 = states[0], states[1], states[2], states[3]
    s4, s5, s6, s7 = states[4], states[5], states[6], states[7]
    for g in range(0, whole, 8):
        a = activities[g : g + 8]
        at = min(at_bit >> u64(3), limit)
        bits = load64(base + at) >> ((at_bit - (at << u64(3))) & u64(63))
        s0, e0, bits = _get(s0, bases[a[0]], table, bits)
        s1, e1, bits = _get(s1, bases[a[1]], table, bits)
        s2, e2, bits = _get(s2, bases[a[2]], table, bits)
        s3, e3, bits = _get(s3, bases[a[3]], table, bits)
        at_bit += (e0 + e1 + e2 + e3) & u64(255)
        at = min(at_bit >> u64(3), limit)
        bits = load64(base + at) >> ((at_bit - (at << u64(3))) & u64(63))
        s4, e4, bits = _get(s4, bases[a[4]], table, bits)
        s5, e5, bits = _get(s5, bases[a[5]], table, bits)
        s6, e6, bits = _get(s6, bases[a[6]], table, bits)
        s7, e7, bits = _get(s7, bases[a[7]], table, bits)
        at_bit += (e4 + e5 + e6 + e7) & u64(255)
        byte = u64(0xFF00)
        low = (e0 & byte) >> u64(8) | (e1 & byte) | (e2 & byte) << u64(8) | (e3 & byte) << u64(16)
        high = (e4 & byte) << u64(24) | (e5 & byte) << u64(32) | (e6 & byte) << u64(40) | (e7 & byte) << u64(48)
        store64(address + types.uintp(g), low | high)
    states[0], states[1], states[2], states[3] = s0, s1, s2, s3
    states[4], states[5], states[6], states[7] = s4, s5, s6, s7
    for k in range(whole, tokens.size):
        at = min(at_bit >> u64(3), limit)
        bits = load64(base + at) >> ((at_bit - (at << u64(3))) & u64(63))
        state, entry, bits = _get(states[k - whole], bases[activities[k]], table, bits)
        states[k - whole] = state
        at_bit += entry & u64(255)
        tokens[k] = u8(entry >> u64(8))
    for k in range(8):
        if states[k] != u64(0):
            return -1
    return 0 if block.size == max(np.int64((at_bit + u64(7)) >> u64(3)), (start >> 3) + 8) else -1
