"""The input of batch normalisation, rebuilt from the result of the rectifier behind it.

With xhat = (x - mean) / std, batch normalisation gives y = gamma xhat + beta, and a rectifier r = max(y, 0), which the
next convolution keeps within a bound. Where r is above zero, x is an affine function of it: x = mean + std (r - beta) /
gamma. Where r is zero the rectifier passes no gradient, so there x has no part in the gradient of gamma, the sum of
gy xhat, nor in that of beta, the sum of gy. It has one in the input's gradient alone,

    dx = gamma / std * (gy - mean(gy) - xhat * mean(gy * xhat)),

and there the mean of x over those positions, one value a channel, stands for it: the sum of xhat stays zero, and so
that of dx. This is an approximation of dx, not a bound on the error of x. It costs dx what xhat * mean(gy * xhat)
varies by over those positions, which is small, since gy and xhat hardly correlate.

An error of at most eb in r is one of eb / |gamma| in xhat. Channels where that is more than `COARSEST` are kept
themselves, as xhat within `COARSEST`, so that it is the bound of all.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from trimtab.codecs import Codec
from trimtab.train.functions import Call, Kind, argument
from trimtab.train.saved import Bounded, Layout, Saved, check_version

COARSEST = 0.5
"""The largest error of xhat, in standard deviations."""


class Rebuilt:
    """The input of batch normalisation, as an affine function of the rectifier's result."""

    __slots__ = ("_columns", "_dead", "_factor", "_kept", "_layout", "_offset", "_places", "_result", "sensitivity")
    sensitivity: Tensor
    """The error of xhat for one of 1 in the rectifier's result, in each channel: 1 / |gamma|."""

    def __init__(self, x: Tensor, r: Tensor, result: Bounded, affine: Affine, codec: Codec, start: int) -> None:
        """`result` keeps the rectifier's result `r`; `start` is that of the dither of channels that are kept."""
        self._layout, self._result = Layout(x), result
        result.readers += 1
        x, r = x.detach(), r.detach()
        axes, columns = [axis for axis in range(x.dim()) if axis != 1], (1, -1) + (1,) * (x.dim() - 2)
        mean, deviation = affine.statistics(x)
        coarse = result.bound > COARSEST * affine.gamma.abs()
        factor = torch.where(coarse, deviation, deviation / affine.gamma)
        offset = torch.where(coarse, mean, mean - factor * affine.beta)
        num, alive = x.numel() // x.shape[1], torch.count_nonzero(r, dim=axes)
        rest = num * mean - alive * offset - factor * r.sum(dim=axes, dtype=torch.float32)
        dead = torch.where(alive < num, rest / (num - alive).clamp(min=1), mean)
        self._columns, self._kept = columns, None
        self._factor, self._offset, self._dead = factor.float(), offset.float(), dead.float()
        self.sensitivity = 1 / torch.where(coarse, result.bound / COARSEST, affine.gamma.abs())
        if bool(coarse.any()):
            self._places = coarse.nonzero().view(-1)
            some = x[:, self._places].float() - self._offset[self._places].view(columns)
            self._kept = Bounded(some.div_(self._factor[self._places].view(columns)), codec, COARSEST, start=start)

    @property
    def num_bytes(self) -> int:
        """What is kept beside the rectifier's result."""
        kept = 0 if self._kept is None else self._kept.num_bytes + self._places.nbytes
        return self._factor.nbytes + self._offset.nbytes + self._dead.nbytes + kept

    def restore(self) -> Tensor:
        return self._from(self._result.restore())

    def decode(self) -> Tensor:
        """Return the values, decoded anew."""
        return self._from(self._result.decode())

    def _from(self, r: Tensor) -> Tensor:
        x, columns = self._layout.empty(), self._columns
        torch.addcmul(self._offset.view(columns), r, self._factor.view(columns), out=x)
        torch.where(r <= 0, self._dead.to(x.dtype).view(columns), x, out=x)
        if self._kept is not None:
            factor, offset = (each[self._places].view(columns) for each in (self._factor, self._offset))
            x[:, self._places] = torch.addcmul(offset, self._kept.decode(), factor).to(x.dtype)
        return x


