"""The ways to train one model on several ranks that `bench.sharded` compares: stock, exact, packed, and peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from bench.gpt import GPT
from trimtab.codecs.sdp4bit import Groups
from trimtab.comm import SDP4Bit
from trimtab.comm.fsdp import AllGather, ReduceScatter
from trimtab.comm.sharded import Sharded
from trimtab.comm.topology import Topology, all_gather_bytes

WEIGHTS_4, WEIGHTS_8 = Groups(bits=4, group=2048), Groups(bits=8, group=2048, stochastic=False)
NEAREST_4 = Groups(bits=4, group=128, stochastic=False)
PRECISION = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to train: what makes a model of this rank's part of it, and what a reader should know."""

    make: Callable[[GPT, int], nn.Module]
    """Of a model whose weights are the same on all ranks, and a seed."""
    note: str


def shard(model: GPT, *, reshard_after_forward: bool = False) -> GPT:
    """Shard as FSDP2 does: block by block, bfloat16 parameters gathered, float32 gradients reduced."""
    for module in (*model.blocks, model):
        fully_shard(module, mp_policy=PRECISION, reshard_after_forward=reshard_after_forward)
    return model


class _Allocating:
    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class FlatScatter(_Allocating, ReduceScatter):
    """Exact: every rank sends each other its part of the gradients, and sums what it got."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        received = torch.empty_like(input_tensor)
        dist.all_to_all_single(received, input_tensor, group=group)
        torch.sum(received.view(group.size(), -1), 0, out=output_tensor)
        output_tensor.mul_(_scale(op, group.size()))


class TwoLevelScatter(_Allocating, ReduceScatter):
    """Exact: as `FlatScatter` inside the node, then between nodes what was summed."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        top = self.topology
        sends = input_tensor.view(top.num_nodes, top.local_size, -1).transpose(0, 1).contiguous()
        received = torch.empty_like(sends)
        dist.all_to_all_single(received, sends, group=top.intra)
        sends = received.sum(0)
        received = torch.empty_like(sends)
        dist.all_to_all_single(received, sends, group=top.inter)
        torch.sum(received, 0, out=output_tensor)
        output_tensor.mul_(_scale(op, group.size()))


class TwoLevelGather(_Allocating, AllGather):
    """Exact: between ranks at one place of their nodes, then inside the nodes."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        top = self.topology
        mine = input_tensor.contiguous().view(torch.uint8)
        across = mine.new_empty(top.num_nodes, mine.numel())
        all_gather_bytes(across, mine, top.inter)
        near = mine.new_empty(top.local_size, *across.shape)
        all_gather_bytes(near, across, top.intra)
        rows = output_tensor.view(torch.uint8).view(top.num_nodes, top.local_size, -1)
        rows.copy_(near.transpose(0, 1))


def _scale(op: Any, size: int) -> float:
    if op == dist.ReduceOp.AVG:
        return 1 / size
    assert op == dist.ReduceOp.SUM, op
    return 1.0


def _exact_flat(model: GPT, _seed: int) -> nn.Module:
    for module in _units(shard(model)):
        module.set_custom_reduce_scatter(FlatScatter())
    return model


def _exact_two_level(model: GPT, _seed: int) -> nn.Module:
    topology = Topology()
    for module in _units(shard(model)):
        module.set_custom_all_gather(TwoLevelGather(topology))
        module.set_custom_reduce_scatter(TwoLevelScatter(topology))
    return model


def _units(model: GPT) -> list[Any]:
    return [*model.blocks, model]


def _packed(settings: Sharded) -> Callable[[GPT, int], nn.Module]:
    def make(model: GPT, seed: int) -> nn.Module:
        msgspec.structs.replace(settings, seed=seed)(shard(model))
        return model

    return make


def _sdp4bit(when: Literal["auto", "always"]) -> Callable[[GPT, int], nn.Module]:
    def make(model: GPT, seed: int) -> nn.Module:
        SDP4Bit(seed=seed, when=when)(shard(model))
        return model

    return make


class Half(nn.Module):
    """A model in float32 that computes in bfloat16 where it may, as FSDP's precision does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(tokens)


def _fp16_hook(model: GPT, _seed: int) -> nn.Module:
    replicated = DistributedDataParallel(Half(model))
    replicated.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return replicated


def _power_sgd(model: GPT, seed: int) -> nn.Module:
    replicated = DistributedDataParallel(Half(model), bucket_cap_mb=1000)  # several buckets hang on gloo
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2, random_seed=seed)
    replicated.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return replicated


def _ddp(model: GPT, _seed: int) -> nn.Module:
    return DistributedDataParallel(Half(model))


def _ddp_sdp4bit(model: GPT, seed: int) -> nn.Module:
    replicated = DistributedDataParallel(Half(model))
    SDP4Bit(seed=seed, when="always")(replicated)
    return replicated


WAYS = {
    "stock": Way(lambda model, _: shard(model), "FSDP2: bfloat16 gather, float32 reduce, no resharding after forward"),
    "stock, resharding": Way(
        lambda model, _: shard(model, reshard_after_forward=True), "FSDP2's default, which gathers blocks twice a step"
    ),
    "exact, flat": Way(_exact_flat, "FSDP2 whose reduce-scatter is an all-to-all and a sum"),
    "exact, two levels": Way(_exact_two_level, "both collectives inside the nodes and between them, in plain PyTorch"),
    "DDP": Way(_ddp, "DistributedDataParallel, autocast to bfloat16, float32 all-reduce"),
    "DDP, fp16 hook": Way(_fp16_hook, "the same with fp16_compress_hook"),
    "DDP, PowerSGD": Way(_power_sgd, "the same with powerSGD_hook of rank 4, in one bucket: several hang on gloo"),
    "ZeRO++-style": Way(
        _packed(Sharded(weights=WEIGHTS_8, differences=False, gradients=(NEAREST_4, NEAREST_4), levels=(1, 2))),
        "our harness set as ZeRO++: weights directly to 8 bits, flat gather, gradients to 4 bits in two levels",
    ),
    "qW": Way(_packed(Sharded(weights=WEIGHTS_4, differences=False)), "weights directly to 4 bits; gradients exact"),
    "qWD": Way(_packed(Sharded(weights=WEIGHTS_4)), "differences of weights to 4 bits; gradients exact"),
    "TLq": Way(
        _packed(Sharded(gradients=(Groups(bits=8), Groups(bits=4)))),
        "gradients to 8 bits inside nodes and 4 between; weights exact",
    ),
    "TLq-HS": Way(
        _packed(Sharded(gradients=(Groups(bits=8, hadamard=32), Groups(bits=4, hadamard=32)))),
        "the same behind a Hadamard transform",
    ),
    "SDP4Bit": Way(_sdp4bit("always"), "qWD and TLq-HS together"),
    "SDP4Bit, auto": Way(_sdp4bit("auto"), "the same, or exact in two levels where the planner finds that faster"),
    "DDP, SDP4Bit": Way(_ddp_sdp4bit, "DistributedDataParallel with SDP4Bit's gradients"),
}
"""Name -> way."""
