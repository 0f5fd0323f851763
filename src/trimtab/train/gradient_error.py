"""How much noise an error in a saved input makes in a layer's gradient.

A convolution or a linear layer forms the gradient of a weight as a sum, over batch and positions p, of the output's
gradient times an input: dW[o, i, k] = sum_p gy[o, p] x[i, p + k]. Errors e of the inputs, of mean square `mse` and
without correlation among each other or to gy, add noise of the variance

    sigma^2 = mse * G,   G = mean over o and k of the sum over p of gy[o, p]^2, where p + k is inside the input

Rounding errors that fill (-eb, eb) evenly have mse = eb^2 / 3, and exact zeros have none; the encoder's real mean
square covers both, and coarse bins too, where errors are not even. By the central limit theorem the noise is Gaussian.

The input of batch normalisation enters the gradient of its weight, dgamma_c = sum_p gy[c, p] xhat[c, p] with
xhat = (x - mean_c) / std_c, so G = mean over c of the sum of gy[c]^2 / std_c^2. It also enters the input's gradient,

    dx = gamma / std * (gy - mean(gy) - xhat * mean(gy * xhat)),

where an error e in x adds gamma / std * (e / std) * mean(gy * xhat), plus the noise of dgamma / N spread over xhat.
Relative to the root mean square of gy, the first is e / std times the correlation of gy and xhat, at most 1 and mostly
near 0; the second is sqrt(mse) / std / sqrt(N).

The paper's form, from memory, is sigma = a * eb * mean|gy| * sqrt(N R), with R the part of inputs that are not zero and
N all summed positions. `PAPER_CONSTANT` stands for a; it was calibrated on our runs.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.arrays import as_numpy
from trimtab.bounds import Abs
from trimtab.codecs.codec import Codec
from trimtab.train.functions import argument, spread

PAPER_CONSTANT = 0.96
"""Of the paper's form; with N counting all summed positions, 0.94 to 0.99 fitted."""

_NUM_CHUNKS, _CHUNK = 24, 1024
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 11
"""Bounds that are tried on a sample: the root mean square of a layer's input and its halves."""


@dataclass(frozen=True)
class Curve:
    """What bounds cost a tensor, measured on a sample: all three ascend."""

    bounds: tuple[float, ...]
    errors: tuple[float, ...]
    """Mean squared error of each."""
    bits: tuple[float, ...]
    """Bits a value, descending."""
    scale: float
    """The root mean square of the values."""

    @classmethod
    def measure(cls, x: Tensor, codec: Codec) -> Curve | None:
        """Return the curve of the values of `x` (flat); None where they are not finite or all zero."""
        sample = x
        if x.numel() > _NUM_CHUNKS * _CHUNK:
            step = x.numel() / _NUM_CHUNKS  # from anywhere in each stretch, so that channels come by turns
            starts = [int(n * step + n * _GOLDEN % 1 * (step - _CHUNK)) for n in range(_NUM_CHUNKS)]
            sample = torch.cat([x[start : start + _CHUNK] for start in starts])
        scale = float(torch.linalg.vector_norm(sample, dtype=torch.float32)) / math.sqrt(max(sample.numel(), 1))
        if not (math.isfinite(scale) and scale > 0):
            return None
        array = as_numpy(sample.contiguous())
        bounds, errors, bits = [], [], []
        for power in range(_STEPS - 1, -1, -1):
            bound = scale * 2.0**-power
            packed = codec.encode(array, Abs(bound))
            bounds.append(bound)
            errors.append(mean_square(array, codec.decode(packed)))
            bits.append(8 * packed.num_bytes / array.size)
        errors = np.maximum.accumulate(errors).tolist()
        bits = np.minimum.accumulate(bits).tolist()
        return cls(tuple(bounds), tuple(errors), tuple(bits), scale)

    def bound_of_error(self, error: float) -> float:
        """Return the bound whose mean squared error is `error`, within the bounds that were tried."""
        if error <= self.errors[0]:
            # errors of fine bounds fill the bins evenly: they go with the square
            return self.bounds[0] * max(math.sqrt(error / self.errors[0]) if self.errors[0] > 0 else 1, 2.0**-10)
        place = bisect.bisect_left(self.errors, error)
        if place == len(self.errors):
            return self.bounds[-1]
        return _between(error, self.errors[place - 1 : place + 1], self.bounds[place - 1 : place + 1])

    def error_of(self, bound: float) -> float:
        """Return the mean squared error within `bound`."""
        place = bisect.bisect_left(self.bounds, bound)
        if place == 0:
            return self.errors[0] * (bound / self.bounds[0]) ** 2
        if place == len(self.bounds):
            return self.errors[-1]
        return _between(bound, self.bounds[place - 1 : place + 1], self.errors[place - 1 : place + 1])

    def bits_of(self, bound: float) -> float:
        """Return the bits a value within `bound`."""
        place = bisect.bisect_left(self.bounds, bound)
        if place == 0:
            return self.bits[0] + math.log2(self.bounds[0] / bound)
        if place == len(self.bounds):
            return self.bits[-1]
        low, high = self.bounds[place - 1 : place + 1]
        part = math.log(bound / low) / math.log(high / low)
        return self.bits[place - 1] * (1 - part) + self.bits[place] * part


