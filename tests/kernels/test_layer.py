"""A network's layer: back ends agree, and the result does not depend on the order of sums."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.layer import numba, ref

SHAPES = [(1, 1, 1, 1), (3, 5, 7, 9), (5, 1, 64, 33), (2, 8, 48, 192), (7, 3, 27, 4), (2, 4, 4, 1)]


def case(shape: tuple[int, ...], seed: int = 0):
    """Return the arguments of a layer whose sums come close to the limit of what is exact."""
    samples, places, fan_in, width = shape
    rng = np.random.default_rng(seed)
    num_inputs = fan_in + 3
    largest = min(1023, (ref.EXACT - 1) // (127 * fan_in + 1))
    a = rng.integers(-largest, largest + 1, (samples, num_inputs + 1)).astype(np.float32)
    a[:, -1] = 0
    index = rng.integers(0, num_inputs + 1, (places, fan_in)).astype(np.int32)
    weights = rng.integers(-127, 128, (fan_in, width)).astype(np.float32)
    room = ref.EXACT - 1 - ref.largest_sum(weights, np.zeros(width), largest)
    bias = rng.integers(-room, room + 1, width).astype(np.float32)
    assert ref.largest_sum(weights, bias, largest) < ref.EXACT
    scale = np.ldexp(np.float32(1), -rng.integers(0, 25, width).astype(np.int32))
    return a, index, weights, bias, scale


def run(twin, args, low: float = -(2.0**24), high: float = 2.0**24) -> np.ndarray:
    a, index, weights = args[:3]
    out = np.full((len(a), len(index) * weights.shape[1] + 1), 77, np.float32)
    twin.forward(*args, low, high, out)
    assert not out[:, -1].any()
    return out


@pytest.mark.parametrize("limits", [(-(2.0**24), 2.0**24), (0.0, 1023.0), (-5.0, 5.0)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twins_agree(shape, limits):
    args = case(shape)
    assert np.array_equal(run(ref, args, *limits), run(numba, args, *limits))


def test_sums_are_whole_and_rounded_down():
    a = np.array([[3, -4, 0]], np.float32)
    args = a, np.array([[0, 1], [1, 2]], np.int32), np.array([[2], [5]], np.float32), np.array([1], np.float32)
    out = run(ref, (*args, np.array([0.25], np.float32)))
    assert out.tolist() == [[np.floor((6 - 20 + 1) / 4), np.floor((-8 + 0 + 1) / 4), 0]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_order_of_inputs_gives_the_same(shape):
    a, index, weights, bias, scale = case(shape, seed=1)
    expected = run(numba, (a, index, weights, bias, scale))
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(weights))
        shuffled = np.ascontiguousarray(index[:, order]), np.ascontiguousarray(weights[order])
        assert np.array_equal(run(numba, (a, *shuffled, bias, scale)), expected)
        # as a library that knows nothing of us adds up, in its own order and with fused operations
        sums = a[:, shuffled[0]] @ shuffled[1] + bias
        assert np.array_equal(np.floor(sums * scale).reshape(len(a), -1), expected[:, :-1])


def test_beyond_the_limit_order_matters():
    """The check is worth something: sums beyond 2^24 do depend on their order."""
    a = np.array([[2.0**24, 1, 1, -(2.0**24), 0]], np.float32)
    weights, bias, scale = np.ones((4, 1), np.float32), np.zeros(1, np.float32), np.ones(1, np.float32)
    results = {
        float(np.cumsum(a[0, list(order)], dtype=np.float32)[-1])
        for order in ([0, 1, 2, 3], [1, 2, 0, 3], [0, 3, 1, 2])
    }
    assert len(results) > 1
    assert ref.largest_sum(weights, bias, 2**24) >= ref.EXACT
    assert scale[0] == 1
