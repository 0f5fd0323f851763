"""Whether to send fewer bytes: a prediction from the link's rate, the codec's speed and the sizes.

An exchange of B bytes takes ``latency + B / rate`` seconds, and a codec works before and after, not meanwhile. So
compressing pays below the break-even rate, ``(exact bytes - packed bytes) / codec seconds``, and never above.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from trimtab.comm import link as links
from trimtab.comm.link import Link, Nodes
from trimtab.errors import UsageError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from trimtab.codecs.wire import WireCodec

_CODEC_ROUNDS = 5
_CODEC_ELEMENTS = 1 << 20


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction for one step, and the decision that follows from it."""

    compress: bool
    exact_seconds: float
    """What the exchange takes as it is."""
    packed_seconds: float
    """What it takes with a codec, whose work is included."""
    codec_seconds: float
    exact_bytes: float
    """What a node sends over its link."""
    packed_bytes: float
    bytes_per_second: float
    """What the link was measured to carry."""
    break_even_bytes_per_second: float
    """On slower links compressing pays; 0: on none, infinity: on every one."""

    @property
    def reason(self) -> str:
        """Why, in a sentence."""
        sizes = f"{_megabytes(self.packed_bytes)} instead of {_megabytes(self.exact_bytes)}"
        times = f"{self.packed_seconds:.3g} s instead of {self.exact_seconds:.3g} s"
        rate = f"the link carries {_megabytes(self.bytes_per_second)}/s"
        if self.packed_bytes >= self.exact_bytes:
            return f"the codec would not save a byte: {sizes}"
        if self.compress:
            below = f" and pays below {_megabytes(self.break_even_bytes_per_second)}/s" if self.codec_seconds else ""
            return f"{times} a step: {rate}, and the codec sends {sizes}{below}"
        return (
            f"compressing would take {times} a step: {rate}, and sending {sizes} pays only below "
            f"{_megabytes(self.break_even_bytes_per_second)}/s"
        )

    @property
    def report(self) -> dict[str, Any]:
        return {**msgspec.structs.asdict(self), "reason": self.reason}

    def __repr__(self) -> str:
        return f"Plan({'compress' if self.compress else 'stay exact'}: {self.reason})"


def predict(link: Link, *, exact_bytes: float, packed_bytes: float, codec_seconds: float) -> Plan:
    """Predict a step on a link.

    Args:
        link: measured, or made up.
        exact_bytes: what a node sends in a step without a codec.
        packed_bytes: what it sends with one.
        codec_seconds: what a rank spends on encoding and decoding in a step.

    Raises:
        UsageError: a number is negative, NaN or infinite, or the link's rate is zero.

    >>> predict(Link(bytes_per_second=12.5e6, latency_seconds=0), exact_bytes=1e6, packed_bytes=1e5, codec_seconds=2e-3)
    Plan(compress: 0.01 s instead of 0.08 s a step: the link carries 12.5 MB/s, and the codec sends 0.1 MB instead of 1 MB and pays below 450 MB/s)
    """  # noqa: E501
    numbers = {"exact_bytes": exact_bytes, "packed_bytes": packed_bytes, "codec_seconds": codec_seconds}
    numbers |= link.report
    for name, value in numbers.items():
        if not 0 <= value < float("inf") or (name == "bytes_per_second" and not value):
            raise UsageError(f"{name} is {value!r}; expected a finite number, not below zero, and of a rate above it")
    exact = link.latency_seconds + exact_bytes / link.bytes_per_second
    packed = link.latency_seconds + packed_bytes / link.bytes_per_second + codec_seconds
    saved = exact_bytes - packed_bytes
    return Plan(
        compress=packed < exact,
        exact_seconds=exact,
        packed_seconds=packed,
        codec_seconds=codec_seconds,
        exact_bytes=exact_bytes,
        packed_bytes=packed_bytes,
        bytes_per_second=link.bytes_per_second,
        break_even_bytes_per_second=0.0 if saved <= 0 else saved / codec_seconds if codec_seconds else float("inf"),
    )


