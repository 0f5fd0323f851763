"""One unit of a sharded model: the reference of its weights, its counters, and what FSDP2 calls to exchange it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from trimtab.comm.exchange import Exchange
from trimtab.comm.format import Format, Layout, Noise
from trimtab.comm.fsdp import AllGather, ReduceScatter, Unit
from trimtab.comm.meter import Meter
from trimtab.comm.topology import all_gather_bytes
from trimtab.errors import UsageError

if TYPE_CHECKING:
    from trimtab.comm.sharded import Sharded

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_WEIGHTS, _GRADIENTS, _REPLICAS = range(3)  # kinds of noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanges:
    """What carries the messages of all units of a model."""

    gather: Exchange
    reduce: Exchange
    across: Exchange | None
    """Between replicas, where there are any."""
    meter: Meter
    place: int
    """Of this rank among those that share the data. Not its global number: ranks that hold the same weights in another
    dimension of the mesh need the same noise."""
    agree: Callable[[], None]
    """Checks that all ranks count the same changes; a collective."""


class ShardedUnit:
    """A unit, its reference, and its counters, which are the same on all ranks."""

    def __init__(self, settings: Sharded, exchanges: Exchanges, bucket: int, unit: Unit) -> None:
        self.settings = settings
        self.exchanges = exchanges
        self.unit = unit
        self.bucket = bucket
        self.reference: torch.Tensor | None = None  # [ranks, elements], as all of them last decoded it
        self.steps = 0  # of optimizers that own a parameter of the unit
        self.reductions = 0
        self.exact_gathers = 0
        self.unknown = 0
        self.drift = 0.0
        self._synced_at: int | None = None  # `steps` at the last exact gather; None: it is due
        self._changed = [False] * len(unit.segments)  # since the last gather
        self._in_step = False
        self._layouts: dict[Any, Layout] = {}
        self._reduced: Layout | None = None

    def resync(self) -> None:
        self._synced_at = None

    def state(self) -> tuple[Any, ...]:
        """What decides which messages are sent."""
        return self.steps, self.reductions, self._synced_at, self._changed

    def stepping(self, owned: set[int]) -> bool:
        """Note that an optimizer that owns these parameters begins a step, in which it may ask for gathers.

        Returns whether some of the unit's are among them.
        """
        trained = self.unit.trained
        touched = [id(param) in owned and trained[i] for i, param in enumerate(self.unit.parameters)]
        if any(touched):
            self._changed = [one or other for one, other in zip(self._changed, touched, strict=True)]
            self._in_step = True
            self.steps += 1
        return any(touched)

    def stepped(self) -> None:
        self._in_step = False

    def gather(self, output: torch.Tensor, input: torch.Tensor) -> None:
        """Fill `output` with the weights that all ranks compute with; `input`, this rank's own, lies in it."""
        settings, exchange = self.settings, self.exchanges.gather
        top = exchange.topology
        noise = Noise(settings.seed, top.rank, self.steps, self.bucket * 3 + _WEIGHTS)
        if not settings.keeps_reference or self._synced_at is None or any(self._changed):
            self.exchanges.agree()
        if not settings.keeps_reference:
            codec = None if settings.differences else settings.weights
            exchange.all_gather(output, input, codec, layout=self._weights_layout(None), noise=noise)
            self.exact_gathers += codec is None
            return
        if self._synced_at is None or self.reference is None or self._due():
            exchange.all_gather(output, input)
            with torch.inference_mode(False):
                self.reference = self._kept(output.view(top.size, -1))
            self._synced_at = self.steps
            self.exact_gathers += 1
        elif any(self._changed):
            self._update(output, input, noise)
        else:
            output.copy_(self.reference.view(-1))
            exact = (top.size - 1) * input.numel() * input.element_size()
            self.exchanges.meter.skip("all_gather", exact=exact)
        if not self._in_step:
            self._changed = [False] * len(self._changed)

    def reduce(self, output: torch.Tensor, input: torch.Tensor, op: Any) -> None:
        """Fill `output` with this rank's part of the reduced gradients `input`."""
        exchange = self.exchanges.reduce
        if op == dist.ReduceOp.AVG:
            scale = 1 / exchange.topology.size
        elif op == dist.ReduceOp.SUM:
            scale = 1.0
        else:
            raise UsageError(
                f"gradients of {self.unit.name!r} are to be reduced by {op}, as set_gradient_divide_factor asks;"
                " expected AVG or SUM: call set_force_sum_reduction_for_comms(True) too"
            )
        self._reduced = self._gradients_layout(output.numel())
        noise = Noise(self.settings.seed, self.exchanges.place, self.reductions, self.bucket * 3 + _GRADIENTS)
        exchange.reduce_scatter(output, input, self.settings.gradients, layout=self._reduced, scale=scale, noise=noise)
        self.reductions += 1

    def all_reduce(self, x: torch.Tensor) -> None:
        """Average (or sum) the reduced gradients `x` over replicas."""
        exchange = self.exchanges.across
        assert exchange is not None
        inside, between = self.settings.gradients
        scale = 1 / exchange.topology.size if self.unit.averages else 1.0
        noise = Noise(self.settings.seed, self.exchanges.place, self.reductions, self.bucket * 3 + _REPLICAS)
        exchange.all_reduce(x, between, gather=inside, layout=self._reduced, scale=scale, noise=noise)

    def _due(self) -> bool:
        every = self.settings.resync_every
        return every is not None and self._synced_at is not None and self.steps - self._synced_at >= every

    def _kept(self, rows: torch.Tensor) -> torch.Tensor:
        dtype = torch.float32 if rows.dtype == torch.float16 else rows.dtype  # codecs know no float16
        if self.settings.reference == "device" or rows.device.type == "cpu":
            return rows.to(dtype, copy=True)
        kept = torch.empty(rows.shape, dtype=dtype, pin_memory=True)
        return kept.copy_(rows)

    def _update(self, output: torch.Tensor, input: torch.Tensor, noise: Noise) -> None:
        """Send what changed, and bring the reference up to date."""
        exchange, meter, kept = self.exchanges.gather, self.exchanges.meter, self.reference
        top = exchange.topology
        assert kept is not None
        with top.failures.telling():
            form = Format(self._weights_layout(tuple(self._changed)), self.settings.weights, input.dtype)
            payload = exchange.payload(form.num_bytes, input.device)
            master = input.to(kept.dtype, copy=True)  # it lies in the output
            sampled = meter.due("all_gather")
            with meter.codec():
                form.encode_difference(master, kept[top.rank].to(master.device), payload, noise)
            payloads = exchange.gather(payload, exact=input.numel() * input.element_size())
            rows = kept.to(output.device)
            with meter.codec():
                for row, found in zip(rows, payloads, strict=True):
                    form.decode_add(found, row)
            if rows is not kept:
                kept.copy_(rows)
            output.copy_(rows.view(-1))
            if sampled and input.numel():
                meter.sample("all_gather", master, rows[top.rank])
                self.drift = max(self.drift, float((master.float() - rows[top.rank].float()).abs().max()))

    def _weights_layout(self, changed: tuple[bool, ...] | None) -> Layout:
        if changed not in self._layouts:
            self._layouts[changed] = Layout.of_segments(
                (segment.num, self._kind(segment.num_bytes) if changed is None or changed[i] else "skipped")
                for i, segment in enumerate(self.unit.segments)
            )
        return self._layouts[changed]

    def _gradients_layout(self, num: int) -> Layout:
        """Return the layout of a row of gradients of `num` elements.

        It holds the parameters that took part in the backward pass. If these are not all that are trained, nothing
        tells which they are, and the row is sent exactly.
        """
        key = "gradients", num, self.unit.trained
        if key not in self._layouts:
            parts = zip(self.unit.segments, self.unit.trained, strict=True)
            layout = Layout.of_segments((s.num, self._kind(s.num_bytes)) for s, trained in parts if trained)
            self._layouts[key] = layout if layout.num == num else Layout(num, ((0, num),))
        found = self._layouts[key]
        self.unknown += sum(s.num for s, trained in zip(self.unit.segments, key[2], strict=True) if trained) != num
        return found

    def _kind(self, num_bytes: int) -> Literal["packed", "exact"]:
        return "exact" if num_bytes < self.settings.min_bytes else "packed"


