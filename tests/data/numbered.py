"""A store whose samples say their own numbers, and that counts what is read."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np

from trimtab.data import Field


class Numbered:
    """Samples of a vector and a number, all of them the number of the sample."""

    def __init__(self, num_samples: int, *, width: int = 3, seconds: float = 0, fails_at: int | None = None) -> None:
        self.num_samples, self.seconds, self.fails_at = num_samples, seconds, fails_at
        self.fields = {"x": Field((width,), np.dtype("f4")), "number": Field((), np.dtype("i8"))}
        self.reads: Counter[int] = Counter()
        self.readers: set[str] = set()
        self._lock = threading.Lock()

    def read(self, samples, out):
        if self.seconds:
            time.sleep(self.seconds)
        if self.fails_at is not None and self.fails_at in samples:
            raise OSError("the disk is gone")
        assert samples.dtype == np.int64
        reader = threading.current_thread().name
        self.readers.add(reader)
        assert reader == "trimtab-batches" or (np.diff(samples) >= 0).all()  # what is read ahead is sorted
        out["x"][:] = samples[:, None]
        out["number"][:] = samples
        with self._lock:
            self.reads.update(samples.tolist())
        return sum(x.nbytes for x in out.values())

    def close(self) -> None:
        pass


def check(batch, samples) -> None:
    """Assert that a batch has these samples, in order."""
    assert np.array_equal(batch["number"], samples)
    assert np.array_equal(batch["x"], np.repeat(np.asarray(samples)[:, None], batch["x"].shape[1], axis=1))
