"""What a rank of the tests of the probe does: ``python -m tests.diagnose.probe_ranks WHAT FOLDER``."""

from __future__ import annotations

import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.dist.launch import join
from trimtab import waiting
from trimtab.diagnose import Probe, hooks
from trimtab.diagnose.frame import read
from trimtab.diagnose.injection import Injection

GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def operations() -> dict[str, Any]:
    """Call everything once; the results by name."""
    rank, num = dist.get_rank(), dist.get_world_size()
    found: dict[str, Any] = {}

    def tensor(size: int = 6) -> torch.Tensor:
        return torch.arange(float(size)) + 10 * rank

    x = found["all_reduce"] = tensor()
    dist.all_reduce(x)
    x = found["all_reduce, asynchronous"] = tensor()
    dist.all_reduce(x, op=dist.ReduceOp.MAX, async_op=True).wait()
    x = found["broadcast"] = tensor()
    dist.broadcast(x, src=1)
    x = found["reduce"] = tensor()
    dist.reduce(x, 0, dist.ReduceOp.SUM)
    parts = found["all_gather"] = [torch.zeros(6) for _ in range(num)]
    dist.all_gather(parts, tensor())
    x = found["all_gather_single"] = torch.zeros(6 * num)
    GATHER(x, tensor())
    gathered = found["gather"] = [torch.zeros(6) for _ in range(num)] if rank == 0 else None
    dist.gather(tensor(), gathered, dst=0)
    x = found["scatter"] = torch.zeros(6)
    dist.scatter(x, [torch.full((6,), float(i)) for i in range(num)] if rank == 0 else None, src=0)
    x = found["reduce_scatter"] = torch.zeros(6)
    dist.reduce_scatter(x, [tensor() + i for i in range(num)])
    x = found["reduce_scatter_single"] = torch.zeros(6)
    SCATTER(output=x, input=tensor(6 * num))
    x = found["all_to_all_single"] = torch.zeros(2 * num)
    dist.all_to_all_single(x, tensor(2 * num))
    dist.barrier()
    dist.monitored_barrier()
    objects = found["all_gather_object"] = [None] * num
    dist.all_gather_object(objects, {"rank": rank})
    objects = found["broadcast_object_list"] = [rank]
    dist.broadcast_object_list(objects, src=1)
    x = found["send"] = tensor()
    if rank == 0:
        dist.send(x, 1)
    elif rank == 1:
        dist.recv(x, 0)
    x = found["batch"] = torch.zeros(6)
    pair = [dist.P2POp(dist.isend, tensor(), (rank + 1) % num), dist.P2POp(dist.irecv, x, (rank - 1) % num)]
    for work in dist.batch_isend_irecv(pair):
        work.wait()
    return found


