"""AE-SZ beside SZ, SZ3 and zfp: trained on early snapshots of seeded series, tested on later ones and on another run.

All fields are synthetic (`bench.fields.snapshots`). Training is a few minutes of one thread; models are kept in
``build/aesz`` and trained anew where they are missing. Ratios are given with the model's bytes left out (readers have
the model), shared by sixteen snapshots, and in every array. ``trimtab AE-SZ network`` is the network alone in all
blocks. Then all cells of ``bench.lossy``: the mixed stream beside each predictor on its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import trimtab as tt
from bench import harness
from bench.contenders import attempt, peer_contender, trimtab_contender
from bench.fields import Kind, fields, snapshots
from bench.harness import Options, at_least, exact
from bench.lossy import RELATIVE_BOUNDS as CELL_BOUNDS
from bench.tables import aesz_tables
from trimtab.bounds import Abs, psnr, value_range
from trimtab.codecs import AESZ, SZ, Codec
from trimtab.peers import PEERS, Peer
from trimtab.records import Bar, Metric, Record
from trimtab.store import encode

MODELS = Path("build/aesz")
TRAINING_SEED, SHARED_BY = 101, 16
EARLY, LATER = {"waves": (0.0, 0.01, 0.02, 0.03)}, 1.0
EARLY_TIMES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
SETTINGS: dict[str, dict[str, Any]] = {
    "turb": {"num_steps": 500},
    "waves": {"latent": 64, "channels": ()},
    "fronts": {"num_steps": 800, "latent": 24},
    "logn": {"channels": ()},
    "grf": {"channels": ()},
}
"""How the network of each kind of field is trained, beside the defaults."""

RELATIVE_BOUNDS = (1e-1, 5e-2, 2e-2, 1e-2, 5e-3)
LOOSE = (1e-1, 5e-2, 2e-2)
ABLATION_LATENTS, ABLATION_BLOCKS, ABLATION_BOUND = (16, 32, 64, 96), (16, 32), 2e-2
OURS = {"trimtab SZ fast": SZ(level="fast"), "trimtab SZ": SZ(), "trimtab SZ ratio": SZ(level="ratio")}
LORENZO = "trimtab SZ fast"
MIXED, BY_ERROR, NETWORK = "trimtab AE-SZ", "trimtab AE-SZ l1", "trimtab AE-SZ network"
CHOICES = {MIXED: "bits", BY_ERROR: "l1", NETWORK: "network"}
DRAWN = (LORENZO, "trimtab SZ ratio", MIXED, "sz3", "zfp")
TITLE = "AE-SZ, the model not counted (synthetic series): PSNR in dB against bits a value"
"""The contenders of the chart, and what stands above it."""

BOUNDED_PEERS = tuple(peer for peer in PEERS if not peer.lossless)


def model(kind: Kind, num_points: int, quick: bool, **other: Any) -> AESZ:
    """Return the codec trained on early snapshots, with shared weights; from its file where there is one."""
    settings = {**SETTINGS[kind], **other}
    if quick and settings.get("channels") != ():
        settings["num_steps"] = 2
    words = [f"{key}-{value}" for key, value in sorted(settings.items())]
    path = MODELS / f"{'-'.join([kind, str(num_points), *words]).replace(' ', '')}.tt"
    if not path.exists():
        early = snapshots(kind, EARLY.get(kind, EARLY_TIMES), num_points, TRAINING_SEED)
        path.parent.mkdir(parents=True, exist_ok=True)
        AESZ.fit(early, **settings).save(path)
    return AESZ.load(path, weights="shared")


def run(options: Options, peers: Sequence[Peer] = BOUNDED_PEERS) -> Record:
    """Train, measure all subjects, and return the record."""
    num_points = 32 if options.quick else 128
    failed = {peer.name: reason for peer in peers if (reason := peer.unavailable()) is not None}
    installed = [peer for peer in peers if peer.name not in failed]
    metrics: dict[str, Metric] = {}
    data, networks = {}, {}
    with tt.threads(1):
        for kind in ("turb", "waves", "fronts"):
            codec = model(kind, num_points, options.quick)
            networks[kind] = {**SETTINGS[kind], "model": codec.model, "bytes": codec.num_model_bytes}
            series = {
                f"{kind}, later": snapshots(kind, [LATER], num_points, TRAINING_SEED)[0],
                f"{kind}, another run": snapshots(kind, [0.0], num_points)[0],
            }
            for subject, x in series.items():
                data[subject] = {"dtype": x.dtype.name, "shape": list(x.shape), "synthetic": True}
                for relative in RELATIVE_BOUNDS:
                    metrics |= _point(subject, x, relative, codec, installed, failed)
            metrics |= _speeds(kind, series[f"{kind}, later"], codec, options.num_rounds)
        metrics |= _ablation(num_points, options.quick)
        metrics |= _cells(num_points, options.quick)
    names = {
        **{name: f'level "{codec.level}"' for name, codec in OURS.items()},
        **{name: f'choice "{choice}", shared weights, not charged' for name, choice in CHOICES.items()},
        **{peer.name: peer.setting for peer in peers},
    }
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch", *sorted({peer.package for peer in peers})),
        seed=0,
        data=data,
        architecture={"networks": networks},
        encoding={
            "contenders": names,
            "relative_bounds": list(RELATIVE_BOUNDS),
            "peer_bounds": list(RELATIVE_BOUNDS),
            "failed": failed,
        },
        optimization={"training": "early snapshots of one run, seed 101", "shared_by": SHARED_BY},
        inference={"num_threads": 1, "num_rounds": options.num_rounds, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=_bars(metrics),
    )


def _point(
    subject: str, x: np.ndarray, relative: float, codec: AESZ, peers: Sequence[Peer], failed: dict[str, str]
) -> dict[str, Metric]:
    """Return ratio, bits and PSNR of every contender, and of ours with the network how many blocks it has."""
    bound = Abs(relative * value_range(x))
    ours: dict[str, Codec] = {**OURS, **{name: _choosing(codec, choice) for name, choice in CHOICES.items()}}
    running = [trimtab_contender(name, [x], [own], bound) for name, own in ours.items()]
    running += [peer_contender(peer, [x], bound) for peer in peers if peer.refuses(x, bound) is None]
    metrics = {}
    for contender in running:
        trial = attempt(contender, None if contender.is_peer else partial(_within, bound, x))
        key = f"{subject}/{contender.name}/{relative:.0e}"
        if isinstance(trial, str):
            failed[key] = trial
            continue
        quality = psnr(x, trial.decoded[0])
        metrics[f"{key}/ratio"] = exact(x.nbytes / trial.num_bytes, "x")
        metrics[f"{key}/bits"] = exact(8 * trial.num_bytes / x.size, "bit/value")
        if math.isfinite(quality):
            metrics[f"{key}/psnr"] = exact(quality, "dB")
        if contender.name in CHOICES:
            for what, share in (("alone", 1.0), ("shared", 1 / SHARED_BY)):
                charged = trial.num_bytes + share * codec.num_model_bytes
                metrics[f"{key}/ratio_{what}"] = exact(x.nbytes / charged, "x")
            packed, _ = encode(x, bound, ours[contender.name])
            counts = codec.count_blocks(packed) if packed.header.codec["id"] == AESZ.id else {}
            metrics[f"{key}/blocks"] = exact(100 * counts.get("network", 0) / max(sum(counts.values()), 1), "%")
    return metrics


def _choosing(codec: AESZ, choice: str) -> AESZ:
    return msgspec.structs.replace(codec, choice=choice)


def _within(bound: Abs, x: np.ndarray, decoded: list[np.ndarray]) -> bool:
    return bound.allows(x, decoded[0])


def _speeds(kind: str, x: np.ndarray, codec: AESZ, num_rounds: int) -> dict[str, Metric]:
    """Return the speed of the network in all blocks, of the choice by bits, and of SZ without it, at 2e-2."""
    bound = Abs(2e-2 * value_range(x))
    codecs: dict[str, Codec] = {
        MIXED: codec,
        NETWORK: _choosing(codec, "network"),
        "trimtab SZ ratio": SZ(level="ratio"),
    }
    running = [trimtab_contender(name, [x], [own], bound) for name, own in codecs.items()]
    return harness.speeds(f"speed, {kind}", harness.measure(running, min(num_rounds, 3)), x.nbytes, MIXED)


def _ablation(num_points: int, quick: bool) -> dict[str, Metric]:
    """Return the ratio of later waves by block and latent size, linear networks."""
    (x,) = snapshots("waves", [LATER], num_points, TRAINING_SEED)
    metrics = {}
    for block in ABLATION_BLOCKS:
        for latent in ABLATION_LATENTS:
            codec = model("waves", num_points, quick, block=block, latent=latent)
            num_bytes = len(tt.compress(x, tt.Rel(ABLATION_BOUND), codec=codec))
            metrics[f"ablation/{block} x {block}, {latent}/ratio"] = exact(x.nbytes / num_bytes, "x")
            metrics[f"ablation/{block} x {block}, {latent}/model"] = exact(codec.num_model_bytes, "byte")
    return metrics


def _cells(num_points: int, quick: bool) -> dict[str, Metric]:
    """Return for each cell of ``bench.lossy`` the mixed stream's size over that of the best predictor on its own."""
    metrics = {}
    for name, make in fields(quick).items():
        x = make()
        kind = next((kind for kind in ("grf", "logn", "turb") if kind in name), "turb")
        codec = model(kind, num_points, quick)
        singles = {**OURS, NETWORK: _choosing(codec, "network")}
        for relative in CELL_BOUNDS:
            bound = tt.Rel(relative)
            least = min(len(tt.compress(x, bound, codec=own)) for own in singles.values())
            for weights in ("shared", "inline"):
                own = msgspec.structs.replace(codec, weights=weights)
                blob = tt.compress(x, bound, codec=own)
                assert bound.allows(x, np.asarray(tt.decompress(blob)))
                metrics[f"cell/{name}, {relative:.0e}/{weights}"] = exact(len(blob) / least, "x")
    return metrics


