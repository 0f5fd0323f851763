"""Linear prediction of integers: back ends agree in every dimension, lane and band layout, and values come back."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.predictor import numba, ref

# planes, rows per plane, row length, lane, linear
LAYOUTS = [
    (1, 1, 5, 1, False),
    (1, 4, 9, 1, False),
    (3, 4, 10, 1, False),
    (3, 2, 7, 1, False),
    (33, 2, 5, 1, False),
    (1, 38, 7, 1, False),
    (2, 3, 12, 3, False),
    (34, 2, 9, 2, False),
    (1, 5, 12, 1, True),
    (1, 40, 8, 1, True),
    (1, 4, 9, 3, True),
    (1, 3, 5000, 1, False),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["lorenzo", "weighted"])
def test_twins_agree(layout, kind):
    planes, per_plane, num, lane, linear = layout
    rng = np.random.default_rng(0)
    dimension = 1 if linear else 3 if planes > 1 else 2
    weights = np.zeros(ref.NUM_TAPS[dimension - 1], np.int32)
    shift, largest = (0, 2**30) if kind == "lorenzo" else (7, 2**22)
    if kind == "lorenzo":
        for tap, weight in ref.LORENZO[dimension - 1].items():
            weights[ref.TAPS.index(tap)] = weight
    else:
        weights[:] = rng.integers(-300, 300, weights.size)
    margin = 2 * lane
    q = np.zeros((planes * per_plane, num + 2 * margin), np.int32)
    q[:, margin:-margin] = rng.integers(-largest + 1, largest, (len(q), num))
    edges = ref.band_edges(len(q), per_plane)
    twin_q = q.copy()
    ref.fill_margins(q, edges, per_plane, lane, linear)
    numba.fill_margins(twin_q, edges, per_plane, lane, linear)
    assert np.array_equal(q, twin_q)
    residual, twin_residual = np.zeros((len(q), num), np.int32), np.zeros((len(q), num), np.int32)
    ref.encode(q, edges, per_plane, lane, weights, shift, residual)
    numba.encode(q, edges, per_plane, lane, weights, shift, twin_residual)
    assert np.array_equal(residual, twin_residual)
    for twin in (ref, numba) if num < 100 else (numba,):
        back = np.full_like(q, 7)
        back[:, margin:-margin] = residual
        twin.decode(back, edges, per_plane, lane, linear, weights, shift)
        assert np.array_equal(q, back)


def test_lorenzo_leaves_nothing_of_a_constant_past_its_first_column():
    q = np.full((6, 9), 1234, np.int32)
    weights = np.zeros(9, np.int32)
    for tap, weight in ref.LORENZO[1].items():
        weights[ref.TAPS.index(tap)] = weight
    edges = ref.band_edges(6, 6)
    numba.fill_margins(q, edges, 6, 1, False)
    residual = np.empty((6, 5), np.int32)
    numba.encode(q, edges, 6, 1, weights, 0, residual)
    assert residual[0, 0] == 1234
    assert not residual[:, 1:].any()
    assert not residual[2:].any()


def test_products_agree():
    vectors = np.random.default_rng(0).integers(-(2**22), 2**22, (5, 300)).astype(np.int32)
    a, b = np.empty((5, 5), np.int64), np.empty((5, 5), np.int64)
    ref.products(vectors, a)
    numba.products(vectors, b)
    assert np.array_equal(a, b)
