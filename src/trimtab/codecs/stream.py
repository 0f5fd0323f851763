"""A buffer that pieces are appended to in their order, by whichever thread has one ready."""

from __future__ import annotations

import threading

import numpy as np


class Stream:
    """Bytes put together from numbered pieces, in the order of their numbers, after a head that is known last.

    Memory beyond the stream holds only pieces whose turn it is not yet: no more than there are threads, about.
    """

    def __init__(self, capacity: int, head_size: int = 0) -> None:
        self._data = np.empty(head_size + capacity, np.uint8)  # untouched pages take no memory
        self._head_size = head_size
        self._waiting: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self._next, self._end = 0, head_size
        self.overflowed = False

    def put(self, index: int, *parts: np.ndarray) -> None:
        """Add piece `index`, given in parts (uint8), whose memory may be used again afterwards.

        Where it does not fit, `overflowed` is set, and pieces are dropped from then on.
        """
        with self._lock:
            if index != self._next:
                self._waiting[index] = np.concatenate(parts)
                return
            self._append(parts)
            while (waiting := self._waiting.pop(self._next, None)) is not None:
                self._append((waiting,))

    def finish(self, head: np.ndarray | None = None) -> np.ndarray:
        """Return the bytes, with those of `head` (contiguous) in front; nothing can be added any more."""
        if head is not None:
            self._data[: self._head_size] = head.reshape(-1).view(np.uint8)
        self._data.resize(self._end, refcheck=False)
        return self._data

    def _append(self, parts: tuple[np.ndarray, ...]) -> None:
        end = self._end + sum(part.size for part in parts)
        self.overflowed = self.overflowed or end > self._data.size
        if not self.overflowed:
            np.concatenate(parts, out=self._data[self._end : end])
            self._end = end
        self._next += 1
