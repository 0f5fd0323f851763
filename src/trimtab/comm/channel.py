"""Channel: the way of one tensor between ranks, packed or exact, and what was learnt of the tensor.

Data-driven reshaping (TACO, HPDC 2026): values that share a scale should be of one size, so groups run along the last
dimension, "hidden", or along all the others, "token", whichever errs less on a batch, the first one and then one in so
many. Each row and each column counts alike in the error, for it is the small ones beside a large one that suffer. The
paper names the idea and shows no rule; this one, and the choice of the Hadamard transform by it, are ours.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from trimtab.codecs.sdp4bit import Groups
from trimtab.codecs.taco import Float8
from trimtab.codecs.wire import WireCodec
from trimtab.comm.exchange import Exchange
from trimtab.comm.topology import Topology
from trimtab.errors import ShapeError, UsageError

__all__ = ["CALIBRATE", "MIN_BYTES", "Channel", "Group", "Shaping", "evenly", "exchange_of", "packers"]

Axis = Literal["hidden", "token"]
Group = Literal[32, 64, 128, 256, 512]
"""Values that share a scale."""

MIN_BYTES = 16384
"""Tensors below this size travel exactly: headers, padding and the second hop would eat what packing saves."""
CALIBRATE = 100
"""One tensor in so many decides: what a model sends at first says little of what it sends later."""
GAIN = 0.9
"""What departs from the plain way must bring the error below this share of the plain way's."""

_FLOATS: dict[str, tuple[Literal["e4m3", "e5m2"], Literal[1, 2]]] = {
    "fp8": ("e4m3", 2),
    "fp8-1": ("e4m3", 1),
    "fp8-e5m2": ("e5m2", 2),
}
_BITS = {"int8": 8, "int6": 6}


class Shaping(NamedTuple):
    """How a tensor is packed: the axis that its groups run along, and the codec, None to send it as it is."""

    axis: Axis
    codec: WireCodec | None

    def rows(self, x: Tensor) -> Tensor:
        """Return a matrix, maybe a view, of whose rows, one behind the other, groups are cut."""
        rows = x.reshape(-1, x.shape[-1]) if x.numel() and x.ndim else x.reshape(-1, 1)
        return rows if self.axis == "hidden" else rows.t()

    def shaped(self, flat: Tensor, shape: torch.Size) -> Tensor:
        """Return the tensor of that shape whose `rows` these values are, contiguous."""
        return flat.view(shape) if self.axis == "hidden" else flat.view(shape[-1], -1).t().reshape(shape)


_EXACT = Shaping("hidden", None)


def packers(codec: str | WireCodec, group: Group, hadamard: bool | None) -> tuple[WireCodec, ...]:
    """Return the codec of a name, none for "exact", or that with and without the transform where `hadamard` is None.

    Raises:
        UsageError: the name is not known, or a setting is not one.
    """
    if not isinstance(codec, str):
        return (codec,)
    transforms = (True, False) if hadamard is None else (hadamard,)
    if codec == "exact":
        return ()
    if codec in _FLOATS:
        form, scales = _FLOATS[codec]
        return tuple(Float8(format=form, group=group, scales=scales, hadamard=use) for use in transforms)
    if codec in _BITS:
        return tuple(
            Groups(bits=_BITS[codec], group=group, hadamard=group if use else 0, stochastic=False) for use in transforms
        )
    names = ", ".join(map(repr, (*_FLOATS, *_BITS, "exact")))
    raise UsageError(f"codec {codec!r}; expected one of {names}, or a WireCodec")


@cache
def exchange_of(group: dist.ProcessGroup) -> Exchange:
    """Return the exchange that all channels of a group share: a collective when it is first asked for.

    It lives as long as the process, on every rank alike.
    """
    return Exchange(Topology(group, nodes=group.size()))


