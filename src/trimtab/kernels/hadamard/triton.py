"""Walsh-Hadamard transforms of short blocks of float32, on the device: see ref.py for the order of sums.

Works on torch tensors, on CUDA or, with TRITON_INTERPRET=1, on the CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["transform"]

_TILE = 2048


def transform(z: torch.Tensor, order: int) -> None:
    """Transform each block of `order` elements of `z` (flat float32, whole blocks) in place."""
    if z.numel():
        with torch.cuda.device_of(z):
            grid = (triton.cdiv(z.numel(), _TILE),)
            _transform[grid](z, z.numel(), TILE=_TILE, LOG=order.bit_length() - 1, enable_fp_fusion=False)


@triton.jit
def _transform(z, num, TILE: tl.constexpr, LOG: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    v = tl.load(z + at, mask=at < num, other=0.0)
    tl.store(z + at, _butterflies(v, TILE, LOG), mask=at < num)


@triton.jit
def _butterflies(z, SIZE: tl.constexpr, LOG: tl.constexpr):
    """Return the transforms of blocks of 2^LOG elements of a flat tile."""
    for s in tl.static_range(LOG):
        pairs = tl.permute(tl.reshape(z, [SIZE >> (s + 1), 2, 1 << s]), (0, 2, 1))
        a, b = tl.split(pairs)
        z = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), [SIZE])
    return z
