"""Reading many small parts of a file in few large requests: sorted, merged where that is quicker, several at a time.

Two parts i < j of a file are read in one request where the bytes between them take less time than another request
would: ``gap / bytes_per_second < latency_seconds``. Both are measured, or given.

Threads read at the same time, without a lock and without the GIL (`os.preadv`), each into its place.
"""

from __future__ import annotations

import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np

from trimtab.data.throttle import Throttle
from trimtab.errors import Corrupt, Truncated, UsageError
from trimtab.kernels.threads import for_each, threads

MOST_REQUEST = 1 << 22
"""Bytes from which requests are merged no further; one part may have more."""

_MOST_PARTS = 500  # of a request: the system takes 1,024 places at a time, and every gap has one
_LONG = 4  # gaps: a request of so many bytes is long enough for its latency not to matter much
_WORTH = 1e-3  # seconds of reading for which another thread is worth its start
_SLOW = 2e-4  # seconds of latency from which requests wait rather than work
_SMALL, _LARGE, _NUM_SMALL, _NUM_LARGE = 4096, 1 << 20, 9, 3  # bytes and number of the reads that measure

_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe must not be waited for

Task = Callable[[], int]
"""Reads something and returns how many bytes came from storage."""


class Costs(NamedTuple):
    """What a request costs: it takes ``latency_seconds + num_bytes / bytes_per_second``."""

    latency_seconds: float
    bytes_per_second: float

    @property
    def gap(self) -> int:
        """Bytes that are as quickly read as left out."""
        return int(min(self.latency_seconds * self.bytes_per_second, 2.0**40))

    def seconds(self, num_requests: int, num_bytes: int) -> float:
        """Return how long requests take one after the other."""
        return num_requests * self.latency_seconds + num_bytes / self.bytes_per_second


USUAL = Costs(latency_seconds=1e-4, bytes_per_second=1e9)
"""Where too little can be read to measure."""


class Identity(NamedTuple):
    """What tells whether a file is still the one that was opened."""

    num_bytes: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


class File:
    """An open file that any thread reads at any offset, and any process that was forked.

    Raises:
        Corrupt: it is not the file that `expected` describes.
        UsageError: it is no regular file.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], expected: Identity | None = None) -> None:
        self.path = path
        self.fd = os.open(path, _FLAGS)
        found = os.fstat(self.fd)
        self.identity = Identity.of(found)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise UsageError(f"{path} is not a file")
        if expected is not None and expected != self.identity:
            self.close()
            raise Corrupt(f"{path} was replaced or written since the store was opened; open the store again")

    @property
    def num_bytes(self) -> int:
        """Its size when it was opened."""
        return self.identity.num_bytes

    def read(self, places: Sequence[memoryview], offset: int, num_bytes: int, what: Callable[[int], str]) -> int:
        """Fill `places`, which have `num_bytes` together, one after the other from `offset` on; return `num_bytes`.

        `what` says what lies at an offset, for the message of an error.

        Raises:
            Truncated: the file ends before.
            Corrupt: the file was replaced.
        """
        try:
            found = preadv(self.fd, places, offset)
            if found != num_bytes:
                self._read_rest(places, offset, num_bytes, found, what)
        except OSError as error:
            self.check(what(offset))
            error.filename = str(self.path)
            raise
        return num_bytes

    def _read_rest(
        self, places: Sequence[memoryview], offset: int, num_bytes: int, done: int, what: Callable[[int], str]
    ) -> None:
        """Go on after a short read: signals cause them, network file systems, and requests of 2 GiB and more."""
        found = done
        rest = list(places)
        while done < num_bytes:
            if not found:
                self.check(what(offset + done))
                raise Truncated(
                    f"{self.path} ends at byte {os.fstat(self.fd).st_size}: {what(offset + done)} needs "
                    f"{num_bytes} bytes from {offset} on"
                )
            while found and found >= len(rest[0]):
                found -= len(rest.pop(0))
            rest[0] = rest[0][found:]
            found = preadv(self.fd, rest, offset + done)
            done += found

    def check(self, what: str) -> None:
        """Look whether the file is still as it was.

        Raises:
            Truncated: it has become shorter.
            Corrupt: another file has taken its place.
        """
        now = os.fstat(self.fd)
        if now.st_size < self.num_bytes:
            raise Truncated(
                f"{self.path} was cut short while it was read, from {self.num_bytes} bytes to {now.st_size}: {what} "
                "is lost"
            )
        try:
            same = Identity.of(os.stat(self.path)) == self.identity
        except OSError:
            same = False
        if not same:
            raise Corrupt(f"{self.path} was replaced or written while it was read: {what} cannot be read")

    def close(self) -> None:
        """Close the file."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.close()


