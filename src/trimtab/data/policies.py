"""Other ways to feed the same batches, counted exactly: those of the SOLAR paper, of NoPFS and of a stock loader.

For studies and comparison; training follows `trimtab.data.plan`. Every rank has a buffer of its own. Policies see the
next epoch, and so does Belady's rule: a sample that the next epoch leaves out counts as used after all others.

Sources: SOLAR, arXiv 2211.00224; NoPFS, "Clairvoyant Prefetching for Distributed Machine Learning I/O", SC 2021, arXiv
2101.08734; Belady, "A Study of Replacement Algorithms for a Virtual-Storage Computer", IBM Systems Journal 5 (1966).
All are written anew from what is published; inner steps that SOLAR leaves open are reconstructed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from trimtab import kernels
from trimtab.data.plan import STORE, Epoch, Plan
from trimtab.data.tally import Tally, tally
from trimtab.errors import UsageError

_MOST_CELLS = 2**31  # of the table of uses that `pooled` makes


def unbuffered(plan: Plan) -> list[Tally]:
    """Count a DistributedSampler's batches where every sample is read each time."""
    sizes = plan.shuffle.sizes.astype(np.int64)
    reads, uses = int(sizes.sum()), plan.num_ranks * int(sizes.sum())
    epoch = Tally(
        num_steps=len(sizes),
        num_uses=uses,
        num_reads=uses,
        slowest_reads=reads,
        least_slowest_reads=reads,
        largest_batches=reads,
        largest_batch=int(sizes.max()),
    )
    return [epoch] * plan.num_epochs


def stock(plan: Plan, *, rule: str) -> list[Tally]:
    """Count a DistributedSampler's batches with a cache on each rank, as an operating system has one.

    `rule` is ``"lru"``, or ``"belady"`` with the uses on the same rank in mind.
    """
    shuffle, num_ranks = plan.shuffle, plan.num_ranks
    offsets = shuffle.offsets
    drawn = np.stack([shuffle.samples(e)[: offsets[-1]] for e in range(plan.num_epochs)])
    steps = np.concatenate([[0], np.cumsum(np.tile(shuffle.sizes.astype(np.int64), plan.num_epochs))])
    source = np.full(drawn.shape, STORE, np.int32)
    for rank in range(num_ranks):
        samples = np.ascontiguousarray(drawn[:, rank::num_ranks]).reshape(-1)
        keys = -np.arange(len(samples)) if rule == "lru" else _next_uses(samples)
        hits = _Caches(plan, num_units=1).replay(samples, steps, keys, equal=True)[1]
        source[:, rank::num_ranks] = np.where(hits == 0, rank, STORE).reshape(plan.num_epochs, -1)
    unit = np.arange(offsets[-1], dtype=np.int32) % num_ranks
    epochs = range(plan.num_epochs)
    return [tally(Epoch(e, drawn[e], offsets, unit, source[e], source[e]), num_units=num_ranks) for e in epochs]


def remap(plan: Plan, *, rule: str, equal: str, order: Sequence[int] | None = None) -> list[Tally]:
    """Count batches whose samples go to the rank that holds them, with a cache on each rank.

    With ``equal="batches"``, what does not fit into its holder's batch is read again elsewhere; with
    ``equal="reads"``, which is the paper's way, batches grow as they have to, and ranks read equally many. Epochs may
    come in another `order`.
    """
    shuffle, offsets = plan.shuffle, plan.shuffle.offsets
    order = range(plan.num_epochs) if order is None else order
    caches, length = _Caches(plan, num_units=plan.num_ranks), int(offsets[-1])
    found, samples = [], shuffle.samples(order[0])[:length]
    for number, following in enumerate([*order[1:], None]):
        later = shuffle.samples(following)[:length] if following is not None else samples[:0]
        if rule == "lru":
            keys = -(number * length + np.arange(length))
        else:
            keys = _uses(later, plan.num_samples)[samples] + (number + 1) * length
        unit, source = caches.replay(samples, offsets, keys, equal=equal == "batches")
        epoch = Epoch(order[number], samples, offsets, unit, source, source)
        found.append(tally(epoch, num_units=plan.num_ranks))
        samples = later
    return found


def pooled(plan: Plan) -> list[Tally]:
    """Count a DistributedSampler's batches with a buffer that all ranks share over the network, as NoPFS does.

    A rank keeps what it uses most often during the training, as far as no other rank keeps it; the rest of its batch
    is sent by other ranks, or read. Sent, too, is what another rank keeps of what is read in the first epoch.

    Raises:
        UsageError: there are too many samples and ranks to count all uses.
    """
    shuffle, num_ranks, offsets = plan.shuffle, plan.num_ranks, plan.shuffle.offsets
    if plan.num_samples * num_ranks > _MOST_CELLS:
        raise UsageError(f"the pooled buffer is only counted for {_MOST_CELLS} samples x ranks at most")
    uses = np.zeros((plan.num_samples, num_ranks), np.uint16)
    unit = np.arange(offsets[-1], dtype=np.int32) % num_ranks
    for e in range(plan.num_epochs):
        samples = shuffle.samples(e)[: offsets[-1]]
        np.add.at(uses, (samples, unit), 1)
    keeper = np.full(plan.num_samples, STORE, np.int32)
    free = np.full(num_ranks, plan.unit_slots, np.int32)
    for times in range(int(uses.max()), 0, -1):
        samples, ranks = (index.astype(np.int32) for index in np.nonzero(uses == times))
        kernels.load("caching").assign(samples, ranks, free, keeper)
    seen, found = np.zeros(plan.num_samples, bool), []
    for e in range(plan.num_epochs):
        samples = shuffle.samples(e)[: offsets[-1]]
        source = np.where(seen[samples], keeper[samples], STORE).astype(np.int32)
        counted = tally(Epoch(e, samples, offsets, unit, source, source), num_units=num_ranks)
        new = ~seen[samples] & (keeper[samples] != STORE) & (keeper[samples] != unit)
        found.append(counted + Tally(num_sent=int(new.sum())))
        seen[samples] = True
    return found


