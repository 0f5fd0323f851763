"""A job of many ranks and communicators, played through, fast: see ref.py."""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.replay.ref import FREEZE, LINK, OTHER, SKIP, SLOW, STOP

__all__ = ["FREEZE", "LINK", "OTHER", "SKIP", "SLOW", "STOP", "play"]

_STOP, _SKIP, _OTHER, _SLOW, _LINK, _FREEZE = STOP, SKIP, OTHER, SLOW, LINK, FREEZE
u64, i64 = np.uint64, np.int64
_MIX1, _MIX2, _STEP = u64(0xBF58476D1CE4E5B9), u64(0x94D049BB133111EB), u64(0x9E3779B97F4A7C15)
_LOW = u64(0xFFFFFFFF)


@kernel(types.uint64(types.int64, types.int64, types.int64))
def _hash(seed, stream, count):
    z = u64(seed) * _STEP + u64(stream) * _MIX1 + u64(count) * _MIX2 + _STEP
    z = (z ^ (z >> u64(30))) * _MIX1
    z = (z ^ (z >> u64(27))) * _MIX2
    return z ^ (z >> u64(31))


@kernel(types.float64(types.int64, types.int64, types.int64))
def _uniform(seed, stream, count):
    return i64(_hash(seed, stream, count) >> u64(11)) * (1.0 / (1 << 53))


@kernel(types.float64(types.int64, types.int64, types.int64))
def _normal(seed, stream, count):
    z, total = _hash(seed, stream, count), i64(0)
    for i in range(12):
        total += i64((z >> u64(5 * i)) & u64(31))
    return (total - 186.0) / 31.984371183438952


_I64, _I32, _F64, _U64 = (
    types.Array(element, 1, "C", readonly=True) for element in (types.int64, types.int32, types.float64, types.uint64)
)
_U8 = types.Array(types.uint8, 1, "C", readonly=True)


@kernel(
    types.void(
        _I32, types.Array(types.int32, 2, "C", readonly=True), _I64, _I32, _F64, _F64, _U64, _U64, _U64, _I64, _I32,
        _U8, types.Array(types.int64, 2, "C", readonly=True), _F64, _I64, types.int64, types.int64, types.float64,
        types.int64, types.uint64[:, :, ::1], types.int64[:, ::1], types.int64[:, ::1], types.int64[:, ::1],
        types.float64[::1], types.int64[::1], types.uint8[::1],
    )
)  # fmt: skip
def play(
    kind, slots, program_start, program_slot, program_compute, program_cost, program_what, program_bytes, program_place,
    member_start, members, over_link, fault, fault_value, offset, num_steps, first_step, jitter, seed,
    words, seqs, dones, exits, clock, numbers, ended,
):  # fmt: skip
    num_ranks, num_communicators, mask = kind.size, member_start.size - 1, words.shape[1] - 1
    step, at = np.zeros(num_ranks, np.int64), np.zeros(num_ranks, np.int64)
    pending, inside = np.zeros(num_ranks, np.int64), np.zeros(num_ranks, np.int64)  # record; slot
    entered, rounds = np.zeros(num_communicators, np.int64), np.zeros(num_communicators, np.int64)
    latest, factor = np.zeros(num_communicators), np.ones(num_communicators)
    expected, is_stuck = np.zeros(num_communicators, np.uint64), np.zeros(num_communicators, np.bool_)
    has_fault = np.zeros(num_ranks, np.bool_)
    for k in range(fault.shape[0]):
        has_fault[fault[k, 1]] = True
    clock[:] = 0.0
    seqs[:] = 0
    dones[:] = 0
    exits[:] = 0
    numbers[:] = 0
    ended[:] = 0
    ready, num_ready = np.arange(num_ranks), num_ranks
    while num_ready > 0:
        num_ready -= 1
        rank = ready[num_ready]
        while True:
            begin, end = program_start[kind[rank]], program_start[kind[rank] + 1]
            if at[rank] == end - begin:
                step[rank] += 1
                at[rank] = 0
            if step[rank] == num_steps or begin == end:
                ended[rank] = 1
                break
            place, slower, link, change = begin + at[rank], 1.0, 1.0, u64(0)
            stops = skips = freezes = False
            if has_fault[rank]:
                for k in range(fault.shape[0]):
                    if fault[k, 1] != rank:
                        continue
                    is_now = step[rank] == fault[k, 2] and at[rank] == fault[k, 3]
                    is_since = step[rank] > fault[k, 2] or (step[rank] == fault[k, 2] and at[rank] >= fault[k, 3])
                    what = fault[k, 0]
                    if is_now:
                        stops |= what == _STOP
                        skips |= what == _SKIP
                        freezes |= what == _FREEZE
                        if what == _OTHER:
                            change = u64(i64(fault_value[k]))
                    if is_since and what == _SLOW:
                        slower = fault_value[k]
                    if is_since and what == _LINK:
                        link = fault_value[k]
            if stops:
                break
            if skips:
                at[rank] += 1
                continue
            slot = program_slot[place]
            c = slots[rank, slot]
            varied = 1.0 + jitter * _normal(seed, 2 * rank, step[rank] * (end - begin) + at[rank])
            clock[rank] += program_compute[place] * slower * max(varied, 0.05)
            at[rank] += 1
            numbers[rank] += 1
            seqs[rank, slot] += 1
            number, seq, now = numbers[rank], seqs[rank, slot], i64(clock[rank]) + offset[rank]
            pending[rank], inside[rank] = number, slot
            signature = program_place[place] ^ change
            place_in_ring = number & mask
            low = u64(number) & _LOW
            words[rank, place_in_ring, 0] = low | (u64(slot) << u64(32)) | (program_what[place] << u64(32))
            words[rank, place_in_ring, 1] = u64(seq)
            words[rank, place_in_ring, 2] = u64(now)
            words[rank, place_in_ring, 3] = u64(0)
            words[rank, place_in_ring, 4] = program_bytes[place]
            words[rank, place_in_ring, 5] = signature
            words[rank, place_in_ring, 6] = (u64(first_step + step[rank]) & _LOW) | (_LOW << u64(32))
            words[rank, place_in_ring, 7] = low << u64(32)
            if entered[c] == 0:
                expected[c], factor[c], latest[c] = signature & _LOW, 1.0, clock[rank]
            if freezes or expected[c] != signature & _LOW:
                is_stuck[c] = True
            if over_link[c]:
                factor[c] = max(factor[c], link)
            latest[c] = max(latest[c], clock[rank])
            entered[c] += 1
            if entered[c] < member_start[c + 1] - member_start[c] or is_stuck[c]:
                break
            rounds[c] += 1
            cost = program_cost[place] * factor[c]
            took = cost * max(1.0 + jitter * _normal(seed, 2 * c + 1, rounds[c]), 0.05)
            entered[c] = 0
            for i in range(member_start[c], member_start[c + 1]):
                member = i64(members[i])
                mine = inside[member]
                late = _uniform(seed, 2 * member + 1, pending[member] + (1 << 40)) * 0.1 * cost
                clock[member] = latest[c] + took + late
                time = i64(clock[member]) + offset[member]
                words[member, pending[member] & mask, 3] = u64(time)
                exits[member, mine] = time
                dones[member, mine] += 1
                if member != rank:
                    ready[num_ready] = member
                    num_ready += 1
