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
