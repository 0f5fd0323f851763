"""Reading ahead: the coming steps of a rank, and their samples in a ring of memory before they are needed.

Where reading is quick, as from the page cache, this would cost more than it saves: steps are then read when they are
taken, straight into their batch.
"""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from trimtab.data.plan import STORE, Plan
from trimtab.data.pool import Rows, empty_rows
from trimtab.data.rank import RankPlan, Step
from trimtab.data.store import Store, sample_bytes

try:
    import resource
except ImportError:  # not on Windows
    resource = None
_THREAD = getattr(resource, "RUSAGE_THREAD", None)

_MOST_STEPS = 64
"""Steps that are known ahead at most, where they read little."""
_MOST_DIRECT = 16
"""The same, where they are read when they are taken."""
_WORTH = 2.5e-3  # seconds of reading for which another thread is worth its waking
_WAIT = 2e-5  # seconds that storage lets a sample wait from which reading ahead pays
_WORK, _WORK_SPEED = 5e-5, 1e9  # work on a sample from which threads do: seconds, and bytes a second beside them
_JOIN_SECONDS = 10.0


@dataclass(slots=True)
class Round:
    """Samples of some steps that are read together. The ring has them from row `begin` on."""

    samples: np.ndarray
    rows: Rows
    parts_left: int = 0