_seeking = threading.Lock()


def _seek_and_read(fd: int, places: Sequence[memoryview], offset: int) -> int:
    """Do what `os.preadv` does, for systems that lack it."""
    done = 0
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        for place in places:
            data = os.read(fd, len(place))
            place[: len(data)] = data
            done += len(data)
            if len(data) < len(place):
                break
    return done


preadv: Callable[[int, Sequence[memoryview], int], int] = getattr(os, "preadv", _seek_and_read)


class Rows:
    """Where samples of one field go: the rows of an array, and the bytes of each.

    `samples` int64[n] says which sample each row is of; `told` are their numbers for messages, if those are others.
    """

    def __init__(self, samples: np.ndarray, array: np.ndarray, told: np.ndarray | None = None) -> None:
        self.samples = samples
        self._told = samples if told is None else told
        self.array = array
        self.row_bytes = math.prod(array.shape[1:]) * array.itemsize
        whole = array.flags.c_contiguous and array.size > 0
        self._bytes = memoryview(array.reshape(-1).view(np.uint8)) if whole else None

    def __len__(self) -> int:
        return len(self.samples)

    def places(self) -> list[memoryview]:
        """Return the bytes of each row."""
        size, flat = self.row_bytes, self._bytes
        if flat is not None:
            return [flat[start : start + size] for start in range(0, size * len(self), size)]
        return [memoryview(self.array[k : k + 1].reshape(-1).view(np.uint8)) for k in range(len(self))]

    def what(self, row: int) -> str:
        """Return words for a row, for the message of an error."""
        return f"sample {self._told[row]}"


class Parts(NamedTuple):
    """Wanted parts of a file, in any order; `rows` says for whose sake, for the message of an error."""

    file: File
    offsets: np.ndarray
    num_bytes: np.ndarray
    rows: Sequence[int] | np.ndarray


