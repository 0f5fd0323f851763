"""Small networks that estimate what a lossy codec lost, the specification.

The elements of a block are integers q (int32, within +-2^30, exclusive), its rows anywhere in it. Each element belongs
to a group: the number of `edges` (int32, ascending) that do not exceed it. Each group has a network of its own, of one
or more layers. Its inputs are whole numbers within +-`LARGEST_INPUT`: the differences ``q[p + tap] - q[p]`` to the
neighbours at the distances `taps`, and last the difference ``q[p] - origin`` to the group's own origin, each cut to
that range. A unit of a layer sums ``weight * input`` and its bias, and shifts the sum right by its own number of places
(as of two's complement, which rounds down). Between layers this is cut to 0 to `LARGEST_ACTIVATION`, and in the one
unit of the last layer to +-limit of the group: the correction. A group whose limit is 0 is not corrected.

All of it is exact in any order of summation: the sum of the magnitudes of all weights of a unit, each times the largest
input, and of its bias is below `SUM_LIMIT`, so that every partial sum is an integer that float32 (and int32) holds, and
no rounding occurs in floats, whether products and sums are fused or not.

For layers of `sizes` n0, n1, ..., 1 (int64), a group's weights (int16) are those of layer 1 to the last one, of each
its units one after another, and of each unit its inputs; its biases (int32) and shifts (uint8, at most 31) are those of
the units in the same order.
"""

from __future__ import annotations

import itertools

import numpy as np

LARGEST_INPUT = 127
LARGEST_ACTIVATION = 1023
SUM_LIMIT = 1 << 24


def correct(
    q: np.ndarray,
    starts: np.ndarray,
    num: int,
    taps: np.ndarray,
    edges: np.ndarray,
    origins: np.ndarray,
    limits: np.ndarray,
    sizes: np.ndarray,
    weights: np.ndarray,
    biases: np.ndarray,
    shifts: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write the corrections of rows of `num` elements to `out` (int16[rows, num]).

    `q` is a flat block and `starts` (int64) where in it each row begins; `taps` (int64) lead to places within the block
    from all elements. `origins` (int32) and `limits` (int16) have one number a group, `weights`, `biases` and `shifts`
    one row.
    """
    places = starts[:, None] + np.arange(num)
    centre = q[places].astype(np.int64)
    near = [np.clip(q[places + tap] - centre, -LARGEST_INPUT, LARGEST_INPUT) for tap in taps]
    groups = np.searchsorted(edges, centre, side="right")
    out[:] = 0
    for g in np.flatnonzero(limits):
        own = np.clip(centre - int(origins[g]), -LARGEST_INPUT, LARGEST_INPUT)
        values = np.stack([*near, own])
        weight, unit = 0, 0
        for before, after in itertools.pairwise(map(int, sizes)):
            w = weights[g, weight : weight + before * after].reshape(after, before).astype(np.int64)
            weight += before * after
            sums = np.tensordot(w, values, 1) + biases[g, unit : unit + after, None, None]
            values = sums >> shifts[g, unit : unit + after, None, None].astype(np.int64)
            unit += after
            if unit < biases.shape[1]:
                values = np.clip(values, 0, LARGEST_ACTIVATION)
        correction = np.clip(values[0], -int(limits[g]), int(limits[g]))
        out[groups == g] = correction[groups == g]
