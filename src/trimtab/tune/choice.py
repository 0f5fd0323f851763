"""Choice: what a search found, and how it got there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting that was tried, and what it reached; `sampled` where only a part of the data was used."""

    value: float
    reached: float
    sampled: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen `value`, the `metrics` that it reached, and the trials that led to it, in their order."""

    value: Any
    metrics: Mapping[str, float]
    trace: tuple[Trial, ...] = ()

    def __repr__(self) -> str:
        reached = ", ".join(f"{name} {number:.4g}" for name, number in self.metrics.items())
        return f"Choice({self.value!r}: {reached})"

    @property
    def report(self) -> dict[str, Any]:
        """The choice as plain data."""
        return {"value": self.value, "metrics": dict(self.metrics), "trace": [asdict(trial) for trial in self.trace]}
