"""Floats of two bytes, as NumPy and ml_dtypes hold them, to float32 and back, fast: see ref.py."""

from __future__ import annotations

import numpy as np
from numba import types

from trimtab.kernels.jit import kernel

__all__ = ["narrow", "widen"]

_BLOCK = 4096
u16, i32, f32 = np.uint16, np.int32, np.float32


def widen(bits: np.ndarray, name: str, y: np.ndarray) -> None:
    (_widen_float16 if name == "float16" else _widen_bfloat16)(bits, y.view(i32))


def narrow(x: np.ndarray, name: str, bits: np.ndarray) -> None:
    (_narrow_float16 if name == "float16" else _narrow_bfloat16)(x.view(i32), bits)


_WIDEN = types.void(types.Array(types.uint16, 1, "C", readonly=True), types.int32[::1])
_NARROW = types.void(types.Array(types.int32, 1, "C", readonly=True), types.uint16[::1])


@kernel(_WIDEN)
def _widen_bfloat16(bits, y):
    for k in range(bits.size):
        y[k] = i32(i32(bits[k]) << 16)


@kernel(_WIDEN)
def _widen_float16(bits, y):
    values = y.view(f32)
    scale = f32(2.0**112)  # the difference of the exponents' biases; it makes denormals normal too
    for o in range(0, bits.size, _BLOCK):
        h, whole, value = bits[o : o + _BLOCK], y[o : o + _BLOCK], values[o : o + _BLOCK]
        for k in range(h.size):
            whole[k] = i32((i32(h[k]) & i32(0x7FFF)) << 13)
        for k in range(h.size):
            value[k] = value[k] * scale
        for k in range(h.size):
            special = i32(0x7F800000) if (h[k] & 0x7C00) == 0x7C00 else i32(0)
            whole[k] = i32(whole[k] | special | i32((i32(h[k]) & i32(0x8000)) << 16))


@kernel(_NARROW)
def _narrow_bfloat16(bits, y):
    for k in range(bits.size):
        b = bits[k]
        y[k] = u16(i32(b + i32(0x7FFF) + i32((b >> 16) & 1)) >> 16)


@kernel(_NARROW)
def _narrow_float16(bits, y):
    rounded = np.empty(_BLOCK, f32)
    rounded_bits = rounded.view(i32)
    values = bits.view(f32)
    for o in range(0, bits.size, _BLOCK):
        b, x, h = bits[o : o + _BLOCK], values[o : o + _BLOCK], y[o : o + _BLOCK]
        r, small = rounded[: b.size], rounded_bits[: b.size]
        for k in range(b.size):
            r[k] = abs(x[k]) + f32(0.5)  # the last bit of the sum is that of a denormal float16
        for k in range(b.size):
            m = b[k] & i32(0x7FFFFFFF)
            normal = i32((m + i32(0xFFF) + i32((m >> 13) & 1)) >> 13) - i32(112 << 10)
            normal = min(normal, i32(0x7C00))
            magnitude = i32(small[k] - i32(0x3F000000)) if m < i32(113 << 23) else normal
            h[k] = u16(magnitude | i32((b[k] >> 16) & i32(0x8000)))
