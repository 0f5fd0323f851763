"""Jobs of thousands of ranks with known faults: what their files would hold, without the ranks.

A `Job` has tensor, pipeline and data groups, as large models are trained: each stage of a pipeline computes its layers
for each micro-batch, with an all-reduce in the tensor group after each; activations and their gradients pass
between stages; in the end each data group adds up gradients, and all ranks agree on a number. Operations are
played through one by one, so that a fault spreads as it would: whoever waits for a rank that does not come makes others
wait. Clocks of ranks show different times.

>>> run = Job(tensor=2, pipeline=2, data=2).run(faults=[Fault("stop", rank=5, step=6, place=3)], num_steps=8)
>>> run.verdict().kind, run.verdict().ranks
('H1', (5,))
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from trimtab.diagnose.analyze import diagnose
from trimtab.diagnose.frame import OPS, RECORD, Writer, frame_path, signature, text_key
from trimtab.diagnose.groups import Groups
from trimtab.diagnose.snapshot import Snapshot
from trimtab.diagnose.trace import Ring, Trace
from trimtab.diagnose.verdict import Verdict
from trimtab.errors import UsageError
from trimtab.kernels import load

FaultKind = Literal["stop", "skip", "other", "slow", "link", "freeze"]
_KINDS: tuple[str, ...] = ("stop", "skip", "other", "slow", "link", "freeze")  # 1, 2, ... in the kernel
TRUTH: dict[str, str] = {"stop": "H1", "skip": "H2", "other": "H2", "freeze": "H3", "slow": "S1", "link": "S2"}
"""The class of each fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong on one rank, at operation `place` of its program in step `step`.

    stop: it does not enter the operation, ever. skip: it leaves it out once. other: it calls another one in its place.
    freeze: the operation never ends. slow: it computes `factor` times as long from there on. link: operations
    between nodes that it takes part in last `factor` times as long from there on.
    """

    kind: FaultKind
    rank: int
    step: int = 0
    place: int = 0
    factor: float = 1.0


@dataclass(frozen=True)
class Job:
    """A job of `tensor` x `pipeline` x `data` ranks, tensor groups innermost. Times in seconds."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    micro_batches: int = 4
    layers: int = 1
    """Of a stage."""
    compute: float = 0.010
    """Of one layer on one micro-batch, forward."""
    jitter: float = 0.05
    """Standard deviation of every duration, as a share of it."""
    steps_announced: bool = True
    sites_known: bool = True

    @property
    def num_ranks(self) -> int:
        """Ranks of the job."""
        return self.tensor * self.pipeline * self.data

    @cached_property
    def groups(self) -> Groups:
        """Tensor groups, data groups and the world, then the directions between stages."""
        rank = np.arange(self.num_ranks, dtype=np.int32).reshape(self.data, self.pipeline, self.tensor)
        members: list[np.ndarray] = []
        names: list[str] = []
        if self.tensor > 1:
            members += list(rank.reshape(-1, self.tensor))
            names += [f"tensor {i}" for i in range(self.data * self.pipeline)]
        if self.data > 1:
            members += list(rank.reshape(self.data, -1).T)
            names += [f"data {i}" for i in range(self.pipeline * self.tensor)]
        members.append(rank.ravel())
        names.append("world")
        num_collective = len(names)
        for a, b in ((0, 1), (1, 0)):  # forward, backward
            near, far = rank[:, :-1].ravel(), rank[:, 1:].ravel()
            pairs = np.stack([(near, far)[a], (near, far)[b]], 1)
            members += list(pairs)
            names += [f"{s}>{r}" for s, r in pairs.tolist()]
        p2p = [i >= num_collective for i in range(len(names))]
        return Groups.build(self.num_ranks, members, names, p2p)

    @cached_property
    def _slots(self) -> np.ndarray:
        """int32 [ranks, 7]: tensor, data, world, forward in and out, backward in and out; -1 none."""
        num, stages, per = self.num_ranks, self.pipeline, self.tensor
        rank = np.arange(num)
        stage, t, d = rank // per % stages, rank % per, rank // (per * stages)
        at = 0
        slots = np.full((num, 7), -1, np.int32)
        if self.tensor > 1:
            slots[:, 0] = rank // per
            at += self.data * stages
        if self.data > 1:
            slots[:, 1] = at + stage * per + t
            at += stages * per
        slots[:, 2] = at
        at += 1
        edge = (d * (stages - 1) + stage) * per + t  # to the next stage
        num_edges = self.data * (stages - 1) * per
        slots[:, 4] = np.where(stage < stages - 1, at + edge, -1)
        slots[:, 3] = np.where(stage > 0, at + edge - per, -1)
        slots[:, 5] = np.where(stage < stages - 1, at + num_edges + edge, -1)
        slots[:, 6] = np.where(stage > 0, at + num_edges + edge - per, -1)
        return slots

    @cached_property
    def _programs(self) -> list[list[tuple[int, float, float, str, int, str]]]:
        """For each stage its operations in a step: slot, compute, cost, op, bytes, site."""
        programs = []
        for stage in range(self.pipeline):
            rows: list[tuple[int, float, float, str, int, str]] = []
            for sign, into, out in (("forward", 3, 4), ("backward", 5, 6)):
                times = self.compute * (1 if sign == "forward" else 2)
                has_in = stage > 0 if sign == "forward" else stage < self.pipeline - 1
                has_out = stage < self.pipeline - 1 if sign == "forward" else stage > 0
                for _ in range(self.micro_batches):
                    if has_in:
                        rows.append((into, 0.0, 2e-4, "recv", 1 << 20, f"pipeline.py:{40 + into}"))
                    for layer in range(self.layers):
                        if self.tensor > 1:
                            site = f"model.py:{100 + 2 * layer + (sign == 'backward')}"
                            rows.append((0, times, 3e-4, "all_reduce", 1 << 22, site))
                    if has_out:
                        rest = 0.0 if self.tensor > 1 else times * self.layers
                        rows.append((out, rest, 2e-4, "send", 1 << 20, f"pipeline.py:{50 + out}"))
            left = 0.0 if self.tensor > 1 or self.pipeline > 1 else 3 * self.compute * self.layers * self.micro_batches
            if self.data > 1:
                rows.append((1, left + 1e-3, 5e-3, "all_reduce", 1 << 26, "train.py:80"))
                left = 0.0
            rows.append((2, left + 1e-3, 1e-3, "all_reduce", 4, "train.py:90"))
            programs.append(rows)
        return programs

    def num_places(self, rank: int) -> int:
        """Return how many operations a step of this rank has."""
        return len(self._programs[rank // self.tensor % self.pipeline])

    def places(self, rank: int, op: str) -> list[int]:
        """Return at which places of its program a rank calls `op`."""
        rows = self._programs[rank // self.tensor % self.pipeline]
        return [i for i, row in enumerate(rows) if row[3] == op]

    def run(
        self,
        *,
        faults: Sequence[Fault] = (),
        num_steps: int = 16,
        seed: int = 0,
        capacity: int | None = None,
        buffer: np.ndarray | None = None,
    ) -> Run:
        """Play `num_steps` steps. Rings hold all operations unless `capacity`, a power of two, says otherwise.

        Raises:
            UsageError: a fault of an unknown kind, or on a rank or place that does not exist.
        """
        longest = max(len(program) for program in self._programs)
        capacity = capacity or 1 << (longest * num_steps).bit_length()
        if capacity & (capacity - 1):
            raise UsageError(f"capacity {capacity}: expected a power of two")
        for fault in faults:
            if fault.kind not in _KINDS or not 0 <= fault.rank < self.num_ranks:
                raise UsageError(f"{fault}: expected a rank below {self.num_ranks} and one of {', '.join(_KINDS)}")
            if not 0 <= fault.place < self.num_places(fault.rank):
                raise UsageError(f"{fault}: rank {fault.rank} has {self.num_places(fault.rank)} operations a step")
        num, shape = self.num_ranks, (self.num_ranks, capacity, 8)
        words = np.zeros(shape, np.uint64) if buffer is None else buffer.reshape(-1)[: np.prod(shape)].reshape(shape)
        words[:] = 0
        flat = [row for program in self._programs for row in program]
        sites = [text_key(row[5]) if self.sites_known else 0 for row in flat]
        what = [OPS.index(row[3]) << 16 for row in flat]
        place = [
            signature(row[3], dtype="bfloat16", num_elements=row[4] // 2) | site << 32
            for row, site in zip(flat, sites, strict=True)
        ]
        groups = self.groups
        generator = np.random.default_rng(seed)
        offset = generator.integers(10**12, 10**15, num)
        values = [float(1 << 20) if fault.kind == "other" else fault.factor for fault in faults]
        states = {name: np.zeros((num, 7), np.int64) for name in ("seqs", "dones", "exits")}
        run = Run(
            job=self, words=words, clock=np.zeros(num), offset=offset, numbers=np.zeros(num, np.int64),
            ended=np.zeros(num, np.uint8), **states,
        )  # fmt: skip
        load("replay").play(
            (np.arange(num) // self.tensor % self.pipeline).astype(np.int32),
            self._slots,
            np.concatenate([[0], np.cumsum([len(program) for program in self._programs])]),
            np.array([row[0] for row in flat], np.int32),
            np.array([row[1] * 1e9 for row in flat]),
            np.array([row[2] * 1e9 for row in flat]),
            np.array(what, np.uint64),
            np.array([row[4] for row in flat], np.uint64),
            np.array(place, np.uint64),
            groups.start,
            groups.ranks,
            np.array([not name.startswith("tensor") for name in groups.names], np.uint8),
            np.array([(_KINDS.index(f.kind) + 1, f.rank, f.step, f.place) for f in faults], np.int64).reshape(-1, 4),
            np.array(values, np.float64),
            offset,
            num_steps,
            1,
            self.jitter,
            seed,
            words,
            run.seqs,
            run.dones,
            run.exits,
            run.clock,
            run.numbers,
            run.ended,
        )
        if not self.steps_announced:
            words[:, :, 6] &= np.uint64(0xFFFFFFFF << 32)
        return run


@dataclass
class Run:
    """What a job left behind."""

    job: Job
    words: np.ndarray
    """uint64 [ranks, capacity, 8]: the rings."""
    seqs: np.ndarray
    dones: np.ndarray
    exits: np.ndarray
    clock: np.ndarray
    offset: np.ndarray
    numbers: np.ndarray
    ended: np.ndarray
    texts: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = {text_key(row[5]): row[5] for program in self.job._programs for row in program}

    @property
    def is_hung(self) -> bool:
        """Whether ranks did not come to their end."""
        return not self.ended.all()

    @cached_property
    def _places(self) -> np.ndarray:
        """int64 [ranks, 7]: the membership behind each slot, -1 none."""
        groups = self.job.groups
        order = np.lexsort((groups.ranks, groups.communicator))
        keys = groups.communicator[order].astype(np.int64) * self.job.num_ranks + groups.ranks[order]
        wanted = self.job._slots.astype(np.int64) * self.job.num_ranks + np.arange(self.job.num_ranks)[:, None]
        found = order[np.minimum(np.searchsorted(keys, wanted), keys.size - 1)]
        return np.where(self.job._slots >= 0, found, -1)

    def snapshot(self, *, hang_seconds: float = 60.0, present: np.ndarray | None = None) -> Snapshot:
        """Return the latest states, so long after the last event of the job; of the ranks in `present` (bool) alone."""
        groups = self.job.groups
        state = Snapshot.empty(groups)
        rank, slot = np.nonzero(self._places >= 0)
        at = self._places[rank, slot]
        state.present[:] = True
        state.finished[:] = self.ended > 0
        state.seen[at] = self.seqs[rank, slot] > 0
        state.seq[at], state.done[at] = self.seqs[rank, slot], self.dones[rank, slot]
        # a rank is inside one operation at most: its latest record
        now = self.clock.max() + hang_seconds * 1e9
        last = self.words[np.arange(self.job.num_ranks), self.numbers & (self.words.shape[1] - 1)]
        entered = last[:, 2].astype(np.int64) - self.offset
        is_latest = (last[:, 0] >> np.uint64(32) & np.uint64(0xFFFF)).astype(np.int64)[rank] == slot
        state.age[at] = (now - np.where(is_latest, entered[rank], self.exits[rank, slot] - self.offset[rank])) / 1e9
        mine = at[is_latest]
        latest = last[rank[is_latest]]
        state.signature[mine] = latest[:, 5] & np.uint64(0xFFFFFFFF)
        state.site[mine] = latest[:, 5] >> np.uint64(32)
        state.step[mine] = latest[:, 6] & np.uint64(0xFFFFFFFF)
        state.op[mine] = latest[:, 0] >> np.uint64(48) & np.uint64(0xFF)
        state.texts = self.texts
        if present is not None:
            gone = ~present
            state.present[gone] = state.finished[gone] = False
            hidden = gone[groups.ranks]
            state.seen[hidden], state.seq[hidden], state.done[hidden] = False, 0, 0
        return state

    def rings(self, ranks: Sequence[int] | np.ndarray | None = None) -> Iterator[Ring]:
        """Return the rings of all ranks, or of some."""
        for rank in range(self.job.num_ranks) if ranks is None else ranks:
            yield int(rank), self.words[rank].reshape(-1).view(RECORD), self._places[rank]

    def trace(self) -> Trace:
        """Return the decoded rings of all ranks."""
        return Trace.of_rings(self.rings(), self.job.groups, room=self.words.shape[0] * self.words.shape[1])

    def verdict(self, *, with_trace: bool = True, hang_seconds: float = 60.0, **options: Any) -> Verdict:
        """Return the verdict on this run; `options` are those of `analyze.diagnose`."""
        return diagnose(self.snapshot(hang_seconds=hang_seconds), self.trace() if with_trace else None, **options)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the files that the ranks would have kept (`frame`); their clocks do not go with this host's."""
        groups, capacity = self.job.groups, self.words.shape[1]
        for rank in range(self.job.num_ranks):
            writer = Writer(
                frame_path(folder, rank), rank=rank, world_size=self.job.num_ranks, capacity=capacity, job=1
            )
            for slot, c in enumerate(self.job._slots[rank].tolist()):
                members = groups.ranks[groups.members(c)] if c >= 0 else np.array([rank])
                name = groups.names[c] if c >= 0 else f"unused {slot} of {rank}"
                index = writer.communicator(name, members, p2p=c >= 0 and bool(groups.p2p[c]))
                mine = self.words[rank]
                whose = (mine[:, 0] >> np.uint64(32) & np.uint64(0xFFFF)) == index
                latest = int((mine[whose, 0] & np.uint64(0xFFFFFFFF)).max(initial=0))
                seq, done, exit_ns = (int(array[rank, slot]) for array in (self.seqs, self.dones, self.exits))
                writer.restore(index, seq=seq, record=latest, done=done, exit_ns=exit_ns)
            for text in self.texts.values():
                writer.text(text)
            writer.restore_ring(self.words[rank])
            writer.close(finished=bool(self.ended[rank]))
