"""Uniform and logarithmic quantisation of floating-point rows, on the device: see ref.py for the arithmetic.

Works on torch tensors, on CUDA or, with TRITON_INTERPRET=1, on the CPU. One program takes a row. Every launch switches
the fusing of products and sums off, since all machines must round alike; float64 numbers go in as their bits, since
Triton would take them for float32.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from trimtab.kernels.quantiser.ref import _EXP2, _ROUND, LIMIT

__all__ = ["LIMIT", "dequantise", "dequantise_exp2", "extent", "quantise_floats"]

_BOUND = tl.constexpr(LIMIT)
_NEAREST = tl.constexpr(_ROUND)
_COEFFICIENTS = tl.constexpr(_EXP2)
_NUM_COEFFICIENTS = tl.constexpr(len(_EXP2))
_MAX_TILE = 1024


def extent(x: torch.Tensor) -> tuple[float, float]:
    """Return the smallest and the largest finite element of `x` (flat float32 or float64), or (inf, -inf)."""
    if not x.numel():
        return np.inf, -np.inf
    finite = torch.isfinite(x)
    ends = torch.where(finite, x, np.inf).min(), torch.where(finite, x, -np.inf).max()
    low, high = torch.stack(ends).tolist()
    return low, high


def quantise_floats(
    x: torch.Tensor,
    starts: torch.Tensor,
    step: float,
    bound: float,
    margin: int,
    q: torch.Tensor,
    outliers: torch.Tensor,
) -> int:
    """Do as `quantise` without further rounding: write `q` (int32[rows, n + 2 margin]), return how many outliers.

    Their positions go to `outliers` (int64), as many as fit. `starts` (int64) is on the device too.
    """
    num_rows, num = q.shape[0], q.shape[1] - 2 * margin
    if not num_rows or not num:
        return 0
    counts = torch.empty(num_rows, dtype=torch.int32, device=q.device)
    numbers = (_bits(step), _bits(1.0 / step), _bits(bound))
    with torch.cuda.device_of(q):
        _quantise[(num_rows,)](x, x.numel(), starts, num, *numbers, margin, q, counts, **_options(num))
        ends = torch.cumsum(counts, 0, dtype=torch.int64)
        _list[(num_rows,)](x, x.numel(), starts, num, *numbers, counts, ends, outliers, outliers.numel(),
                           **_options(num))  # fmt: skip
    return int(ends[-1])


def dequantise(q: torch.Tensor, starts: torch.Tensor, step: float, margin: int, y: torch.Tensor) -> None:
    """Write the rows of `y` (flat) that `q` stands for."""
    _write(_dequantise, q, starts, step, margin, y)


def dequantise_exp2(q: torch.Tensor, starts: torch.Tensor, step: float, margin: int, y: torch.Tensor) -> None:
    """Write the rows of `y` (flat) that `q` stands for: 2^(q step), by plain products and sums in float64 alone."""
    _write(_dequantise_exp2, q, starts, step, margin, y)


def _write(kernel, q: torch.Tensor, starts: torch.Tensor, step: float, margin: int, y: torch.Tensor) -> None:
    num_rows, num = q.shape[0], q.shape[1] - 2 * margin
    if num_rows and num:
        with torch.cuda.device_of(q):
            kernel[(num_rows,)](q, starts, num, _bits(step), margin, y, y.numel(), **_options(num))


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


def _options(num: int) -> dict:
    tile = min(triton.next_power_of_2(num), _MAX_TILE)
    return {"TILE": tile, "num_warps": max(tile // 256, 1), "enable_fp_fusion": False}


@triton.jit
def _later(a, b):
    return tl.maximum(a, b)


@triton.jit
def _float64(bits):
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _round(x, step, inverse, bound):
    """Return the integers (as float64), and whether they stand for `x` within the bound."""
    wide = x.to(tl.float64)
    v = wide * inverse
    inside = tl.abs(v) < _BOUND
    v = (tl.where(inside, v, 0.0) + _NEAREST) - _NEAREST
    y = (v * step).to(x.dtype).to(tl.float64)
    return v, inside & (tl.abs(y - wide) <= bound)


@triton.jit(do_not_specialize=["step", "inverse", "bound"])
def _quantise(x, size, starts, num, step, inverse, bound, margin, q, counts, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(starts + row)
    q += row * (num + 2 * margin) + margin
    step, inverse, bound = _float64(step), _float64(inverse), _float64(bound)
    i = tl.arange(0, TILE)
    before = tl.full([], 0, tl.int32)  # the last integer that stands for its element
    count = tl.full([], 0, tl.int32)
    for o in range(0, num, TILE):
        k = o + i
        live = (k < num) & (start + k < size)
        v, good = _round(tl.load(x + start + k, mask=live, other=0.0), step, inverse, bound)
        good = good & live
        value = v.to(tl.int32)
        count += tl.sum((live & (good == 0)).to(tl.int32), 0)
        if tl.sum(good.to(tl.int32), 0) < TILE:
            key = tl.where(good, ((i + 1).to(tl.int64) << 32) | (value.to(tl.int64) & 0xFFFFFFFF), 0)
            key = tl.associative_scan(key, 0, _later)
            value = tl.where(key == 0, before, key.to(tl.int32))
        tl.store(q + k, value, mask=k < num)
        before = tl.sum(tl.where(i == TILE - 1, value, 0), 0)
    tl.store(counts + row, count)


@triton.jit(do_not_specialize=["step", "inverse", "bound", "room"])
def _list(x, size, starts, num, step, inverse, bound, counts, ends, outliers, room, TILE: tl.constexpr):
    """List the outliers of the rows that have any."""
    row = tl.program_id(0).to(tl.int64)
    count, start, i = tl.load(counts + row), tl.load(starts + row), tl.arange(0, TILE)
    place = tl.load(ends + row) - count
    step, inverse, bound = _float64(step), _float64(inverse), _float64(bound)
    if count > 0:
        for o in range(0, num, TILE):
            k = o + i
            live = (k < num) & (start + k < size)
            _, good = _round(tl.load(x + start + k, mask=live, other=0.0), step, inverse, bound)
            bad = (live & (good == 0)).to(tl.int32)
            at = place + tl.cumsum(bad, 0) - bad
            tl.store(outliers + at, row * num + k, mask=(bad != 0) & (at < room))
            place += tl.sum(bad, 0)


@triton.jit(do_not_specialize=["step"])
def _dequantise(q, starts, num, step, margin, y, size, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(starts + row)
    q += row * (num + 2 * margin) + margin
    step = _float64(step)
    for o in range(0, num, TILE):
        k = o + tl.arange(0, TILE)
        live = (k < num) & (start + k < size)
        value = tl.load(q + k, mask=live, other=0).to(tl.float64) * step
        tl.store(y + start + k, value.to(y.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["step"])
def _dequantise_exp2(q, starts, num, step, margin, y, size, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(starts + row)
    q += row * (num + 2 * margin) + margin
    step = _float64(step)
    for o in range(0, num, TILE):
        k = o + tl.arange(0, TILE)
        live = (k < num) & (start + k < size)
        t = tl.load(q + k, mask=live, other=0).to(tl.float64) * step
        t = tl.minimum(tl.maximum(t, -1022.0), 1023.0)
        whole = (t + _NEAREST) - _NEAREST
        f = t - whole
        value = tl.full([TILE], _COEFFICIENTS[_NUM_COEFFICIENTS - 1], tl.float64)
        for c in tl.static_range(_NUM_COEFFICIENTS - 1):
            value = value * f + tl.full([TILE], _COEFFICIENTS[_NUM_COEFFICIENTS - 2 - c], tl.float64)
        scale = ((whole.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
        value = (value * f + 1.0) * scale
        tl.store(y + start + k, value.to(y.dtype.element_ty), mask=live)
