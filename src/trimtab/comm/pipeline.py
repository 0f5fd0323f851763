"""What passes between the stages of a pipeline, packed: two modules around a stage of torch.distributed.pipelining.

`PipelineSend` ends a stage: it packs activations, and unpacks their gradient. `PipelineReceive` starts the next one: it
unpacks activations, and packs their gradient. What the schedule carries between them is a float32 tensor, as autograd
wants one, whose bits are a message (`trimtab.comm.wire`): nothing computes with it, and NaN patterns pass unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from trimtab.codecs.wire import Exact, WireCodec
from trimtab.comm.channel import Group, packers
from trimtab.comm.wire import HEADER_BYTES, Expected, message_bytes, open_message, seal
from trimtab.errors import PayloadError, ShapeError


class _Boundary(nn.Module):
    """What both sides of a boundary know: the tensor that crosses it, and how it is packed.

    Args:
        shape: of the activations of one micro-batch.
        dtype: theirs, float32 or bfloat16.
        boundary: the number of the stage that sends activations.
        codec, group, hadamard: as of `trimtab.comm.tensor_parallel.Packing`.

    Raises:
        UsageError: a setting is not one.
        ShapeError: no tensor of that dtype can be sent.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        boundary: int = 0,
        dtype: torch.dtype = torch.float32,
        codec: str | WireCodec = "fp8",
        group: Group = 128,
        hadamard: bool = True,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.bfloat16):
            raise ShapeError(f"activations of {dtype}; expected torch.float32 or torch.bfloat16")
        self.shape, self.dtype, self.boundary = tuple(shape), dtype, boundary
        found = packers(codec, group, hadamard)
        self.codec: WireCodec = found[0] if found else Exact(dtype="float32" if dtype == torch.float32 else "bfloat16")
        self.num_bytes = self.codec.payload_bytes(math.prod(self.shape))
        """The payload of one micro-batch."""
        self._settings = xxhash.xxh3_64_intdigest(f"{self.codec!r} {self.shape} {dtype}".encode())
        self._sequence = {"packed": 0, "unpacked": 0}

    @property
    def example(self) -> Tensor:
        """The message, without its values: `output_args` of the stage that sends, `input_args` of the one behind it.

        `PipelineStage` has to be given both. Where it is left to infer shapes as it runs, it passes memory that no one
        has written, which is refused like any damaged message.
        """
        return torch.empty(message_bytes(self.num_bytes) // 4, dtype=torch.float32, device="meta", requires_grad=True)

    def pack(self, x: Tensor, sender: int) -> Tensor:
        """Return the message of x, as float32."""
        if tuple(x.shape) != self.shape or x.dtype != self.dtype:
            raise ShapeError(
                f"boundary {self.boundary}: expected {self.dtype} of shape {self.shape}, got {x.dtype} of shape "
                f"{tuple(x.shape)}"
            )
        message = torch.zeros(message_bytes(self.num_bytes), dtype=torch.uint8, device=x.device)
        self.codec.encode(x.detach().reshape(-1), message[HEADER_BYTES : HEADER_BYTES + self.num_bytes])
        seal(message, Expected(sender, self._settings, self._next("packed"), self.num_bytes))
        return message.view(torch.float32)

    def unpack(self, message: Tensor, sender: int) -> Tensor:
        """Return what a message holds.

        Raises:
            PayloadError: it is not the message that was expected.
        """
        expected = Expected(sender, self._settings, self._next("unpacked"), self.num_bytes)
        try:
            payload = open_message(message.detach().contiguous().view(torch.uint8), expected)
        except PayloadError as error:
            raise PayloadError(
                f"between stages {self.boundary} and {self.boundary + 1} (ranks here are stages): {error}. If this is "
                "the first call, give PipelineStage its input_args and output_args: it cannot infer them as it runs"
            ) from None
        y = torch.empty(math.prod(self.shape), dtype=self.dtype, device=message.device)
        self.codec.decode(payload, y)
        return y.view(self.shape)

    def _next(self, what: str) -> int:
        self._sequence[what] += 1
        return self._sequence[what]

    def extra_repr(self) -> str:
        return f"boundary={self.boundary}, shape={self.shape}, dtype={self.dtype}, codec={self.codec}"


class PipelineSend(_Boundary):
    """The end of a stage: activations of `shape` in, the message of them out; its gradient is a message as well.

    >>> import torch, trimtab as tt
    >>> send, receive = tt.comm.PipelineSend((2, 8, 64)), tt.comm.PipelineReceive((2, 8, 64))
    >>> x = torch.linspace(-1, 1, 1024).view(2, 8, 64)
    >>> bool((receive(send(x)) - x).abs().max() < 0.1)
    True
    """

    def forward(self, x: Tensor) -> Tensor:
        return _Send.apply(x, self)


class PipelineReceive(_Boundary):
    """The start of a stage: the message of activations in, the activations out; packs their gradient."""

    def forward(self, message: Tensor) -> Tensor:
        return _Receive.apply(message, self)


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: PipelineSend) -> Tensor:
        ctx.module = module
        return module.pack(x, module.boundary)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return ctx.module.unpack(gradient, ctx.module.boundary + 1), None


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, message: Tensor, module: PipelineReceive) -> Tensor:
        ctx.module = module
        return module.unpack(message, module.boundary)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return ctx.module.pack(gradient, ctx.module.boundary + 1), None
