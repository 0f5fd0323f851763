"""Floats as 8-bit floats with one or two scales a group, fast: see ref.py for the bytes.

Bytes are made and read by integer arithmetic, which has vectors, where a table would not. No fast-math and no
contraction: all machines must round alike.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types

from trimtab.kernels.float8.ref import ALPHA_RANGE, LAMBDA, MAXIMUM, SCALE_RANGE, SMALLEST, payload_bytes
from trimtab.kernels.groups.numba import _in_pieces, _rows
from trimtab.kernels.hadamard.numba import _transform_at
from trimtab.kernels.jit import kernel
from trimtab.kernels.words import bits32, float32_of, load32, rounded_like, store32, widened

__all__ = ["decode", "decode_sum", "encode", "payload_bytes"]

_BLOCK = 2048
_ELEMENTS = (types.float32, types.uint16)
_SMALLEST = np.float32(SMALLEST)
(_LEAST_ALPHA, _MOST_ALPHA), (_LEAST_SCALE, _MOST_SCALE) = ALPHA_RANGE, SCALE_RANGE
_LARGEST = np.finfo(np.float32).max
_NAN, _ONE = 0x7FC00000, 0x3F800000
u8, u64, i32, f32, uintp = np.uint8, np.uint64, np.int32, np.float32, np.uintp


def encode(x: np.ndarray, payload: np.ndarray, format: str, group: int, order: int, scales: int, target: float) -> None:
    size = -(-x.size // group) * group
    settings = format == "e4m3", group, order, scales, np.float32(MAXIMUM[format]), np.float32(target), _unit(order, 1)
    _in_pieces(size, group, lambda o, end: _encode(x, payload, size, o, end, *settings))


def decode(payload: np.ndarray, y: np.ndarray, format: str, group: int, order: int, scales: int) -> None:
    decode_sum(payload[None], y, format, group, order, scales, 1.0)


def decode_sum(
    payloads: np.ndarray, y: np.ndarray, format: str, group: int, order: int, scales: int, scale: float
) -> None:
    size = -(-y.size // group) * group
    settings = format == "e4m3", group, order, scales, _unit(order, scale)
    rows = _rows(payloads)
    _in_pieces(size, group, lambda o, end: _decode_sum(*rows, y, size, o, end, *settings))


def _unit(order: int, scale: float) -> np.float32:
    return np.float32(scale / math.sqrt(order) if order else scale)


def _read(scalar):
    return types.Array(scalar, 1, "C", readonly=True)


_RANGE = (types.int64, types.int64, types.int64)
_SETTINGS = (types.boolean, types.int64, types.int64, types.int64)
_FLOAT3 = (types.float32,) * 3


@numba.njit(nogil=True, error_model="numpy")
def _round_e4m3(z, inverse, maximum, out):
    for k in range(z.size):
        t = min(max(z[k] * inverse, -maximum), maximum)
        b = bits32(t)
        magnitude = i32(b & i32(0x7FFFFFFF))
        small = i32(bits32(float32_of(magnitude) + f32(2.0**14)) - i32(0x46800000))  # the last bit is worth 2^-9
        normal = i32(i32(magnitude + i32(0x7FFFF) + i32((magnitude >> 20) & 1)) >> 20) - i32(120 << 3)
        code = small if magnitude < i32(121 << 23) else i32(normal)
        out[k] = u8(i32(code) | i32((b >> 24) & i32(0x80)))


@numba.njit(nogil=True, error_model="numpy")
def _round_e5m2(z, inverse, maximum, out):
    for k in range(z.size):
        t = min(max(z[k] * inverse, -maximum), maximum)
        b = bits32(t)
        magnitude = i32(b & i32(0x7FFFFFFF))
        small = i32(bits32(float32_of(magnitude) + f32(2.0**7)) - i32(0x43000000))  # the last bit is worth 2^-16
        normal = i32(i32(magnitude + i32(0xFFFFF) + i32((magnitude >> 21) & 1)) >> 21) - i32(112 << 2)
        code = small if magnitude < i32(113 << 23) else i32(normal)
        out[k] = u8(i32(code) | i32((b >> 24) & i32(0x80)))


@numba.njit(nogil=True, error_model="numpy")
def _read_e4m3(codes, z):
    for k in range(z.size):
        c, m = i32(codes[k]), i32(i32(codes[k]) & i32(0x7F))
        normal = i32(_NAN) if m == i32(0x7F) else i32(i32(m << 20) + i32(120 << 23))
        magnitude = bits32(f32(m) * f32(2.0**-9)) if m < i32(8) else i32(normal)
        z[k] = float32_of(i32(i32(magnitude) | i32((c & i32(0x80)) << 24)))


@numba.njit(nogil=True, error_model="numpy")
def _read_e5m2(codes, z):
    for k in range(z.size):
        c, m = i32(codes[k]), i32(i32(codes[k]) & i32(0x7F))
        normal = i32(i32(m << 21) + i32(112 << 23))
        normal = i32(i32(normal) + i32(112 << 23)) if m >= i32(0x7C) else i32(normal)  # infinity and NaN
        magnitude = bits32(f32(m) * f32(2.0**-16)) if m < i32(4) else i32(normal)
        z[k] = float32_of(i32(i32(magnitude) | i32((c & i32(0x80)) << 24)))


@numba.njit(nogil=True, error_model="numpy")
def _sum_of_squares(v, squares):
    """Return the sum by halves."""
    half = v.size // 2
    a, b, s = v[:half], v[half:], squares[:half]
    for k in range(half):
        s[k] = a[k] * a[k] + b[k] * b[k]
    while half > 1:
        half //= 2
        a, b = squares[:half], squares[half : 2 * half]
        for k in range(half):
            a[k] = a[k] + b[k]
    return squares[0]


@kernel(*(types.void(_read(scalar), types.uint8[::1], *_RANGE, *_SETTINGS, *_FLOAT3) for scalar in _ELEMENTS))
def _encode(x, payload, size, begin, stop, is_e4m3, group, order, scales, maximum, target, unit):
    z, squares = np.empty(_BLOCK, f32), np.empty(group // 2, f32)
    z_bits = z.view(i32)
    numbers, num_groups = uintp(payload.ctypes.data) + uintp(size), size // group
    limit = bits32(_MOST_SCALE * target if scales == 2 else f32(_LARGEST))
    for o in range(begin, stop, _BLOCK):
        end = min(o + _BLOCK, stop)
        source = x[o : min(end, x.size)]
        v = z[: source.size]
        for k in range(source.size):
            v[k] = widened(source[k])
        v = z[source.size : end - o]
        for k in range(v.size):
            v[k] = f32(0)
        for start in range(o, end, group):
            v, w = z[start - o : start - o + group], z_bits[start - o : start - o + group]
            alpha = f32(1)
            if scales == 2:
                mean = _sum_of_squares(v, squares) * f32(f32(1) / f32(group))
                alpha = min(max(maximum / f32(math.sqrt(mean + LAMBDA)), _LEAST_ALPHA), _MOST_ALPHA)
                for k in range(group):
                    v[k] *= alpha
            if order:
                _transform_at(uintp(v.ctypes.data), group, order)
                for k in range(group):
                    v[k] *= unit
            most = i32(0)
            for k in range(group):
                most = max(most, i32(w[k] & i32(0x7FFFFFFF)))
            largest = float32_of(most)
            step_bits, inverse, alpha_bits = i32(0), f32(0), bits32(alpha)
            is_live = most <= limit and (scales == 2 or largest >= _SMALLEST)
            if is_live:
                step = largest / target
                if scales == 2:
                    step = min(max(step, _LEAST_SCALE), _MOST_SCALE)
                step_bits, inverse = bits32(step), f32(1) / step
            elif most > limit:
                step_bits, alpha_bits = i32(_NAN), i32(_ONE)
            at = numbers + uintp(start // group * 4)
            store32(at, u64(step_bits))
            if scales == 2:
                store32(at + uintp(num_groups * 4), u64(alpha_bits))
            out = payload[start : start + group]
            if not is_live:
                for k in range(group):
                    out[k] = u8(0)
            elif is_e4m3:
                _round_e4m3(v, inverse, maximum, out)
            else:
                _round_e5m2(v, inverse, maximum, out)


@kernel(
    *(
        types.void(_read(types.uint8), types.int64, types.int64, scalar[::1], *_RANGE, *_SETTINGS, types.float32)
        for scalar in _ELEMENTS
    )
)
def _decode_sum(rows, num_rows, stride, y, size, begin, stop, is_e4m3, group, order, scales, factor):
    z, values = np.empty(_BLOCK, f32), np.empty(group, f32)
    address, num_groups = uintp(rows.ctypes.data), size // group
    for o in range(begin, stop, _BLOCK):
        end = min(o + _BLOCK, stop)
        for start in range(o, end, group):
            v = z[start - o : start - o + group]
            for r in range(num_rows):
                at = address + uintp(r * stride + size + start // group * 4)
                step = float32_of(i32(load32(at)))
                if scales == 2:
                    step = step / float32_of(i32(load32(at + uintp(num_groups * 4))))
                codes = rows[r * stride + start : r * stride + start + group]
                if is_e4m3:
                    _read_e4m3(codes, values)
                else:
                    _read_e5m2(codes, values)
                if r == 0:
                    for k in range(group):
                        v[k] = values[k] * step
                else:
                    for k in range(group):
                        v[k] += values[k] * step
        if order:
            _transform_at(uintp(z.ctypes.data), end - o, order)
        target = y[o : min(end, y.size)]
        v = z[: target.size]
        for k in range(target.size):
            target[k] = rounded_like(target[k], v[k] * factor)
