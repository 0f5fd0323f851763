"""What one rank of the tests of tensor parallelism does: ``python -m tests.comm.tensor_ranks WHAT FOLDER``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from bench import gpt
from bench.tensor_ranks import Trainer
from bench.tensor_runs import SCALES
from bench.tensor_ways import WAYS, bfloat16, sequence_parallel, stock, taco
from tests.dist.launch import join
from trimtab.codecs.sdp4bit import Groups
from trimtab.codecs.taco import Float8
from trimtab.codecs.wire import WireCodec
from trimtab.comm import autograd
from trimtab.comm.channel import Channel, exchange_of, packers
from trimtab.comm.tensor_parallel import TacoColwise, TacoRowwise
from trimtab.errors import SettingsDiffer, ShapeError
from trimtab.kernels.float8 import ref as float8
from trimtab.kernels.groups import ref as groups

SIZE = gpt.Size(width=128, num_heads=4, num_blocks=1, context=64)
ERRORS = {"fp8": 0.06, "fp8-1": 0.06, "int8": 0.015, "int6": 0.06}
"""Codec -> the largest relative error of a gradient that some layers of it make."""
SINGLE = {"fp8": 0.04, "fp8-1": 0.04, "fp8-e5m2": 0.08, "int8": 0.012, "int6": 0.045}
"""Codec -> the largest relative error of one collective."""


def data(rank: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 + rank))


def error(x: Tensor, expected: Tensor) -> float:
    return ((x.double() - expected.double()).norm() / expected.double().norm()).item()


def assert_equal_on_all(x: Tensor) -> None:
    """Check that all ranks hold the same bits."""
    mine = x.detach().contiguous().view(torch.uint8)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    assert all(torch.equal(mine, other) for other in found)


def channel(codec: str | WireCodec, *, hadamard: bool | None = True, calibrate: int = 0, **others: Any) -> Channel:
    group = dist.group.WORLD
    assert group is not None
    found = packers(codec, others.pop("group", 128), hadamard)
    return Channel(exchange_of(group), found, min_bytes=others.pop("min_bytes", 0), calibrate=calibrate)


def functions() -> None:
    """Each function forward and backward: exactly, and within the codec's error, for even and odd sizes and dtypes."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for codec, shape in itertools.product(("exact", *SINGLE), ((size, 8, 96), (size, 3), (size, 37, 128), (size,))):
        few = 1 if len(shape) == 3 else 6  # the errors of a few values may all be large
        allowed = few * SINGLE.get(codec, 1e-6)
        front, back = channel(codec), channel(codec)
        dim = 0
        xs, gradients = ([data(r + at, *shape) for r in range(size)] for at in (0, 50))
        parts = [torch.stack(found).sum(0).chunk(size, dim) for found in (xs, gradients)]

        x = xs[rank].clone().requires_grad_()
        y = autograd.all_reduce(x, front)
        assert error(y, torch.stack(xs).sum(0)) < allowed
        assert_equal_on_all(y)
        y.backward(gradients[0])
        assert torch.equal(x.grad, gradients[0])

        x = xs[0].clone().requires_grad_()
        y = autograd.all_reduce_gradient(x, back)
        assert torch.equal(y, x)
        y.backward(gradients[rank])
        assert error(x.grad, torch.stack(gradients).sum(0)) < allowed
        assert_equal_on_all(x.grad)

        part = parts[0][rank].clone().requires_grad_()
        y = autograd.all_gather(part, dim, front, back)
        assert error(y, torch.cat(parts[0], dim)) < allowed
        assert_equal_on_all(y)
        y.backward(gradients[rank])
        assert error(part.grad, parts[1][rank]) < allowed

        part = parts[0][rank].clone().requires_grad_()
        autograd.all_gather(part, dim, front, None).backward(gradients[0])
        assert torch.equal(part.grad, gradients[0].chunk(size, dim)[rank])

        x = xs[rank].clone().requires_grad_()
        y = autograd.reduce_scatter(x, dim, front, back)
        assert error(y, parts[0][rank]) < allowed
        y.backward(gradients[rank].chunk(size, dim)[rank])
        assert error(x.grad, torch.cat([gradients[r].chunk(size, dim)[r] for r in range(size)], dim)) < allowed
    for dtype in (torch.bfloat16, torch.float16):
        for codec in ("exact", "fp8", "int8"):
            y = channel(codec).all_reduce(data(rank, 5, 77).to(dtype))
            assert y.dtype == dtype and y.shape == (5, 77)
            assert error(y, torch.stack([data(r, 5, 77).to(dtype) for r in range(size)]).double().sum(0)) < 0.04
            assert_equal_on_all(y)
    for axis in ("hidden", "token"):  # a dimension in the middle, groups either way
        front = channel("int8", calibrate=1)
        front.shaping = next(shaping for shaping in front._candidates if shaping.axis == axis)
        x = data(rank, 3, 2 * size, 40)
        total = torch.stack([data(r, 3, 2 * size, 40) for r in range(size)]).sum(0)
        assert error(front.all_reduce(x), total) < 0.012
        assert error(front.reduce_scatter(x, 1), total.chunk(size, 1)[rank]) < 0.012
        gathered = torch.cat([data(r, 3, 2 * size, 40) for r in range(size)], 1)
        assert error(front.all_gather(x, 1), gathered) < 0.012
        assert error(front.all_gather(x.transpose(0, 2), 1), gathered.transpose(0, 2)) < 0.012
    try:
        channel("exact").reduce_scatter(torch.ones(size + 1, 4), 0)
    except ShapeError as problem:
        assert f"multiple of {size}" in str(problem)
    else:
        raise AssertionError("uneven parts")
    for empty in (torch.ones(0, 8), torch.ones(3, 0)):
        assert channel("fp8", calibrate=1).all_reduce(empty).shape == empty.shape
    assert error(channel("fp8").all_reduce(torch.tensor(rank + 1.0)), torch.tensor(size * (size + 1) / 2)) < 0.04
    broken = data(rank, 64, 128)
    broken[3, 5] = torch.nan if rank == 1 else 1.0
    for codec in ("fp8", "int8"):
        y = channel(codec, calibrate=1).all_reduce(broken)
        assert y.isnan().any() and not y[32:].isnan().any(), "what is broken stays visibly broken"


