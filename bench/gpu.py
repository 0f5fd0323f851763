"""Device kernels against the device's own copy of memory: exponent codes, a field's prediction, payloads for networks.

Bandwidth counts what has to be moved: the array and its packed form, each once. A copy counts its array twice. Times
come from CUDA events around whole calls, with their allocations, checks and waits for the host.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import harness
from bench.harness import Options, at_least, exact
from bench.tables import gpu_table
from trimtab.arrays import as_numpy
from trimtab.codecs import enec_device, enec_escape
from trimtab.codecs.enec_escape import CHUNK, choose_codes, sampling_step
from trimtab.codecs.prediction import lorenzo_weights
from trimtab.codecs.sdp4bit import Groups
from trimtab.codecs.taco import Float8
from trimtab.codecs.wire import WireCodec
from trimtab.kernels import backend, load_for
from trimtab.kernels.predictor import numba as host_predictor
from trimtab.kernels.predictor.ref import band_edges
from trimtab.kernels.quantiser import numba as host_quantiser
from trimtab.kernels.quantiser.ref import NONE
from trimtab.records import Bar, Metric, Record

if TYPE_CHECKING:
    import torch

SEED = 0
BARS = {"decode": 0.5, "encode": 0.35}
"""Least share of the copy's bandwidth that exponent codes reach."""

LOSSY = ("quantise, predict", "predict back, dequantise")
WIRE_CODECS: dict[str, WireCodec] = {
    "4 bits, Hadamard 32": Groups(bits=4, group=128, hadamard=32),
    "8 bits, Hadamard 32": Groups(bits=8, group=128, hadamard=32),
    "4 bits, group 2048": Groups(bits=4, group=2048),
    "e4m3, two scales, Hadamard 128": Float8(),
    "e4m3, one scale": Float8(scales=1, hadamard=False),
}
_NUM_ROWS = 4
_STEP, _LIMIT, _MARGIN = 0.02, 0.01, 2


@dataclass(frozen=True, slots=True)
class Subject:
    """Calls to time on one input, the bytes that each has to move, and whether they do what the host does."""

    num_bytes: int
    calls: dict[str, tuple[Callable[[], Any], int]]
    same: bool


def weights_subject(x: torch.Tensor) -> Subject:
    """Return packing and unpacking of bfloat16 weights in the escape layout of ENEC."""
    import torch

    bitplanes = load_for("bitplanes", x.device.type)
    assert bitplanes is not None
    halves = x.view(torch.int16)
    num = halves.numel()
    counts = np.empty(256, np.int64)
    bitplanes.survey(halves, sampling_step(num), counts)
    chosen = choose_codes(counts)
    assert chosen is not None
    params, listed = chosen
    codes = (params.base, params.width, params.next_width, listed)
    fixed = torch.empty(num + bitplanes.plane_bytes(num, params.width), dtype=torch.uint8, device=x.device)
    out = torch.empty_like(halves)

    def encode() -> tuple[np.ndarray, torch.Tensor]:
        return bitplanes.encode_chunks(halves, CHUNK, *codes, fixed[:num], fixed[num:])

    table, tails = encode()

    def decode() -> bool:
        return bitplanes.decode_chunks(fixed[:num], fixed[num:], tails, table, CHUNK, *codes, out)

    same = decode() and torch.equal(out, halves)
    on_host, packed = enec_escape.encode_escape(as_numpy(x)), enec_device.encode_escape_tensor(x)
    assert on_host is not None
    assert packed is not None
    same &= all(np.array_equal(on_host[1][name], as_numpy(packed[1][name])) for name in on_host[1])
    moved = x.nbytes + fixed.numel() + tails.numel()
    return Subject(x.nbytes, {"encode": (encode, moved), "decode": (decode, moved)}, same)


