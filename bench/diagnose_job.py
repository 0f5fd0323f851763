"""The jobs of `bench.diagnose_matrix`: what one rank trains, with a probe and with or without a fault.

Each of the four has a loop of steps: all-reduces of a plain loop, DDP, FSDP2, and a pipeline by sends and receives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from trimtab.diagnose import Probe
from trimtab.diagnose.injection import Injection

WORKLOADS = ("all-reduce", "ddp", "fsdp2", "pipeline")
_WIDTH, _COMPUTE = 256, 0.004


def train(workload: str, *, num_steps: int, probe: Probe, fault: Injection | None, seed: int) -> None:
    """Train so many steps; the process group is there."""
    torch.manual_seed(seed)
    step = {"all-reduce": _all_reduce, "ddp": _ddp, "fsdp2": _fsdp2, "pipeline": _pipeline}[workload]()
    for number in range(1, num_steps + 1):
        if workload in ("all-reduce", "pipeline"):  # the others have optimizers, whose steps are seen
            probe.step(number)
        step()
        if fault is not None and workload in ("all-reduce", "pipeline"):
            fault.step()


def _compute() -> None:
    """The same time on every rank, however many share a processor."""
    time.sleep(_COMPUTE)


def _all_reduce() -> Callable[[], None]:
    gradient, loss = torch.ones(1 << 16), torch.ones(1)

    def step() -> None:
        for _ in range(3):
            _compute()
            dist.all_reduce(gradient, dist.ReduceOp.AVG if dist.get_backend() == "nccl" else dist.ReduceOp.MAX)
        dist.all_reduce(loss, dist.ReduceOp.MAX)

    return step


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 8)
    )


def _trained(model: nn.Module) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(4, _WIDTH)

    def step() -> None:
        _compute()
        loss: Any = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _ddp() -> Callable[[], None]:
    return _trained(DistributedDataParallel(_network(), bucket_cap_mb=0.2))


def _fsdp2() -> Callable[[], None]:
    model = _network()
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return _trained(fully_shard(model, mesh=mesh))


def _pipeline() -> Callable[[], None]:
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    activations = torch.ones(1 << 16)

    def step() -> None:
        for _ in range(2):  # micro-batches, forward
            if rank > 0:
                dist.recv(activations, rank - 1)
            _compute()
            if rank < last:
                dist.send(activations, rank + 1)
        for _ in range(2):  # and back
            if rank < last:
                dist.recv(activations, rank + 1)
            _compute()
            if rank > 0:
                dist.send(activations, rank - 1)

    return step
