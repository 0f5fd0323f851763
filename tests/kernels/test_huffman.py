"""Huffman coding: back ends agree, lengths are optimal under their limit, damage is noticed."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from trimtab.kernels.huffman import numba, ref

SIZES = [0, 1, 7, 8, 9, 63, 64, 100, 1001]


def sample(kind: str, size: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    drawn = {
        "uniform": lambda: rng.integers(0, 256, size),
        "steep": lambda: rng.geometric(0.3, size) % 256,
        "constant": lambda: np.full(size, 200),
        "two": lambda: rng.integers(0, 2, size) * 255,
        "long tail": lambda: np.minimum(2 ** rng.geometric(0.5, size), 255),
    }[kind]()
    return drawn.astype(np.uint8)


def encoded(twin, symbols: np.ndarray) -> np.ndarray:
    counts = np.zeros(256, np.int64)
    twin.histogram(symbols, counts)
    out = np.zeros(ref.max_block_size(symbols.size), np.uint8)
    return out[: twin.encode_block(symbols, counts, out)].copy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["uniform", "steep", "constant", "two", "long tail"])
def test_twins_agree(kind, size):
    symbols = sample(kind, size)
    symbols.flags.writeable = False
    block = encoded(ref, symbols)
    assert np.array_equal(block, encoded(numba, symbols))
    for twin in (ref, numba):
        y = np.zeros(size, np.uint8)
        assert twin.decode_block(block, y) == (0 if size else -1)
        assert np.array_equal(symbols, y)


@pytest.mark.parametrize("size", [1 << 15, (1 << 17) + 3])
@pytest.mark.parametrize("kind", ["uniform", "steep", "constant"])
def test_twins_agree_on_symbols_in_pairs(kind, size):
    symbols = sample(kind, size)
    counts, expected = np.zeros((2, 256), np.int64)
    numba.histogram(symbols, counts)
    ref.histogram(symbols, expected)
    assert np.array_equal(counts, expected)
    block, y = encoded(numba, symbols), np.zeros(size, np.uint8)
    assert np.array_equal(block, encoded(ref, symbols))
    assert numba.decode_block(block, y) == 0
    assert np.array_equal(symbols, y)


def test_twins_agree_on_random_lengths():
    rng = np.random.default_rng(0)
    for _ in range(100):
        counts = (rng.pareto(0.3, 256) * rng.integers(0, 2, 256)).clip(0, 1e9).astype(np.int64)
        a, b = np.empty(256, np.uint8), np.empty(256, np.uint8)
        ref.code_lengths(counts, a)
        numba.code_lengths(counts, b)
        assert np.array_equal(a, b)
        assert a.max() <= ref.MAX_LENGTH
        assert (2.0 ** -a[a > 0].astype(float)).sum() <= 1


def test_lengths_equal_unlimited_huffman_where_these_are_short():
    counts = np.zeros(256, np.int64)
    counts[:40] = np.random.default_rng(2).integers(50, 400, 40)
    lengths = np.empty(256, np.uint8)
    ref.code_lengths(counts, lengths)
    heap = counts[:40].tolist()
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged
        heapq.heappush(heap, merged)
    assert ref.coded_bits(counts, lengths) == bits


def test_one_symbol_takes_no_bits():
    assert encoded(numba, np.full(1 << 20, 9, np.uint8)).size < 16


def test_damage_is_noticed_or_harmless():
    rng = np.random.default_rng(3)
    symbols = sample("steep", 500)
    block = encoded(numba, symbols)
    y = np.empty_like(symbols)
    for size in range(block.size):
        assert numba.decode_block(block[:size].copy(), y) == -1
    for _ in range(500):
        broken = block.copy()
        broken[rng.integers(broken.size)] ^= np.uint8(1 << rng.integers(8))
        assert numba.decode_block(broken, y) in (0, -1)
    for size in (0, 1, 8, 200):
        assert numba.decode_block(rng.integers(0, 256, size).astype(np.uint8), y) in (0, -1)
