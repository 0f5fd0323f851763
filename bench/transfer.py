"""Parameters found on one model, used on another: what the ratio loses, and the time that the search takes.

As table V of the ENEC paper. Parameters are searched for on all tensors of one model together, then every model is
packed with them; beside it stand the parameters of the model itself and those of each of its tensors. Mode "paper"
has the parameters b, n, m and L; the escape layout of mode "fast" has a base, two widths and a list of distances.
Counted are the buffers of all floating-point tensors of at least 1024 elements, without headers; in the escape layout
only of those that it suits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

import trimtab as tt
from bench import harness
from bench.harness import Contender, Options, at_least, exact, metric
from bench.tables import EACH_TENSOR, transfer_tables
from bench.weights import DTYPES, FILES, Weights, cast, load_weights
from trimtab.codecs import ENEC, make_codec
from trimtab.codecs.codec import describe
from trimtab.codecs.enec import HalvingParams
from trimtab.codecs.enec_escape import EscapeParams, choose_codes, encode_escape, encode_with
from trimtab.codecs.enec_halving import exponent_counts
from trimtab.packed import Header, Packed
from trimtab.records import Bar, Metric, Record

PAPER = ENEC(mode="paper")
PUBLISHED = {
    "bf16": HalvingParams(base=122, bits=6, low_bits=3),
    "fp16": HalvingParams(base=11, bits=5, low_bits=3),
    "fp32": HalvingParams(base=123, bits=6, low_bits=3),
}
"""What the paper's table IV gives for large language models of each dtype."""
TABLE_IV = "table IV"
LEAST_ELEMENTS = 1024
CLAIM = "with the parameters of DeepSeek-V3, Falcon and Qwen lose nothing, Llama goes from 1.36 to 1.31 (table V)"
LEAST_SHARE = round(1.31 / 1.36, 3)

Encode = Callable[[np.ndarray], Packed]
Codes = tuple[EscapeParams, np.ndarray]