def field_subject(x: torch.Tensor) -> Subject:
    """Return quantisation and Lorenzo prediction of a 3-D field as one tile, and the way back."""
    import torch

    quantiser, predictor = load_for("quantiser", x.device.type), load_for("predictor", x.device.type)
    assert quantiser is not None
    assert predictor is not None
    flat, (_, per_plane, num) = x.reshape(-1), x.shape
    num_rows = flat.numel() // num
    edges, weights = band_edges(num_rows, per_plane), lorenzo_weights(3)
    starts = torch.arange(0, flat.numel(), num, device=x.device)
    q = torch.empty((num_rows, num + 2 * _MARGIN), dtype=torch.int32, device=x.device)
    residual = torch.empty((num_rows, num), dtype=torch.int32, device=x.device)
    outliers = torch.empty(max(flat.numel() // 64, 1), dtype=torch.int64, device=x.device)
    y = torch.empty_like(flat)

    def forward() -> None:
        quantiser.quantise_floats(flat, starts, _STEP, _LIMIT, _MARGIN, q, outliers)
        predictor.fill_margins(q, edges, per_plane, 1, False)
        predictor.encode(q, edges, per_plane, 1, weights, 0, residual)

    def backward() -> None:
        q[:, _MARGIN:-_MARGIN] = residual
        predictor.decode_lorenzo(q, edges, per_plane, 1, False)
        quantiser.dequantise(q, starts, _STEP, _MARGIN, y)

    forward()
    backward()
    host_q, host_y = np.empty(q.shape, np.int32), np.empty(flat.numel(), np.float32)
    host_starts, host_residual = as_numpy(starts), np.empty(residual.shape, np.int32)
    host_outliers = np.empty(outliers.numel(), np.uint32)
    host_quantiser.quantise(as_numpy(flat), host_starts, _STEP, _LIMIT, NONE, _MARGIN, host_q, host_outliers)
    host_predictor.fill_margins(host_q, edges, per_plane, 1, False)
    host_predictor.encode(host_q, edges, per_plane, 1, weights, 0, host_residual)
    host_quantiser.dequantise(host_q, host_starts, _STEP, _MARGIN, host_y)
    pairs = ((host_q, q), (host_residual, residual), (host_y, y))
    same = all(np.array_equal(on_host.view(np.int32), as_numpy(there).view(np.int32)) for on_host, there in pairs)
    calls: dict[str, tuple[Callable[[], Any], int]] = {
        name: (call, 2 * x.nbytes) for name, call in zip(LOSSY, (forward, backward), strict=True)
    }
    return Subject(x.nbytes, calls, same)


def wire_subject(x: torch.Tensor) -> Subject:
    """Return what makes and reads payloads of a flat float32 tensor, as it goes over a network."""
    import torch

    num, calls, same = x.numel(), {}, True
    y, host_x = torch.empty_like(x), x.cpu()
    for name, codec in WIRE_CODECS.items():
        rows = torch.zeros((_NUM_ROWS, codec.payload_bytes(num)), dtype=torch.uint8, device=x.device)
        for r in range(_NUM_ROWS):
            codec.encode(x, rows[r], r)
        payload, host = torch.empty_like(rows[0]), torch.empty(rows.shape[1], dtype=torch.uint8)
        codec.decode_sum(rows, y)
        on_host, host_y = rows.cpu(), torch.empty(num)
        with backend("numba"):
            codec.encode(host_x, host, 0)
            codec.decode_sum(on_host, host_y)
        same &= torch.equal(on_host[0], host) and torch.equal(y.cpu(), host_y)
        one, all_rows = x.nbytes + payload.numel(), x.nbytes + rows.numel()
        calls[f"{name}, encode"] = partial(codec.encode, x, payload, 0), one
        calls[f"{name}, decode"] = partial(codec.decode, rows[0], y), one
        calls[f"{name}, decode_sum of {_NUM_ROWS}"] = partial(codec.decode_sum, rows, y), all_rows
        if isinstance(codec, Groups):
            fused = partial(codec.decode_sum_encode, rows, payload, num, codec, 0)
            calls[f"{name}, decode_sum_encode of {_NUM_ROWS}"] = fused, rows.numel() + payload.numel()
    return Subject(x.nbytes, calls, same)


def run(subjects: dict[str, Subject], options: Options, device: torch.device) -> Record:
    """Measure every call of every subject beside a copy of as many bytes, and return the record."""
    import torch

    metrics: dict[str, Metric] = {}
    bars: list[Bar] = []
    for name, subject in subjects.items():
        source = torch.zeros(subject.num_bytes, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        calls = {"copy": (lambda a=target, b=source: a.copy_(b), 2 * subject.num_bytes), **subject.calls}
        seconds = _measure({what: call for what, (call, _) in calls.items()}, options.num_rounds, device)
        speeds = {what: [moved / 1e9 / s for s in seconds[what]] for what, (_, moved) in calls.items()}
        for what in calls:
            metrics[f"{name}/{what}"] = harness.metric(speeds[what], "GB/s")
        for what in subject.calls:
            pairs = zip(speeds[what], speeds["copy"], strict=True)
            share = harness.metric([ours / copy for ours, copy in pairs], "of the copy's bandwidth")
            metrics[f"{name}/{what}_share"] = share
            if what in BARS:
                bars.append(at_least(f"{name}: {what}, share of the copy's bandwidth", BARS[what], share))
        bars.append(at_least(f"{name}: same bytes as on the host", 1, exact(subject.same, "")))
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch", "triton"),
        seed=SEED,
        data={name: {"num_bytes": subject.num_bytes} for name, subject in subjects.items()},
        architecture=_describe(device),
        inference={"num_rounds": options.num_rounds, "clock": "CUDA events" if device.type == "cuda" else "wall"},
        metrics=metrics,
        bars=bars,
    )


def _measure(calls: dict[str, Callable[[], Any]], num_rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Run all calls alternately, after two rounds that are not timed, and return the seconds of each round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-2, num_rounds):
        for name in random.Random(number).sample(list(calls), len(calls)):
            taken = _seconds(calls[name], device)
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _describe(device: torch.device) -> dict[str, Any]:
    import torch

    if device.type != "cuda":
        return {"device": "CPU, Triton's interpreter"}
    found = torch.cuda.get_device_properties(device)
    return {
        "device": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_gib": round(found.total_memory / 2**30),
        "num_multiprocessors": found.multi_processor_count,
    }


def subjects(quick: bool, device: torch.device) -> dict[str, Subject]:
    """Return the inputs, made on the device: 512 Mi weights, 512^3 points and 128 Mi gradients, fewer where `quick`."""
    import torch

    generator = torch.Generator(device).manual_seed(SEED)
    num_layers, num, side = (4, 1 << 18, 64) if quick else (32, 1 << 24, 512)
    x = torch.empty(num_layers, num, dtype=torch.bfloat16, device=device)
    for k in range(num_layers):  # one width a layer, as initialisation and training leave them
        x[k] = torch.randn(num, generator=generator, device=device) * (0.01 * 1.06**k)
    steps = torch.randn(side, side, side, generator=generator, device=device) / math.sqrt(side)
    gradients = torch.randn(num * 8, generator=generator, device=device)
    field = steps.cumsum(0).cumsum(1).cumsum(2)
    return {
        f"bf16 weights, synthetic, {x.nbytes >> 20} MiB": weights_subject(x.reshape(-1)),
        f"float32 field, synthetic, {side}^3": field_subject(field),
        f"float32 gradients, normal, {gradients.nbytes >> 20} MiB": wire_subject(gradients),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says; without a CUDA device, say so."""
    options = harness.parse("gpu", __doc__, argv)
    import torch

    if not torch.cuda.is_available():
        print(f"no CUDA device: torch {torch.__version__} finds none, so no bandwidth was measured")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    record = run(subjects(options.quick, device), options, device)
    print(gpu_table(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
