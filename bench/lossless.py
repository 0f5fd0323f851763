"""Lossless packing of model weights, tensor by tensor: ratio and speed beside zipnn, OpenZL, pcodec, Blosc2, zstd.

Each tensor of a model is packed on its own; sizes and times are totals over the model, on one thread. Ours is
``trimtab.compress``: header, checksum and all. The peers' own bytes leave out name, dtype and shape.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import trimtab as tt
from bench import harness
from bench.contenders import attempt, into_given_arrays, peer_contender, trimtab_contender
from bench.harness import Contender, Options, at_least, exact
from bench.tables import GIVEN, lossless_tables
from bench.weights import DTYPES, FILES, Weights, cast, load_weights
from trimtab.codecs import ENEC
from trimtab.codecs.enec import HalvingParams, published_bits, unmasked_groups
from trimtab.peers import PEERS, Peer
from trimtab.records import Bar, Metric, Record

OURS = "trimtab ENEC"
RATIO = "trimtab ENEC ratio"
PUBLISHED = "ENEC as published"
PAPER = ENEC(mode="paper")
LOSSLESS_PEERS = tuple(peer for peer in PEERS if peer.lossless)


def run(models: Mapping[str, Weights], options: Options, peers: Sequence[Peer] = LOSSLESS_PEERS) -> Record:
    """Measure every model, as float32 weights by name, in every dtype of `DTYPES`, and return the record.

    The bfloat16 weights are also measured as one long array, where the price of a call does not count.
    """
    metrics: dict[str, Metric] = {}
    data: dict[str, Any] = {}
    failed = {peer.name: reason for peer in peers if (reason := peer.unavailable()) is not None}
    refused: set[str] = set()
    installed = [peer for peer in peers if peer.name not in failed]

    def measure(subject: str, arrays: list[np.ndarray]) -> None:
        data[subject] = {"num_tensors": len(arrays), "num_bytes": sum(x.nbytes for x in arrays)}
        refused.update(reason for peer in installed for x in arrays if (reason := peer.refuses(x)) is not None)
        metrics.update(_measure(subject, arrays, installed, options.num_rounds, failed))

    with tt.threads(1):
        for model, weights in models.items():
            for dtype, numpy_dtype in DTYPES.items():
                tensors = cast(weights, numpy_dtype)
                measure(f"{model} {dtype}", list(tensors.values()))
                metrics |= _file_ratios(f"{model} {dtype}", tensors, metrics, installed)
                metrics[f"{model} {dtype}/{PUBLISHED}/over_formula"] = _over_formula(tensors.values())
            floats = [x.reshape(-1) for x in cast(weights, DTYPES["bf16"]).values() if x.dtype == DTYPES["bf16"]]
            measure(f"{model} bf16 as one array", [np.concatenate(floats)])
    return Record.new(
        options.name,
        command=options.command,
        packages=tuple(sorted({peer.package for peer in peers})),
        data=data,
        encoding={
            "contenders": {
                OURS: "fast mode, in a packed file with checksum",
                GIVEN: "the same, decoded into arrays that exist",
                RATIO: "ratio mode of the same codec, in a packed file with checksum",
                PUBLISHED: "paper mode of the same codec, in a packed file with checksum",
                **{peer.name: peer.setting for peer in peers},
            },
            "refused": sorted(refused),
            "failed": failed,
        },
        inference={"num_threads": 1, "num_rounds": options.num_rounds, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=_bars(models, metrics),
    )


def _measure(
    subject: str, arrays: list[np.ndarray], peers: Sequence[Peer], num_rounds: int, failed: dict[str, str]
) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    running: list[Contender] = []
    total = sum(x.nbytes for x in arrays)
    for contender in [*_ours(arrays), *(peer_contender(peer, arrays) for peer in peers)]:
        trial = attempt(contender, lambda decoded: all(map(tt.Lossless().allows, arrays, decoded)))
        if isinstance(trial, str):
            failed[f"{subject}/{contender.name}"] = trial
        else:
            metrics[f"{subject}/{contender.name}/ratio"] = exact(total / trial.num_bytes, "x")
            running.append(contender)
    return metrics | harness.speeds(subject, harness.measure(running, num_rounds), total, OURS)


def _ours(arrays: list[np.ndarray]) -> list[Contender]:
    plain = trimtab_contender(OURS, arrays, [ENEC()] * len(arrays))
    # the published method is defined for floating-point weights; other tensors go the usual way
    published = [PAPER if x.dtype in DTYPES.values() else ENEC() for x in arrays]
    best = trimtab_contender(RATIO, arrays, [ENEC(mode="ratio")] * len(arrays))
    return [plain, into_given_arrays(GIVEN, plain, arrays), best, trimtab_contender(PUBLISHED, arrays, published)]


def _file_ratios(
    subject: str, tensors: Weights, metrics: Mapping[str, Metric], peers: Sequence[Peer]
) -> dict[str, Metric]:
    """Return the size of the safetensors file over that of the packed file, all headers included.

    To the bytes of a peer, which has no such file, the header of the safetensors file is added.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "model.safetensors", Path(folder) / "model.tt"
        save_file(tensors, plain)
        size = plain.stat().st_size
        sizes = {}
        for name, mode in ((OURS, "fast"), (RATIO, "ratio")):
            tt.save(packed, tensors, codec=ENEC(mode=mode))
            sizes[name] = packed.stat().st_size
    num_bytes = sum(x.nbytes for x in tensors.values())
    for peer in peers:
        ratio = metrics.get(f"{subject}/{peer.name}/ratio")
        if ratio is not None:
            sizes[peer.name] = num_bytes / ratio.value + size - num_bytes
    return {f"{subject}/{name}/file_ratio": exact(size / packed_size, "x") for name, packed_size in sizes.items()}


