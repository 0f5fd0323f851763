"""The bounds of all layers: from what was measured, to the noise or the bytes that were asked for."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from trimtab.codecs import Codec
from trimtab.train.gradient_error import NOTHING, PAPER_CONSTANT, Curve
from trimtab.train.saved import Layout

_LEAST, _MOST = 1e-3, 1e4  # of tolerances: noise of a thousandth of the momentum is none, whatever bytes are allowed
_LEAST_PART = 1e-6  # of the root mean square of an input
_HEADROOM = 1.01  # bytes aim a hundredth below what was asked for
_LEEWAY = 1.03  # bounds are chosen anew where bytes are so much below it


@dataclass
class Layer:
    """A layer whose input is kept within a bound."""

    name: str
    function: str
    bound: float | None = None
    """Of the next input; None before the first."""
    curve: Curve = NOTHING
    gain: float | None = None
    """G of `trimtab.train.gradient_error`: the variance of the gradient's noise for a mean squared error of 1."""
    error: float | None = None
    """The encoder's mean squared error at `measured_bound`."""
    measured_bound: float | None = None
    gradient: float | None = None
    """Mean absolute gradient of the weight."""
    momentum: float | None = None
    """Mean absolute momentum of the weight."""
    paper_gain: float | None = None
    """mean|gy| sqrt(N R) of the paper's form."""
    inverse_variance: float | None = None
    """Of batch normalisation: mean over the channels of 1 / std^2; zero where its input is rebuilt."""
    reason: str = ""
    """Why the input is kept exactly, if so."""
    num_values: int = 0
    num_bytes: int = 0
    """Of the last step: values saved, and bytes kept for them, if not by the layer whose input it shares."""
    shares: Layer | None = None
    """The layer that saved the same input before, if any: it is kept once, within the tighter of their bounds.

    Of batch normalisation whose input is rebuilt from a rectifier's result, the layer whose input that is.
    """
    rebuilt: bool = False
    """Whether the input was rebuilt when last saved: bound, curve, gain and error are then of what it is made from."""

    @property
    def target(self) -> float | None:
        """What noise is relative to."""
        return self.momentum if self.momentum else self.gradient

    @property
    def sigma(self) -> float | None:
        """The predicted standard deviation of the gradient's noise when it was last measured."""
        return None if self.gain is None or self.error is None else math.sqrt(self.gain * self.error)

    @property
    def paper_sigma(self) -> float | None:
        """The same by the paper's form."""
        if self.paper_gain is None or self.measured_bound is None:
            return None
        return PAPER_CONSTANT * self.measured_bound * self.paper_gain

    def sample(self, x: Tensor, codec: Codec, initial_bound: float) -> None:
        """Measure on a sample of an input what bounds cost, and take the initial bound if there is none yet."""
        curve = Curve.measure(Layout(x).flat(x), codec)
        if curve is not None:
            self.curve, self.reason = curve, ""
            if self.bound is None:
                self.bound = initial_bound * curve.scale
        elif self.bound is None:
            self.reason = "its input is zero, or holds NaN or infinities"

    def bound_for(self, tolerance: float, form: str) -> float:
        """Return the bound at which noise is `tolerance` times the momentum; a dead layer, without noise, has any."""
        most = self.curve.bounds[-1]
        if self.target is None:  # batch normalisation whose weight is not trained
            return most
        sigma = tolerance * self.target
        if form == "comet":
            return min(sigma / (PAPER_CONSTANT * self.paper_gain), most) if self.paper_gain else most
        return self.curve.bound_of_error(sigma**2 / self.gain) if self.gain else most

    @property
    def is_measured(self) -> bool:
        has_target = self.target is not None or self.inverse_variance is not None
        return self.curve is not NOTHING and self.num_values > 0 and self.gain is not None and has_target


