"""The ways of tensor parallelism that `bench.tensor_parallel` compares: stock, packed, and peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    parallelize_module,
)

from bench.gpt import GPT
from trimtab.comm.sdp4bit import SDP4Bit
from trimtab.comm.tensor_parallel import TacoColwise, TacoRowwise, TacoSequenceParallel, TacoShared

Plan = dict[str, ParallelStyle]
SDP4BIT = SDP4Bit(min_bytes=16384, when="always")
"""The parameters of a small model are small."""
WHOLE = (Replicate(),)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to train: a plan for the tensor-parallel ranks, and so many copies of them, which shard what each holds."""

    plan: Callable[[], Plan]
    note: str
    num_copies: int = 1
    sharded: Callable[[nn.Module], Any] | None = None
    """What takes over the collectives between the copies, once `fully_shard` has been there."""

    def apply(self, model: GPT) -> tuple[Plan, DeviceMesh]:
        """Divide a model among all ranks; return the plan that did it, and the mesh of copies and tensor ranks."""
        shape = (self.num_copies, dist.get_world_size() // self.num_copies)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
        plan = self.plan()
        parallelize_module(model, mesh["tensor"], plan)
        if self.num_copies > 1:
            for module in (*model.blocks, model):
                fully_shard(module, mesh=mesh["data"], reshard_after_forward=False)
        if self.sharded is not None:
            self.sharded(model)
        return plan, mesh


def _plan(colwise: ParallelStyle, rowwise: ParallelStyle, norm: ParallelStyle) -> Plan:
    """Return a plan for the blocks of a GPT: a norm's output is read by q, k and v, or by up."""
    return {
        **dict.fromkeys(("blocks.*.attention_norm", "blocks.*.norm"), norm),
        **dict.fromkeys((f"blocks.*.{name}" for name in ("q", "k", "v", "up")), colwise),
        **dict.fromkeys((f"blocks.*.{name}" for name in ("out", "down")), rowwise),
    }


def stock() -> Plan:
    """Float32 through torch's own styles, the gradients of q, k and v summed before they are sent."""
    norm = PrepareModuleOutput(output_layouts=WHOLE, desired_output_layouts=WHOLE, use_local_output=False)
    return _plan(ColwiseParallel(), RowwiseParallel(), norm)


class ShortRowwise(RowwiseParallel):
    """Partial sums travel, and are added up, as bfloat16."""

    @staticmethod
    def _prepare_output_fn(
        output_layouts: Any, use_local_output: bool, mod: nn.Module, outputs: DTensor, device_mesh: DeviceMesh
    ) -> Tensor:
        short = outputs.redistribute(placements=output_layouts, forward_dtype=torch.bfloat16)
        return short.to_local().to(outputs.dtype)


class ShortShared(ParallelStyle):
    """The gradient of a norm's output travels, and is added up, as bfloat16."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def share(module: nn.Module, inputs: Any, output: Tensor) -> DTensor:  # noqa: ARG001 (as hooks are called)
            whole = DTensor.from_local(output, device_mesh, WHOLE, run_check=False)
            return whole.redistribute(placements=WHOLE, backward_dtype=torch.bfloat16)

        module.register_forward_hook(share)
        return module


def bfloat16() -> Plan:
    """The strong and cheap peer: `DTensor.redistribute` with a shorter type on the wire."""
    return _plan(ColwiseParallel(), ShortRowwise(), ShortShared())


def taco(**packing: Any) -> Plan:
    """Our styles, the sums replicated."""
    return _plan(TacoColwise(**packing), TacoRowwise(**packing), TacoShared(**packing))


def sequence_parallel(**packing: Any) -> Plan:
    """Our styles, what is between the layers sharded along the sequence."""
    rowwise = TacoRowwise(output_layouts=Shard(1), **packing)
    return {
        **_plan(TacoColwise(**packing), rowwise, TacoSequenceParallel(**packing)),
        "norm": TacoSequenceParallel(use_local_output=True, **packing),
        # each rank goes on with its part of the embedded tokens
        "blocks.0": PrepareModuleInput(input_layouts=WHOLE, desired_input_layouts=(Shard(1),), use_local_output=True),
    }


WAYS: Mapping[str, Way] = {
    "stock": Way(stock, "float32 through torch's own styles"),
    "bf16": Way(bfloat16, "bfloat16 on the wire through DTensor.redistribute(forward_dtype=, backward_dtype=)"),
    "exact": Way(lambda: taco(codec="exact"), "our styles without a codec: the same sums in another order"),
    "fp8": Way(lambda: taco(codec="fp8"), "e4m3, two scales per 128, Hadamard: as published"),
    "fp8-1": Way(lambda: taco(codec="fp8-1"), "the same with one scale"),
    "int8": Way(lambda: taco(codec="int8"), "8-bit integers, one scale per 128, Hadamard"),
    "int6": Way(lambda: taco(codec="int6"), "6-bit integers, one scale per 128, Hadamard"),
    "int8, chosen": Way(lambda: taco(codec="int8", hadamard=None), "int8, Hadamard where it errs less"),
    "exact, sequence": Way(lambda: sequence_parallel(codec="exact"), "sequence parallel, without a codec"),
    "fp8, sequence": Way(lambda: sequence_parallel(codec="fp8"), "sequence parallel, as published"),
    "int8, sequence": Way(lambda: sequence_parallel(codec="int8"), "sequence parallel, 8-bit integers"),
    "2-D stock": Way(stock, "two copies of two tensor-parallel ranks, FSDP2 between the copies", num_copies=2),
    "2-D TACO": Way(lambda: taco(codec="int8"), "the same, int8 between the tensor ranks", num_copies=2),
    "2-D SDP4Bit": Way(stock, "the same, SDP4Bit between the copies", num_copies=2, sharded=SDP4BIT),
    "2-D both": Way(lambda: taco(codec="int8"), "the same, int8 and SDP4Bit", num_copies=2, sharded=SDP4BIT),
}