@dataclass(slots=True)
class Coming:
    """A step, and where what it reads will be."""

    step: Step
    read: np.ndarray
    """Positions in the batch that are read from the store."""
    lent_read: np.ndarray
    """Positions among what is lent that are."""
    round: Round | None = None
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows of the round: of `read`, then of `lent_read`."""
    is_last: bool = False
    """Of its round."""
    is_direct: bool = False
    """Whether whoever takes it reads it, by `Prefetch.read`: `read` is the last rows of the batch, or none."""

    @property
    def samples(self) -> np.ndarray:
        """What is read, int64."""
        return np.concatenate([self.step.samples[self.read], self.step.lent[self.lent_read]]).astype(np.int64)

    @property
    def can_be_direct(self) -> bool:
        """Whether what is read is the end of the batch, and nothing else."""
        num_reads = len(self.read)
        return not len(self.lent_read) and (not num_reads or int(self.read[0]) == len(self.step.samples) - num_reads)


class Prefetch:
    """Runs threads that plan a rank's steps and read their samples, in order, as far ahead as the ring has room.

    Steps are read in rounds of half the ring: the samples of several steps together, in the order of their numbers,
    so that a store can merge what lies close together. Once reading was seen to be quick, steps are left to `read`,
    until it is slow again.

    Args:
        plan: What to follow.
        rank: Of the plan.
        start: (epoch, step) to begin at.
        store: Where samples lie. Its `read` is called by all threads.
        capacity: Samples that the ring holds: two batches or more.
        num_threads: Threads that read.
        lending: Whether ranks send samples to each other; what would be borrowed is read if not.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        start: tuple[int, int],
        store: Store,
        *,
        capacity: int,
        num_threads: int,
        lending: bool,
    ) -> None:
        self._plan, self._rank, self._start, self._store, self._lending = plan, rank, start, store, lending
        self._capacity, self._num_threads = capacity, num_threads
        self._ring = _Ring(empty_rows(store.fields, capacity), capacity)
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)  # what whoever takes steps waits for
        self._freed = threading.Condition(self._lock)  # what planning waits for
        self._coming: deque[Coming] = deque()
        self._tasks: queue.SimpleQueue[tuple[Round, int, int] | None] = queue.SimpleQueue()
        self._closed = self._ended = False
        self._error: BaseException | None = None
        self._pace = _Pace(sample_bytes(store))
        self.num_reads = 0
        """Samples read so far."""
        self.num_bytes = 0
        """Bytes that came from storage so far."""
        self._threads = [threading.Thread(target=self._look_ahead, daemon=True, name="trimtab-plan")]
        self._threads[0].start()

    def next(self) -> Coming | None:
        """Return the next step once its samples are there; None behind the last one.

        Raises whatever planning or reading raised; `InterruptedError` once closed.
        """
        with self._lock:
            while True:
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise InterruptedError("the loader was closed")
                if self._coming and (self._coming[0].round is None or not self._coming[0].round.parts_left):
                    return self._coming.popleft()
                if self._ended and not self._coming:
                    return None
                self._arrived.wait()

    def release(self, coming: Coming) -> None:
        """Say that a step has been taken, in the order of `next`: its rows may be overwritten."""
        with self._lock:
            if coming.is_last and coming.round is not None:
                self._ring.give_back(coming.round)
            if coming.is_last or len(self._coming) <= _MOST_DIRECT // 2:
                self._freed.notify_all()

    def read(self, coming: Coming, rows: Rows) -> None:
        """Read what a direct step needs into the last rows of its batch."""
        if len(coming.read):
            self._read_rows(coming.samples, {name: x[coming.read[0] :] for name, x in rows.items()})

    def close(self) -> None:
        """End the threads. One that hangs in a read is waited for a few seconds, and then left to itself."""
        with self._lock:
            self._closed = True
            self._arrived.notify_all()
            self._freed.notify_all()
        for _ in self._threads[1:]:
            self._tasks.put(None)
        end = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
            self._arrived.notify_all()

    def _look_ahead(self) -> None:
        """Plan steps, and have them read."""
        try:
            together, num_reads = [], 0
            most = 1  # the first step is waited for: it is read alone
            for coming in self._needs():
                count = len(coming.read) + len(coming.lent_read)
                if together and (num_reads + count > most or len(together) == _MOST_STEPS // 2):
                    if not self._submit(together, num_reads):
                        return
                    together, num_reads, most = [], 0, self._capacity // 2
                if not together and self._pace.is_quick and coming.can_be_direct:
                    if not self._pass_on(coming):
                        return
                    continue
                together.append(coming)
                num_reads += count
            if self._submit(together, num_reads):
                with self._lock:
                    self._ended = True
                    self._arrived.notify_all()
        except BaseException as error:  # noqa: BLE001 (whoever waits for a batch raises it)
            self._fail(error)

    def _needs(self) -> Iterator[Coming]:
        """Yield the steps with what they read."""
        steps = self._plan.rank(self._rank, start=self._start)
        cold = _Cold(self._plan, steps)
        lent = np.empty(0, np.int64)
        for step in steps:
            reads = step.source == STORE if self._lending else step.slot < 0
            if cold.num_left:
                in_slots = np.flatnonzero(step.slot >= 0)
                reads[in_slots] = cold.take(step.epoch, step.samples[in_slots])
                lent = np.flatnonzero(cold.take(step.epoch, step.lent))
            elif len(lent):
                lent = lent[:0]
            yield Coming(step, reads.nonzero()[0], lent)

    def _pass_on(self, coming: Coming) -> bool:
        """Leave a step to whoever takes it; return False when closed."""
        coming.is_direct = True
        with self._lock:
            if len(self._coming) >= _MOST_DIRECT:
                while len(self._coming) > _MOST_DIRECT // 2 and not self._closed:
                    self._freed.wait()
            if self._closed:
                return False
            self._coming.append(coming)
            if len(self._coming) == 1:
                self._arrived.notify_all()
        return True

    def _submit(self, together: list[Coming], num_reads: int) -> bool:
        """Have steps read together, once the ring has room; return False when closed."""
        samples = np.concatenate([coming.samples for coming in together]) if together else np.empty(0, np.int64)
        order = np.argsort(samples, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(num_reads)
        with self._lock:
            while len(self._coming) + len(together) > _MOST_STEPS or not self._ring.has_room(num_reads):
                if self._closed:
                    return False
                self._freed.wait()
            if self._closed:
                return False
            read = self._ring.take(samples[order], self._store) if num_reads else None
            bounds = self._cuts(num_reads)
            if read is not None:
                read.parts_left = len(bounds) - 1
                self._start_threads(read.parts_left)
            begin = 0
            for coming in together:
                end = begin + len(coming.read) + len(coming.lent_read)
                coming.round, coming.rows, begin = read, place[begin:end], end
            if together:
                together[-1].is_last = True
            self._coming.extend(together)
            if read is None:
                self._arrived.notify_all()
        if read is not None:
            for begin, end in itertools.pairwise(bounds):
                self._tasks.put((read, begin, end))
        return True

    def _cuts(self, num_reads: int) -> list[int]:
        """Return where parts of a round begin and end: one a thread, or fewer where reading is quick."""
        useful = min(num_reads * self._pace.seconds / _WORTH, self._num_threads, num_reads) if num_reads else 0
        num_parts = max(math.ceil(useful), 1)
        return [num_reads * part // num_parts for part in range(num_parts + 1)]

    def _start_threads(self, num: int) -> None:
        """Have so many threads that read."""
        while len(self._threads) - 1 < num:
            name = f"trimtab-read-{len(self._threads) - 1}"
            self._threads.append(threading.Thread(target=self._read_parts, daemon=True, name=name))
            self._threads[-1].start()

    def _read_parts(self) -> None:
        """Read parts of rounds."""
        while (task := self._tasks.get()) is not None:
            if self._closed or self._error is not None:
                continue
            read, begin, end = task
            try:
                self._read_rows(read.samples[begin:end], {name: x[begin:end] for name, x in read.rows.items()})
            except BaseException as error:  # noqa: BLE001 (whoever waits for a batch raises it)
                self._fail(error)
                continue
            with self._lock:
                read.parts_left -= 1
                if not read.parts_left:
                    self._arrived.notify_all()

    def _read_rows(self, samples: np.ndarray, rows: Rows) -> None:
        num_waits, begun, worked = _num_waits(), time.monotonic(), time.thread_time()
        num_bytes = self._store.read(samples, rows)
        worked, seconds = time.thread_time() - worked, time.monotonic() - begun
        # a thread that did not wait, but was stopped for others to work, will not read sooner with others beside it
        waited = 0.0 if num_waits is not None and _num_waits() == num_waits else seconds - worked
        with self._lock:
            self._pace.note(worked / len(samples), waited / len(samples))
            self.num_reads += len(samples)
            self.num_bytes += num_bytes


class _Pace:
    """How long reading takes, as it was seen last.

    A quicker read counts fully, a slower one in part: it may have waited for a processor.
    """

    def __init__(self, num_bytes: int) -> None:
        self._most_work = _WORK + num_bytes / _WORK_SPEED
        self.seconds = math.inf
        """A sample."""
        self._waited = math.inf

    def note(self, worked: float, waited: float) -> None:
        """Take in how long a sample took: work, and waiting for storage."""
        seconds = worked + waited
        self.seconds = seconds if seconds < self.seconds else (7 * self.seconds + seconds) / 8
        self._waited = waited if waited < self._waited else (7 * self._waited + waited) / 8

    @property
    def is_quick(self) -> bool:
        """Whether reading takes less than having other threads do it."""
        return self._waited < _WAIT and self.seconds - self._waited < self._most_work


def _num_waits() -> int | None:
    """Return how often this thread has begun to wait for something; None where the system does not tell."""
    return None if resource is None or _THREAD is None else resource.getrusage(_THREAD).ru_nvcsw


class _Ring:
    """Rows that rounds take and give back in the same order, each in one piece."""

    def __init__(self, rows: Rows, capacity: int) -> None:
        self._rows, self._capacity = rows, capacity
        self._taken: deque[tuple[int, int]] = deque()

    def has_room(self, num_rows: int) -> bool:
        return num_rows > self._capacity or self._place(num_rows) is not None

    def take(self, samples: np.ndarray, store: Store) -> Round:
        """Return rows for samples; more than the ring has, as a restart may need once, get memory of their own."""
        place = self._place(len(samples))
        if place is None:
            self._taken.append((0, 0))
            return Round(samples, empty_rows(store.fields, len(samples)))
        self._taken.append((place, place + len(samples)))
        return Round(samples, {name: x[place : place + len(samples)] for name, x in self._rows.items()})

    def give_back(self, _: Round) -> None:
        self._taken.popleft()

    def _place(self, num_rows: int) -> int | None:
        taken = [(begin, end) for begin, end in self._taken if end > begin]
        if not taken:
            return 0 if num_rows <= self._capacity else None
        (oldest, _), (newest, end) = taken[0], taken[-1]
        if newest >= oldest:
            if end + num_rows <= self._capacity:
                return end
            end = 0
        return end if end + num_rows <= oldest else None


class _Cold:
    """Samples that a restarted plan takes to be in slots, and that no rank of the node has read yet."""

    def __init__(self, plan: Plan, steps: RankPlan) -> None:
        self._shuffle = plan.shuffle
        self._epoch, step = steps.start
        self._begin = int(self._shuffle.offsets[step])
        self.num_left = len(steps.expected[0])
        self._cold = np.zeros(plan.num_samples if self.num_left else 0, bool)
        self._cold[steps.expected[0]] = True

    def take(self, epoch: int, samples: np.ndarray) -> np.ndarray:
        """Return which samples, of those in slots, must be read; they are there from now on."""
        while self.num_left and self._epoch < epoch:  # whatever was used in an epoch was read by whoever used it
            self._cold[self._shuffle.samples(self._epoch)[self._begin : self._shuffle.offsets[-1]]] = False
            self.num_left = int(self._cold.sum())
            self._epoch, self._begin = self._epoch + 1, 0
        if not self.num_left:
            return np.zeros(len(samples), bool)
        found = self._cold[samples]
        self._cold[samples] = False
        self.num_left = int(self.num_left - len(np.unique(samples[found])))
        return found
