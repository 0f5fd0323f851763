"""Integers as tokens: back ends agree over all of int32, and tokens and extra bits must match."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.tokens import numba, ref


def split(twin, rows: np.ndarray, margin: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.zeros((rows.shape[0], rows.shape[1] - 2 * margin), np.uint8)
    extra = np.zeros(ref.max_extra_size(tokens.size), np.uint8)
    return tokens, extra[: twin.encode(rows, margin, tokens, extra)].copy()


@pytest.mark.parametrize("scale", [0.1, 1, 10, 1e4, 2e9])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 3), (7, 10), (2, 5000)])
def test_twins_agree(shape, scale):
    rng = np.random.default_rng(0)
    rows = np.clip(rng.laplace(0, scale, (shape[0], shape[1] + 4)), -(2**31), 2**31 - 1).astype(np.int32)
    if rows.size > 9:
        rows[0, 2:6] = [-(2**31), 2**31 - 1, 2**24 - 1, -(2**24)]
    tokens, extra = split(ref, rows, 2)
    for a, b in zip((tokens, extra), split(numba, rows, 2), strict=True):
        assert np.array_equal(a, b)
    assert tokens.size == 0 or tokens.max() < ref.NUM_TOKENS
    for twin in (ref, numba):
        back = np.zeros_like(rows)
        assert twin.decode(tokens, extra, 2, back) == 0
        assert np.array_equal(rows[:, 2:-2], back[:, 2:-2])
        if extra.size:
            assert twin.decode(tokens, extra[:-1].copy(), 2, back) == -1
            assert twin.decode(tokens, np.append(extra, np.uint8(0)), 2, back) == -1


def test_every_bucket_edge_comes_back():
    edges = [s * (1 << e) + d for e in range(31) for d in (-1, 0, 1) for s in (-1, 1)]
    rows = np.array([edges], np.int64).clip(-(2**31), 2**31 - 1).astype(np.int32)
    tokens, extra = split(numba, rows, 0)
    back = np.zeros_like(rows)
    assert numba.decode(tokens, extra, 0, back) == 0
    assert np.array_equal(rows, back)
