"""What one rank of the tests of SDP4Bit does: ``python -m tests.comm.sharded_ranks WHAT FOLDER``."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import warnings
import weakref
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import trimtab.comm.exchange
from tests.dist.launch import join
from trimtab.codecs.sdp4bit import Groups
from trimtab.comm import Exact as ExactMethod
from trimtab.comm import SDP4Bit, Sharded
from trimtab.errors import CommError, UsageError

PATIENCE = 90.0
SDP = SDP4Bit(nodes=2, when="always", min_bytes=1000, weight_group=256, grad_group=64)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 3 * width + 1)
        self.down = nn.Linear(3 * width + 1, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Model(nn.Module):
    """Odd widths, so that shards are uneven; the head's weight is that of the embedding."""

    def __init__(self, seed: int = 0, width: int = 37) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(91, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, 91, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x)
        for block in self.blocks:
            y = block(y)
        return self.head(y)


def sharded(mesh: Any = None, *, frozen: bool = False, **policy: Any) -> Model:
    model = Model()
    if frozen:
        model.blocks[0].requires_grad_(False)
    options: dict[str, Any] = {"mesh": mesh, **policy}
    for block in model.blocks:
        fully_shard(block, **options)
    fully_shard(model, **options)
    return model


def batch(step: int, rank: int | None = None) -> torch.Tensor:
    rank = dist.get_rank() if rank is None else rank
    return torch.randint(0, 91, (4, 9), generator=torch.Generator().manual_seed(1000 * step + rank))


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = model(x[:, :-1])
    return nn.functional.cross_entropy(y.flatten(0, 1).float(), x[:, 1:].flatten())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, *, clip: bool = True) -> list[float]:
    losses = []
    for step in steps:
        loss = loss_of(model, batch(step))
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def computed(model: Model) -> torch.Tensor:
    """The weights that this rank computes with, whole."""
    for unit in (*model.blocks, model):
        unit.unshard()
    whole = torch.cat([param.detach().float().reshape(-1) for param in model.parameters()])
    for unit in (*model.blocks, model):
        unit.reshard()
    return whole


def masters(model: nn.Module) -> torch.Tensor:
    return torch.cat([param.full_tensor().detach().float().reshape(-1) for param in model.parameters()])


def equal_on_all(x: torch.Tensor) -> bool:
    others = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(others, x)
    return all(torch.equal(x.view(torch.int32), other.view(torch.int32)) for other in others)


