"""What others do to the tensors that wait for the backward pass: fewer bits a value, on saved-tensor hooks.

`Keeper` is their common part, and treats alike what needs no values: a ReLU needs one bit a value, a pooling its
positions inside the windows (two bits for 2 x 2) and the shape of its input, dropout one bit, and a tensor that several
functions save is kept once. What a convolution, a linear layer or BatchNorm saves goes through a `Coder`:

- `Groups`: stochastic rounding to 2^bits levels between the least and the largest value of a group, after ActNN (Chen
  et al., ICML 2021), which is for CUDA only. Differences: codes of a ReLU's results keep zero for zero and never round
  a positive value to it, so that they serve as the mask too, which saves a bit a value at the price of a level;
- `BFloat16`: the upper halves of the values.

It handles the layers of `bench.activation_networks`, and refuses what it does not know.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

MIN_BYTES = 4096
"""Tensors below this stay as they are."""
GROUP = 256

Decode = Callable[[], Tensor]


class Coder(Protocol):
    """Turns float32 values into fewer bytes. `keeps_zeros`: zeros stay zeros, and positive values positive."""

    def encode(self, x: Tensor, *, keeps_zeros: bool) -> tuple[int, Decode]:
        """Return the number of bytes kept, and what decodes them."""
        ...


class BFloat16:
    """Half of the bytes."""

    def encode(self, x: Tensor, *, keeps_zeros: bool) -> tuple[int, Decode]:
        kept = x.bfloat16()
        if keeps_zeros:  # the least positive values would round to zero
            kept = torch.where((kept == 0) & (x > 0), torch.finfo(torch.bfloat16).tiny, kept)
        return kept.nbytes, kept.float


class Groups:
    """2 or 4 bits a value, and two bfloat16 a group of 256; the noise is the seed's own."""

    def __init__(self, bits: int, seed: int = 0) -> None:
        self.bits = bits
        self._noise = np.random.Generator(np.random.SFC64(seed))

    def encode(self, x: Tensor, *, keeps_zeros: bool) -> tuple[int, Decode]:
        rows = nn.functional.pad(x.flatten(), (0, -x.numel() % GROUP)).view(-1, GROUP)
        low, high = rows.aminmax(dim=1, keepdim=True)
        num_steps = (1 << self.bits) - (2 if keeps_zeros else 1)
        low = torch.zeros_like(low, dtype=torch.bfloat16) if keeps_zeros else low.bfloat16()
        step = ((high - low) / num_steps).bfloat16()
        inverse = torch.where(step > 0, 1 / step.float(), 0)
        noise = np.frombuffer(self._noise.bytes(2 * rows.numel()), np.uint16).reshape(rows.shape)
        levels = torch.from_numpy(noise.astype(np.float32)).mul_(2.0**-16)
        codes = levels.add_((rows - low) * inverse).floor_().clamp_(0, num_steps)
        if keeps_zeros:
            codes = (codes + 1).mul_(rows > 0)
        packed = self._pack(codes.to(torch.uint8))
        num_bytes = packed.nbytes + (1 if keeps_zeros else 2) * step.nbytes
        shape, num = x.shape, x.numel()

        def decode() -> Tensor:
            codes = self._unpack(packed).float()
            if keeps_zeros:  # code 1 is a value too small to matter, yet positive
                values = torch.where(codes == 1, 1e-30, (codes - 1).clamp_(min=0) * step)
            else:
                values = torch.addcmul(low.float(), codes, step.float())
            return values.flatten()[:num].view(shape)

        return num_bytes, decode

    def _pack(self, codes: Tensor) -> Tensor:
        parts = codes.view(len(codes), 8 // self.bits, -1).unbind(1)
        packed = parts[0].clone()
        for position, part in enumerate(parts[1:], 1):
            packed |= part << (self.bits * position)
        return packed

    def _unpack(self, packed: Tensor) -> Tensor:
        mask = (1 << self.bits) - 1
        parts = [packed >> shift & mask for shift in range(0, 8, self.bits)]
        return torch.stack(parts, 1).view(len(packed), -1)


class Handle:
    """What stands for a saved tensor: its values, a mask of where it is positive, or nothing but its shape."""

    def __init__(self, x: Tensor) -> None:
        self.shape, self.dtype = x.shape, x.dtype
        self.num_bytes = 0
        self.decode: Decode = lambda: torch.zeros((), dtype=self.dtype).expand(self.shape)

    def keep(self, num_bytes: int, decode: Decode) -> None:
        """Take `decode` for what was there before."""
        self.num_bytes, self.decode = num_bytes, decode


class Keeper:
    """``with keeper: loss = ...; loss.backward()``, again in every step."""

    def __init__(self, model: nn.Module, coder: Coder) -> None:
        self.model, self.coder = model, coder
        self.by_function: dict[str, list[int]] = {}
        """Function -> bytes that it saved and bytes that were kept of them, of the last step."""
        self._handles: dict[tuple, tuple[weakref.ref, Handle]] = {}
        self._seen: dict[int, weakref.ref] = {}
        self._constants: set[int] = set()
        self._stack = ExitStack()

    @property
    def saved_bytes(self) -> int:
        """Bytes that exact training would have kept in the last step: each storage once."""
        return sum(saved for saved, _ in self.by_function.values())

    @property
    def kept_bytes(self) -> int:
        """Bytes that were kept instead."""
        return sum(kept for _, kept in self.by_function.values())

    def __enter__(self) -> Keeper:
        self.by_function, self._handles, self._seen = {}, {}, {}
        tensors = (*self.model.parameters(), *self.model.buffers())
        self._constants = {x.untyped_storage().data_ptr() for x in tensors}
        self._mode = _Current()
        with ExitStack() as stack:
            stack.enter_context(self._mode)
            stack.enter_context(saved_tensors_hooks(self._pack, self._unpack))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._stack.__exit__(*problem)
        self._handles, self._seen = {}, {}

    def _pack(self, x: Tensor) -> Any:
        place = x.untyped_storage().data_ptr()
        if place in self._constants:
            return x
        function = self._mode.name
        counts = self.by_function.setdefault(function, [0, 0])
        key = (place, x.data_ptr(), x._version, x.shape, x.stride(), x.dtype)
        storage, handle = self._handles.get(key, (None, None))
        if handle is None or storage is None or storage() is None:
            seen = self._seen.get(place)
            new = 0 if seen is not None and seen() is not None else x.nbytes
            self._seen[place] = weakref.ref(x.untyped_storage())
            counts[0] += new
            if x.nbytes < MIN_BYTES:
                counts[1] += new
                return x
            handle = Handle(x)
            self._handles[key] = weakref.ref(x.untyped_storage()), handle
        before = handle.num_bytes
        self._fill(handle, function, x)
        counts[1] += handle.num_bytes - before
        return handle

    def _fill(self, handle: Handle, function: str, x: Tensor) -> None:
        """Make the handle serve `function` too."""
        if function == "max_pool2d":
            if x.dtype == torch.int64:
                handle.keep(*_positions(x, self._mode.width))
        elif function == "relu":
            if not handle.num_bytes:
                handle.keep(*_bits(x > 0, 1.0, x.dtype))
        elif function == "dropout":
            handle.keep(*_bits(x > 0, float(x.max()), x.dtype))
        elif function in ("conv2d", "linear", "batch_norm"):
            is_relu = bool(handle.num_bytes) or (function == "conv2d" and bool((x >= 0).all()))
            handle.keep(*self.coder.encode(x, keeps_zeros=is_relu))
        elif function == "cross_entropy":
            handle.keep(x.nbytes, lambda: x)
        else:
            raise NotImplementedError(f"{function} saves {x.dtype}{list(x.shape)}: no rule for it")

    def _unpack(self, kept: Any) -> Tensor:
        return kept.decode() if isinstance(kept, Handle) else kept


class _Current(TorchFunctionMode):
    """Knows which function is running, and how wide its input is."""

    name = ""
    width = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.name, self.width
        self.name = getattr(func, "__name__", "")
        if args and isinstance(args[0], Tensor) and args[0].ndim == 4:
            self.width = args[0].shape[3]
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.name, self.width = before


def _bits(mask: Tensor, value: float, dtype: torch.dtype) -> tuple[int, Decode]:
    """Keep where a mask is true as one bit a value; decoding gives `value` there and zero elsewhere."""
    packed, shape = np.packbits(mask.numpy().reshape(-1)), mask.shape
    num = mask.numel()

    def decode() -> Tensor:
        return torch.from_numpy(np.unpackbits(packed, count=num)).view(shape).to(dtype) * value

    return packed.nbytes, decode


def _positions(indices: Tensor, width: int) -> tuple[int, Decode]:
    """Keep indices into planes of `width` columns as positions inside windows of 2 x 2, two bits each."""
    rows, columns = indices // width, indices % width
    shape, num = indices.shape, indices.numel()
    codes = ((rows % 2) * 2 + columns % 2).to(torch.uint8).flatten()
    parts = nn.functional.pad(codes, (0, -num % 4)).view(-1, 4)
    packed = parts[:, 0] | parts[:, 1] << 2 | parts[:, 2] << 4 | parts[:, 3] << 6

    def decode() -> Tensor:
        codes = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], 1).flatten()[:num].view(shape).long()
        top = 2 * torch.arange(shape[2])[:, None] * width + 2 * torch.arange(shape[3])
        return top + codes // 2 * width + codes % 2

    return packed.nbytes, decode
