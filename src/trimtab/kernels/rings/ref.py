"""Rings of records, decoded and compared: the specification.

A ring has the shape [capacity, 8] (uint64, in the machine's byte order). The words of a record, lowest bits first:

    0  stamp 32, communicator 16, op 8, flags 8       4  number of bytes
    1  sequence number in the communicator            5  signature 32, site 32
    2  time of entering, ns; 0: never written         6  step 32, peer 32
    3  time of leaving, ns; 0: still inside           7  microseconds waited for data 32, check 32

Record n stands at place n mod capacity; stamp and check are n mod 2^32. A record whose stamp and check differ or belong
to another place, or whose communicator does not exist, is torn and does not count.

A **block** holds the operations of one communicator on one rank, in columns, by sequence number: `start` is its place
in the columns, `first` its lowest sequence number, `count` its length; a count of 0 says that there is none.
"""

from __future__ import annotations

import numpy as np

LOW = 0xFFFFFFFF
MAX_SITES = 1024


def scan(words: np.ndarray, first: np.ndarray, last: np.ndarray, counts: np.ndarray) -> int:
    """Find what a ring holds, and return the stamp of its newest record, or -1 if it has none.

    `first` and `last` (int64, one for each communicator) get the lowest and highest sequence number, 0 where there is
    none, `counts` (int64 [2]) the number of records and of torn ones. Records older than a turn of the ring are torn.
    """
    first[:], last[:], counts[:] = 0, 0, 0
    written = words[:, 2] != 0
    whole = np.flatnonzero(written & _whole(words, first.size))
    if not whole.size:
        counts[1] = written.sum()
        return -1
    stamps = (words[whole, 0] & np.uint64(LOW)).astype(np.int64)
    ages = _signed(stamps - stamps[0])
    newest = (int(stamps[0]) + int(ages.max())) & LOW
    whole = whole[_signed(stamps - newest) > -words.shape[0]]
    counts[0], counts[1] = whole.size, written.sum() - whole.size
    for place in whole:
        communicator, seq = int(words[place, 0]) >> 32 & 0xFFFF, int(words[place, 1])
        first[communicator] = min(first[communicator] or seq, seq)
        last[communicator] = max(last[communicator], seq)
    return newest


def place(
    words: np.ndarray,
    newest: int,
    first: np.ndarray,
    last: np.ndarray,
    start: np.ndarray,
    enter: np.ndarray,
    inside: np.ndarray,
    outside: np.ndarray,
    waited: np.ndarray,
    signature: np.ndarray,
    site: np.ndarray,
    step: np.ndarray,
    kind: np.ndarray,
) -> None:
    """Put the records of a ring into columns: number s of communicator c goes to ``start[c] + s - first[c]``.

    `newest`, `first` and `last` are those of `scan`. Columns: `enter` (int64, ns), `inside` (float32, seconds; NaN
    while inside, or where the times contradict each other), `outside` (float32, seconds since the rank was last inside
    any operation; 0 where operations overlap, NaN for the ring's first), `waited` (float32, seconds
    waited for data), `signature`, `site`, `step` (uint32), `kind` (uint16: op * 256 + bits of the number of bytes).
    Places without a record keep what they hold. A column of length 0 is not wanted, and left alone.
    """
    capacity = words.shape[0]
    is_whole = (words[:, 2] != 0) & _whole(words, first.size)
    free = 0  # when the rank was last inside any operation
    for number in range(newest - capacity + 1, newest + 1):
        record = words[number % capacity]
        w = [int(word) for word in record]
        if not is_whole[number % capacity] or w[0] & LOW != number & LOW:
            continue
        communicator, op = w[0] >> 32 & 0xFFFF, w[0] >> 48 & 0xFF
        if not first[communicator] <= w[1] <= last[communicator]:
            continue
        at = int(start[communicator] + w[1] - first[communicator])
        is_good = w[2] < 1 << 62 and w[2] <= w[3] < 1 << 62
        values = [
            (enter, w[2] if w[2] < 1 << 62 else 0),
            (inside, np.float32((w[3] - w[2]) * 1e-9) if is_good else np.nan),
            (outside, np.float32(max(w[2] - free, 0) * 1e-9) if free and w[2] < 1 << 62 else np.nan),
            (waited, np.float32((w[7] & LOW) * 1e-6)),
            (signature, w[5] & LOW),
            (site, w[5] >> 32),
            (step, w[6] & LOW),
            (kind, op << 8 | w[4].bit_length()),
        ]
        for column, value in values:
            if column.size:
                column[at] = value
        if is_good:
            free = max(free, w[3])