def unfused(codec: Groups | Float8, mine: list[Tensor]) -> Tensor:
    """Return what a two-shot all-reduce comes to, one step after the other by the reference kernels."""
    size, num = len(mine), mine[0].numel()
    chunk = -(-num // size)
    rows = [torch.nn.functional.pad(x.flatten(), (0, chunk * size - num)).view(size, chunk).numpy() for x in mine]
    if isinstance(codec, Groups):
        kernel, settings = groups, (codec.bits, codec.group, codec.hadamard)
        last: tuple[Any, ...] = (None,)
        num_bytes = groups.payload_bytes(chunk, *settings)
    else:
        kernel, settings = float8, (codec.format, codec.group, codec.group if codec.hadamard else 0, codec.scales)
        last = (float8.MAXIMUM[codec.format],)
        num_bytes = float8.payload_bytes(chunk, codec.group, codec.scales)
    found = []
    for k in range(size):
        payloads = np.zeros((size, num_bytes), np.uint8)
        for row, payload in zip(rows, payloads, strict=True):
            kernel.encode(row[k], payload, *settings, *last)
        total, packed, y = np.zeros(chunk, np.float32), np.zeros(num_bytes, np.uint8), np.zeros(chunk, np.float32)
        kernel.decode_sum(payloads, total, *settings, 1.0)
        kernel.encode(total, packed, *settings, *last)
        kernel.decode(packed, y, *settings)
        found.append(torch.from_numpy(y))
    return torch.cat(found)[:num].view(mine[0].shape)


def fused() -> None:
    """An all-reduce has the bits of its steps done apart, by NumPy."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for codec, shape in itertools.product(SINGLE, ((4, 128), (5, 7, 33))):
        for use in (True, False):
            (packer,) = packers(codec, 128, use)
            y = channel(packer).all_reduce(data(rank, *shape))
            expected = unfused(packer, [data(r, *shape) for r in range(size)])
            assert torch.equal(y.view(torch.int32), expected.view(torch.int32)), packer


def choices() -> None:
    """A batch chooses axis and transform, on all ranks alike, from data that is not alike."""
    rank, size = dist.get_rank(), dist.get_world_size()
    x = data(rank, 64, 128)
    plain = channel("int8", calibrate=1)
    plain.all_reduce(x)
    assert plain.shaping is not None and plain.shaping.axis == "hidden"
    x[:, :4] *= 300  # a few channels are large: each is of one size along the tokens
    outliers = channel("int8", calibrate=1)
    y = outliers.all_reduce(x)
    assert_equal_on_all(y)
    assert outliers.shaping is not None and outliers.shaping.axis == "token"
    hidden, token = (found["value"] for found in outliers.report["relative_squared_errors"])
    assert token < 0.5 * hidden
    total = data(0, 64, 128) * 0
    for r in range(size):
        other = data(r, 64, 128)
        other[:, :4] *= 300
        total += other
    outliers.all_reduce(data(rank, 64, 128))
    assert outliers.shaping is not None and outliers.shaping.axis == "hidden", "the next batch decides anew"
    assert outliers.report["changes"] == 1
    rare = channel("int8", calibrate=3)
    for at in range(4):
        rare.all_reduce(x if at < 3 else data(rank, 64, 128))
        assert rare.shaping is not None and rare.shaping.axis == ("token" if at < 3 else "hidden")
    fixed = channel("int8", calibrate=0).all_reduce(x)
    small = slice(4, None)
    assert error(y[:, small], total[:, small]) < 0.5 * error(fixed[:, small], total[:, small])
    one = channel("int8", calibrate=1)  # one rank alone sees outliers, and they weigh
    mine = data(rank, 64, 128)
    mine[:, 0] *= 3000 if rank == 2 else 1
    one.all_reduce(mine)
    chosen = torch.tensor([one.shaping is not None and one.shaping.axis == "token"]).float()
    assert_equal_on_all(chosen)
    assert chosen.item() == 1
    sparse = channel("int8", hadamard=None)
    sparse.all_reduce(data(rank, 64, 128) * (torch.rand(64, 128, generator=torch.Generator().manual_seed(rank)) < 0.05))
    dense = channel("fp8", hadamard=None)
    dense.all_reduce(data(rank, 64, 128))
    assert sparse.shaping is not None and dense.shaping is not None
    assert sparse.shaping.codec.hadamard == 0, "on zeros, the transform spoils what it spreads"
    assert dense.shaping.codec.hadamard is True
    exact = channel("fp8", min_bytes=64 * 128 * 4 + 1)
    assert (
        error(exact.all_reduce(data(rank, 64, 128)), torch.stack([data(r, 64, 128) for r in range(size)]).sum(0)) < 1e-6
    )
    assert exact.report == {"chosen": None, "relative_squared_errors": [], "calls": 1, "exact_calls": 1, "changes": 0}


def run(plan: dict[str, ParallelStyle], dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits, and the whole gradients, of a GPT that the plan divides."""
    model = gpt.make(SIZE, 0).to(dtype)
    tokens, targets = gpt.library().batch(SIZE, 2, seed=0, step=0, rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, plan)
    logits = model(tokens)
    nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten()).backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        if isinstance(gradient, DTensor):
            gradient = gradient.full_tensor()
        gradients[name] = gradient
    return logits.detach(), gradients


