"""The exchange of looked-up vectors in recommenders (dual-level adaptive lossy compression, SC 2024).

"Accelerating Communication in Deep Learning Recommendation Model Training with Dual-Level Adaptive Lossy Compression"
(SC 2024, arXiv 2407.04272). Tables are divided among ranks; every rank asks the owners for the vectors of its samples,
and an all-to-all brings them. Here it brings them packed within an error bound that may differ by table and by
iteration: sizes are exchanged first, then slices of the tables. Rounding is straight-through: gradients go the same way
back, exactly unless `backward_bound` says otherwise. Differences:

- the published artifact quantises in place and sends whole floats; this sends the bytes;
- a bound is strict, absolute or relative to the range of the whole table over all ranks (not of one slice, in which one
  outlier would loosen it);
- what a rank sends to itself is not packed;
- codecs: see `trimtab.codecs.embedding`; classes of tables: see `trimtab.comm.embedding_tables`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import torch
import torch.distributed as dist

from trimtab.arrays import as_numpy
from trimtab.bounds import Abs, Lossless, Rel
from trimtab.comm.embedding_tables import Part, Schedule, Tables, unpack
from trimtab.comm.exchange import Exchange
from trimtab.comm.meter import Meter
from trimtab.comm.topology import Topology
from trimtab.errors import Corrupt, PayloadError, ShapeError, UsageError

__all__ = ["EmbeddingExchange", "TableExchange"]

_Positive = Annotated[float, msgspec.Meta(gt=0)]


class EmbeddingExchange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How looked-up vectors travel; call it with the tables to attach it to a process group.

    With the defaults every element comes within `bound`. The two levels of the paper are off until they are asked for:
    an early stage in which the bound is looser, `early_factor` times at first (the paper: 2), and classes of tables,
    whose bounds are `class_factors` times as large (the paper's scripts: 1/3, 1, 5/3).
    """

    bound: Abs | Rel | Lossless = Abs(0.01)
    """Of the vectors: `Abs` in the unit of the elements, `Rel` to the range of what is sent of a table over all ranks,
    or `Lossless`, which sends them as they are."""
    backward_bound: Abs | Rel | Lossless = Lossless()
    """Of their gradients."""
    schedule: Schedule = "step"
    """How the early stage ends: "step", "linear", "log" or "constant"."""
    early_factor: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    """What the bound is multiplied with at step 0."""
    early_steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How long the early stage is."""
    class_factors: tuple[_Positive, _Positive, _Positive] = (1.0, 1.0, 1.0)
    """What the bound of a table is multiplied with in the classes tighten, base and loosen."""
    class_thresholds: tuple[float, float] = (0.05, 0.5)
    """Homogenisation indices below which a table is loosened, above which it is tightened."""
    encoder: Literal["auto", "exact", "unique", "entropy", "vector_lz", "dedup"] = "auto"
    """One for all tables; "auto" takes for each what makes its exchange shortest."""
    bandwidth: _Positive = 125e6
    """Of the link of one rank in bytes a second."""
    latency: Annotated[float, msgspec.Meta(ge=0)] = 2e-4
    """Of the exchange of sizes in seconds. Where packing is predicted not to pay, vectors go as they are."""
    every: Annotated[int, msgspec.Meta(ge=1)] = 512
    """So many steps lie between two choices of classes, encoders, and of whether to pack at all."""

    def __post_init__(self) -> None:
        positive = min(*self.class_factors, self.bandwidth, self.every) > 0 and self.early_factor >= 1
        if not (positive and min(self.early_steps, self.latency) >= 0 and len(self.class_factors) == 3):
            raise UsageError(
                f"{self}: class_factors (three), bandwidth and every must be positive, early_factor at least 1, "
                "early_steps and latency not negative"
            )

    def __call__(
        self,
        owners: Sequence[int],
        num_columns: int | Sequence[int],
        group: dist.ProcessGroup | Topology | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        meter: Meter | None = None,
    ) -> TableExchange:
        """Attach to a process group; a collective.

        Args:
            owners: The rank, in the group, of the owner of each table.
            num_columns: Of each table, or of all.
            group: A process group or its topology; the default group if it is left out.
            dtype: Of the vectors: float32, float16 or bfloat16.
            meter: Counts the bytes and seconds.

        Raises:
            SettingsDiffer: the ranks have different settings or tables.
            UsageError: an owner is no rank, or the numbers of owners and columns differ.
        """
        topology = group if isinstance(group, Topology) else Topology(group)
        columns = [num_columns] * len(owners) if isinstance(num_columns, int) else list(num_columns)
        return TableExchange(self, list(owners), columns, topology, dtype, meter)


class TableExchange:
    """The exchange of the tables of one model; `EmbeddingExchange` makes it.

    `step` is the number of the iteration, which schedules go by: calls count it up while gradients are enabled. Set it
    when training resumes.
    """

    def __init__(
        self,
        settings: EmbeddingExchange,
        owners: list[int],
        columns: list[int],
        topology: Topology,
        dtype: torch.dtype,
        meter: Meter | None,
    ) -> None:
        if len(owners) != len(columns) or not all(0 <= owner < topology.size for owner in owners) or min(columns) < 1:
            raise UsageError(
                f"tables of owners {owners} with {columns} columns; expected a rank below {topology.size} and a "
                "positive number of columns for each table"
            )
        self.settings, self.topology, self.step = settings, topology, 0
        self._owners, self._columns, self._dtype = owners, columns, dtype
        self._exchange = Exchange(topology, f"{settings}\nowners {owners}\ncolumns {columns}\ndtype {dtype}", meter)
        self._ways = {
            "forward": Tables(settings, settings.bound, len(owners)),
            "backward": Tables(settings, settings.backward_bound, len(owners)),
        }
        self._packing = {way: not isinstance(tables.bound, Lossless) for way, tables in self._ways.items()}

    @property
    def own_tables(self) -> list[int]:
        """The numbers of the tables that this rank owns."""
        return [table for table, owner in enumerate(self._owners) if owner == self.topology.rank]

    def __call__(
        self, vectors: Sequence[torch.Tensor], send_rows: Sequence[Sequence[int]], receive_rows: Sequence[int]
    ) -> list[torch.Tensor]:
        """Return for each table of all ranks the vectors [receive_rows[table], columns] that this rank asked for.

        A collective, and so is its backward pass: all ranks call it in the same order, and use what it returns in a
        loss on all of them or on none.

        Args:
            vectors: For each own table what was looked up, [rows, columns]: first the rows for rank 0, then for 1, ...
            send_rows: For each own table the number of rows for each rank.
            receive_rows: For each table the number of rows that this rank asked its owner for.

        Raises:
            ShapeError: vectors and numbers of rows do not fit together.
            PayloadError: a payload came damaged, or does not hold the vectors that were asked for.
            PeerFailed: another rank failed, or the link did.
        """
        own = self.own_tables
        expected = [(sum(rows), self._columns[table]) for table, rows in zip(own, send_rows, strict=False)]
        given = [(tuple(x.shape), x.dtype) for x in vectors]
        if given != [(shape, self._dtype) for shape in expected] or len(own) != len(send_rows):
            raise ShapeError(f"vectors of {given} of own tables {own}; expected {expected} of {self._dtype}")
        if len(receive_rows) != len(self._owners) or any(len(rows) != self.topology.size for rows in send_rows):
            raise ShapeError(
                f"{len(receive_rows)} numbers of rows to receive and {[len(rows) for rows in send_rows]} to send; "
                f"expected one for each of {len(self._owners)} tables, and for each own table one for each of "
                f"{self.topology.size} ranks"
            )
        # the anchor makes the backward pass run on ranks that own no table, too
        anchor = torch.zeros((), requires_grad=torch.is_grad_enabled())
        received = _Swap.apply(self, [list(rows) for rows in send_rows], list(receive_rows), anchor, *vectors)
        self.step += torch.is_grad_enabled()
        return list(received)

    @property
    def report(self) -> dict[str, Any]:
        """The step, what each table's vectors are sent with and take, and what the meter counted."""
        return {
            "step": self.step,
            "packing": dict(self._packing),
            "tables": {way: tables.report for way, tables in self._ways.items()},
            **self._exchange.meter.report,
        }

    def __repr__(self) -> str:
        tables = self._ways["forward"].report.values()
        sizes = [sum(table[key] for table in tables) for key in ("exact_bytes", "encoded_bytes")]
        return f"TableExchange({len(self._owners)} tables, step {self.step}, {sizes[0]} -> {sizes[1]} bytes)"

    def swap(
        self,
        way: str,
        step: int,
        outgoing: Sequence[tuple[int, int, torch.Tensor]],
        incoming: Sequence[tuple[int, int, torch.Tensor]],
    ) -> None:
        """Send `outgoing` matrices (table, to rank, matrix), and fill `incoming` ones (table, from rank, matrix)."""
        top, tables = self.topology, self._ways[way]
        for table, rank, x in outgoing:
            if rank == top.rank:
                next(y for other, sender, y in incoming if (other, sender) == (table, rank)).copy_(x)
        if top.size == 1:
            return
        parts = [Part(table, rank, as_numpy(x)) for table, rank, x in outgoing if rank != top.rank]
        ranges = None
        if isinstance(tables.bound, Rel):
            ranges = top.gather_words(tables.ranges(parts)).max(axis=0).reshape(2, -1)
        with top.failures.telling(), self._exchange.meter.codec():
            if tables.due(step):
                seconds = top.gather_words(np.array(tables.choose(step, parts, ranges))).sum(axis=0)
                self._packing[way] = bool(seconds[1] + top.size * self.settings.latency < seconds[0])
            packing = self._packing[way]
            payloads = tables.pack(step, parts, top.size, ranges) if packing else _join(parts, top.size)
        hosts = [
            (rank, y if y.device.type == "cpu" else torch.empty_like(y, device="cpu"), y) for _, rank, y in incoming
        ]
        sizes = [0] * top.size
        for rank, host, _ in hosts:
            sizes[rank] += host.nbytes * (rank != top.rank)
        found = self._exchange.all_to_all(
            [torch.from_numpy(payload).to(top.device) for payload in payloads],
            sizes=None if packing else sizes,
            max_bytes=2 * max(sizes) + (1 << 20),
            exact=sum(part.x.nbytes for part in parts),
        )
        with top.failures.telling(), self._exchange.meter.codec():
            for rank in range(top.size):
                if rank == top.rank:
                    continue
                matrices = [as_numpy(host) for sender, host, _ in hosts if sender == rank]
                try:
                    (unpack if packing else _split)(as_numpy(found[rank]), matrices)
                except Corrupt as error:
                    sender = top.global_ranks[rank]
                    raise PayloadError(f"the vectors from rank {sender} in step {step}: {error}") from error
        for rank, host, y in hosts:
            if host is not y and rank != top.rank:
                y.copy_(host)


