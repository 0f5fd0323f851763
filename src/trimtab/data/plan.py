"""SOLAR's plan: which rank uses, keeps and reads each sample in each step of each epoch.

After "SOLAR: A Highly Optimized Data Loading Framework for Distributed Training of CNN-based Scientific Surrogates",
PVLDB 16 (2022), arXiv 2211.00224. Inside a global batch it does not matter which rank takes a sample, so it goes to
the rank that holds it; and since the shuffles are known, each rank knows what to hold.

At most C samples are held by all buffers together when an epoch begins, and a sample is used once an epoch, so an epoch
has at most C uses that read nothing, whatever is evicted, and in whatever order the epochs come. The plan reaches that
number, with the same number of samples on every rank in every step.

Differences from the paper:

- Batches stay equal: where samples are kept is chosen by the steps they will be used in, so that ranks need not trade
  equal batches for equal reads. With `batch_slack` they may differ, as in the paper, with weights for the loss.
- The order of the epochs is left as it is, for it cannot raise the number of hits (see `trimtab.data.policies`).
- Held samples are not those used soonest, as Belady's rule would have it, but as many for each step of the next epoch,
  so that reads come evenly.
- Placement is revised in every epoch by re-homing (`trimtab.kernels.placement`), which needs no further read, message
  or slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import xxhash

from trimtab import kernels
from trimtab.data.shuffle import Shuffle
from trimtab.errors import UsageError

if TYPE_CHECKING:
    from trimtab.data.rank import RankPlan

STORE = -1
"""As the source of a sample: it is read from the store. As its keeper: nobody keeps it."""

_ALGORITHM = 1  # goes up whenever the same settings give another plan


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch, planned. A unit is the ranks of a node, which share their slots, or else a rank."""

    number: int
    samples: np.ndarray
    """In the order of the shuffle, int32[P]; behind the last step, those that are left out."""
    offsets: np.ndarray
    """Where steps begin and end, int64[num_steps + 1]."""
    unit: np.ndarray
    """Who uses the sample at each position, int32[P]; -1 behind the last step."""
    source: np.ndarray
    """Who holds it when the step begins, int32[P]: the unit itself (a hit), another unit, which sends it, or
    `STORE`."""
    keeper: np.ndarray
    """Who holds it when the step ends, int32[P]: the source, the unit, or nobody, -1."""

    @property
    def used(self) -> slice:
        """The positions that steps use."""
        return slice(0, int(self.offsets[-1]))


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Who reads, keeps and uses which sample, for a whole training: a pure function of these settings.

    It is computed epoch by epoch, where it is needed; two epochs are in memory at a time. Every rank computes the same
    plan.

    `num_slots` counts the samples that a rank's buffer holds. What is read ahead needs memory beside it.

    With `batch_slack`, local batches may have up to so many samples more or fewer, where this evens out reads or keeps
    samples from being sent: multiply the local loss by `Step.weight`. Without it, ranks that hold more of a step's
    samples than a batch send the surplus to others, which happens where the buffers hold more than nine tenths of the
    samples.

    Raises:
        UsageError: a number is out of range, or no step is left.

    >>> plan = Plan(num_samples=1000, num_ranks=4, batch_size=5, num_epochs=3, num_slots=125)
    >>> step = next(iter(plan.rank(2, start=(1, 0))))
    >>> len(step.samples), int((step.source == STORE).sum())
    (5, 3)
    """

    num_samples: int
    batch_size: int
    """Samples that a rank takes in a step."""
    num_epochs: int
    num_ranks: int = 1
    num_slots: int = 0
    """Samples that a rank can hold."""
    seed: int = 0
    """That of the DistributedSampler whose batches these are."""
    drop_last: bool = False
    ranks_per_node: int = 1
    """Ranks that share their slots, in memory that all of them see."""
    batch_slack: int = 0

    def __post_init__(self) -> None:
        _ = self.shuffle  # checks
        least = {"num_epochs": 1, "num_slots": 0, "ranks_per_node": 1, "batch_slack": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise UsageError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        if self.num_ranks % self.ranks_per_node:
            raise UsageError(
                f"{self.num_ranks} ranks do not fill nodes of {self.ranks_per_node}; make num_ranks a multiple of "
                "ranks_per_node"
            )
        if self.batch_slack >= self.batch_size:
            raise UsageError(
                f"batch_slack must be less than batch_size, so that no batch is empty; got {self.batch_slack} and "
                f"{self.batch_size}"
            )

    @property
    def shuffle(self) -> Shuffle:
        """The global batches."""
        return Shuffle(
            num_samples=self.num_samples,
            num_ranks=self.num_ranks,
            batch_size=self.batch_size,
            seed=self.seed,
            drop_last=self.drop_last,
        )

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return self.shuffle.num_steps

    @property
    def num_units(self) -> int:
        """Nodes, or ranks where each has a buffer of its own."""
        return self.num_ranks // self.ranks_per_node

    @property
    def unit_slots(self) -> int:
        """Samples that a unit can hold; more than there are samples are never of use."""
        return min(self.num_slots * self.ranks_per_node, self.num_samples)

    @property
    def digest(self) -> str:
        """Names this plan: equal where all settings and the algorithm are."""
        return _digest([_ALGORITHM, self])

    @property
    def stream_digest(self) -> str:
        """Names the stream of global batches: equal for plans that may go on where one of them stopped."""
        return _digest([self.num_samples, self.shuffle.global_batch, self.seed, self.drop_last])

    @property
    def most_hits(self) -> int:
        """Uses that read nothing, in an epoch after the first: no plan has more, but for repeated samples."""
        used = min(self.num_samples, int(self.shuffle.offsets[-1]))
        return min(self.num_units * self.unit_slots, used)

    def epochs(self, start: int = 0) -> Iterator[Epoch]:
        """Yield the epochs from `start` on; those before are planned too, since each follows from the last."""
        planner = _Planner(self)
        for number in range(self.num_epochs):
            epoch = planner.next()
            if number >= start:
                yield epoch

    def rank(self, rank: int, *, start: tuple[int, int] = (0, 0)) -> RankPlan:
        """Return what one rank does, step by step, from (epoch, step) on.

        Raises:
            UsageError: there is no such rank, or no such step.
        """
        from trimtab.data.rank import RankPlan

        return RankPlan(self, rank, start=start)


class _Planner:
    """Plans the epochs of a plan one after the other."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.shuffle = plan, plan.shuffle
        self.kernel = kernels.load("placement")
        self.offsets = self.shuffle.offsets
        self.sizes = self.shuffle.sizes * np.int32(plan.ranks_per_node)
        slack = np.minimum(plan.batch_slack * plan.ranks_per_node, self.sizes - np.int32(plan.ranks_per_node))
        self.slack = slack.astype(np.int32)
        self.target = self._even_target()
        self.number = 0
        self.samples = self.shuffle.samples(0)
        self.owner = np.full(plan.num_samples, -1, np.int32)
        self.free = np.full(plan.num_units, plan.unit_slots, np.int32)
        self.held = np.zeros((len(self.sizes) + 1, plan.num_units), np.int32)

    def _even_target(self) -> np.ndarray:
        """Return how many samples of each step a unit should hold: its slots, spread over the steps by their sizes."""
        upto = self.offsets // self.plan.num_units
        slots = min(self.plan.unit_slots, int(upto[-1]))
        return np.append(np.diff(upto * slots // upto[-1]), 0).astype(np.int32)

    def next(self) -> Epoch:
        """Plan the next epoch."""
        plan, samples, num_steps = self.plan, self.samples, len(self.sizes)
        num_distinct = min(plan.num_samples, len(samples))
        decide = self.number + 1 < plan.num_epochs
        following = np.full(plan.num_samples, num_steps, np.int32)
        if decide:
            self.samples = self.shuffle.samples(self.number + 1)
            until = np.minimum(self.offsets, num_distinct)
            self.kernel.first_steps(self.samples, until, following)
        counts = self._count(following)
        held = self.held[:num_steps]
        missing = np.diff(self.offsets) - held.sum(axis=1)
        room, fetches, loans = np.empty(num_steps, np.int32), np.empty_like(held), np.empty_like(held)
        self.kernel.shares(held, self.sizes, missing.astype(np.int32), self.slack, room, fetches, loans)
        unit, source, keeper = (np.empty(len(samples), np.int32) for _ in range(3))
        self.kernel.place(
            *(samples, self.offsets, num_distinct, following, self.target, counts, room, fetches, loans),
            *(self.owner, self.free, decide, unit, source, keeper),
        )
        self.held = counts
        self.number += 1
        return Epoch(self.number - 1, samples, self.offsets, unit, source, keeper)

    def _count(self, steps: np.ndarray) -> np.ndarray:
        """Return how many samples of each step each unit holds, int32[num_steps + 1, num_units]."""
        shape = self.held.shape
        cells = steps.astype(np.int64) * shape[1] + self.owner
        found = np.bincount(cells[self.owner >= 0], minlength=shape[0] * shape[1])
        return found.astype(np.int32).reshape(shape)


def _digest(settings: object) -> str:
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(settings))
