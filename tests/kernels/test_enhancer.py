"""Small integer networks: back ends, torch and sums in any order agree to the last bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from trimtab.kernels.enhancer import numba, ref
from trimtab.kernels.enhancer.ref import LARGEST_ACTIVATION, LARGEST_INPUT, SUM_LIMIT

TAPS = {
    1: [(-2,), (-1,), (1,), (2,)],
    2: [(0, 1), (-1, 0), (2, -2)],
    3: [step for step in itertools.product(range(-2, 3), repeat=3) if 0 < sum(s * s for s in step) <= 6],
}


class Case:
    """A block with margins of two on every axis, and networks of random weights."""

    def __init__(self, extents: tuple[int, ...], num_groups: int, hidden: tuple[int, ...], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.extents, self.wide = extents, tuple(n + 4 for n in extents)
        strides = [int(np.prod(self.wide[axis + 1 :])) for axis in range(len(extents))]
        self.q = rng.integers(-300, 300, int(np.prod(self.wide))).astype(np.int32)
        self.q[:: max(self.q.size // 50, 1)] = rng.choice([2**30 - 1, 1 - 2**30])
        places = np.arange(self.q.size).reshape(self.wide)
        self.starts = places[(slice(2, -2),) * (len(extents) - 1)][..., 2].astype(np.int64).reshape(-1)
        self.steps = TAPS[len(extents)]
        self.taps = np.array([np.dot(step, strides) for step in self.steps], np.int64)
        self.edges = np.unique(rng.integers(-200, 200, num_groups - 1)).astype(np.int32)
        num_groups = self.edges.size + 1
        self.origins = rng.integers(-200, 200, num_groups).astype(np.int32)
        self.limits = rng.integers(1, 129, num_groups).astype(np.int16)
        self.limits[1::3] = 0
        self.sizes = np.array([len(self.taps) + 1, *hidden, 1], np.int64)
        weights, biases, shifts = [], [], []
        for layer, (before, after) in enumerate(itertools.pairwise(self.sizes)):
            largest = LARGEST_ACTIVATION if layer else LARGEST_INPUT
            most = min((SUM_LIMIT - 1) // 2 // (largest * int(before)), 127)
            weights.append(rng.integers(-most, most + 1, (num_groups, after * before)))
            biases.append(rng.integers(-SUM_LIMIT // 2 + 1, SUM_LIMIT // 2, (num_groups, after)) // 256)
            shifts.append(rng.integers(7, 11, (num_groups, after)))
        self.weights = np.concatenate(weights, axis=1).astype(np.int16)
        self.biases = np.concatenate(biases, axis=1).astype(np.int32)
        self.shifts = np.concatenate(shifts, axis=1).astype(np.uint8)

    def run(self, twin) -> np.ndarray:
        out = np.full((self.starts.size, self.extents[-1]), -999, np.int16)
        networks = self.sizes, self.weights, self.biases, self.shifts
        groups = self.edges, self.origins, self.limits
        twin.correct(self.q, self.starts, self.extents[-1], self.taps, *groups, *networks, out)
        return out

    def inputs(self, g: int) -> np.ndarray:
        """Return the inputs of all elements, for the network of a group: one row an input."""
        places = (self.starts[:, None] + np.arange(self.extents[-1])).reshape(-1)
        centre = self.q[places].astype(np.int64)
        near = [self.q[places + tap] - centre for tap in self.taps]
        return np.clip(np.stack([*near, centre - self.origins[g]]), -LARGEST_INPUT, LARGEST_INPUT)

    def group(self) -> np.ndarray:
        places = self.starts[:, None] + np.arange(self.extents[-1])
        return (self.q[places][..., None] >= self.edges).sum(axis=-1)


@pytest.mark.parametrize("hidden", [(), (1,), (7,), (16, 8), (3, 5)], ids=str)
@pytest.mark.parametrize("num_groups", [1, 2, 16])
@pytest.mark.parametrize("extents", [(1,), (63,), (1000,), (3, 130), (1, 64), (4, 3, 65)], ids=str)
def test_twins_agree(extents, num_groups, hidden):
    case = Case(extents, num_groups, hidden)
    corrections = case.run(ref)
    assert np.array_equal(corrections, case.run(numba))
    limits = case.limits[case.group()]
    assert (abs(corrections) <= limits).all()
    assert corrections.any() or not limits.any()


@pytest.mark.parametrize("hidden", [(), (16, 8)], ids=str)
def test_torch_agrees_in_floats(hidden):
    """What a convolution followed by layers of one tap computes in float32 is the same, whatever order it sums in."""
    torch = pytest.importorskip("torch")
    case = Case((5, 6, 70), 1, hidden, seed=3)
    q = torch.from_numpy(np.clip(case.q, -100, 100).reshape(case.wide))
    case.q, case.origins[0] = q.numpy().reshape(-1) // 2, 0  # differences are not cut: they are linear in q
    x = torch.from_numpy(case.q.reshape(case.wide)).float()
    weights, biases, shifts = case.weights[0], case.biases[0], case.shifts[0]
    dense = np.zeros((case.sizes[1], 5, 5, 5), np.float32)
    first = weights[: case.sizes[1] * case.sizes[0]].reshape(case.sizes[1], -1)
    for k, (a, b, c) in enumerate(case.steps):
        dense[:, a + 2, b + 2, c + 2] = first[:, k]
    dense[:, 2, 2, 2] = first[:, -1] - first[:, :-1].sum(axis=1)
    values = torch.nn.functional.conv3d(x[None, None], torch.from_numpy(dense)[:, None])[0].flatten(1)
    weight, unit = first.size, 0
    for layer, (before, after) in enumerate(itertools.pairwise(map(int, case.sizes))):
        if layer:
            w = weights[weight : weight + before * after].reshape(after, before).astype(np.float32)
            values, weight = torch.from_numpy(w) @ values, weight + w.size
        values = values + torch.from_numpy(biases[unit : unit + after].astype(np.float32))[:, None]
        values = torch.floor(values * torch.from_numpy(2.0 ** -shifts[unit : unit + after].astype(np.float32))[:, None])
        unit += after
        if unit < biases.size:
            values = values.clamp(0, LARGEST_ACTIVATION)
    expected = values[0].clamp(-int(case.limits[0]), int(case.limits[0])).numpy().astype(np.int16)
    assert np.array_equal(case.run(numba).reshape(-1), expected)
    assert len(np.unique(expected)) > 9


@pytest.mark.parametrize("seed", range(5))
def test_inputs_in_any_order(seed):
    """Taps in another order, with their weights, make the same sums: none is rounded."""
    case = Case((3, 4, 100), 3, (8, 4), seed)
    before = case.run(numba)
    order = np.random.default_rng(seed).permutation(case.taps.size)
    case.taps = case.taps[order]
    width = int(case.sizes[0])
    for j in range(int(case.sizes[1])):
        own = case.weights[:, j * width : (j + 1) * width - 1]
        own[:] = own[:, order]
    assert np.array_equal(case.run(numba), before)


def test_sums_at_their_limit_are_exact():
    """All inputs at their largest: the sum is one below the limit, which is odd, and so is any smaller rounding."""
    case = Case((2, 3, 64), 1, ())
    case.q[:] = np.where(np.arange(case.q.size) % 2, 10**6, -(10**6))
    case.origins[0] = -(2**29)
    case.weights[:] = 127
    case.weights[0, -1] = 1
    case.shifts[:] = 0
    for bias in (SUM_LIMIT - 1 - (127 * (case.taps.size) + 1) * LARGEST_INPUT, -5):
        case.biases[:] = bias
        case.limits[:] = 128
        assert np.array_equal(case.run(ref), case.run(numba))
