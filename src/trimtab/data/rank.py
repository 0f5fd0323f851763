"""What one rank does in each step: the part of a plan that a loader follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trimtab.data.plan import STORE, Epoch, Plan
from trimtab.errors import UsageError


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one rank. Arrays without a word on their length have one element a sample of the batch.

    A loader does, in this order: send the samples that others borrow; take those of the batch from slots, from the
    store and from other ranks; release slots; write samples into the slots that keep them. A slot is written once it
    was released, maybe by another rank of the node in this step or before, and read once it was written, in a step
    before; no rank waits for a later step of another.
    """

    epoch: int
    number: int
    """The step within the epoch."""
    samples: np.ndarray
    """The batch, in the order of the shuffle, int32."""
    source: np.ndarray
    """Who holds each sample, int32: the rank's own unit, another unit, or `STORE`."""
    slot: np.ndarray
    """The slot of the own unit's buffer that it is in, int32; -1 where it is read or borrowed."""
    lender: np.ndarray
    """The rank that sends it, int32; -1 where it is not borrowed."""
    keep: np.ndarray
    """The slot to write it into when the step is over, int32; -1 where it is not kept, or stays in its slot."""
    lent: np.ndarray
    """Samples to send to other ranks, int32[number sent]; they stand in `lent_slot`, and go to rank `lent_to`."""
    lent_slot: np.ndarray
    lent_to: np.ndarray
    released: np.ndarray
    """Slots that this rank empties once the batch is taken and sent, int32[number emptied]."""
    weight: float
    """What to multiply the mean loss of the batch by, before gradients are averaged over ranks; 1 for equal batches."""

    @property
    def reads(self) -> np.ndarray:
        """The samples that are read from the store, in the order of the batch."""
        return self.samples[self.source == STORE]


class RankPlan:
    """What one rank does from (epoch, step) on: an iterator of `Step`, which plans each epoch when it comes to it.

    Slots are numbered from 0 to ``plan.unit_slots - 1``, and all ranks of a node that start at the same step give
    a sample the same slot.

    After a restart, buffers are empty, and the plan goes on as if they were not: `expected` says which samples it
    takes to be where. A loader reads each of them when it is used for the first time, and leaves it in its slot. A
    training may so go on with another number of ranks: from the same (epoch, step) of another plan with the same
    `Plan.stream_digest`.
    """

    def __init__(self, plan: Plan, rank: int, *, start: tuple[int, int] = (0, 0)) -> None:
        if not 0 <= rank < plan.num_ranks:
            raise UsageError(f"rank must be from 0 to {plan.num_ranks - 1}, got {rank}")
        epoch, step = start
        if not (0 <= epoch < plan.num_epochs and 0 <= step < plan.num_steps):
            raise UsageError(
                f"there is no step {step} of epoch {epoch}, but {plan.num_epochs} epochs of {plan.num_steps} steps"
            )
        self.plan, self.rank, self.start = plan, rank, start
        self._unit, self._local = divmod(rank, plan.ranks_per_node)
        epochs = plan.epochs(epoch)
        first = next(epochs)
        self._slots = _Slots(plan)
        held = _held(first, step, self._unit)
        self._slots.fill(held)
        self.expected: tuple[np.ndarray, np.ndarray] = held, self._slots.of[held]
        """Samples that the plan takes to be in slots at the start, and these slots, int32 both."""
        self._steps = self._run(first, epochs)

    def __iter__(self) -> RankPlan:
        return self

    def __next__(self) -> Step:
        return next(self._steps)

    def _run(self, first: Epoch, later: Iterator[Epoch]) -> Iterator[Step]:
        yield from self._epoch(first, self.start[1], np.empty(0, np.int32))
        for epoch in later:
            behind = slice(epoch.used.stop, None)
            left_out = (epoch.source[behind] == self._unit) & (epoch.keeper[behind] != self._unit)
            yield from self._epoch(epoch, 0, self._slots.empty(epoch.samples[behind][left_out]))

    def _epoch(self, epoch: Epoch, start: int, released: np.ndarray) -> Iterator[Step]:
        """Yield the steps from `start` on; the slots `released` are so before the first one."""
        concerned = np.flatnonzero((epoch.unit[epoch.used] == self._unit) | (epoch.source[epoch.used] == self._unit))
        bounds = np.searchsorted(concerned, epoch.offsets)
        for number in range(start, len(bounds) - 1):
            step = self._step(epoch, number, concerned[bounds[number] : bounds[number + 1]], released)
            released = released[:0]
            yield step

    def _step(self, epoch: Epoch, number: int, positions: np.ndarray, released: np.ndarray) -> Step:
        """Return a step, from the positions that the unit uses or holds, and move samples in and out of slots."""
        me, slots = self._unit, self._slots
        samples, unit = epoch.samples[positions], epoch.unit[positions]
        source, keeper = epoch.source[positions], epoch.keeper[positions]
        local = np.empty(len(positions), np.int32)
        local[unit == me] = self._deal(epoch, number, me)
        for taker in np.unique(unit[unit != me]):
            lent = epoch.source[_positions(epoch, number, taker)] == me
            local[unit == taker] = self._deal(epoch, number, taker)[lent]
        slot = slots.of[samples]
        slot[source != me] = -1
        leaving, arriving = (source == me) & (keeper != me), (source != me) & (keeper == me)
        slots.empty(samples[leaving])
        keep = np.full(len(positions), -1, np.int32)
        keep[arriving] = slots.fill(samples[arriving])
        mine = local == self._local
        used, lent, left = mine & (unit == me), mine & (unit != me), mine & leaving
        borrowed = (source[used] != me) & (source[used] != STORE)
        ranks_per_node = self.plan.ranks_per_node
        return Step(
            epoch=epoch.number,
            number=number,
            samples=samples[used],
            source=source[used],
            slot=slot[used],
            lender=np.where(borrowed, source[used] * ranks_per_node + self._local, -1).astype(np.int32),
            keep=keep[used],
            lent=samples[lent],
            lent_slot=slot[lent],
            lent_to=unit[lent] * np.int32(ranks_per_node) + np.int32(self._local),
            released=np.concatenate([released if self._local == 0 else released[:0], slot[left]]),
            weight=int(used.sum()) * self.plan.num_ranks / int(epoch.offsets[number + 1] - epoch.offsets[number]),
        )

    def _deal(self, epoch: Epoch, number: int, unit: int) -> np.ndarray:
        """Return which of its ranks uses each sample of a unit's batch: equal parts, also of what is not at hand."""
        positions, num_ranks = _positions(epoch, number, unit), self.plan.ranks_per_node
        at_hand = epoch.source[positions] == unit
        order = np.lexsort((epoch.samples[positions], at_hand))  # by sample numbers: a rank reads what lies together
        parts = [_parts(count, num_ranks) for count in (int((~at_hand).sum()), len(positions))]
        local = np.empty(len(positions), np.int32)
        local[order] = np.concatenate(
            [np.repeat(np.arange(num_ranks), parts[0]), np.repeat(np.arange(num_ranks), parts[1] - parts[0])]
        )
        return local


