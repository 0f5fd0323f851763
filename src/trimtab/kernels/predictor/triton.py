"""Linear prediction of integers from their neighbours, on the device: see ref.py for the format.

Works on torch tensors, on CUDA or, with TRITON_INTERPRET=1, on the CPU. Any weights can be encoded. Only Lorenzo
prediction is decoded: the values are then prefix sums of the residuals along each axis. Fitted weights make each value
wait for the one before it, which is work for the host.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import triton
import triton.language as tl

from trimtab.errors import ShapeError
from trimtab.kernels.predictor.ref import _PLANE_LORENZO, LORENZO, NUM_BANDS, NUM_TAPS, TAPS, band_edges

__all__ = ["LORENZO", "NUM_BANDS", "NUM_TAPS", "TAPS", "band_edges", "decode_lorenzo", "encode", "fill_margins"]

_MAX_TILE = 1024
_COLUMN_TILE = 64


def fill_margins(q: torch.Tensor, edges: np.ndarray, rows_per_plane: int, lane: int, linear: bool) -> None:
    """Fill the margins of all rows of `q` (int32[rows, 2 lane + n + 2 lane]) from its values.

    Raises:
        ShapeError: rows are too short to fill a margin from.
    """
    num = q.shape[1] - 4 * lane
    if num < (2 * lane if linear and len(q) > 1 else lane):
        raise ShapeError(f"rows of {num} integers are too short for lanes {lane} apart")
    with torch.cuda.device_of(q):
        for band in _bands(q, edges):
            _fill[(len(band),)](band, num, rows_per_plane, lane, LINEAR=linear, SIZE=triton.next_power_of_2(2 * lane),
                                num_warps=1)  # fmt: skip


def encode(
    q: torch.Tensor,
    edges: np.ndarray,
    rows_per_plane: int,
    lane: int,
    weights: np.ndarray,
    shift: int,
    residual: torch.Tensor,
) -> None:
    """Write into `residual` (int32[rows, n]) what remains of `q` (int32[rows, n + 4 lane], margins filled)."""
    num, dimension = residual.shape[1], NUM_TAPS.index(len(weights)) + 1
    table = np.zeros((4, len(weights)), np.int32)  # by whether there is a row before, and a plane before
    for known, fallback in enumerate((LORENZO[0], LORENZO[1], _PLANE_LORENZO, None)):
        if fallback is None or dimension == 1 or (dimension == 2 and known == 1):
            table[known] = weights
        else:
            for tap, weight in fallback.items():
                if tap in TAPS[: len(weights)]:
                    table[known, TAPS.index(tap)] = weight << shift
    taps = torch.from_numpy(np.array(TAPS[: len(weights)], np.int32)).to(q.device)
    weights_of = torch.from_numpy(table).to(q.device)
    tile = min(triton.next_power_of_2(num), _MAX_TILE)
    with torch.cuda.device_of(q):
        for band, rest in zip(_bands(q, edges), _bands(residual, edges), strict=True):
            _encode[(len(band), triton.cdiv(num, tile))](band, rest, num, rows_per_plane, lane, taps, weights_of, shift,
                                                         TAPS=len(weights), TILE=tile,
                                                         num_warps=max(tile // 256, 1))  # fmt: skip


def decode_lorenzo(q: torch.Tensor, edges: np.ndarray, rows_per_plane: int, lane: int, linear: bool) -> None:
    """Replace the residuals of Lorenzo prediction in `q` by their values, and fill the margins.

    A linear tile has one dimension, a tile of one plane two, any other three.

    Raises:
        ShapeError: rows are too short to fill a margin from.
    """
    with torch.cuda.device_of(q):
        for band in _bands(q, edges):
            if linear:
                _sum_along(band[:, 2 * lane : -2 * lane], lane)
            else:
                _sum_rows(band, min(rows_per_plane, len(band)), lane)
    fill_margins(q, edges, rows_per_plane, lane, linear)


def _bands(rows: torch.Tensor, edges: np.ndarray) -> list[torch.Tensor]:
    return [rows[start:stop] for start, stop in itertools.pairwise(edges.tolist()) if stop > start]


def _sum_along(values: torch.Tensor, lane: int) -> None:
    """Sum rows that follow one another without a seam, each lane on its own."""
    flat = values.reshape(-1)
    if flat.data_ptr() == values.data_ptr():
        flat = flat.clone()
    for k in range(lane):
        flat[k::lane] = torch.cumsum(flat[k::lane], 0, dtype=torch.int32)
    values.copy_(flat.reshape(values.shape))


def _sum_rows(band: torch.Tensor, rows_per_plane: int, lane: int) -> None:
    """Sum along planes, then rows, then within each row, which starts from its margin."""
    num_rows, width = band.shape
    num, num_planes = width - 4 * lane, num_rows // rows_per_plane
    first = band[:, 2 * lane : 3 * lane].reshape(num_planes, rows_per_plane, lane)
    # summed over planes and rows, the first column is what its value adds to the margin; and the margin is the value
    # above, in the plane or, in its first row, in the plane before
    added = first
    for axis in (0, 1):
        added = torch.cumsum(added, axis, dtype=torch.int32)
    own = added.clone()
    own[:, 0] = torch.cumsum(own[:, 0], 0, dtype=torch.int32)
    margins = (torch.cumsum(own, 1, dtype=torch.int32) - added).contiguous()
    grid = triton.cdiv(num, _COLUMN_TILE)
    if num_planes > 1:
        _sum_columns[(rows_per_plane, grid)](band, 2 * lane, num, num_planes, rows_per_plane * width, width,
                                             TILE=_COLUMN_TILE)  # fmt: skip
    if rows_per_plane > 1:
        _sum_columns[(num_planes, grid)](band, 2 * lane, num, rows_per_plane, width, rows_per_plane * width,
                                         TILE=_COLUMN_TILE)  # fmt: skip
    lanes = triton.next_power_of_2(lane)
    tile = max(min(triton.next_power_of_2(triton.cdiv(num, lane)), _MAX_TILE // lanes), 1)
    _sum_within[(num_rows,)](band, num, lane, margins, TILE=tile, LANES=lanes, num_warps=max(tile * lanes // 256, 1))


@triton.jit
def _fill(q, num, rows_per_plane, lane, LINEAR: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    margin, width = 2 * lane, num + 4 * lane
    i = tl.arange(0, SIZE)
    if LINEAR:
        source = (row - 1) * width + num + i
    else:
        above = tl.where(row % rows_per_plane > 0, row - 1, row - rows_per_plane)
        source = above * width + margin + i % lane
    left = tl.load(q + source, mask=(i < margin) & (row > 0), other=0)
    tl.store(q + row * width + i, left, mask=i < margin)
    right = tl.load(q + row * width + num + lane + i % lane, mask=i < margin, other=0)
    tl.store(q + row * width + margin + num + i, right, mask=i < margin)


@triton.jit
def _encode(
    q, residual, num, rows_per_plane, lane, taps, weights, shift, TAPS: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * TILE + tl.arange(0, TILE)
    i, j = row // rows_per_plane, row % rows_per_plane
    width, margin, live = num + 4 * lane, 2 * lane, k < num
    known = tl.where(j > 0, 1, 0) + tl.where(i > 0, 2, 0)
    total = tl.full([TILE], 0, tl.int32) + ((1 << shift) >> 1)
    for t in range(TAPS):
        weight = tl.load(weights + known * TAPS + t)
        if weight != 0:
            back, above, lanes = tl.load(taps + 3 * t), tl.load(taps + 3 * t + 1), tl.load(taps + 3 * t + 2)
            own = (back == 0) & (above == 0)
            near = tl.minimum(tl.maximum(j - above, 0), rows_per_plane - 1)
            source = tl.maximum(i - back, 0) * rows_per_plane + tl.where(own, j, near)
            total += weight * tl.load(q + source * width + margin - lanes * lane + k, mask=live, other=0)
    value = tl.load(q + row * width + margin + k, mask=live, other=0)
    tl.store(residual + row * num + k, value - (total >> shift), mask=live)


@triton.jit
def _sum_columns(q, margin, num, count, step, apart, TILE: tl.constexpr):
    """Sum `count` rows that stand `step` places apart; the lines of rows stand `apart`."""
    line, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    r = tl.arange(0, TILE)
    before = tl.full([TILE], 0, tl.int32)
    for o in range(0, count, TILE):
        live = ((o + r) < count)[:, None] & (k < num)[None, :]
        at = q + line * apart + margin + (o + r).to(tl.int64)[:, None] * step + k[None, :]
        value = tl.load(at, mask=live, other=0)
        tl.store(at, tl.cumsum(value, 0) + before[None, :], mask=live)
        before += tl.sum(value, 0)


@triton.jit
def _sum_within(q, num, lane, margins, TILE: tl.constexpr, LANES: tl.constexpr):
    """Sum along a row, each lane on its own, starting from the row's margin."""
    row = tl.program_id(0).to(tl.int64)
    lanes, r = tl.arange(0, LANES), tl.arange(0, TILE)
    before = tl.load(margins + row * lane + lanes, mask=lanes < lane, other=0)
    q += row * (num + 4 * lane) + 2 * lane
    for o in range(0, tl.cdiv(num, lane), TILE):
        k = (o + r)[:, None] * lane + lanes[None, :]
        live = (k < num) & (lanes < lane)[None, :]
        value = tl.load(q + k, mask=live, other=0)
        tl.store(q + k, tl.cumsum(value, 0) + before[None, :], mask=live)
        before += tl.sum(value, 0)
