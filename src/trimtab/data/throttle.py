"""A slow store, imitated: what a network file system or an object store costs, on the files of a fast disk.

The model: a thread is a stream, and a stream has one request in flight, which takes ``latency_seconds + num_bytes /
bytes_per_second``. Streams do not share anything. What the real read took is part of that time; what a sleep took too
long is taken off the next request of the same stream, at most one latency (the bucket of tokens).
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager

from trimtab.errors import UsageError


class Throttle:
    """Makes every request as slow as a store with this latency and this bandwidth of a stream.

    Give it to a store, as ``HDF5(path, throttle=Throttle(2e-3, 200e6))``, or put it around reads of another kind.
    A pickled throttle has the same numbers.

    Raises:
        UsageError: the latency is negative, or the bandwidth not positive.

    >>> throttle = Throttle(latency_seconds=1e-3, bytes_per_second=200e6)
    >>> with throttle.request(65_536):
    ...     data = b"x" * 65_536
    """

    def __init__(self, latency_seconds: float, bytes_per_second: float) -> None:
        if not latency_seconds >= 0:
            raise UsageError(f"latency_seconds must be at least 0, got {latency_seconds}")
        if not bytes_per_second > 0:
            raise UsageError(f"bytes_per_second must be more than 0, got {bytes_per_second}")
        self.latency_seconds = latency_seconds
        self.bytes_per_second = bytes_per_second
        self._stream = threading.local()

    def request(self, num_bytes: int) -> AbstractContextManager[None]:
        """Return what lets its ``with`` block take as long as a request of so many bytes would, at least."""
        return _Request(self._stream, self.latency_seconds, num_bytes / self.bytes_per_second)

    def __reduce__(self) -> tuple[type[Throttle], tuple[float, float]]:
        return Throttle, (self.latency_seconds, self.bytes_per_second)


class _Request:
    """One request; a class of its own, for a generator takes twice the time."""

    __slots__ = ("_latency_seconds", "_stream", "_until")

    def __init__(self, stream: threading.local, latency_seconds: float, transfer_seconds: float) -> None:
        self._stream, self._latency_seconds = stream, latency_seconds
        self._until = latency_seconds + transfer_seconds

    def __enter__(self) -> None:
        self._until += time.perf_counter()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            return
        stream = self._stream.__dict__
        until = self._until - stream.get("credit", 0.0)
        now = time.perf_counter()
        late = 0.0
        while now < until:
            time.sleep(until - now)
            now = time.perf_counter()
            late = min(max(now - until, 0.0), self._latency_seconds)
        stream["credit"] = late
