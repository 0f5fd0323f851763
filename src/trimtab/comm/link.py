"""The rate and latency of the link between nodes, measured between the ranks of a process group."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from trimtab.errors import UsageError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

_SMALLEST, _LARGEST = 64 << 10, 64 << 20  # bytes that a rank sends in a round
_LATENCY_ROUNDS = 9
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 50


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """What joins a node to the others."""

    bytes_per_second: float
    """What a node sends, while it receives as much."""
    latency_seconds: float
    """Of the smallest exchange."""

    @property
    def report(self) -> dict[str, float]:
        return msgspec.structs.asdict(self)

    def __repr__(self) -> str:
        return f"Link({self.bytes_per_second / 1e6:.4g} MB/s, latency {self.latency_seconds * 1e3:.3g} ms)"


class Nodes(Protocol):
    """What is needed of a topology (`trimtab.comm.Topology`)."""

    group: Any
    inter: Any
    """The group of the ranks at this rank's place in their nodes; None if there is one node."""

    @property
    def local_size(self) -> int: ...


def measure(nodes: Nodes | dist.ProcessGroup | None = None, *, seconds: float = 0.3) -> Link:
    """Measure the link between nodes and return the same result on every rank.

    All ranks of the group take part. In a topology of several nodes, each rank exchanges bytes with those at its place
    in the other nodes, all at once, and rates count what a node's ranks send together. In a process group, or in a
    topology of one node, every rank counts as a node.

    The result is what collectives reach, which may be less than the wire carries: on gloo two ranks that send to each
    other at the same time get about half of its rate each way, and only several ranks a node fill it.

    Args:
        nodes: a topology, a process group, or None for the default group.
        seconds: about how long to measure; slow links take a few times as long, as 64 KiB a rank is the least.

    Raises:
        UsageError: there is one rank, or `torch.distributed` is not initialised.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        raise UsageError("torch.distributed is not initialized; call init_process_group first")
    if nodes is None or isinstance(nodes, dist.ProcessGroup):
        group: Any = nodes or dist.group.WORLD
        between, num_senders = group, 1
    else:
        group, between, num_senders = nodes.group, nodes.inter or nodes.group, nodes.local_size if nodes.inter else 1
    if group.size() == 1:
        raise UsageError("one rank has no link to measure; start two or more, with torchrun or trimtab netlab")
    probe = _Probe(group, between)
    latency = probe.seconds(1)  # also connects all pairs
    latency = statistics.median(probe.seconds(1) for _ in range(_LATENCY_ROUNDS))
    num_peers = between.size() - 1
    size = max(1, _SMALLEST // num_peers)
    while (first := probe.seconds(size)) < seconds / 4 and size * num_peers < _LARGEST:
        size *= 4
    # a limiter lets a burst pass that it has saved up; the round that chose the size has used that up
    num_rounds = min(max(_FEWEST_ROUNDS, int(seconds / first)), _MOST_ROUNDS)
    # not the fastest round: a rank that other work holds up finds bytes already there, and the limiter a burst saved up
    elapsed = statistics.median(probe.seconds(size) for _ in range(num_rounds))
    sent = size * num_peers * num_senders
    return Link(bytes_per_second=sent / max(elapsed - latency, elapsed / 2), latency_seconds=latency)


def agree(group: dist.ProcessGroup, values: list[float]) -> list[float]:
    """Return the largest of each value among the ranks of a group, the same on all of them."""
    import torch
    import torch.distributed as dist

    agreed = torch.tensor(values, dtype=torch.float64, device=device_of(group))
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=group)
    return agreed.tolist()


def device_of(group: dist.ProcessGroup) -> torch.device:
    """Return where a group's collectives want their tensors: the CPU where they take them."""
    import torch
    import torch.distributed as dist

    types = {part.partition(":")[0] for part in dist.get_backend_config(group).split(",")}  # cpu:gloo,cuda:nccl
    return torch.device("cpu") if "cpu" in types else torch.device("cuda", torch.cuda.current_device())


class _Probe:
    """Exchanges of a chosen size between all ranks of `between`, timed by the slowest rank of `group`."""

    def __init__(self, group: Any, between: Any) -> None:
        self._group, self._between = group, between
        self._device = device_of(group)

    def seconds(self, size: int) -> float:
        """Return how long it takes until everyone has `size` bytes of everyone else."""
        import torch
        import torch.distributed as dist

        sent = torch.zeros(size * self._between.size(), dtype=torch.uint8, device=self._device)
        received = torch.empty_like(sent)
        agree(self._group, [0.0])  # begin together
        begun = time.perf_counter()
        dist.all_to_all_single(received, sent, group=self._between)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return agree(self._group, [time.perf_counter() - begun])[0]
