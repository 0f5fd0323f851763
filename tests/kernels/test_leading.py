"""Leading bits: the fast twin agrees with the specification, and merging undoes splitting."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.leading import numba, ref

KINDS = [(np.uint16, 5), (np.uint16, 7), (np.uint32, 21)]
"""Words and trailing bits of bfloat16, float16 and float32."""


def weights(word: type, size: int, share_of_random: float = 0.05, share_of_zeros: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(size)
    x = rng.normal(0, 0.02, size).astype(np.float32).view(np.uint32)
    x = x if word is np.uint32 else (x >> 16).astype(np.uint16)
    x[rng.random(size) < share_of_zeros] &= np.iinfo(word).max // 2 + 1  # zeros of both signs
    random = rng.random(size) < share_of_random
    x[random] = rng.integers(0, np.iinfo(word).max, int(random.sum()), word, endpoint=True)
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(("word", "low"), KINDS)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 4095, 4096, 4099, 9001])
def test_twins_agree_and_round_trip(word: type, low: int, size: int) -> None:
    words = weights(word, size)
    base, span = ref.survey(words, low, 1)
    parts = []
    for twin in (ref, numba):
        symbols, escaped = np.empty(size, np.uint8), np.empty(size, np.uint16)
        rests = np.full(ref.rest_bytes(size, low), 255, np.uint8)
        count = twin.split(words, low, base, max(span, 7), symbols, rests, escaped)
        parts.append((symbols, rests, escaped[:count]))
    for slow, fast in zip(*parts, strict=True):
        assert np.array_equal(slow, fast)
    for twin in (ref, numba):
        merged = np.zeros(size, word)
        assert twin.merge(*parts[0], low, base, merged) == 0
        assert np.array_equal(merged, words)


@pytest.mark.parametrize(("word", "low"), KINDS)
@pytest.mark.parametrize("step", [1, 64, 97, 1001])
def test_surveys_agree(word: type, low: int, step: int) -> None:
    for words in (weights(word, 5000), weights(word, 5000, 1.0), np.zeros(5000, word), weights(word, 3)):
        assert numba.survey(words, low, step) == ref.survey(words, low, step)


@pytest.mark.parametrize(("word", "low"), [(np.uint16, 5), (np.uint32, 21)])
def test_survey_notices_trailing_bits_that_are_not_noise(word: type, low: int) -> None:
    words = weights(word, 5000, 0.0, 0.0)
    assert ref.survey(words, low, 1)[1] > 0
    assert ref.survey(words >> word(low) << word(low), low, 1)[1] == 0


@pytest.mark.parametrize("twin", [ref, numba])
def test_a_wrong_number_of_escapes_is_noticed(twin) -> None:
    words = weights(np.uint16, 5000)
    symbols, rests = np.empty(5000, np.uint8), np.empty(ref.rest_bytes(5000, 5), np.uint8)
    escaped = np.empty(5000, np.uint16)
    count = ref.split(words, 5, 300, 122, symbols, rests, escaped)
    assert count > 1
    for wrong in (escaped[: count - 1], escaped[: count + 1], escaped[:0]):
        assert twin.merge(symbols, rests, wrong, 5, 300, np.empty(5000, np.uint16)) == -1
