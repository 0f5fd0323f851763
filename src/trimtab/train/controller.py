"""The bounds of all layers: from what was measured, to the noise or the bytes that were asked for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from trimtab.train.gradient_error import PAPER_CONSTANT, Curve

_LEAST, _MOST = 1e-8, 1e4
_HEADROOM = 1.01  # bytes aim a hundredth below what was asked for


@dataclass
class Layer:
    """A layer whose input is kept within a bound."""

    name: str
    function: str
    bound: float | None = None
    """Of the next input; None before the first."""
    curve: Curve | None = None
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
    coarsest: float = 1.0
    """The largest bound, as a part of the root mean square of the input."""
    reason: str = ""
    """Why the input is kept exactly, if so."""
    num_values: int = 0
    num_bytes: int = 0
    """Of the last step: values saved, and bytes kept for them."""

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

    def bound_for(self, tolerance: float, form: str) -> float | None:
        """Return the bound at which noise is `tolerance` times the momentum; None where nothing was measured."""
        if self.curve is None or self.target is None:
            return None
        most = self.coarsest * self.curve.scale
        if form == "comet" and self.paper_gain is not None:
            return min(tolerance * self.target / (PAPER_CONSTANT * self.paper_gain), most) if self.paper_gain else most
        if not self.gain:  # a dead layer: no gradient, so no noise
            return most if self.gain == 0 else None
        error = (tolerance * self.target) ** 2 / self.gain
        if error <= 0:
            return self.curve.bounds[0]
        return min(self.curve.bound_of_error(error), most)


class Controller:
    """Chooses bounds."""

    def __init__(self, tolerance: float | None, memory_ratio: float | None, form: str) -> None:
        self.tolerance, self._ratio, self._form = tolerance, memory_ratio, form
        self._warned = False

    def choose(self, layers: Iterable[Layer], before: int, after: int) -> None:
        """Set the bounds of the layers; the step before saved `before` bytes and kept `after`."""
        layers = [layer for layer in layers if layer.curve is not None and layer.num_values and not layer.reason]
        if self._ratio is not None:
            self.tolerance = self._solve(layers, before, after)
        assert self.tolerance is not None
        for layer in layers:
            bound = layer.bound_for(self.tolerance, self._form)
            if bound is not None:
                layer.bound = bound

    def scale(self, layers: Iterable[Layer], before: int, after: int) -> None:
        """Set bounds to one part of each layer's root mean square, so that the bytes are met: the fixed schedule."""
        assert self._ratio is not None
        layers = [layer for layer in layers if layer.curve is not None and layer.num_values and not layer.reason]

        def bound_of(layer: Layer, part: float) -> float:
            assert layer.curve is not None
            return min(part, layer.coarsest) * layer.curve.scale

        part = self._bisect(layers, before, after, bound_of)
        for layer in layers:
            layer.bound = bound_of(layer, part)

    def _solve(self, layers: list[Layer], before: int, after: int) -> float:
        return self._bisect(layers, before, after, lambda layer, t: layer.bound_for(t, self._form) or layer.bound)

    def _bisect(self, layers, before: int, after: int, bound_of) -> float:
        """Return the least tolerance whose predicted bytes are `memory_ratio` times fewer."""
        assert self._ratio is not None
        aim = before / (self._ratio * _HEADROOM)
        fixed = after - sum(layer.num_bytes for layer in layers)
        off = [_correction(layer) for layer in layers]

        def predicted(tolerance: float) -> float:
            return fixed + sum(
                factor * layer.num_values * layer.curve.bits_of(bound_of(layer, tolerance)) / 8
                for layer, factor in zip(layers, off, strict=True)
            )

        low, high = math.log(_LEAST), math.log(_MOST)
        if predicted(_MOST) > aim:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"memory_ratio={self._ratio:g} cannot be met: {fixed} of {before} saved bytes are not within bounds"
                    f" and the coarsest bounds leave {predicted(_MOST):.0f} in all; the coarsest are taken",
                    stacklevel=5,
                )
            return _MOST
        while high - low > 0.01:
            middle = (low + high) / 2
            if predicted(math.exp(middle)) > aim:
                low = middle
            else:
                high = middle
        return math.exp(high)


def _correction(layer: Layer) -> float:
    """Return how many more bytes the whole input took than its sample foretold."""
    assert layer.curve is not None and layer.bound is not None
    foretold = layer.curve.bits_of(layer.bound) * layer.num_values / 8
    return layer.num_bytes / foretold if foretold > 0 and layer.num_bytes else 1.0
