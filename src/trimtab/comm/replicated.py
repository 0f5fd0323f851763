"""SDP4Bit's two-level gradient exchange for replicated models: a communication hook of DistributedDataParallel.

DistributedDataParallel looks at the hook's annotations, so they are no texts here.
"""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from trimtab.codecs.wire import WireCodec
from trimtab.comm.exchange import Exchange
from trimtab.comm.format import Layout, Noise
from trimtab.comm.meter import Meter
from trimtab.comm.topology import Topology
from trimtab.errors import UsageError

if TYPE_CHECKING:
    from trimtab.comm.planner import Plan

__all__ = ["Replicated", "ReplicatedHandle", "replicated_hook"]

_names = itertools.count()


class Replicated(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a replicated model sends, and how. Call it with the `DistributedDataParallel`, on all ranks."""

    gradients: tuple[WireCodec | None, WireCodec | None] = (None, None)
    """Pack the gradients for their sums, inside the nodes and between them."""
    gather: WireCodec | None = None
    """Packs the sums for the way back to all ranks."""
    min_bytes: int = 65536
    """Gradients of smaller parameters, in bytes, stay exact."""
    seed: int = 0
    nodes: Any = None
    """How ranks are divided into nodes (`Topology`)."""

    def __call__(self, model: DistributedDataParallel, *, plan: "Plan | None" = None) -> "ReplicatedHandle":
        """Attach to a model, on all ranks.

        Raises:
            UsageError: the model is no `DistributedDataParallel`, or has a hook already.
            SettingsDiffer: the ranks' settings or models differ.
            PeerFailed: a rank did not take part.
        """
        if not isinstance(model, DistributedDataParallel):
            raise UsageError(f"the model is a {type(model).__name__}; expected a DistributedDataParallel")
        handle = ReplicatedHandle(model, self, plan)
        try:
            model.register_comm_hook(handle, replicated_hook)
        except RuntimeError as error:
            raise UsageError(f"the model takes no communication hook: {error}") from error
        return handle


class ReplicatedHandle:
    """A replicated model whose gradients are exchanged by `replicated_hook`.

    DistributedDataParallel cannot give up a hook, so `remove` makes the exchange exact.
    """

    def __init__(self, model: DistributedDataParallel, settings: Replicated, plan: "Plan | None" = None) -> None:
        self.settings = settings
        self.plan = plan
        self.meter = Meter()
        self.topology = Topology(model.process_group, settings.nodes)
        lines = [f"{name}={getattr(settings, name)!r}" for name in settings.__struct_fields__ if name != "nodes"]
        lines += [
            f"{name}: {tuple(p.shape)} {p.dtype}" for name, p in model.module.named_parameters() if p.requires_grad
        ]
        self._exchange = Exchange(self.topology, "\n".join(lines), self.meter)
        self._reductions = 0

    def reduce(self, bucket: dist.GradBucket) -> torch.Tensor:
        """Return the average over ranks of the gradients in a bucket."""
        settings, x = self.settings, bucket.buffer()
        exact = sorted(
            (at := int(gradient.storage_offset() - x.storage_offset()), at + gradient.numel())
            for gradient in bucket.gradients()
            if 0 < gradient.numel() * gradient.element_size() < settings.min_bytes
        )
        noise = Noise(settings.seed, self.topology.rank, self._reductions, bucket.index())
        scale = 1 / self.topology.size
        layout = Layout(x.numel(), tuple(exact))
        self._exchange.all_reduce(
            x, settings.gradients, gather=settings.gather, layout=layout, scale=scale, noise=noise
        )
        self._reductions += bucket.is_last()
        return x

    def state_dict(self) -> dict[str, Any]:
        """Return the counter that the noise comes from, the same on all ranks."""
        return {"reductions": self._reductions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where `state_dict` stood."""
        self._reductions = int(state["reductions"])

    def remove(self) -> None:
        """Exchange gradients exactly from now on; on all ranks."""
        self.settings = msgspec.structs.replace(self.settings, gradients=(None, None), gather=None)

    @property
    def report(self) -> dict[str, Any]:
        """What was sent since the meter's last reset, and how far it was off."""
        return {
            "topology": repr(self.topology),
            "plan": None if self.plan is None else self.plan.report,
            **self.meter.report,
        }

    def __repr__(self) -> str:
        operations = self.meter.report["operations"].values()
        sent, exact = (sum(found[key] for found in operations) for key in ("sent_bytes", "exact_bytes"))
        return f"ReplicatedHandle({self.topology!r}, {exact / 1e6:.3g} MB -> {sent / 1e6:.3g} MB sent by this rank)"


def replicated_hook(state: ReplicatedHandle, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket of gradients, as `DistributedDataParallel.register_comm_hook` wants it.

    The exchange is over when this returns: collectives of a later bucket must not overtake those of an earlier one.
    """
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(state.reduce(bucket))
    return future
