"""Caches replayed over a known sequence of uses, the specification.

U units have ``slots`` places for samples each, and every sample is held by one unit at most (``owner``, int32[N], -1
none). Each held sample has a key (``keys``, int64[N]); a full unit gives up the sample with the largest key, or does
not take a new one whose key is larger still. With the time of the next use as key this is Belady's rule; with the last
use, negated, it is "least recently used". Keys of samples that are held differ from each other.
"""

from __future__ import annotations

import numpy as np


def replay(
    samples: np.ndarray,
    offsets: np.ndarray,
    next_keys: np.ndarray,
    equal: bool,
    owner: np.ndarray,
    keys: np.ndarray,
    heap: np.ndarray,
    place: np.ndarray,  # noqa: ARG001
    sizes: np.ndarray,  # noqa: ARG001
    unit: np.ndarray,
    source: np.ndarray,
) -> None:
    """Use `samples` (int32[P]) step by step: steps are cut by `offsets` (int64[S + 1]), all units alike in each.

    In each step a held sample is used by its holder, and the others are read: by the units in turn as their batches
    fill up, where batches are to be `equal`, and what does not fit into its holder's batch is then read too; else
    equally many by each unit, or one more by the first ones. Then samples get their new keys (``next_keys``,
    int64[P]), in order: first those that are held, then those that were read and may be taken in.

    Changed: ``owner``, ``keys`` and the arrays that belong to this twin alone, ``heap`` (int32[U, slots]), ``place``
    (int32[N]) and ``sizes`` (int32[U], zeros at the start). Written for each position: ``unit``, who used it, and
    ``source``, who held it, -1 where it was read.
    """
    num_units, slots = heap.shape
    for t in range(len(offsets) - 1):
        step = range(int(offsets[t]), int(offsets[t + 1]))
        held, size = [0] * num_units, len(step) // num_units
        for position in step:
            k = int(owner[samples[position]])
            hit = k >= 0 and (held[k] < size or not equal)
            unit[position] = source[position] = k if hit else -1
            if hit:
                held[k] += 1
        missing = len(step) - sum(held)
        if equal:
            quota = [size - count for count in held]
        else:
            quota = [missing // num_units + (k < missing % num_units) for k in range(num_units)]
        for position in step:
            if unit[position] < 0:
                unit[position] = k = next(k for k in range(num_units) if quota[k])
                quota[k] -= 1
        for position in step:
            if owner[samples[position]] >= 0:
                keys[samples[position]] = next_keys[position]
        for position in step:
            if owner[samples[position]] < 0:
                _take_in(int(samples[position]), int(next_keys[position]), int(unit[position]), slots, owner, keys)


def _take_in(sample: int, key: int, k: int, slots: int, owner: np.ndarray, keys: np.ndarray) -> None:
    inside = np.flatnonzero(owner == k)
    if len(inside) >= slots:
        victim = inside[keys[inside].argmax()] if len(inside) else -1
        if victim < 0 or keys[victim] < key:
            return
        owner[victim] = -1
    owner[sample], keys[sample] = k, key


def assign(samples: np.ndarray, units: np.ndarray, free: np.ndarray, owner: np.ndarray) -> None:
    """Give samples without an owner to the units they are paired with, in order, where these have `free` slots.

    A unit's slots (int32[U]) are counted down.
    """
    for sample, k in zip(samples, units, strict=True):
        if owner[sample] < 0 and free[k] > 0:
            owner[sample] = k
            free[k] -= 1
