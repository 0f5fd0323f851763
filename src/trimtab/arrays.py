"""Arrays as users hold them, NumPy or PyTorch, and the NumPy arrays that trimtab works on.

torch is never imported unless the caller already uses it, or asks for tensors.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from trimtab.dtypes import dtype_name, numpy_dtype
from trimtab.errors import BackendUnavailable, ShapeError, UsageError

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor
else:
    Array = Any

_INSTALL = "pip install 'trimtab[torch]', or ask for NumPy arrays"
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


def dtype_of(x: Array) -> np.dtype:
    """Return the dtype of ``as_numpy(x)``, without a copy of a tensor on another device.

    Raises:
        ShapeError: the dtype cannot be stored.
    """
    return numpy_dtype(str(x.dtype).removeprefix("torch.")) if is_torch(x) else as_numpy(x).dtype


def as_torch(x: np.ndarray) -> torch.Tensor:
    """Return a torch tensor that shares the memory of `x`.

    Raises:
        BackendUnavailable: torch is not installed.
        ShapeError: torch has no such dtype.
    """
    try:
        import torch
    except ImportError:
        raise BackendUnavailable(f"torch is missing; {_INSTALL}") from None
    name = dtype_name(x.dtype)
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise ShapeError(f"torch has no dtype {name}; ask for NumPy arrays")
    return torch.from_numpy(x.view(_SAME_SIZE[x.dtype.itemsize])).view(dtype)


def to_device(x: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return a copy of `x` as a torch tensor on `device`; to CUDA it goes through pinned memory, which is fastest."""
    import torch

    staged = torch.empty(x.shape, dtype=getattr(torch, x.dtype.name), pin_memory=device.type == "cuda")
    np.copyto(staged.numpy(), x)
    return staged.to(device, non_blocking=True)


def torch_device(name: str | torch.device) -> torch.device:
    """Return the torch device called `name`.

    Raises:
        BackendUnavailable: torch is not installed, or finds no such device.
        UsageError: no device has such a name.
    """
    try:
        import torch
    except ImportError:
        raise BackendUnavailable(f"torch is missing, so nothing can go to device {name!r}; {_INSTALL}") from None
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendUnavailable(
            f"there is no device {str(device)!r}: torch {torch.__version__} finds {torch.cuda.device_count()} of CUDA; "
            "leave `device` out to unpack on the host"
        )
    return device


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
