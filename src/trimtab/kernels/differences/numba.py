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
_STRETCH = 4096
u8, u64 = np.uint8, np.uint64


def _read(word):
    return types.Array(word, 1, "C", readonly=True)


@kernel(*(types.int64(_read(word), types.boolean, _KEPT, types.uint8[::1]) for word in _WORDS))
def classify(base, signed_float, kept, classes):
    low = u64(max(8 * base.itemsize - 9, 0))
    by_bits = signed_float and base.itemsize > 1
    count, k = 0, 0
    while k < kept.size:
        first = k
        while k < kept.size and kept[k]:
            k += 1
        b = base[BLOCK * first : BLOCK * k]
        c = classes[count : count + b.size]
        if by_bits:
            for i in range(b.size):
                c[i] = u8(u64(b[i]) >> low)
        else:
            c[:] = u8(0)
        count += b.size
        k += 1
    return count


@kernel(
    *(
        types.int64(_read(word), _read(word), types.boolean, types.boolean[::1], word[::1], types.uint8[::1])
        for word in _WORDS
    )
)
def subtract(words, base, signed_float, kept, differences, classes):
    top = u64(8 * words.itemsize - 1)
    flip = (u64(1) << top) - u64(1)
    for k in range(kept.size):
        w, b = words[BLOCK * k : BLOCK * k + BLOCK], base[BLOCK * k : BLOCK * k + BLOCK]
        changed = u64(0)
        for i in range(w.size):
            changed |= u64(w[i] ^ b[i])
        kept[k] = changed != u64(0)
    count, k = 0, 0
    while k < kept.size:
        first = k
        while k < kept.size and kept[k]:
            k += 1
        w, b = words[BLOCK * first : BLOCK * k], base[BLOCK * first : BLOCK * k]
        d = differences[count : count + w.size]
        if signed_float:
            for i in range(d.size):
                x, y = u64(w[i]), u64(b[i])
                d[i] = (x ^ ((u64(0) - (x >> top)) & flip)) - (y ^ ((u64(0) - (y >> top)) & flip))
        else:
            for i in range(d.size):
                d[i] = u64(w[i]) - u64(b[i])
        count += w.size
        k += 1
    return classify(base, signed_float, kept, classes)


@kernel(*(types.void(_read(word), _read(word), types.boolean, _KEPT, word[::1]) for word in _WORDS))
def add(differences, base, signed_float, kept, words):
    top = u64(8 * words.itemsize - 1)
    flip = (u64(1) << top) - u64(1)
    count, k = 0, 0
    while k < kept.size:
        first, moved = k, kept[k]
        while k < kept.size and kept[k] == moved:
            k += 1
        w, b = words[BLOCK * first : BLOCK * k], base[BLOCK * first : BLOCK * k]
        if not moved:
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


@kernel(types.void(_BYTES, _BYTES, _BYTES, types.uint8[::1], types.int64[:, ::1]))
def tally(tokens, classes, thresholds, contexts, counts):
    # four tables, since counting a run of one token in a single table waits for its own stores
    room = np.zeros((4, 128 * counts.shape[0]), np.uint32)
    n0, n1, n2, n3 = room[0], room[1], room[2], room[3]
    for start in range(0, tokens.size, _STRETCH):
        t, a = tokens[start : start + _STRETCH], classes[start : start + _STRETCH]
        c = contexts[start : start + t.size]
        c[:] = u8(0)
        for threshold in thresholds:
            for i in range(c.size):
                c[i] = u8(c[i] + u8(a[i] >= threshold))
        whole = t.size // 4 * 4
        for i in range(0, whole, 4):
            n0[u64(c[i]) << u64(7) | u64(t[i])] += np.uint32(1)
            n1[u64(c[i + 1]) << u64(7) | u64(t[i + 1])] += np.uint32(1)
            n2[u64(c[i + 2]) << u64(7) | u64(t[i + 2])] += np.uint32(1)
            n3[u64(c[i + 3]) << u64(7) | u64(t[i + 3])] += np.uint32(1)
        for i in range(whole, t.size):
            n0[u64(c[i]) << u64(7) | u64(t[i])] += np.uint32(1)
    for c in range(counts.shape[0]):
        for t in range(128):
            at = 128 * c + t
            counts[c, t] = np.int64(n0[at]) + np.int64(n1[at]) + np.int64(n2[at]) + np.int64(n3[at])
