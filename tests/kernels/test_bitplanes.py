"""Exponent codes as bit planes: the fast twin agrees with the specification, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.bitplanes import numba, ref

SIZES = (1, 7, 8, 9, 63, 64, 65, 4095, 4096, 4097, 9001)


def weights(size: int, seed: int = 0) -> np.ndarray:
    """bfloat16 bits of bell-shaped numbers, with a few of every other kind."""
    rng = np.random.default_rng(seed)
    halves = (rng.standard_normal(size).astype(np.float32) * 0.05).view(np.uint32) >> 16
    halves = halves.astype(np.uint16)
    odd = rng.random(size) < 0.01
    halves[odd] = rng.integers(0, 1 << 16, int(odd.sum()), dtype=np.uint16)
    return halves


def chosen(halves: np.ndarray) -> tuple[int, int, int, np.ndarray]:
    counts, distances = np.empty(256, np.int64), np.empty(15, np.uint8)
    ref.survey(halves, 1, counts)
    base, width, next_width, _ = ref.choose(counts, distances)
    return base, width, next_width, distances


def encoded(module, halves: np.ndarray, base: int, width: int, next_width: int, distances: np.ndarray):
    signs = np.empty(halves.size, np.uint8)
    planes = np.empty(ref.plane_bytes(halves.size, width), np.uint8)
    tail = np.empty(ref.plane_bytes(halves.size, next_width) + halves.size, np.uint8)
    num_escapes, num_raw = module.encode(halves, base, width, next_width, distances, signs, planes, tail)
    return signs, planes, tail[: ref.plane_bytes(num_escapes, next_width) + num_raw], num_escapes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1, 64, 65, 513])
def test_survey_agrees(size: int, step: int) -> None:
    fast, slow = np.empty(256, np.int64), np.empty(256, np.int64)
    numba.survey(weights(size), step, fast)
    ref.survey(weights(size), step, slow)
    assert np.array_equal(fast, slow)
    assert slow.sum() == (size if step <= 64 else sum(min(64, size - s) for s in range(0, size, step)))


@pytest.mark.parametrize("seed", range(30))
def test_choice_agrees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, 256)
    counts[rng.integers(0, 256, 8)] += rng.integers(0, 1000, 8)  # equal counts and windows over the edge of 256
    fast, slow = np.empty(15, np.uint8), np.empty(15, np.uint8)
    assert numba.choose(counts, fast) == ref.choose(counts, slow)
    assert np.array_equal(fast, slow)


def test_choice_is_the_cheapest_of_all_bases() -> None:
    counts, distances = np.empty(256, np.int64), np.empty(15, np.uint8)
    halves = weights(9001)
    ref.survey(halves, 1, counts)
    base, width, next_width, price = ref.choose(counts, distances)
    _, planes, tail, num_escapes = encoded(ref, halves, base, width, next_width, distances)
    assert abs(price - (32 * (planes.size + tail.size) + num_escapes)) <= 32 * 8  # whole bytes of the last block
    for other in {(base + 1) % 256, (base - 1) % 256}:
        assert encoded(ref, halves, other, width, next_width, distances)[3] >= num_escapes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("next_width", [2, 3, 4])
def test_twins_agree_and_round_trip(size: int, width: int, next_width: int) -> None:
    halves = weights(size, seed=size)
    halves.flags.writeable = False
    base, _, _, distances = chosen(halves)
    distances = np.array([d for d in range(256) if d >= (1 << width) - 1][:: 16 // width][:15], np.uint8)
    fast = encoded(numba, halves, base, width, next_width, distances)
    slow = encoded(ref, halves, base, width, next_width, distances)
    assert all(np.array_equal(a, b) for a, b in zip(fast, slow, strict=True))
    signs, planes, tail, num_escapes = fast
    for module in (numba, ref):
        decoded = np.empty(size, np.uint16)
        assert module.decode(signs, planes, tail, num_escapes, base, width, next_width, distances, decoded)
        assert np.array_equal(decoded, halves)


def test_every_code_an_escape() -> None:
    halves = np.full(5000, 7 << 7, np.uint16)
    distances = np.arange(100, 115, dtype=np.uint8)
    parts = encoded(numba, halves, 200, 2, 2, distances)
    assert parts[3] == 5000 and parts[2].size == ref.plane_bytes(5000, 2) + 5000
    decoded = np.empty(5000, np.uint16)
    assert numba.decode(*parts, 200, 2, 2, distances, decoded)
    assert np.array_equal(decoded, halves)


@pytest.mark.parametrize("seed", range(60))
def test_hostile_parts_give_the_same_answer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    halves = weights(int(rng.integers(1, 9000)), seed)
    base, width, next_width, distances = chosen(halves)
    signs, planes, tail, num_escapes = (
        np.copy(part) for part in encoded(ref, halves, base, width, next_width, distances)
    )
    num_escapes = int(num_escapes)
    match seed % 4:
        case 0:
            planes[rng.integers(0, planes.size, 3)] ^= np.uint8(1 << rng.integers(0, 8))
        case 1:
            tail = np.append(tail, np.uint8(0))
        case 2:
            tail = rng.integers(0, 256, tail.size, dtype=np.uint8)
        case 3:
            num_escapes = max(num_escapes - 1, 0)
            tail = np.pad(tail, (0, max(ref.plane_bytes(num_escapes, next_width) - tail.size, 0)))
    fast, slow = np.zeros(halves.size, np.uint16), np.zeros(halves.size, np.uint16)
    verdict = numba.decode(signs, planes, tail, num_escapes, base, width, next_width, distances, fast)
    assert verdict == ref.decode(signs, planes, tail, num_escapes, base, width, next_width, distances, slow)
    assert not verdict or np.array_equal(fast, slow)
