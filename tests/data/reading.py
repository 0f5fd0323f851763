"""What the tests of stores share: reading, and comparing with the whole array."""

from __future__ import annotations

import numpy as np

from trimtab.data.store import Store


def read(store: Store, samples, names=None) -> dict[str, np.ndarray]:
    """Return rows of all fields, or of some, in memory that held something else."""
    samples = np.asarray(samples, np.int64)
    out = {}
    for name, field in store.fields.items():
        if names is None or name in names:
            out[name] = np.empty((len(samples), *field.shape), field.dtype)
            out[name].view(np.uint8).fill(0xA5) if out[name].ndim and out[name].dtype.kind != "b" else None
    store.read(samples, out)
    return out


def some_samples(num: int, seed: int = 0) -> np.ndarray:
    """Return samples in no order, some of them twice, some neighbours."""
    rng = np.random.default_rng(seed)
    start = int(rng.integers(0, num))
    return np.concatenate([rng.integers(0, num, 9), np.arange(start, min(num, start + 5)), [num - 1, 0, 0]])


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether arrays are equal in every bit, but for the byte order."""
    expected = expected.astype(expected.dtype.newbyteorder("="), copy=False)
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()
