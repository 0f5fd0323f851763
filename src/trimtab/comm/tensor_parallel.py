"""Styles of tensor parallelism whose traffic is packed: TACO (HPDC 2026, arXiv 2604.24088), for `parallelize_module`.

The sums of activations (forward) and of the gradients of inputs (backward) travel as 8 or 6 bits a value and a scale or
two a group, in two hops: each rank sums its chunk of what all ranks sent it, and sends the sum, packed again.

Differences from the paper:
- The styles plug into torch's own plans; the published code replaces NCCL.
- Beside FP8 with two scales ("fp8", the published form) there are codecs that serve better at the same size: one scale
  a group ("fp8-1"), as the second cancels out, and integers of 8 or 6 bits behind a Hadamard transform.
- Sequence parallelism travels packed as well; the published scripts pack the all-reduce alone.
- What data-driven reshaping means here stands in `trimtab.comm.channel`.

Redistributions that no style names below, and parts of unequal size, are torch's own and exact.
"""

from __future__ import annotations

import inspect
import weakref
from typing import Any, TypedDict, Unpack

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, SequenceParallel
from torch.distributed.tensor.placement_types import Placement

from trimtab.codecs.wire import WireCodec
from trimtab.comm import autograd
from trimtab.comm.channel import CALIBRATE, MIN_BYTES, Channel, Group, exchange_of, packers
from trimtab.errors import BackendUnavailable

_WHOLE = (Replicate(),)
_SUM = (Partial(),)


class Packing(TypedDict, total=False):
    """How the styles pack. All ranks give the same; they are compared when a plan is applied."""

    codec: str | WireCodec
    """"fp8" (default: e4m3 and two scales a group, as published), "fp8-1" (one scale), "fp8-e5m2", "int8", "int6",
    "exact", or a codec."""
    group: Group
    """Values that share a scale: 32, 64, 128 (default), 256 or 512."""
    hadamard: bool | None
    """Whether groups are transformed first, as published and by default; None decides as `calibrate` says."""
    min_bytes: int
    """Tensors below this size travel exactly; 16 KiB by default."""
    calibrate: int
    """One batch in so many decides, for each module and direction, which axis groups run along, the first one among
    them; 100 by default. 0 leaves them along the last dimension, as published, and the transform to the first batch."""


class _Channels:
    """The channels of the modules that a style was applied to."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self._codecs = packers(packing.get("codec", "fp8"), packing.get("group", 128), packing.get("hadamard", True))
        self._min_bytes = packing.get("min_bytes", MIN_BYTES)
        self._calibrate = packing.get("calibrate", CALIBRATE)
        self._of: weakref.WeakKeyDictionary[nn.Module, dict[str, Channel]] = weakref.WeakKeyDictionary()

    def open(self, module: nn.Module, mesh: DeviceMesh, *uses: str) -> None:
        """Make the channels of a module: a collective, in which settings are compared."""
        if "grad_placements" not in inspect.signature(DTensor.from_local).parameters:
            raise BackendUnavailable(
                "these styles need PyTorch 2.13 or newer, where DTensor.from_local takes grad_placements"
            )
        exchange = exchange_of(mesh.get_group())
        settings = {"codecs": self._codecs, "min_bytes": self._min_bytes, "calibrate": self._calibrate, "uses": uses}
        exchange.topology.agree("\n".join(f"{name}={value}" for name, value in settings.items()))
        self._of[module] = {
            use: Channel(exchange, self._codecs, min_bytes=self._min_bytes, calibrate=self._calibrate) for use in uses
        }

    def __getitem__(self, module: nn.Module) -> dict[str, Channel]:
        return self._of[module]

    @property
    def report(self) -> dict[str, Any]:
        modules = list(self._of.values())
        exchange = next((channel.exchange.meter.report for uses in modules for channel in uses.values()), None)
        return {
            "modules": [{use: channel.report for use, channel in uses.items()} for uses in modules],
            "exchange": exchange,
        }

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._packing.items())


class _Packed:
    """What all styles here share."""

    _channels: _Channels

    @property
    def report(self) -> dict[str, Any]:
        """What each module's channels chose, in the order of the plan, and the meter that all styles share."""
        return self._channels.report

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._channels})"


