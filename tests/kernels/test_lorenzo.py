"""Differences along every axis: back ends agree in every layout and piece by piece, and values come back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from trimtab.kernels.lorenzo import numba, ref

# planes, rows per plane, row length, lane, rows where pieces begin
LAYOUTS = [
    (1, 1, 1, 1, []),
    (1, 1, 3, 1, []),
    (1, 1, 5000, 1, []),
    (1, 1, 9001, 2, []),
    (3, 1, 6, 1, [2]),
    (1, 9, 7, 1, [4]),
    (3, 4, 10, 1, [1, 6, 7]),
    (5, 3, 12, 3, [4]),
    (4, 2, 2, 5, [3]),
    (2, 5, 33, 2, [5]),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("largest", [3, 2**31 - 1])
def test_twins_agree(layout, largest):
    planes, per_plane, num, lane, cuts = layout
    q = np.random.default_rng(0).integers(-largest, largest, (planes * per_plane, num)).astype(np.int32)
    edges = [0, *cuts, len(q)]
    made = []
    for twin in (ref, numba):
        rows = q.copy()
        for way in (twin.encode, twin.decode):
            above = np.zeros(num if planes * per_plane > 1 else 0, np.int32)
            before = np.zeros((per_plane if planes > 1 else 0, num), np.int32)
            for start, stop in itertools.pairwise(edges):
                way(rows[start:stop], above, before, start, per_plane, lane)
            made.append((rows.copy(), above, before))
        assert np.array_equal(rows, q)
    for a, b in zip(made[:2], made[2:], strict=True):
        assert all(map(np.array_equal, a, b))


def test_what_is_left_is_the_error_of_lorenzo_prediction():
    q = np.random.default_rng(1).integers(-100, 100, (4, 5, 6)).astype(np.int32)
    z = q.reshape(20, 6).copy()
    numba.encode(z, np.zeros(6, np.int32), np.zeros((5, 6), np.int32), 0, 5, 1)
    d = np.where(z % 2, -(z + 1) // 2, z // 2).reshape(4, 5, 6)
    neighbours = q[:-1, 1:, 1:] + q[1:, :-1, 1:] + q[1:, 1:, :-1]
    neighbours = neighbours - q[:-1, :-1, 1:] - q[:-1, 1:, :-1] - q[1:, :-1, :-1] + q[:-1, :-1, :-1]
    assert np.array_equal(d[1:, 1:, 1:], q[1:, 1:, 1:] - neighbours)