def _bars(metrics: Mapping[str, Metric]) -> list[Bar]:
    def over(ours: str, theirs: str, subjects: Sequence[tuple[str, float]], what: str = "ratio") -> Metric | None:
        keys = [
            (f"{field}/{ours}/{bound:.0e}/{what}", f"{field}/{theirs}/{bound:.0e}/ratio") for field, bound in subjects
        ]
        pairs = [(metrics.get(own), metrics.get(other)) for own, other in keys]
        found = [a.value / b.value for a, b in pairs if a and b]
        return exact(min(found), "x") if len(found) == len(subjects) else None

    turbulence = [(f"turb, {which}", bound) for which in ("later", "another run") for bound in LOOSE]
    waves = [(f"waves, {which}", bound) for which in ("later", "another run") for bound in LOOSE]
    cells = [metric.value for key, metric in metrics.items() if key.startswith("cell/")]
    return [
        at_least("AE-SZ: ratio over our own Lorenzo, turbulence from 2e-2 on", 1.5, over(MIXED, LORENZO, turbulence)),
        at_least("the network alone: the same", 1.5, over(NETWORK, LORENZO, turbulence)),
        at_least("AE-SZ: ratio over SZ ratio, waves from 2e-2 on", 1.5, over(MIXED, "trimtab SZ ratio", waves)),
        at_least(
            "AE-SZ: the same, with the model shared by sixteen", 1.3,
            over(MIXED, "trimtab SZ ratio", waves, "ratio_shared"),
        ),
        at_least(
            f"AE-SZ: cells of {len(cells)} at most 1 % larger than the best single predictor",
            len(cells), exact(sum(value <= 1.01 for value in cells), "cells"),
        ),
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("aesz", __doc__, argv)
    record = run(options)
    print(aesz_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
