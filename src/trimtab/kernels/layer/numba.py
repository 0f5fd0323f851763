"""One layer of a network in whole numbers, fast: see ref.py for the arithmetic.

Four rows at a time, so that each weight is loaded once for four. Sums are exact whatever their order, so that the
compiler's is as good as any.
"""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.layer.ref import EXACT, largest_sum

__all__ = ["EXACT", "forward", "largest_sum"]

_READ = types.Array(types.float32, 1, "C", readonly=True)
_READ_ROWS = types.Array(types.float32, 2, "C", readonly=True)
_INDEX = types.Array(types.int32, 2, "C", readonly=True)
f32, u64 = np.float32, np.uint64


@kernel(types.void(_READ_ROWS, _INDEX, _READ_ROWS, _READ, _READ, types.float64, types.float64, types.float32[:, ::1]))
def forward(a, index, weights, bias, scale, low, high, out):
    num_places, fan_in = index.shape
    width = weights.shape[1]
    low, high = f32(low), f32(high)
    inputs, sums = np.empty((4, fan_in), np.float32), np.empty((4, width), np.float32)
    r0, r1, r2, r3 = inputs[0], inputs[1], inputs[2], inputs[3]
    s0, s1, s2, s3 = sums[0], sums[1], sums[2], sums[3]
    num_rows = len(a) * num_places
    for start in range(0, num_rows, 4):
        for lane in range(4):
            row = min(start + lane, num_rows - 1)
            source, seen, copy = a[row // num_places], index[row % num_places], inputs[lane]
            for k in range(fan_in):
                copy[k] = source[u64(seen[k])]
        for c in range(width):
            s0[c], s1[c], s2[c], s3[c] = bias[c], bias[c], bias[c], bias[c]
        whole = fan_in // 4 * 4
        for k in range(0, whole, 4):
            w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
            a0, a1, a2, a3 = r0[k], r0[k + 1], r0[k + 2], r0[k + 3]
            b0, b1, b2, b3 = r1[k], r1[k + 1], r1[k + 2], r1[k + 3]
            c0, c1, c2, c3 = r2[k], r2[k + 1], r2[k + 2], r2[k + 3]
            d0, d1, d2, d3 = r3[k], r3[k + 1], r3[k + 2], r3[k + 3]
            for c in range(width):
                s0[c] += (a0 * w0[c] + a1 * w1[c]) + (a2 * w2[c] + a3 * w3[c])
                s1[c] += (b0 * w0[c] + b1 * w1[c]) + (b2 * w2[c] + b3 * w3[c])
                s2[c] += (c0 * w0[c] + c1 * w1[c]) + (c2 * w2[c] + c3 * w3[c])
                s3[c] += (d0 * w0[c] + d1 * w1[c]) + (d2 * w2[c] + d3 * w3[c])
        for k in range(whole, fan_in):
            for lane in range(4):
                x, own = inputs[lane, k], sums[lane]
                for c in range(width):
                    own[c] += x * weights[k, c]
        for lane in range(min(4, num_rows - start)):
            row = start + lane
            place = row % num_places * width
            target, own = out[row // num_places, place : place + width], sums[lane]
            for c in range(width):
                target[c] = min(max(np.floor(own[c] * scale[c]), low), high)
    for n in range(len(out)):
        out[n, out.shape[1] - 1] = f32(0)
