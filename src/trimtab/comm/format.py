"""How a row of elements lies in a payload: runs of it encoded by a codec, small or delicate runs exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from trimtab.codecs.sdp4bit import Groups
from trimtab.codecs.wire import Exact, WireCodec, noise_key
from trimtab.comm.wire import ALIGNMENT
from trimtab.errors import ShapeError

__all__ = ["Format", "Layout", "Noise", "exact_codec"]

_NAMES: dict[torch.dtype, Literal["float32", "bfloat16", "float16"]] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class Noise(NamedTuple):
    """Where the noise of stochastic rounding comes from: the same numbers give the same noise, and others another."""

    seed: int
    rank: int
    step: int
    bucket: int

    def key(self, stage: int) -> int:
        return noise_key(self.seed, self.rank, self.step, self.bucket, stage)


@dataclass(frozen=True)
class Layout:
    """A row of `num` elements; parts of it, (start, stop), are sent exactly, and others not at all."""

    num: int
    exact: tuple[tuple[int, int], ...] = ()
    skipped: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        end = 0
        for start, stop in sorted((*self.exact, *self.skipped)):
            if not end <= start <= stop <= self.num:
                raise ShapeError(
                    f"exact parts {self.exact} and skipped ones {self.skipped} of {self.num} elements;"
                    " expected disjoint ones inside the row"
                )
            end = stop

    @classmethod
    def of_segments(cls, segments: Iterable[tuple[int, Literal["packed", "exact", "skipped"]]]) -> Layout:
        """Return the layout of a row of segments, (length, kind), one after the other."""
        parts: dict[str, list[tuple[int, int]]] = {"packed": [], "exact": [], "skipped": []}
        at = 0
        for length, kind in segments:
            found = parts[kind]
            if length:
                start = found.pop()[0] if found and found[-1][1] == at else at
                found.append((start, at + length))
            at += length
        return cls(at, tuple(parts["exact"]), tuple(parts["skipped"]))

    @cached_property
    def runs(self) -> tuple[tuple[int, int, bool], ...]:
        """(start, stop, exact) of the runs that are sent, none empty."""
        found = []
        at = 0
        kinds = [(*part, True) for part in self.exact] + [(*part, None) for part in self.skipped]
        for start, stop, exact in (*sorted(kinds), (self.num, self.num, None)):
            if at < start:
                found.append((at, start, False))
            if exact and start < stop:
                found.append((start, stop, True))
            at = max(at, stop)
        return tuple(found)


class _Run(NamedTuple):
    start: int
    stop: int
    codec: WireCodec
    at: int  # where its bytes start in the payload
    size: int
    end: int  # `at` of the next run


class Format:
    """The payload of a row: its runs in order, each from a multiple of 8 bytes on.

    Args:
        layout: The row.
        codec: Encodes the runs that are not exact; None sends them exactly too.
        dtype: Of exact runs on the wire: float32, bfloat16 or float16. Elements themselves are float32 or bfloat16.

    Raises:
        ShapeError: rows of this dtype cannot be sent.
    """

    def __init__(self, layout: Layout, codec: WireCodec | None, dtype: torch.dtype) -> None:
        exact = exact_codec(dtype)
        self.layout = layout
        self.codec = codec or exact
        at = 0
        runs = []
        for start, stop, is_exact in layout.runs:
            chosen = exact if is_exact else self.codec
            size = chosen.payload_bytes(stop - start)
            end = at + -(-size // ALIGNMENT) * ALIGNMENT
            runs.append(_Run(start, stop, chosen, at, size, end))
            at = end
        self.runs = tuple(runs)
        self.num_bytes = at

    def encode(self, x: torch.Tensor, payload: torch.Tensor, noise: Noise | None = None, stage: int = 0) -> None:
        """Encode a row (contiguous) into its payload (contiguous uint8[num_bytes])."""
        for k, run in enumerate(self.runs):
            run.codec.encode(x[run.start : run.stop], _part(payload, run), _key(noise, stage, k))

    def decode(self, payload: torch.Tensor, y: torch.Tensor) -> None:
        """Decode a payload into a row."""
        for run in self.runs:
            run.codec.decode(_part(payload, run), y[run.start : run.stop])

    def decode_sum(self, payloads: torch.Tensor, y: torch.Tensor, scale: float = 1.0) -> None:
        """Decode payloads [rows, num_bytes] into their sum, times `scale`."""
        for run in self.runs:
            run.codec.decode_sum(_column(payloads, run), y[run.start : run.stop], scale)

    def recode_sum(
        self, payloads: torch.Tensor, other: Format, payload: torch.Tensor, noise: Noise | None, stage: int
    ) -> None:
        """Encode the sum of payloads [rows, num_bytes] into a payload of another format of the same layout."""
        for k, (run, out) in enumerate(zip(self.runs, other.runs, strict=True)):
            num = run.stop - run.start
            key = _key(noise, stage, k)
            one, other_codec = run.codec, out.codec
            if isinstance(one, Groups) and isinstance(other_codec, Groups) and one.hadamard == other_codec.hadamard:
                one.decode_sum_encode(_column(payloads, run), _part(payload, out), num, other_codec, key)
            else:
                total = torch.empty(num, device=payload.device)
                run.codec.decode_sum(_column(payloads, run), total)
                out.codec.encode(total, _part(payload, out), key)

    def encode_difference(
        self, x: torch.Tensor, reference: torch.Tensor, payload: torch.Tensor, noise: Noise | None, stage: int = 0
    ) -> None:
        """Encode how a row differs from the reference; what has another codec than `Groups`, as it is."""
        for k, run in enumerate(self.runs):
            row, part = x[run.start : run.stop], _part(payload, run)
            if isinstance(run.codec, Groups):
                run.codec.encode_difference(row, reference[run.start : run.stop], part, _key(noise, stage, k))
            else:
                run.codec.encode(row, part, _key(noise, stage, k))

    def decode_add(self, payload: torch.Tensor, reference: torch.Tensor) -> None:
        """Bring the reference up to date with a payload of `encode_difference`."""
        for run in self.runs:
            row, part = reference[run.start : run.stop], _part(payload, run)
            if isinstance(run.codec, Groups):
                run.codec.decode_add(part, row)
            else:
                run.codec.decode(part, row)


def exact_codec(dtype: torch.dtype) -> Exact:
    """Return the codec that sends elements of this dtype as they are.

    Raises:
        ShapeError: there is none.
    """
    if dtype not in _NAMES:
        raise ShapeError(f"elements of {dtype}; expected one of {', '.join(_NAMES.values())}")
    return Exact(dtype=_NAMES[dtype])


def _part(payload: torch.Tensor, run: _Run) -> torch.Tensor:
    payload[run.at + run.size : run.end] = 0
    return payload[run.at : run.at + run.size]


def _column(payloads: torch.Tensor, run: _Run) -> torch.Tensor:
    return payloads[:, run.at : run.at + run.size]


def _key(noise: Noise | None, stage: int, run: int) -> int | None:
    return None if noise is None else noise.key(stage << 32 | run)
