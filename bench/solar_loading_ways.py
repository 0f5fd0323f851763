"""The ways to feed the same batches that `bench.solar_loading` compares, over one HDF5 file and one throttle.

Each yields a batch a step; the global batches are those of a DistributedSampler with seed 0, in all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from trimtab.data.batches import Batches
from trimtab.data.hdf5 import HDF5
from trimtab.data.loader import SOLAR
from trimtab.data.plan import STORE, Plan
from trimtab.data.pool import SharedSlots
from trimtab.data.prefetch import Prefetch
from trimtab.data.rank import Step
from trimtab.data.reading import Costs
from trimtab.data.run import Run
from trimtab.data.throttle import Throttle
from trimtab.kernels import load

LOOK_AHEAD = 8
NUM_THREADS = 16
NETWORK = Costs(latency_seconds=50e-6, bytes_per_second=1.25e9)
"""What a sample of another rank costs where the network is modelled: that of a cluster, 10 Gbit/s for each stream."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is loaded: samples of float32, by so many ranks."""

    num_samples: int
    sample_bytes: int
    num_ranks: int
    batch_size: int
    num_epochs: int
    latency: float | None
    """Seconds a request; None for no throttle."""
    bandwidth: float = 200e6
    """Bytes per second of a stream."""

    @property
    def throttle(self) -> Throttle | None:
        """What makes reads slow."""
        return None if self.latency is None else Throttle(self.latency, self.bandwidth)


class Rows:
    """The rows of a file through h5py, as a map-style data set; opened in each process that reads."""

    def __init__(self, path: str, throttle: Throttle | None) -> None:
        self.path, self.throttle = path, throttle
        self._rows: Any = None
        with h5py.File(path) as file:
            self._num = len(file["x"])

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, i: int) -> np.ndarray:
        if self._rows is None:
            self._rows = h5py.File(self.path)["x"]
        if self.throttle is None:
            return self._rows[i]
        with self.throttle.request(self._rows.dtype.itemsize * int(np.prod(self._rows.shape[1:]))):
            return self._rows[i]