NOTHING = Curve((), (), (), 0.0)
"""Of a layer that was not measured."""


def _between(x: float, xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    """Interpolate between two points, in logarithms."""
    if min(xs[0], ys[0]) <= 0 or xs[1] <= xs[0]:
        return ys[1]
    part = math.log(x / xs[0]) / math.log(xs[1] / xs[0])
    return ys[0] * (ys[1] / ys[0]) ** part


def mean_square(x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean squared difference in float64."""
    difference = x.astype(np.float32) - y.astype(np.float32)
    return float(np.vdot(difference, difference)) / max(difference.size, 1)


def reach(
    function: str, sizes: torch.Size, outputs: torch.Size, weight: Tensor, args: tuple, kwargs: dict[str, Any]
) -> list[Tensor]:
    """Return, for each axis, the part of a convolution's taps that meet an input, by output position.

    `sizes` and `outputs` are the shapes of input and output. Taps beyond the edge meet padding, which has no error.
    """
    num = weight.dim() - 2
    transposed = function.startswith("conv_transpose")
    stride = spread(argument(args, kwargs, 3, "stride", 1), num)
    padding = argument(args, kwargs, 4, "padding", 0)
    dilation = spread(argument(args, kwargs, 7 if transposed else 5, "dilation", 1), num)
    parts = []
    for axis in range(num):
        taps = weight.shape[2 + axis]
        before = _padding(padding, axis, num, taps, dilation[axis])
        places = torch.arange(outputs[axis - num]).unsqueeze(1)
        offsets = torch.arange(taps).unsqueeze(0) * dilation[axis]
        if transposed:  # output p meets input (p + padding - offset) / stride
            scaled = places + before - offsets
            inside = (scaled >= 0) & (scaled % stride[axis] == 0) & (scaled // stride[axis] < sizes[axis - num])
        else:
            met = places * stride[axis] - before + offsets
            inside = (met >= 0) & (met < sizes[axis - num])
        parts.append(inside.double().mean(1))
    return parts


def _padding(padding: Any, axis: int, num: int, taps: int, dilation: int) -> int:
    if padding == "valid":
        return 0
    if padding == "same":
        return dilation * (taps - 1) // 2
    return spread(padding, num)[axis]


def product_gain(gradient: Tensor, parts: list[Tensor]) -> float:
    """Return G of a convolution's or a linear layer's output gradient; `parts` are of `reach`, none for linear."""
    gradient = gradient.detach()
    if not parts:
        return float(torch.linalg.vector_norm(gradient, dtype=torch.float32)) ** 2 / gradient.shape[-1]
    axis = gradient.dim() - len(parts) - 1
    squares = gradient.float().square()
    total = squares.sum(dim=tuple(range(axis + 1))).double().cpu()
    for part in reversed(parts):
        total = total @ part
    return float(total) / gradient.shape[axis]


def norm_gain(gradient: Tensor, deviations: Tensor) -> float:
    """Return G of the output gradient of batch normalisation; `deviations` are the 1 / std of each channel."""
    dims = [axis for axis in range(gradient.dim()) if axis != 1]
    squares = gradient.detach().float().square().sum(dim=dims)
    return float((squares * deviations.square()).mean())
