"""What stands for a tensor that autograd saved, until the backward pass asks for it.

Each has `num_bytes` and `restore()`, which may be called any number of times and from any thread: autograd runs
backward passes on threads of its own, and a graph that is retained is read again. What is made at the forward pass
is final; tensors that are kept as they are must not have changed since, as without trimtab.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from trimtab.arrays import as_numpy
from trimtab.bounds import Abs
from trimtab.codecs import Blocks, Codec
from trimtab.packed import Packed


class Saved(Protocol):
    """What stands for one tensor."""

    @property
    def num_bytes(self) -> int: ...

    def restore(self) -> Tensor: ...


class Layout:
    """Shape, strides, dtype and device of a tensor, and the order of its elements in memory."""

    __slots__ = ("dense", "device", "dtype", "shape", "stride")

    def __init__(self, x: Tensor) -> None:
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self.dense = x.is_contiguous() or _is_permuted(x)
        self.stride = x.stride() if self.dense else None

    def flat(self, x: Tensor) -> Tensor:
        """Return the elements of `x` in the order of memory, without a copy where they are dense."""
        x = x.detach()
        if not self.dense:
            return x.reshape(-1)
        return x.view(-1) if x.is_contiguous() else x.as_strided((x.numel(),), (1,))

    def empty(self) -> Tensor:
        """Return an uninitialised tensor like this."""
        if self.stride is None:
            return torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


def _is_permuted(x: Tensor) -> bool:
    """Whether the elements fill their memory without gaps in some order of the axes."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


class Exact:
    """The tensor itself."""

    __slots__ = ("_version", "num_bytes", "tensor")

    def __init__(self, x: Tensor, num_bytes: int = 0) -> None:
        self.tensor, self._version, self.num_bytes = x, x._version, num_bytes

    def restore(self) -> Tensor:
        check_version(self.tensor, self._version)
        return self.tensor


class ShapeOnly:
    """A tensor of which the backward pass reads the shape: zeros that take no memory."""

    __slots__ = ("device", "dtype", "shape")
    num_bytes = 0

    def __init__(self, x: Tensor) -> None:
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device

    def restore(self) -> Tensor:
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(self.shape)


class Bounded:
    """Values within an error bound. Decoded once for all that read it."""

    __slots__ = (
        "__weakref__", "_cache", "_codec", "_layout", "_left", "_lock", "_packed", "_squares", "bound", "readers", "signs"
    )  # fmt: skip

    def __init__(self, x: Tensor, codec: Codec, bound: float, signs: Signs | None = None) -> None:
        self._layout, self._codec, self.signs = Layout(x), codec, signs
        self._lock, self._cache, self.readers, self._left = threading.Lock(), None, 0, 0
        self.encode(x, bound)

    def encode(self, x: Tensor, bound: float) -> None:
        """Pack `x`, of which this is made, within `bound`."""
        self.bound = bound
        array = as_numpy(self._layout.flat(x))
        self._packed: Packed
        if isinstance(self._codec, Blocks):
            self._packed, self._squares = self._codec.encode_measured(array, Abs(bound))
        else:
            self._packed, self._squares = self._codec.encode(array, Abs(bound)), None

    @property
    def num_bytes(self) -> int:
        return self._packed.num_bytes

    def mean_squared_error(self, x: Tensor) -> float:
        """Return that of what is kept, where `x` is what it was made of."""
        if self._squares is not None:
            return self._squares / max(x.numel(), 1)
        return float((self.decode().float() - x.detach().float()).square().mean())

    def restore(self) -> Tensor:
        """Return the values; what is decoded is kept until all who saved it have it."""
        with self._lock:
            if self._cache is None:
                self._cache, self._left = self.decode(), self.readers
            y = self._cache
            self._left -= 1
            if self._left <= 0:
                self._cache = None
            return y

    def decode(self) -> Tensor:
        """Return the values, decoded anew."""
        y = self._layout.empty()
        flat = self._layout.flat(y)
        if y.device.type == "cpu":
            self._codec.decode(self._packed, out=as_numpy(flat))
        else:
            flat.copy_(torch.from_numpy(self._codec.decode(self._packed)))
        if self.signs is not None:
            y.mul_(self.signs.restore())
        return y