class TacoColwise(_Packed, ColwiseParallel):
    """`ColwiseParallel`, packed: the gradient of its input is summed over the ranks.

    Where `input_layouts` is a `Shard`, the input is gathered and its gradient scattered; where `output_layouts` is
    `Replicate`, the output is gathered. An input that is a replicated DTensor is taken as it is: who made it, such as
    `TacoShared` or `TacoSequenceParallel`, sums its gradient.

    Args:
        input_layouts: as of `ColwiseParallel`.
        output_layouts: as of `ColwiseParallel`.
        use_local_output: as of `ColwiseParallel`.
        packing: see `Packing`.

    Raises:
        UsageError: a setting is not one.
        BackendUnavailable: PyTorch is too old, when the plan is applied.
        SettingsDiffer: the ranks' settings differ, when the plan is applied.
    """

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
        **packing: Unpack[Packing],
    ) -> None:
        super().__init__(input_layouts=input_layouts, output_layouts=output_layouts, use_local_output=use_local_output)
        self._channels = _Channels(packing)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        gathered = [("input", self.input_layouts != _WHOLE), ("output", self.output_layouts == _WHOLE)]
        self._channels.open(module, device_mesh, "input_gradient", *(use for use, does in gathered if does))
        return super()._apply(module, device_mesh)

    def _prepare_input_fn(
        self, input_layouts: Any, desired_input_layouts: Any, mod: nn.Module, inputs: Any, device_mesh: DeviceMesh
    ) -> Any:
        (x, *_), channels = inputs, self._channels[mod]
        if isinstance(x, DTensor):
            if x.placements != input_layouts or input_layouts == _WHOLE or not _even(x, input_layouts):
                return super()._prepare_input_fn(input_layouts, desired_input_layouts, mod, inputs, device_mesh)
            x = x.to_local()
        (placement,) = input_layouts
        if isinstance(placement, Shard):
            y = autograd.all_gather(x, placement.dim, channels["input"], channels["input_gradient"])
            return _shared(y, device_mesh)
        if isinstance(placement, Replicate):
            return _shared(autograd.all_reduce_gradient(x, channels["input_gradient"]), device_mesh)
        return super()._prepare_input_fn(input_layouts, desired_input_layouts, mod, (x,), device_mesh)

    def _prepare_output_fn(
        self, output_layouts: Any, use_local_output: bool, mod: nn.Module, outputs: DTensor, device_mesh: DeviceMesh
    ) -> Tensor:
        (placement,) = outputs.placements
        if output_layouts != _WHOLE or not isinstance(placement, Shard) or not _even(outputs, outputs.placements):
            return super()._prepare_output_fn(output_layouts, use_local_output, mod, outputs, device_mesh)
        # what follows runs alike on every rank, so each knows the whole gradient
        y = autograd.all_gather(outputs.to_local(), placement.dim, self._channels[mod]["output"], None)
        return y if use_local_output else DTensor.from_local(y, device_mesh, _WHOLE, run_check=False)


class TacoRowwise(_Packed, RowwiseParallel):
    """`RowwiseParallel`, packed: its output is summed over the ranks.

    Where `output_layouts` is a `Shard`, each rank keeps its part of the sum, and the gradient is gathered.

    Args:
        input_layouts: as of `RowwiseParallel`.
        output_layouts: as of `RowwiseParallel`.
        use_local_output: as of `RowwiseParallel`.
        packing: see `Packing`.

    Raises:
        UsageError: a setting is not one.
        BackendUnavailable: PyTorch is too old, when the plan is applied.
        SettingsDiffer: the ranks' settings differ, when the plan is applied.
    """

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
        **packing: Unpack[Packing],
    ) -> None:
        super().__init__(input_layouts=input_layouts, output_layouts=output_layouts, use_local_output=use_local_output)
        self._channels = _Channels(packing)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        uses = ("output",) if self.output_layouts == _WHOLE else ("output", "output_gradient")
        self._channels.open(module, device_mesh, *uses)
        return super()._apply(module, device_mesh)

    def _prepare_output_fn(
        self, output_layouts: Any, use_local_output: bool, mod: nn.Module, outputs: DTensor, device_mesh: DeviceMesh
    ) -> Tensor:
        (partial,), (placement,) = outputs.placements, output_layouts
        if type(partial) is Partial and partial.reduce_op == "sum":  # a sharded embedding's partial sums are masked
            channels = self._channels[mod]
            if output_layouts == _WHOLE:
                y = autograd.all_reduce(outputs.to_local(), channels["output"])
                return y if use_local_output else DTensor.from_local(y, device_mesh, _WHOLE, run_check=False)
            if isinstance(placement, Shard) and _even(outputs, output_layouts):
                y = autograd.reduce_scatter(
                    outputs.to_local(), placement.dim, channels["output"], channels["output_gradient"]
                )
                return y if use_local_output else DTensor.from_local(y, device_mesh, output_layouts, run_check=False)
        return super()._prepare_output_fn(output_layouts, use_local_output, mod, outputs, device_mesh)


