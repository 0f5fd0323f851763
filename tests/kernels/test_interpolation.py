"""Interpolation: back ends agree on every shape, and decoders get what encoders got."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.codecs.pyramid import Level, orbits
from trimtab.kernels.interpolation import numba, ref

SHAPES = [(7, 8, 9), (1, 6, 5), (1, 1, 37), (2, 2, 2), (5, 1, 4), (4, 3, 1), (3, 2, 70), (1, 2, 9000)]
EVEN = (0, 0, 0)
NO_MARGINS = np.empty((0, 1))


def longs(numbers) -> np.ndarray:
    return np.array(numbers, np.int64)


def strides_of(level: Level) -> np.ndarray:
    return longs([level.shape[1] * level.shape[2], level.shape[2], 1])


def starts_of(level: Level) -> np.ndarray:
    starts = np.zeros(8, np.int64)
    for parity in (EVEN, *level.parities):
        starts[parity[0] * 4 + parity[1] * 2 + parity[2]] = level.start(parity)
    return starts


def taps(level: Level, parity, dtype, rng) -> tuple[np.ndarray, np.ndarray]:
    steps = [step for group in orbits(parity, level.live) for step in group]
    steps += steps[:1] * (-len(steps) % 4)
    return level.offsets(parity, np.array(steps)), rng.normal(0, 0.3, len(steps)).astype(dtype)


def level_by_level(twin, x: np.ndarray, step: float, snap: bool, margins: np.ndarray = NO_MARGINS):
    """Return the codes and the grids of one level, its even points given."""
    level, rng = Level(x.shape, 1), np.random.default_rng(1)
    grids = np.full(level.num_places, 77, x.dtype)
    strides, live = strides_of(level), longs(level.live)
    x_strides = longs([x.shape[1] * x.shape[2], x.shape[2], 1])
    places = np.zeros(level.shape, bool)
    n = level.class_shape(EVEN)
    places[tuple(slice(a, a + b) for a, b in zip(level.live, n, strict=True))] = True
    grids[: level.size][places.reshape(-1)] = level.elements(x, EVEN).reshape(-1)
    twin.fill_margins(grids, level.start(EVEN), strides, longs(n), live)
    codes = []
    for parity in level.parities:
        shape = longs(level.class_shape(parity))
        part = np.empty(math.prod(level.class_shape(parity)), np.int32)
        offsets, weights = taps(level, parity, x.dtype, rng)
        begin = int(longs(parity) @ x_strides)
        args = (strides, shape, offsets, weights, step, snap)
        kinds = rng.integers(0, len(margins), part.size if len(margins) else 0).astype(np.uint8)
        twin.encode_class(
            x.reshape(-1), begin, 2 * x_strides, grids, level.start(parity), *args, kinds, margins, part
        )  # fmt: skip
        before = grids.copy()
        twin.decode_class(grids, level.start(parity), *args, part)
        assert np.array_equal(before.view(np.uint8), grids.view(np.uint8))
        twin.fill_margins(grids, level.start(parity), strides, shape, live)
        codes.append(part)
    return np.concatenate(codes), grids, level


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("snap", [False, True])
@pytest.mark.parametrize("kind", ["smooth", "special", "huge"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twins_agree(shape, dtype, kind, snap):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, shape).cumsum(axis=2).astype(dtype)
    if kind == "huge":
        x *= np.finfo(dtype).max / 8
    if kind == "special":
        x.reshape(-1)[rng.permutation(x.size)[:4]] = [np.nan, np.inf, -np.inf, -0.0]
    step = float(np.finfo(dtype).max) * 1e-9 if kind == "huge" else 0.01
    codes, grids, level = level_by_level(ref, x, step, snap)
    twin_codes, twin_grids, _ = level_by_level(numba, x, step, snap)
    assert np.array_equal(codes, twin_codes)
    assert np.array_equal(grids, twin_grids, equal_nan=True)
    if kind == "smooth":
        outs = [np.zeros(x.shape, dtype), np.zeros(x.shape, dtype)]
        strides = longs([x.shape[1] * x.shape[2], x.shape[2], 1])
        for twin, out in zip((ref, numba), outs, strict=True):
            twin.merge(grids, starts_of(level), strides_of(level), longs(x.shape), out.reshape(-1), 0, strides)
        assert np.array_equal(*outs)
        off_lattice = np.abs(outs[0] - x) > step * 0.5 + np.finfo(dtype).eps * np.abs(x).max()
        assert not off_lattice.any() or snap


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_rounded_towards_zero_as_the_margins_say(shape, dtype):
    x = np.random.default_rng(0).normal(0, 0.04, shape).astype(dtype)
    x.reshape(-1)[1] = np.nan
    margins = np.array([[0.0, 0.0, 0.0], [0.4, 0.2, 0.1], [1.0, 1.0, 1.0]])
    codes, grids, _ = level_by_level(ref, x, 0.02, False, margins)
    twin_codes, twin_grids, _ = level_by_level(numba, x, 0.02, False, margins)
    assert np.array_equal(codes, twin_codes)
    assert np.array_equal(grids, twin_grids, equal_nan=True)
    plain, _, _ = level_by_level(numba, x, 0.02, False)
    same, _, _ = level_by_level(numba, x, 0.02, False, margins[:1])
    least, _, _ = level_by_level(numba, x, 0.02, False, margins[2:])
    assert np.array_equal(plain, same)
    assert np.count_nonzero(least) < np.count_nonzero(plain)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_margins_go_straight_on(shape):
    level = Level(shape, 1)
    for twin in (ref, numba):
        for parity in (EVEN, *level.parities):
            grids = np.full(level.num_places, -1e9)
            places = np.indices(level.class_shape(parity))
            n, strides = longs(level.class_shape(parity)), strides_of(level)
            flat = level.start(parity) + np.tensordot(strides, places, 1)
            grids[flat] = np.tensordot([2.0, 3.0, 5.0], places, 1) + 7
            twin.fill_margins(grids, level.start(parity), strides, n, longs(level.live))
            wide = np.indices([a + 3 * b for a, b in zip(n, level.live, strict=True)])
            wide -= longs(level.live)[:, None, None, None]
            slopes = np.where(n > 1, [2.0, 3.0, 5.0], 0.0)  # one point goes on as it is
            expected = np.tensordot(slopes, wide, 1) + 7
            assert np.allclose(grids[level.start(parity) + np.tensordot(strides, wide, 1)], expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_magnitudes_are_repeated(shape):
    level = Level(shape, 1)
    results = []
    for twin in (ref, numba):
        grids = np.random.default_rng(2).integers(0, 60, level.num_places).astype(np.uint8)
        for parity in (EVEN, *level.parities):
            n = longs(level.class_shape(parity))
            twin.repeat_margins(grids, level.start(parity), strides_of(level), n, longs(level.live))
        results.append(grids)
    assert np.array_equal(*results)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_misses_are_found(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, 9001).astype(dtype)
    y = x + rng.uniform(-0.1, 0.1, x.size).astype(dtype)
    x[[0, 5, -1]] = np.nan, np.inf, -np.inf
    y[[5, 6]] = np.inf, np.nan
    found = []
    for twin in (ref, numba):
        positions = np.empty(x.size, np.uint32)
        found.append(positions[: twin.misses(x, y, 0.09, positions)])
    assert np.array_equal(*found)
    assert {0, 5, 6, 9000} <= set(found[0].tolist())
    assert np.count_nonzero(np.abs(y[7:-1] - x[7:-1]) > 0.09) <= found[0].size


@pytest.mark.parametrize("num", [0, 1, 15, 16, 333])
def test_sums_agree(num):
    rng = np.random.default_rng(0)
    vectors, shares = rng.normal(0, 1, (5, num)), rng.uniform(0, 1, num)
    grams = np.empty((2, 5, 5))
    x, points = rng.normal(0, 1, 500), rng.integers(20, 480, num)
    offsets, sizes = longs([-20, 3, 7, -1, 19, 2, 2]), longs([2, 4, 1])
    means = np.empty((2, 3, num))
    for twin, gram, mean in zip((ref, numba), grams, means, strict=True):
        twin.products(vectors, shares, gram)
        twin.group_means(x, points, offsets, sizes, mean)
    assert np.array_equal(*grams)
    assert np.array_equal(*means)
    assert np.allclose(grams[0], (vectors * shares) @ vectors.T)
    assert np.allclose(means[0, 0], (x[points - 20] + x[points + 3]) / 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_known_points_are_joined(shape, dtype):
    level, rng = Level(shape, 1), np.random.default_rng(3)
    x_strides, strides = longs([shape[1] * shape[2], shape[2], 1]), strides_of(level)
    values, known = (
        rng.normal(0, 1, math.prod(shape)).astype(dtype),
        rng.integers(0, 2, math.prod(shape)).astype(np.uint8),
    )
    grids, lacking = (rng.normal(0, 1, level.num_places).astype(dtype) for _ in range(2))
    for parity in level.parities:
        size, class_shape = math.prod(level.class_shape(parity)), longs(level.class_shape(parity))
        codes, others = (rng.integers(-9, 9, size).astype(np.int32) for _ in range(2))
        found = []
        for twin in (ref, numba):
            results = grids.copy(), lacking.copy(), codes.copy()
            place = int(longs(parity) @ x_strides), 2 * x_strides
            own = (level.start(parity), strides, class_shape)
            twin.join_class(values, known, *place, *results[:2], *own, results[2], others)
            found.append([part.tobytes() for part in results])
        assert found[0] == found[1]
        here = level.elements(known.reshape(shape), parity).reshape(-1) != 0
        assert np.array_equal(results[2], np.where(here, others, codes))