class Controller:
    """Chooses bounds."""

    def __init__(self, tolerance: float | None, memory_ratio: float | None, form: str) -> None:
        self.tolerance, self._ratio, self._form = tolerance, memory_ratio, form
        self._warned = False

    def choose(self, layers: Iterable[Layer], before: int, after: int) -> None:
        """Set the bounds of the layers; the step before saved `before` bytes and kept `after`."""
        layers = [layer for layer in layers if layer.is_measured]
        if self._ratio is not None and layers:
            self.tolerance = self._least(layers, before, after, self._bounds, _LEAST)
        if self.tolerance is not None:
            self._set(layers, self._bounds(layers, self.tolerance))

    def scale(self, layers: Iterable[Layer], before: int, after: int) -> None:
        """Set bounds to one part of each layer's root mean square, so that the bytes are met: the fixed schedule."""
        layers = [layer for layer in layers if layer.curve is not NOTHING and layer.num_values > 0]
        self._set(layers, _parts(layers, self._least(layers, before, after, _parts, _LEAST_PART)))

    def is_off(self, before: int, after: int) -> bool:
        """Whether the bytes of a step are not those that were asked for; fewer are welcome if noise is the least."""
        if self._ratio is None or self.tolerance is None or not after:
            return False
        reached = before / after / self._ratio
        return reached < 1 or (reached > _LEEWAY and self.tolerance > _LEAST)

    @staticmethod
    def _set(layers: list[Layer], bounds: list[float]) -> None:
        for layer, bound in zip(layers, bounds, strict=True):
            layer.bound = bound

    def _bounds(self, layers: list[Layer], tolerance: float) -> list[float]:
        """Return the bounds at a tolerance.

        Those of batch normalisation are such that their error, relative to the deviation of a channel, is at most that
        of the median convolution or linear layer, relative to its input: what of it reaches the input's gradient, and
        so the layers before, is then small beside their own noise.
        """
        bounds = [layer.bound_for(tolerance, self._form) for layer in layers]
        relative = [
            layer.curve.error_of(bound) / layer.curve.scale**2
            for layer, bound in zip(layers, bounds, strict=True)
            if layer.inverse_variance is None
        ]
        if relative:
            most = statistics.median(relative)
            for place, layer in enumerate(layers):
                if layer.inverse_variance:
                    bounds[place] = min(bounds[place], layer.curve.bound_of_error(most / layer.inverse_variance))
        return _shared(layers, bounds)

    def _least(
        self,
        layers: list[Layer],
        before: int,
        after: int,
        bounds: Callable[[list[Layer], float], list[float]],
        least: float,
    ) -> float:
        """Return what, from `least` up, `bounds` has to be given so that as few bytes as asked for are predicted."""
        assert self._ratio is not None
        aim = before / (self._ratio * _HEADROOM)
        fixed = after - sum(layer.num_bytes for layer in layers)
        off = [_correction(layer) for layer in layers]

        def predicted(tolerance: float) -> float:
            return fixed + sum(
                factor * layer.num_values * layer.curve.bits_of(bound) / 8
                for layer, factor, bound in zip(layers, off, bounds(layers, tolerance), strict=True)
                if layer.shares is None
            )

        if predicted(least) <= aim:
            return least
        low, high = math.log(least), math.log(_MOST)
        if predicted(_MOST) > aim:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"memory_ratio={self._ratio:g} cannot be met: of {before} saved bytes, {fixed} are kept in other "
                    f"ways than within bounds, and the coarsest bounds, which are taken, leave "
                    f"{predicted(_MOST):.0f}; the report's functions say where they are",
                    stacklevel=2,
                )
            return _MOST
        while high - low > 0.005:
            middle = (low + high) / 2
            if predicted(math.exp(middle)) > aim:
                low = middle
            else:
                high = middle
        return math.exp(high)


def _parts(layers: list[Layer], part: float) -> list[float]:
    return _shared(layers, [min(part, 1) * layer.curve.scale for layer in layers])


def _shared(layers: list[Layer], bounds: list[float]) -> list[float]:
    """Return the bounds, where layers that share an input have the tightest of theirs."""
    least: dict[int, float] = {}
    for layer, bound in zip(layers, bounds, strict=True):
        key = id(layer.shares or layer)
        least[key] = min(bound, least.get(key, bound))
    return [least[id(layer.shares or layer)] for layer in layers]


def _correction(layer: Layer) -> float:
    """Return how many more bytes the whole input took than its sample foretold."""
    assert layer.bound is not None
    foretold = layer.curve.bits_of(layer.bound) * layer.num_values / 8
    return layer.num_bytes / foretold if foretold > 0 and layer.num_bytes else 1.0
