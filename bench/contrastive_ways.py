"""What learns in `bench.contrastive`: regimes, losses, and the settings that are tried for each, six for every loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from bench.contrastive_losses import OpenCLIP, SigLIP
from trimtab.train import FastCLIP

PEERS = ("OpenCLIP", "SigLIP")
OURS = ("FastCLIP v1", "FastCLIP v3")
OTHERS = ("FastCLIP v0", "FastCLIP v2")
WAYS = (*PEERS, *OURS, *OTHERS)
NOTES = {
    "OpenCLIP": "softmax over the batch, temperature learned",
    "SigLIP": "sigmoid of every pair of the batch, temperature and bias learned",
    "FastCLIP v0": "running estimates, temperature learned as OpenCLIP's",
    "FastCLIP v1": "running estimates, temperature constant",
    "FastCLIP v2": "running estimates, two temperatures a sample, learned and set by rho",
    "FastCLIP v3": "running estimates, temperature learned and set by rho",
}
"""Name -> what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """How much there is to learn from, and for how long. The network and its learning rate are the same for all."""

    ways: tuple[str, ...] = WAYS
    num_pairs: int
    batch: int
    epochs: int
    rate: float = 1e-3
    weight_decay: float = 0.1
    columns: int = 64
    num_validation: int = 2000
    """Pairs that settings are chosen by, and that curves show."""
    num_test: int = 10_000
    gallery: int = 2000
    """Test pairs that are searched at a time."""
    num_points: int = 15
    """Of the curves, at ends of epochs."""
    num_seeds: int = 5
    num_tries: int = 6
    """Settings that are tried, of those of each loss."""

    @property
    def num_steps(self) -> int:
        return self.epochs * (self.num_pairs // self.batch)


REGIMES = {
    "batch 64": Regime(ways=(*PEERS, *OURS), num_pairs=20_000, batch=64, epochs=15),
    "small": Regime(
        num_pairs=256,
        batch=32,
        epochs=2,
        num_validation=64,
        num_test=128,
        gallery=64,
        num_points=2,
        num_seeds=2,
        num_tries=1,
    ),
}
"""Name -> regime: of the claims, and of a quick check."""

SETTINGS: dict[str, tuple[dict[str, float], ...]] = {
    "OpenCLIP": tuple(
        {"temperature": t, "scale_rate": r}
        for t, r in ((0.07, 1e-3), (0.07, 2e-4), (0.04, 1e-3), (0.05, 0.0), (0.07, 0.0), (0.1, 0.0))
    ),
    "SigLIP": tuple(
        {"temperature": t, "bias": b, "scale_rate": r}
        for t, b, r in (
            (0.1, -10.0, 1e-3),
            (0.1, -10.0, 2e-4),
            (0.1, -10.0, 5e-3),
            (0.1, -5.0, 1e-3),
            (0.07, -10.0, 1e-3),
            (0.07, -10.0, 2e-4),
        )
    ),
    "FastCLIP v0": tuple(
        {"temperature": 0.07, "scale_rate": r, "gamma_min": g} for r in (2e-4, 1e-3) for g in (0.2, 0.5, 0.8)
    ),
    "FastCLIP v1": tuple({"temperature": t, "gamma_min": g} for t in (0.05, 0.07, 0.1) for g in (0.2, 0.6)),
    "FastCLIP v2": tuple(
        {"rho": rho, "temperature": 0.05, "temperature_lr": r} for rho in (3.0, 4.5, 6.5) for r in (0.002, 0.01)
    ),
    "FastCLIP v3": tuple(
        {"temperature": 0.07, "scale_rate": 1e-3, "rho": rho, "gamma_min": g}
        for rho in (3.0, 4.5, 6.5)
        for g in (0.2, 0.6)
    ),
}
"""Name -> settings that are tried on a seed of their own; the best on validation pairs is then used on all others."""


def make_loss(way: str, settings: dict[str, float], regime: Regime) -> nn.Module:
    """Return the loss of a way; `temperature` of all but v2, and `scale_rate`, belong to the model."""
    if way == "OpenCLIP":
        return OpenCLIP()
    if way == "SigLIP":
        return SigLIP(settings["bias"])
    version: Any = way.split()[1]
    own = {name: settings[name] for name in ("rho", "gamma_min", "temperature_lr") if name in settings}
    if version == "v2":
        own["temperature"] = settings["temperature"]
    return FastCLIP(samples=regime.num_pairs, version=version, decay_epochs=max(regime.epochs // 2, 1), **own)