class _Swap(torch.autograd.Function):
    """The exchange forward, and that of gradients the other way."""

    @staticmethod
    def forward(ctx, exchange, send_rows, receive_rows, anchor, *vectors):
        ctx.exchange, ctx.send_rows, ctx.step = exchange, send_rows, exchange.step
        owners, columns = exchange._owners, exchange._columns
        device = vectors[0].device if vectors else exchange.topology.device
        ctx.like = [(x.shape, x.device) for x in vectors]
        received = [
            torch.empty(rows, width, dtype=exchange._dtype, device=device)
            for rows, width in zip(receive_rows, columns, strict=True)
        ]
        outgoing = _by_rank(exchange.own_tables, vectors, send_rows)
        exchange.swap("forward", ctx.step, outgoing, list(zip(range(len(owners)), owners, received, strict=True)))
        return tuple(received)

    @staticmethod
    def backward(ctx, *gradients):
        exchange = ctx.exchange
        found = [torch.empty(shape, dtype=exchange._dtype, device=device) for shape, device in ctx.like]
        incoming = _by_rank(exchange.own_tables, found, ctx.send_rows)
        outgoing = list(zip(range(len(gradients)), exchange._owners, gradients, strict=True))
        exchange.swap("backward", ctx.step, outgoing, incoming)
        return None, None, None, None, *found


def _by_rank(
    tables: Sequence[int], matrices: Sequence[torch.Tensor], rows: Sequence[Sequence[int]]
) -> list[tuple[int, int, torch.Tensor]]:
    """Return the parts of matrices that belong to each rank, as (table, rank, part)."""
    return [
        (table, rank, part)
        for table, x, sizes in zip(tables, matrices, rows, strict=True)
        for rank, part in enumerate(x.split(list(sizes)))
    ]


def _join(parts: Sequence[Part], num_ranks: int) -> list[np.ndarray]:
    """Return the bytes of the parts of each rank."""
    return [
        np.concatenate(
            [
                np.empty(0, np.uint8),
                *(np.ascontiguousarray(part.x).reshape(-1).view(np.uint8) for part in parts if part.rank == rank),
            ]
        )
        for rank in range(num_ranks)
    ]


def _split(payload: np.ndarray, matrices: Sequence[np.ndarray]) -> None:
    """Fill the matrices of one sender from their bytes."""
    at = 0
    for x in matrices:
        x.reshape(-1).view(np.uint8)[:] = payload[at : at + x.nbytes]
        at += x.nbytes
