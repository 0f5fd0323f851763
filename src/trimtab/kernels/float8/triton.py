"""Floats as 8-bit floats with one or two scales a group, on the device: see ref.py for the bytes.

Works on torch tensors, on CUDA or, with TRITON_INTERPRET=1, on the CPU. A program takes a tile of whole groups. Every
launch switches the fusing of products and sums off, since all machines must round alike.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import triton
import triton.language as tl

from trimtab.kernels.float8.ref import ALPHA_RANGE, LAMBDA, MAXIMUM, SCALE_RANGE, SMALLEST, payload_bytes
from trimtab.kernels.groups.triton import _load_bits, _options, _rounded, _store_bits, _widened, _words
from trimtab.kernels.hadamard.triton import _butterflies

__all__ = ["decode", "decode_sum", "encode", "payload_bytes"]

_TILE = 1024
_SMALLEST, _LAMBDA = tl.constexpr(SMALLEST), tl.constexpr(float(LAMBDA))
_LEAST_ALPHA, _MOST_ALPHA = (tl.constexpr(float(end)) for end in ALPHA_RANGE)
_LEAST_SCALE, _MOST_SCALE = (tl.constexpr(float(end)) for end in SCALE_RANGE)
_NAN, _ONE = tl.constexpr(0x7FC00000), tl.constexpr(0x3F800000)


def encode(
    x: torch.Tensor, payload: torch.Tensor, format: str, group: int, order: int, scales: int, target: float
) -> None:
    """Fill `payload` (uint8) with what stands for `x` (flat float32 or bfloat16)."""
    num_groups, rows = -(-x.numel() // group), _TILE // group
    limit = SCALE_RANGE[1] * np.float32(target) if scales == 2 else np.finfo(np.float32).max
    if num_groups:
        with torch.cuda.device_of(payload):
            _encode[(triton.cdiv(num_groups, rows),)](
                _words(x), x.numel(), payload, num_groups * group, num_groups, MAXIMUM[format], target,
                int(limit.view(np.int32)), _unit(order, 1.0), GROUP=group, ROWS=rows,
                LOG=group.bit_length() - 1, TRANSFORM=order > 0, SCALES=scales, E4M3=format == "e4m3",
                **_options(_TILE),
            )  # fmt: skip


def decode(payload: torch.Tensor, y: torch.Tensor, format: str, group: int, order: int, scales: int) -> None:
    """Fill `y` (flat float32 or bfloat16) with what a payload of as many elements stands for."""
    decode_sum(payload[None], y, format, group, order, scales, 1.0)


def decode_sum(
    payloads: torch.Tensor, y: torch.Tensor, format: str, group: int, order: int, scales: int, scale: float
) -> None:
    """Fill `y` with `scale` times the sum of what the rows of `payloads` (uint8[rows, bytes]) stand for."""
    num_groups, rows = -(-y.numel() // group), _TILE // group
    if num_groups:
        with torch.cuda.device_of(y):
            _decode_sum[(triton.cdiv(num_groups, rows),)](
                payloads, len(payloads), payloads.stride(0), _words(y), y.numel(), num_groups * group, num_groups,
                _unit(order, scale), GROUP=group, ROWS=rows, LOG=group.bit_length() - 1,
                TRANSFORM=order > 0, SCALES=scales, E4M3=format == "e4m3", **_options(_TILE),
            )  # fmt: skip


def _unit(order: int, scale: float) -> float:
    return scale / math.sqrt(order) if order else scale


@triton.jit
def _codes(t, E4M3: tl.constexpr):
    """Return the bytes of the nearest 8-bit floats, ties to even."""
    mantissa: tl.constexpr = 3 if E4M3 else 2
    bias: tl.constexpr = 7 if E4M3 else 15
    dropped: tl.constexpr = 23 - mantissa
    bits = t.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # the last bit of the sum is worth as much as that of a denormal
    shift: tl.constexpr = (127 + 24 - mantissa - bias) << 23
    added = tl.full([1], shift, tl.int32).to(tl.float32, bitcast=True)[:, None]
    small = (magnitude.to(tl.float32, bitcast=True) + added).to(tl.int32, bitcast=True) - shift
    nearest = (magnitude + ((1 << (dropped - 1)) - 1) + ((magnitude >> dropped) & 1)) >> dropped
    normal = nearest - ((127 - bias) << mantissa)
    code = tl.where(magnitude < ((128 - bias) << 23), small, normal)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _values(codes, E4M3: tl.constexpr):
    """Return what bytes stand for."""
    mantissa: tl.constexpr = 3 if E4M3 else 2
    bias: tl.constexpr = 7 if E4M3 else 15
    c = codes.to(tl.int32)
    m = c & 0x7F
    normal = (m << (23 - mantissa)) + ((127 - bias) << 23)
    special = _NAN if E4M3 else normal + ((127 - bias) << 23)  # infinity and NaN
    normal = tl.where(m >= (0x7F if E4M3 else 0x7C), special, normal)
    small = m.to(tl.float32) * (2.0 ** (1 - bias - mantissa))
    magnitude = tl.where(m < (1 << mantissa), small.to(tl.int32, bitcast=True), normal)
    return (magnitude | ((c & 0x80) << 24)).to(tl.float32, bitcast=True)


@triton.jit
def _sum_by_halves(z, ROWS: tl.constexpr, LOG: tl.constexpr):
    for s in tl.static_range(LOG):
        a, b = tl.split(tl.permute(tl.reshape(z, [ROWS, 2, 1 << (LOG - 1 - s)]), (0, 2, 1)))
        z = a + b
    return tl.reshape(z, [ROWS])


@triton.jit(do_not_specialize=["limit"])
def _encode(x, num, payload, size, num_groups, maximum, target, limit, unit, GROUP: tl.constexpr, ROWS: tl.constexpr,
            LOG: tl.constexpr, TRANSFORM: tl.constexpr, SCALES: tl.constexpr, E4M3: tl.constexpr):  # fmt: skip
    g = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    z = _widened(tl.load(x + i, mask=i < num, other=0))
    ones = tl.full([ROWS], 1.0, tl.float32)
    alpha = ones
    if SCALES == 2:
        root = tl.sqrt_rn(_sum_by_halves(z * z, ROWS, LOG) * (1.0 / GROUP) + _LAMBDA)
        alpha = tl.minimum(tl.maximum(tl.div_rn(ones * maximum, root), _LEAST_ALPHA), _MOST_ALPHA)
        z *= alpha[:, None]
    if TRANSFORM:
        z = tl.reshape(_butterflies(tl.reshape(z, [ROWS * GROUP]), ROWS * GROUP, LOG), [ROWS, GROUP]) * unit
    most = tl.max(z.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
    largest = most.to(tl.float32, bitcast=True)
    broken = most > limit
    dead = broken
    if SCALES == 1:
        dead = broken | (largest < _SMALLEST)
    step = tl.div_rn(tl.where(dead, 1.0, largest), ones * target)
    if SCALES == 2:
        step = tl.minimum(tl.maximum(step, _LEAST_SCALE), _MOST_SCALE)
    live = g < num_groups
    numbers = payload + size + 4 * g
    bits = step.to(tl.int32, bitcast=True)
    _store_bits(numbers, tl.where(broken, _NAN, tl.where(dead, 0, bits)), live)
    if SCALES == 2:
        bits = alpha.to(tl.int32, bitcast=True)
        _store_bits(payload + size + 4 * (g + num_groups), tl.where(broken, _ONE, bits), live)
    t = tl.where(dead[:, None], 0.0, z) * tl.div_rn(ones, step)[:, None]
    t = tl.minimum(tl.maximum(t, -maximum), maximum)
    tl.store(payload + i, _codes(t, E4M3), mask=live[:, None])


@triton.jit
def _dequantised(payload, size, num_groups, g, GROUP: tl.constexpr, SCALES: tl.constexpr, E4M3: tl.constexpr):
    step = _load_bits(payload + size + 4 * g).to(tl.float32, bitcast=True)
    if SCALES == 2:
        step = tl.div_rn(step, _load_bits(payload + size + 4 * (g + num_groups)).to(tl.float32, bitcast=True))
    codes = tl.load(payload + g[:, None] * GROUP + tl.arange(0, GROUP)[None, :])
    return _values(codes, E4M3) * step[:, None]


@triton.jit
def _decode_sum(payloads, num_rows, stride, y, num, size, num_groups, factor, GROUP: tl.constexpr, ROWS: tl.constexpr,
                LOG: tl.constexpr, TRANSFORM: tl.constexpr, SCALES: tl.constexpr, E4M3: tl.constexpr):  # fmt: skip
    g = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    g = tl.minimum(g, num_groups - 1)
    z = _dequantised(payloads, size, num_groups, g, GROUP, SCALES, E4M3)
    for _ in range(1, num_rows):
        payloads += stride
        z += _dequantised(payloads, size, num_groups, g, GROUP, SCALES, E4M3)
    if TRANSFORM:
        z = tl.reshape(_butterflies(tl.reshape(z, [ROWS * GROUP]), ROWS * GROUP, LOG), [ROWS, GROUP])
    tl.store(y + i, _rounded(z * factor, y.dtype.element_ty), mask=i < num)
