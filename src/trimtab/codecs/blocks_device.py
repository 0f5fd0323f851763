"""Blocks where tensors are: a CUDA device packs and unpacks, and nothing crosses the bus.

The chunks are those of `trimtab.codecs.blocks`, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab import kernels
from trimtab.bounds import Abs
from trimtab.codecs.blocks import error_step
from trimtab.errors import BoundError, Corrupt, ShapeError
from trimtab.kernels.blocks.ref import PLAIN

if TYPE_CHECKING:
    import torch

_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True, eq=False)
class PackedTensor:
    """A tensor as `encode_tensor` packed it, on its device."""

    sizes: torch.Tensor
    """Bytes of each chunk: int32."""
    data: torch.Tensor
    """The chunks: uint8."""
    error: float
    start: int | None
    """That of the dither."""
    dtype: torch.dtype
    shape: torch.Size
    squared_error: torch.Tensor
    """The sum over all elements: a float64 on the device, which need not be waited for."""

    @property
    def num_bytes(self) -> int:
        """Bytes that the packed tensor takes."""
        return self.sizes.nbytes + self.data.nbytes


def encode_tensor(x: torch.Tensor, bound: Abs, *, start: int | None = None) -> PackedTensor | None:
    """Return a tensor packed on its device, as `Blocks` packs an array; None if the device has no kernels.

    With a `start`, which is taken modulo 2^32, errors are dithered.

    Raises:
        BoundError: the bound is not `Abs`.
        ShapeError: the elements are not float32, float16 or bfloat16.
    """
    if not isinstance(bound, Abs):
        raise BoundError(f"blocks of tensors are packed within Abs; got {bound} at $.bound")
    name = str(x.dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ShapeError(f"codec 'blocks' takes {', '.join(_DTYPES)}; got {name}")
    kernel = kernels.load_for("blocks", x.device.type)
    if kernel is None:
        return None
    error = error_step(bound.value, name)
    start = None if start is None else start % 2**32
    sizes, data, squared_error = kernel.encode_tensor(x.detach().contiguous().reshape(-1), error, _or_plain(start))
    return PackedTensor(sizes, data, error, start, x.dtype, x.shape, squared_error)


def decode_tensor(packed: PackedTensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return the tensor, on the device where it was packed; `out` (contiguous) receives it where given.

    Raises:
        Corrupt: the chunks contradict themselves.
        ShapeError: `out` does not fit.
    """
    import torch

    kernel = kernels.load_for("blocks", packed.data.device.type)
    assert kernel is not None
    if out is None:
        out = torch.empty(packed.shape, dtype=packed.dtype, device=packed.data.device)
    if (out.shape, out.dtype, out.device) != (packed.shape, packed.dtype, packed.data.device):
        raise ShapeError(f"out is {out.dtype} of shape {tuple(out.shape)}; expected {packed.dtype} {packed.shape}")
    if not out.is_contiguous():
        raise ShapeError("out must be contiguous; pass torch.empty(shape, dtype=..., device=...)")
    flat, start = out.detach().view(-1), _or_plain(packed.start)
    if not kernel.decode_tensor(packed.sizes, packed.data, packed.error, flat, start):
        raise Corrupt("a chunk of the packed tensor is damaged")
    return out


def _or_plain(start: int | None) -> int:
    return PLAIN if start is None else start
