"""Contexts: back ends agree, and what is encoded in them comes back."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.ans import numba as ans_numba
from trimtab.kernels.ans import ref as ans_ref
from trimtab.kernels.contexts import numba, ref

SHAPES = [(3, 4, 21), (1, 5, 8), (2, 1, 1), (1, 1, 100), (1, 2, 4101)]


def test_buckets_follow_their_thresholds():
    activities = [0, -5, 1, 2, 3, 5, 7, 8, 9, 1000, 2**17 + 1]
    starts = [ref.threshold(b) for b in range(ref.NUM_BUCKETS)]
    assert starts == sorted(starts)
    for activity in activities:
        exponent = max(activity, 1).bit_length() - 1
        expected = 0 if activity < 1 else 1 + 4 * exponent + ((activity << 2 >> exponent) & 3)
        assert np.searchsorted(starts[1:], activity, side="right") == expected
    assert numba.threshold is ref.threshold


class Class:
    """A class of points in a grid with margins, whose neighbours are in another grid and in rows before."""

    def __init__(self, shape, seed: int) -> None:
        rng = np.random.default_rng(seed)
        padded = [n + 3 for n in shape]
        self.size = int(np.prod(padded))
        self.shape = np.array(shape, np.int64)
        self.strides = np.array([padded[1] * padded[2], padded[2], 1], np.int64)
        self.start = self.size + int(self.strides.sum())
        self.other = rng.integers(0, 63, self.size).astype(np.uint8)
        row, plane = -int(self.strides[1]), -int(self.strides[0])
        self.offsets = np.array([-self.size, 1 - self.size, row - self.size, row, row - 1, row + 1, plane, 0], np.int64)
        self.weights = np.array([300, 200, -60, 500, 90, 90, 400, 0], np.int32)
        scale = rng.uniform(0, 12, shape[0] * shape[1])[:, None]
        tokens = np.minimum(rng.exponential(scale, (shape[0] * shape[1], shape[2])), 123)
        self.tokens = tokens.astype(np.uint8).reshape(-1)

    def grids(self) -> np.ndarray:
        return np.concatenate([self.other, np.zeros(self.size, np.uint8)])

    def args(self, grids: np.ndarray) -> tuple:
        return grids, self.start, self.strides, self.shape, 1, self.offsets, self.weights, 55


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_contexts", [1, 2, 5, 16])
def test_twins_agree(shape, num_contexts):
    points = Class(shape, 3)
    found = []
    for twin in (ref, numba):
        grids, buckets = points.grids(), np.empty(points.tokens.size, np.uint8)
        joint = np.zeros((ref.NUM_BUCKETS, 128), np.int64)
        twin.buckets_of_class(points.tokens, *points.args(grids), buckets, joint)
        found.append((grids, buckets, joint))
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)
    grids, buckets, joint = found[0]
    bounds = np.unique(np.quantile(buckets, np.arange(1, num_contexts) / num_contexts).astype(np.uint8))
    chosen = np.searchsorted(bounds, buckets, side="right").astype(np.uint8)
    counts = np.zeros((bounds.size + 1, 128), np.int64)
    np.add.at(counts, (chosen, points.tokens), 1)
    rows = np.array([[shape[0] * shape[1], shape[2]]], np.int64)
    blocks = []
    for twin in (ans_ref, ans_numba):
        out = np.zeros(ans_ref.max_block_size(points.tokens.size) + 6000, np.uint8)
        blocks.append(out[: twin.encode_mixed(points.tokens, chosen, rows, counts, bounds, out)])
    assert np.array_equal(*blocks)
    thresholds = np.full((bounds.size + 3) // 4 * 4, 2**31 - 1, np.int32)
    thresholds[: bounds.size] = [ref.threshold(int(b)) for b in bounds]
    for twin, ans_twin in ((ref, ans_ref), (numba, ans_numba)):
        table, states = np.zeros(16 << 11, np.uint32), np.empty(8, np.uint64)
        start = ans_twin.read_tables(blocks[0], 16, table, states)
        position, again, tokens = np.array([start], np.uint64), points.grids(), np.zeros_like(points.tokens)
        twin.decode_class(blocks[0], position, states, table, thresholds, *points.args(again), tokens)
        assert np.array_equal(tokens, points.tokens)
        assert np.array_equal(again, grids)
        assert not states.any()
        assert max((int(position[0]) + 7) // 8, start // 8 + 8) == blocks[0].size


def test_tables_are_checked():
    tokens = np.arange(40, dtype=np.uint8)
    counts = np.ones((1, 128), np.int64) * (np.arange(128) < 40)
    out = np.zeros(ans_ref.max_block_size(40), np.uint8)
    rows = np.array([[5, 8]], np.int64)
    nothing = np.zeros(0, np.uint8)
    block = out[: ans_numba.encode_mixed(tokens, np.zeros(40, np.uint8), rows, counts, nothing, out)].copy()
    rng = np.random.default_rng(0)
    for attempt in range(300):
        broken = block.copy()
        if attempt < block.size:
            broken = broken[:attempt]
        else:
            broken[rng.integers(broken.size)] ^= np.uint8(1 << rng.integers(8))
        results = []
        for twin in (ans_ref, ans_numba):
            table, states = np.zeros(16 << 11, np.uint32), np.zeros(8, np.uint64)
            start = twin.read_tables(broken, 16, table, states)
            results.append((start, *(table.tolist() if start >= 0 else ()), *(states.tolist() if start >= 0 else ())))
        assert results[0] == results[1]