def styles() -> None:
    """The plan of a GPT, plain and sequence parallel: exact as torch's own, packed within the codec's error."""
    whole = gpt.make(SIZE, 0)
    tokens, targets = gpt.library().batch(SIZE, 2, seed=0, step=0, rank=0, world_size=1)
    logits = whole(tokens)
    nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    before = torch.random.get_rng_state()

    def check(plan: dict[str, ParallelStyle], allowed: float, dtype: torch.dtype = torch.float32) -> None:
        found, gradients = run(plan, dtype)
        assert error(found, logits.detach()) < allowed
        assert_equal_on_all(found)
        for name, gradient in gradients.items():
            assert error(gradient, expected[name]) < allowed, (plan, name, error(gradient, expected[name]))
            assert_equal_on_all(gradient)

    check(stock(), 2e-6)
    check(bfloat16(), 0.02)
    for make in (taco, sequence_parallel):
        check(make(codec="exact"), 2e-6)
        for codec, allowed in ERRORS.items():
            check(make(codec=codec), allowed)
        check(make(codec=Groups(bits=8, group=512, hadamard=64, stochastic=False)), 0.03)
    check(taco(codec="int8"), 0.1, torch.bfloat16)
    alone = {key: style for key, style in taco(codec="exact").items() if not key.endswith("norm")}
    check(alone, 2e-6)  # each column-wise layer sums its own gradient
    check(alone | {"head": TacoColwise(output_layouts=Replicate(), codec="exact")}, 2e-6)
    check(alone | {"head": TacoColwise(output_layouts=Replicate(), codec="int8")}, 0.03)
    assert torch.equal(before, torch.random.get_rng_state()), "the user's generator"
    plan = taco(codec="fp8")
    model = gpt.make(SIZE, 0)
    parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), plan)
    model(tokens).square().mean().backward()
    report = plan["blocks.*.down"].report
    assert len(report["modules"]) == 2 and {"output"} == set(report["modules"][0])
    assert report["modules"][0]["output"]["calls"] == 1
    assert report["exchange"]["operations"]["reduce_scatter"]["calls"] > 0
    assert repr(plan["blocks.*.down"]) == "TacoRowwise(codec='fp8')"


