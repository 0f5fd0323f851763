"""Codecs of what goes over a network: flat tensors in, payloads of a size that is known beforehand, and back.

They promise no error bound, and payloads do not describe themselves: both ends know the settings and the number of
elements. So `trimtab.compress` and packed files do not offer them. Elements are float32 or bfloat16, payloads uint8.
Tensors on the CPU go to the host's kernels without a copy, those on CUDA to the device's.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast, runtime_checkable

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.errors import ShapeError, UnknownCodec, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_DTYPES = ("float32", "bfloat16", "float16")


@runtime_checkable
class WireCodec(Protocol):
    """A frozen struct of settings, the same on all ranks."""

    id: ClassVar[str]

    def payload_bytes(self, num: int) -> int:
        """Return the bytes of the payload of `num` elements."""
        ...

    def encode(self, x: Tensor, payload: Tensor, key: int | None = None) -> None:
        """Fill `payload` (uint8, exactly `payload_bytes`) with what stands for `x` (flat, contiguous).

        `key` is that of the noise of stochastic rounding (`noise_key`); codecs without such ignore it.
        """
        ...

    def decode(self, payload: Tensor, y: Tensor) -> None:
        """Fill `y` (flat, contiguous) with what a payload of as many elements stands for."""
        ...

    def decode_sum(self, payloads: Tensor, y: Tensor, scale: float = 1.0) -> None:
        """Fill `y` with `scale` times the sum of what the rows of `payloads` (uint8[rows, bytes]) stand for.

        Rows are added up in float32 in their order, so that all ranks get the same bits.
        """
        ...


class Exact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="id", tag="exact"):
    """Send elements as they are, or rounded to a shorter type: an exchange without a codec takes the same path."""

    id: ClassVar[str] = "exact"

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What travels. An element that this type cannot hold becomes an infinity."""

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")

    def payload_bytes(self, num: int) -> int:
        return num * (4 if self.dtype == "float32" else 2)

    def encode(self, x: Tensor, payload: Tensor, key: int | None = None) -> None:
        check_elements("x", x)
        check_payload("payload", payload, self.payload_bytes(x.numel()))
        payload.copy_(x.detach().to(self._torch_dtype).view(_torch().uint8))

    def decode(self, payload: Tensor, y: Tensor) -> None:
        check_elements("y", y)
        check_payload("payload", payload, self.payload_bytes(y.numel()))
        y.detach().copy_(self._elements(payload))

    def decode_sum(self, payloads: Tensor, y: Tensor, scale: float = 1.0) -> None:
        check_elements("y", y)
        check_payloads("payloads", payloads, self.payload_bytes(y.numel()))
        total = self._elements(payloads[0]).to(_torch().float32, copy=True)
        for payload in payloads[1:]:
            total += self._elements(payload)
        y.detach().copy_(total.mul_(scale))

    @property
    def _torch_dtype(self) -> torch.dtype:
        return getattr(_torch(), self.dtype)

    def _elements(self, payload: Tensor) -> Tensor:
        """Payloads stand at any address, elements only at multiples of their size."""
        aligned = payload.data_ptr() % 4 == 0 and payload.storage_offset() % 4 == 0
        return (payload if aligned else payload.clone()).view(self._torch_dtype)


_CLASSES = {
    "exact": "trimtab.codecs.wire:Exact",
    "groups": "trimtab.codecs.sdp4bit:Groups",
    "float8": "trimtab.codecs.taco:Float8",
}


def wire_codec_ids() -> list[str]:
    """Return the ids of all wire codecs."""
    return list(_CLASSES)


def make_wire_codec(settings: Mapping[str, Any]) -> WireCodec:
    """Return the codec of plain settings: ``{"id": ..., setting: value, ...}``, as `describe` gives them.

    Raises:
        UnknownCodec: there is none of that id.
        UsageError: a setting is unknown or out of its range.

    >>> make_wire_codec({"id": "groups", "bits": 8}).payload_bytes(1024)
    1056
    """
    target = _CLASSES.get(str(settings.get("id")))
    if target is None:
        raise UnknownCodec(f"unknown wire codec {settings.get('id')!r}; this version has {', '.join(_CLASSES)}")
    module, name = target.split(":")
    try:
        return cast(WireCodec, msgspec.convert(settings, type=getattr(importlib.import_module(module), name)))
    except msgspec.ValidationError as error:
        raise UsageError(f"bad settings of wire codec {settings['id']!r}: {error}") from None


def noise_key(seed: int, rank: int = 0, step: int = 0, bucket: int = 0, stage: int = 0) -> int:
    """Return the key of the noise of stochastic rounding: another one for every payload, the same in every run."""
    return kernels.load("groups").noise_key(seed, rank, step, bucket, stage)


def run(operation: str, function: str, tensors: tuple[Tensor, ...], *settings: Any) -> None:
    """Run a kernel on `tensors`, the last of which it fills, where that one is."""
    out = tensors[-1].detach()
    twin = kernels.load_for(operation, out.device.type)
    if twin is not None:
        getattr(twin, function)(*(tensor.detach() for tensor in tensors), *settings)
        return
    twin = getattr(kernels.load(operation), function)
    arrays = [_host(tensor) for tensor in tensors]
    twin(*arrays, *settings)
    if out.device.type != "cpu":
        words = arrays[-1].view(np.int16) if arrays[-1].dtype == np.uint16 else arrays[-1]
        _as_words(out).copy_(_torch().from_numpy(words))


def check_elements(name: str, x: Tensor) -> None:
    """Refuse what is no flat, contiguous tensor of float32 or bfloat16.

    Raises:
        ShapeError: it is something else.
    """
    torch = _torch()
    if x.dtype not in (torch.float32, torch.bfloat16) or x.dim() != 1 or not x.is_contiguous():
        raise ShapeError(
            f"{name} must be a flat, contiguous tensor of float32 or bfloat16, got {x.dtype} of shape "
            f"{tuple(x.shape)} and strides {x.stride()}; use .contiguous().view(-1)"
        )


def check_payload(name: str, payload: Tensor, num_bytes: int) -> None:
    """Refuse what is no flat, contiguous uint8 tensor of so many bytes.

    Raises:
        ShapeError: it is something else.
    """
    if payload.dtype != _torch().uint8 or payload.shape != (num_bytes,) or not payload.is_contiguous():
        raise ShapeError(
            f"{name} must be a flat, contiguous uint8 tensor of {num_bytes} bytes, got {payload.dtype} of shape "
            f"{tuple(payload.shape)}; payload_bytes(number of elements) tells the size"
        )


def check_payloads(name: str, payloads: Tensor, num_bytes: int) -> None:
    """Refuse what is no uint8[rows, bytes] with at least one row, contiguous within each row.

    Raises:
        ShapeError: it is something else.
    """
    if payloads.dim() != 2 or not len(payloads):
        raise ShapeError(f"{name} must be uint8[rows, {num_bytes}] with a row at least, got {tuple(payloads.shape)}")
    check_payload(f"a row of {name}", payloads[0], num_bytes)


def _host(x: Tensor) -> np.ndarray:
    """Return the elements on the host, bfloat16 as uint16 words; those of a CPU tensor are shared."""
    array = _as_words(x.detach()).cpu().numpy()
    return array.view(np.uint16) if array.dtype == np.int16 else array


def _as_words(x: Tensor) -> Tensor:
    torch = _torch()
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def _torch() -> Any:
    import torch

    return torch
