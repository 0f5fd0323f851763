"""Prediction of the points of a finer lattice from their neighbours on all sides, fast: see ref.py for the arithmetic.

A stretch of a row at a time, so that every loop vectorises. No fast-math and no contraction anywhere: encoder and
decoder, and every machine, must round alike.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.interpolation.ref import _ROUND, LIMIT
from trimtab.kernels.jit import kernel

__all__ = [
    "LIMIT",
    "decode_class",
    "encode_class",
    "fill_margins",
    "group_means",
    "join_class",
    "merge",
    "misses",
    "products",
    "repeat_margins",
]

_FLOATS = (types.float32, types.float64)
_VECTOR = types.Array(types.int64, 1, "C", readonly=True)
_BLOCK = 4096
_CODES = types.Array(types.int32, 1, "C", readonly=True)
_inline = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")
f64, i32, u64 = np.float64, np.int32, np.uint64


def _read(scalar):
    return types.Array(scalar, 1, "C", readonly=True)


@_inline
def _sum_row(grids, place, offsets, weights, sums):
    """Sum the neighbours of a row of points that begins at `place`. Unsigned indices need no test for negative ones."""
    zero = sums.dtype.type(0)
    for k in range(sums.size):
        sums[k] = zero
    for t in range(0, offsets.size, 4):
        a0, a1 = u64(place + offsets[t]), u64(place + offsets[t + 1])
        a2, a3 = u64(place + offsets[t + 2]), u64(place + offsets[t + 3])
        w0, w1, w2, w3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        for k in range(u64(sums.size)):
            first = w0 * grids[a0 + k] + w1 * grids[a1 + k]
            sums[k] = sums[k] + (first + (w2 * grids[a2 + k] + w3 * grids[a3 + k]))
    for k in range(sums.size):
        sums[k] = sums[k] if abs(sums[k]) < np.inf else zero


@kernel(
    *(
        types.void(
            _read(scalar),
            types.int64,
            _VECTOR,
            scalar[::1],
            types.int64,
            _VECTOR,
            _VECTOR,
            _VECTOR,
            _read(scalar),
            types.float64,
            types.boolean,
            types.Array(types.uint8, 1, "C", readonly=True),
            types.Array(types.float64, 2, "C", readonly=True),
            types.int32[::1],
        )
        for scalar in _FLOATS
    )
)
def encode_class(
    x, x_start, x_strides, grids, start, strides, shape, offsets, weights, step, snap, kinds, margins, codes
):
    num, inverse, widest = shape[2], 1.0 / step, f64(margins.shape[1])
    sums_room, row_room = np.empty(min(num, _BLOCK), grids.dtype), np.empty(min(num, _BLOCK), grids.dtype)
    for r in range(shape[0] * shape[1]):
        i, j = r // shape[1], r % shape[1]
        for o in range(0, num, _BLOCK):
            size = min(_BLOCK, num - o)
            sums, row = sums_room[:size], row_room[:size]
            place = start + i * strides[0] + j * strides[1] + o
            _sum_row(grids, place, offsets, weights, sums)
            source = x_start + i * x_strides[0] + j * x_strides[1] + o * x_strides[2]
            if x_strides[2] == 2:
                pairs = x[source : source + 2 * size - 1]
                for k in range(size):
                    row[k] = pairs[2 * k]
            else:
                for k in range(size):
                    row[k] = x[source + k * x_strides[2]]
            c, points = codes[r * num + o : r * num + o + size], grids[place : place + size]
            if snap:
                for k in range(size):
                    origin = np.rint(f64(sums[k]) * inverse)
                    d = f64(row[k]) * inverse - origin
                    d = ((d if abs(d) < LIMIT else 0.0) + _ROUND) - _ROUND
                    c[k] = i32(d)
                    points[k] = (origin + d) * step
            elif kinds.size > 0:
                kind = kinds[r * num + o : r * num + o + size]
                for k in range(size):
                    origin = f64(sums[k])
                    d = (f64(row[k]) - origin) * inverse
                    d = d if abs(d) < LIMIT else 0.0
                    m = (abs(d) + _ROUND) - _ROUND
                    if m > 0.0 and abs(d) - m + 0.5 < margins[u64(kind[k]), u64(min(m, widest)) - u64(1)]:
                        m -= 1.0
                    d = m if d > 0.0 else -m
                    c[k] = i32(d)
                    points[k] = origin + d * step
            else:
                for k in range(size):
                    origin = f64(sums[k])
                    d = (f64(row[k]) - origin) * inverse
                    d = ((d if abs(d) < LIMIT else 0.0) + _ROUND) - _ROUND
                    c[k] = i32(d)
                    points[k] = origin + d * step


@kernel(
    *(
        types.void(
            scalar[::1],
            types.int64,
            _VECTOR,
            _VECTOR,
            _VECTOR,
            _read(scalar),
            types.float64,
            types.boolean,
            _CODES,
        )
        for scalar in _FLOATS
    )
)
def decode_class(grids, start, strides, shape, offsets, weights, step, snap, codes):
    num, inverse = shape[2], 1.0 / step
    room = np.empty(min(num, _BLOCK), grids.dtype)
    for r in range(shape[0] * shape[1]):
        for o in range(0, num, _BLOCK):
            size = min(_BLOCK, num - o)
            sums = room[:size]
            place = start + r // shape[1] * strides[0] + r % shape[1] * strides[1] + o
            _sum_row(grids, place, offsets, weights, sums)
            c, points = codes[r * num + o : r * num + o + size], grids[place : place + size]
            if snap:
                for k in range(size):
                    points[k] = (np.rint(f64(sums[k]) * inverse) + f64(c[k])) * step
            else:
                for k in range(size):
                    points[k] = f64(sums[k]) + f64(c[k]) * step


@_inline
def _extend(grids, a, b, target, width):
    """Write 2 a - b for rows of grids."""
    x, y, z = grids[a : a + width], grids[b : b + width], grids[target : target + width]
    for k in range(width):
        z[k] = x[k] + (x[k] - y[k])


@kernel(
    *(
        types.void(
            _read(scalar),
            _read(types.uint8),
            types.int64,
            _VECTOR,
            scalar[::1],
            scalar[::1],
            types.int64,
            _VECTOR,
            _VECTOR,
            types.int32[::1],
            _CODES,
        )
        for scalar in _FLOATS
    )
)
def join_class(values, known, x_start, x_strides, grids, lacking, start, strides, shape, codes, lacking_codes):
    num = shape[2]
    zero = grids.dtype.type(0)
    for r in range(shape[0] * shape[1]):
        i, j = r // shape[1], r % shape[1]
        place = start + i * strides[0] + j * strides[1]
        source = x_start + i * x_strides[0] + j * x_strides[1]
        points, rest = grids[place : place + num], lacking[place : place + num]
        own, other = codes[r * num : r * num + num], lacking_codes[r * num : r * num + num]
        for k in range(num):
            at = u64(source + k * x_strides[2])
            if known[at]:
                points[k] = values[at] + rest[k]
                own[k] = other[k]
            else:
                rest[k] = zero


@kernel(*(types.void(scalar[::1], types.int64, _VECTOR, _VECTOR, _VECTOR) for scalar in _FLOATS))
def fill_margins(grids, start, strides, shape, live):
    s0, s1, n0, n1, n2 = strides[0], strides[1], shape[0], shape[1], shape[2]
    begin, width = start, n2
    if live[2] > 0:
        inner = 1 if n2 > 1 else 0
        for i in range(n0):
            for j in range(n1):
                p = start + i * s0 + j * s1
                last = p + n2 - 1
                grids[p - 1] = grids[p] + (grids[p] - grids[p + inner])
                after = grids[last] + (grids[last] - grids[last - inner])
                grids[last + 1] = after
                grids[last + 2] = after + (after - grids[last])
        begin, width = begin - 1, width + 3
    if live[1] > 0:
        inner = s1 if n1 > 1 else 0
        for i in range(n0):
            p = begin + i * s0
            _extend(grids, p, p + inner, p - s1, width)
            p += (n1 - 1) * s1
            _extend(grids, p, p - inner, p + s1, width)
            _extend(grids, p + s1, p, p + 2 * s1, width)
        begin -= s1
        n1 += 3
    if live[0] > 0:
        inner = s0 if n0 > 1 else 0
        for j in range(n1):
            p = begin + j * s1
            _extend(grids, p, p + inner, p - s0, width)
            p += (n0 - 1) * s0
            _extend(grids, p, p - inner, p + s0, width)
            _extend(grids, p + s0, p, p + 2 * s0, width)


@kernel(types.void(types.uint8[::1], types.int64, _VECTOR, _VECTOR, _VECTOR))
def repeat_margins(grids, start, strides, shape, live):
    s0, s1, n0, n1, n2 = strides[0], strides[1], shape[0], shape[1], shape[2]
    begin, width = start, n2
    if live[2] > 0:
        for i in range(n0):
            for j in range(n1):
                p = start + i * s0 + j * s1
                grids[p - 1] = grids[p]
                grids[p + n2] = grids[p + n2 + 1] = grids[p + n2 - 1]
        begin, width = begin - 1, width + 3
    if live[1] > 0:
        for i in range(n0):
            p = begin + i * s0
            grids[p - s1 : p - s1 + width] = grids[p : p + width]
            p += (n1 - 1) * s1
            for k in range(1, 3):
                grids[p + k * s1 : p + k * s1 + width] = grids[p : p + width]
        begin -= s1
        n1 += 3
    if live[0] > 0:
        for j in range(n1):
            p = begin + j * s1
            grids[p - s0 : p - s0 + width] = grids[p : p + width]
            p += (n0 - 1) * s0
            for k in range(1, 3):
                grids[p + k * s0 : p + k * s0 + width] = grids[p : p + width]


@kernel(
    *(
        types.void(scalar[::1], _VECTOR, _VECTOR, _VECTOR, scalar[::1], types.int64, _VECTOR)
        for scalar in (types.uint8, *_FLOATS)
    )
)
def merge(grids, starts, strides, extents, out, out_start, out_strides):
    n = extents[2]
    half = n // 2
    for i in range(extents[0]):
        for j in range(extents[1]):
            slot = (i & 1) << 2 | (j & 1) << 1
            shift = (i >> 1) * strides[0] + (j >> 1) * strides[1]
            place = out_start + i * out_strides[0] + j * out_strides[1]
            even = grids[starts[slot] + shift : starts[slot] + shift + n - half]
            odd = grids[starts[slot + 1] + shift : starts[slot + 1] + shift + half]
            target = out[place : place + n]
            for k in range(half):
                target[2 * k] = even[k]
                target[2 * k + 1] = odd[k]
            if n > 2 * half:
                target[n - 1] = even[half]


@kernel(*(types.int64(_read(scalar), _read(scalar), types.float64, types.uint32[::1]) for scalar in _FLOATS))
def misses(x, y, limit, positions):
    count = 0
    for o in range(0, x.size, _BLOCK):
        a, b = x[o : o + _BLOCK], y[o : o + _BLOCK]
        good = 0
        for k in range(a.size):
            good += np.int64((abs(f64(b[k]) - f64(a[k])) <= limit) & (abs(a[k]) < np.inf))
        if good < a.size:
            for k in range(a.size):
                if not (abs(f64(b[k]) - f64(a[k])) <= limit and abs(a[k]) < np.inf):
                    positions[count] = np.uint32(o + k)
                    count += 1
    return count


@kernel(
    *(types.void(_read(scalar), _VECTOR, _VECTOR, _VECTOR, types.float64[:, ::1]) for scalar in (types.uint8, *_FLOATS))
)
def group_means(x, points, offsets, sizes, means):
    at = 0
    for g in range(sizes.size):
        mean = means[g]
        mean[:] = 0.0
        for t in range(at, at + sizes[g]):
            offset = offsets[t]
            for k in range(points.size):
                mean[k] += f64(x[u64(points[k] + offset)])
        share = 1.0 / f64(sizes[g])
        for k in range(points.size):
            mean[k] *= share
        at += sizes[g]


@kernel(types.void(types.Array(types.float64, 2, "C", readonly=True), _read(types.float64), types.float64[:, ::1]))
def products(vectors, shares, gram):
    num = shares.size
    size = (num + 15) // 16 * 16
    padded, weighted, sums = np.zeros((vectors.shape[0], size)), np.zeros(size), np.empty(16)
    for i in range(vectors.shape[0]):
        row = padded[i]
        for k in range(num):
            row[k] = vectors[i, k]
            weighted[k] = row[k] * shares[k]
        for j in range(i + 1):
            other = padded[j]
            sums[:] = 0.0
            for o in range(0, size, 16):
                a, b = weighted[o : o + 16], other[o : o + 16]
                for k in range(16):
                    sums[k] += a[k] * b[k]
            total = 0.0
            for k in range(16):
                total += sums[k]
            gram[i, j] = gram[j, i] = total