def plain() -> None:
    """FSDP2 alone, SDP4Bit and its relatives: losses, bits alike on all ranks, bytes, drift, exact repeats."""
    curves: dict[str, list[float]] = {}
    whole: dict[str, torch.Tensor] = {}
    bf16 = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)}
    inside, between = Groups(bits=8, group=64, hadamard=32), Groups(bits=4, group=64, hadamard=32)
    methods: dict[str, tuple[Any, dict[str, Any]]] = {
        "stock": (None, {}),
        "exact": (ExactMethod(nodes=2), {}),
        "exact flat": (ExactMethod(nodes=2, levels=1), {}),
        "sdp": (SDP, {}),
        "again": (SDP, {}),
        "kept": (SDP, {"reshard_after_forward": False}),
        "other seed": (SDP4Bit(**{**as_dict(SDP), "seed": 1}), {}),
        "cpu": (SDP4Bit(**{**as_dict(SDP), "reference": "cpu"}), {}),
        "gradients only": (SDP4Bit(**{**as_dict(SDP), "reference": None}), {}),
        "resync": (SDP4Bit(**{**as_dict(SDP), "resync_every": 1}), {}),
        "bf16": (SDP, bf16),
        "fp16": (SDP, {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.float16, reduce_dtype=torch.float32)}),
        "zero++": (
            Sharded(
                weights=Groups(bits=8, group=256),
                differences=False,
                gradients=(between, between),
                reference=None,
                nodes=2,
                levels=(1, 2),
                min_bytes=1000,
            ),
            {},
        ),
        "qW": (
            Sharded(
                weights=Groups(bits=4, group=256),
                differences=False,
                gradients=(inside, between),
                nodes=2,
                min_bytes=1000,
            ),
            {},
        ),
        "partly": (SDP, {"reshard_after_forward": 2}),
    }
    for name, (method, policy) in methods.items():
        model = sharded(**policy)
        optimizer = adam(model)
        state = torch.random.get_rng_state()
        handle = method(model) if method else None
        curves[name] = []
        for step in range(6):
            curves[name] += train(model, optimizer, range(step, step + 1))
            assert equal_on_all(computed(model)), (name, step)
        assert torch.equal(state, torch.random.get_rng_state()), "the user's generator"
        whole[name] = masters(model)
        if handle is None:
            continue
        report, seen = handle.report, repr(handle)
        gathers, sums = report["operations"]["all_gather"], report["operations"]["reduce_scatter"]
        assert gathers["sent_bytes"] > 0 and sums["sent_bytes_between_nodes"] > 0 and "MB sent" in seen
        assert report["reductions_of_unknown_parts"] == 0
        ratio = sum(operation["exact_bytes"] for operation in (gathers, sums)) / sum(
            operation["sent_bytes_between_nodes"] for operation in (gathers, sums)
        )
        print(name, "exact flat bytes / bytes between nodes:", round(ratio, 2), "loss", round(curves[name][-1], 4))
        if handle.settings.keeps_reference:
            # 6 steps and as many looks at the weights: the first gather is exact, the backward pass asks again in vain
            expected = 3 * 7 if name == "resync" else 3
            assert report["exact_gathers"] == expected, (name, report["exact_gathers"])
            assert gathers["skipped_calls"] > 0
            assert report["reference_bytes"] > (2 if name == "bf16" else 4) * whole[name].numel()
        else:
            assert report["reference_bytes"] == 0
        handle.remove()
        rounded = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)
        assert torch.equal(computed(model), whole[name].to(rounded).float())
        train(model, optimizer, range(6, 7))
        assert handle.report["operations"] == report["operations"] or name == "partly", "it is off"
    assert equal_on_all(whole["sdp"])
    for name in ("exact", "exact flat"):
        torch.testing.assert_close(whole[name], whole["stock"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.tensor(curves[name]), torch.tensor(curves["stock"]), rtol=1e-3, atol=1e-4)
    for name in ("again", "cpu", "kept", "partly"):
        assert torch.equal(whole[name], whole["sdp"]) and curves[name] == curves["sdp"], f"{name} repeats exactly"
    assert not torch.equal(whole["other seed"], whole["sdp"])
    for name in ("sdp", "gradients only", "resync", "bf16", "fp16", "zero++"):
        assert abs(curves[name][-1] / curves["stock"][-1] - 1) < 0.05, (name, curves[name], curves["stock"])


def as_dict(method: SDP4Bit) -> dict[str, Any]:
    return {name: getattr(method, name) for name in method.__struct_fields__}


def drift() -> None:
    """What all ranks compute with is within one rounding step of the optimizer's weights, however many updates."""
    model = sharded()
    optimizer = adam(model)
    handle = SDP(model)
    loss_of(model, batch(0)).backward()
    optimizer.step()
    for step in range(12):
        before = [one.reference.clone() for one in handle._units]
        changes = [
            (torch.cat([p._sharded_param_data for p in m.unit._params]) - reference[dist.get_rank()]).abs()
            for m, reference in zip(handle._units, before, strict=True)
        ]
        train(model, torch.optim.SGD(model.parameters(), lr=0.0), range(step, step + 1))  # gathers, changes nothing
        worst = 0.0
        for member, change in zip(handle._units, changes, strict=True):
            master = torch.cat([param._sharded_param_data for param in member.unit._params])
            error = (master - member.reference[dist.get_rank()]).abs()
            for start, stop, exact in member._weights_layout(None).runs:
                if exact:
                    assert not error[start:stop].any()
                    continue
                for at in range(start, stop, 256):
                    part = slice(at, min(at + 256, stop))
                    limit = change[part].max() / 7 * 1.001 + 1e-7
                    assert error[part].max() <= limit
                    worst = max(worst, float(error[part].max()))
        assert worst > 0
        train(model, optimizer, range(step, step + 1))
    assert handle.report["largest_sampled_drift"] >= 0
    assert 0 < handle.report["normalised_mean_squared_error"]["reduce_scatter"] < 0.01


def uses() -> None:
    """Accumulation, frozen parts, evaluation, unused parameters, division, refusals."""
    model = sharded(frozen=True)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01)
    handle = SDP(model)
    for step in range(3):
        for micro in range(3):
            model.set_requires_gradient_sync(micro == 2)
            loss_of(model, batch(10 * step + micro)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert handle._units[1].exact_gathers == 1 and handle._units[1].steps == 0, "frozen: sent once"
    report = handle.report["operations"]
    assert report["reduce_scatter"]["calls"] == 3 * 2 and report["all_gather"]["calls"] == 3 + 2 * 2
    with torch.no_grad():
        before = handle.report["operations"]["all_gather"]["calls"]
        model.eval()
        values = {loss_of(model, batch(0, 0)).item() for _ in range(3)}
        assert len(values) == 1 and handle.report["operations"]["all_gather"]["calls"] == before + 2, (
            "one gather a step"
        )
    with torch.inference_mode():
        loss_of(model, batch(0, 0))
    model.train()
    handle.resync()
    loss_of(model, batch(50)).backward()
    loss_of(model, batch(51)).backward()
    assert handle.report["exact_gathers"] == 6
    try:
        handle.load_state_dict({"x": [0, 0]})
    except UsageError as error:
        assert "counters of" in str(error)
    else:
        raise AssertionError("another model's counters")
    handle.remove()

    unused = sharded()
    handle = SDP(unused)
    for param in unused.blocks[1].down.parameters():
        param.requires_grad_(False)
    loss_of(unused, batch(0)).backward()
    assert handle.report["reductions_of_unknown_parts"] == 0, "what is frozen later is known"
    unused.blocks[0].up.forward = lambda x: x.sum(-1, keepdim=True).expand(*x.shape[:-1], 112)
    loss_of(unused, batch(0)).backward()
    assert handle.report["reductions_of_unknown_parts"] == 1, "a row without what took no part is exact"
    handle.remove()

    # adapters in a block whose other weights are frozen: what is frozen is sent once
    tuned = sharded()
    for name, param in tuned.named_parameters():
        param.requires_grad_("up.bias" in name)
    optimizer = adam(tuned)
    handle = SDP(tuned)
    train(tuned, optimizer, range(1))
    handle.meter.reset()
    train(tuned, optimizer, range(1, 3))
    gathers = handle.report["operations"]["all_gather"]
    assert gathers["calls"] == 2 * 2 and gathers["sent_bytes"] < 0.05 * gathers["exact_bytes"], gathers
    assert torch.equal(computed(tuned), masters(tuned)), "small parameters are exact"
    handle.remove()
    kept = weakref.ref(handle)
    del handle, tuned, optimizer
    gc.collect()
    assert kept() is None, "hooks of optimizers do not keep a model alive"

    # scaled sums: divided exactly once, whoever divides
    gradients = []
    for setup in ("average", "sum", "half"):
        policy = {"mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float16)} if setup == "half" else {}
        divided = sharded(**policy)
        if setup == "sum":
            divided.set_force_sum_reduction_for_comms(True)
            for block in divided.blocks:
                block.set_force_sum_reduction_for_comms(True)
        handle = SDP(divided)
        loss_of(divided, batch(0)).backward()
        gradients.append(torch.cat([p.grad.full_tensor().reshape(-1) for p in divided.parameters()]))
        handle.remove()
    exact = sharded()
    loss_of(exact, batch(0)).backward()
    expected = torch.cat([p.grad.full_tensor().reshape(-1) for p in exact.parameters()])
    for gradient in gradients:
        assert (gradient - expected).norm() / expected.norm() < 0.2

    wrong = sharded()
    for unit in (*wrong.blocks, wrong):
        unit.set_gradient_divide_factor(3.0)
    handle = SDP(wrong)
    try:
        loss_of(wrong, batch(0)).backward()
    except (UsageError, RuntimeError) as error:
        assert "set_force_sum_reduction_for_comms" in str(error), error
    else:
        raise AssertionError("PREMUL_SUM was taken")
    for refused in (nn.Linear(3, 3), Model(), wrong):
        try:
            SDP(refused)
        except UsageError as error:
            assert "collectives of its own already" in str(error) if refused is wrong else "fully_shard" in str(error)
        else:
            raise AssertionError("a model that is not sharded was taken")


def resumes() -> None:
    """A run that is saved, resynced and goes on ends with the same bits as one that is resumed from there."""
    model = sharded()
    optimizer = adam(model)
    handle = SDP(model)
    train(model, optimizer, range(3))
    weights, moments = get_state_dict(model, optimizer)
    saved = {name: value.full_tensor().clone() for name, value in weights.items()}
    moments_saved = clone(moments)
    counters = handle.state_dict()
    handle.resync()
    losses = train(model, optimizer, range(3, 6))
    expected = masters(model)
    assert equal_on_all(expected)
    handle.remove()

    other = sharded()
    with torch.no_grad():
        for param in other.parameters():
            param.mul_(1.5)
    optimizer = adam(other)
    handle = SDP(other)
    train(other, optimizer, range(1))  # a reference that the loaded weights must not be compared with
    fresh, _ = get_state_dict(other, optimizer)
    for name, value in fresh.items():
        source = torch.distributed.tensor.distribute_tensor(saved[name], value.device_mesh, value.placements)
        fresh[name] = source
    before = handle.report["exact_gathers"]
    set_state_dict(other, optimizer, model_state_dict=fresh, optim_state_dict=moments_saved)
    handle.load_state_dict(counters)
    assert train(other, optimizer, range(3, 6)) == losses
    assert torch.equal(masters(other), expected)
    assert handle.report["exact_gathers"] == before + 3


def clone(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: clone(value) for key, value in state.items()}
    if isinstance(state, list):
        return [clone(value) for value in state]
    return state.clone() if isinstance(state, torch.Tensor) else state


def hybrid() -> None:
    """A 2-D mesh: replicas of shards."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    stock = sharded(mesh)
    expected = train(stock, adam(stock), range(5))
    runs = []
    for _ in range(2):
        model = sharded(mesh)
        optimizer = adam(model)
        handle = SDP4Bit(**{**as_dict(SDP), "nodes": None})(model)
        runs.append([])
        for step in range(5):
            runs[-1] += train(model, optimizer, range(step, step + 1))
            assert equal_on_all(computed(model)), step
        report = handle.report
        assert report["replicas"] == 2
        assert report["operations"]["reduce_scatter"]["sent_bytes_between_nodes"] > 0, "between replicas"
        assert report["operations"]["reduce_scatter"]["sent_bytes_inside_nodes"] > 0
        assert report["operations"]["all_gather"]["sent_bytes_inside_nodes"] > 0
        handle.remove()
        train(model, optimizer, range(5, 6))
        assert handle.report["operations"] == report["operations"]
        assert equal_on_all(computed(model)), "FSDP2's own all-reduce is back"
    assert runs[0] == runs[1] and abs(runs[0][-1] / expected[-1] - 1) < 0.05
    planned = SDP4Bit(min_bytes=1000)(sharded(mesh)).plan
    assert planned.packed_bytes < planned.exact_bytes / 3
    exact = sharded(mesh)
    handle = ExactMethod()(exact)
    torch.testing.assert_close(
        torch.tensor(train(exact, adam(exact), range(5))), torch.tensor(expected), rtol=1e-3, atol=1e-4
    )
    try:
        SDP(sharded(mesh))
    except UsageError as error:
        assert "1-D mesh" in str(error)
    else:
        raise AssertionError("nodes for a 2-D mesh")


def replicated() -> None:
    """DistributedDataParallel."""
    curves = {}
    for name, method in {"stock": None, "exact": ExactMethod(nodes=2), "sdp": SDP, "again": SDP}.items():
        model = DistributedDataParallel(Model(), bucket_cap_mb=0.01)
        handle = method(model) if method else None
        curves[name] = train(model, adam(model), range(5))
        weights = torch.cat([param.detach().reshape(-1) for param in model.parameters()])
        assert equal_on_all(weights), name
        if handle is not None:
            operations = handle.report["operations"]
            assert operations["reduce_scatter"]["calls"] > 10, "several buckets"
            print("ddp", name, handle)
            assert handle.state_dict() == {"reductions": 5}
    planned = SDP4Bit(min_bytes=1000, nodes=2)(DistributedDataParallel(Model())).plan
    assert planned.packed_bytes < planned.exact_bytes / 3
    torch.testing.assert_close(torch.tensor(curves["exact"]), torch.tensor(curves["stock"]), rtol=1e-3, atol=1e-4)
    assert curves["sdp"] == curves["again"] and abs(curves["sdp"][-1] / curves["stock"][-1] - 1) < 0.05


def disagreements() -> None:
    """Other settings, other models and lone steps end in an error on every rank; and the planner's choice is one."""
    rank = dist.get_rank()

    def fails(do: Any) -> str:
        start = time.monotonic()
        try:
            do()
        except CommError as error:
            assert time.monotonic() - start < 60
            print(f"{type(error).__name__}: {error}")
            return f"{type(error).__name__}: {error}"
        raise AssertionError("no error")

    text = fails(lambda: SDP4Bit(**{**as_dict(SDP), "seed": int(rank == 2)})(sharded()))
    assert text.startswith("SettingsDiffer") and "seed=0" in text and "seed=1" in text

    chosen = SDP4Bit(nodes=2)(sharded())
    reason = chosen.plan.reason
    print(reason)
    assert chosen.report["plan"]["reason"] == reason
    words: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(words, reason)
    assert len(set(words)) == 1
    chosen.remove()

    model = sharded(init_device_mesh("cpu", (4,)))
    SDP(model)
    optimizer = adam(model)
    train(model, optimizer, range(2))
    loss_of(model, batch(3)).backward()
    optimizer.step()
    if rank == 1:
        optimizer.step()  # alone
    text = fails(lambda: loss_of(model, batch(4)))
    assert "out of step" in text
    dist.barrier()

    send = trimtab.comm.exchange.all_to_all_bytes

    def damaged(output: torch.Tensor, input: torch.Tensor, *others: Any) -> None:
        if rank == 3:
            input.view(-1)[200] ^= 1
        send(output, input, *others)

    model = sharded(breaking())
    SDP(model)
    trimtab.comm.exchange.all_to_all_bytes = damaged
    text = fails(lambda: train(model, adam(model), range(2)))
    assert "PayloadError" in text and "the payload from rank 3" in text
    trimtab.comm.exchange.all_to_all_bytes = send
    dist.barrier()

    model = sharded(breaking())
    SDP(model)
    train(model, adam(model), range(2))
    if rank == 1:
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    text = fails(lambda: train(model, adam(model), range(2, 4)))
    assert "PeerFailed" in text and "no word from rank" in text


def breaking() -> Any:
    """A mesh of all ranks on a group of its own, which does not wait long."""
    group = dist.new_group(timeout=timedelta(seconds=8))
    return DeviceMesh.from_group(group, "cpu")


if __name__ == "__main__":
    what, where = sys.argv[1:]
    warnings.simplefilter("ignore", UserWarning)
    join(what, where, PATIENCE)
    for name in what.split(","):
        {do.__name__: do for do in (plain, drift, uses, resumes, hybrid, replicated, disagreements)}[name]()
    if "disagreements" not in what:
        dist.barrier()
    print("done")