def run(models: Mapping[str, Weights], options: Options) -> Record:
    """Measure every model, as float32 weights by name, with the parameters of every other, and return the record."""
    metrics: dict[str, Metric] = {}
    data: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    with tt.threads(1):
        for dtype, numpy_dtype in DTYPES.items():
            arrays = {
                model: [x for x in cast(weights, numpy_dtype).values() if _counts(x, numpy_dtype)]
                for model, weights in models.items()
            }
            data |= {
                f"{model} {dtype}": {"num_tensors": len(tensors), "num_bytes": sum(x.nbytes for x in tensors)}
                for model, tensors in arrays.items()
            }
            codecs = {model: PAPER.fit(tensors) for model, tensors in arrays.items()}
            codecs[TABLE_IV] = ENEC(mode="paper", params=PUBLISHED[dtype])
            found[f"paper {dtype}"] = {name: msgspec.to_builtins(codec.params) for name, codec in codecs.items()}
            sources = {name: codec.encode for name, codec in codecs.items()}
            metrics |= _measure(f"paper {dtype}", arrays, PAPER.encode, _known_paper, sources, options.num_rounds)
            for model, tensors in arrays.items():
                for name, codec in codecs.items():
                    metrics[f"paper {dtype}/{model}/{name}/fitting"] = _fitting(tensors, codec)
            if dtype == "bf16":
                suited = {model: [x for x in tensors if _suits_escape(x)] for model, tensors in arrays.items()}
                for model, tensors in suited.items():
                    data[f"{model} bf16"]["num_suited"] = len(tensors)
                chosen = {model: _escape_codes(tensors) for model, tensors in suited.items()}
                found["escape bf16"] = {
                    model: {**msgspec.to_builtins(params), "distances": listed.tolist()}
                    for model, (params, listed) in chosen.items()
                }
                sources = {model: _escape_encoder(codes) for model, codes in chosen.items()}
                metrics |= _measure(
                    "escape bf16", suited, _escape_encoder(None), _known_escape, sources, options.num_rounds
                )
    return Record.new(
        options.name,
        command=options.command,
        data=data,
        encoding={"parameters": found},
        inference={"num_threads": 1, "num_rounds": options.num_rounds, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=_bars(metrics),
    )


def _counts(x: np.ndarray, dtype: np.dtype) -> bool:
    return x.dtype == dtype and x.size >= LEAST_ELEMENTS


def _suits_escape(x: np.ndarray) -> bool:
    return encode_escape(x.reshape(-1)) is not None


def _measure(
    subject: str,
    arrays: Mapping[str, list[np.ndarray]],
    search: Encode,
    known: Callable[[np.ndarray], Encode],
    sources: Mapping[str, Encode],
    num_rounds: int,
) -> dict[str, Metric]:
    """Pack every model with a search for each tensor and with the parameters of each source.

    Keys are ``subject/model/source/what``; what is ``ratio`` and ``share`` (of the ratio with the model's own
    parameters). For `EACH_TENSOR` they are also the speeds of ``encode`` and of ``encode_known``, which is given
    the parameters that the search finds, and ``search``: the microseconds that the first takes longer for a tensor.
    """
    metrics: dict[str, Metric] = {}
    for model, tensors in arrays.items():
        encoders = {EACH_TENSOR: search, **sources}
        total = sum(x.nbytes for x in tensors)
        ratios = {name: total / packed_bytes(tensors, encode) for name, encode in encoders.items()}
        for name, ratio in ratios.items():
            key = f"{subject}/{model}/{name}"
            metrics[f"{key}/ratio"] = exact(ratio, "x")
            metrics[f"{key}/share"] = exact(
                ratio / ratios[model], "x", None if name in (model, EACH_TENSOR, TABLE_IV) else CLAIM
            )
        timings = _search_metrics(tensors, search, [known(x) for x in tensors], num_rounds)
        metrics |= {f"{subject}/{model}/{EACH_TENSOR}/{what}": timing for what, timing in timings.items()}
    return metrics


def packed_bytes(tensors: Sequence[np.ndarray], encode: Encode) -> int:
    """Return the bytes of all tensors packed; each is unpacked and compared.

    Raises:
        RuntimeError: a tensor does not come back bit for bit.
    """
    num_bytes = 0
    for x in tensors:
        packed = encode(x)
        y = np.empty(x.shape, x.dtype)
        if not tt.Lossless().allows(x, make_codec(packed.header.codec).decode(packed, out=y)):
            raise RuntimeError(f"{packed} does not come back bit for bit")
        num_bytes += packed.num_bytes
    return num_bytes


def _search_metrics(
    tensors: Sequence[np.ndarray], search: Encode, known: Sequence[Encode], num_rounds: int
) -> dict[str, Metric]:
    contenders = [
        Contender("encode", lambda: [search(x) for x in tensors], lambda packed: None),
        Contender("encode_known", lambda: [f(x) for f, x in zip(known, tensors, strict=True)], lambda packed: None),
    ]
    timings = harness.measure(contenders, num_rounds)
    num_bytes = sum(x.nbytes for x in tensors)
    metrics = {name: harness.speed(timing, num_bytes, "encode", "cpu") for name, timing in timings.items()}
    pairs = zip(timings["encode"].cpu["encode"], timings["encode_known"].cpu["encode"], strict=True)
    metrics["search"] = metric([1e6 * (longer - shorter) / len(tensors) for longer, shorter in pairs], "us")
    return metrics


def _known_paper(x: np.ndarray) -> Encode:
    return PAPER.fit([x]).encode


def _known_escape(x: np.ndarray) -> Encode:
    found = encode_escape(x.reshape(-1))
    assert found is not None  # only tensors that suit the layout are measured
    params, buffers = found
    return _escape_encoder((params, buffers["escapes"][: (1 << params.next_width) - 1]))


def _fitting(tensors: Sequence[np.ndarray], codec: ENEC) -> Metric:
    """Return the share of the bytes whose tensors take the codec's parameters; the others get their own."""
    own = msgspec.to_builtins(codec.params)
    fitting = sum(x.nbytes for x in tensors if codec.encode(x).header.params in (own, {}))
    return exact(fitting / sum(x.nbytes for x in tensors), "of the bytes")


def _escape_codes(tensors: Sequence[np.ndarray]) -> Codes:
    """Return the codes of the escape layout for all tensors together."""
    chosen = choose_codes(sum((exponent_counts(x.reshape(-1)) for x in tensors), np.zeros(256, np.int64)))
    if chosen is None:
        raise RuntimeError("the escape layout does not suit the model")
    return chosen


def _escape_encoder(codes: Codes | None) -> Encode:
    """Return what packs in the escape layout, with a search for every tensor where no codes are given."""

    def encode(x: np.ndarray) -> Packed:
        found = encode_escape(x.reshape(-1)) if codes is None else (codes[0], encode_with(x.reshape(-1), *codes))
        assert found is not None  # only tensors that suit the layout are measured
        params, buffers = found
        header = Header(
            codec=describe(ENEC()),
            bound=tt.Lossless(),
            dtype=x.dtype.name,
            shape=x.shape,
            params=msgspec.to_builtins(params),
        )
        return Packed(header, buffers)

    return encode


def _bars(metrics: Mapping[str, Metric]) -> list[Bar]:
    """With another model's parameters, a layout loses at most what the paper's worst case does."""
    bars = []
    for layout in ("paper", "escape"):
        shares = [m for key, m in metrics.items() if key.startswith(f"{layout} ") and m.claim]
        least = min(shares, key=lambda m: m.value, default=None)
        bars.append(at_least(f"{layout}: ratio with another model's parameters over the own", LEAST_SHARE, least, "x"))
    return bars


def _few(weights: Weights) -> Weights:
    """Return the tensors of a model that are not large."""
    return {name: x for name, x in weights.items() if x.size <= 20_000}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("transfer", __doc__, argv)
    models = {model: load_weights(model) for model in FILES}
    if options.quick:
        models = {model: _few(weights) for model, weights in models.items()}
    record = run(models, options)
    print(transfer_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
