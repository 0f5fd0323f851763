"""What one direction of an embedding exchange sends of each table: within which bound, and by which encoder.

Both levels of "dual-level" meet here: the limit of a table is the bound, times a factor of the table's class, times a
factor of the iteration. The schedules are those of the artifact (allenfengjr/dlrm_comp); how a class is found is our
reconstruction, since the paper's formula was not at hand: the homogenisation index
``1 - distinct vectors within the bound / distinct vectors`` says how much of a table falls together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from trimtab import kernels
from trimtab.bounds import Abs, Lossless, Rel, is_finite
from trimtab.codecs.embedding_choice import Trial, best_encoder, try_encoders
from trimtab.codecs.embedding_slice import ENCODERS, LOSSLESS, Encoder, Slice, decode_slice
from trimtab.errors import Corrupt

if TYPE_CHECKING:
    from trimtab.comm.embedding import EmbeddingExchange

__all__ = ["Part", "Schedule", "Tables", "decay", "unpack"]

Schedule = Literal["step", "linear", "log", "constant"]
CLASSES = ("tighten", "base", "loosen")


class Part(NamedTuple):
    """The vectors of one table that go to one rank."""

    table: int
    rank: int
    x: np.ndarray
    """Of shape [rows, columns]."""


class _Table:
    """What is known of a table."""

    def __init__(self) -> None:
        self.encoder: Encoder = "exact"
        self.kind = "base"
        self.homogenisation = 0.0
        self.limit = 0.0
        self.trial: Trial | None = None
        self.num_bytes = self.num_sent = 0


def decay(schedule: Schedule, step: int, early_steps: int, factor: float) -> float:
    """Return what a bound is multiplied with at a step: `factor` at first, 1 from `early_steps` on.

    "step" goes down in ten stairs, "linear" and "log" smoothly, and "constant" stays until the early steps are over.
    """
    if step >= early_steps:
        return 1.0
    part, rest = step / early_steps, 1 / factor
    if schedule == "step":
        return factor * max(1 - math.floor(10 * part) * (1 - rest) / 10, rest)
    if schedule == "linear":
        return factor * (1 - part * (1 - rest))
    if schedule == "log":
        return factor * ((1 - math.log(1 + part * (math.e - 1))) * (1 - rest) + rest)
    return factor


class Tables:
    """The tables of which one direction of an exchange sends vectors.

    Args:
        settings: Of the exchange.
        bound: Of this direction.
        num_tables: How many there are, on all ranks together.
    """

    def __init__(self, settings: EmbeddingExchange, bound: Abs | Rel | Lossless, num_tables: int) -> None:
        self._settings, self.bound = settings, bound
        self._tables = [_Table() for _ in range(num_tables)]

    def due(self, step: int) -> bool:
        """Whether classes and encoders are to be chosen anew before a step."""
        return step % self._settings.every == 0 and not isinstance(self.bound, Lossless)

    def ranges(self, parts: Sequence[Part]) -> np.ndarray:
        """Return what ranks combine by a maximum: float64 [2, tables], the highest elements and the lowest, negated.

        Elements that are not finite do not count.
        """
        found = np.full((2, len(self._tables)), -np.inf)
        for part in parts:
            finite = part.x[is_finite(part.x)]
            if finite.size:
                found[0, part.table] = max(found[0, part.table], float(finite.max()))
                found[1, part.table] = max(found[1, part.table], -float(finite.min()))
        return found

    def choose(self, step: int, parts: Sequence[Part], ranges: np.ndarray | None = None) -> tuple[float, float]:
        """Choose class and encoder of each table for the steps from this one on.

        Returns the predicted seconds to send the parts as they are, and encoded. `ranges` are those of all ranks,
        where the bound is relative.
        """
        settings = self._settings
        exact = encoded = 0.0
        for number, table in enumerate(self._tables):
            own = [part.x for part in parts if part.table == number and part.x.size]
            if not own:
                continue
            low, high = settings.class_thresholds
            probes = [Slice(x, self._base_limit(number, ranges)) for x in own]
            kept, all_rows = (
                sum(probe.num_distinct_codes for probe in probes),
                sum(probe.num_distinct for probe in probes),
            )
            table.homogenisation = 1 - kept / all_rows
            table.kind = CLASSES[0 if table.homogenisation > high else 2 if table.homogenisation < low else 1]
            limit = self._limit(number, step, ranges)
            encoders = (settings.encoder,) if settings.encoder != "auto" else ENCODERS if limit > 0 else LOSSLESS
            trials = try_encoders([Slice(x, limit) for x in own], encoders)
            table.encoder = best_encoder(trials, settings.bandwidth)
            table.trial = trials[table.encoder]
            exact += table.trial.num_bytes / settings.bandwidth
            encoded += table.trial.seconds_at(settings.bandwidth)
        return exact, encoded

    def pack(
        self, step: int, parts: Sequence[Part], num_ranks: int, ranges: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Return one payload (uint8) for each rank: the size of each slice (uint64), then the slices.

        Parts without elements are left out. Which encoder made a slice stands in the slice: the sender alone decides.
        """
        parts = [part for part in parts if part.x.size]
        slices = [np.empty(0, np.uint8)] * len(parts)
        limits = {number: self._limit(number, step, ranges) for number in {part.table for part in parts}}

        def work(k: int) -> None:
            table = parts[k].table
            slices[k] = Slice(parts[k].x, limits[table]).encode(self._tables[table].encoder)

        kernels.for_each(work, len(parts))
        payloads = []
        for rank in range(num_ranks):
            own = [data for part, data in zip(parts, slices, strict=True) if part.rank == rank]
            sizes = np.array([data.size for data in own], "<u8").view(np.uint8)
            payloads.append(np.concatenate([sizes, *own]))
        for part, data in zip(parts, slices, strict=True):
            table = self._tables[part.table]
            table.limit = limits[part.table]
            table.num_bytes += part.x.nbytes
            table.num_sent += data.size
        return payloads

    @property
    def report(self) -> dict[int, dict[str, Any]]:
        """What was sent of each table, and how, by the number of the table."""
        return {
            number: {
                "encoder": table.encoder,
                "class": table.kind,
                "homogenisation_index": table.homogenisation,
                "absolute_bound": table.limit,
                "exact_bytes": table.num_bytes,
                "encoded_bytes": table.num_sent,
                "predicted_speedup": table.trial.speedup(self._settings.bandwidth) if table.trial else 1.0,
            }
            for number, table in enumerate(self._tables)
            if table.num_bytes
        }

    def _base_limit(self, table: int, ranges: np.ndarray | None) -> float:
        if isinstance(self.bound, Rel):
            assert ranges is not None
            span = float(ranges[0, table] + ranges[1, table])
            return self.bound.value * span if span > 0 else 0.0
        return self.bound.value if isinstance(self.bound, Abs) else 0.0

    def _limit(self, table: int, step: int, ranges: np.ndarray | None) -> float:
        settings = self._settings
        in_class = settings.class_factors[CLASSES.index(self._tables[table].kind)]
        now = decay(settings.schedule, step, settings.early_steps, settings.early_factor)
        return self._base_limit(table, ranges) * in_class * now


def unpack(payload: np.ndarray, matrices: Sequence[np.ndarray]) -> None:
    """Fill `matrices`, those of the tables of one sender in their order, from its payload (uint8).

    Raises:
        Corrupt: the payload is not of such matrices.
    """
    matrices = [x for x in matrices if x.size]
    head = 8 * len(matrices)
    if payload.size < head:
        raise Corrupt(f"a payload of {payload.size} bytes; the sizes of its {len(matrices)} slices alone take {head}")
    sizes = payload[:head].copy().view("<u8").tolist()
    if head + sum(sizes) != payload.size:
        raise Corrupt(f"a payload of {payload.size} bytes with slices of {sum(sizes)} behind a head of {head}")
    starts = np.cumsum([head, *sizes]).tolist()

    def work(k: int) -> None:
        decode_slice(payload[starts[k] : starts[k + 1]], matrices[k])

    kernels.for_each(work, len(matrices))