class Affine:
    """What batch normalisation does to each channel; copies, since the optimizer changes the parameters."""

    __slots__ = ("_eps", "_mean", "_variance", "beta", "gamma")

    def __init__(self, x: Tensor, call: Call) -> None:
        args, kwargs = call.args, call.kwargs
        mean, variance = argument(args, kwargs, 1, "running_mean"), argument(args, kwargs, 2, "running_var")
        gamma, beta = argument(args, kwargs, 3, "weight"), argument(args, kwargs, 4, "bias")
        zeros = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        self.gamma = zeros + 1 if gamma is None else gamma.detach() + zeros
        self.beta = zeros if beta is None else beta.detach() + zeros
        self._eps = argument(args, kwargs, 7, "eps", 1e-5)
        self._mean = self._variance = None
        if not argument(args, kwargs, 5, "training", False) and mean is not None and variance is not None:
            self._mean, self._variance = mean + zeros, variance + zeros

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the deviation of each channel of the input: float64[channels]."""
        if self._mean is not None and self._variance is not None:
            return self._mean, (self._variance + self._eps).sqrt()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x.float(), dim=axes, correction=0)
        return mean.double(), (variance.double() + self._eps).sqrt()


class Undecided:
    """Stands for the input of batch normalisation until it is known what becomes of the output.

    `rebuild` is for where a rectifier reads the output, nothing else does, and the rectifier's result is kept as
    values; else `settle`. `meets` and `is_read_by` watch the functions that read the output. Those that PyTorch runs
    without telling a `TorchFunctionMode`, such as a `torch.autograd.Function`, are not seen.
    """

    __slots__ = (
        "_affine",
        "_change",
        "_output",
        "_saved",
        "_storage",
        "_tensor",
        "_version",
        "call",
        "key",
        "rebuilt",
        "rectified",
    )
    call: Call | None
    """Of the normalisation, while this waits."""
    key: Any
    """Of the input."""
    rectified: Any
    """The key of the rectifier's result, once there is one."""
    rebuilt: Rebuilt | None
    """What was made of the rectifier's result, if so."""

    def __init__(self, x: Tensor, call: Call, key: Any) -> None:
        self.call, self.key, self.rectified, self.rebuilt = call, key, None, None
        self._tensor: Tensor | None = x.detach()
        self._version, self._affine = x._version, Affine(x, call)
        self._saved: Saved | None = None
        self._output: weakref.ref[Tensor] | None = None
        self._storage: StorageWeakRef | None = None
        self._change = 0

    @property
    def num_bytes(self) -> int:
        return 0 if self._saved is None else self._saved.num_bytes

    @property
    def tensor(self) -> Tensor | None:
        """The input; None where it has changed since."""
        x = self._tensor
        return x if x is not None and x._version == self._version else None

    def gives(self, y: Tensor) -> None:
        """Take in the output."""
        self._output, self._storage = weakref.ref(y), StorageWeakRef(y.untyped_storage())
        self._change = y._version

    def meets(self, call: Call) -> None:
        """Note in the call of a rectifier that it is about to read the output."""
        y = self._output() if self._output is not None else None
        if call.kind is Kind.RELU and y is not None and y._version == self._change:
            call.norm = self if argument(call.args, call.kwargs, 0, "input") is y else None

    def is_read_by(self, call: Call, result: Any) -> bool:
        """Whether another function than the rectifier has read the output; asking for its shape is not reading."""
        y = self._output() if self._output is not None else None
        if y is None:
            return False
        if call.norm is self:
            if result is y:  # in place: what was there before is gone
                self._output = self._storage = None
            return False
        if isinstance(result, torch.Size) or not isinstance(result, Tensor | tuple | list):
            return False
        return any(_holds(given, y) for given in (*call.args, *call.kwargs.values()))

    @property
    def can_be_read(self) -> bool:
        """Whether somebody still has the output."""
        return self._storage is not None and not self._storage.expired()

    def rebuild(self, r: Tensor, result: Bounded, codec: Codec, start: int) -> Rebuilt:
        """Keep but what is needed to make the input from the rectifier's result `r`, which `result` keeps."""
        assert self._tensor is not None
        self.rebuilt = Rebuilt(self._tensor, r, result, self._affine, codec, start)
        self.settle(self.rebuilt)
        return self.rebuilt

    def settle(self, saved: Saved) -> None:
        """Have `saved` stand for the input, and let go of it."""
        self._saved = saved
        self._tensor = self._output = self.call = None

    def restore(self) -> Tensor:
        x, saved = self._tensor, self._saved
        if saved is not None:
            return saved.restore()
        assert x is not None
        check_version(x, self._version)
        return x


def _holds(given: Any, x: Tensor) -> bool:
    """Whether an argument of a function is this tensor, or a list with it."""
    return given is x or (isinstance(given, list | tuple) and any(item is x for item in given))
