"""What stands for a tensor that autograd saved, until the backward pass asks for it.

Each has `num_bytes` and `restore()`, which may be called any number of times and from any thread: autograd runs
backward passes on threads of its own, and a graph that is retained is read again. What is made at the forward pass
is final; tensors that are kept as they are must not have changed since, as without trimtab.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from trimtab import kernels
from trimtab.arrays import as_numpy
from trimtab.bounds import Abs
from trimtab.codecs import Blocks, Codec
from trimtab.kernels.places.ref import bits_of
from trimtab.packed import Packed

if TYPE_CHECKING:
    from trimtab.train.controller import Layer
    from trimtab.train.tally import Row


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


def host_array(x: Tensor) -> np.ndarray:
    """Return the array of a tensor, as `as_numpy` does; that of plain float32 in memory at once."""
    return x.numpy() if x.dtype is torch.float32 and x.device.type == "cpu" else as_numpy(x)


class Bounded:
    """Values within an error bound. Decoded once for all that read it."""

    __slots__ = ("__weakref__", "_cache", "_codec", "_layout", "_left", "_lock", "_packed", "_signs", "_squares")
    __slots__ += ("_start", "bound", "layer", "readers", "row")
    layer: Layer
    """Whose input this is; others may share it."""
    row: Row
    """Where its bytes are counted."""

    def __init__(self, x: Tensor, codec: Codec, bound: float, signs: Signs | None = None, start: int = 0) -> None:
        """`start` is that of the dither, if the codec has one."""
        self._layout, self._codec, self._signs, self._start = Layout(x), codec, signs, start
        self._lock, self.readers, self._left = threading.Lock(), 0, 0
        self._cache: Tensor | None = None
        self.encode(x, bound)

    def encode(self, x: Tensor, bound: float) -> None:
        """Pack `x`, of which this is made, within `bound`."""
        self.bound, self._cache = bound, None
        array = host_array(self._layout.flat(x))
        self._packed: Packed
        if isinstance(self._codec, Blocks):
            self._packed, self._squares = self._codec.encode_measured(array, Abs(bound), start=self._start)
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
            y = self._cache
            if y is None:
                y = self._cache = self.decode()
                self._left = self.readers
            self._left -= 1
            if self._left <= 0:
                self._cache = None
            return y

    def decode(self) -> Tensor:
        """Return the values, decoded anew."""
        y = self._layout.empty()
        flat = self._layout.flat(y)
        if y.device.type == "cpu":
            self._codec.decode(self._packed, out=host_array(flat))
        else:
            flat.copy_(torch.from_numpy(self._codec.decode(self._packed)))
        if self._signs is not None:
            y.mul_(self._signs.restore())
        return y


class Mask:
    """Zero, and one positive value where a tensor is not below or at zero (where it is NaN, too): a bit each."""

    __slots__ = ("_bits", "_layout", "_value")

    def __init__(self, x: Tensor, value: float) -> None:
        self._layout, self._value = Layout(x), value
        kernel = kernels.load("bits")
        self._bits = np.empty(kernel.mask_bytes(x.numel()), np.uint8)
        words = self._layout.flat(x).view(_WORDS[x.dtype])
        kernel.mask(words.cpu().numpy(), _word(math.inf, x.dtype), self._bits)

    @property
    def num_bytes(self) -> int:
        return self._bits.nbytes

    def restore(self) -> Tensor:
        y = self._layout.empty()
        words = self._layout.flat(y).view(_WORDS[y.dtype])
        host = words if y.device.type == "cpu" else torch.empty_like(words, device="cpu")
        kernels.load("bits").unmask(self._bits, _word(self._value, y.dtype), host.numpy())
        if host is not words:
            words.copy_(host)
        return y


_WORDS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
MASKED = tuple(_WORDS)
"""The dtypes that `Mask` takes."""


def _word(value: float, dtype: torch.dtype) -> int:
    """Return the bits of a float."""
    return int(torch.tensor(value, dtype=dtype).view(_WORDS[dtype]))


class Signs:
    """Where a rectifier's result is above zero, or NaN, which its backward pass lets through.

    While it waits it holds the tensor itself, for the next function may be one that keeps the values within a bound:
    then those serve both (`share`). Else `settle` makes a bit a value.
    """

    __slots__ = ("__weakref__", "_broken", "_mask", "_tensor", "_version", "bounded", "row")
    row: Row
    """Where its bytes are counted."""

    def __init__(self, x: Tensor) -> None:
        self._version, self._broken = x._version, False
        self._tensor: Tensor | None = x
        self._mask: Mask | None = None
        self.bounded: Bounded | None = None

    @property
    def num_bytes(self) -> int:
        return 0 if self._mask is None else self._mask.num_bytes

    def share(self, bounded: Bounded) -> None:
        """Let values whose signs are exact stand for the bits."""
        bounded.readers += 1
        self.bounded, self._tensor, self._mask = bounded, None, None

    def settle(self) -> None:
        """Let go of the tensor."""
        x, self._tensor = self._tensor, None
        if x is None:
            return
        self._broken = x._version != self._version
        if not self._broken:
            self._mask = Mask(x, 1.0)

    def restore(self) -> Tensor:
        """Return the tensor, or values with its signs."""
        if self.bounded is not None:
            return self.bounded.restore()
        x, mask = self._tensor, self._mask
        if x is not None:
            check_version(x, self._version)
            return x
        if mask is None or self._broken:
            raise RuntimeError(_CHANGED)
        return mask.restore()


class TwoValued:
    """A tensor that holds but two values: a bit each."""

    __slots__ = ("_bits", "_layout", "_values")

    def __init__(self, x: Tensor, where: Tensor, values: tuple[float, float]) -> None:
        """`where` is true, in the shape of `x`, for the second of the values."""
        self._layout, self._values = Layout(x), values
        if self._layout.dense and where.stride() != x.stride():
            where = torch.empty_strided(x.shape, x.stride(), dtype=torch.bool, device=x.device).copy_(where)
        self._bits = pack_bits(self._layout.flat(where))

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

    __slots__ = ("_layout", "_packed", "_windows")

    def __init__(self, indices: Tensor, windows: Windows, packed: np.ndarray) -> None:
        self._layout, self._windows, self._packed = Layout(indices), windows, packed

    @classmethod
    def of(cls, indices: Tensor, windows: Windows) -> Places | None:
        """Return the places of these indices; None where one is outside of its window."""
        kernel = kernels.load("places")
        rows = indices.detach().reshape(-1, windows.first.size).cpu().numpy()
        packed = np.empty((len(rows), kernel.row_bytes(windows.first.size, windows.bits)), np.uint8)
        if not kernel.encode(rows, windows.first, windows.offsets, windows.bits, packed):
            return None
        return cls(indices, windows, packed)

    @property
    def num_bytes(self) -> int:
        return self._packed.nbytes

    def restore(self) -> Tensor:
        windows = self._windows
        rows = np.empty((len(self._packed), windows.first.size), np.int64)
        kernels.load("places").decode(self._packed, windows.first, windows.offsets, windows.bits, rows)
        return torch.from_numpy(rows).view(self._layout.shape).to(self._layout.device)


class Windows:
    """The windows of a pooling function: where each begins in the plane of the input, and what it has from there on."""

    def __init__(
        self,
        plane: tuple[int, ...],
        outputs: tuple[int, ...],
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> None:
        first, offsets = np.zeros(1, np.int64), np.zeros(1, np.int64)
        for axis, length in enumerate(plane):
            begins = np.arange(outputs[axis]) * stride[axis] - padding[axis]
            first = np.add.outer(first * length, begins).reshape(-1)
            offsets = np.add.outer(offsets * length, np.arange(kernel[axis]) * dilation[axis]).reshape(-1)
        self.first, self.offsets = first, offsets
        self.bits = bits_of(offsets.size)


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