class TacoSequenceParallel(_Packed, SequenceParallel):
    """`SequenceParallel` whose output is gathered, packed, for the column-wise layers behind it.

    The layers take the replicated DTensor as it is, so there is one gather for all of them, and one reduce-scatter of
    the sum of their gradients. With `use_local_output`, the output is for modules that every rank runs alike.

    Args:
        sequence_dim: as of `SequenceParallel`; the ranks divide it.
        use_local_output: give a tensor instead of a DTensor.
        packing: see `Packing`.

    Raises:
        UsageError: a setting is not one.
        BackendUnavailable: PyTorch is too old, when the plan is applied.
        SettingsDiffer: the ranks' settings differ, when the plan is applied.
    """

    def __init__(self, *, sequence_dim: int = 1, use_local_output: bool = False, **packing: Unpack[Packing]) -> None:
        super().__init__(sequence_dim=sequence_dim, use_local_output=use_local_output)
        self._channels = _Channels(packing)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        self._channels.open(module, device_mesh, "output", "output_gradient")
        return super()._apply(module, device_mesh)

    def _prepare_output_fn(
        self, use_local_output: bool, mod: nn.Module, outputs: DTensor, device_mesh: DeviceMesh
    ) -> Tensor:
        (placement,) = self.sequence_sharding
        channels = self._channels[mod]
        if not _even(outputs, outputs.placements):
            y = outputs.redistribute(placements=_WHOLE)
            return y.to_local() if use_local_output else y
        back = None if use_local_output else channels["output_gradient"]
        y = autograd.all_gather(outputs.to_local(), placement.dim, channels["output"], back)
        return y if use_local_output else _shared(y, device_mesh)


class TacoShared(_Packed, ParallelStyle):
    """A module that every rank runs alike, and whose output several column-wise layers read: a norm before q, k and v.

    The sum of their gradients is summed over the ranks once, packed, instead of once a layer.

    Args:
        packing: see `Packing`.

    Raises:
        UsageError: a setting is not one.
        BackendUnavailable: PyTorch is too old, when the plan is applied.
        SettingsDiffer: the ranks' settings differ, when the plan is applied.
    """

    def __init__(self, **packing: Unpack[Packing]) -> None:
        self._channels = _Channels(packing)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        self._channels.open(module, device_mesh, "output_gradient")
        channel = self._channels[module]["output_gradient"]

        def share(module: nn.Module, inputs: Any, output: Tensor) -> DTensor:  # noqa: ARG001 (as hooks are called)
            return _shared(autograd.all_reduce_gradient(output, channel), device_mesh)

        module.register_forward_hook(share)
        return module


def _shared(x: Tensor, mesh: DeviceMesh) -> DTensor:
    """Return the same tensor of all ranks as a DTensor that leaves the sum of its gradients to x's own backward."""
    return DTensor.from_local(x, mesh, _WHOLE, run_check=False, grad_placements=_SUM)


def _even(x: DTensor, placements: Any) -> bool:
    """Return whether the ranks divide the dimension along which x is sharded."""
    (placement,) = placements
    return not isinstance(placement, Shard) or x.shape[placement.dim] % x.device_mesh.size() == 0
