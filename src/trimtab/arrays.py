"""Arrays as users hold them, NumPy or PyTorch, and the NumPy arrays that trimtab works on.

torch is never imported unless the caller already uses it, or asks for tensors.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from trimtab.dtypes import dtype_name, numpy_dtype
from trimtab.errors import BackendUnavailable, ShapeError

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor
else:
    Array = Any

_SAME_SIZE = {1: "uint8", 2: "int16", 4: "int32", 8: "int64", 16: "complex128"}


def as_numpy(x: Array) -> np.ndarray:
    """Return `x` as a NumPy array of the same values, shape and dtype; memory is shared where it can be.

    Torch tensors of any device are taken; bfloat16 and float8 become ml_dtypes arrays.

    Raises:
        ShapeError: the dtype cannot be stored, the array is masked, or the tensor is sparse, quantised or has no data.
    """
    if is_torch(x):
        return _from_torch(x)
    if isinstance(x, np.ma.MaskedArray):
        raise ShapeError("cannot store the mask of a masked array; store x.filled() and x.mask as two arrays")
    x = np.asarray(x)
    dtype_name(x.dtype)  # refuses what cannot be stored
    return x


def as_torch(x: np.ndarray) -> torch.Tensor:
    """Return a torch tensor that shares the memory of `x`.

    Raises:
        BackendUnavailable: torch is not installed.
        ShapeError: torch has no such dtype.
    """
    try:
        import torch
    except ImportError:
        raise BackendUnavailable("torch is missing; pip install 'trimtab[torch]', or ask for NumPy arrays") from None
    name = dtype_name(x.dtype)
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise ShapeError(f"torch has no dtype {name}; ask for NumPy arrays")
    return torch.from_numpy(x.view(_SAME_SIZE[x.dtype.itemsize])).view(dtype)


def is_torch(x: object) -> TypeGuard[torch.Tensor]:
    """Whether `x` is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _from_torch(x: torch.Tensor) -> np.ndarray:
    import torch

    name = str(x.dtype).removeprefix("torch.")
    dtype = numpy_dtype(name)
    if x.layout is not torch.strided or x.is_quantized:
        raise ShapeError(f"cannot store a {x.layout} tensor of dtype {name}; make it dense first: x.to_dense()")
    if x.is_meta:
        raise ShapeError("cannot store a tensor of the device 'meta': it has no data; materialise it first")
    x = x.detach().cpu().resolve_conj().resolve_neg()
    return x.view(getattr(torch, _SAME_SIZE[x.element_size()])).numpy().view(dtype)
