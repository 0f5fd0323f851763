"""A plan's batches for a stock DataLoader: the numbers of the samples alone."""

from __future__ import annotations

from collections.abc import Iterator

from trimtab.data.plan import Plan
from trimtab.errors import UsageError


class BatchSampler:
    """Yields, step by step, the samples that a rank takes by a plan: ``DataLoader(data, batch_sampler=...)``.

    Nothing is kept or read ahead. It pays where the data set itself keeps what it has read, for the same rank then
    asks for the same samples again, as far as `Plan.num_slots` says; and it shows a training with these batches.

    Each pass takes the next epoch, whether or not the last was finished, unless `set_epoch` says which.

    >>> sampler = BatchSampler(Plan(num_samples=10, batch_size=4, num_epochs=2), rank=0)
    >>> [len(batch) for batch in sampler]
    [4, 4, 2]
    """

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self.epoch = 0
        """The epoch of the next pass."""
        self._steps = plan.rank(rank)
        self._next = 0

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return self.plan.num_steps

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the samples of each step of an epoch.

        Raises:
            UsageError: there is no such epoch.
        """
        if not 0 <= self.epoch < self.plan.num_epochs:
            raise UsageError(f"there is no epoch {self.epoch} in {self.plan.num_epochs} epochs")
        epoch, self.epoch = self.epoch, self.epoch + 1
        if self._next != epoch:  # planning goes on where it stopped, if it can
            self._steps = self.plan.rank(self.rank, start=(epoch, 0))
        steps, self._next = self._steps, -1
        for _ in range(len(self)):
            yield next(steps).samples.tolist()
        if self._steps is steps:
            self._next = epoch + 1
