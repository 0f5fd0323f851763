"""Rings of records, decoded and compared, fast: see ref.py."""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.rings.ref import LOW, MAX_SITES
from trimtab.kernels.words import leading_zeros

__all__ = ["LOW", "MAX_SITES", "differing", "drifting", "place", "scan", "spread", "totals"]

_LOW, _MAX_SITES = np.uint64(LOW), MAX_SITES
_MAX_TIME = np.uint64(1 << 62)
_TABLE = 4 * MAX_SITES  # places of the table of sites; a power of two
u64, u32, i64, i32, f32 = np.uint64, np.uint32, np.int64, np.int32, np.float32
_NAN = np.float32(np.nan)

_I64, _I32, _U32, _U16, _F32 = (t[::1] for t in (types.int64, types.int32, types.uint32, types.uint16, types.float32))
_WORDS = types.Array(types.uint64, 2, "C", readonly=True)
_RO_I64 = types.Array(types.int64, 1, "C", readonly=True)
_RO_U32 = types.Array(types.uint32, 1, "C", readonly=True)
_RO_F32 = types.Array(types.float32, 1, "C", readonly=True)


# records are indexed in place: a view of each would be counted, which takes longer than all else


@kernel(types.int64(_WORDS, _I64, _I64, _I64))
def scan(words, first, last, counts):
    first[:] = 0
    last[:] = 0
    counts[:] = 0
    capacity = words.shape[0]
    mask = u64(capacity - 1)
    num_communicators = u64(first.size)
    written = 0
    base, newest, oldest, found = u64(0), i64(0), i64(0), False
    valid = 0
    for i in range(capacity):
        if words[i, 2] == u64(0):
            continue
        written += 1
        stamp, seq = words[i, 0] & _LOW, words[i, 1]
        communicator = (words[i, 0] >> u64(32)) & u64(0xFFFF)
        is_there = stamp == words[i, 7] >> u64(32) and stamp & mask == u64(i)
        if not (is_there and communicator < num_communicators and seq != u64(0) and seq < _MAX_TIME):
            continue
        if not found:
            base, found = stamp, True
        age = i64(i32((stamp - base) & _LOW))
        newest, oldest = max(newest, age), min(oldest, age)
        valid += 1
        c, number = i64(communicator), i64(seq)
        if first[c] == 0 or number < first[c]:
            first[c] = number
        if number > last[c]:
            last[c] = number
    counts[0], counts[1] = valid, written - valid
    if not found:
        return -1
    stamp_of_newest = (base + u64(newest)) & _LOW
    if newest - oldest < capacity:
        return i64(stamp_of_newest)
    # some are left from a turn before, which only a damaged ring has: once more, without these
    first[:] = 0
    last[:] = 0
    valid = 0
    for i in range(capacity):
        stamp, seq = words[i, 0] & _LOW, words[i, 1]
        communicator = (words[i, 0] >> u64(32)) & u64(0xFFFF)
        is_there = words[i, 2] != u64(0) and stamp == words[i, 7] >> u64(32) and stamp & mask == u64(i)
        if not (is_there and communicator < num_communicators and seq != u64(0) and seq < _MAX_TIME):
            continue
        if i64(i32((stamp - stamp_of_newest) & _LOW)) <= -capacity:
            continue
        valid += 1
        c, number = i64(communicator), i64(seq)
        if first[c] == 0 or number < first[c]:
            first[c] = number
        if number > last[c]:
            last[c] = number
    counts[0], counts[1] = valid, written - valid
    return i64(stamp_of_newest)


@kernel(types.void(_WORDS, types.int64, _RO_I64, _RO_I64, _RO_I64, _I64, _F32, _F32, _F32, _U32, _U32, _U32, _U16))
def place(words, newest, first, last, start, enter, inside, outside, waited, signature, site, step, kind):
    capacity = words.shape[0]
    mask = u64(capacity - 1)
    num_communicators = u64(first.size)
    wants_enter, wants_inside, wants_outside, wants_waited = enter.size, inside.size, outside.size, waited.size
    wants_signature, wants_site, wants_step, wants_kind = signature.size, site.size, step.size, kind.size
    free = u64(0)
    for k in range(capacity):
        number = u64(newest - capacity + 1 + k)
        i = i64(number & mask)
        if (
            words[i, 2] == u64(0)
            or words[i, 0] & _LOW != number & _LOW
            or words[i, 7] >> u64(32) != number & _LOW
            or (words[i, 0] >> u64(32)) & u64(0xFFFF) >= num_communicators
        ):
            continue
        c, seq = i64((words[i, 0] >> u64(32)) & u64(0xFFFF)), words[i, 1]
        if seq < u64(first[c]) or seq > u64(last[c]) or first[c] == 0:
            continue
        at = start[c] + i64(seq) - first[c]
        entered, left = words[i, 2], words[i, 3]
        is_good = entered < _MAX_TIME and entered <= left and left < _MAX_TIME
        if wants_enter:
            enter[at] = i64(entered) if entered < _MAX_TIME else 0
        if wants_inside:
            inside[at] = f32(i64(left - entered) * 1e-9) if is_good else _NAN
        if wants_outside:
            if free != u64(0) and entered < _MAX_TIME:
                outside[at] = f32(i64(entered - free) * 1e-9) if entered > free else f32(0)
            else:
                outside[at] = _NAN
        if is_good and left > free:
            free = left
        if wants_waited:
            waited[at] = f32(i64(words[i, 7] & _LOW) * 1e-6)
        if wants_signature:
            signature[at] = u32(words[i, 5] & _LOW)
        if wants_site:
            site[at] = u32(words[i, 5] >> u64(32))
        if wants_step:
            step[at] = u32(words[i, 6] & _LOW)
        if wants_kind:
            op = (words[i, 0] >> u64(48)) & u64(0xFF)
            kind[at] = np.uint16((op << u64(8)) | (u64(64) - leading_zeros(words[i, 4])))


