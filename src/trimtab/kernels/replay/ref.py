"""A job of many ranks and communicators, played through: the specification.

Every rank runs the program of its kind (`kind`), a list of operations, `num_steps` times: it computes for a while,
enters an operation of one of its communicators and stays inside until all members have entered it and `cost` has
passed. A rank has a few communicators, in slots; `slots[rank, slot]` is the communicator.

An operation whose members came with different signatures never ends, nor does one that is frozen. What is left when
nobody can go on is the state of a hang.

Faults change what one rank does from an operation (`step`, `place` in the program) on; see the constants.
"""

from __future__ import annotations

import numpy as np

STOP, SKIP, OTHER, SLOW, LINK, FREEZE = range(1, 7)
"""Kinds of faults: the rank does not enter the operation, ever; leaves it out once; enters it with another signature
(xor `value`); computes `value` times as long from there on; operations over its link take `value` times as long from
there on; the operation that it enters never ends."""

_MIX1, _MIX2, _STEP, _WORD = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15, (1 << 64) - 1


def play(
    kind: np.ndarray,
    slots: np.ndarray,
    program_start: np.ndarray,
    program_slot: np.ndarray,
    program_compute: np.ndarray,
    program_cost: np.ndarray,
    program_what: np.ndarray,
    program_bytes: np.ndarray,
    program_place: np.ndarray,
    member_start: np.ndarray,
    members: np.ndarray,
    over_link: np.ndarray,
    fault: np.ndarray,
    fault_value: np.ndarray,
    offset: np.ndarray,
    num_steps: int,
    first_step: int,
    jitter: float,
    seed: int,
    words: np.ndarray,
    seqs: np.ndarray,
    dones: np.ndarray,
    exits: np.ndarray,
    clock: np.ndarray,
    numbers: np.ndarray,
    ended: np.ndarray,
) -> None:
    """Play a job through, and fill the rings and states of all ranks.

    Shapes: `kind` int32 [ranks]; `slots` int32 [ranks, slots]; `program_start` int64 [kinds + 1], the rest of the
    programs [operations]: `program_slot` int32, `program_compute` and `program_cost` float64 (ns), `program_what`
    uint64 (op << 16 and flags << 24), `program_bytes` uint64, `program_place` uint64 (signature, site << 32);
    `member_start` int64 [communicators + 1], `members` int32; `over_link` uint8 [communicators]; `fault` int64 [faults,
    4] (kind, rank, step, place), `fault_value` float64 [faults]; `offset` int64 [ranks], what each rank's clock shows
    at the beginning.

    Computing takes ``1 + jitter * z`` times as long, z about standard normal, at least a twentieth; operations
    likewise, and members leave up to a tenth of the cost later. Steps are numbered from `first_step`.

    Results: `words` uint64 [ranks, capacity, 8], rings as in `trimtab.kernels.rings`, zeros before; `seqs`, `dones`,
    `exits` int64 [ranks, slots], the latest operation entered and the number of those completed, and when (on the
    rank's clock); `clock` float64 [ranks], ns on a clock common to all; `numbers` int64 [ranks], records; `ended` uint8
    [ranks].
    """
    num_ranks, num_communicators, mask = kind.size, member_start.size - 1, words.shape[1] - 1
    step, at, pending = [0] * num_ranks, [0] * num_ranks, [0] * num_ranks
    entered, latest = [0] * num_communicators, [0.0] * num_communicators
    expected, is_stuck = [0] * num_communicators, [False] * num_communicators
    factor, rounds = [1.0] * num_communicators, [0] * num_communicators
    clock[:] = 0
    for array in (seqs, dones, exits, numbers, ended):
        array[:] = 0
    ready = list(range(num_ranks))
    while ready:
        rank = ready.pop()
        while True:
            begin, end = program_start[kind[rank]], program_start[kind[rank] + 1]
            if at[rank] == end - begin:
                step[rank], at[rank] = step[rank] + 1, 0
            if step[rank] == num_steps or begin == end:
                ended[rank] = 1
                break
            place, slower, link, change = int(begin + at[rank]), 1.0, 1.0, 0
            stops = skips = freezes = False
            for (what, who, when, where), value in zip(fault.tolist(), fault_value.tolist(), strict=True):
                if who == rank:
                    is_now = (step[rank], at[rank]) == (when, where)
                    is_since = (step[rank], at[rank]) >= (when, where)
                    stops |= what == STOP and is_now
                    skips |= what == SKIP and is_now
                    freezes |= what == FREEZE and is_now
                    change = int(value) if what == OTHER and is_now else change
                    slower = value if what == SLOW and is_since else slower
                    link = value if what == LINK and is_since else link
            if stops:
                break
            if skips:
                at[rank] += 1
                continue
            slot = program_slot[place]
            c = slots[rank, slot]
            spread = 1.0 + jitter * _normal(seed, 2 * rank, step[rank] * (end - begin) + at[rank])
            clock[rank] += program_compute[place] * slower * max(spread, 0.05)
            at[rank] += 1
            numbers[rank] += 1
            seqs[rank, slot] += 1
            number, seq, now = int(numbers[rank]), int(seqs[rank, slot]), int(clock[rank]) + int(offset[rank])
            pending[rank] = number
            signature = int(program_place[place]) ^ change
            record = words[rank, number & mask]
            record[0] = number & 0xFFFFFFFF | int(slot) << 32 | int(program_what[place]) << 32
            record[1], record[2], record[3], record[4] = seq, now, 0, program_bytes[place]
            record[5], record[6] = signature, (first_step + step[rank]) & 0xFFFFFFFF | 0xFFFFFFFF << 32
            record[7] = (number & 0xFFFFFFFF) << 32
            if not entered[c]:
                expected[c], factor[c], latest[c] = signature & 0xFFFFFFFF, 1.0, clock[rank]
            is_stuck[c] |= freezes or expected[c] != signature & 0xFFFFFFFF
            factor[c] = max(factor[c], link if over_link[c] else 1.0)
            latest[c] = max(latest[c], clock[rank])
            entered[c] += 1
            size = member_start[c + 1] - member_start[c]
            if entered[c] < size or is_stuck[c]:
                break
            rounds[c] += 1
            cost = program_cost[place] * factor[c]
            took = cost * max(1.0 + jitter * _normal(seed, 2 * int(c) + 1, rounds[c]), 0.05)
            entered[c] = 0
            for i in range(member_start[c], member_start[c + 1]):
                member = int(members[i])
                mine = int(np.flatnonzero(slots[member] == c)[0])
                late = _uniform(seed, 2 * member + 1, pending[member] + (1 << 40)) * 0.1 * cost
                clock[member] = latest[c] + took + late
                time = int(clock[member]) + int(offset[member])
                words[member, pending[member] & mask, 3] = time
                exits[member, mine] = time
                dones[member, mine] += 1
                if member != rank:
                    ready.append(member)


def _hash(seed: int, stream: int, count: int) -> int:
    z = (int(seed) * _STEP + int(stream) * _MIX1 + int(count) * _MIX2 + _STEP) & _WORD
    z = (z ^ z >> 30) * _MIX1 & _WORD
    z = (z ^ z >> 27) * _MIX2 & _WORD
    return z ^ z >> 31


def _uniform(seed: int, stream: int, count: int) -> float:
    """A number in [0, 1)."""
    return (_hash(seed, stream, count) >> 11) * (1.0 / (1 << 53))


def _normal(seed: int, stream: int, count: int) -> float:
    """About standard normal: the sum of 12 digits of 5 bits, less its mean, over its standard deviation."""
    z, total = _hash(seed, stream, count), 0
    for i in range(12):
        total += z >> 5 * i & 31
    return (total - 186.0) / 31.984371183438952
