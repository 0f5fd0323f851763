"""SDP4Bit and its exact twin, as one puts them on a model that is sharded (FSDP2) or replicated (DDP).

SDP4Bit: Jia et al., NeurIPS 2024, arXiv 2410.15526; `trimtab.comm.sharded` says what it does and how it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trimtab.codecs.sdp4bit import Groups
from trimtab.comm.fsdp import units
from trimtab.comm.planner import Plan, decide, measure_codec, sharded_step
from trimtab.comm.replicated import Replicated, ReplicatedHandle
from trimtab.comm.sharded import Sharded, ShardedHandle, bytes_a_node_sends, topologies
from trimtab.comm.topology import Topology
from trimtab.comm.wire import message_bytes
from trimtab.errors import UsageError

__all__ = ["Exact", "SDP4Bit"]


class SDP4Bit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send about 4 bits a weight and a gradient.

    Call it with a model after `fully_shard`, or with a `DistributedDataParallel` (gradients only), on all ranks:

        handle = trimtab.comm.SDP4Bit()(model)
        ...  # train
        handle.report

    With the reference, memory is that of ZeRO-2: a whole copy of the parameters in the type they are gathered in.
    Weights that are changed by anything but a `torch.optim` optimizer or `load_state_dict` need `handle.resync()`.
    """

    weight_bits: int = 4
    weight_group: int = 2048
    """Elements that share a scale."""
    grad_bits: tuple[int, int] = (8, 4)
    """Inside a node, and between nodes."""
    grad_group: int = 128
    hadamard: Literal[0, 32, 64, 128, 256, 512] = 32
    """The order of the gradients' transform; 0 for none."""
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    seed: int = 0
    """Of the rounding's noise; the global generators are not touched."""
    min_bytes: int = 65536
    """Smaller parameters stay exact."""
    resync_every: int | None = None
    """Send weights exactly once in so many optimizer steps."""
    reference: Literal["device", "cpu"] | None = "device"
    """Where the copy of the weights lies that differences are taken from; None sends weights exactly, for ZeRO-3."""
    nodes: Any = None
    """How ranks are divided into nodes (`trimtab.comm.Topology`): None asks torchrun's environment."""
    when: Literal["auto", "always"] = "auto"
    """Whether to measure first if it pays on this link, and to exchange exactly, in two levels, where it does not."""

    def __post_init__(self) -> None:
        if self.rounding not in ("stochastic", "nearest") or self.when not in ("auto", "always"):
            raise UsageError(
                f"rounding={self.rounding!r}, when={self.when!r};"
                " expected 'stochastic' or 'nearest', 'auto' or 'always'"
            )
        if len(self.grad_bits) != 2:
            raise UsageError(f"grad_bits={self.grad_bits!r}; expected two numbers: inside a node, between nodes")
        self.sharded(), self.replicated()  # the codecs check their settings

    def __call__(self, model: nn.Module) -> ShardedHandle | ReplicatedHandle:
        """Attach to a model, on all ranks.

        Raises:
            UsageError: the model is neither sharded by `fully_shard` nor a `DistributedDataParallel`.
            BackendUnavailable: this version of PyTorch's FSDP2 cannot be taken over.
            SettingsDiffer: the ranks' settings or models differ.
            PeerFailed: a rank did not take part.
        """
        if isinstance(model, DistributedDataParallel):
            return _attach_replicated(model, self.replicated(), self.when == "auto")
        return _attach_sharded(model, self.sharded(), self.when == "auto")

    def sharded(self) -> Sharded:
        """Return the settings for FSDP2."""
        inside, between = self._gradients()
        weights = Groups(bits=self.weight_bits, group=self.weight_group, stochastic=self.rounding == "stochastic")
        return Sharded(
            weights=weights if self.reference else None,
            gradients=(inside, between),
            reference=self.reference,
            min_bytes=self.min_bytes,
            resync_every=self.resync_every,
            seed=self.seed,
            nodes=self.nodes,
        )

    def replicated(self) -> Replicated:
        """Return the settings for DistributedDataParallel; sums come back in as many bits as they have in a node."""
        inside, between = self._gradients()
        return Replicated(
            gradients=(inside, between), gather=inside, min_bytes=self.min_bytes, seed=self.seed, nodes=self.nodes
        )

    def _gradients(self) -> tuple[Groups, Groups]:
        inside, between = (
            Groups(bits=bits, group=self.grad_group, hadamard=self.hadamard, stochastic=self.rounding == "stochastic")
            for bits in self.grad_bits
        )
        return inside, between