def spread(
    start: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    inside: np.ndarray,
    low: int,
    least: np.ndarray,
    most: np.ndarray,
    who: np.ndarray,
    num: np.ndarray,
) -> None:
    """Compare how long the members of a communicator were inside each operation, from sequence number `low` on.

    `start`, `first`, `count` (int64) are the blocks of the members. For each operation: `least` and `most` (float32)
    seconds, `who` (int32), the first member with the least, and `num` (int32), how many members are known; NaN and -1
    where none.
    """
    times = np.full((start.size, least.size), np.nan, np.float32)
    for member in range(start.size):
        begin, end = max(low, first[member]), min(low + least.size, first[member] + count[member])
        if begin < end:
            at = start[member] + begin - first[member]
            times[member, begin - low : end - low] = inside[at : at + end - begin]
    num[:] = (~np.isnan(times)).sum(0)
    known = num > 0
    least[:], most[:], who[:] = np.nan, np.nan, -1
    least[known], most[known] = np.nanmin(times[:, known], 0), np.nanmax(times[:, known], 0)
    who[known] = np.nanargmin(times[:, known], 0)


def totals(
    start: np.ndarray,
    count: np.ndarray,
    since: np.ndarray,
    enter: np.ndarray,
    inside: np.ndarray,
    outside: np.ndarray,
    waited: np.ndarray,
    sums: np.ndarray,
    num_before: np.ndarray,
) -> None:
    """Add up what was entered before a time and from it on, for each block.

    `since` (int64, ns) is the time for each block. `sums` (float64 [blocks, 2, 4]) gets, before and after, the number
    of operations and the sums of `inside`, `outside` and `waited` without NaN; `num_before` (int64) the place in the
    block of the first that was entered at that time or later.
    """
    sums[:], num_before[:] = 0, count
    for block in range(start.size):
        for i in range(count[block]):
            at = start[block] + i
            is_after = int(enter[at] >= since[block])
            if is_after:
                num_before[block] = min(num_before[block], i)
            sums[block, is_after, 0] += 1
            for k, column in enumerate((inside, outside, waited), 1):
                if not np.isnan(column[at]):
                    sums[block, is_after, k] += np.float64(column[at])


def differing(
    start: np.ndarray, first: np.ndarray, count: np.ndarray, signature: np.ndarray, reference: int, found: np.ndarray
) -> None:
    """Find for each member the first sequence number at which its signature is not that of the member `reference`.

    `found` (int64) gets it, or 0. A signature of 0 is unknown and differs from none.
    """
    found[:] = 0
    for member in range(start.size):
        begin = max(first[member], first[reference])
        end = min(first[member] + count[member], first[reference] + count[reference])
        for seq in range(begin, end):
            mine = signature[start[member] + seq - first[member]]
            theirs = signature[start[reference] + seq - first[reference]]
            if mine and theirs and mine != theirs:
                found[member] = seq
                break


def drifting(
    start: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    site: np.ndarray,
    step: np.ndarray,
    reference: int,
    found: np.ndarray,
    num: np.ndarray,
) -> None:
    """Find for each member where its call sites and steps stop going together with those of the member `reference`.

    Members may call one operation from different places, as long as it stays so: a site of the reference goes with one
    site of the member, a step with one that differs by the same number. `found` (int64) gets the first sequence number
    at which this does not hold, or 0, and `num` (int64) how many there are. Sites and steps of 0 are unknown. At most
    `MAX_SITES` sites of the reference are looked at.
    """
    found[:], num[:] = 0, 0
    for member in range(start.size):
        begin = max(first[member], first[reference])
        end = min(first[member] + count[member], first[reference] + count[reference])
        partner: dict[int, int] = {}
        offset: int | None = None
        for seq in range(begin, end):
            a, b = start[reference] + seq - first[reference], start[member] + seq - first[member]
            broken = False
            if site[a] and site[b] and (int(site[a]) in partner or len(partner) < MAX_SITES):
                broken = partner.setdefault(int(site[a]), int(site[b])) != site[b]
            if step[a] and step[b]:
                gap = int(step[b]) - int(step[a])
                offset = gap if offset is None else offset
                broken |= gap != offset
            if broken:
                found[member] = found[member] or seq
                num[member] += 1


def _whole(words: np.ndarray, num_communicators: int) -> np.ndarray:
    stamp, check = words[:, 0] & np.uint64(LOW), words[:, 7] >> np.uint64(32)
    at_place = stamp % np.uint64(words.shape[0]) == np.arange(words.shape[0], dtype=np.uint64)
    exists = (words[:, 0] >> np.uint64(32) & np.uint64(0xFFFF)) < num_communicators
    has_seq = (words[:, 1] > 0) & (words[:, 1] < np.uint64(1 << 62))
    return (stamp == check) & at_place & exists & has_seq


def _signed(difference: np.ndarray) -> np.ndarray:
    """The difference of two stamps, which may have passed 2^32, as a number between -2^31 and 2^31."""
    return (difference + (1 << 31)) % (1 << 32) - (1 << 31)
