"""Which ranks share a node: a process group, divided into the groups inside the nodes and those between them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
import xxhash

from trimtab.comm.failures import Failures
from trimtab.comm.link import device_of
from trimtab.errors import SettingsDiffer, UsageError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Topology", "all_gather_bytes", "all_to_all_bytes"]

_names = itertools.count()
_subgroups: WeakKeyDictionary[dist.ProcessGroup, dict[tuple[int, ...], dist.ProcessGroup]] = WeakKeyDictionary()
_SHOWN = 4096  # bytes of the settings that ranks show each other when they differ


class Topology:
    """A process group and its division into nodes.

    Rank `members[k][j]` of the group is the j-th of node k. All nodes hold equally many ranks; where they do not, or
    where nothing says which ranks share a node, the topology is flat: every rank counts as a node of its own.

    Making one is a collective: all ranks of the group take part.

    Args:
        group: A process group; the default group if it is left out.
        nodes: How the ranks are divided: None asks the environment that torchrun sets (`GROUP_RANK`,
            `LOCAL_WORLD_SIZE`), a number divides the group into that many nodes of consecutive ranks, and a 2-D device
            mesh over the group's ranks has a node in each row.
        failures: Where its ranks tell why they fail; topologies that are used together share one.

    Raises:
        UsageError: the group cannot be divided so.
        SettingsDiffer: the ranks asked for different divisions.
        PeerFailed: a rank did not take part.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        nodes: int | DeviceMesh | None = None,
        *,
        failures: Failures | None = None,
    ) -> None:
        if group is None:
            if not dist.is_initialized():
                raise UsageError("torch.distributed is not initialized; call init_process_group first")
            group = dist.group.WORLD
            assert group is not None
        self.group = group
        self.rank = group.rank()
        self.size = group.size()
        self.global_ranks: tuple[int, ...] = tuple(dist.get_process_group_ranks(group))
        self.device = device_of(group)
        store = group.get_group_store()
        self.timeout = timeout_of(group, self.device, store)
        """How long a collective of the group waits."""
        name = f"{group.group_name}/{next(_names)}"
        self.failures = failures or Failures(store, name, self.global_ranks)
        self.members = self._divide(nodes)
        ((self.node_index, self.local_rank),) = (
            (node, node_ranks.index(self.rank))
            for node, node_ranks in enumerate(self.members)
            if self.rank in node_ranks
        )
        self.intra = self._subgroup(self.members[self.node_index])
        """The ranks of this node; the whole group if there is one node, None if each rank is a node."""
        self.inter = self._subgroup([node_ranks[self.local_rank] for node_ranks in self.members])
        """The ranks that stand at this rank's place in their nodes; None if there is one node."""

    @property
    def num_nodes(self) -> int:
        return len(self.members)

    @property
    def local_size(self) -> int:
        """How many ranks a node holds."""
        return len(self.members[0])

    @property
    def two_level(self) -> bool:
        return self.intra is not None and self.inter is not None

    def flat(self) -> Topology:
        """Return the same group with every rank as a node of its own."""
        return self if self.local_size == 1 else Topology(self.group, nodes=self.size, failures=self.failures)

    def agree(self, settings: str) -> int:
        """Return the digest of the settings, if all ranks have the same.

        Raises:
            SettingsDiffer: they do not; raised on every rank.
            PeerFailed: a rank did not take part.
        """
        text = settings.encode()
        digest = xxhash.xxh3_64_intdigest(text)
        digests = self.gather_words(np.array([digest], np.uint64)).reshape(-1).tolist()
        if any(other != digest for other in digests):
            # every rank sees that some differ, so all go on to show theirs
            shown = np.zeros(_SHOWN, np.uint8)
            shown[: min(len(text), _SHOWN)] = np.frombuffer(text[:_SHOWN], np.uint8)
            texts = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in self.gather_words(shown)]
            if all(other == digests[0] for other in digests[1:]):
                told = f"rank 0 has {_difference(texts[0], texts[1])}, the others {_difference(texts[1], texts[0])}"
            else:
                other = next(rank for rank, found in enumerate(digests) if found != digests[0])
                told = (
                    f"rank 0 has {_difference(texts[0], texts[other])}, rank {other} has"
                    f" {_difference(texts[other], texts[0])}"
                )
            raise SettingsDiffer(f"the ranks were set up differently: {told}; use the same settings on all ranks")
        return digest

    def gather_words(self, words: np.ndarray, group: dist.ProcessGroup | None = None) -> np.ndarray:
        """Return an array [size, n] of what the ranks gave: `words`, of the same length and dtype on all of them.

        `group` is another group of the same ranks.
        """
        mine = torch.from_numpy(words.reshape(-1).view(np.uint8).copy()).to(self.device)
        found = torch.empty(self.size, mine.numel(), dtype=torch.uint8, device=self.device)
        with self.failures.watching(f"the comparison of settings and counters among {self.size} ranks"):
            all_gather_bytes(found, mine, group or self.group)
        return found.cpu().numpy().view(words.dtype)

    def __repr__(self) -> str:
        shape = f"{self.num_nodes} nodes of {self.local_size}" if self.local_size > 1 else "flat"
        return f"Topology({self.size} ranks, {shape})"

    def _divide(self, nodes: int | DeviceMesh | None) -> tuple[tuple[int, ...], ...]:
        if isinstance(nodes, int) and not 0 < nodes <= self.size:
            raise UsageError(f"nodes={nodes} for {self.size} ranks; expected 1 to {self.size}")
        wish = np.array([self._wish(nodes)], np.int64)
        wishes = self.gather_words(wish)
        if len({*wishes[:, 0].tolist()}) > 1 or (nodes is not None and len({*wishes[:, 1].tolist()}) > 1):
            raise SettingsDiffer(
                "the ranks asked for different divisions into nodes, (how, value):"
                f" {sorted(map(tuple, wishes.tolist()))}"
            )
        flat = tuple((rank,) for rank in range(self.size))
        if nodes is None:
            at = wishes[:, 1]
            if (at < 0).any():
                return flat
            rows = [tuple(np.flatnonzero(at == node).tolist()) for node in dict.fromkeys(at.tolist())]
        elif isinstance(nodes, int):
            if self.size % nodes:
                raise UsageError(f"{self.size} ranks cannot be divided into {nodes} equal nodes")
            per = self.size // nodes
            rows = [tuple(range(node * per, (node + 1) * per)) for node in range(nodes)]
        else:
            rows = self._rows(nodes)
        even = len({len(row) for row in rows}) == 1
        ordered = even and all(_rising([self.global_ranks[row[j]] for row in rows]) for j in range(len(rows[0])))
        if not ordered:
            if nodes is not None:
                raise UsageError("the rows and columns of the mesh must list ranks in rising order")
            return flat
        return tuple(rows)

    def _wish(self, nodes: int | DeviceMesh | None) -> tuple[int, int]:
        if isinstance(nodes, int):
            return 1, nodes
        if nodes is not None:
            return 2, xxhash.xxh3_64_intdigest(nodes.mesh.cpu().numpy().astype("<i8").tobytes()) >> 1
        local = os.environ.get("LOCAL_WORLD_SIZE", "")
        node = os.environ.get("GROUP_RANK", "")
        if node.isdigit() and local.isdigit():
            return 0, int(node)
        if local.isdigit() and int(local) > 0:
            return 0, dist.get_rank() // int(local)
        return 0, -1

    def _rows(self, mesh: DeviceMesh) -> list[tuple[int, ...]]:
        if mesh.ndim != 2:
            raise UsageError(f"a mesh of {mesh.ndim} dimensions; expected 2: between nodes, inside a node")
        place = {rank: at for at, rank in enumerate(self.global_ranks)}
        ranks = mesh.mesh.tolist()
        if sorted(itertools.chain(*ranks)) != sorted(place):
            raise UsageError(f"the mesh holds ranks {ranks}; expected those of the group, {list(self.global_ranks)}")
        return [tuple(place[rank] for rank in row) for row in ranks]

    def _subgroup(self, ranks: Sequence[int]) -> dist.ProcessGroup | None:
        if len(ranks) == 1:
            return None
        if len(ranks) == self.size:
            return self.group
        key = tuple(self.global_ranks[rank] for rank in ranks)
        known = _subgroups.setdefault(self.group, {})
        if key not in known:
            with self.failures.watching(f"making a group of ranks {list(key)}"):
                made = dist.new_group(list(key), timeout=self.timeout, use_local_synchronization=True)
            assert isinstance(made, dist.ProcessGroup)
            known[key] = made
        return known[key]


