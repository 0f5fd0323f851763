"""Collectives through channels as autograd functions: the four that tensor parallelism is made of (Megatron-LM, 2019).

| function | forward | backward |
| --- | --- | --- |
| `all_reduce` | sum over ranks | nothing: what follows is the same on every rank, and so is its gradient |
| `all_reduce_gradient` | nothing | sum over ranks: each rank knows the gradient of its own part |
| `all_gather` | all ranks' parts | sum over ranks, of which each keeps its part; or just its part |
| `reduce_scatter` | sum over ranks, of which each keeps its part | all ranks' parts |

Each function is the other way round of the one beside it. Only the copy that is sent is packed: partial sums and
gradients stay exact until they leave the rank, and each rank uses what the others decode, so all have the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtab.comm.channel import Channel, evenly


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, channel: Channel) -> Tensor:
        return channel.all_reduce(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return gradient, None


class _AllReduceGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, channel: Channel) -> Tensor:
        ctx.channel = channel
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return ctx.channel.all_reduce(gradient), None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, channel: Channel, back: Channel | None) -> Tensor:
        ctx.dim, ctx.channel, ctx.back = dim, channel, back
        return channel.all_gather(x, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        if ctx.back is None:
            parts = evenly(gradient, ctx.dim, ctx.channel.num_ranks)
            return parts[ctx.channel.rank].contiguous(), None, None, None
        return ctx.back.reduce_scatter(gradient, ctx.dim), None, None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, channel: Channel, back: Channel) -> Tensor:
        ctx.dim, ctx.back = dim, back
        return channel.reduce_scatter(x, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return ctx.back.all_gather(gradient, ctx.dim), None, None, None


def all_reduce(x: Tensor, channel: Channel) -> Tensor:
    """Return the sum of x over the ranks; the gradient passes as it is."""
    return _AllReduce.apply(x, channel)


def all_reduce_gradient(x: Tensor, channel: Channel) -> Tensor:
    """Return x, which is the same on every rank; its gradient is summed over the ranks."""
    return _AllReduceGradient.apply(x, channel)


def all_gather(x: Tensor, dim: int, channel: Channel, back: Channel | None) -> Tensor:
    """Return all ranks' x, of one shape, behind each other along `dim`.

    The gradient is summed over the ranks through `back`, and each keeps its part. Where `back` is None every rank knows
    the whole gradient already, and only cuts out its part.
    """
    return _AllGather.apply(x, dim, channel, back)


def reduce_scatter(x: Tensor, dim: int, channel: Channel, back: Channel) -> Tensor:
    """Return this rank's part, along `dim`, of the sum of x over the ranks; gradients are gathered through `back`.

    Raises:
        ShapeError: the ranks do not divide that dimension.
    """
    return _ReduceScatter.apply(x, dim, channel, back)
