"""What one rank of the distributed tests does: ``python -m tests.dist.ranks WHAT FOLDER``, by RANK and WORLD_SIZE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import trimtab.dcp
from tests.dist.launch import join
from trimtab.errors import Corrupt, UsageError

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
GRID = torch.arange(35, dtype=torch.float32).reshape(5, 7)


def training(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of odd sizes in two dtypes, whose parts shard unevenly or not at all, and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(64, 37), nn.BatchNorm1d(37), nn.Linear(37, 1), nn.Linear(1, 41, dtype=torch.bfloat16)
    )
    if dist.is_initialized():
        for layer in (model[0], model[2], model[3]):
            fully_shard(layer)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01 + seed / 1000)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Train for one step; all ranks see the same data."""
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed))
    y = model[2](model[1](model[0](x)))
    model[3](y.bfloat16()).float().square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def state(model: nn.Module, optimizer: torch.optim.Optimizer, options: StateDictOptions | None = None) -> dict:
    weights, optim = get_state_dict(model, optimizer, options=options)
    return {"model": weights, "optim": optim}


def extras(placement: Any = None, *, empty: bool = False) -> dict:
    """State beside model and optimizer: scalars, odd names, values of many types, a tensor cut along its columns."""
    progress = {"step": 17, "best": (0.25, float("inf")), "name": "é"}
    grid = torch.zeros_like(GRID) if empty else GRID.clone()
    if placement is not None:
        grid = distribute_tensor(grid, dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),)), [placement])
    return {
        "grid": grid,
        "scalar": torch.tensor(0.0 if empty else 2.5),
        "odd/näme:[0]\n": torch.zeros(3) if empty else torch.arange(3.0),
        "progress": dict.fromkeys(progress, 0) if empty else progress,
    }


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, placement: Any = None) -> dict:
    """Load all of a checkpoint, put it to use, and return what it was beside model and optimizer."""
    came = {**state(model, optimizer), **extras(placement, empty=True)}
    dcp.load(came, storage_reader=trimtab.dcp.Reader(folder))
    set_state_dict(model, optimizer, model_state_dict=came.pop("model"), optim_state_dict=came.pop("optim"))
    return came


def check(folder: Path, reference: str, seed: int, placement: Any = None) -> None:
    """Check that a checkpoint holds, for this number of ranks, just what stands in the reference."""
    model, optimizer = training(seed)
    came = load(folder, model, optimizer, placement)
    full = state(model, optimizer, FULL)
    if not dist.is_initialized() or dist.get_rank() == 0:
        expected = torch.load(folder.parent / reference, weights_only=True)
        assert_same(full, expected)
    grid = came["grid"] if placement is None else came["grid"].full_tensor()
    assert torch.equal(grid, GRID)
    assert came["scalar"] == 2.5
    assert torch.equal(came["odd/näme:[0]\n"], torch.arange(3.0))
    assert came["progress"] == {"step": 17, "best": (0.25, float("inf")), "name": "é"}


def remember(folder: Path, reference: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the reference: the whole state, by torch's own means."""
    full = state(model, optimizer, FULL)
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(full, folder / reference)


def assert_same(x: Any, y: Any) -> None:
    """Compare nested states bit for bit."""
    if isinstance(x, torch.Tensor):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))
    elif isinstance(x, dict):
        assert x.keys() == y.keys()
        for key in x:
            assert_same(x[key], y[key])
    elif isinstance(x, list):
        assert len(x) == len(y)
        for one, other in zip(x, y, strict=True):
            assert_same(one, other)
    else:
        assert x == y and type(x) is type(y)


def save_sharded(folder: Path) -> None:
    """Load what one process saved, train on, and save: at once, in vain, and in the background over the first."""
    check(folder / "one", "one.pt", seed=7, placement=Shard(1))
    model, optimizer = training(seed=7)
    load(folder / "one", model, optimizer, Replicate())
    step(model, optimizer, seed=1)
    remember(folder, "two.pt", model, optimizer)
    dcp.save({**state(model, optimizer), **extras(Shard(1))}, storage_writer=trimtab.dcp.Writer(folder / "two"))

    bad = {**state(model, optimizer), **extras(Shard(0)), "bad": slice(1, 2)}
    try:
        dcp.save(bad, storage_writer=trimtab.dcp.Writer(folder / "two"))
    except dcp.CheckpointException as error:
        ((reason, _),) = error.failures.values()
        assert isinstance(reason, UsageError) and "'bad'" in str(reason)
    else:
        raise AssertionError("an object that needs a pickle was saved")
    check(folder / "two", "two.pt", seed=8, placement=Shard(0))

    writer = trimtab.dcp.Writer(folder / "two")
    beside = dist.new_group()  # what runs in the background must not mix with the training's own collectives
    for seed in (2, 3):
        step(model, optimizer, seed)
        remember(folder, "two.pt", model, optimizer)
        whole = {**state(model, optimizer), **extras(Shard(0))}
        pending = dcp.async_save(whole, storage_writer=writer, process_group=beside)
        step(model, optimizer, seed=4)  # must not reach the checkpoint
        pending.result()


def load_resharded(folder: Path) -> None:
    """Load with this number of ranks what another number of ranks saved, and then what is damaged."""
    check(folder / "two", "two.pt", seed=9, placement=Shard(0))
    check(folder / "one", "one.pt", seed=10, placement=Shard(1))
    (pieces,) = (folder / "one").glob("rank*.tt")
    for path in (pieces, folder / "one" / "checkpoint.tt"):
        dist.barrier()
        if dist.get_rank() == 0:
            whole = path.read_bytes()
            path.unlink()
            path.write_bytes(whole[:-8] + bytes(8))
        dist.barrier()
        try:
            check(folder / "one", "one.pt", seed=11, placement=Shard(1))
        except dcp.CheckpointException as error:  # on every rank, whichever noticed
            assert error.failures and all(isinstance(reason, Corrupt) for reason, _ in error.failures.values())
        else:
            raise AssertionError(f"{path} was damaged, and loaded")


if __name__ == "__main__":
    what, where = sys.argv[1:]
    join(what, where)
    try:
        {"save_sharded": save_sharded, "load_resharded": load_resharded}[what](Path(where))
    finally:
        dist.destroy_process_group()