def layers() -> None:
    """Layouts of single layers: sharded inputs and outputs, DTensors in and out, uneven parts, frozen inputs."""
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    x = data(7, 2, 4 * size, 32)

    def make(*styles: ParallelStyle, width: int = 64) -> nn.Sequential:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(32, width), nn.Linear(width, 48))
        if styles:
            parallelize_module(model, mesh, dict(zip("01", styles, strict=True)))
        return model

    def compare(ours: Any, theirs: Any, given: Tensor, width: int = 64) -> None:
        found = []
        for pair in (ours, theirs):
            model, leaf = make(*pair, width=width), given.clone().requires_grad_()
            y = model(leaf)
            y = y.full_tensor() if isinstance(y, DTensor) else y
            (y * data(9, *y.shape)).sum().backward()
            gradients = [leaf.grad, *(parameter.grad for parameter in model.parameters())]
            found.append([y.detach(), *(g.full_tensor() if isinstance(g, DTensor) else g for g in gradients)])
        for mine, other in zip(*found, strict=True):
            assert error(mine, other) < 2e-6

    part = x.chunk(size, 1)[dist.get_rank()].contiguous()
    for packing in ({"codec": "exact"}, {"codec": "fp8", "min_bytes": 1 << 30}):
        compare((TacoColwise(**packing), TacoRowwise(**packing)), (ColwiseParallel(), RowwiseParallel()), x)
        for sharded in ({"output_layouts": Shard(1)}, {"output_layouts": Shard(1), "use_local_output": False}):
            compare(
                (TacoColwise(input_layouts=Shard(1), **packing), TacoRowwise(**sharded, **packing)),
                (ColwiseParallel(input_layouts=Shard(1)), RowwiseParallel(**sharded)),
                part,
            )
        compare(
            (TacoColwise(use_local_output=False, **packing), TacoRowwise(use_local_output=False, **packing)),
            (ColwiseParallel(use_local_output=False), RowwiseParallel(use_local_output=False)),
            x,
        )
        compare(
            (
                TacoColwise(output_layouts=Replicate(), **packing),
                TacoRowwise(input_layouts=Replicate(), **packing),
            ),
            (ColwiseParallel(output_layouts=Replicate()), RowwiseParallel(input_layouts=Replicate())),
            x,
        )
        compare(  # the ranks do not divide the columns, nor the tokens
            (
                TacoColwise(output_layouts=Replicate(), **packing),
                TacoRowwise(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False, **packing),
            ),
            (
                ColwiseParallel(output_layouts=Replicate()),
                RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False),
            ),
            x[:, : 2 * size + 1].contiguous(),
            width=4 * size + 2,
        )
    with torch.no_grad():
        y = make(TacoColwise(codec="int8"), TacoRowwise(codec="int8"))(x)
    assert not y.requires_grad and error(y, make()(x).detach()) < 0.03
    embedding = nn.Sequential(nn.Embedding(8 * size, 16))
    tokens = torch.arange(8 * size).view(2, -1)
    rows = embedding[0].weight.detach().clone()
    parallelize_module(embedding, mesh, {"0": TacoRowwise(input_layouts=Replicate())})
    dist.broadcast(rows, 0)
    assert torch.equal(embedding(tokens), rows[tokens]), "masked sums are torch's own"
    try:
        parallelize_module(
            nn.Sequential(nn.Linear(8, 8)), mesh, {"0": TacoColwise(group=64 if dist.get_rank() else 128)}
        )
    except SettingsDiffer as problem:
        assert "group=64" in str(problem) and "group=128" in str(problem)
    else:
        raise AssertionError("other settings")