class Exact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send everything exactly, by way of the same exchanges: in two levels, less than FSDP2 itself sends over gloo."""

    levels: Literal[1, 2] = 2
    nodes: Any = None
    """How ranks are divided into nodes (`trimtab.comm.Topology`): None asks torchrun's environment."""

    def __call__(self, model: nn.Module) -> ShardedHandle | ReplicatedHandle:
        """Attach to a model, on all ranks; raises what `SDP4Bit` does."""
        if self.levels not in (1, 2):
            raise UsageError(f"levels={self.levels!r}; expected 1 or 2")
        if isinstance(model, DistributedDataParallel):
            top = Topology(model.process_group, self.nodes)
            return Replicated(nodes=self.nodes if self.levels == 2 else top.size)(model)
        return Sharded(levels=(self.levels, self.levels), nodes=self.nodes)(model)


def _attach_sharded(model: nn.Module, settings: Sharded, planned: bool) -> ShardedHandle:
    if not planned:
        return settings(model)
    found = units(model)
    gather, reduce, replicas = topologies(found, settings)
    exact = msgspec.structs.replace(settings, weights=None, gradients=(None, None))
    num = sum(segment.num for unit in found for segment in unit.segments) * gather.size
    plan = _planned(
        replicas or gather,
        lambda chosen: bytes_a_node_sends(found, chosen, gather, reduce, replicas),
        (exact, settings),
        num,
        (gather.size if replicas else gather.local_size),
        settings.gradients[1],
        settings.weights,
        across=(gather.group,) if replicas else (),
    )
    return (settings if plan is None or plan.compress else exact)(model, plan=plan)


def _attach_replicated(model: DistributedDataParallel, settings: Replicated, planned: bool) -> ReplicatedHandle:
    if not planned:
        return settings(model)
    top = Topology(model.process_group, settings.nodes)
    exact = msgspec.structs.replace(settings, gradients=(None, None), gather=None)
    num = sum(param.numel() for param in model.parameters() if param.requires_grad)

    def sent(chosen: Replicated) -> int:
        part = -(-num // top.size)
        sizes = [
            4 * part if codec is None else codec.payload_bytes(part) for codec in (chosen.gradients[1], chosen.gather)
        ]
        nodes, ranks = (top.num_nodes, top.local_size) if top.inter else (top.size, 1)
        return sum(ranks * (nodes - 1) * message_bytes(size) for size in sizes)

    plan = _planned(top, sent, (exact, settings), num, top.local_size, settings.gradients[1], settings.gather)
    return (settings if plan is None or plan.compress else exact)(model, plan=plan)


def _planned(
    top: Topology,
    sent: Callable[[Any], int],
    choices: tuple[Any, Any],
    num: int,
    ranks_per_node: int,
    gradients: Any,
    weights: Any,
    across: Sequence[dist.ProcessGroup] = (),
) -> Plan | None:
    """Return the plan, the same on all ranks, for the exact choice and the packed one; None for a single rank."""
    if top.size == 1:
        return None
    speed = measure_codec(gradients, top.device)
    nodes = top.num_nodes if top.inter is not None else top.size
    step = sharded_step(
        num,
        nodes=nodes,
        ranks_per_node=ranks_per_node if top.inter is not None else 1,
        gradients=gradients,
        weights=weights or gradients,
        speed=speed,
    )
    exact, packed = (float(sent(choice)) for choice in choices)
    return decide(top, exact_bytes=exact, packed_bytes=packed, codec_seconds=step.codec_seconds, across=across)
