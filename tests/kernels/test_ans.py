"""The token coder: back ends agree, blocks come back, damage is noticed."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.ans import numba, ref

SHAPES = [(1, 1), (1, 7), (3, 8), (5, 9), (70, 33), (0, 5), (2, 0)]


def sample(kind: str, shape: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(7)
    drawn = {
        "uniform": lambda: rng.integers(0, ref.NUM_TOKENS, shape),
        "steep": lambda: rng.geometric(0.6, shape) - 1,
        "constant": lambda: np.full(shape, 5),
        "patchy": lambda: (rng.geometric(0.3, shape) - 1) * (np.arange(shape[1]) % 16 < 3),
    }[kind]()
    return np.minimum(drawn, ref.NUM_TOKENS - 1).astype(np.uint8)


def encoded(twin, tokens: np.ndarray, back: int = 3) -> np.ndarray:
    out = np.zeros(ref.max_block_size(tokens.size), np.uint8)
    return out[: twin.encode_block(tokens, back, out)].copy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["uniform", "steep", "constant", "patchy"])
def test_twins_agree(kind, shape):
    tokens = sample(kind, shape)
    block = encoded(ref, tokens)
    assert np.array_equal(block, encoded(numba, tokens))
    for twin in (ref, numba):
        y = np.full_like(tokens, 77)
        assert twin.decode_block(block, 3, y) == 0
        assert np.array_equal(tokens, y)


def test_contexts_pay():
    rng = np.random.default_rng(1)
    scale = np.exp(2 * np.sin(np.arange(256) / 20))
    tokens = np.minimum(np.abs(rng.normal(0, scale, (400, 256))) * 3, 100).astype(np.uint8)
    block = encoded(numba, tokens)
    shares = np.bincount(tokens.reshape(-1)) / tokens.size
    shares = shares[shares > 0]
    assert block[0] == ref.MAX_CONTEXTS
    assert 8 * block.size < 0.93 * tokens.size * -(shares * np.log2(shares)).sum()


def test_sure_zeros_cost_almost_nothing():
    tokens = np.zeros((1000, 1000), np.uint8)
    assert encoded(numba, tokens).size < 64


def test_damage_is_noticed_or_harmless():
    rng = np.random.default_rng(3)
    tokens = sample("patchy", (40, 24))
    block = encoded(numba, tokens)
    y = np.empty_like(tokens)
    for size in range(block.size):
        assert numba.decode_block(block[:size].copy(), 3, y) == -1
    differing = 0
    for _ in range(400):
        broken = block.copy()
        broken[rng.integers(broken.size)] ^= np.uint8(1 << rng.integers(8))
        status = numba.decode_block(broken, 3, y)
        assert status in (0, -1)
        assert y.max() < ref.NUM_TOKENS
        z = np.empty_like(tokens)
        assert ref.decode_block(broken, 3, z) == status
        differing += status == 0 and not np.array_equal(y, tokens)
    assert differing < 40


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000, 4096, 9000])
def test_activities_can_be_given(size):
    rng = np.random.default_rng(size)
    activities = rng.integers(0, 256, size).astype(np.uint8)
    tokens = np.minimum(rng.geometric(1 / (1 + activities / 20)), ref.NUM_TOKENS - 1).astype(np.uint8)
    thresholds = np.array([50, 100, 101, 255], np.uint8)
    contexts = np.searchsorted(thresholds, activities, side="right").astype(np.uint8)
    counts = np.zeros((5, 128), np.int64)
    np.add.at(counts, (contexts, tokens), 1)
    blocks = []
    for twin, rows in ((ref, [[1, size]]), (numba, [[1, size]]), (numba, [[size // 4096, 4096], [1, size % 4096]])):
        out = np.zeros(ref.max_block_size(size), np.uint8)
        blocks.append(out[: twin.encode_mixed(tokens, contexts, np.array(rows), counts, thresholds, out)].copy())
    assert np.array_equal(blocks[0], blocks[1])
    assert np.array_equal(blocks[0], blocks[2])
    for twin in (ref, numba):
        y = np.full_like(tokens, 77)
        assert twin.decode_given(blocks[0], activities, y) == 0
        assert np.array_equal(tokens, y)
    for _ in range(200 if size else 0):
        broken = blocks[0].copy()
        broken[rng.integers(broken.size)] ^= np.uint8(1 << rng.integers(8))
        y, z = np.empty_like(tokens), np.empty_like(tokens)
        status = numba.decode_given(broken, activities, y)
        if size < 1000:
            assert ref.decode_given(broken, activities, z) == status
            assert status == -1 or np.array_equal(y, z)
    for cut in range(0, blocks[0].size, 1 + blocks[0].size // 50):
        assert numba.decode_given(blocks[0][:cut].copy(), activities, np.empty_like(tokens)) == -1
