"""Small networks that estimate what a lossy codec lost, fast: see ref.py for what they are.

Elements are taken 64 at a time, one input, unit or weight after the other, so that loops run along the elements and
vectorise. Sums are taken in float32, which holds them exactly.
"""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.enhancer.ref import LARGEST_ACTIVATION, LARGEST_INPUT, SUM_LIMIT
from trimtab.kernels.jit import kernel
from trimtab.kernels.words import shift_right32

__all__ = ["LARGEST_ACTIVATION", "LARGEST_INPUT", "SUM_LIMIT", "correct"]

_BLOCK = 64
_LOW, _HIGH = np.int32(-LARGEST_INPUT), np.int32(LARGEST_INPUT)
_NONE, _FULL = np.float32(0), np.float32(LARGEST_ACTIVATION)
f32, i32, i16, u8 = np.float32, np.int32, np.int16, np.uint8
_ROWS, _FLAT = types.float32[:, ::1], types.float32[::1]


@kernel(types.void(_ROWS, types.int64, _FLAT, _FLAT, types.int64, _ROWS))
def _sum(values, num_inputs, weights, biases, num_units, sums):
    """Sum weighted inputs and the bias for each unit: four units at a time, then one by one."""
    done = num_units // 4 * 4
    for j in range(0, done, 4):
        row0, row1, row2, row3 = sums[j], sums[j + 1], sums[j + 2], sums[j + 3]
        w = weights[j * num_inputs : (j + 4) * num_inputs]
        bias0, bias1, bias2, bias3 = biases[j], biases[j + 1], biases[j + 2], biases[j + 3]
        for x in range(_BLOCK):
            row0[x], row1[x], row2[x], row3[x] = bias0, bias1, bias2, bias3
        for k in range(0, num_inputs - 1, 2):
            row, next_row = values[k], values[k + 1]
            w0, w1, w2, w3 = w[k], w[num_inputs + k], w[2 * num_inputs + k], w[3 * num_inputs + k]
            v0, v1, v2, v3 = w[k + 1], w[num_inputs + k + 1], w[2 * num_inputs + k + 1], w[3 * num_inputs + k + 1]
            for x in range(_BLOCK):
                a, b = row[x], next_row[x]
                row0[x] += w0 * a + v0 * b
                row1[x] += w1 * a + v1 * b
                row2[x] += w2 * a + v2 * b
                row3[x] += w3 * a + v3 * b
        for k in range(num_inputs // 2 * 2, num_inputs):
            row = values[k]
            w0, w1, w2, w3 = w[k], w[num_inputs + k], w[2 * num_inputs + k], w[3 * num_inputs + k]
            for x in range(_BLOCK):
                a = row[x]
                row0[x] += w0 * a
                row1[x] += w1 * a
                row2[x] += w2 * a
                row3[x] += w3 * a
    for j in range(done, num_units):
        own, w, bias = sums[j], weights[j * num_inputs : (j + 1) * num_inputs], biases[j]
        for x in range(_BLOCK):
            own[x] = bias
        for k in range(num_inputs):
            row, w0 = values[k], w[k]
            for x in range(_BLOCK):
                own[x] += w0 * row[x]


@kernel(types.void(_ROWS, types.int64, types.uint8[::1]))
def _activate(sums, num_units, shifts):
    for j in range(num_units):
        own, factor = sums[j], f32(1) / f32(1 << shifts[j])
        for x in range(_BLOCK):
            # cut first: what is left is not negative, so that truncation rounds down
            own[x] = f32(i32(min(max(own[x] * factor, _NONE), _FULL)))


@kernel(
    types.void(
        types.int32[::1],
        types.int64[::1],
        types.int64,
        types.int64[::1],
        types.int32[::1],
        types.int32[::1],
        types.int16[::1],
        types.int64[::1],
        types.int16[:, ::1],
        types.int32[:, ::1],
        types.uint8[:, ::1],
        types.int16[:, ::1],
    )
)
def correct(q, starts, num, taps, edges, origins, limits, sizes, weights, biases, shifts, out):
    num_taps, num_groups, num_layers = taps.size, limits.size, sizes.size - 1
    float_weights, float_biases = weights.astype(np.float32), biases.astype(np.float32)
    widest = 1
    for size in sizes[1:]:
        widest = max(widest, size)
    inputs = np.zeros((num_taps + 1, _BLOCK), np.float32)
    even, odd = np.zeros((widest, _BLOCK), np.float32), np.zeros((widest, _BLOCK), np.float32)
    groups, present = np.zeros(_BLOCK, np.int32), np.zeros(num_groups, np.uint8)
    for r in range(starts.size):
        for o in range(0, num, _BLOCK):
            size = min(num - o, _BLOCK)
            place = starts[r] + o
            centre, results = q[place : place + size], out[r, o : o + size]
            groups[:] = i32(0)
            for edge in edges:
                for x in range(size):
                    groups[x] += i32(edge <= centre[x])
            present[:] = u8(0)
            for x in range(size):
                present[groups[x]] = u8(1)
            results[:] = i16(0)
            for k in range(num_taps):
                near, row = q[place + taps[k] : place + taps[k] + size], inputs[k]
                for x in range(size):
                    row[x] = f32(min(max(i32(near[x] - centre[x]), _LOW), _HIGH))
            for g in range(num_groups):
                if present[g] == 0 or limits[g] == 0:
                    continue
                origin, row = origins[g], inputs[num_taps]
                for x in range(size):
                    row[x] = f32(min(max(i32(centre[x] - origin), _LOW), _HIGH))
                values, sums, weight, unit = inputs, even, 0, 0
                for layer in range(num_layers):
                    before, after = sizes[layer], sizes[layer + 1]
                    own_weights = float_weights[g, weight : weight + before * after]
                    sums = odd if layer % 2 else even
                    _sum(values, before, own_weights, float_biases[g, unit : unit + after], after, sums)
                    if layer + 1 < num_layers:
                        _activate(sums, after, shifts[g, unit : unit + after])
                    values = sums
                    weight += before * after
                    unit += after
                last, shift, limit = sums[0], i32(shifts[g, unit - 1]), i32(limits[g])
                for x in range(size):
                    value = shift_right32(i32(last[x]), shift)
                    value = min(max(value, i32(-limit)), limit)
                    if groups[x] == g:
                        results[x] = i16(value)