def _positions(epoch: Epoch, number: int, unit: int) -> np.ndarray:
    """Return the positions of a unit's batch."""
    begin, end = (int(offset) for offset in epoch.offsets[number : number + 2])
    return begin + np.flatnonzero(epoch.unit[begin:end] == unit)


def _parts(count: int, num: int) -> np.ndarray:
    """Return `count` in `num` parts that differ by one at most, the larger ones first."""
    return count // num + (np.arange(num) < count % num)


def _held(epoch: Epoch, step: int, unit: int) -> np.ndarray:
    """Return the samples that a unit holds when a step begins, in the order of their numbers."""
    begin, end = int(epoch.offsets[step]), epoch.used.stop
    holder = np.full(epoch.samples.max() + 1, STORE, np.int32)
    # of samples that stand twice, the first position counts, and is thus written last
    holder[epoch.samples[begin:end][::-1]] = epoch.source[begin:end][::-1]
    holder[epoch.samples[end:]] = epoch.keeper[end:]
    holder[epoch.samples[:begin]] = epoch.keeper[:begin]
    return np.flatnonzero(holder == unit).astype(np.int32)


class _Slots:
    """Which slot of a unit's buffer holds which sample."""

    def __init__(self, plan: Plan) -> None:
        self.of = np.full(plan.num_samples, -1, np.int32)
        """The slot of each sample, -1 for none."""
        self._free = np.arange(plan.unit_slots, dtype=np.int32)[::-1].copy()
        self._num_free = plan.unit_slots

    def fill(self, samples: np.ndarray) -> np.ndarray:
        """Give samples slots that are free, and return these."""
        self._num_free -= len(samples)
        slots = self._free[self._num_free : self._num_free + len(samples)][::-1].copy()
        self.of[samples] = slots
        return slots

    def empty(self, samples: np.ndarray) -> np.ndarray:
        """Make the slots of samples free, and return these."""
        slots = self.of[samples]
        self._free[self._num_free : self._num_free + len(samples)] = slots
        self._num_free += len(samples)
        self.of[samples] = -1
        return slots
