"""How long this process has waited for data: whoever feeds the training adds to it, whoever watches it reads.

The two do not know each other. A watcher learns when a wait begins and ends, so that a rank that waits for ever is
seen to wait for data.

>>> with for_data():
...     batch = [1, 2, 3]
>>> total_seconds() >= 0
True
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[int, int], None]
"""Called with (since, waited): at the beginning of a wait with the time (`time.monotonic_ns`) and 0, at its end with 0
and the nanoseconds that it took. It must be quick, and must not raise."""

_lock = threading.Lock()
_listeners: list[Listener] = []
_total = 0


@contextmanager
def for_data() -> Iterator[None]:
    """Count the time inside the ``with`` block as waiting for data: in the training's thread, not in workers."""
    since = time.monotonic_ns()
    for listener in list(_listeners):
        listener(since, 0)
    try:
        yield
    finally:
        _ended(time.monotonic_ns() - since)


def add(seconds: float) -> None:
    """Add a wait that was measured elsewhere and is over."""
    _ended(round(seconds * 1e9))


def total_seconds() -> float:
    """Return how long this process has waited for data; a wait that goes on is not in it yet."""
    return _total / 1e9


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener` at the beginning and end of every wait from now on; return what ends that."""
    with _lock:
        _listeners.append(listener)

    def stop() -> None:
        with _lock:
            if listener in _listeners:
                _listeners.remove(listener)

    return stop


def _ended(waited: int) -> None:
    global _total
    with _lock:
        _total += waited
    for listener in list(_listeners):
        listener(0, waited)
