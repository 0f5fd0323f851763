"""TACO's payloads: 8-bit floats with two scales a group, or one (HPDC 2026, arXiv 2604.24088).

`trimtab.kernels.float8.ref` defines the bytes and names the differences from the published code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

from trimtab.codecs.wire import check_elements, check_payload, check_payloads, run
from trimtab.errors import UsageError
from trimtab.kernels.float8 import ref as layout

if TYPE_CHECKING:
    from torch import Tensor


class Float8(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="id", tag="float8"):
    """Send 8-bit floats, with two float32 scales a group as published, or one, which is as exact.

    A group with NaN or an infinity decodes to NaN; with two scales, so does one with elements above some 4e11 (e4m3) or
    6e13 (e5m2), which its scales do not reach. With one scale, a group whose (transformed) elements are all below
    2^-110 decodes to zeros.
    """

    id: ClassVar[str] = "float8"

    format: Literal["e4m3", "e5m2"] = "e4m3"
    group: Literal[32, 64, 128, 256, 512] = 128
    """Elements that share their scales."""
    scales: Literal[1, 2] = 2
    hadamard: bool = True
    """Whether a group is transformed before it is rounded."""
    target: float | None = None
    """What a group's largest element becomes, at most the format's largest number; None for that number itself."""

    def __post_init__(self) -> None:
        if self.format not in layout.MAXIMUM:
            raise UsageError(f"format must be one of {', '.join(layout.MAXIMUM)}, got {self.format!r}")
        if self.group not in layout.hadamard.ORDERS:
            raise UsageError(f"group must be one of {layout.hadamard.ORDERS}, got {self.group}")
        if self.scales not in (1, 2):
            raise UsageError(f"scales must be 1 or 2, got {self.scales}")
        if self.target is not None and not 1 <= self.target <= layout.MAXIMUM[self.format]:
            raise UsageError(
                f"target must be 1 to {layout.MAXIMUM[self.format]:g}, the largest number of {self.format}, got "
                f"{self.target}: larger elements would be cut off"
            )

    def payload_bytes(self, num: int) -> int:
        return layout.payload_bytes(num, self.group, self.scales)

    def encode(self, x: Tensor, payload: Tensor, key: int | None = None) -> None:
        """Fill `payload` with what stands for `x`, rounded to nearest: the key is not needed.

        Raises:
            ShapeError: a tensor has another type, size or layout.
        """
        check_elements("x", x)
        check_payload("payload", payload, self.payload_bytes(x.numel()))
        target = layout.MAXIMUM[self.format] if self.target is None else self.target
        run("float8", "encode", (x, payload), *self._settings, target)

    def decode(self, payload: Tensor, y: Tensor) -> None:
        check_elements("y", y)
        check_payload("payload", payload, self.payload_bytes(y.numel()))
        run("float8", "decode", (payload, y), *self._settings)

    def decode_sum(self, payloads: Tensor, y: Tensor, scale: float = 1.0) -> None:
        check_elements("y", y)
        check_payloads("payloads", payloads, self.payload_bytes(y.numel()))
        run("float8", "decode_sum", (payloads, y), *self._settings, scale)

    @property
    def _settings(self) -> tuple[str, int, int, int]:
        return self.format, self.group, self.group if self.hadamard else 0, self.scales
