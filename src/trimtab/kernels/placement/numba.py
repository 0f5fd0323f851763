"""Which unit uses a sample, and which keeps it for the next epoch, fast: see ref.py."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.jit import kernel

_ROW, _TABLE, _OFFSETS = types.int32[::1], types.int32[:, ::1], types.int64[::1]
i32, i64 = np.int32, np.int64
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")


@kernel(types.void(_ROW, _OFFSETS, _ROW))
def first_steps(samples, offsets, steps):
    num_steps = offsets.size - 1
    steps[:] = i32(num_steps)
    for t in range(num_steps):
        for position in range(offsets[t], offsets[t + 1]):
            steps[samples[position]] = i32(t)


@_inline
def _level(low, high, total, numbers):
    """Write numbers from `low` to `high` with this total, the largest as small as can be."""
    least, most = i64(0), i64(0)
    for k in range(high.size):
        most = max(most, high[k])
    while least < most:
        level = (least + most) // 2
        reached = i64(0)
        for k in range(high.size):
            reached += min(max(level, low[k]), high[k])
        if reached >= total:
            most = level
        else:
            least = level + 1
    reached = i64(0)
    for k in range(high.size):
        numbers[k] = min(max(least, low[k]), high[k])
        reached += numbers[k]
    for k in range(high.size - 1, -1, -1):
        if reached > total and numbers[k] == least and numbers[k] > low[k]:
            numbers[k] -= 1
            reached -= 1


@kernel(types.void(_TABLE, _ROW, _ROW, _ROW, _ROW, _TABLE, _TABLE))
def shares(held, sizes, missing, slack, room, fetches, loans):
    num_steps, num_units = held.shape
    low, high, taken = np.empty(num_units, i64), np.empty(num_units, i64), np.empty(num_units, i64)
    for t in range(num_steps):
        size, least, most = i64(sizes[t]), i64(sizes[t]) - slack[t], i64(sizes[t]) + slack[t]
        while most > size:
            total = i64(0)
            for k in range(num_units):
                total += max(min(i64(held[t, k]), most), least)
            if total <= size * num_units:
                break
            most -= 1
        room[t] = i32(most)
        surplus = i64(0)
        for k in range(num_units):
            own = min(i64(held[t, k]), most)
            surplus += held[t, k] - own
            low[k] = max(least - own, i64(0))
            high[k] = size + slack[t] - own
        _level(low, high, i64(missing[t]) + surplus, taken)
        low[:] = 0
        _level(low, taken, i64(missing[t]), high)
        for k in range(num_units):
            fetches[t, k] = i32(high[k])
            loans[t, k] = i32(taken[k] - high[k])


@kernel(
    types.void(
        *(_ROW, _OFFSETS, types.int64, _ROW, _ROW, _TABLE, _ROW, _TABLE, _TABLE),
        *(_ROW, _ROW, types.boolean, _ROW, _ROW, _ROW),
    )
)
def place(
    samples, offsets, num_distinct, following, target, counts, room, fetches, loans,
    owner, free, decide, unit, source, keeper,
):  # fmt: skip
    num_steps, num_units = fetches.shape
    coming = np.zeros(num_units, i64)
    num_sure = num_steps - (num_distinct < offsets[num_steps])
    for t in range(num_sure):
        for k in range(num_units):
            coming[k] += fetches[t, k]
    num_read, num_worth = coming.sum(), i64(0)
    for position in range(offsets[num_sure]):
        sample = samples[position]
        num_worth += owner[sample] < 0 and following[sample] < num_steps
    for position in range(offsets[num_steps], samples.size):
        sample = samples[position]
        k = owner[sample]
        unit[position] = -1
        source[position] = k
        keeper[position] = k
        s = following[sample]
        if decide and k >= 0 and counts[s, k] > target[s]:
            first = counts[num_steps, k] if s < num_steps else i32(0)
            if (free[k] + first) * num_read >= coming[k] * num_worth:
                continue
            owner[sample] = -1
            keeper[position] = -1
            counts[s, k] -= i32(1)
            free[k] += i32(1)

    longest = i64(0)
    for t in range(num_steps):
        longest = max(longest, offsets[t + 1] - offsets[t])
    rest = np.empty(longest, i64)
    held = np.empty(num_units, i64)
    for t in range(num_steps):
        to_read, to_borrow = fetches[t], loans[t]
        held[:] = 0
        num_rest = 0
        for position in range(offsets[t], offsets[t + 1]):
            sample = samples[position]
            k = owner[sample]
            repeated = position >= num_distinct
            if repeated and (position - num_distinct) % num_distinct >= offsets[t]:
                k = i32(-1)
            source[position] = k
            keeper[position] = k
            if repeated and k >= 0 and to_read[k] > 0:
                unit[position] = k
                to_read[k] -= i32(1)
            elif not repeated and k >= 0 and held[k] < room[t]:
                unit[position] = k
                held[k] += 1
                s = following[sample]
                if decide and counts[s, k] > target[s]:
                    first = counts[num_steps, k] if s < num_steps else i32(0)
                    if (free[k] + first) * num_read >= coming[k] * num_worth:
                        continue
                    owner[sample] = -1
                    keeper[position] = -1
                    counts[s, k] -= i32(1)
                    free[k] += i32(1)
            else:
                rest[num_rest] = position
                num_rest += 1

        num_left = 0
        for i in range(num_rest):
            position = rest[i]
            sample = samples[position]
            s, k, taker = following[sample], source[position], -1
            settled = position >= num_distinct or (k >= 0 and t >= num_sure)
            if decide and not settled and target[s] > 0:
                quota = to_read if k < 0 else to_borrow
                needs_room = k >= 0 and free[k] >= coming[k]
                row, wanted, most = counts[s], target[s], i32(0)
                for other in range(num_units):
                    lacking = i32(wanted - row[other])
                    possible = quota[other] > 0 and free[other] > (coming[other] if needs_room else i64(0))
                    if lacking > most and possible:
                        taker, most = other, lacking
            if taker < 0:
                rest[num_left] = (i64(sample) << 32) | position
                num_left += 1
                continue
            if k >= 0:
                counts[s, k] -= i32(1)
                free[k] += i32(1)
                to_borrow[taker] -= i32(1)
            else:
                coming[taker] -= t < num_sure
                to_read[taker] -= i32(1)
            unit[position] = taker
            keeper[position] = taker
            owner[sample] = taker
            counts[s, taker] += i32(1)
            free[taker] -= i32(1)

        left = np.sort(rest[:num_left])
        reader, borrower = 0, 0
        for i in range(num_left):
            position, sample = left[i] & i64(0xFFFFFFFF), i32(left[i] >> 32)
            if source[position] >= 0 and position < num_distinct:
                while to_borrow[borrower] == 0:
                    borrower += 1
                to_borrow[borrower] -= i32(1)
                unit[position] = borrower
                continue
            while to_read[reader] == 0:
                reader += 1
            to_read[reader] -= i32(1)
            unit[position] = reader
            coming[reader] -= t < num_sure
            s = following[sample]
            if (
                decide
                and position < num_distinct
                and s < num_steps
                and free[reader] * num_read > coming[reader] * num_worth
            ):
                keeper[position] = reader
                owner[sample] = reader
                counts[s, reader] += i32(1)
                free[reader] -= i32(1)