@kernel(types.void(_RO_I64, _RO_I64, _RO_I64, _RO_F32, types.int64, _F32, _F32, _I32, _I32))
def spread(start, first, count, inside, low, least, most, who, num):
    least[:] = _NAN
    most[:] = _NAN
    who[:] = -1
    num[:] = 0
    for member in range(start.size):
        begin, end = max(low, first[member]), min(low + least.size, first[member] + count[member])
        if begin >= end:
            continue
        at = start[member] + begin - first[member]
        times = inside[at : at + end - begin]
        lows, highs = least[begin - low : end - low], most[begin - low : end - low]
        places, nums = who[begin - low : end - low], num[begin - low : end - low]
        for i in range(times.size):
            t = times[i]
            if t == t:
                nums[i] += i32(1)
                if not t >= lows[i]:
                    lows[i] = t
                    places[i] = i32(member)
                if not t <= highs[i]:
                    highs[i] = t


@kernel(types.void(_RO_I64, _RO_I64, _RO_I64, _RO_I64, _RO_F32, _RO_F32, _RO_F32, types.float64[:, :, ::1], _I64))
def totals(start, count, since, enter, inside, outside, waited, sums, num_before):
    sums[:] = 0.0
    for block in range(start.size):
        num_before[block] = count[block]
        for i in range(count[block]):
            at = start[block] + i
            is_after = 0
            if enter[at] >= since[block]:
                is_after = 1
                num_before[block] = min(num_before[block], i)
            sums[block, is_after, 0] += 1.0
            if inside[at] == inside[at]:
                sums[block, is_after, 1] += np.float64(inside[at])
            if outside[at] == outside[at]:
                sums[block, is_after, 2] += np.float64(outside[at])
            if waited[at] == waited[at]:
                sums[block, is_after, 3] += np.float64(waited[at])


@kernel(types.void(_RO_I64, _RO_I64, _RO_I64, _RO_U32, types.int64, _I64))
def differing(start, first, count, signature, reference, found):
    for member in range(start.size):
        found[member] = 0
        begin = max(first[member], first[reference])
        end = min(first[member] + count[member], first[reference] + count[reference])
        if begin >= end:
            continue
        a, b = start[reference] + begin - first[reference], start[member] + begin - first[member]
        theirs, mine = signature[a : a + end - begin], signature[b : b + end - begin]
        for i in range(mine.size):
            if mine[i] != theirs[i] and mine[i] != u32(0) and theirs[i] != u32(0):
                found[member] = begin + i
                break


@kernel(types.void(_RO_I64, _RO_I64, _RO_I64, _RO_U32, _RO_U32, types.int64, _I64, _I64))
def drifting(start, first, count, site, step, reference, found, num):
    keys, partners = np.zeros(_TABLE, np.uint32), np.zeros(_TABLE, np.uint32)
    for member in range(start.size):
        found[member], num[member] = 0, 0
        begin = max(first[member], first[reference])
        end = min(first[member] + count[member], first[reference] + count[reference])
        if begin >= end:
            continue
        keys[:] = u32(0)
        num_sites = 0
        has_offset, offset = False, i64(0)
        for seq in range(begin, end):
            a, b = start[reference] + seq - first[reference], start[member] + seq - first[member]
            broken = False
            if site[a] != u32(0) and site[b] != u32(0):
                slot = i64((u64(site[a]) * u64(0x9E3779B97F4A7C15)) >> u64(40)) & (_TABLE - 1)
                while keys[slot] != u32(0) and keys[slot] != site[a]:
                    slot = (slot + 1) & (_TABLE - 1)
                if keys[slot] != u32(0):
                    broken = partners[slot] != site[b]
                elif num_sites < _MAX_SITES:
                    keys[slot], partners[slot] = site[a], site[b]
                    num_sites += 1
            if step[a] != u32(0) and step[b] != u32(0):
                gap = i64(step[b]) - i64(step[a])
                if not has_offset:
                    has_offset, offset = True, gap
                if gap != offset:
                    broken = True
            if broken:
                if found[member] == 0:
                    found[member] = seq
                num[member] += 1
