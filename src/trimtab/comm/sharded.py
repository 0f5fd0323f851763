"""SDP4Bit: 4-bit weights and gradients on the wire for sharded data parallelism, as a plug-in of FSDP2.

After "SDP4Bit: Toward 4-bit Communication Quantization in Sharded Data Parallelism for LLM Training" (Jia et al.,
NeurIPS 2024, arXiv 2410.15526). Weights travel as their difference from a reference that all ranks hold, so that what
rounding left behind comes again in the next difference. Gradients travel in two levels, transformed and rounded to 8
bits inside a node and 4 bits between nodes (`trimtab.comm.exchange`).

Differences from the paper:

- a plug-in of FSDP2's custom collectives, where the published code is a fork of Megatron-LM;
- the reference is a copy of its own, where Megatron keeps all parameters anyway: **memory is that of ZeRO-2**, not
  ZeRO-3. ``reference="cpu"`` keeps the copy in host memory, ``reference=None`` sends weights exactly and keeps none;
- a gather of what no optimizer has stepped on since the last sends nothing: the second one of a step, say, under
  ``reshard_after_forward``. Frozen parameters are sent once;
- weights, too, cross the link between nodes once a node's place, and are spread inside the node;
- small parameters stay exact, any size works, and noise comes from counters, so that runs repeat exactly.

The optimizer's own weights stay exact; all ranks, their owner included, compute with the reference, which is within a
rounding step of them.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import torch
import torch.distributed as dist
import xxhash
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from trimtab.codecs.sdp4bit import Groups
from trimtab.codecs.wire import WireCodec
from trimtab.comm.exchange import Exchange
from trimtab.comm.failures import Failures
from trimtab.comm.format import Format, Layout
from trimtab.comm.fsdp import Unit, units
from trimtab.comm.meter import Meter
from trimtab.comm.sharded_unit import Exchanges, Gather, Scatter, ShardedUnit
from trimtab.comm.topology import Topology
from trimtab.comm.wire import message_bytes
from trimtab.errors import SettingsDiffer, UsageError

if TYPE_CHECKING:
    from trimtab.comm.planner import Plan

__all__ = ["Sharded", "ShardedHandle", "bytes_a_node_sends", "topologies"]

_names = itertools.count()


class Sharded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a sharded model sends, and how: the general form of `SDP4Bit` and `Exact`.

    Call it with a model after `fully_shard`, on all ranks; the handle that it returns takes it off again.
    """

    weights: WireCodec | None = None
    """Packs the weights; None sends them exactly."""
    differences: bool = True
    """Whether weights are packed as their difference from the reference, or as they are (the paper's "qW")."""
    gradients: tuple[WireCodec | None, WireCodec | None] = (None, None)
    """Pack the gradients inside the nodes and between them."""
    reference: Literal["device", "cpu"] | None = "device"
    """Where the reference lies. None keeps none, and sends weights exactly if they were to be packed as differences."""
    min_bytes: int = 65536
    """Smaller parameters, in bytes of the whole of them, stay exact."""
    resync_every: int | None = None
    """Send the weights exactly once in so many optimizer steps."""
    seed: int = 0
    nodes: Any = None
    """How ranks are divided into nodes (`Topology`); only for a 1-D mesh. On a 2-D one, shard groups are nodes."""
    levels: tuple[Literal[1, 2], Literal[1, 2]] = (2, 2)
    """Of the weights' gather and the gradients' reduction: in two levels, or flat, though there are nodes."""

    def __post_init__(self) -> None:
        if self.min_bytes < 0 or (self.resync_every is not None and self.resync_every < 1):
            raise UsageError(
                f"min_bytes={self.min_bytes}, resync_every={self.resync_every};"
                " expected at least 0, and at least 1 or None"
            )
        if self.reference not in ("device", "cpu", None):
            raise UsageError(f"reference={self.reference!r}; expected 'device', 'cpu' or None")
        if isinstance(self.weights, Groups) and self.differences and self.weights.hadamard:
            raise UsageError("differences of weights are packed without a Hadamard transform; set hadamard=0")

    def __call__(self, model: nn.Module, *, plan: Plan | None = None) -> ShardedHandle:
        """Attach to a model, on all ranks.

        Raises:
            UsageError: the model was not given to `fully_shard`, or in a way that cannot be taken over.
            SettingsDiffer: the ranks' settings or models differ.
            PeerFailed: a rank did not take part.
        """
        return ShardedHandle(model, self, plan)

    @property
    def keeps_reference(self) -> bool:
        return self.weights is not None and self.differences and self.reference is not None


