"""Rings of records: decoded and compared alike by both twins, damaged ones included."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.rings import numba, ref

NUM_COMMUNICATORS = 3


def ring(seed: int, *, capacity: int = 64, num: int = 40, damage: bool = False, first_number: int = 1) -> np.ndarray:
    """A ring of `num` records of a rank that goes through its communicators at random."""
    rng = np.random.default_rng(seed)
    words = np.zeros((capacity, 8), np.uint64)
    seqs, now = np.full(NUM_COMMUNICATORS, 5), 10**9
    for number in range(first_number, first_number + num):
        c = int(rng.integers(NUM_COMMUNICATORS))
        seqs[c] += 1
        enter = now + int(rng.integers(0, 5000))
        now = enter + int(rng.integers(0, 5000))
        stamp = number & ref.LOW
        flags = int(rng.integers(0, 4))
        exit_ns = now if rng.random() < 0.9 else 0
        size, op = int(rng.integers(0, 1 << 40)), int(rng.integers(0, 13))
        values = rng.integers(0, 1 << 32, 4)
        words[number % capacity] = [
            stamp | c << 32 | op << 48 | flags << 56,
            seqs[c],
            enter,
            exit_ns,
            size,
            int(values[0]) | int(values[1]) << 32,
            int(values[2]) | int(values[3]) << 32,
            int(rng.integers(0, 1000)) | stamp << 32,
        ]
    if damage:
        for _ in range(8):
            words[rng.integers(capacity), rng.integers(8)] ^= np.uint64(1) << np.uint64(rng.integers(64))
    return words


def scanned(twin, words: np.ndarray):
    first, last, counts = (np.full(n, -7, np.int64) for n in (NUM_COMMUNICATORS, NUM_COMMUNICATORS, 2))
    return twin.scan(words, first, last, counts), first, last, counts


def placed(twin, words: np.ndarray):
    newest, first, last, _ = scanned(twin, words)
    lengths = np.where(first > 0, last - first + 1, 0)
    if newest < 0 or lengths.astype(float).sum() > words.shape[0]:
        return None
    start = lengths.cumsum() - lengths
    columns = [np.zeros(lengths.sum(), dtype) for dtype in ("i8", "f4", "f4", "f4", "u4", "u4", "u4", "u2")]
    twin.place(words, newest, first, last, start, *columns)
    return columns


@pytest.mark.parametrize("damage", [False, True])
@pytest.mark.parametrize(("num", "first_number"), [(0, 1), (1, 1), (40, 1), (200, 1), (100, 2**32 - 50), (64, 2**32)])
def test_twins_agree(num, first_number, damage):
    for seed in range(20):
        words = ring(seed, num=num, first_number=first_number, damage=damage)
        ours, theirs = scanned(numba, words), scanned(ref, words)
        assert ours[0] == theirs[0]
        for mine, other in zip(ours[1:], theirs[1:], strict=True):
            np.testing.assert_array_equal(mine, other)
        mine, other = placed(numba, words), placed(ref, words)
        assert (mine is None) == (other is None)
        for a, b in zip(mine or [], other or [], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_ring_that_went_round_keeps_the_newest():
    newest, first, last, counts = scanned(ref, ring(3, num=200))
    assert newest == 200
    assert counts.tolist() == [64, 0]
    assert (last - first + 1).sum() == 64


def test_torn_records_do_not_count():
    words = ring(1)
    words[7, 7] ^= np.uint64(1 << 40)
    assert scanned(numba, words)[3].tolist() == [39, 1]


def test_durations():
    words = np.zeros((8, 8), np.uint64)
    times = [(1000, 3000), (5000, 5500), (5600, 0)]
    for number, (enter, leave) in enumerate(times, 1):
        words[number] = [number, number, enter, leave, 1024, 7 | 9 << 32, 3, 2_000_000 | number << 32]
    _, inside, outside, waited, signature, site, step, kind = placed(numba, words)
    np.testing.assert_allclose(inside, [2e-6, 5e-7, np.nan], rtol=1e-6)
    np.testing.assert_allclose(outside, [np.nan, 2e-6, 1e-7], rtol=1e-6)
    assert waited[0] == 2
    assert (signature[0], site[0], step[0], kind[0]) == (7, 9, 3, 11)


def blocks(seed: int, *, num_members: int = 5, length: int = 60):
    rng = np.random.default_rng(seed)
    first = rng.integers(1, 10, num_members)
    count = rng.integers(0, length, num_members)
    start = count.cumsum() - count
    return rng, start, first, count, int(count.sum())


@pytest.mark.parametrize("seed", range(20))
def test_twins_spread_alike(seed):
    rng, start, first, count, total = blocks(seed)
    inside = rng.random(total).astype(np.float32)
    inside[rng.random(total) < 0.2] = np.nan
    results = []
    for twin in (ref, numba):
        out = [np.zeros(40, dtype) for dtype in ("f4", "f4", "i4", "i4")]
        twin.spread(start, first, count, inside, 4, *out)
        results.append(out)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(20))
def test_twins_find_the_same_differences(seed):
    rng, start, first, count, total = blocks(seed)
    signature, site, step = (rng.integers(0, 2, total).astype(np.uint32) for _ in range(3))
    sums = []
    for twin in (ref, numba):
        found, drift, num = (np.full(5, -1) for _ in range(3))
        twin.differing(start, first, count, signature, 1, found)
        twin.drifting(start, first, count, site, step, 1, drift, num)
        totals, before = np.zeros((5, 2, 4)), np.zeros(5, np.int64)
        enter = np.arange(total)
        values = np.random.default_rng(seed).random((3, total)).astype(np.float32)
        twin.totals(start, count, np.full(5, total // 2), enter, *values, totals, before)
        sums.append((found, drift, num, totals, before))
    for a, b in zip(*sums, strict=True):
        np.testing.assert_array_equal(a, b)


def test_sites_may_differ_but_not_change():
    site = np.array([1, 2, 1, 2, 1, 2, 8, 9, 8, 9, 9, 8], np.uint32)  # two members of six operations
    step = np.zeros(12, np.uint32)
    start, first, count = np.array([0, 6]), np.array([1, 1]), np.array([6, 6])
    for twin in (ref, numba):
        found, num = np.zeros(2, np.int64), np.zeros(2, np.int64)
        twin.drifting(start, first, count, site, step, 0, found, num)
        assert found.tolist() == [0, 5]
        assert num.tolist() == [0, 2]