class Signs:
    """Where a tensor is above zero.

    While it waits it holds the tensor itself, for the next function may be one that keeps the values within a bound:
    then those serve both (`share`). Else `settle` makes a bit a value.
    """

    __slots__ = ("__weakref__", "_bits", "_broken", "_layout", "_tensor", "_version", "bounded")

    def __init__(self, x: Tensor) -> None:
        self._layout, self._tensor, self._version = Layout(x), x, x._version
        self._bits: np.ndarray | None = None
        self._broken = False
        self.bounded: Bounded | None = None

    @property
    def num_bytes(self) -> int:
        return 0 if self._bits is None else self._bits.nbytes

    def share(self, bounded: Bounded) -> None:
        """Let values whose signs are exact stand for the bits."""
        bounded.readers += 1
        self.bounded, self._tensor, self._bits = bounded, None, None

    def settle(self) -> None:
        """Let go of the tensor."""
        x, self._tensor = self._tensor, None
        if x is None:
            return
        self._broken = x._version != self._version
        if not self._broken:
            self._bits = pack_bits(self._layout.flat(x) > 0)

    def restore(self) -> Tensor:
        """Return the tensor, or values with its signs."""
        if self.bounded is not None:
            return self.bounded.restore()
        x = self._tensor
        if x is not None:
            check_version(x, self._version)
            return x
        if self._bits is None or self._broken:
            raise RuntimeError(_CHANGED)
        y = self._layout.empty()
        self._layout.flat(y).copy_(unpack_bits(self._bits, y.numel(), y.device))
        return y


class TwoValued:
    """A tensor that holds but two values: a bit each."""

    __slots__ = ("_bits", "_layout", "_values")

    def __init__(self, x: Tensor, where: Tensor, values: tuple[float, float]) -> None:
        """`where` is true, in the shape of `x`, for the second of the values."""
        self._layout, self._values = Layout(x), values
        self._bits = pack_bits(self._layout.flat(where) if where.stride() == x.stride() else where.reshape(-1))

    @property
    def num_bytes(self) -> int:
        return self._bits.nbytes

    def restore(self) -> Tensor:
        y = self._layout.empty()
        low, high = self._values
        bits = unpack_bits(self._bits, y.numel(), y.device)
        flat = self._layout.flat(y)
        flat.copy_(bits)
        if (low, high) != (0, 1):
            flat.mul_(high - low).add_(low) if low else flat.mul_(high)
        return y


class Places:
    """Places of maxima: for each result an index into the plane of the input, kept as a place inside its window."""

    __slots__ = ("_codes", "_layout", "_window")

    def __init__(self, indices: Tensor, window: Window) -> None:
        self._layout, self._window = Layout(indices), window
        self._codes = window.places(indices).to(torch.uint8)

    @property
    def num_bytes(self) -> int:
        return self._codes.nbytes

    def restore(self) -> Tensor:
        y = self._layout.empty()
        y.copy_(self._window.indices(self._codes.to(torch.int64).view(self._layout.shape)))
        return y


class Window:
    """The windows of a pooling function."""

    def __init__(
        self,
        plane: tuple[int, ...],
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> None:
        self.plane, self.kernel, self.stride, self.padding, self.dilation = plane, kernel, stride, padding, dilation

    @property
    def size(self) -> int:
        return math.prod(self.kernel)

    def _starts(self, shape: torch.Size, device: torch.device) -> list[Tensor]:
        """Return the first coordinate of each window along each axis, to be broadcast over the results."""
        axes = range(len(self.plane))
        return [
            (torch.arange(shape[a - len(axes)], device=device) * self.stride[a] - self.padding[a]).view(
                [-1 if b == a else 1 for b in axes]
            )
            for a in axes
        ]

    def places(self, indices: Tensor) -> Tensor:
        """Return the place in its window of each index: 0 to `size` - 1."""
        place = torch.zeros_like(indices)
        rest, inner = indices, math.prod(self.plane)
        for start, length, kernel, dilation in zip(
            self._starts(indices.shape, indices.device), self.plane, self.kernel, self.dilation, strict=True
        ):
            inner //= length
            coordinate, rest = rest // inner, rest % inner
            place = place * kernel + (coordinate - start) // dilation
        return place

    def indices(self, places: Tensor) -> Tensor:
        """Return the indices of which these are the places."""
        index = torch.zeros_like(places)
        inner, outer = self.size, 1
        for start, length, kernel, dilation in zip(
            self._starts(places.shape, places.device), self.plane, self.kernel, self.dilation, strict=True
        ):
            inner //= kernel
            index = index * length + start + (places // inner % kernel) * dilation
            outer *= kernel
        return index


def pack_bits(x: Tensor) -> np.ndarray:
    """Return a flat tensor of booleans as bits."""
    return np.packbits(x.cpu().numpy())


def unpack_bits(bits: np.ndarray, num: int, device: torch.device) -> Tensor:
    """Return `num` bits as a flat tensor of 0 and 1."""
    return torch.from_numpy(np.unpackbits(bits, count=num)).to(device)


_CHANGED = (
    "one of the variables needed for gradient computation has been modified by an inplace operation after it was saved;"
    " torch.autograd.set_detect_anomaly(True) finds the operation that failed to compute its gradient"
)


def check_version(x: Tensor, version: int) -> None:
    """Raise what autograd raises where a saved tensor was changed in place."""
    if x._version != version:
        raise RuntimeError(f"{_CHANGED} (shape {list(x.shape)}, version {x._version}, expected {version})")


Restore = Callable[[Any], Tensor]
