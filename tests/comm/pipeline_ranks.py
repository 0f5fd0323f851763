"""What one rank of the tests of pipelines does: ``python -m tests.comm.pipeline_ranks WHAT FOLDER``."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

from bench import gpt
from bench.tensor_ways import SDP4BIT, taco
from tests.dist.launch import join
from trimtab.comm import PipelineReceive, PipelineSend
from trimtab.comm.channel import exchange_of

CPU = torch.device("cpu")
SHAPE = (4, 8, 64)
ERRORS = {"exact": 1e-6, "fp8": 0.06, "int8": 0.015, "int6": 0.06}


def data(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(x: Tensor, expected: Tensor) -> float:
    return ((x.double() - expected.double()).norm() / expected.double().norm()).item()


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))


def schedules() -> None:
    """Two stages under stock schedules: gradients within the codec's error, messages and not values on the wire."""
    rank = dist.get_rank()
    x, target = data(1, 16, 8, 64), data(2, 16, 8, 64)
    whole = layers()
    nn.functional.mse_loss(whole(x), target).backward()
    for codec, allowed in ERRORS.items():
        for schedule in (ScheduleGPipe, Schedule1F1B):
            parts, losses = layers(), []
            if rank == 0:
                side = PipelineSend(SHAPE, codec=codec)
                module, mine = nn.Sequential(*parts[:2], side), whole[:2]
                shapes: dict[str, Any] = {"input_args": torch.empty(SHAPE), "output_args": side.example}
            else:
                side = PipelineReceive(SHAPE, codec=codec)
                module, mine = nn.Sequential(side, *parts[2:]), whole[2:]
                shapes = {"input_args": side.example, "output_args": torch.empty(SHAPE)}
            steps = schedule(PipelineStage(module, rank, 2, CPU, **shapes), 4, loss_fn=nn.functional.mse_loss)
            for _ in range(2):
                module.zero_grad()
                steps.step(x) if rank == 0 else steps.step(target=target, losses=losses)
            for found, expected in zip(module.parameters(), mine.parameters(), strict=True):
                assert error(found.grad, expected.grad) < allowed, (codec, schedule)
                assert codec == "exact" or error(found.grad, expected.grad) > 0
            assert side._sequence == {"packed": 8, "unpacked": 8}
            assert side.example.numel() * 4 == side.num_bytes + 40
    send = PipelineSend(SHAPE)
    assert send.example.numel() * 4 < 0.3 * 4 * 8 * 64 * 4


def cube() -> None:
    """Tensor, data and pipeline parallelism at once, all of it packed: gradients near those of one process."""
    size = gpt.Size(width=128, num_heads=4, num_blocks=2, context=64)
    mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("pipeline", "data", "tensor"))
    stage, copy = mesh.get_local_rank("pipeline"), mesh.get_local_rank("data")
    text = gpt.library()

    def rows(which: int) -> tuple[Tensor, Tensor]:
        return text.batch(size, 4, seed=0, step=0, rank=which, world_size=2)

    whole = gpt.make(size, 0)
    sum(gpt.loss(whole, *rows(which)) for which in range(2)).div(2).backward()

    shape = (2, size.context, size.width)
    module = gpt.make(size, 0)
    delattr(module.blocks, str(1 - stage))  # `del` would number the other one anew
    parallelize_module(module, mesh["tensor"], taco(codec="int8"))
    for part in (*module.blocks, module):
        fully_shard(part, mesh=mesh["data"], reshard_after_forward=False)
    handle = SDP4BIT(module)
    first = stage == 0
    side = PipelineSend(shape, codec="int8") if first else PipelineReceive(shape, codec="int8")
    shapes: dict[str, Any] = (
        {"input_args": torch.empty(2, size.context, dtype=torch.int64), "output_args": side.example}
        if first
        else {"input_args": side.example, "output_args": torch.empty(2, size.context, gpt.VOCABULARY)}
    )

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.side = module, side

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x, self.side)

    def forward(x: Tensor, side: nn.Module) -> Tensor:
        (block,) = module.blocks
        if not first:
            return module.head(module.norm(block(side(x))))
        return side(block(module.embedding(x) + module.position(torch.arange(x.shape[1]))))

    module.forward = forward

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    pipeline_stage = PipelineStage(Stage(), stage, 2, CPU, group=mesh.get_group("pipeline"), **shapes)
    steps = Schedule1F1B(pipeline_stage, 2, loss_fn=loss)
    tokens, targets = rows(copy)
    losses: list[Tensor] = []
    steps.step(tokens) if first else steps.step(target=targets, losses=losses)
    names = ("embedding", "position", "blocks.0") if first else ("blocks.1", "norm", "head")
    expected = {name: parameter for name, parameter in whole.named_parameters() if name.startswith(names)}
    found = {name: parameter for name, parameter in module.named_parameters() if name.startswith(names)}
    assert expected.keys() == found.keys()
    for name, parameter in found.items():
        gradient = parameter.grad
        assert isinstance(gradient, DTensor), name
        assert error(gradient.full_tensor(), expected[name].grad) < 0.25, name  # 4 bits of gradients
    for meter in (handle.meter, exchange_of(mesh.get_group("tensor")).meter):
        for operation in ("reduce_scatter", "all_gather"):
            counted = meter.report["operations"][operation]
            assert 0 < counted["sent_bytes"] < 0.9 * counted["exact_bytes"], (operation, counted)
    assert len(losses) == (0 if first else 2)


if __name__ == "__main__":
    what, where = sys.argv[1:]
    join(what, where)
    {"schedules": schedules, "cube": cube}[what]()
    dist.barrier()
    dist.destroy_process_group()
