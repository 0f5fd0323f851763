"""Which unit uses a sample, and which keeps it for the next epoch: SOLAR's placement, the specification.

A *unit* is a rank, or the ranks of a node that share a buffer. Each has ``slots`` places for samples. An epoch is an
array of ``samples`` (int32) cut into steps by ``offsets`` (int64[S + 1]); in step t, each of U units takes
``(offsets[t + 1] - offsets[t]) / U`` samples. ``owner`` (int32[N]) says which unit holds a sample, -1 none. Whoever
holds a sample uses it: a hit. What nobody holds is read from the store by some unit.

Re-homing: a unit may forget a sample once it has used it, and keep one that it has just read instead. So as many
samples are held at the end of an epoch as at its start, nothing is read for the sake of a better placement, and no
slot is needed beside those: a unit forgets first and keeps later. The placement aims at ``target[s]`` samples in every
unit for every step s of the next epoch, so that all units then read equally many: samples whose step has more than
that in their unit are forgotten, and samples whose step has fewer are read, and kept, by the unit that lacks most.
"""

from __future__ import annotations

import numpy as np


def first_steps(samples: np.ndarray, offsets: np.ndarray, steps: np.ndarray) -> None:
    """Write the step of each sample to `steps` (int32[N]), S for those in none; no sample stands twice in `samples`."""
    steps[:] = len(offsets) - 1
    for t in range(len(offsets) - 1):
        steps[samples[offsets[t] : offsets[t + 1]]] = t


def shares(
    held: np.ndarray,
    sizes: np.ndarray,
    missing: np.ndarray,
    slack: np.ndarray,
    room: np.ndarray,
    fetches: np.ndarray,
    loans: np.ndarray,
) -> None:
    """Say how many samples each unit reads and borrows in each step.

    In step t, unit k holds ``held[t, k]`` (int32[S, U]) of its samples and nobody holds ``missing[t]`` (int32[S]).
    Batches have ``sizes[t]`` samples, or up to ``slack[t]`` (int32[S] both) more or fewer.

    Written: ``room[t]`` (int32[S]), how many held samples a unit uses at most, the largest number with which batches
    can stay within the slack; ``fetches[t, k]``, how many samples it reads, and ``loans[t, k]`` (int32[S, U]), how
    many it gets from units that hold more than their room. As few as can be are read by the unit that reads most.
    """
    for t in range(len(sizes)):
        size, least, most = int(sizes[t]), int(sizes[t] - slack[t]), int(sizes[t] + slack[t])
        while most > size and np.maximum(np.minimum(held[t], most), least).sum() > size * held.shape[1]:
            most -= 1
        room[t] = most
        own = np.minimum(held[t], most)
        surplus = int(held[t].sum() - own.sum())
        taken = _levelled(np.maximum(least - own, 0), size + slack[t] - own, int(missing[t]) + surplus)
        fetches[t] = _levelled(np.zeros_like(taken), taken, int(missing[t]))
        loans[t] = taken - fetches[t]


def _levelled(low: np.ndarray, high: np.ndarray, total: int) -> np.ndarray:
    """Return numbers from `low` to `high` with this total, the largest as small as can be; the last ones round down."""
    level = 0
    while np.clip(level, low, high).sum() < total:
        level += 1
    numbers = np.clip(level, low, high)
    for k in reversed(range(len(numbers))):
        if numbers.sum() > total and numbers[k] == level and numbers[k] > low[k]:
            numbers[k] -= 1
    return numbers


