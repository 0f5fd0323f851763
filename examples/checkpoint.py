"""What checkpoints have in common: tensors by names with slashes, and settings that must be the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def part(saved: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): saved[name] for name in saved if name.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return what an optimizer remembers of each parameter, as ``optimizer/NUMBER/NAME``."""
    states = optimizer.state_dict()["state"]
    return {f"optimizer/{number}/{name}": x for number, state in states.items() for name, x in state.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Give an optimizer back what `optimizer_tensors` returned; its settings stay."""
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, x in part(saved, "optimizer/").items():
        number, _, key = name.partition("/")
        states.setdefault(int(number), {})[key] = x
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})


def refuse_other(path: Path, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of other settings.

    Raises:
        ValueError: a setting differs, or is not known there.
    """
    differing = [
        f"{name} is {value!r} here and {there.get(name)!r} there"
        for name, value in here.items()
        if there.get(name) != value
    ]
    if differing:
        raise ValueError(f"{path} is of another run: {'; '.join(differing)}")