class ShardedHandle:
    """A sharded model whose collectives were taken over.

    Attributes:
        settings: Which they are.
        meter: What was sent.
        plan: Why they were chosen, if they were (`when="auto"`).
    """

    def __init__(self, model: nn.Module, settings: Sharded, plan: Plan | None = None) -> None:
        self.settings = settings
        self.plan = plan
        self.meter = Meter()
        found = units(model)
        self.gather_topology, self.reduce_topology, self._replicas = topologies(found, settings)
        self._control = _control_group(self.gather_topology)
        self._generation = 0  # changes of what is to be sent
        self._agreed = 0  # how many of them the ranks have compared
        text = _describe(settings, found)
        replica = self._replicas.rank if self._replicas else 0
        exchanges = Exchanges(
            gather=Exchange(self.gather_topology, text, self.meter),
            reduce=Exchange(self.reduce_topology, text, self.meter),
            across=Exchange(self._replicas, text, self.meter) if self._replicas else None,
            meter=self.meter,
            place=replica * self.gather_topology.size + self.gather_topology.rank,
            agree=self.agree,
        )
        self._units = [ShardedUnit(settings, exchanges, bucket, unit) for bucket, unit in enumerate(found)]
        self._hooks: list[Any] = [
            register_optimizer_step_pre_hook(_weakly(self._stepping)),
            register_optimizer_step_post_hook(_weakly(self._stepped)),
        ]
        for hook in self._hooks:  # they stand in lists of all optimizers, which must not keep the model alive
            weakref.finalize(self, hook.remove)
        for one in self._units:
            one.unit.use(Gather(one), Scatter(one))
            for module in one.unit.modules:
                self._hooks.append(module.register_load_state_dict_pre_hook(partial(self._loaded, one)))
        if self._replicas is not None:
            alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
            assert isinstance(alone, dist.ProcessGroup)
            for one in self._units:
                one.unit.replace_all_reduce(one.all_reduce, alone)

    def resync(self) -> None:
        """Send all weights exactly with the next gather; on all ranks.

        Call it after weights were changed by anything but an optimizer or `load_state_dict`. Called where a checkpoint
        is saved, it makes this run go on as one that is resumed from there.
        """
        for one in self._units:
            one.resync()
        self._generation += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the counters that the noise comes from, the same on all ranks; weights are the checkpoint's matter."""
        return {one.unit.name: [one.steps, one.reductions] for one in self._units}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where `state_dict` stood, and send weights exactly next; on all ranks.

        Raises:
            UsageError: the state is another model's.
        """
        names = [one.unit.name for one in self._units]
        if sorted(state) != sorted(names):
            raise UsageError(f"the state has counters of {sorted(state)}; expected those of {sorted(names)}")
        for one in self._units:
            one.steps, one.reductions = (int(count) for count in state[one.unit.name])
        self.resync()

    def remove(self) -> None:
        """Let the model communicate as it did before, and free the reference."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for one in self._units:
            one.unit.restore()
            one.reference = None

    @property
    def report(self) -> dict[str, Any]:
        """What was sent since the meter's last reset, how far it was off, and what is kept."""
        sizes = [(s.num_bytes, s.num_bytes < self.settings.min_bytes) for one in self._units for s in one.unit.segments]
        references = [one.reference for one in self._units if one.reference is not None]
        return {
            "topology": repr(self.reduce_topology),
            "replicas": self._replicas.size if self._replicas else 1,
            "units": len(self._units),
            "packed_parameter_bytes": sum(size for size, exact in sizes if not exact),
            "exact_parameter_bytes": sum(size for size, exact in sizes if exact),
            "reference_bytes": sum(reference.numel() * reference.element_size() for reference in references),
            "exact_gathers": sum(one.exact_gathers for one in self._units),
            "largest_sampled_drift": max((one.drift for one in self._units), default=0.0),
            "reductions_of_unknown_parts": sum(one.unknown for one in self._units),
            "plan": None if self.plan is None else self.plan.report,
            **self.meter.report,
        }

    def __repr__(self) -> str:
        operations = self.meter.report["operations"].values()
        sent, exact = (sum(found[key] for found in operations) for key in ("sent_bytes", "exact_bytes"))
        return (
            f"ShardedHandle({len(self._units)} units, {self.reduce_topology!r}, {exact / 1e6:.3g} MB"
            f" -> {sent / 1e6:.3g} MB sent by this rank)"
        )

    def _stepping(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        owned = {id(param) for group in optimizer.param_groups for param in group["params"]}
        touched = [one.stepping(owned) for one in self._units]
        self._generation += any(touched)

    def agree(self) -> None:
        """Check, before the first message after a change, that all ranks count the same changes.

        If they did not, their messages would differ in size, at which gloo ends the process.

        Raises:
            SettingsDiffer: an optimizer stepped, or weights were loaded, on some ranks only.
        """
        if self._agreed == self._generation:
            return
        top = self.gather_topology
        state = repr([(one.unit.name, one.state()) for one in self._units])
        with top.failures.telling():
            mine = np.array([xxhash.xxh3_64_intdigest(state.encode()), self._generation], np.uint64)
            found = top.gather_words(mine, self._control)
            if (found != mine).any():
                raise SettingsDiffer(
                    "the ranks are out of step: they counted"
                    f" {found[:, 1].tolist()} optimizer steps, loads and resyncs; let all ranks do the same"
                )
        self._agreed = self._generation

    def _loaded(self, one: ShardedUnit, *arguments: Any) -> None:
        one.resync()
        self._generation += 1

    def _stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for one in self._units:
            one.stepped()


def topologies(found: Sequence[Unit], settings: Sharded) -> tuple[Topology, Topology, Topology | None]:
    """Return the topologies of the weights' gather, the gradients' reduction and, on a 2-D mesh, the replicas.

    Raises:
        UsageError: the units are on different meshes, or `nodes` is given for a 2-D mesh.
    """
    groups = {
        (*(tuple(dist.get_process_group_ranks(g)) if g else () for g in (unit.shard_group, unit.replicate_group)),)
        for unit in found
    }
    if len(groups) > 1:
        raise UsageError(f"the model's parts are on {len(groups)} meshes, {sorted(groups)}; expected one mesh")
    world = dist.group.WORLD
    assert world is not None
    failures = Failures(world.get_group_store(), f"sharded/{next(_names)}", found[0].global_ranks)
    shard_group, replicate_group = found[0].shard_group, found[0].replicate_group
    if replicate_group is None:
        full = Topology(shard_group, settings.nodes, failures=failures)
        replicas = None
    else:
        if settings.nodes is not None:
            raise UsageError("nodes is for a 1-D mesh; on a 2-D mesh (replicas, shards) each shard group is a node")
        full = Topology(shard_group, nodes=1, failures=failures)
        replicas = Topology(replicate_group, nodes=replicate_group.size(), failures=failures)
    gather, reduce = (full if level == 2 or not full.two_level else full.flat() for level in settings.levels)
    return gather, reduce, replicas


def bytes_a_node_sends(
    found: Sequence[Unit], settings: Sharded, gather: Topology, reduce: Topology, replicas: Topology | None
) -> int:
    """Return the bytes that a node sends to others in a step of one gather and one reduction of every unit.

    On one node each rank counts as a node. Where there are replicas, those are the nodes.
    """
    total = 0
    inside, between = settings.gradients

    def sent(top: Topology, form: Format) -> int:
        if replicas is not None:
            return 0  # shards are gathered and reduced inside the nodes
        return (
            (top.local_size if top.inter else 1)
            * ((top.num_nodes if top.inter else top.size) - 1)
            * message_bytes(form.num_bytes)
        )

    for unit in found:
        layouts = [
            Layout.of_segments(
                (s.num, "exact" if s.num_bytes < settings.min_bytes else "packed")
                for s, sends in zip(unit.segments, takes, strict=True)
                if sends
            )
            for takes in ([True] * len(unit.segments), unit.trained)
        ]
        total += sent(gather, Format(layouts[0], settings.weights, unit.gather_dtype))
        last = between if reduce.inter is not None else inside
        total += sent(reduce, Format(layouts[1], last, unit.reduce_dtype))
        if replicas is not None:
            part = Layout.of_segments([(-(-layouts[1].num // replicas.size), "packed")])
            for codec in (between, inside):
                packed = Format(part, codec, unit.reduce_dtype)
                total += gather.size * (replicas.size - 1) * message_bytes(packed.num_bytes)
    return total


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls a method of an object for as long as that lives."""
    known = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        found = known()
        if found is not None:
            found(*arguments)

    return call


def _control_group(top: Topology) -> dist.ProcessGroup:
    """Return a group of the same ranks for nothing else, in which a rank that is out of step disturbs no message."""
    group = dist.new_group(list(top.global_ranks), timeout=top.timeout, use_local_synchronization=True)
    assert isinstance(group, dist.ProcessGroup)
    return group


def _describe(settings: Sharded, found: Sequence[Unit]) -> str:
    lines = [f"{name}={getattr(settings, name)!r}" for name in settings.__struct_fields__ if name != "nodes"]
    for unit in found:
        lines += [f"{segment.name}: {segment.num} elements, {segment.num_bytes} bytes" for segment in unit.segments]
    return "\n".join(lines)