def place(
    samples: np.ndarray,
    offsets: np.ndarray,
    num_distinct: int,
    following: np.ndarray,
    target: np.ndarray,
    counts: np.ndarray,
    room: np.ndarray,
    fetches: np.ndarray,
    loans: np.ndarray,
    owner: np.ndarray,
    free: np.ndarray,
    decide: bool,
    unit: np.ndarray,
    source: np.ndarray,
    keeper: np.ndarray,
) -> None:
    """Plan an epoch: who uses the sample at each position, who held it before, and who holds it afterwards.

    ``following`` (int32[N]) is each sample's step in the next epoch, S for none; ``counts[s, k]`` (int32[S + 1, U]) of
    the samples of step s are held by unit k, where ``target`` (int32[S + 1]) are wanted. ``room``, ``fetches`` and
    ``loans`` come from `shares`. Positions from ``num_distinct`` on, all in the last step, repeat samples of the
    epoch; samples behind the last step are not used. Without `decide`, as in the last epoch, holders stay as they are.

    Changed: ``counts``; ``owner``; ``free`` (int32[U]), the unused slots of each unit; ``fetches`` and ``loans``,
    which are used up. Written, for each position (int32[P]): ``unit``, -1 behind the last step; ``source``, the unit
    that holds the sample when the step begins, -1 where it is read; ``keeper``, the unit that holds it when the step
    ends, -1 for none: the source, the unit or none.

    Order: samples that no step uses and holders can use are settled, position by position; then those to be read or
    lent find the unit, if any, that lacks most samples of their step (the first of equals); the rest goes to units in
    the order of sample numbers, so that a unit reads what lies together; so that no slot stays empty, units keep of it
    what they must. A unit forgets no more than it can replace by what it still reads, which counts by the part
    of all reads of the epoch that the next one uses.
    """
    num_steps, num_units = fetches.shape
    # where samples repeat, the last step is not relied on: some of what it reads is held, or read, elsewhere
    num_sure = num_steps - (num_distinct < offsets[num_steps])
    coming = fetches[:num_sure].sum(axis=0)  # samples that a unit will still read in this epoch
    read = [x for x in samples[: offsets[num_sure]].tolist() if owner[x] < 0]
    # of so many samples that are read, so many are used in the next epoch, and thus worth keeping
    num_read = int(coming.sum())
    num_worth = sum(1 for x in read if following[x] < num_steps)

    def forget(position: int, sample: int, k: int) -> None:
        s = following[sample]
        first = counts[num_steps, k] if s < num_steps else 0  # what the next epoch does not use is forgotten first
        if decide and counts[s, k] > target[s] and int(free[k] + first) * num_read < coming[k] * num_worth:
            owner[sample] = keeper[position] = -1
            counts[s, k] -= 1
            free[k] += 1

    def keep(position: int, sample: int, k: int) -> None:
        owner[sample] = keeper[position] = k
        counts[following[sample], k] += 1
        free[k] -= 1

    for position in range(int(offsets[num_steps]), len(samples)):
        sample = int(samples[position])
        unit[position] = -1
        source[position] = keeper[position] = owner[sample]
        if owner[sample] >= 0:
            forget(position, sample, int(owner[sample]))
    for t in range(num_steps):
        held = np.zeros(num_units, np.int64)
        rest = []
        for position in range(int(offsets[t]), int(offsets[t + 1])):
            sample = int(samples[position])
            k = int(owner[sample])
            repeated = position >= num_distinct
            if repeated and (position - num_distinct) % num_distinct >= offsets[t]:
                k = -1  # read in this very step
            source[position] = keeper[position] = k
            if repeated and k >= 0 and fetches[t, k] > 0:
                unit[position] = k
                fetches[t, k] -= 1
            elif not repeated and k >= 0 and held[k] < room[t]:
                unit[position] = k
                held[k] += 1
                forget(position, sample, k)
            else:
                rest.append(position)
        left = []
        for position in rest:
            sample = int(samples[position])
            s, k = int(following[sample]), int(source[position])
            quota = fetches[t] if k < 0 else loans[t]
            lacking = np.where((quota > 0) & (free > 0), target[s] - counts[s], 0)
            if (
                k >= 0 and free[k] >= coming[k]
            ):  # a slot that nothing would fill is given up for one that nothing would fill
                lacking[free <= coming] = 0
            taker = int(lacking.argmax())
            settled = position >= num_distinct or (k >= 0 and t >= num_sure)
            if not decide or settled or lacking[taker] <= 0:
                left.append((sample, position))
                continue
            if k >= 0:
                counts[s, k] -= 1
                free[k] += 1
            else:
                coming[taker] -= t < num_sure
            quota[taker] -= 1
            unit[position] = taker
            keep(position, sample, taker)
        for sample, position in sorted(left):
            borrowed = source[position] >= 0 and position < num_distinct
            quota = loans[t] if borrowed else fetches[t]
            k = int((quota > 0).argmax())
            quota[k] -= 1
            unit[position] = k
            if borrowed:
                continue
            coming[k] -= t < num_sure
            used_again = position < num_distinct and following[sample] < num_steps
            if decide and used_again and int(free[k]) * num_read > coming[k] * num_worth:
                keep(position, sample, k)
