"""How the networks of GWLZ are fitted to one array: samples, groups, descent, and whole numbers in place of floats.

The networks learn the error of the base codec, in error limits, from the differences of its output to the neighbours.
Without hidden layers the fit is weighted least squares in closed form; with them it is Adam (Kingma and Ba, ICLR 2015)
on the mean squared error, for a fixed number of steps from a fixed seed, and then least squares for the last layer on
the activations that the decoder will see. Weights are rounded before anything is measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trimtab.codecs.gwlz_networks import CORRECTION_UNITS, LARGEST_LIMIT, Networks, View
from trimtab.kernels.enhancer.ref import LARGEST_ACTIVATION, LARGEST_INPUT, SUM_LIMIT

_THINNED = 8  # of elements like all their neighbours one in so many is taken, and counts as so many
_INPUT_SCALE = 16.0
_BATCH = 2048
_RATE = 4e-3
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_MOST_REFITTED = 1 << 17  # rows of a least-squares fit
_RIDGE = 1e-6
_FIRST_LARGEST, _LARGEST_WEIGHT = 127, 511
_MIN_ROWS = 256  # a group with fewer samples is left alone
_CANDIDATE_LIMITS = (0, 16, 32, 48, 64, 80, 96, 112, LARGEST_LIMIT)
_EXTRA_BITS = 2.0  # of an element that is kept, beyond the logarithm of how rare it is


@dataclass(frozen=True)
class Samples:
    """Elements of an array: differences to neighbours (int8, a row each), own number, error in limits, weight."""

    near: np.ndarray
    own: np.ndarray
    error: np.ndarray
    weight: np.ndarray

    @classmethod
    def draw(cls, view: View, places: np.ndarray, error: np.ndarray) -> Samples:
        """Return the elements at `places` of a tile whose errors, given in limits, are finite."""
        finite = np.isfinite(error)
        places, error = places[finite], error[finite]
        rows, columns = np.divmod(places, view.num)
        at = view.starts[rows] + columns
        own = view.q[at].astype(np.int64)
        near = np.empty((at.size, view.taps.size), np.int8)
        for k, tap in enumerate(view.taps):
            near[:, k] = np.clip(view.q[at + tap] - own, -LARGEST_INPUT, LARGEST_INPUT)
        dull = ~near.any(axis=1)
        taken = np.flatnonzero(~dull | (np.cumsum(dull) % _THINNED == 0))
        weight = np.where(dull, _THINNED, 1).astype(np.float32)[taken]
        return cls(near[taken], own[taken], error[taken].astype(np.float32), weight)

    @classmethod
    def join(cls, parts: Sequence[Samples]) -> Samples:
        """Return the samples of all tiles in one."""
        fields = [[getattr(part, name) for part in parts] for name in ("near", "own", "error", "weight")]
        return cls(*(np.concatenate(field) for field in fields))

    def of(self, where: np.ndarray) -> Samples:
        """Return some of them."""
        return Samples(self.near[where], self.own[where], self.error[where], self.weight[where])

    @property
    def energy(self) -> np.ndarray:
        """Weighted squared errors."""
        return self.weight * self.error**2


@dataclass(frozen=True)
class Price:
    """What bytes buy where the base codec spends them: squared error falls as their power of minus `exponent`."""

    num_bytes: int
    exponent: float

    def cost(self, squared_error: float, num_bytes: float) -> float:
        """Return the squared error that the base codec would need, with its own bytes alone, to be as good."""
        return squared_error * ((self.num_bytes + num_bytes) / self.num_bytes) ** self.exponent


@dataclass(frozen=True)
class Fitted:
    """Networks, the squared error expected with them, and its `Price.cost`, both relative to the error without them."""

    networks: Networks
    relative_error: float
    relative_cost: float


def fit(
    samples: Samples,
    num_elements: int,
    groups: int,
    hidden: Sequence[int],
    steps: int,
    seed: int,
    price: Price,
    allowed: float,
) -> Fitted | None:
    """Return networks for at most `groups` groups, with limits for which the corrections pay; None where none do.

    Elements whose error would exceed `allowed`, in error limits of the base codec, count as kept, and as their bytes.
    Half of the samples are learnt from, the other half tells what is gained.
    """
    if samples.own.size < 2 * _MIN_ROWS or not samples.energy.sum() > 0:
        return None
    rng = np.random.default_rng(seed)
    learnt = np.zeros(samples.own.size, bool)
    learnt[rng.permutation(samples.own.size)[::2]] = True
    edges = _edges(samples, groups)
    group_of = np.searchsorted(edges, samples.own, side="right")
    energy = np.bincount(group_of, samples.energy, edges.size + 1)
    total = float(energy.sum())
    origins = np.array([edges[0] if edges.size else _middle(samples), *edges], np.int64)
    made = []
    for g in range(edges.size + 1):
        members = samples.of(np.flatnonzero(learnt & (group_of == g)))
        own_steps = max(int(steps * energy[g] / total), steps // (4 * (edges.size + 1)))
        made.append(_Network.fit(members, int(origins[g]), hidden, own_steps, rng))
    networks = _join(made, edges, origins)
    return _limited(networks, made, samples.of(np.flatnonzero(~learnt)), num_elements, price, allowed)


def _edges(samples: Samples, groups: int) -> np.ndarray:
    """Return edges (int32) between groups that have like shares of the squared error."""
    order = np.argsort(samples.own, kind="stable")
    shares = np.cumsum(samples.energy[order], dtype=np.float64)
    at = np.searchsorted(shares, shares[-1] * np.arange(1, groups) / groups)
    edges = np.unique(samples.own[order][at] + 1)
    return edges[edges <= samples.own.max()].astype(np.int32)


def _middle(samples: Samples) -> int:
    return int(np.median(samples.own))


def _inputs(samples: Samples, origin: int) -> np.ndarray:
    own = np.clip(samples.own - origin, -LARGEST_INPUT, LARGEST_INPUT)
    return np.concatenate([samples.near, own[:, None].astype(np.int8)], axis=1)


@dataclass(frozen=True)
class _Network:
    """The network of one group in whole numbers: a layer each of weights, biases and shifts."""

    layers: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    silent: bool = False

    @classmethod
    def fit(
        cls, samples: Samples, origin: int, hidden: Sequence[int], steps: int, rng: np.random.Generator
    ) -> _Network:
        inputs = _inputs(samples, origin)
        sizes = [inputs.shape[1], *hidden, 1]
        if samples.own.size < _MIN_ROWS:
            return cls([(np.zeros((b, a)), np.zeros(b), np.zeros(b)) for a, b in itertools.pairwise(sizes)], True)
        floats = _descend(inputs, samples, hidden, steps, rng) if hidden else []
        network, scale = cls([]), np.full(inputs.shape[1], 1 / _INPUT_SCALE)
        few = rng.permutation(samples.own.size)[:_MOST_REFITTED]
        inputs, samples = inputs[few].astype(np.float32), samples.of(few)
        for weights, bias in floats:  # the unit of each input goes into the weights
            layer, scale = _rounded(
                weights * scale, bias, inputs, _LARGEST_WEIGHT if network.layers else _FIRST_LARGEST
            )
            network.layers.append(layer)
            inputs = _activations(inputs, layer)
        weights, bias = _least_squares(inputs, samples)
        network.layers.append(rounded_last(weights, bias, _LARGEST_WEIGHT if hidden else _FIRST_LARGEST, bool(hidden)))
        return network

    def corrections(self, samples: Samples, origin: int) -> np.ndarray:
        """Return the corrections of samples, not yet limited."""
        values = _inputs(samples, origin).astype(np.float32)
        for layer in self.layers[:-1]:
            values = _activations(values, layer)
        weights, biases, shifts = self.layers[-1]
        sums = (values @ weights.T.astype(np.float32) + biases.astype(np.float32)).astype(np.int64)
        return (sums >> shifts.astype(np.int64))[:, 0]


def _descend(
    inputs: np.ndarray, samples: Samples, hidden: Sequence[int], steps: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return weights and biases of the hidden layers, in floats, for inputs over `_INPUT_SCALE`."""
    sizes = [inputs.shape[1], *hidden, 1]
    weights = [rng.standard_normal((b, a)).astype(np.float32) * math.sqrt(2 / a) for a, b in itertools.pairwise(sizes)]
    weights[-1] *= 0.1
    parameters = [p for w in weights for p in (w.astype(np.float32), np.zeros(len(w), np.float32))]
    moments = [(np.zeros_like(p), np.zeros_like(p)) for p in parameters]
    for step in range(steps):
        batch = rng.integers(0, samples.own.size, _BATCH)
        values = [inputs[batch].astype(np.float32) / np.float32(_INPUT_SCALE)]
        for k in range(0, len(parameters) - 2, 2):
            values.append(np.maximum(values[-1] @ parameters[k].T + parameters[k + 1], 0))
        estimate = values[-1] @ parameters[-2].T + parameters[-1]
        weight = samples.weight[batch, None]
        slope = (estimate - samples.error[batch, None]) * weight * np.float32(2 / weight.sum())
        gradients = []
        for k in range(len(parameters) - 2, -1, -2):
            gradients += [slope.sum(axis=0), slope.T @ values[k // 2]]
            slope = (slope @ parameters[k]) * (values[k // 2] > 0) if k else slope
        rate = _RATE * (1 - step / steps)
        for p, (mean, square), gradient in zip(parameters, moments, reversed(gradients), strict=True):
            mean += (1 - _BETA1) * (gradient - mean)
            square += (1 - _BETA2) * (gradient**2 - square)
            unbiased = mean / (1 - _BETA1 ** (step + 1)), square / (1 - _BETA2 ** (step + 1))
            p -= rate * unbiased[0] / (np.sqrt(unbiased[1]) + _EPSILON)
    return list(zip(parameters[:-2:2], parameters[1:-2:2], strict=True))


def _rounded(
    weights: np.ndarray, bias: np.ndarray, inputs: np.ndarray, largest: int
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Return a hidden layer in whole numbers for whole inputs, and what one of each unit's activation stands for."""
    most = LARGEST_INPUT if largest == _FIRST_LARGEST else LARGEST_ACTIVATION
    factor = largest / np.maximum(abs(weights).max(axis=1), 1e-30)
    factor = np.minimum(factor, (SUM_LIMIT / 2) / (abs(weights).sum(axis=1) * most + abs(bias) + 1e-30))
    whole = np.rint(weights * factor[:, None])
    biases = np.rint(bias * factor)
    tops = np.quantile(inputs @ whole.T.astype(np.float32) + biases.astype(np.float32), 0.9999, axis=0)
    shifts = np.ceil(np.log2(np.maximum(tops, 1) / LARGEST_ACTIVATION)).clip(0, 31)
    return (whole, biases, shifts), 2.0**shifts / factor


def _activations(inputs: np.ndarray, layer: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    weights, biases, shifts = layer
    sums = inputs @ weights.T.astype(np.float32) + biases.astype(np.float32)
    return np.clip(np.floor(sums * (2.0**-shifts).astype(np.float32)), 0, LARGEST_ACTIVATION)


def _least_squares(inputs: np.ndarray, samples: Samples) -> tuple[np.ndarray, float]:
    """Return weights and bias for which the weighted inputs come closest to the errors, in units of a correction."""
    columns = np.concatenate([inputs, np.ones((len(inputs), 1), np.float32)], axis=1).astype(np.float64)
    weighted = columns * samples.weight[:, None]
    gram = weighted.T @ columns
    scale = np.sqrt(np.maximum(gram.diagonal(), 1e-30))  # so that the ridge is alike in all inputs
    gram /= scale[:, None] * scale
    gram[np.diag_indices_from(gram)] += _RIDGE * 10
    solution = np.linalg.solve(gram, weighted.T @ samples.error / scale) / scale * LARGEST_LIMIT
    return solution[:-1], float(solution[-1])


def rounded_last(
    weights: np.ndarray, bias: float, largest: int, hidden: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the last layer in whole numbers: weights (int, as floats), bias and shift."""
    most = LARGEST_ACTIVATION if hidden else LARGEST_INPUT
    largest = min(largest, SUM_LIMIT // 2 // (weights.size * most))
    shift = 24
    while shift > 0:
        scale = 2.0**shift
        bound = (abs(weights).sum() * most + abs(bias) + 1) * scale + weights.size * most
        if abs(weights).max() * scale <= largest and bound < SUM_LIMIT:
            break
        shift -= 1
    whole = np.clip(np.rint(weights * 2.0**shift), -largest, largest)
    biases = np.rint(bias * 2.0**shift) + 2.0**shift / 2  # so that shifting right rounds to the nearest
    room = SUM_LIMIT - 1 - abs(whole).sum() * most
    return whole[None], np.clip(np.array([biases]), -room, room), np.array([float(shift)])


def _join(made: Sequence[_Network], edges: np.ndarray, origins: np.ndarray) -> Networks:
    first = made[0].layers
    sizes = np.array([first[0][0].shape[1], *(len(layer[0]) for layer in first)], np.int64)
    weights, biases, shifts = (
        np.stack([np.concatenate([layer[part].reshape(-1) for layer in network.layers]) for network in made])
        for part in range(3)
    )
    limits = np.array([0 if network.silent else LARGEST_LIMIT for network in made], np.int16)
    return Networks(
        edges,
        origins.astype(np.int32),
        limits,
        sizes,
        weights.astype(np.int16),
        biases.astype(np.int32),
        shifts.astype(np.uint8),
    )


def _limited(
    networks: Networks, made: Sequence[_Network], samples: Samples, num_elements: int, price: Price, allowed: float
) -> Fitted | None:
    """Return the networks with each group's limit chosen: what is gained against the bytes of elements kept."""
    group_of = np.searchsorted(networks.edges, samples.own, side="right")
    before = float(samples.energy.sum())
    each = num_elements / float(samples.weight.sum())  # elements that a weight of 1 stands for
    error_per_bit = before * price.exponent / (8 * price.num_bytes)
    limits = networks.limits.copy()
    after, kept_bits = 0.0, 0.0
    for g in range(networks.num_groups):
        members = samples.of(np.flatnonzero(group_of == g))
        best = (float(members.energy.sum()), 0.0, 0)
        if limits[g] and members.own.size:
            raw = made[g].corrections(members, int(networks.origins[g]))
            for limit in _CANDIDATE_LIMITS[1:]:
                left = members.error - np.clip(raw, -limit, limit).astype(np.float32) / LARGEST_LIMIT
                missed = abs(left) > allowed
                left[missed] = members.error[missed]
                num_missed = float(members.weight[missed].sum())
                bits = _kept_bits(num_missed * each, num_elements)
                squared = float((members.weight * left**2).sum())
                if squared + error_per_bit * bits < best[0] + error_per_bit * best[1]:
                    best = squared, bits, limit
        after, kept_bits, limits[g] = after + best[0], kept_bits + best[1], best[2]
    if not limits.any():
        return None
    networks = replace(networks, limits=limits)
    num_bytes = networks.to_bytes().size + kept_bits / 8
    return Fitted(networks, after / before, price.cost(after, num_bytes) / before)


def _kept_bits(count: float, num_elements: int) -> float:
    """Return about how many bits it takes to say which elements are kept."""
    return count * (math.log2(num_elements / count) + _EXTRA_BITS) if count > 0 else 0.0


assert LARGEST_LIMIT == 4 * CORRECTION_UNITS  # an error limit is four units of the inputs