def decide(
    nodes: Nodes | dist.ProcessGroup | None = None,
    *,
    exact_bytes: float,
    packed_bytes: float,
    codec_seconds: float,
    link: Link | None = None,
    across: Sequence[dist.ProcessGroup] = (),
) -> Plan:
    """Predict a step together and return the same plan on every rank.

    All ranks of the group take part. The largest sizes, the slowest codec and the slowest link among the ranks count.

    Args:
        nodes: a topology, a process group, or None for the default group.
        exact_bytes: as in `predict`; ranks may differ.
        packed_bytes: as in `predict`.
        codec_seconds: as in `predict`.
        link: this rank's; None on all ranks measures it now.
        across: groups along the other axes of a mesh, whose ranks all decide alike too.

    Raises:
        UsageError: a number makes no sense, on every rank if on one; or there is one rank.
    """
    import torch.distributed as dist

    if link is None:
        link = links.measure(nodes)
    group = nodes if nodes is None or isinstance(nodes, dist.ProcessGroup) else nodes.group
    rate = link.bytes_per_second
    mine = [exact_bytes, packed_bytes, codec_seconds, link.latency_seconds, 1 / rate if rate > 0 else float("inf")]
    # a maximum with NaN differs between backends; an infinity ends in the same error on every rank
    mine = [value if value >= 0 else float("inf") for value in mine]
    for among in (group or _default_group(), *across):
        mine = links.agree(among, mine)
    exact_bytes, packed_bytes, codec_seconds, latency, slowness = mine
    agreed = Link(bytes_per_second=1 / slowness if slowness else float("inf"), latency_seconds=latency)
    return predict(agreed, exact_bytes=exact_bytes, packed_bytes=packed_bytes, codec_seconds=codec_seconds)


class CodecSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of float32 elements a second that one rank turns into payloads, and back."""

    encode_bytes_per_second: float
    decode_bytes_per_second: float


def measure_codec(codec: WireCodec, device: torch.device | str = "cpu") -> CodecSpeed:
    """Measure a codec on this machine, on 4 MiB of elements; the first use of a kernel may have to compile it."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_CODEC_ELEMENTS, generator=generator).to(device)
    payload = torch.empty(codec.payload_bytes(x.numel()), dtype=torch.uint8, device=device)

    def seconds(work: Any) -> float:
        times = []
        for _ in range(_CODEC_ROUNDS + 1):
            begun = time.perf_counter()
            work()
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            times.append(time.perf_counter() - begun)
        return statistics.median(times[1:])

    num_bytes = 4 * x.numel()
    return CodecSpeed(
        encode_bytes_per_second=num_bytes / seconds(lambda: codec.encode(x, payload, 1)),
        decode_bytes_per_second=num_bytes / seconds(lambda: codec.decode(payload, x)),
    )


class ShardedStep(msgspec.Struct, frozen=True, kw_only=True):
    """What sharded data parallelism exchanges in a step: gradients are reduced and scattered, weights gathered, once.

    Both go first inside the nodes and then between them. `exact_bytes` are float32; `packed_bytes` are 4 bits for
    gradients and for differences of weights, which is what SDP4Bit sends.
    """

    exact_bytes: float
    """What a node sends to others."""
    packed_bytes: float
    codec_seconds: float
    """Of each rank."""


def sharded_step(
    num_parameters: int, *, nodes: int, ranks_per_node: int, gradients: WireCodec, weights: WireCodec, speed: CodecSpeed
) -> ShardedStep:
    """Return what a step of sharded data parallelism costs with and without codecs.

    A rank's gradients are all encoded and decoded for the exchange inside its node, if that has other ranks, then its
    part of them for the one between nodes. It encodes its own weights, and decodes all.
    """
    part, between = 1 / ranks_per_node, (nodes - 1) / nodes
    inside = 1.0 if ranks_per_node > 1 else 0.0
    payload = gradients.payload_bytes(num_parameters) + weights.payload_bytes(num_parameters)
    encoded = 4 * num_parameters * (inside + part + part / nodes)
    decoded = 4 * num_parameters * (inside + part + 1.0)
    return ShardedStep(
        exact_bytes=between * 8 * num_parameters,
        packed_bytes=between * payload,
        codec_seconds=encoded / speed.encode_bytes_per_second + decoded / speed.decode_bytes_per_second,
    )


def _default_group() -> Any:
    import torch.distributed as dist

    return dist.group.WORLD


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.3g} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.3g} GB"
