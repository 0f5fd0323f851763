"""Differences between the elements of an array and of its base, fast: see ref.py for the meaning.

Arrays are as long as ref.py says, whatever a file holds: `kept` is all that these loops take from one.
"""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.differences.ref import BLOCK
from trimtab.kernels.jit import kernel

__all__ = ["BLOCK", "add", "classify", "subtract", "tally"]

_WORDS = (types.uint8, types.uint16, types.uint32, types.uint64)
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_KEPT = types.Array(types.boolean, 1, "C", readonly=True)
u8, u64 = np.uint8, np.uint64


def _read(word):
    return types.Array(word, 1, "C", readonly=True)


@kernel(
    *(
        types.int64(_read(word), _read(word), types.boolean, types.boolean[::1], word[::1], types.uint8[::1])
        for word in _WORDS
    )
)
def subtract(words, base, signed_float, kept, differences, classes):
    top = u64(8 * words.itemsize - 1)
    low = u64(max(8 * words.itemsize - 9, 0))
    flip = (u64(1) << top) - u64(1)
    count = 0
    for k in range(kept.size):
        start = BLOCK * k
        w, b = words[start : start + BLOCK], base[start : start + BLOCK]
        changed = u64(0)
        for i in range(w.size):
            changed |= u64(w[i]) ^ u64(b[i])
        kept[k] = changed != u64(0)
        if changed == u64(0):
            continue
        d, c = differences[count : count + w.size], classes[count : count + w.size]
        if signed_float:
            for i in range(w.size):
                x, y = u64(w[i]), u64(b[i])
                d[i] = (x ^ ((u64(0) - (x >> top)) & flip)) - (y ^ ((u64(0) - (y >> top)) & flip))
            if top > u64(7):
                for i in range(w.size):
                    c[i] = u8(u64(b[i]) >> low)
            else:
                c[:] = u8(0)
        else:
            for i in range(w.size):
                d[i] = u64(w[i]) - u64(b[i])
            c[:] = u8(0)
        count += w.size
    return count


@kernel(*(types.int64(_read(word), types.boolean, _KEPT, types.uint8[::1]) for word in _WORDS))
def classify(base, signed_float, kept, classes):
    low = u64(max(8 * base.itemsize - 9, 0))
    by_bits = signed_float and base.itemsize > 1
    count = 0
    for k in range(kept.size):
        if kept[k]:
            b = base[BLOCK * k : BLOCK * k + BLOCK]
            c = classes[count : count + b.size]
            if by_bits:
                for i in range(b.size):
                    c[i] = u8(u64(b[i]) >> low)
            else:
                c[:] = u8(0)
            count += b.size
    return count


@kernel(*(types.void(_read(word), _read(word), types.boolean, _KEPT, word[::1]) for word in _WORDS))
def add(differences, base, signed_float, kept, words):
    top = u64(8 * words.itemsize - 1)
    flip = (u64(1) << top) - u64(1)
    count = 0
    for k in range(kept.size):
        start = BLOCK * k
        w, b = words[start : start + BLOCK], base[start : start + BLOCK]
        if not kept[k]:
            w[:] = b
            continue
        d = differences[count : count + w.size]
        if signed_float:
            for i in range(w.size):
                y = u64(b[i])
                x = (y ^ ((u64(0) - (y >> top)) & flip)) + u64(d[i])
                w[i] = x ^ ((u64(0) - ((x >> top) & u64(1))) & flip)
        else:
            for i in range(w.size):
                w[i] = u64(b[i]) + u64(d[i])
        count += w.size


@kernel(types.void(_BYTES, _BYTES, types.int64[:, ::1]))
def tally(tokens, classes, counts):
    # two tables, since counting a run of one token in a single table waits for its own stores
    even, odd = np.zeros(256 * 128, np.uint32), np.zeros(256 * 128, np.uint32)
    whole = tokens.size // 2 * 2
    for i in range(0, whole, 2):
        even[u64(classes[i]) << u64(7) | u64(tokens[i]) & u64(127)] += np.uint32(1)
        odd[u64(classes[i + 1]) << u64(7) | u64(tokens[i + 1]) & u64(127)] += np.uint32(1)
    if whole < tokens.size:
        even[u64(classes[whole]) << u64(7) | u64(tokens[whole]) & u64(127)] += np.uint32(1)
    for c in range(256):
        for t in range(128):
            counts[c, t] += np.int64(even[128 * c + t]) + np.int64(odd[128 * c + t])
