"""Collectives whose messages are packed by a codec or exact, in one level or two: inside the nodes and between them.

A reduce-scatter in two levels follows SDP4Bit (Jia et al., NeurIPS 2024, arXiv 2410.15526): an all-to-all inside the
node and a sum, then an all-to-all between nodes and a sum, so that what crosses the slow link was summed before. An
all-gather in two levels crosses it once a node's place, and is spread inside the node. Every message is sealed
(`trimtab.comm.wire`), every failure told (`trimtab.comm.failures`), and only bytes are handed to torch.distributed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from trimtab.codecs.wire import WireCodec
from trimtab.comm.format import Format, Layout, Noise
from trimtab.comm.meter import Meter
from trimtab.comm.topology import Topology, all_gather_bytes, all_to_all_bytes
from trimtab.comm.wire import HEADER_BYTES, Expected, message_bytes, open_message, seal
from trimtab.errors import PayloadError, ShapeError

__all__ = ["Exchange"]

_GATHER = 1 << 20  # stages of the noise: those of the gather come behind those of the sums
_SUM = 1 << 21

Codecs = WireCodec | None | tuple[WireCodec | None, WireCodec | None]


class Exchange:
    """The collectives of one user of a topology, who issues them in the same order on all ranks.

    Tensors are flat, contiguous, float32, bfloat16 or float16, and on one device. A codec is a `WireCodec`, None for
    an exact exchange, or a pair of them: inside the nodes, between them. A `layout` names the parts of a row that stay
    exact. With a `noise`, rounding is stochastic where the codec asks for it. Sums are taken in float32.

    Making one is a collective.

    Args:
        topology: The ranks.
        settings: Text of all settings that must agree between ranks, an item a line.
        meter: Counts the bytes and seconds; a meter of its own by default.

    Raises:
        SettingsDiffer: the settings do not agree.
    """

    def __init__(self, topology: Topology, settings: str = "", meter: Meter | None = None) -> None:
        self.topology = topology
        self.meter = meter or Meter()
        self._settings = topology.agree(settings)
        self._sequence = 0
        self._memory: dict[tuple[str, torch.device], torch.Tensor] = {}

    def reduce_scatter(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        codec: Codecs = None,
        *,
        layout: Layout | None = None,
        scale: float = 1.0,
        noise: Noise | None = None,
    ) -> None:
        """Fill `output` [n] with `scale` times the sum over ranks of the row of `input` [size * n] that is this rank's.

        Raises:
            PayloadError: a message came damaged, or was meant otherwise.
            PeerFailed: another rank failed, or the link did.
        """
        top = self.topology
        layout = layout or Layout(output.numel())
        _check(output, input, layout, top.size)
        rows = input.view(top.size, layout.num)
        if top.size == 1:
            torch.mul(rows[0], scale, out=output)
            return
        wire_dtype = input.dtype
        total = output
        if wire_dtype == torch.float16:  # codecs know no such elements
            rows, total = rows.float(), torch.empty_like(output, dtype=torch.float32)
        inside, between = codec if isinstance(codec, tuple) else (codec, codec)
        with top.failures.telling():
            second = Format(layout, between, wire_dtype)
            inter_bytes = intra_bytes = 0
            if top.intra is None or top.inter is None:
                first = second if top.inter is not None else Format(layout, inside, wire_dtype)
                sends = self._buffer("sends", (top.size, message_bytes(first.num_bytes)), input)
                self._encode(rows, [(rank,) for rank in range(top.size)], first, sends, noise)
                received = self._all_to_all(sends, first.num_bytes, top.group, range(top.size))
                sent = (top.size - 1) * sends.shape[1]
                inter_bytes, intra_bytes = (sent, 0) if top.inter is not None else (0, sent)
                last = first
            else:
                first = Format(layout, inside, wire_dtype)
                num_bytes = top.num_nodes * first.num_bytes
                sends = self._buffer("sends", (top.local_size, message_bytes(num_bytes)), input)
                mine = top.members[top.node_index]
                places = [tuple(node[j] for node in top.members) for j in range(top.local_size)]
                self._encode(rows, places, first, sends, noise)
                received = self._all_to_all(sends, num_bytes, top.intra, mine)
                intra_bytes = (top.local_size - 1) * sends.shape[1]
                sums = self._buffer("sums", (top.num_nodes, message_bytes(second.num_bytes)), input)
                with self.meter.codec():
                    for k in range(top.num_nodes):
                        part = received[:, k * first.num_bytes : (k + 1) * first.num_bytes]
                        first.recode_sum(part, second, _payload(sums[k], second.num_bytes), noise, _SUM + k)
                across = [node[top.local_rank] for node in top.members]
                received = self._all_to_all(sums, second.num_bytes, top.inter, across)
                inter_bytes = (top.num_nodes - 1) * sums.shape[1]
                last = second
            with self.meter.codec():
                last.decode_sum(received, total, scale)
            if total is not output:
                output.copy_(total)
            exact = (top.size - 1) * layout.num * input.element_size()
            self.meter.add("reduce_scatter", exact=exact, inter=inter_bytes, intra=intra_bytes)

    def all_gather(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        codec: WireCodec | None = None,
        *,
        layout: Layout | None = None,
        noise: Noise | None = None,
    ) -> None:
        """Fill row k of `output` [size * n] with what rank k gave as `input` [n]; all ranks decode the same bytes.

        `input` may lie in `output`.

        Raises:
            PayloadError: a message came damaged, or was meant otherwise.
            PeerFailed: another rank failed, or the link did.
        """
        layout = layout or Layout(input.numel())
        _check(input, output, layout, self.topology.size)
        with self.topology.failures.telling():
            form = Format(layout, codec, input.dtype)
            payload = self.payload(form.num_bytes, input.device)
            meant = input.clone() if codec is not None and self.meter.due("all_gather") else None
            with self.meter.codec():
                form.encode(input.float() if input.dtype == torch.float16 else input, payload, noise, _GATHER)
            payloads = self.gather(payload, exact=layout.num * input.element_size())
            rows = output.view(self.topology.size, layout.num)
            with self.meter.codec():
                for row, found in zip(rows, payloads, strict=True):
                    y = torch.empty_like(row, dtype=torch.float32) if row.dtype == torch.float16 else row
                    form.decode(found, y)
                    if y is not row:
                        row.copy_(y)
            if meant is not None:
                self.meter.sample("all_gather", meant, rows[self.topology.rank])

    def all_reduce(
        self,
        x: torch.Tensor,
        codec: Codecs = None,
        *,
        gather: WireCodec | None = None,
        layout: Layout | None = None,
        scale: float = 1.0,
        noise: Noise | None = None,
    ) -> None:
        """Replace `x` [n] by `scale` times its sum over ranks, in two shots: a reduce-scatter and an all-gather.

        All ranks end with the same bits. `gather` packs the sums for the way back, exactly by default. `layout` is one
        of `x` as a whole.

        Raises:
            PayloadError: a message came damaged, or was meant otherwise.
            PeerFailed: another rank failed, or the link did.
        """
        size = self.topology.size
        layout = layout or Layout(x.numel())
        _check(x, x, layout, 1)
        if size == 1:
            x.mul_(scale)
            return
        if layout.exact or layout.skipped:
            self._all_reduce_apart(x, codec, gather, layout, scale, noise)
            return
        num = -(-layout.num // size)
        padded = x
        if num * size != layout.num:
            padded = torch.zeros(num * size, dtype=x.dtype, device=x.device)
            padded[: layout.num] = x
        mine = torch.empty(num, dtype=x.dtype, device=x.device)
        self.reduce_scatter(mine, padded, codec, scale=scale, noise=noise)
        self.all_gather(padded, mine, gather, noise=noise)
        if padded is not x:
            x.copy_(padded[: layout.num])

    def all_to_all(
        self, payloads: Sequence[torch.Tensor], *, max_bytes: int = 1 << 40, exact: int = 0
    ) -> list[torch.Tensor]:
        """Send payload k (flat uint8, of any size) to rank k, and return what came from each rank.

        Sizes are exchanged first.

        Args:
            payloads: One for each rank, this one included.
            max_bytes: Of all that one rank may send to this one; more is refused before memory is taken for it.
            exact: What the meter counts as the bytes of an exact exchange.

        Raises:
            PayloadError: a message came damaged, too large, or was meant otherwise.
            PeerFailed: another rank failed, or the link did.
        """
        top = self.topology
        if len(payloads) != top.size:
            raise ShapeError(f"{len(payloads)} payloads; expected one for each of {top.size} ranks")
        if top.size == 1:
            return [payloads[0]]
        with top.failures.telling():
            device = payloads[0].device
            sizes = [payload.numel() for payload in payloads]
            words = self._buffer("sizes", (top.size, message_bytes(8)), payloads[0])
            for row, size in zip(words, sizes, strict=True):
                _payload(row, 8).copy_(torch.from_numpy(np.array([size], "<u8").view(np.uint8)))
            received = self._all_to_all(words, 8, top.group, range(top.size))
            found = received.cpu().numpy().copy().view("<u8").reshape(-1).tolist()
            for rank, size in enumerate(found):
                if size > max_bytes:
                    raise PayloadError(
                        f"rank {top.global_ranks[rank]} announces a payload of {size} bytes;"
                        f" expected at most {max_bytes}"
                    )
            sends = [message_bytes(size) for size in sizes]
            outgoing = self._buffer("sends", (sum(sends),), payloads[0])
            sequence = self._next()
            for message, payload in zip(outgoing.split(sends), payloads, strict=True):
                _payload(message, payload.numel()).copy_(payload)
                seal(message, Expected(top.global_ranks[top.rank], self._settings, sequence, payload.numel()))
            takes = [message_bytes(size) for size in found]
            incoming = torch.empty(sum(takes), dtype=torch.uint8, device=device)
            with top.failures.watching(f"round {sequence}, an all-to-all of payloads among {top.size} ranks,"):
                all_to_all_bytes(incoming, outgoing, top.group, takes, sends)
            opened = [
                open_message(message, Expected(top.global_ranks[rank], self._settings, sequence, size))
                for rank, (message, size) in enumerate(zip(incoming.split(takes), found, strict=True))
            ]
            sent = sum(sends) - sends[top.rank]
            near = sum(sends[rank] for rank in top.members[top.node_index] if rank != top.rank)
            self.meter.add("all_to_all", exact=exact, inter=sent - near, intra=near)
            return opened

    def payload(self, num_bytes: int, device: torch.device) -> torch.Tensor:
        """Return the memory (uint8) where the next payload for `gather` is to be written."""
        message = self._buffer("gathered", (message_bytes(num_bytes),), device)
        return _payload(message, num_bytes)

    def gather(self, payload: torch.Tensor, *, exact: int = 0) -> list[torch.Tensor]:
        """Return the payloads of all ranks, of one size; valid until the next call. `payload` is this rank's.

        Args:
            payload: Flat uint8; where `payload()` gave the memory, it is not copied.
            exact: The bytes that the payload stands for, for the meter.

        Raises:
            PayloadError: a message came damaged, or was meant otherwise.
            PeerFailed: another rank failed, or the link did.
        """
        top = self.topology
        num_bytes = payload.numel()
        if top.size == 1:
            return [payload]
        with top.failures.telling():
            message = self._buffer("gathered", (message_bytes(num_bytes),), payload)
            mine = _payload(message, num_bytes)
            if payload.data_ptr() != mine.data_ptr():
                mine.copy_(payload)
            sequence = self._next()
            seal(message, Expected(top.global_ranks[top.rank], self._settings, sequence, num_bytes))
            inter_bytes = intra_bytes = 0
            gathered, places = message.view(1, -1), [top.rank]
            what = f"round {sequence}, an all-gather of {num_bytes} bytes"
            if top.inter is not None:
                places = [node[top.local_rank] for node in top.members]
                across = self._buffer("between", (top.num_nodes, message.numel()), payload)
                with top.failures.watching(f"{what} between {top.num_nodes} nodes,"):
                    all_gather_bytes(across, gathered, top.inter)
                gathered = across
                inter_bytes = (top.num_nodes - 1) * message.numel()
            if top.intra is not None:
                near = self._buffer("inside", (top.local_size * gathered.shape[0], message.numel()), payload)
                with top.failures.watching(f"{what} among the {top.local_size} ranks of node {top.node_index},"):
                    all_gather_bytes(near, gathered, top.intra)
                places = [
                    top.members[k][j]
                    for j in range(top.local_size)
                    for k in (range(top.num_nodes) if top.inter is not None else [top.node_index])
                ]
                intra_bytes = (top.local_size - 1) * gathered.numel()
                gathered = near
            found: list[torch.Tensor] = [payload] * top.size
            for rank, row in zip(places, gathered, strict=True):
                found[rank] = open_message(row, Expected(top.global_ranks[rank], self._settings, sequence, num_bytes))
            self.meter.add("all_gather", exact=(top.size - 1) * exact, inter=inter_bytes, intra=intra_bytes)
            return found

    def _all_reduce_apart(
        self,
        x: torch.Tensor,
        codec: Codecs,
        gather: WireCodec | None,
        layout: Layout,
        scale: float,
        noise: Noise | None,
    ) -> None:
        """All-reduce the exact parts of `x` and the others one after the other."""
        for is_exact in (True, False):
            parts = [x[start:stop] for start, stop, exact in layout.runs if exact == is_exact]
            if parts:
                joined = torch.cat(parts)
                codecs = (None, None) if is_exact else (codec, gather)
                self.all_reduce(joined, codecs[0], gather=codecs[1], scale=scale, noise=noise)
                for part, found in zip(parts, joined.split([part.numel() for part in parts]), strict=True):
                    part.copy_(found)

    def _encode(
        self,
        rows: torch.Tensor,
        places: Sequence[tuple[int, ...]],
        form: Format,
        messages: torch.Tensor,
        noise: Noise | None,
    ) -> None:
        """Encode into message p the rows that `places[p]` lists."""
        with self.meter.codec():
            for place, message in zip(places, messages, strict=True):
                payload = _payload(message, len(place) * form.num_bytes)
                for part, rank in zip(payload.split(form.num_bytes) if form.num_bytes else (), place, strict=False):
                    form.encode(rows[rank], part, noise, rank)
        if self.meter.due("reduce_scatter") and form.num_bytes:
            first, payload = places[0][0], _payload(messages[0], form.num_bytes)
            y = torch.empty_like(rows[first])
            form.decode(payload, y)
            self.meter.sample("reduce_scatter", rows[first], y)

    def _all_to_all(
        self, messages: torch.Tensor, num_bytes: int, group: dist.ProcessGroup, ranks: Sequence[int]
    ) -> torch.Tensor:
        """Send message p to `ranks[p]`, the p-th rank of `group`, and return the payloads that came, a row each."""
        top = self.topology
        sequence = self._next()
        for message in messages:
            seal(message, Expected(top.global_ranks[top.rank], self._settings, sequence, num_bytes))
        received = self._buffer("received", tuple(messages.shape), messages)
        with top.failures.watching(f"round {sequence}, an all-to-all of {num_bytes} bytes among ranks {list(ranks)},"):
            all_to_all_bytes(received, messages, group)
        for rank, message in zip(ranks, received, strict=True):
            open_message(message, Expected(top.global_ranks[rank], self._settings, sequence, num_bytes))
        return received[:, HEADER_BYTES : HEADER_BYTES + num_bytes]

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _buffer(self, name: str, shape: tuple[int, ...], like: torch.Tensor | torch.device) -> torch.Tensor:
        """Return memory of this shape (uint8) that keeps its bytes until the next call with this name."""
        device = like.device if isinstance(like, torch.Tensor) else like
        size = int(np.prod(shape, dtype=np.int64))
        memory = self._memory.get((name, device))
        if memory is None or memory.numel() < size:
            memory = self._memory[name, device] = torch.empty(size, dtype=torch.uint8, device=device)
        return memory[:size].view(shape)


def _payload(message: torch.Tensor, num_bytes: int) -> torch.Tensor:
    return message[HEADER_BYTES : HEADER_BYTES + num_bytes]


def _check(row: torch.Tensor, rows: torch.Tensor, layout: Layout, size: int) -> None:
    if row.dim() != 1 or rows.dim() != 1 or not row.is_contiguous() or not rows.is_contiguous():
        raise ShapeError(
            f"tensors of shapes {tuple(row.shape)} and {tuple(rows.shape)}; expected flat, contiguous ones"
        )
    if row.numel() != layout.num or rows.numel() != size * layout.num or row.dtype != rows.dtype:
        raise ShapeError(
            f"{rows.numel()} elements of {rows.dtype} and a row of {row.numel()} of {row.dtype};"
            f" expected {size} rows of {layout.num}, of one dtype"
        )
