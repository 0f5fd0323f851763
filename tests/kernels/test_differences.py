"""Differences from a base: the fast twin agrees with the specification, and adding undoes subtracting."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.differences import numba, ref

WORDS = [np.uint8, np.uint16, np.uint32, np.uint64]
SIZES = [0, 1, 63, 64, 65, 127, 128, 1000, 4097]


def pair(word: type, size: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return words and their base, of which whole stretches are equal."""
    rng = np.random.default_rng(size)
    words, base = (rng.integers(0, np.iinfo(word).max, size, word, endpoint=True) for _ in range(2))
    equal = np.repeat(rng.random(-(-size // 50)) >= share, 50)[:size]
    words[equal] = base[equal]
    words.flags.writeable = base.flags.writeable = False
    return words, base


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("signed_float", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_twins_agree_and_round_trip(word, signed_float, size, share):
    words, base = pair(word, size, share)
    results = []
    for twin in (ref, numba):
        kept = np.ones(-(-size // ref.BLOCK), np.bool_)
        differences, classes, again = np.empty(size, word), np.empty(size, np.uint8), np.empty(size, np.uint8)
        count = twin.subtract(words, base, signed_float, kept, differences, classes)
        assert twin.classify(base, signed_float, kept, again) == count
        assert np.array_equal(classes[:count], again[:count])
        results.append((kept, differences[:count], classes[:count]))
    for slow, fast in zip(*results, strict=True):
        assert np.array_equal(slow, fast)
    kept, differences, _ = results[0]
    blocks = [slice(start, start + ref.BLOCK) for start in range(0, size, ref.BLOCK)]
    assert kept.tolist() == [not np.array_equal(words[block], base[block]) for block in blocks]
    for twin in (ref, numba):
        out = np.zeros(size, word)
        twin.add(differences, base, signed_float, kept, out)
        assert np.array_equal(out, words)


@pytest.mark.parametrize(("dtype", "word"), [(np.float16, np.uint16), (np.float32, np.uint32), (np.float64, np.uint64)])
def test_neighbouring_floats_differ_by_one(dtype, word):
    x = np.array([1.0, -1.0, 0.0, -0.0, np.inf, 2.0], dtype)
    after = np.nextafter(x, dtype(np.inf))
    after[3], after[4] = 0.0, np.nan
    kept, differences, classes = np.empty(1, np.bool_), np.empty(x.size, word), np.empty(x.size, np.uint8)
    ref.subtract(after.view(word), x.view(word), True, kept, differences, classes)
    assert differences[[0, 1, 2, 3, 5]].tolist() == [1] * 5
    assert classes[2] == classes[3] == 0


def test_classes_are_exponents():
    x = np.array([1.0, -1.5, 3.0, 0.01], np.float32)
    classes = np.empty(4, np.uint8)
    ref.classify(x.view(np.uint32), True, np.ones(1, np.bool_), classes)
    assert classes.tolist() == [127, 127, 128, 120]


@pytest.mark.parametrize("thresholds", [[], [1], [3, 4, 200], [10, 20, 30, 40, 50, 60, 255]])
@pytest.mark.parametrize("size", [0, 1, 6, 4096, 9001])
def test_tallies_agree(thresholds, size):
    rng = np.random.default_rng(size)
    tokens, classes = rng.integers(0, 124, size, np.uint8), rng.integers(0, 256, size).astype(np.uint8)
    results = []
    for twin in (ref, numba):
        contexts, counts = np.full(size, 77, np.uint8), np.full((len(thresholds) + 1, 128), 77, np.int64)
        twin.tally(tokens, classes, np.array(thresholds, np.uint8), contexts, counts)
        assert counts.sum() == size
        results.append((contexts, counts))
    for slow, fast in zip(*results, strict=True):
        assert np.array_equal(slow, fast)
