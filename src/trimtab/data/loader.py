"""SOLAR: a loader in place of a DataLoader that reads most samples once, and the rest in the best order.

After "SOLAR: A Highly Optimized Data Loading Framework for Distributed Training of CNN-based Scientific Surrogates",
PVLDB 16 (2022), arXiv 2211.00224; what differs from the paper stands in `trimtab.data.plan`.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from trimtab import waiting
from trimtab.data.batches import Batches, Transform
from trimtab.data.lending import Lending
from trimtab.data.mapped import MapStore
from trimtab.data.plan import Plan
from trimtab.data.pool import SharedSlots, Slots
from trimtab.data.prefetch import Prefetch
from trimtab.data.run import OpenSlots, Run
from trimtab.data.sizes import parse_share
from trimtab.data.store import Store, open_store, sample_bytes
from trimtab.errors import UsageError

_MADE_BATCHES = 2  # one that is ready, and one whose memory is about to come back
_LEAST_BATCHES = 2 + _MADE_BATCHES
_RING_SHARE = 16  # reading ahead takes this part of the buffer, if that is more than two batches
_LENDING_SHARE = 0.9  # ranks begin to lend where buffers hold more than this of the samples
_made = itertools.count()


class SOLAR:
    """The batches of a DataLoader with a DistributedSampler, most of them from memory.

    Every shuffle is known beforehand, so each rank keeps what it will use again, and reads the rest ahead. The global
    batch of a step, that of all ranks together, is the DistributedSampler's with this seed; which rank takes which of
    its samples is not.

        loader = tt.data.SOLAR("scans.h5", batch_size=64, epochs=100, buffer="4 GiB")
        for epoch in range(100):
            for batch in loader:
                loss = model(batch["x"]) ...

    Each ``for`` over the loader takes the batches of one epoch; one that was left early is gone on with by the next.
    ``state_dict()`` says what was received so far, and `load_state_dict` goes on from there, also with another number
    of ranks if the global batch is the same; buffers are empty then, and fill as samples are used.

    After each batch, `samples` has its numbers, `weight` what to multiply its mean loss by (1 unless `batch_slack` is
    given), `epoch` and `step` the position.

    Args:
        dataset: A map-style data set (see `MapStore`), a path (see `open_store`), or a `Store`. Batches of the first
            are what torch's DataLoader would collate; of the others, dicts of arrays by the names of fields.
        batch_size: Samples that a rank takes in a step.
        epochs: How many are planned; state goes over to a loader with more.
        buffer: Memory of this rank for samples, kept and read ahead: bytes, ``4 GiB``, ``50%`` of this rank's part of
            the data, or ``2000 samples``. Four batches are the least; with 0 nothing is kept, and `look_ahead` batches
            are read ahead. Structures of the plan, up to 130 bytes for every sample of the data, come on top.
        seed: That of the DistributedSampler, and of `transform`.
        drop_last: As that of DistributedSampler and DataLoader.
        num_ranks: By default those of torch.distributed, or else 1.
        rank: The same.
        ranks_per_node: Ranks that share their buffers in memory: by default as torchrun says, 1 without it. Rank r is
            on node ``r // ranks_per_node``.
        batch_slack: Samples by which batches of ranks may differ; see `Plan`.
        look_ahead: Batches that are read ahead at most, as far as a sixteenth of the buffer or two batches hold. Where
            reading is as quick as from the page cache, a batch is read when it is made, one ahead of the training.
        num_threads: Threads that read, and that transform.
        pin_memory: Copy batches into memory that an accelerator reads directly.
        transform: Called with a sample and a `numpy.random.Generator` that depends on the seed, the epoch and the
            sample alone; returns what becomes part of the batch. Kept samples are those before it. Several threads
            call it.
        collate: Called with the list of a batch's samples; returns the batch.
        tensors: Whether arrays are torch tensors: by default if torch is installed.
        job: A name that the ranks of this job share and no other job on the machine has; needed where ranks share
            buffers and torchrun did not start them.
        timeout: Seconds to wait for other ranks where samples or memory are shared.

    Raises:
        UsageError: a setting is out of range, or they contradict each other.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 64,
        epochs: int = 100,
        buffer: str | int = "4 GiB",
        *,
        seed: int = 0,
        drop_last: bool = False,
        num_ranks: int | None = None,
        rank: int | None = None,
        ranks_per_node: int | None = None,
        batch_slack: int = 0,
        look_ahead: int = 8,
        num_threads: int = 16,
        pin_memory: bool = False,
        transform: Transform | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        tensors: bool | None = None,
        job: str | None = None,
        timeout: float = 1800.0,
    ) -> None:
        for name, value in (("look_ahead", look_ahead), ("num_threads", num_threads)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.store = _store(dataset)
        self._owns_store = self.store is not dataset
        place = _Place.of(num_ranks, rank, ranks_per_node)
        self.rank = place.rank
        self._capacity, num_slots = _shares(
            buffer, sample_bytes(self.store), -(-self.store.num_samples // place.num_ranks),
            most=batch_size + batch_slack, look_ahead=look_ahead,
        )  # fmt: skip
        self.plan = Plan(
            num_samples=self.store.num_samples,
            batch_size=batch_size,
            num_epochs=epochs,
            num_ranks=place.num_ranks,
            num_slots=min(num_slots, self.store.num_samples),
            seed=seed,
            drop_last=drop_last,
            ranks_per_node=place.ranks_per_node,
            batch_slack=batch_slack,
        )
        if tensors is None:
            tensors = importlib.util.find_spec("torch") is not None
        structure = self.store.structure if isinstance(self.store, MapStore) else {n: n for n in self.store.fields}
        self._batches = Batches(
            self.store.fields, structure, tensors=tensors, seed=seed, transform=transform, collate=collate,
            num_threads=num_threads, pin_memory=pin_memory and _can_pin(tensors),
        )  # fmt: skip
        self._num_threads, self._timeout = num_threads, timeout
        self._job = self._name(job)
        self._num_runs = 0
        self._lending = self._lend(place)
        self._position = (0, 0)
        self._run: Run | None = None
        self._end: weakref.finalize | None = None
        self._totals = {"samples": 0, "reads": 0, "bytes_read": 0}
        self.epoch = 0
        """That of the last batch, or of those to come."""
        self.step = 0
        """That of the last batch, within its epoch."""
        self.samples = np.empty(0, np.int32)
        """The samples of the last batch."""
        self.weight = 1.0
        """What to multiply the mean loss of the last batch by, before gradients are averaged over ranks."""

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return self.plan.num_steps

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch, or what is left of it.

        Raises:
            UsageError: all epochs are over.
            TrimtabError: reading failed, or another rank did.
        """
        epoch = self.epoch = self._position[0]
        if epoch == self.plan.num_epochs:
            raise UsageError(f"all {epoch} epochs are over; make a loader with more, and load this one's state")
        while self._position[0] == epoch:
            yield self._receive()
        self.epoch = self._position[0]

    def set_epoch(self, epoch: int) -> None:
        """Accept what a DistributedSampler must be told; a loader counts epochs itself.

        Raises:
            UsageError: another epoch comes next.
        """
        if epoch != self._position[0]:
            raise UsageError(
                f"epoch {self._position[0]} comes next, from step {self._position[1]} of {len(self)} on, not epoch "
                f"{epoch}; to skip what is left, load_state_dict(state_dict() | {{'epoch': {epoch}, 'step': 0}})"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return where the training stands, as plain data: the position behind the last batch that was received."""
        epoch, step = self._position
        return {
            "epoch": epoch,
            "step": step,
            "stream": self.plan.stream_digest,
            "plan": msgspec.to_builtins(self.plan),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader stood: the global batches from there on are the same.

        The number of ranks, the buffer and the number of epochs may differ. All ranks load the same state.

        Raises:
            UsageError: the global batches would differ, or there is no such position.
        """
        try:
            epoch, step, stream, theirs = (state[name] for name in ("epoch", "step", "stream", "plan"))
        except (KeyError, TypeError):
            raise UsageError("this is not the state of a SOLAR loader") from None
        if stream != self.plan.stream_digest:
            raise UsageError(_difference(self.plan, theirs))
        places = isinstance(epoch, int) and isinstance(step, int) and 0 <= step < len(self)
        if not places or not (0 <= epoch < self.plan.num_epochs or (epoch, step) == (self.plan.num_epochs, 0)):
            raise UsageError(
                f"there is no step {step} of epoch {epoch} in {self.plan.num_epochs} epochs of {len(self)} steps"
            )
        self.close()
        self._position = (epoch, step)
        self.epoch = epoch

    def close(self) -> None:
        """End the threads and let go of the memory; what comes next starts them again, with empty buffers."""
        if self._end is not None:
            self._end()
            if self._owns_store:
                self.store.close()
        if self._run is not None:
            self._totals["reads"] += self._run.num_reads
            self._totals["bytes_read"] += self._run.num_bytes
        self._end = self._run = None
        self._batches.close()

    @property
    def report(self) -> dict[str, Any]:
        """What was received, read and used: samples, bytes, and seconds that this process waited for data."""
        num_bytes, most = sample_bytes(self.store), self.plan.batch_size + self.plan.batch_slack
        reads = self._totals["reads"] + (self._run.num_reads if self._run else 0)
        return {
            "samples": self._totals["samples"],
            "samples_read": reads,
            "bytes_read": self._totals["bytes_read"] + (self._run.num_bytes if self._run else 0),
            "slots": self.plan.unit_slots,
            "slot_bytes": -(-self.plan.unit_slots // self.plan.ranks_per_node) * num_bytes,
            "read_ahead_bytes": (self._capacity + _MADE_BATCHES * most) * num_bytes,
            "waited_seconds": waiting.total_seconds(),
        }

    def __repr__(self) -> str:
        plan, (epoch, step) = self.plan, self._position
        return (
            f"SOLAR({plan.num_samples} samples, rank {self.rank} of {plan.num_ranks}, batch_size={plan.batch_size}, "
            f"{plan.num_slots} samples kept, at step {step} of epoch {epoch})"
        )

    def _receive(self) -> Any:
        run = self._run or self._begin()
        try:
            with waiting.for_data():
                ready = run.next()
        except BaseException:
            if run.failed:
                self.close()
            raise
        assert ready is not None, "the plan has a step for every position"
        step = ready.step
        self.epoch, self.step, self.samples, self.weight = step.epoch, step.number, step.samples, step.weight
        self._totals["samples"] += len(step.samples)
        last = step.number + 1 == len(self)
        self._position = (step.epoch + 1, 0) if last else (step.epoch, step.number + 1)
        if self._position[0] == self.plan.num_epochs:
            self.close()
        return ready.batch

    def _begin(self) -> Run:
        """Start the threads at the position."""
        prefetch = Prefetch(
            self.plan, self.rank, self._position, self.store,
            capacity=self._capacity, num_threads=self._num_threads, lending=self._lending is not None,
        )  # fmt: skip
        self._run = Run(
            prefetch, self.store, self._slots(), self._lending, self._batches,
            batch_size=self.plan.batch_size + self.plan.batch_slack,
        )  # fmt: skip
        self._end = weakref.finalize(self, self._run.close)
        self._num_runs += 1
        return self._run

    def _slots(self) -> OpenSlots:
        """Return what opens the slots; it does not hold the loader."""
        plan, fields, timeout = self.plan, self.store.fields, self._timeout
        if plan.ranks_per_node == 1 or plan.unit_slots == 0:
            return lambda stopped: Slots(fields, plan.unit_slots)
        unit, local_rank = divmod(self.rank, plan.ranks_per_node)
        name, identity = f"{self._job} {unit} {self._num_runs}", f"{plan.digest} {self._position}"
        return lambda stopped: SharedSlots(
            fields,
            plan.unit_slots,
            local_rank=local_rank,
            num_ranks=plan.ranks_per_node,
            name=name,
            identity=identity,
            timeout=timeout,
            stopped=stopped,
        )

    def _name(self, job: str | None) -> str:
        """Return the name that the ranks of a node know each other by."""
        if job is not None or self.plan.ranks_per_node == 1:
            return f"{job}"
        names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
        if "MASTER_PORT" not in os.environ:
            raise UsageError("ranks that share buffers must know their job: start them with torchrun, or give job=")
        return " ".join([*(os.environ.get(name, "") for name in names), str(next(_made))])

    def _lend(self, place: _Place) -> Lending | None:
        """Return how ranks send samples to each other, if they can."""
        plan = self.plan
        if plan.num_units == 1 or not plan.unit_slots:
            return None
        if place.is_job:
            return Lending(self._timeout)
        if plan.num_units * plan.unit_slots > _LENDING_SHARE * plan.num_samples:
            warnings.warn(
                "buffers hold nearly all samples, and ranks that hold too many of a step's would lend them to others; "
                "torch.distributed is not initialised with these ranks, so they are read again instead (batch_slack "
                "makes them fewer)",
                stacklevel=3,
            )
        return None


class _Place(msgspec.Struct, frozen=True):
    """Which rank of how many this is."""

    num_ranks: int
    rank: int
    ranks_per_node: int
    is_job: bool
    """Whether torch.distributed has these ranks."""

    @staticmethod
    def of(num_ranks: int | None, rank: int | None, ranks_per_node: int | None) -> _Place:
        if (num_ranks is None) != (rank is None):
            raise UsageError("give both num_ranks and rank, or neither")
        dist = sys.modules.get("torch.distributed")
        found = None
        if dist is not None and dist.is_available() and dist.is_initialized():
            found = dist.get_world_size(), dist.get_rank()
        if num_ranks is None or rank is None:
            if found is None and int(os.environ.get("WORLD_SIZE") or 1) > 1:
                raise UsageError(
                    f"this is one of {os.environ['WORLD_SIZE']} processes, as WORLD_SIZE says, but torch.distributed "
                    "is not initialised: do so first, or give num_ranks and rank"
                )
            num_ranks, rank = found or (1, 0)
            if ranks_per_node is None and found is not None:
                ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        if not 0 <= rank < num_ranks:
            raise UsageError(f"rank must be from 0 to {num_ranks - 1}, got {rank}")
        per_node = 1 if ranks_per_node is None else ranks_per_node
        return _Place(num_ranks, rank, per_node, num_ranks > 1 and found == (num_ranks, rank))


def _store(dataset: Any) -> Store:
    is_source = isinstance(dataset, (str, os.PathLike, Mapping, Store))
    if not is_source and hasattr(dataset, "__getitem__"):
        return MapStore(dataset)
    # the loader's own threads divide what is read: a store of a file need not do so again
    return open_store(dataset) if isinstance(dataset, Store) else open_store(dataset, num_threads=1)


def _shares(buffer: str | int, num_bytes: int, num_samples: int, *, most: int, look_ahead: int) -> tuple[int, int]:
    """Return how many samples are read ahead, and how many are kept; beside them, batches are made.

    Raises:
        UsageError: the buffer is no size, or too small, or samples have no bytes.
    """
    if not num_bytes:
        raise UsageError("the samples of the data set hold nothing")
    text = re.fullmatch(r"\s*(\d+)\s*samples\s*", str(buffer))
    memory = int(text[1]) * num_bytes if text else parse_share(buffer, of=num_samples * num_bytes)
    if memory == 0:
        return max(look_ahead, 2) * most, 0
    budget = memory // num_bytes
    least = _LEAST_BATCHES * most
    if budget < least:
        raise UsageError(
            f"buffer {buffer!r} holds {budget} samples of {num_bytes} bytes; two batches are made while two are "
            f"read ahead, which takes {least} ({least * num_bytes} bytes), or 0 to keep none"
        )
    ring = min(max(look_ahead, 2) * most, max(2 * most, budget // _RING_SHARE))
    return ring, budget - ring - _MADE_BATCHES * most


def _can_pin(tensors: bool) -> bool:
    if tensors:
        import torch

        if torch.cuda.is_available():
            return True
    warnings.warn("pin_memory needs tensors and an accelerator; memory stays as it is", stacklevel=4)
    return False


def _difference(plan: Plan, theirs: Any) -> str:
    """Return what makes global batches differ."""
    try:
        other = msgspec.convert(theirs, Plan)
    except (msgspec.ValidationError, UsageError):
        return "this is not the state of a SOLAR loader"
    ours = {
        "samples": (plan.num_samples, other.num_samples),
        "seed": (plan.seed, other.seed),
        "drop_last": (plan.drop_last, other.drop_last),
        "samples in a step of all ranks": (plan.shuffle.global_batch, other.shuffle.global_batch),
    }
    found = "; ".join(f"{name}: {here} here, {there} there" for name, (here, there) in ours.items() if here != there)
    size = other.shuffle.global_batch / plan.num_ranks
    hint = f" (batch_size={size:g} with these {plan.num_ranks} ranks)" if size.is_integer() else ""
    return f"the state is of other batches: {found}{hint}"
