"""Integers of which most are zero: back ends agree, what is encoded comes back, and damage is found."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.sparse import numba, ref

TWINS = pytest.mark.parametrize("twin", [ref, numba], ids=["ref", "numba"])


def integers(size: int, share: float, largest: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(size) < share, rng.integers(-largest, largest + 1, size), 0).astype(np.int32)


CASES = [  # integers, width, lag
    (integers(0, 1, 1), 1, 0),
    (integers(1, 1, 2), 5, 0),
    (integers(700, 0, 1), 70, 5),
    (integers(1500, 0.06, 2), 2**40, 0),
    (integers(1500, 0.06, 2), 7, 2),
    (integers(1500, 0.3, 40), 1, 28),
    (integers(600, 1, 2**30 - 1), 1, 7),
    (np.array([2**30 - 1, 0, 1 - 2**30, 0, 0, 4], np.int32), 4, 3),
    (integers(300, 0.5, 3), 41, ref.MAX_LAG),
    (np.repeat(integers(40, 0.5, 3), 40).reshape(40, 40).T.ravel(), 40, 0),
]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("q", "width", "lag"), CASES, ids=str)
def test_twins_agree(q, width, lag, signed):
    blocks = []
    for twin in (ref, numba):
        out = np.full(10 * q.size + 100, 7, np.uint8)
        blocks.append(out[: twin.encode(q, width, lag, signed, out)].copy())
    assert blocks[0].tobytes() == blocks[1].tobytes()
    expected = q if signed else (q != 0).astype(np.int32)
    for twin in (ref, numba):
        decoded = np.full(q.size, 9, np.int32)
        assert twin.decode(blocks[0], width, lag, signed, decoded) == 0
        assert decoded.tolist() == expected.tolist()


@TWINS
def test_damage_is_found(twin):
    q = integers(900, 0.1, 3)
    out = np.empty(4000, np.uint8)
    block = out[: twin.encode(q, 30, 9, True, out)].copy()
    decoded = np.empty_like(q)
    for size in range(block.size):
        assert twin.decode(block[:size], 30, 9, True, decoded) == -1
    assert twin.decode(np.append(block, np.zeros(4, np.uint8)), 30, 9, True, decoded) == -1
    rng = np.random.default_rng(3)
    for bit in rng.integers(0, 8 * block.size, 40):
        damaged = block.copy()
        damaged[bit // 8] ^= 1 << bit % 8
        status = twin.decode(damaged, 30, 9, True, decoded)
        assert status == -1 or not np.array_equal(decoded, q) or bit < 16  # the learning forgets where it began


@TWINS
def test_too_little_room_is_told(twin):
    q = integers(900, 0.1, 3)
    out = np.empty(4000, np.uint8)
    size = twin.encode(q, 30, 9, True, out)
    for room in (0, 5, size - 1):
        assert twin.encode(q, 30, 9, True, np.empty(room, np.uint8)) == -1
    assert twin.encode(q, 30, 9, True, np.empty(size, np.uint8)) == size


def test_size_is_near_the_entropy():
    """Places of even density, and signs without a pattern, take what theory says, and no more than 1 % above."""
    q = integers(200_000, 0.05, 1)
    share = np.count_nonzero(q) / q.size
    bits = q.size * -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) + np.count_nonzero(q)
    out = np.empty(100_000, np.uint8)
    assert numba.encode(q, 30, 0, True, out) < 1.01 * bits / 8 + 60


def test_repetition_is_used():
    """Nonzeros that stand where some stood a lag before are cheap."""
    rng = np.random.default_rng(2)
    q = (np.tile(rng.random(100) < 0.1, 500) & (rng.random(50_000) < 0.9)).astype(np.int32)
    out = np.empty(20_000, np.uint8)
    assert numba.encode(q, 30, 100, False, out) < 0.6 * numba.encode(q, 30, 0, False, out)


def test_density_of_rows_and_columns_is_used():
    """Places are cheap where rows and columns differ in how many nonzeros they have."""
    rng = np.random.default_rng(5)
    row, column = rng.choice([0.02, 0.5], (300, 1)), rng.choice([0.02, 0.5], 200)
    q = (rng.random((300, 200)) < row * column).astype(np.int32)
    out = np.empty(20_000, np.uint8)
    shuffled = rng.permutation(q.ravel())
    assert numba.encode(q.ravel(), 200, 0, False, out) < 0.75 * numba.encode(shuffled, 200, 0, False, out)


def test_signs_of_columns_are_used():
    """Signs are cheap where those of a column are mostly the same."""
    rng = np.random.default_rng(6)
    places = (rng.random((300, 200)) < 0.1).astype(np.int32)
    signs = rng.choice([-1, 1], 200) * np.where(rng.random((300, 200)) < 0.1, -1, 1)
    out = np.empty(20_000, np.uint8)
    alike = numba.encode((places * signs).astype(np.int32).ravel(), 200, 0, True, out)
    mixed = numba.encode((places * rng.choice([-1, 1], (300, 200))).astype(np.int32).ravel(), 200, 0, True, out)
    assert mixed - alike > 0.3 * np.count_nonzero(places) / 8