def payloads() -> None:
    """What a step sends, against what it would send exactly, by the meter: headers included."""
    tokens, _ = gpt.library().batch(SIZE, 8, seed=0, step=0, rank=0, world_size=1)
    shares = {}
    for way, limit in {"fp8": 0.54, "fp8-1": 0.52, "int8": 0.52, "int6": 0.40, "exact": 2.01}.items():
        plan = WAYS[way].plan()
        model = gpt.make(SIZE, 0)
        parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), plan)
        meter = exchange_of(dist.group.WORLD).meter
        meter.reset()
        model(tokens).square().mean().backward()
        operations = meter.report["operations"]
        assert set(operations) == {"reduce_scatter", "all_gather"}
        sent, exact = (sum(found[key] for found in operations.values()) for key in ("sent_bytes", "exact_bytes"))
        shares[way] = sent / (exact / 2)
        assert shares[way] <= limit, shares
        assert sum(found["calls"] for found in operations.values()) == 8, "two sums forward and two backward, two shots"
    print(shares)


def grid() -> None:
    """Tensor parallelism beside SDP4Bit on a 2-D mesh: near the exact losses, and all ranks alike at every step."""
    losses = {}
    for way in ("2-D stock", "2-D both"):
        trainer = Trainer(way, SCALES["small"], 0)
        found = []
        for _ in range(6):
            found.append(trainer.step())
            assert trainer.identical(), way
        losses[way] = torch.stack(found)
    assert error(losses["2-D both"], losses["2-D stock"]) < 0.005
    assert not torch.equal(losses["2-D both"], losses["2-D stock"])


if __name__ == "__main__":
    what, where = sys.argv[1:]
    join(what, where)
    scenarios: dict[str, Callable[[], None]] = {
        do.__name__: do for do in (functions, fused, choices, styles, layers, payloads, grid)
    }
    for name in what.split("+"):
        scenarios[name]()
    dist.destroy_process_group()
