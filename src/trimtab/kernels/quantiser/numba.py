"""Uniform and logarithmic quantisation of floating-point rows, fast: see ref.py for the arithmetic.

No fast-math and no contraction anywhere: encoder and decoder, and every machine, must round alike.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from trimtab.kernels.jit import kernel
from trimtab.kernels.quantiser.ref import (
    _EXP2,
    _HALF_ROOT,
    _LOG2,
    _ROUND,
    BFLOAT16,
    FLOAT16,
    INTEGER,
    LARGEST_INTEGER,
    LIMIT,
    NUM_SUMS,
)
from trimtab.kernels.words import prefetch

__all__ = [
    "LIMIT",
    "dequantise",
    "dequantise_exp2",
    "dequantise_integers",
    "extent",
    "quantise",
    "quantise_log2",
    "restore",
    "squared_error",
]

_FLOATS = (types.float32, types.float64)
_STARTS = types.Array(types.int64, 1, "C", readonly=True)
_MATRIX = types.Array(types.int32, 2, "C", readonly=True)
_BLOCK = 4096
_AHEAD = 8
_NUM_LANES = 512
_COEFFICIENTS = np.array(_EXP2)
_LOG2_COEFFICIENTS = np.array(_LOG2)
_INFINITY, _ONE = 0x7FF << 52, 1023 << 52
f64, f32, i64, i32, u8 = np.float64, np.float32, np.int64, np.int32, np.uint8


def _read(scalar):
    return types.Array(scalar, 1, "C", readonly=True)


@kernel(*(types.UniTuple(types.float64, 2)(_read(scalar)) for scalar in _FLOATS))
def extent(x):
    low, high = np.full(_NUM_LANES, x.dtype.type(np.inf), x.dtype), np.full(_NUM_LANES, x.dtype.type(-np.inf), x.dtype)
    for o in range(0, x.size, _NUM_LANES):
        piece = x[o : o + _NUM_LANES]
        a, b = low[: piece.size], high[: piece.size]
        for k in range(piece.size):
            v = piece[k]
            a[k] = v if v < a[k] and v > -np.inf else a[k]
            b[k] = v if v > b[k] and v < np.inf else b[k]
    smallest, largest = np.inf, -np.inf
    for k in range(_NUM_LANES):
        smallest, largest = min(smallest, f64(low[k])), max(largest, f64(high[k]))
    return smallest, largest


@numba.njit(nogil=True, error_model="numpy")
def _cut(y, bits, rounding):
    """Leave of the float32 `y`, whose bits are `bits`, what a 2-byte float keeps; there are no NaN."""
    if rounding == BFLOAT16:
        for k in range(y.size):
            bits[k] = i32(i32(bits[k] + i32(0x7FFF) + i32((bits[k] >> 16) & 1)) & i32(-0x10000))
    elif rounding == FLOAT16:
        for k in range(y.size):
            v = y[k]
            a = abs(v)
            small = (a + f32(0.5)) - f32(0.5)  # the last bit of the sum is that of a denormal float16
            if a < f32(2.0**-14):
                y[k] = small if v > 0 else -small
            elif a >= f32(65520.0):
                y[k] = f32(np.inf) if v > 0 else f32(-np.inf)
            else:
                bits[k] = i32(i32(bits[k] + i32(0xFFF) + i32((bits[k] >> 13) & 1)) & i32(-0x2000))


@kernel(
    *(
        types.int64(
            _read(scalar),
            _STARTS,
            types.float64,
            types.float64,
            types.int64,
            types.int64,
            types.int32[:, ::1],
            types.uint32[::1],
        )
        for scalar in _FLOATS
    )
)
def quantise(x, starts, step, bound, rounding, margin, q, outliers):
    num = q.shape[1] - 2 * margin
    inverse, count = 1.0 / step, 0
    whole = _ROUND if rounding == INTEGER else 0.0
    is_half = rounding in (FLOAT16, BFLOAT16)
    halves = np.empty(min(num, _BLOCK), x.dtype)
    bits = halves.view(np.int32)
    base = types.uintp(x.ctypes.data)
    for r in range(starts.size):
        start = starts[r]
        if num < _BLOCK:  # the hardware does not foresee short rows that do not follow one another
            ahead = base + types.uintp(starts[min(r + _AHEAD, starts.size - 1)] * x.itemsize)
            for k in range(0, num * x.itemsize, 64):
                prefetch(ahead + types.uintp(k))
        size = min(num, x.size - start)
        for o in range(0, size, _BLOCK):
            piece = x[start + o : start + min(o + _BLOCK, size)]
            values = q[r, margin + o : margin + o + piece.size]
            num_good = np.int64(0)
            for k in range(piece.size):
                v = f64(piece[k])
                rounded = v * inverse
                inside = abs(rounded) < LIMIT
                rounded = ((rounded if inside else 0.0) + _ROUND) - _ROUND
                values[k] = i32(rounded)
                stand_in = f64(x.dtype.type((rounded * step + whole) - whole))
                num_good += np.int64(inside & (abs(stand_in - v) <= bound))
            if is_half:
                y = halves[: piece.size]
                for k in range(piece.size):
                    y[k] = f64(values[k]) * step
                _cut(y, bits, rounding)
                num_good = np.int64(0)
                for k in range(piece.size):
                    v = f64(piece[k])
                    num_good += np.int64((abs(v * inverse) < LIMIT) & (abs(f64(y[k]) - v) <= bound))
            if num_good == piece.size:
                continue
            for k in range(piece.size):
                v = f64(piece[k])
                stand_in = f64(x.dtype.type((f64(values[k]) * step + whole) - whole))
                stand_in = f64(halves[k]) if is_half else stand_in
                if not (abs(v * inverse) < LIMIT and abs(stand_in - v) <= bound):
                    values[k] = q[r, margin + o + k - 1] if o + k > 0 else i32(0)
                    if count < outliers.size:
                        outliers[count] = np.uint32(r * num + o + k)
                    count += 1
        for k in range(max(size, 0), num):
            q[r, margin + k] = q[r, margin + k - 1] if k > 0 else i32(0)
    return count


@kernel(
    *(
        types.Tuple((types.float64, types.int64))(
            _read(scalar), _STARTS, types.int64, types.float64, types.float64, types.int64
        )
        for scalar in _FLOATS
    )
)
def squared_error(x, starts, num, step, bound, rounding):
    inverse, count = 1.0 / step, 0
    whole = _ROUND if rounding == INTEGER else 0.0
    sums = np.zeros(NUM_SUMS)
    stand_in = np.empty(NUM_SUMS, x.dtype)
    bits = stand_in.view(np.int32)
    for r in range(starts.size):
        start = starts[r]
        size = min(num, x.size - start)
        for o in range(0, size, NUM_SUMS):
            piece = x[start + o : start + min(o + NUM_SUMS, size)]
            y, total = stand_in[: piece.size], sums[: piece.size]
            for k in range(piece.size):
                v = f64(piece[k]) * inverse
                v = ((v if abs(v) < LIMIT else 0.0) + _ROUND) - _ROUND
                y[k] = (v * step + whole) - whole
            if rounding in (FLOAT16, BFLOAT16):
                _cut(y, bits, rounding)
            finite = 0
            for k in range(piece.size):
                v = f64(piece[k])
                error = abs(f64(y[k]) - v)
                error = error if error <= bound and abs(v * inverse) < LIMIT else 0.0
                total[k] += error * error
                finite += i32(abs(v) < np.inf)
            count += finite
    total_error = 0.0
    for k in range(NUM_SUMS):
        total_error += sums[k]
    return total_error, count


@kernel(
    *(
        types.int64(
            _read(scalar),
            _STARTS,
            types.float64,
            types.float64,
            types.float64,
            types.int64,
            types.int64,
            types.int32[:, ::1],
            types.uint32[::1],
            types.uint8[::1],
            types.uint8[::1],
            scalar[::1],
        )
        for scalar in _FLOATS
    )
)
def quantise_log2(x, starts, step, centre, bound, rounding, margin, q, outliers, negative, zero, y):
    num = q.shape[1] - 2 * margin
    inverse, count = 1.0 / step, 0
    block = min(num, _BLOCK)
    good_block, mantissas, logs, scale_bits = (
        np.empty(block, u8),
        np.empty(block, f64),
        np.empty(block, f64),
        np.empty(block, i64),
    )
    mantissa_bits, scales = mantissas.view(i64), scale_bits.view(f64)
    y_bits = y.view(i32)
    width = y_bits.size // max(y.size, 1)
    for r in range(starts.size):
        start = starts[r]
        size = min(num, x.size - start)
        for o in range(0, size, _BLOCK):
            piece = x[start + o : start + min(o + _BLOCK, size)]
            at = r * num + o
            values = q[r, margin + o : margin + o + piece.size]
            good, mantissa, m_bits = good_block[: piece.size], mantissas[: piece.size], mantissa_bits[: piece.size]
            t, e, scale = logs[: piece.size], scale_bits[: piece.size], scales[: piece.size]
            minus, nil = negative[at : at + piece.size], zero[at : at + piece.size]
            stand_in, stand_in_bits = y[at : at + piece.size], y_bits[width * at : width * (at + piece.size)]
            for k in range(piece.size):
                mantissa[k] = f64(piece[k])
            for k in range(piece.size):
                b = m_bits[k]
                minus[k] = u8((b >> 63) & 1)
                b &= i64(0x7FFFFFFFFFFFFFFF)
                nil[k] = u8(b == 0)
                usable = b > 0 and b < _INFINITY
                good[k] = u8(usable)
                b = b if usable else i64(_ONE)
                exponent = (b - i64(_HALF_ROOT)) >> 52
                m_bits[k] = b - (exponent << 52)
                t[k] = f64(exponent)
            for k in range(piece.size):
                s = (mantissa[k] - 1.0) / (mantissa[k] + 1.0)
                squared = s * s
                value = _LOG2_COEFFICIENTS[_LOG2_COEFFICIENTS.size - 1]
                for c in range(_LOG2_COEFFICIENTS.size - 2, -1, -1):
                    value = value * squared + _LOG2_COEFFICIENTS[c]
                t[k] = (t[k] + value * s - centre) * inverse
            for k in range(piece.size):
                v = t[k]
                inside = abs(v) < LIMIT
                v = ((v if inside else 0.0) + _ROUND) - _ROUND
                good[k] = u8(good[k] & u8(inside))
                values[k] = i32(v)
                v = min(max(v * step, -1022.0), 1023.0)
                t[k] = v
                e[k] = (i64((v + _ROUND) - _ROUND) + 1023) << 52
            for k in range(piece.size):
                f = t[k] - ((t[k] + _ROUND) - _ROUND)
                value = _COEFFICIENTS[_COEFFICIENTS.size - 1]
                for c in range(_COEFFICIENTS.size - 2, -1, -1):
                    value = value * f + _COEFFICIENTS[c]
                stand_in[k] = (value * f + 1.0) * scale[k]
            if rounding in (FLOAT16, BFLOAT16):
                _cut(stand_in, stand_in_bits, rounding)
            num_good = 0
            for k in range(piece.size):
                magnitude = abs(f64(piece[k]))
                good[k] = u8(good[k] & u8(abs(f64(stand_in[k]) - magnitude) <= bound * magnitude))
                num_good += good[k]
            for k in range(piece.size):
                v = x.dtype.type(0) if nil[k] else stand_in[k]
                stand_in[k] = -v if minus[k] else v
            if num_good < piece.size:
                for k in range(piece.size):
                    if good[k] == 0:
                        if o + k > 0:
                            values[k] = q[r, margin + o + k - 1]
                        else:
                            values[k] = q[r - 1, margin] if r > 0 else i32(0)
                        if nil[k] == 0:
                            if count < outliers.size:
                                outliers[count] = np.uint32(at + k)
                            count += 1
        for k in range(max(size, 0), num):
            q[r, margin + k] = q[r, margin + k - 1] if k > 0 else i32(0)
    return count


@kernel(*(types.void(_MATRIX, _STARTS, types.float64, types.int64, scalar[::1]) for scalar in _FLOATS))
def dequantise(q, starts, step, margin, y):
    num = q.shape[1] - 2 * margin
    for r in range(starts.size):
        start = starts[r]
        size = min(num, y.size - start)
        values, row = q[r, margin : margin + size], y[start : start + size]
        for k in range(size):
            row[k] = f64(values[k]) * step


@kernel(*(types.void(_MATRIX, _STARTS, types.float64, types.int64, scalar[::1]) for scalar in _FLOATS))
def dequantise_exp2(q, starts, step, margin, y):
    num = q.shape[1] - 2 * margin
    biased = np.empty(min(num, _BLOCK), np.int64)
    scales = biased.view(np.float64)
    for r in range(starts.size):
        start = starts[r]
        size = min(num, y.size - start)
        for o in range(0, size, _BLOCK):
            row = y[start + o : start + min(o + _BLOCK, size)]
            values = q[r, margin + o : margin + o + row.size]
            e, scale = biased[: row.size], scales[: row.size]
            for k in range(row.size):
                t = f64(values[k]) * step
                t = min(max(t, -1022.0), 1023.0)
                e[k] = (np.int64((t + _ROUND) - _ROUND) + 1023) << 52
            for k in range(row.size):
                t = f64(values[k]) * step
                t = min(max(t, -1022.0), 1023.0)
                f = t - ((t + _ROUND) - _ROUND)
                value = _COEFFICIENTS[_COEFFICIENTS.size - 1]
                for c in range(_COEFFICIENTS.size - 2, -1, -1):
                    value = value * f + _COEFFICIENTS[c]
                row[k] = (value * f + 1.0) * scale[k]


@kernel()
def dequantise_integers(q, starts, step, offset, margin, y):
    num = q.shape[1] - 2 * margin
    narrow = y.itemsize < 8
    low = i64(np.iinfo(y.dtype).min) if y.itemsize < 8 else i64(0)
    high = i64(np.iinfo(y.dtype).max) if y.itemsize < 8 else i64(0)
    for r in range(starts.size):
        start = starts[r]
        size = min(num, y.size - start)
        values, row = q[r, margin : margin + size], y[start : start + size]
        for k in range(size):
            product = min(max(f64(values[k]) * step, -LARGEST_INTEGER), LARGEST_INTEGER)
            whole = i64((product + _ROUND) - _ROUND) + offset
            row[k] = min(max(whole, low), high) if narrow else whole


@kernel(*(types.void(scalar[::1], types.uint8[::1], types.uint8[::1]) for scalar in _FLOATS))
def restore(y, negative, zero):
    if zero.size:
        for k in range(y.size):
            y[k] = y.dtype.type(0) if zero[k] else y[k]
    if negative.size:
        for k in range(y.size):
            y[k] = -y[k] if negative[k] else y[k]
