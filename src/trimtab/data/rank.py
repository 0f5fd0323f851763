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
    """The batch, int32: what is in slots, what is borrowed, what is read, each of these in the order of the shuffle."""
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
        """Yield the steps from `start` on; the slots `released` are so before the first one.

        All that does not depend on the slots of earlier steps is computed for the whole epoch at once.
        """
        me, slots, ranks_per_node = self._unit, self._slots, np.int32(self.plan.ranks_per_node)
        concerned = np.flatnonzero((epoch.unit[epoch.used] == me) | (epoch.source[epoch.used] == me))
        bounds = np.searchsorted(concerned, epoch.offsets)
        samples, unit = epoch.samples[concerned], epoch.unit[concerned]
        source, keeper = epoch.source[concerned], epoch.keeper[concerned]
        mine = self._deal(epoch, concerned) == self._local
        slot = np.where(source == me, slots.of[samples], np.int32(-1))
        keep = np.full(len(samples), -1, np.int32)
        used = np.flatnonzero(mine & (unit == me))
        borrowed = (source != me) & (source != STORE)
        number_of = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        used = used[np.lexsort((source[used] == STORE, source[used] != me, number_of[used]))]
        batch, holder = samples[used], source[used]
        lender = np.where(borrowed[used], holder * ranks_per_node + np.int32(self._local), np.int32(-1))
        lent = np.flatnonzero(mine & (unit != me))
        lent_to = unit[lent] * ranks_per_node + np.int32(self._local)
        leaving = np.flatnonzero((source == me) & (keeper != me))
        left = leaving[mine[leaving]]
        arriving = np.flatnonzero((source != me) & (keeper == me))
        of_used = np.searchsorted(number_of[used], np.arange(len(bounds))).tolist()
        of_lent, of_left, of_leaving, of_arriving = (
            np.searchsorted(x, bounds).tolist() for x in (lent, left, leaving, arriving)
        )
        sizes = np.diff(epoch.offsets).tolist()
        released = released if self._local == 0 else released[:0]
        for number in range(start, len(sizes)):
            if number + 1 == len(sizes) and epoch.offsets[-1] > self.plan.num_samples:
                # what is repeated may have moved since
                last = slice(bounds[number], None)
                slot[last] = np.where(source[last] == me, slots.of[samples[last]], np.int32(-1))
            gone = leaving[of_leaving[number] : of_leaving[number + 1]]
            if len(gone):
                slots.empty(samples[gone])
            come = arriving[of_arriving[number] : of_arriving[number + 1]]
            if len(come):
                keep[come] = slots.fill(samples[come])
            own = slice(of_used[number], of_used[number + 1])
            sent = slice(of_lent[number], of_lent[number + 1])
            emptied = slot[left[of_left[number] : of_left[number + 1]]]
            positions = used[own]
            yield Step(
                epoch=epoch.number,
                number=number,
                samples=batch[own],
                source=holder[own],
                slot=slot[positions],
                lender=lender[own],
                keep=keep[positions],
                lent=samples[lent[sent]],
                lent_slot=slot[lent[sent]],
                lent_to=lent_to[sent],
                released=np.concatenate([released, emptied]) if len(released) else emptied,
                weight=len(positions) * self.plan.num_ranks / sizes[number],
            )
            released = released[:0]

    def _deal(self, epoch: Epoch, concerned: np.ndarray) -> np.ndarray:
        """Return which rank of its unit uses each sample: equal parts of a unit's batch, also of what is not at hand.

        `concerned` are the positions that are asked for, and that the result is of.
        """
        num_ranks, num_units = self.plan.ranks_per_node, self.plan.num_units
        if num_ranks == 1:
            return np.zeros(len(concerned), np.int32)
        group = np.repeat(np.arange(len(epoch.offsets) - 1), np.diff(epoch.offsets)) * num_units
        group += epoch.unit[epoch.used]
        num_groups = (len(epoch.offsets) - 1) * num_units
        wanted = np.zeros(num_groups, bool)
        wanted[group[concerned]] = True
        positions = np.flatnonzero(wanted[group])
        group = group[positions]
        at_hand = epoch.source[positions] == epoch.unit[positions]
        # by sample numbers: a rank reads what lies together
        order = np.lexsort((epoch.samples[positions], at_hand, group))
        read = _parts(np.bincount(group[~at_hand], minlength=num_groups), num_ranks)
        every = _parts(np.bincount(group, minlength=num_groups), num_ranks)
        ranks = np.tile(np.arange(num_ranks, dtype=np.int32), 2 * num_groups)
        local = np.empty(int(epoch.offsets[-1]), np.int32)
        local[positions[order]] = np.repeat(ranks, np.stack([read, every - read], axis=1).reshape(-1))
        return local[concerned]


def _parts(counts: np.ndarray, num: int) -> np.ndarray:
    """Return each count in `num` parts that differ by one at most, the larger ones first: [number of counts, num]."""
    return counts[:, None] // num + (np.arange(num) < counts[:, None] % num)


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
