"""Tuned weights packed against the base that they were tuned from: ratio and speed beside zipnn's deltas and XOR.

The pair is real: all-MiniLM-L6-v2 and the same after 200 steps of fine-tuning (``bench.tuning``), each cast to bfloat16
and as float32. Each tensor is packed on its own; sizes and times are totals over the model, on one thread. Of its
embeddings most rows did not move, so the layers are also measured without them. Peers get the exclusive or of the two
bit patterns, which is what zipnn makes itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import trimtab as tt
from bench import harness
from bench.contenders import attempt, trimtab_contender
from bench.harness import Contender, Options, at_least, exact
from bench.tables import delta_tables
from bench.weights import DTYPES, Weights, cast, load_weights
from trimtab.codecs import ENEC
from trimtab.peers import PEERS, Encoded, Peer, ZipNN
from trimtab.peers.peer import array, words
from trimtab.records import Bar, Metric, Record

OURS = "trimtab ENEC, base"
RATIO = "trimtab ENEC ratio, base"
ALONE = "trimtab ENEC ratio, no base"
MODEL = "tuned MiniLM"
LAYERS = "without embeddings"
LOSSLESS_PEERS = tuple(peer for peer in PEERS if peer.lossless)


class Pair(NamedTuple):
    """A model before and after, by the same names."""

    base: Weights
    tuned: Weights


def run(
    pair: Pair, options: Options, peers: Sequence[Peer] = LOSSLESS_PEERS, optimization: dict[str, Any] | None = None
) -> Record:
    """Measure the pair, given in float32, in bfloat16 and float32, with and without embeddings."""
    metrics: dict[str, Metric] = {}
    data: dict[str, Any] = {}
    failed = {_peer_name(peer): reason for peer in peers if (reason := peer.unavailable()) is not None}
    installed = [peer for peer in peers if _peer_name(peer) not in failed]
    with tt.threads(1):
        for dtype in ("bf16", "fp32"):
            whole = Pair(*(cast(weights, DTYPES[dtype]) for weights in pair))
            for subject, some in (
                (f"{MODEL} {dtype}", whole),
                (f"{MODEL} {dtype} {LAYERS}", Pair(*map(_without_embeddings, whole))),
            ):
                bases, arrays = list(some.base.values()), list(some.tuned.values())
                data[subject] = {
                    "num_tensors": len(arrays),
                    "num_bytes": sum(x.nbytes for x in arrays),
                    "equal_elements": _share_equal(bases, arrays),
                }
                metrics |= _measure(subject, bases, arrays, installed, options.num_rounds, failed)
                metrics |= _file_ratios(subject, some)
    return Record.new(
        options.name,
        command=options.command,
        packages=tuple(sorted({"torch", "transformers", *(peer.package for peer in peers)})),
        data=data,
        encoding={
            "contenders": {
                OURS: "fast mode with the base, in a packed file with checksum",
                RATIO: "ratio mode with the base, in a packed file with checksum",
                ALONE: "ratio mode of the same codec, which knows no base",
                **{_peer_name(peer): _peer_setting(peer) for peer in peers},
            },
            "failed": failed,
        },
        optimization=optimization or {},
        inference={"num_threads": 1, "num_rounds": options.num_rounds, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=_bars(data, metrics),
    )


def _measure(
    subject: str,
    bases: list[np.ndarray],
    arrays: list[np.ndarray],
    peers: Sequence[Peer],
    num_rounds: int,
    failed: dict[str, str],
) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    running: list[Contender] = []
    total = sum(x.nbytes for x in arrays)
    ours = [
        _against_base(OURS, bases, arrays, ENEC()),
        _against_base(RATIO, bases, arrays, ENEC(mode="ratio")),
        trimtab_contender(ALONE, arrays, [ENEC(mode="ratio")] * len(arrays)),
    ]
    for contender in [*ours, *(_peer_contender(peer, bases, arrays) for peer in peers)]:
        trial = attempt(contender, lambda decoded: all(map(tt.Lossless().allows, arrays, decoded)))
        if isinstance(trial, str):
            failed[f"{subject}/{contender.name}"] = trial
        else:
            metrics[f"{subject}/{contender.name}/ratio"] = exact(total / trial.num_bytes, "x")
            running.append(contender)
    return metrics | harness.speeds(subject, harness.measure(running, num_rounds), total, OURS)


def _against_base(name: str, bases: Sequence[np.ndarray], arrays: Sequence[np.ndarray], codec: ENEC) -> Contender:
    def encode() -> list[bytes]:
        return [tt.compress(x, codec=codec, base=base) for base, x in zip(bases, arrays, strict=True)]

    def decode(blobs: list[bytes]) -> list[Any]:
        return [tt.decompress(blob, base=base) for base, blob in zip(bases, blobs, strict=True)]

    return Contender(name, encode, decode)


def _peer_contender(peer: Peer, bases: Sequence[np.ndarray], arrays: Sequence[np.ndarray]) -> Contender:
    """Compress the exclusive or of each array and its base, of zipnn by its own means.

    Arrays that the peer refuses are copied, and count in full.
    """
    compress, decompress = _zipnn_compress, _zipnn_decompress
    if not isinstance(peer, ZipNN):
        compress, decompress = _xor_compress, _xor_decompress
    refused = [peer.refuses(x if isinstance(peer, ZipNN) else words(x)) is not None for x in arrays]

    def encode() -> list[Any]:
        return [x.copy() if no else compress(peer, base, x) for base, x, no in zip(bases, arrays, refused, strict=True)]

    def decode(encoded: list[Any]) -> list[np.ndarray]:
        return [
            e.copy() if no else decompress(peer, base, e) for base, e, no in zip(bases, encoded, refused, strict=True)
        ]

    return Contender(_peer_name(peer), encode, decode, is_peer=True)


def _xor_compress(peer: Peer, base: np.ndarray, x: np.ndarray) -> Encoded:
    encoded = peer.compress(words(x) ^ words(base))
    return Encoded(encoded, encoded.num_bytes, x.dtype, x.shape)


def _xor_decompress(peer: Peer, base: np.ndarray, encoded: Encoded) -> np.ndarray:
    return (peer.decompress(encoded.data) ^ words(base)).view(encoded.dtype).reshape(encoded.shape)


def _zipnn_compress(peer: Peer, base: np.ndarray, x: np.ndarray) -> Encoded:
    data = _zipnn(peer, x.dtype.name).compress(_bytes(x), delta_second_data=_bytes(base))
    return Encoded(data, len(data), x.dtype, x.shape)


def _zipnn_decompress(peer: Peer, base: np.ndarray, encoded: Encoded) -> np.ndarray:
    data = _zipnn(peer, encoded.dtype.name).decompress(encoded.data, delta_second_data=_bytes(base))
    return array(data, encoded)


@cache
def _zipnn(peer: Peer, dtype: str) -> Any:
    return peer.load().ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1, delta_compressed_type="byte")


def _bytes(x: np.ndarray) -> memoryview:
    return memoryview(words(x)).cast("B")


def _peer_name(peer: Peer) -> str:
    return f"{peer.name} delta" if isinstance(peer, ZipNN) else f"XOR, {peer.name}"


def _peer_setting(peer: Peer) -> str:
    if isinstance(peer, ZipNN):
        return "delta_compressed_type byte, dtype of the weights, 1 thread"
    return f"exclusive or by NumPy, as integers; {peer.setting}"


def _file_ratios(subject: str, pair: Pair) -> dict[str, Metric]:
    """Return the bytes of all arrays over those of the packed file, all headers included."""
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tt"
        for name, mode, base in ((OURS, "fast", pair.base), (RATIO, "ratio", pair.base), (ALONE, "ratio", None)):
            tt.save(path, pair.tuned, codec=ENEC(mode=mode), base=base)
            size = sum(x.nbytes for x in pair.tuned.values()) / path.stat().st_size
            ratios[f"{subject}/{name}/file_ratio"] = exact(size, "x")
    return ratios


def _without_embeddings(weights: Weights) -> Weights:
    return {name: x for name, x in weights.items() if "word_embeddings" not in name}


def _share_equal(bases: Sequence[np.ndarray], arrays: Sequence[np.ndarray]) -> float:
    same = sum(np.count_nonzero(words(base) == words(x)) for base, x in zip(bases, arrays, strict=True))
    return round(float(same / sum(x.size for x in arrays)), 4)


def _bars(subjects: Mapping[str, Any], metrics: Mapping[str, Metric]) -> list[Bar]:
    bars = []
    for subject in subjects:
        peers = [
            m.value for key, m in metrics.items() if key.startswith(f"{subject}/") and key.endswith("/ratio")
            and "/trimtab " not in key
        ]  # fmt: skip
        if peers:
            reached = metrics.get(f"{subject}/{OURS}/ratio")
            bars.append(at_least(f"{subject}: ratio with the base, the best peer's needed", max(peers), reached, "x"))
    return bars


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    from bench import tuning  # PyTorch, and some minutes

    options = harness.parse("delta", __doc__, argv)
    num_steps = 5 if options.quick else tuning.NUM_STEPS
    pair = Pair(load_weights("MiniLM"), tuning.tuned_weights(num_steps))
    record = run(pair, options, optimization=tuning.settings(num_steps))
    print(delta_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