class _Allocating:
    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class Gather(_Allocating, AllGather):
    """What FSDP2 calls to gather the weights of a unit."""

    def __init__(self, owner: ShardedUnit) -> None:
        self._owner = owner
        self._num = sum(segment.num for segment in owner.unit.segments)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        unit = self._owner.unit
        known = input_tensor.dtype in _FLOATS and input_tensor.numel() == self._num and not unit.extended
        if known and group is unit.shard_group:
            self._owner.gather(output_tensor, input_tensor)
        else:
            # bytes that parameters packed themselves or that mixed types share, or weights that a smaller group holds
            # after the forward pass, which are those that all ranks compute with
            num_bytes = (group.size() - 1) * input_tensor.numel() * input_tensor.element_size()
            with self._owner.exchanges.gather.topology.failures.watching(f"the gather of {unit.name!r}"):
                all_gather_bytes(output_tensor.view(torch.uint8), input_tensor.view(torch.uint8), group)
            self._owner.exchanges.meter.add("all_gather, as it is", exact=num_bytes, inter=num_bytes, intra=0)


class Scatter(_Allocating, ReduceScatter):
    """What FSDP2 calls to reduce the gradients of a unit."""

    def __init__(self, owner: ShardedUnit) -> None:
        self._owner = owner

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> dist.Work | None:
        if input_tensor.dtype not in _FLOATS:
            raise UsageError(
                f"gradients of {self._owner.unit.name!r} are {input_tensor.dtype}; expected float32, bfloat16 or"
                " float16: set MixedPrecisionPolicy(reduce_dtype=torch.float32)"
            )
        self._owner.reduce(output_tensor, input_tensor, op)
