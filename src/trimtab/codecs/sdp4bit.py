"""SDP4Bit's quantiser for payloads: packed integers in groups (Jia et al., NeurIPS 2024, arXiv 2410.15526).

`trimtab.kernels.groups.ref` defines the bytes and names the differences from the published code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec

from trimtab.codecs.wire import check_elements, check_payload, check_payloads, run
from trimtab.errors import UsageError
from trimtab.kernels.groups import ref as layout

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_GROUP, LARGEST_GROUP = 8, 8192


class Groups(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="id", tag="groups"):
    """Send integers of 2 to 8 bits, with one float32 scale a group.

    The defaults are those of gradients between nodes. Weights take their differences from what was sent before:
    ``Groups(group=2048)`` with `encode_difference` and `decode_add`.

    A group with NaN or an infinity decodes to NaN; one whose elements are all below 2^-118, to zeros.
    """

    id: ClassVar[str] = "groups"

    bits: Annotated[int, msgspec.Meta(ge=2, le=8)] = 4
    group: int = 128
    """Elements that share a scale: a power of two, 8 to 8192."""
    hadamard: Literal[0, 32, 64, 128, 256, 512] = 0
    """The order of the transform before rounding, at most `group`; 0 for none."""
    stochastic: bool = True
    """Whether noise, keyed by `encode`'s key, makes the rounding right on average; else to nearest."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"bits must be 2 to 8, got {self.bits}")
        if self.group & (self.group - 1) or not SMALLEST_GROUP <= self.group <= LARGEST_GROUP:
            raise UsageError(f"group must be a power of two from {SMALLEST_GROUP} to {LARGEST_GROUP}, got {self.group}")
        if self.hadamard not in (0, *layout.hadamard.ORDERS) or self.hadamard > self.group:
            raise UsageError(
                f"hadamard must be 0 or one of {layout.hadamard.ORDERS}, and at most the group of {self.group}, "
                f"got {self.hadamard}"
            )

    def payload_bytes(self, num: int) -> int:
        return layout.payload_bytes(num, self.bits, self.group, self.hadamard)

    def encode(self, x: Tensor, payload: Tensor, key: int | None = None) -> None:
        """Fill `payload` with what stands for `x`; stochastic rounding needs a key.

        Raises:
            ShapeError: a tensor has another type, size or layout.
            UsageError: rounding is stochastic, and there is no key.
        """
        check_elements("x", x)
        check_payload("payload", payload, self.payload_bytes(x.numel()))
        run("groups", "encode", (x, payload), self.bits, self.group, self.hadamard, self._key(key))

    def decode(self, payload: Tensor, y: Tensor) -> None:
        check_elements("y", y)
        check_payload("payload", payload, self.payload_bytes(y.numel()))
        run("groups", "decode", (payload, y), self.bits, self.group, self.hadamard)

    def decode_sum(self, payloads: Tensor, y: Tensor, scale: float = 1.0) -> None:
        check_elements("y", y)
        check_payloads("payloads", payloads, self.payload_bytes(y.numel()))
        run("groups", "decode_sum", (payloads, y), self.bits, self.group, self.hadamard, scale)

    def decode_sum_encode(self, payloads: Tensor, out: Tensor, num: int, then: Groups, key: int | None = None) -> None:
        """Sum the rows of `payloads`, of `num` elements each, and fill `out` with the payload of the sum by `then`.

        The sum stays transformed in between, and `key` is that of the rounding by `then`.

        Raises:
            ShapeError: a tensor has another type, size or layout.
            UsageError: `then` has another transform, or rounds stochastically and there is no key.
        """
        if then.hadamard != self.hadamard:
            raise UsageError(f"sums stay transformed: hadamard must be {self.hadamard} in both, got {then.hadamard}")
        check_payloads("payloads", payloads, self.payload_bytes(num))
        check_payload("out", out, then.payload_bytes(num))
        settings = (self.bits, self.group, then.bits, then.group, self.hadamard, then._key(key))
        run("groups", "decode_sum_encode", (payloads, out), num, *settings)

    def encode_difference(self, x: Tensor, reference: Tensor, payload: Tensor, key: int | None = None) -> None:
        """Fill `payload` with what stands for ``x - reference``; both may be float32 or bfloat16.

        Raises:
            ShapeError: a tensor has another type, size or layout.
            UsageError: the codec has a transform, which differences do without; or rounding needs a key.
        """
        self._refuse_transform()
        check_elements("x", x)
        check_elements("reference", reference)
        if x.numel() != reference.numel():
            raise UsageError(f"x has {x.numel()} elements, its reference {reference.numel()}")
        check_payload("payload", payload, self.payload_bytes(x.numel()))
        run("groups", "encode_difference", (x, reference, payload), self.bits, self.group, self._key(key))

    def decode_add(self, payload: Tensor, reference: Tensor) -> None:
        """Add what `payload` stands for to `reference`, rounded to its type.

        Raises:
            ShapeError: a tensor has another type, size or layout.
            UsageError: the codec has a transform, which differences do without.
        """
        self._refuse_transform()
        check_elements("reference", reference)
        check_payload("payload", payload, self.payload_bytes(reference.numel()))
        run("groups", "decode_add", (payload, reference), self.bits, self.group)

    def _key(self, key: int | None) -> int | None:
        if not self.stochastic:
            return None
        if key is None:
            raise UsageError("stochastic rounding needs a key: noise_key(seed, rank, step, bucket, stage)")
        return key

    def _refuse_transform(self) -> None:
        if self.hadamard:
            raise UsageError(f"differences are sent without a transform, got hadamard={self.hadamard}; set it to 0")