def stock(path: str, shape: Shape, rank: int, num_workers: int) -> Iterator[tuple[Any, int]]:
    """Yield batches of a DataLoader with a DistributedSampler, and the samples read so far."""
    from torch.utils.data import DataLoader, DistributedSampler

    rows = Rows(path, shape.throttle)
    sampler = DistributedSampler(range(len(rows)), shape.num_ranks, rank, seed=0)
    loader = DataLoader(
        rows, shape.batch_size, sampler=sampler, num_workers=num_workers, persistent_workers=num_workers > 0,
        multiprocessing_context="fork" if num_workers else None,
    )  # fmt: skip
    reads = 0
    for epoch in range(shape.num_epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            reads += len(batch)
            yield batch, reads


def ours(path: str, shape: Shape, rank: int, held: float) -> Iterator[tuple[Any, int]]:
    """Yield batches of SOLAR whose buffers have this part of the data, read-ahead included, but for none."""
    store = _store(path, shape)
    budget = int(held * shape.num_samples / shape.num_ranks)
    loader = SOLAR(
        store, shape.batch_size, shape.num_epochs, f"{budget} samples",
        look_ahead=LOOK_AHEAD, num_threads=NUM_THREADS, num_ranks=shape.num_ranks, rank=rank,
    )  # fmt: skip
    for _ in range(shape.num_epochs):
        for batch in loader:
            yield batch, loader.report["samples_read"]


def pooled(
    path: str, shape: Shape, rank: int, held: float, job: str, *, network: bool = False
) -> Iterator[tuple[Any, int]]:
    """Yield batches by NoPFS's policy, with the threads and the look-ahead of ours, and the samples read so far.

    The batches of ranks are those of a DistributedSampler. A rank keeps what it uses most often, and what another one
    keeps comes from its memory: by shared memory, without any network, which is the best case for this policy; or over
    a modelled `network`, by requests of the threads that read ahead.
    """
    store = _Networked(_store(path, shape), HDF5(path, "x", num_threads=1, costs=NETWORK, throttle=Throttle(*NETWORK)))
    budget = int(held * shape.num_samples / shape.num_ranks)
    ring = min(LOOK_AHEAD * shape.batch_size, max(2 * shape.batch_size, budget // 16))
    plan = Pooled(
        Plan(
            num_samples=shape.num_samples, num_ranks=shape.num_ranks, batch_size=shape.batch_size,
            num_epochs=shape.num_epochs, num_slots=budget - ring - 2 * shape.batch_size,
        ),
        network,
    )  # fmt: skip
    batches = Batches(
        store.fields, {"x": "x"}, tensors=True, seed=0, transform=None, collate=None, num_threads=1, pin_memory=False
    )
    prefetch = Prefetch(
        plan,  # pyrefly: ignore
        rank,
        (0, 0),
        store,
        capacity=ring,
        num_threads=NUM_THREADS,
        lending=False,
    )

    def slots(stopped: Any) -> SharedSlots:
        return SharedSlots(
            store.fields, plan.num_slots, local_rank=rank, num_ranks=shape.num_ranks, name=job, identity="",
            timeout=60, stopped=stopped,
        )  # fmt: skip

    run = Run(prefetch, store, slots, None, batches, batch_size=shape.batch_size)
    while (ready := run.next()) is not None:
        yield ready.batch, store.num_reads
    run.close()


class _Networked:
    """Samples in a store, and under other numbers in the memory of other ranks.

    The latter are read from the same file, at the speed of the network.
    """

    def __init__(self, store: HDF5, others: HDF5) -> None:
        self.fields, self.num_samples = store.fields, 2 * store.num_samples
        self.num_reads = 0
        """Samples that came from the store so far."""
        self._store, self._others, self._counting = store, others, threading.Lock()

    def read(self, samples: np.ndarray, out: Mapping[str, np.ndarray]) -> int:
        """Read samples; see `trimtab.data.store.Store`."""
        half, num_bytes = self._store.num_samples, 0
        is_far = samples >= half
        for store, chosen, offset in ((self._store, ~is_far, 0), (self._others, is_far, half)):
            where = np.flatnonzero(chosen)
            if not len(where):
                continue
            if len(where) == len(samples) or where[-1] - where[0] == len(where) - 1:  # in a row: in place
                part = slice(where[0], where[-1] + 1)
                num_bytes += store.read(samples[part] - offset, {name: x[part] for name, x in out.items()})
            else:
                rows = {name: np.empty((len(where), *x.shape[1:]), x.dtype) for name, x in out.items()}
                num_bytes += store.read(samples[where] - offset, rows)
                for name, x in out.items():
                    x[where] = rows[name]
        with self._counting:
            self.num_reads += int(np.count_nonzero(~is_far))
        return num_bytes

    def close(self) -> None:
        self._store.close()
        self._others.close()


def _store(path: str, shape: Shape) -> HDF5:
    costs = None if shape.latency is None else Costs(shape.latency, shape.bandwidth)
    return HDF5(path, "x", num_threads=1, throttle=shape.throttle, costs=costs)


@dataclass
class Pooled:
    """NoPFS's policy in the form of a plan, whose ranks share all slots; see `trimtab.data.policies.pooled`.

    Over a `network`, samples in slots of other ranks are read; their numbers are then those of `_Networked`. Writing
    to another rank's slot, which happens in the first epoch, costs nothing.
    """

    plan: Plan
    network: bool = False
    keeper: np.ndarray = field(init=False)
    """Which rank keeps each sample, int32; `STORE` for none."""
    slot: np.ndarray = field(init=False)
    """Where each sample is kept, int32; -1 for none."""
    num_slots: int = field(init=False)

    def __post_init__(self) -> None:
        plan = self.plan
        offsets, num_ranks = plan.shuffle.offsets, plan.num_ranks
        uses = np.zeros((plan.num_samples, num_ranks), np.uint16)
        for epoch in range(plan.num_epochs):
            np.add.at(uses, (plan.shuffle.samples(epoch)[: offsets[-1]], np.arange(offsets[-1]) % num_ranks), 1)
        keeper = np.full(plan.num_samples, STORE, np.int32)
        free = np.full(num_ranks, plan.unit_slots, np.int32)
        for times in range(int(uses.max()), 0, -1):
            samples, ranks = (index.astype(np.int32) for index in np.nonzero(uses == times))
            load("caching").assign(samples, ranks, free, keeper)
        self.keeper, kept = keeper, keeper != STORE
        self.num_slots = int(kept.sum())
        self.slot = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)

    @property
    def num_samples(self) -> int:
        return self.plan.num_samples

    @property
    def shuffle(self) -> Any:
        return self.plan.shuffle

    def rank(self, rank: int, *, start: tuple[int, int]) -> _Steps:
        """Return the steps of a rank."""
        return _Steps(self, rank, start)


class _Steps:
    """The steps of a rank that follows the policy, as `RankPlan` has them."""

    def __init__(self, policy: Pooled, rank: int, start: tuple[int, int]) -> None:
        self.start = start
        self.expected = np.empty(0, np.int32), np.empty(0, np.int32)
        self._policy, self._rank = policy, rank

    def __iter__(self) -> Iterator[Step]:
        plan, policy, none = self._policy.plan, self._policy, np.empty(0, np.int32)
        offsets, num_ranks = plan.shuffle.offsets, plan.num_ranks
        for epoch in range(plan.num_epochs):
            drawn = plan.shuffle.samples(epoch)
            for number in range(plan.num_steps):
                samples = drawn[offsets[number] : offsets[number + 1]][self._rank :: num_ranks]
                slot = policy.slot[samples]
                kept = (slot >= 0) & (epoch > 0)
                far = kept & (policy.keeper[samples] != self._rank) & policy.network
                seen = kept & ~far
                yield Step(
                    epoch=epoch,
                    number=number,
                    samples=np.where(far, samples + np.int32(plan.num_samples), samples),
                    source=np.where(seen, 0, STORE).astype(np.int32),
                    slot=np.where(seen, slot, -1).astype(np.int32),
                    lender=np.full(len(samples), -1, np.int32),
                    keep=np.where(kept, -1, slot).astype(np.int32),
                    lent=none,
                    lent_slot=none,
                    lent_to=none,
                    released=none,
                    weight=1.0,
                )