def same(a: Any, b: Any) -> bool:
    """Whether results are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def trained(wrap: Callable[[nn.Module], nn.Module]) -> list[torch.Tensor]:
    """Train for a few steps; return the weights."""
    torch.manual_seed(3)
    model = wrap(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(4, 8) + dist.get_rank()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [getattr(p, "to_local", lambda p=p: p)().detach().clone() for p in model.parameters()]


def pair(folder: Path, kind: str) -> None:
    """Everything gives the same results with and without a probe, and is in the file."""
    join("pair", str(folder))
    held = dist.all_reduce
    before = operations(), trained(DistributedDataParallel), trained(fully_shard)
    with Probe(folder / "frames", hooks=kind) as probe:  # pyrefly: ignore
        assert probe.hooks == kind
        assert dist.all_reduce is held
        during = operations(), trained(DistributedDataParallel), trained(fully_shard)
        group = dist.new_group([0, 1])
        assert dist.get_backend(group) == "gloo"
        dist.all_reduce(torch.ones(3), group=group)
        assert probe.is_on
    after = operations()
    assert all(same(before[0][name], during[0][name]) and same(before[0][name], after[name]) for name in before[0])
    assert same(before[1], during[1])
    assert same(before[2], during[2])
    dist.barrier()


def solo(folder: Path, kind: str) -> None:
    """Things that one rank alone can show."""
    frames = folder / "frames"
    path = frames / "rank-000000.frame"
    options: dict[str, Any] = {"hooks": kind}
    with Probe(frames, **options) as probe:  # before there is a group
        assert probe.hooks is None
        assert read(path).frames.size == 0
        join("solo", str(folder))
        assert probe.hooks == kind
        x = torch.ones(4)
        for number in range(5, 8):
            probe.step(number)
            dist.all_reduce(x)
        with waiting.for_data():
            time.sleep(0.01)
        assert next(iter(torch.utils.data.DataLoader(torch.arange(3)))).item() == 0
        dist.broadcast(x, 0, async_op=True).wait()
        file = read(path)
        records = file.ring()[1:5]
        assert records["step"].tolist() == [5, 6, 7, 7]
        assert records["site"].all()
        assert len({*records["site"].tolist()}) == 2
        assert (records["exit"] >= records["enter"]).all()
        assert records["waited"][3] >= 10_000
        assert file.frames["done"].sum() == 4
        assert file.waited >= 0.01
        probe.pause(60)
        assert read(path).pause_until > 0
        assert "probe_ranks.py" in file.texts()[int(records["site"][0])]

        # an error inside of an operation is the program's, and the operation stays open
        try:
            dist.broadcast(x, 0, group=None, async_op=False, group_src=7)
        except (RuntimeError, ValueError, IndexError):
            pass
        else:
            raise AssertionError("expected an error")
        dist.all_reduce(x)
        assert probe.is_on

        # a child is not the rank
        child = os.fork()
        if not child:
            ok = not probe.is_on and getattr(dist.ProcessGroup.send, "__module__", "") != hooks.__name__
            os._exit(0 if ok else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not read(path).finished
    assert read(path).finished

    with Probe(frames, capacity=8, **options) as probe:  # again, in the same group
        for _ in range(30):
            dist.all_reduce(x)
        dropped = dist.all_reduce(x, async_op=True)
        while not dropped.is_completed():
            time.sleep(0.001)
        del dropped
        file = read(path)
        assert file.frames["seq"].max() == file.frames["done"].max() == 31

    with Probe(frames, max_communicators=1, **options) as probe:
        other = dist.new_group([0])
        dist.all_reduce(x, group=other)
        dist.all_reduce(x, group=other)
        assert read(path).lost >= 1


def death(folder: Path, kind: str) -> None:
    """A probe that goes wrong takes itself out; rank 0 alone."""
    join("death", str(folder))
    x = torch.ones(4)

    def broken(*_: Any) -> int:
        raise ValueError("broken on purpose")

    with Probe(folder / "frames", hooks=kind) as probe:  # pyrefly: ignore
        dist.all_reduce(x)
        assert probe._places is not None
        if dist.get_rank() == 0:
            probe._places.site = broken  # pyrefly: ignore
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                x.fill_(1)
                dist.all_reduce(x)  # a new place
                assert x.tolist() == [2.0] * 4
        ours = [one for one in caught if "probe gave up" in str(one.message)]
        assert len(ours) == (dist.get_rank() == 0)
        assert probe.is_on == (dist.get_rank() == 1)
        dist.barrier()
        print("blind" if read(folder / "frames" / f"rank-{dist.get_rank():06d}.frame").blind else "sees")
        dist.barrier()


def full(folder: Path, kind: str) -> None:
    """No room for the file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, 1 << 14))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Probe(folder / "frames", hooks=kind) as probe:  # pyrefly: ignore
            assert not probe.is_on
            join("full", str(folder))
            x = torch.ones(2)
            dist.all_reduce(x)
            assert x.tolist() == [1.0, 1.0]
    assert sum("probe gave up" in str(one.message) for one in caught) == 1
    assert not list((folder / "frames").iterdir())


def faults(folder: Path, kind: str) -> None:
    """Faults that alter operations, on a rank of its own: what is called is another thing, and only once."""
    join("faults", str(folder))
    frames = folder / "frames"
    with Probe(frames, hooks=kind) as probe:  # pyrefly: ignore
        for fault in ("skip", "shape", "other"):
            with Injection(fault, 0, None, 2):
                for _ in range(3):
                    dist.all_reduce(torch.ones(8))
        with Injection("slow", 0, 1, None, 0.05) as slow:
            start = time.monotonic()
            slow.step()
            assert time.monotonic() - start >= 0.05
        with Injection("link", 0, 1, None) as link:
            link.step()
            assert link.has_happened
        assert probe.is_on
    sizes = [int(record["num_bytes"]) for record in read(frames / "rank-000000.frame").ring()[1:20] if record["stamp"]]
    assert sizes == [32, 32, 32, 16, 32, 32, 32, 32], sizes


if __name__ == "__main__":
    what, folder, kind = sys.argv[1:4]
    {"pair": pair, "solo": solo, "death": death, "full": full, "faults": faults}[what](Path(folder), kind)
