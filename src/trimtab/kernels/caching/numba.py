"""Caches replayed over a known sequence of uses, fast: see ref.py. Units keep samples in heaps, largest key first."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.jit import kernel

_ROW, _TABLE, _LONG = types.int32[::1], types.int32[:, ::1], types.int64[::1]
i32, i64 = np.int32, np.int64
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")


@_inline
def _rise(row, index, sample, keys, place):
    """Write `sample` to the heap, at `index` or as far above it as its key belongs."""
    while index > 0:
        above = (index - 1) >> 1
        if keys[row[above]] >= keys[sample]:
            break
        row[index] = row[above]
        place[row[index]] = i32(index)
        index = above
    row[index] = sample
    place[sample] = i32(index)


@_inline
def _sink(row, size, index, sample, keys, place):
    """Write `sample` to the heap, at `index` or as far below it as its key belongs."""
    while 2 * index + 1 < size:
        below = 2 * index + 1
        if below + 1 < size and keys[row[below + 1]] > keys[row[below]]:
            below += 1
        if keys[row[below]] <= keys[sample]:
            break
        row[index] = row[below]
        place[row[index]] = i32(index)
        index = below
    row[index] = sample
    place[sample] = i32(index)


@kernel(
    types.void(
        *(types.Array(types.int32, 1, "C", readonly=True), _LONG, types.Array(types.int64, 1, "C", readonly=True)),
        *(types.boolean, _ROW, _LONG, _TABLE, _ROW, _ROW, _ROW, _ROW),
    )
)
def replay(samples, offsets, next_keys, equal, owner, keys, heap, place, sizes, unit, source):
    num_units, slots = heap.shape
    quota = np.empty(num_units, i64)
    for t in range(offsets.size - 1):
        begin, end = offsets[t], offsets[t + 1]
        size, missing = (end - begin) // num_units, end - begin
        quota[:] = 0
        for position in range(begin, end):
            k = owner[samples[position]]
            if k < 0 or (equal and quota[k] >= size):
                k = i32(-1)
            else:
                quota[k] += 1
                missing -= 1
            unit[position] = k
            source[position] = k
        for k in range(num_units):
            quota[k] = size - quota[k] if equal else missing // num_units + (k < missing % num_units)
        reader = 0
        for position in range(begin, end):
            if unit[position] < 0:
                while quota[reader] == 0:
                    reader += 1
                quota[reader] -= 1
                unit[position] = i32(reader)
        for position in range(begin, end):
            sample = samples[position]
            k = owner[sample]
            if k >= 0:
                before = keys[sample]
                keys[sample] = next_keys[position]
                if next_keys[position] > before:
                    _rise(heap[k], place[sample], sample, keys, place)
                else:
                    _sink(heap[k], i64(sizes[k]), place[sample], sample, keys, place)
        for position in range(begin, end):
            sample, key, k = samples[position], next_keys[position], unit[position]
            if owner[sample] >= 0 or slots == 0:
                continue
            row = heap[k]
            if sizes[k] < slots:
                keys[sample] = key
                sizes[k] += i32(1)
                _rise(row, i64(sizes[k] - 1), sample, keys, place)
            elif keys[row[0]] >= key:
                owner[row[0]] = i32(-1)
                keys[sample] = key
                _sink(row, slots, i64(0), sample, keys, place)
            else:
                continue
            owner[sample] = k


@kernel(types.void(_ROW, _ROW, _ROW, _ROW))
def assign(samples, units, free, owner):
    for i in range(samples.size):
        sample, k = samples[i], units[i]
        if owner[sample] < 0 and free[k] > 0:
            owner[sample] = k
            free[k] -= i32(1)
