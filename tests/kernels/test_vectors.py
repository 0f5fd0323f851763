"""Looked-up vectors as integers: both twins alike, back to what they were, and no way out of the buffers."""

import numpy as np
import pytest

from trimtab import kernels
from trimtab.kernels.vectors import ref

RNG = np.random.default_rng(0)
TWINS = ["ref", "numba"]


def twins():
    for name in TWINS:
        with kernels.backend(name):
            yield kernels.load("vectors")


def scale(limit: float) -> tuple[np.float32, np.float32, np.float32]:
    step = np.float32(2 * limit * (1 - 2**-12))
    return np.float32(limit), step, np.float32(1) / step


FLOATS = {
    "small": RNG.normal(0, 0.05, 10_001),
    "wide": RNG.normal(0, 50, 5000),
    "beyond": RNG.normal(0, 5000, 5000),
    "ties": np.arange(-3000, 3000) * 0.01,
    "special": np.concatenate([RNG.normal(0, 0.1, 5000), [np.nan, np.inf, -np.inf, -0.0, 1e-42, 3e38, -3e38, 1e9]]),
    "bits": RNG.integers(0, 1 << 32, 9000, np.uint32).view(np.float32),
    "empty": np.zeros(0),
}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("limit", [0.01, 1e-6, 3.0])
def test_quantise(name, limit):
    with np.errstate(over="ignore", invalid="ignore"):
        x = FLOATS[name].astype(np.float32)
    found = []
    for vectors in twins():
        codes, places = np.full(x.size, 99, np.int16), np.full(x.size + 1, -1, np.int64)
        low, high, num = vectors.quantise(x, *scale(limit), codes, places)
        found.append((low, high, num, codes.tolist(), places[:num].tolist()))
        if x.size:
            assert (codes.min(), codes.max()) == (low, high)
        few = np.full(num // 2, -1, np.int64)
        again = vectors.quantise(x, *scale(limit), codes.copy(), few)
        assert again == (low, high, num) and few.tolist() == places[: num // 2].tolist()
        kept = np.delete(np.arange(x.size), places[:num])
        errors = np.abs(x[kept].astype(np.float64) - (codes[kept] * scale(limit)[1]).astype(np.float32))
        assert errors.size == 0 or errors.max() <= limit
        assert not np.isin(np.flatnonzero(~np.isfinite(x)), kept).any()
    assert found[0] == found[1]
    if name == "small" and limit == 0.01:
        assert found[0][2] == 0, "elements of a few steps are not kept exactly"


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 16, 24, 32, 37, 64])
def test_distinct_rows(width):
    rows = RNG.integers(0, 256, (300, width), np.uint8)[RNG.zipf(1.3, 2000) % 300]
    rows[5, -1] ^= 1  # differs in its last byte alone
    expected = np.unique(rows, axis=0).shape[0]
    found = []
    for vectors in twins():
        numbers, firsts = np.full(2000, -1, np.int32), np.full(2000, -1, np.int32)
        count = vectors.distinct_rows(rows, numbers, firsts)
        assert count == expected
        assert np.array_equal(rows[firsts[:count]][numbers], rows)
        references, back = np.empty(2000, np.int32), np.empty(2000, np.int32)
        vectors.refer(numbers, references)
        assert vectors.resolve(references, count, back) == 0
        assert np.array_equal(back, numbers)
        assert vectors.resolve(references, count + 1, back) == -1
        found.append((numbers.tolist(), firsts[:count].tolist(), references.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_few_rows(num_rows):
    for vectors in twins():
        numbers, firsts = np.empty(num_rows, np.int32), np.empty(num_rows, np.int32)
        assert vectors.distinct_rows(np.zeros((num_rows, 5), np.uint8), numbers, firsts) == min(num_rows, 1)


@pytest.mark.parametrize("references", [[-1], [0, 1], [0, -1, -2], [-(2**31)], [2**31 - 1]])
def test_references_to_rows_that_are_not_there(references):
    for vectors in twins():
        assert vectors.resolve(np.array(references, np.int32), 1, np.empty(len(references), np.int32)) == -1


@pytest.mark.parametrize(
    "numbers",
    [
        np.zeros(0, np.int32),
        np.zeros(1000, np.int32),
        np.arange(700, dtype=np.int32),
        np.tile(np.arange(255, dtype=np.int32), 4),
        np.tile(np.arange(256, dtype=np.int32), 4),  # one row too far back
        np.minimum(RNG.zipf(1.2, 3000), 2999).astype(np.int32),
    ],
    ids=["empty", "equal", "different", "near", "far", "zipf"],
)
def test_matches(numbers):
    found = []
    for vectors in twins():
        flags, pairs = np.empty(numbers.size, np.uint8), np.empty(2 * numbers.size, np.uint8)
        literals = np.empty(numbers.size, np.int32)
        num_steps, num_matches, num_literals = vectors.find_matches(numbers, flags, pairs, literals)
        back = np.empty(numbers.size, np.int32)
        steps = flags[:num_steps], pairs[: 2 * num_matches]
        assert vectors.follow_matches(*steps, num_literals, back) == 0
        assert np.array_equal(numbers[literals[:num_literals]][back], numbers)
        found.append((*(step.tolist() for step in steps), literals[:num_literals].tolist()))
        if numbers.size:
            for bad in (
                (steps[0][:-1], steps[1], num_literals),
                (np.append(steps[0], np.ones(1, np.uint8)), steps[1], num_literals),
                (np.append(steps[0], np.zeros(8, np.uint8)), steps[1], num_literals),
                (steps[0], np.append(steps[1], np.ones(1, np.uint8)), num_literals),
                (*steps, num_literals + 1),
            ):
                assert vectors.follow_matches(*bad, back) == -1
    assert found[0] == found[1]


@pytest.mark.parametrize("pair", [(0, 1), (1, 0), (1, 2), (200, 1)], ids=str)
def test_matches_out_of_range(pair):
    for vectors in twins():
        flags, pairs = np.array([0, 1, 0], np.uint8), np.array(pair, np.uint8)
        assert vectors.follow_matches(flags, pairs, 2, np.empty(3, np.int32)) == -1


@pytest.mark.parametrize("bits", ref.BITS)
@pytest.mark.parametrize("num_columns", [1, 3, 16, 37, 5000])
def test_pack(bits, num_columns):
    low = -7 if bits < 16 else -32767
    codes = (low + RNG.integers(0, 1 << bits, (40, num_columns))).clip(-32767, 32767).astype(np.int16)
    rows = RNG.permutation(40).astype(np.int32)[:31]
    step = np.float32(0.02)
    found = []
    for vectors in twins():
        packed = np.full(vectors.packed_size(rows.size * num_columns, bits), 255, np.uint8)
        vectors.pack(codes, rows, low, bits, packed)
        y = np.full(rows.size * num_columns, np.nan, np.float32)
        vectors.unpack(packed, low, bits, step, y)
        assert np.array_equal(y, codes[rows].reshape(-1).astype(np.float32) * step)
        found.append(packed.tolist())
    assert found[0] == found[1]