class Reader:
    """How the files of a store are read: by so many threads, at such costs, maybe throttled.

    `costs` are measured where they are not given. Each thread that calls, and up to ``num_threads - 1`` that help it,
    have a request each in flight.

    Raises:
        UsageError: `num_threads` is less than 1.
    """

    def __init__(self, num_threads: int = 4, costs: Costs | None = None, throttle: Throttle | None = None) -> None:
        if num_threads < 1:
            raise UsageError(f"num_threads must be at least 1, got {num_threads}")
        self.num_threads = num_threads
        self.costs = costs
        self.throttle = throttle

    def costs_of(self, file: File) -> Costs:
        """Return what a request costs; the first call measures it on `file`, if it was not given."""
        if self.costs is None:
            random, memory = np.random.default_rng(0), memoryview(bytearray(_LARGE))

            def read(size: int) -> None:
                offset = int(random.integers(0, file.num_bytes - size + 1))
                self.fetch(file, [memory[:size]], offset, size, lambda at: f"byte {at}")

            self.costs = measure(read, file.num_bytes // 4)
        return self.costs

    def useful_threads(self, num_requests: int, num_bytes: int, costs: Costs) -> int:
        """Return how many threads are worth their start."""
        if self.num_threads == 1:
            return 1
        seconds = costs.seconds(num_requests, num_bytes)
        useful = num_requests if costs.latency_seconds > _SLOW else int(seconds / _WORTH)
        return max(1, min(self.num_threads, num_requests, useful))

    def fetch(
        self, file: File, places: Sequence[memoryview], offset: int, num_bytes: int, what: Callable[[int], str]
    ) -> int:
        """Make one request; see `File.read`."""
        if self.throttle is None:
            return file.read(places, offset, num_bytes, what)
        with self.throttled(num_bytes):
            return file.read(places, offset, num_bytes, what)

    def throttled(self, num_bytes: int) -> AbstractContextManager[None]:
        """Return what to read so many bytes in, so that it takes as long as the throttle says."""
        return nullcontext() if self.throttle is None else self.throttle.request(num_bytes)

    def fill(self, parts: Parts, rows: Rows, places: Sequence[memoryview], done: Callable[[int], None] | None) -> Tasks:
        """Return tasks that read each part into its place; `done` is called with the number of each filled part."""
        plan = _Requests(parts, self)
        waste = memoryview(bytearray(plan.widest))  # what lies between parts; threads overwrite one another's
        if done is None and plan.num_threads == 1:
            return Tasks([partial(_fill_here, parts, rows, places, plan, waste, self.throttle)], 1)
        tasks = [
            partial(self._fill, parts, rows, plan.order[first:last], plan.into(places, first, last, waste), done)
            for first, last in plan.requests()
        ]
        return Tasks(tasks, plan.num_threads)

    def _fill(
        self,
        parts: Parts,
        rows: Rows,
        chosen: list[int],
        places: Sequence[memoryview],
        done: Callable[[int], None] | None,
    ) -> int:
        offset, num_bytes = _extent(parts, chosen)
        found = self.fetch(parts.file, places, offset, num_bytes, partial(_what, parts, rows, chosen))
        if done is not None:
            for part in chosen:
                done(part)
        return found

    def hand(self, parts: Parts, rows: Rows, use: Callable[[int, memoryview], None]) -> Tasks:
        """Return tasks that read each part to memory of their own and hand it to `use`, with its number."""
        plan = _Requests(parts, self)
        chosen = [plan.order[first:last] for first, last in plan.requests()]
        return Tasks([partial(self._hand, parts, rows, some, use) for some in chosen], plan.num_threads)

    def _hand(self, parts: Parts, rows: Rows, chosen: list[int], use: Callable[[int, memoryview], None]) -> int:
        offset, num_bytes = _extent(parts, chosen)
        data = memoryview(np.empty(num_bytes, np.uint8))
        self.fetch(parts.file, [data], offset, num_bytes, partial(_what, parts, rows, chosen))
        for part in chosen:
            start = int(parts.offsets[part]) - offset
            use(part, data[start : start + int(parts.num_bytes[part])])
        return num_bytes


class Tasks(NamedTuple):
    """Independent tasks, and how many threads are worth their start."""

    tasks: list[Task]
    num_threads: int

    def __add__(self, other: Tasks) -> Tasks:  # type: ignore[override]
        return Tasks(self.tasks + other.tasks, max(self.num_threads, other.num_threads))

    def run(self) -> int:
        """Do them all, and return how many bytes came from storage; the first error is raised."""
        if self.num_threads < 2 or len(self.tasks) < 2:
            return sum(task() for task in self.tasks)
        found = [0] * len(self.tasks)

        def work(index: int) -> None:
            found[index] = self.tasks[index]()

        with threads(self.num_threads):
            for_each(work, len(self.tasks))
        return sum(found)


class _Requests:
    """Parts in the order of the file, and which of them are read together."""

    def __init__(self, parts: Parts, reader: Reader) -> None:
        costs = reader.costs_of(parts.file)
        order = parts.offsets.argsort(kind="stable")
        starts = parts.offsets[order]
        stops = starts + parts.num_bytes[order]
        self.order: list[int] = order.tolist()
        self.starts: list[int] = starts.tolist()
        self.stops: list[int] = stops.tolist()
        gaps = starts[1:] - stops[:-1]
        apart = gaps.view(np.uint64) > costs.gap  # negative ones look large, too
        ends = (apart.nonzero()[0] + 1).tolist()
        num, num_bytes = len(order), 0
        if len(ends) + 1 < num or reader.num_threads > 1:
            num_bytes = int(parts.num_bytes.sum())
        self.widest = 0
        if len(ends) + 1 < num:
            num_merged = num - 1 - len(ends)
            # no longer than leaves something for each thread, but not so short that latency rules
            most = min(max(num_bytes // reader.num_threads, _LONG * costs.gap, 1), MOST_REQUEST)
            if num_merged >= _MOST_PARTS or num_merged * (int(parts.num_bytes.max()) + costs.gap) >= most:
                first = np.maximum.accumulate(np.where(np.append(True, apart), np.arange(num), 0))
                piece = np.maximum((starts - starts[first]) // most, (np.arange(num) - first) // _MOST_PARTS)
                apart |= np.diff(piece) != 0
                ends = (apart.nonzero()[0] + 1).tolist()
            self.widest = int(gaps[~apart].max(initial=0))
        self._ends = [0, *ends, num] if num else [0]
        self.num_threads = reader.useful_threads(len(self._ends) - 1, num_bytes, costs)

    def into(self, places: Sequence[memoryview], first: int, last: int, waste: memoryview) -> list[memoryview]:
        """Return where the bytes of a request go: to the places of its parts, and those between them to waste."""
        found = [places[self.order[first]]]
        for k in range(first + 1, last):
            gap = self.starts[k] - self.stops[k - 1]
            if gap:
                found.append(waste[:gap])
            found.append(places[self.order[k]])
        return found

    def requests(self) -> Iterator[tuple[int, int]]:
        """Yield the first of each request's parts in `order`, and the end of the last."""
        return zip(self._ends[:-1], self._ends[1:], strict=True)


def _fill_here(
    parts: Parts,
    rows: Rows,
    places: Sequence[memoryview],
    plan: _Requests,
    waste: memoryview,
    throttle: Throttle | None,
) -> int:
    """Make all requests, one after the other: what a loader's threads do, and so without detours."""
    file, order, starts, stops, num_bytes = parts.file, plan.order, plan.starts, plan.stops, 0
    fd, first, last = file.fd, 0, 1
    try:
        for first, last in plan.requests():
            offset, size = starts[first], stops[last - 1] - starts[first]
            into = (places[order[first]],) if last - first == 1 else plan.into(places, first, last, waste)
            if throttle is None:
                found = preadv(fd, into, offset)
            else:
                with throttle.request(size):
                    found = preadv(fd, into, offset)
            if found != size:
                file.read(into, offset, size, partial(_what, parts, rows, order[first:last]))
            num_bytes += size
    except OSError as error:
        file.check(_what(parts, rows, order[first:last], starts[first]))
        error.filename = error.filename or str(file.path)
        raise
    return num_bytes


def _extent(parts: Parts, chosen: list[int]) -> tuple[int, int]:
    """Return where parts, in the order of the file, begin, and how many bytes they span."""
    offset, last = int(parts.offsets[chosen[0]]), chosen[-1]
    return offset, int(parts.offsets[last]) + int(parts.num_bytes[last]) - offset


def _what(parts: Parts, rows: Rows, chosen: list[int], offset: int) -> str:
    """Say which sample an offset belongs to: that of the last part that begins before."""
    before = [part for part in chosen if parts.offsets[part] <= offset]
    return f"{rows.what(int(parts.rows[before[-1]]))}, at byte {offset},"


def measure(read: Callable[[int], object], largest: int) -> Costs:
    """Return what a request costs, from a dozen requests: ``read(num_bytes)`` makes one at a place drawn at random.

    At most `largest` bytes are asked for.
    """
    large = min(_LARGE, largest)
    if large < 4 * _SMALL:
        return USUAL
    seconds: dict[int, list[float]] = {_SMALL: [], large: []}
    for size in [_SMALL] * _NUM_SMALL + [large] * _NUM_LARGE:
        begun = time.perf_counter()
        read(size)
        seconds[size].append(time.perf_counter() - begun)
    short, long = (float(np.median(times)) for times in seconds.values())
    bytes_per_second = (large - _SMALL) / max(long - short, 1e-7)
    return Costs(max(short - _SMALL / bytes_per_second, 0.0), bytes_per_second)
