"""Contexts for the tokens of a pyramid, the specification.

The *magnitude* of a token t is (t + 1) >> 1. Magnitudes of a level are held in `grids`, flat, like the level's points
(`trimtab.codecs.pyramid`); the points of a class stand in them from `start` on: ``shape`` planes, rows and points, at
distances of `strides` places. The *activity* of a point is a bias plus weights times the magnitudes at `offsets` from
it, in units of 2^-11; in the class itself these are of rows that come before. As soon as a row is known, its first and
last magnitude are repeated before and after it (`margin` places before, twice as many after). A point belongs to the
context whose number is that of the thresholds that its activity reaches, one by one. For the thresholds, activities
below 1 are in bucket 0, others in bucket 1 + 4 e + m, with e the place of their highest bit and m the two bits below.
"""

from __future__ import annotations

import numpy as np

MAX_CONTEXTS = 16
NUM_BUCKETS = 80
UNIT = 1 << 11
_TABLE_SIZE = 2048


def threshold(bucket: int) -> int:
    """Return the least activity in a bucket."""
    e, m = divmod(bucket - 1, 4)
    return -(-(4 + m << e) // 4) if bucket else -(2**31)


def buckets_of_class(
    tokens: np.ndarray,
    grids: np.ndarray,
    start: int,
    strides: np.ndarray,
    shape: np.ndarray,
    margin: int,
    offsets: np.ndarray,
    weights: np.ndarray,
    bias: int,
    buckets: np.ndarray,
    joint: np.ndarray,
) -> None:
    """Write the buckets (uint8, flat) of a class's tokens (uint8, flat), and their magnitudes into the grids.

    How often each token occurs in each bucket is added to `joint` (int64[NUM_BUCKETS, 128]).
    """
    num = int(shape[2])
    starts = np.array([threshold(b) for b in range(1, NUM_BUCKETS)])
    for r in range(int(shape[0] * shape[1])):
        place = start + r // int(shape[1]) * int(strides[0]) + r % int(shape[1]) * int(strides[1])
        activities = _activities(grids, place, num, offsets, weights, bias)
        buckets[r * num : (r + 1) * num] = np.searchsorted(starts, activities, side="right")
        _put_magnitudes(tokens[r * num : (r + 1) * num], grids, place, margin)
    np.add.at(joint, (buckets, tokens), 1)


def decode_class(
    block: np.ndarray,
    position: np.ndarray,
    states: np.ndarray,
    table: np.ndarray,
    thresholds: np.ndarray,
    grids: np.ndarray,
    start: int,
    strides: np.ndarray,
    shape: np.ndarray,
    margin: int,
    offsets: np.ndarray,
    weights: np.ndarray,
    bias: int,
    tokens: np.ndarray,
) -> None:
    """Decode a class's tokens (uint8, flat) and write their magnitudes into the grids.

    `block`, `table` and `states` are those of `trimtab.kernels.ans.ref.read_tables`; `position` (uint64[1]), at first
    what it returned, moves on with the bits that are read. Bits past the block may be anything. The number of
    `thresholds` (int32) is a multiple of four.
    """
    num, at = int(shape[2]), int(position[0])
    for r in range(int(shape[0] * shape[1])):
        place = start + r // int(shape[1]) * int(strides[0]) + r % int(shape[1]) * int(strides[1])
        activities = _activities(grids, place, num, offsets, weights, bias)
        contexts = (activities[:, None] >= thresholds).sum(axis=1)
        row = tokens[r * num : (r + 1) * num]
        for k, c in enumerate(contexts):
            entry = int(table[c * _TABLE_SIZE + int(states[k % 8])])
            first = min(at >> 3, block.size - 4)
            word = int.from_bytes(block[first : first + 4].tobytes(), "little") >> min(at - 8 * first, 32)
            states[k % 8] = (entry >> 16) + (word & ((1 << (entry & 63)) - 1))
            at += entry & 63
            row[k] = entry >> 8 & 255
        _put_magnitudes(row, grids, place, margin)
    position[0] = at


def _activities(
    grids: np.ndarray, place: int, num: int, offsets: np.ndarray, weights: np.ndarray, bias: int
) -> np.ndarray:
    activities = np.full(num, bias, np.int32)
    for offset, weight in zip(offsets, weights, strict=True):
        activities += weight * grids[place + offset : place + offset + num].astype(np.int32)
    return activities


def _put_magnitudes(tokens: np.ndarray, grids: np.ndarray, place: int, margin: int) -> None:
    num = tokens.size
    grids[place : place + num] = (tokens.astype(np.int32) + 1) >> 1
    if margin:
        grids[place - 1] = grids[place]
        grids[place + num] = grids[place + num + 1] = grids[place + num - 1]