def all_gather_bytes(output: torch.Tensor, input: torch.Tensor, group: dist.ProcessGroup) -> None:
    """Gather `input` (uint8, contiguous) of all ranks into `output`, in the order of ranks."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
    gather(output.view(-1), input.view(-1), group=group)


def all_to_all_bytes(
    output: torch.Tensor,
    input: torch.Tensor,
    group: dist.ProcessGroup,
    output_sizes: list[int] | None = None,
    input_sizes: list[int] | None = None,
) -> None:
    """Send part k of `input` (uint8, contiguous) to rank k, and put what rank k sends k-th; equal parts by default."""
    dist.all_to_all_single(output.view(-1), input.view(-1), output_sizes, input_sizes, group=group)


def timeout_of(group: dist.ProcessGroup, device: torch.device, store: dist.Store) -> timedelta:
    """Return how long a collective of a group waits; `store` is the group's.

    The groups that are made of its ranks shall not wait longer. torch has no public way to ask; where the private one
    is gone, it is as long as the store waits, which `init_process_group` sets to the timeout of the default group.
    """
    try:
        return group._get_backend(device).options._timeout
    except (AttributeError, RuntimeError):
        return store.timeout  # pyrefly: ignore[missing-attribute] (documented, but not in the stubs)


def _rising(ranks: Sequence[int]) -> bool:
    return all(one < other for one, other in itertools.pairwise(ranks))


def _difference(text: str, other: str) -> str:
    """Return the items of a text of settings, one a line, that the other does not hold."""
    others = set(other.splitlines())
    lines = [line for line in text.splitlines() if line not in others]
    return "; ".join(lines[:5]) or "other settings (beyond what is shown)"
