"""What an exchange costs: logical bytes and codec seconds a collective, sampled errors, bytes at the interfaces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from trimtab.comm.counters import Traffic, read_all

__all__ = ["Meter"]


@dataclass(slots=True)
class _Operation:
    calls: int = 0
    skipped: int = 0
    exact: int = 0
    inter: int = 0
    intra: int = 0


@dataclass(slots=True)
class _Error:
    samples: int = 0
    noise: float = 0.0
    signal: float = 0.0


class Meter:
    """Counts what passes through the exchanges that it is given to.

    Args:
        sample_every: One in so many calls of an operation is decoded again to see its error; 0 samples none.
    """

    def __init__(self, sample_every: int = 64) -> None:
        self.sample_every = sample_every
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self._operations: dict[str, _Operation] = {}
        self._errors: dict[str, _Error] = {}
        self._codec_seconds = 0.0
        self._interfaces = _interfaces()

    def add(self, operation: str, *, exact: int, inter: int, intra: int) -> None:
        """Count a call that sent `inter` bytes to other nodes and `intra` inside its own, in place of `exact`."""
        found = self._operations.setdefault(operation, _Operation())
        found.calls += 1
        found.exact += exact
        found.inter += inter
        found.intra += intra

    def skip(self, operation: str, *, exact: int) -> None:
        """Count a call that sent nothing, since nothing had changed."""
        found = self._operations.setdefault(operation, _Operation())
        found.skipped += 1
        found.exact += exact

    @contextmanager
    def codec(self) -> Iterator[None]:
        """Count the seconds inside as the codec's; on a GPU, those of the host that starts its work."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._codec_seconds += time.perf_counter() - start

    def due(self, operation: str) -> bool:
        """Return whether the error of this call, not yet counted, is to be sampled."""
        calls = self._operations.get(operation, _Operation()).calls
        return self.sample_every > 0 and calls % self.sample_every == 0

    def sample(self, operation: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """Count the error of `y`, which was decoded, against `x`, which was meant."""
        found = self._errors.setdefault(operation, _Error())
        found.samples += 1
        found.noise += float((y.double() - x.double()).square().sum())
        found.signal += float(x.double().square().sum())

    @property
    def report(self) -> dict[str, Any]:
        """Counts since the last reset.

        `exact_bytes` is what an exact flat exchange of the same tensors by the same rank would send: a reduce-scatter
        or all-gather sends all but its own part once.
        """
        interfaces = _interfaces()
        return {
            "operations": {
                name: {
                    "calls": found.calls,
                    "skipped_calls": found.skipped,
                    "exact_bytes": found.exact,
                    "sent_bytes": found.inter + found.intra,
                    "sent_bytes_between_nodes": found.inter,
                    "sent_bytes_inside_nodes": found.intra,
                }
                for name, found in self._operations.items()
            },
            "normalised_mean_squared_error": {
                name: found.noise / found.signal if found.signal else 0.0 for name, found in self._errors.items()
            },
            "codec_seconds": self._codec_seconds,
            "interface_sent_bytes": {
                name: (now - self._interfaces[name]).sent_bytes
                for name, now in interfaces.items()
                if name in self._interfaces and now != self._interfaces[name]
            },
        }


def _interfaces() -> dict[str, Traffic]:
    try:
        return read_all()
    except OSError:  # no /proc: not Linux
        return {}
