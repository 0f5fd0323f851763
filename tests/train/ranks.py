"""A rank that trains with COMET, replicated or sharded: ``python -m tests.train.ranks KIND FOLDER``."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.dist.launch import join
from tests.train.networks import images, resnet
from trimtab.train import COMET


def wrapped(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = resnet()
    if kind == "replicated":
        return DistributedDataParallel(model)
    for child in model:
        if any(True for _ in child.parameters()):
            fully_shard(child)
    return fully_shard(model)


def steps(model: nn.Module, rank: int, comet: COMET | None = None) -> list[Tensor]:
    """Run three steps, and return the gradients of the first."""
    prefix = "module." if isinstance(model, DistributedDataParallel) else ""
    rebuilt = []
    if comet and comet.batch_norm == "rebuilt":
        rebuilt = [prefix + name for name in ("1", "3.first_norm", "4.first_norm")]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    context = comet(model, optimizer) if comet else None
    first = []
    for step in range(3):
        x, y = images(16, seed=10 * step + rank)
        if context:
            with context:
                F.cross_entropy(model(x), y).backward()
        else:
            F.cross_entropy(model(x), y).backward()
        if not first:
            gradients = [p.grad for p in model.parameters()]
            first = [(g.full_tensor() if isinstance(g, DTensor) else g).clone() for g in gradients]
        optimizer.step()
        optimizer.zero_grad()
    if context:
        context.measured_layers()
        report = context.report
        assert report["steps"] == 3
        assert report["ratio"] > 4, report["ratio"]
        assert len(report["layers"]) == 13, list(report["layers"])
        for name, record in report["layers"].items():
            assert record["mean_abs_momentum"], name
            assert record["predicted_sigma"] > 0, name
            assert "exact" not in record["kept_bytes"], name
            assert ("rebuilt" in record["kept_bytes"]) == (name in rebuilt), name
    return first


def main(kind: str, folder: str) -> None:
    join(kind, folder)
    rank = torch.distributed.get_rank()
    expected = steps(wrapped(kind), rank)
    for batch_norm, most in (("bounded", 0.05), ("rebuilt", 0.2)):
        found = steps(wrapped(kind), rank, COMET(initial_bound=1 / 64, min_bytes=0, batch_norm=batch_norm))
        for a, b in zip(expected, found, strict=True):
            assert 0 <= float((a - b).norm() / a.norm()) < most


if __name__ == "__main__":
    main(*sys.argv[1:])
