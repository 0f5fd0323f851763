"""What a plan costs: samples read, samples sent, and how evenly."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from trimtab.data.plan import STORE, Epoch, Plan


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over steps; tallies add up."""

    num_steps: int = 0
    num_uses: int = 0
    """Samples used."""
    num_reads: int = 0
    """Samples read from the store."""
    num_sent: int = 0
    """Samples sent from one node (or rank, where each has a buffer of its own) to another."""
    slowest_reads: int = 0
    """Summed over steps: samples that the rank reads which reads most."""
    least_slowest_reads: int = 0
    """The same, if the reads of every step were shared out as evenly as whole samples can be."""
    largest_batches: int = 0
    """Summed over steps: samples of the largest local batch."""
    largest_batch: int = 0
    """Samples of the largest local batch of all."""

    @property
    def hit_rate(self) -> float:
        """The part of the uses that read nothing."""
        return 1 - self.num_reads / self.num_uses if self.num_uses else 0.0

    @property
    def excess_reads(self) -> float:
        """Samples a step that the slowest rank reads beyond what whole samples need."""
        return (self.slowest_reads - self.least_slowest_reads) / self.num_steps if self.num_steps else 0.0

    def __add__(self, other: Tally) -> Tally:
        fields = {name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__}
        return Tally(**fields | {"largest_batch": max(self.largest_batch, other.largest_batch)})


def tally(epoch: Epoch, *, num_units: int, ranks_per_node: int = 1) -> Tally:
    """Count one epoch."""
    sizes = np.diff(epoch.offsets)
    unit, source = epoch.unit[epoch.used], epoch.source[epoch.used]
    cells = np.repeat(np.arange(len(sizes), dtype=np.int64) * num_units, sizes) + unit
    shape = (len(sizes), num_units)
    batches = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    reads = np.bincount(cells[source == STORE], minlength=shape[0] * shape[1]).reshape(shape)
    largest = -(-batches.max(axis=1) // ranks_per_node)
    return Tally(
        num_steps=len(sizes),
        num_uses=len(unit),
        num_reads=int(reads.sum()),
        num_sent=int(((source != STORE) & (source != unit)).sum()),
        slowest_reads=int((-(-reads.max(axis=1) // ranks_per_node)).sum()),
        least_slowest_reads=int((-(-reads.sum(axis=1) // (num_units * ranks_per_node))).sum()),
        largest_batches=int(largest.sum()),
        largest_batch=int(largest.max()),
    )


def tallies(plan: Plan) -> Iterable[Tally]:
    """Yield the tally of each epoch of a plan."""
    for epoch in plan.epochs():
        yield tally(epoch, num_units=plan.num_units, ranks_per_node=plan.ranks_per_node)