def _over_formula(arrays: Iterable[np.ndarray]) -> Metric:
    """Return the bytes that paper mode takes over those of the paper's size formula, with the masks as they are.

    Tensors that paper mode does not take, or stores as they are, are left out.
    """
    packed_bytes = formula_bytes = 0.0
    for x in arrays:
        if x.dtype in DTYPES.values():
            packed = PAPER.encode(x)
            if packed.header.codec["id"] == PAPER.id:
                params = packed.params(HalvingParams)
                packed_bytes += packed.num_bytes
                formula_bytes += published_bits(x.dtype.name, params, unmasked_groups(packed)) * x.size / 8
    return exact(packed_bytes / formula_bytes if formula_bytes else 1.0, "x")


def _bars(models: Mapping[str, Weights], metrics: Mapping[str, Metric]) -> list[Bar]:
    bars = []
    for model in models:
        bf16 = f"{model} bf16"
        zipnn = f"{bf16}/zipnn"
        bars += [
            at_least(f"{bf16}: ratio, tensor by tensor", 1.42, metrics.get(f"{bf16}/{OURS}/ratio"), "x"),
            at_least(f"{bf16}: encoding speed over zipnn's", 2.5, metrics.get(f"{zipnn}/encode_times"), "x"),
            at_least(f"{bf16}: decoding speed over zipnn's", 1.2, metrics.get(f"{zipnn}/decode_times"), "x"),
            at_least(
                f"{bf16}: decoding speed into given arrays over zipnn's",
                1.5,
                _quotient(metrics, f"{zipnn}/decode_times", f"{bf16}/{GIVEN}/decode_times"),
                "x",
            ),
            at_least(
                f"{bf16}: encoding speed of mode ratio over zipnn's",
                1.5,
                _quotient(metrics, f"{zipnn}/encode_times", f"{bf16}/{RATIO}/encode_times"),
                "x",
            ),
            at_least(
                f"{bf16}: decoding speed of mode ratio over zipnn's",
                1.0,
                _quotient(metrics, f"{zipnn}/decode_times", f"{bf16}/{RATIO}/decode_times"),
                "x",
            ),
        ]
        for dtype in DTYPES:
            subject = f"{model} {dtype}"
            found = {
                key: m.value for key, m in metrics.items() if key.startswith(f"{subject}/") and "file_ratio" in key
            }
            peers = [value for key, value in found.items() if "/trimtab " not in key]
            if peers:
                reached = metrics[f"{subject}/{RATIO}/file_ratio"]
                bars.append(at_least(f"{subject}: ratio of the file, the best peer's needed", max(peers), reached, "x"))
        over = [metrics[f"{model} {dtype}/{PUBLISHED}/over_formula"].value for dtype in DTYPES]
        name = f"{model}, all dtypes: bytes of {PUBLISHED} over the paper's formula"
        passed = min(over) >= 1 - 1e-6 and max(over) <= 1.001  # padding only
        bars.append(Bar(name=name, required="1 to 1.001x", reached=max(over), passed=passed))
    return bars


def _quotient(metrics: Mapping[str, Metric], theirs: str, ours: str) -> Metric | None:
    """Return how many times as slow theirs is as ours, both given as times `OURS`; None if one was not measured."""
    if theirs not in metrics or ours not in metrics:
        return None
    return exact(metrics[theirs].value / metrics[ours].value, "x")


def _few(weights: Weights) -> Weights:
    """Return the first tensors of a model, up to about a million elements."""
    few: Weights = {}
    for name, x in weights.items():
        if x.size + sum(y.size for y in few.values()) <= 1_000_000:
            few[name] = x
    return few


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("lossless", __doc__, argv)
    models = {model: load_weights(model) for model in FILES}
    if options.quick:
        models = {model: _few(weights) for model, weights in models.items()}
    record = run(models, options)
    print(lossless_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