class Channel:
    """One direction of one module's tensor: all calls are collective, and every rank makes the same ones.

    Tensors are float32, bfloat16 or float16.

    Args:
        exchange: carries the messages.
        codecs: to choose from; the first one is the usual. None: all travels exactly.
        min_bytes: tensors below this size travel exactly.
        calibrate: one in so many tensors decides on axis and codec; 0 leaves groups along the last dimension, and
            the codec to the first tensor.
    """

    def __init__(self, exchange: Exchange, codecs: tuple[WireCodec, ...], *, min_bytes: int, calibrate: int) -> None:
        axes: tuple[Axis, ...] = ("hidden", "token") if calibrate else ("hidden",)
        self.exchange = exchange
        self.min_bytes, self.calibrate = min_bytes, calibrate
        self.shaping: Shaping | None = None
        """The choice, once a tensor that is not too small has passed."""
        self._candidates = tuple(Shaping(axis, codec) for codec in codecs for axis in axes)
        self._errors: list[float] = []
        self._num_calls = self._num_exact = self._num_changes = 0

    @property
    def rank(self) -> int:
        return self.exchange.topology.rank

    @property
    def num_ranks(self) -> int:
        return self.exchange.topology.size

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of all ranks' tensors, of x's shape and dtype, the same bits on every rank."""
        shaping, dtype = self._way(x)
        total = shaping.rows(x).to(dtype, copy=True, memory_format=torch.contiguous_format).view(-1)
        self.exchange.all_reduce(total, shaping.codec, gather=shaping.codec)
        return shaping.shaped(total, x.shape).to(x.dtype)

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """Return all ranks' tensors, which have one shape, behind each other along `dim`."""
        shaping, dtype = self._way(x)
        mine = shaping.rows(x).to(dtype).reshape(-1)
        found = mine.new_empty(self.num_ranks, mine.numel())
        self.exchange.all_gather(found.view(-1), mine, shaping.codec)
        return torch.cat([shaping.shaped(row, x.shape) for row in found], dim).to(x.dtype)

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        """Return this rank's part, along `dim`, of the sum of all ranks' tensors.

        Raises:
            ShapeError: the ranks do not divide that dimension.
        """
        shaping, dtype = self._way(x)
        parts = evenly(x, dim, self.num_ranks)
        sent = torch.stack([shaping.rows(part).to(dtype) for part in parts]).view(-1)
        mine = sent.new_empty(parts[0].numel())
        self.exchange.reduce_scatter(mine, sent, shaping.codec)
        return shaping.shaped(mine, parts[0].shape).to(x.dtype)

    @property
    def report(self) -> dict[str, Any]:
        """What was chosen, among what, and how often tensors passed: plain values."""
        chosen = None if self.shaping is None else {"axis": self.shaping.axis, "codec": str(self.shaping.codec)}
        return {
            "chosen": chosen,
            "relative_squared_errors": [
                {"axis": shaping.axis, "codec": str(shaping.codec), "value": error}
                for shaping, error in zip(self._candidates, self._errors, strict=False)
            ],
            "calls": self._num_calls,
            "exact_calls": self._num_exact,
            "changes": self._num_changes,
        }

    def _way(self, x: Tensor) -> tuple[Shaping, torch.dtype]:
        """Return how x travels, and as which dtype."""
        self._num_calls += 1
        if not self._candidates or x.numel() * x.element_size() < max(self.min_bytes, 1):
            self._num_exact += 1
            return _EXACT, x.dtype
        dtype = torch.float32 if x.dtype == torch.float16 else x.dtype  # which the codecs do not take
        num_packed = self._num_calls - self._num_exact - 1
        if self.shaping is None or (self.calibrate and num_packed % self.calibrate == 0):
            chosen = self._choose(x.to(dtype))
            self._num_changes += self.shaping not in (None, chosen)
            self.shaping = chosen
        return self.shaping, dtype

    def _choose(self, x: Tensor) -> Shaping:
        """Return the candidate of the least error over all ranks, by numbers that all ranks have, and add alike."""
        if len(self._candidates) == 1:
            return self._candidates[0]
        mine = torch.tensor([_error(x, shaping) for shaping in self._candidates], dtype=torch.float64)
        self._errors = self.exchange.topology.gather_words(mine.numpy()).mean(0).tolist()
        best = min(range(len(mine)), key=self._errors.__getitem__)
        return self._candidates[best if self._errors[best] < GAIN * self._errors[0] else 0]


def evenly(x: Tensor, dim: int, num_ranks: int) -> tuple[Tensor, ...]:
    """Return the parts of x along `dim`, one a rank.

    Raises:
        ShapeError: the ranks do not divide that dimension.
    """
    if x.shape[dim] % num_ranks:
        raise ShapeError(
            f"dimension {dim} of a tensor of shape {tuple(x.shape)}; expected a multiple of {num_ranks}, the number of "
            "ranks: pad it"
        )
    return x.chunk(num_ranks, dim)


def _error(x: Tensor, shaping: Shaping) -> float:
    """Return what packing costs x: squared error over squared values, the mean of all rows and all columns."""
    assert shaping.codec is not None
    flat = shaping.rows(x).reshape(-1)
    payload = torch.empty(shaping.codec.payload_bytes(flat.numel()), dtype=torch.uint8, device=x.device)
    shaping.codec.encode(flat, payload)
    y = torch.empty_like(flat)
    shaping.codec.decode(payload, y)
    error, square = ((flat.double() - y.double()).square(), flat.double().square())
    shape = torch.Size((flat.numel() // x.shape[-1], x.shape[-1])) if x.ndim else torch.Size((1, 1))
    error, square = shaping.shaped(error, shape), shaping.shaped(square, shape)
    shares = [(error.sum(dim) / square.sum(dim))[square.sum(dim) != 0] for dim in (0, 1)]
    return sum(share.mean().item() for share in shares if share.numel()) / 2