def epoch_order(plan: Plan, *, rounds: int = 20) -> list[int]:
    """Return the order of epochs in which each begins with as much as possible of what the last one ended with.

    The paper's idea: the heaviest path through all epochs, an edge weighing as many samples as the end of one epoch
    and the beginning of the other, both as long as the buffers, have in common. Found greedily, then improved by
    moving and reversing stretches until nothing gains, `rounds` times over at most. A reproduction: it does not raise
    the number of hits that can be reached, which no order does.
    """
    shuffle, num_epochs = plan.shuffle, plan.num_epochs
    held = min(plan.num_ranks * plan.unit_slots, plan.num_samples)
    ends, begins = np.zeros((2, num_epochs, plan.num_samples), bool)
    for e in range(num_epochs):
        samples = shuffle.samples(e)[: plan.num_samples]
        ends[e, samples[len(samples) - held :]] = True
        begins[e, samples[:held]] = True
    weights = np.array([[int((end & begin).sum()) for begin in begins] for end in ends])
    order = [0]
    while len(order) < num_epochs:
        rest = [e for e in range(num_epochs) if e not in order]
        order.append(max(rest, key=lambda e: weights[order[-1], e]))
    best = _weight(weights, order)
    for _ in range(rounds):
        for changed in _neighbours(order):
            if (weight := _weight(weights, changed)) > best:
                order, best = changed, weight
                break
        else:
            break
    return order


def _weight(weights: np.ndarray, order: Sequence[int]) -> int:
    return int(weights[order[:-1], order[1:]].sum())


def _neighbours(order: list[int]) -> Iterator[list[int]]:
    """Yield the order with one stretch reversed, or moved elsewhere."""
    num = len(order)
    for begin in range(num):
        for end in range(begin + 1, num + 1):
            stretch, rest = order[begin:end], order[:begin] + order[end:]
            yield order[:begin] + stretch[::-1] + order[end:]
            if end - begin <= 3:
                for place in range(len(rest) + 1):
                    yield rest[:place] + stretch + rest[place:]


POLICIES: dict[str, Callable[[Plan], list[Tally]]] = {
    "DistributedSampler, LRU": lambda plan: stock(plan, rule="lru"),
    "DistributedSampler, Belady": lambda plan: stock(plan, rule="belady"),
    "pooled, as NoPFS": pooled,
    "remap, LRU, equal batches": lambda plan: remap(plan, rule="lru", equal="batches"),
    "remap, Belady, equal batches": lambda plan: remap(plan, rule="belady", equal="batches"),
    "remap, Belady, equal reads": lambda plan: remap(plan, rule="belady", equal="reads"),
    "the same, epochs reordered": lambda plan: remap(plan, rule="belady", equal="reads", order=epoch_order(plan)),
}
"""Name -> what returns the tally of each epoch, of a plan whose ranks have a node each."""


class _Caches:
    """The state of caches between epochs."""

    def __init__(self, plan: Plan, *, num_units: int) -> None:
        self.kernel = kernels.load("caching")
        self.owner = np.full(plan.num_samples, STORE, np.int32)
        self.keys = np.zeros(plan.num_samples, np.int64)
        self.heap = np.zeros((num_units, plan.unit_slots), np.int32)
        self.place = np.zeros(plan.num_samples, np.int32)
        self.sizes = np.zeros(num_units, np.int32)

    def replay(
        self, samples: np.ndarray, offsets: np.ndarray, keys: np.ndarray, *, equal: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Use samples, and return who used and who held each."""
        unit, source = np.empty_like(samples), np.empty_like(samples)
        self.kernel.replay(
            *(samples, offsets, keys, equal, self.owner, self.keys, self.heap, self.place, self.sizes, unit, source)
        )
        return unit, source


def _next_uses(samples: np.ndarray) -> np.ndarray:
    """Return the position at which the sample of each position is used next, int64; never comes after all others."""
    following = len(samples) + np.arange(len(samples))
    order = np.argsort(samples, kind="stable")
    again = samples[order[1:]] == samples[order[:-1]]
    following[order[:-1][again]] = order[1:][again]
    return following


def _uses(samples: np.ndarray, num_samples: int) -> np.ndarray:
    """Return the first position of each sample, int64; a sample without one comes after all others."""
    positions = len(samples) + np.arange(num_samples)
    positions[samples[::-1]] = np.arange(len(samples))[::-1]
    return positions
