"""What a core encodes and decodes for the network: our kernels, a copy, the same in plain torch, and peers.

Speed counts the float32 elements on the side of the tensor, whatever goes over the wire: a fused sum of four payloads
counts one tensor, not four. Our kernels and the copy write into memory that exists; torch and peers allocate what they
return. In plain torch the noise comes from a generator of its own.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bench import harness
from bench.harness import Options, at_least
from bench.tables import wire_table
from trimtab import kernels
from trimtab.codecs.sdp4bit import Groups
from trimtab.codecs.taco import Float8
from trimtab.codecs.wire import WireCodec, noise_key
from trimtab.records import Bar, Metric, Record

if TYPE_CHECKING:
    from torch import Tensor

SEED = 0
NUM, NUM_QUICK = 1 << 23, 1 << 16
NUM_ROWS = 4
KEY = noise_key(SEED)
REQUIRED = 1.5
"""GB/s of float32 a core that 4 bits with a Hadamard transform of order 32 must reach."""

CODECS: dict[str, WireCodec] = {
    "trimtab 4 bits": Groups(bits=4, group=128),
    "trimtab 4 bits, Hadamard 32": Groups(bits=4, group=128, hadamard=32),
    "trimtab 4 bits, group 2048": Groups(bits=4, group=2048),
    "trimtab 8 bits": Groups(bits=8, group=128),
    "trimtab 8 bits, Hadamard 32": Groups(bits=8, group=128, hadamard=32),
    "trimtab 6 bits": Groups(bits=6, group=128),
    "trimtab e4m3, two scales, Hadamard 128": Float8(),
    "trimtab e4m3, one scale, Hadamard 128": Float8(scales=1),
    "trimtab e4m3, one scale": Float8(scales=1, hadamard=False),
    "trimtab e5m2, two scales, Hadamard 256": Float8(format="e5m2", group=256),
}
Calls = dict[str, Callable[[], Any]]


def codec_calls(codec: WireCodec, x: Tensor) -> Calls:
    """Return what a codec does to `x`, and to the payloads of four ranks."""
    import torch

    num = x.numel()
    payloads = torch.zeros(NUM_ROWS, codec.payload_bytes(num), dtype=torch.uint8)
    for r in range(NUM_ROWS):
        codec.encode(x, payloads[r], KEY + r)
    payload, y = payloads[0].clone(), torch.zeros(num)
    calls: Calls = {
        "encode": lambda: codec.encode(x, payload, KEY),
        "decode": lambda: codec.decode(payloads[0], y),
        f"decode_sum of {NUM_ROWS}": lambda: codec.decode_sum(payloads, y, 1 / NUM_ROWS),
    }
    if isinstance(codec, Groups) and codec.bits == 8:
        then = Groups(bits=4, group=128, hadamard=codec.hadamard)
        out = torch.zeros(then.payload_bytes(num), dtype=torch.uint8)
        calls[f"decode_sum_encode of {NUM_ROWS}"] = lambda: codec.decode_sum_encode(payloads, out, num, then, KEY)
    if isinstance(codec, Groups) and codec.group == 2048:
        words = x.to(torch.bfloat16)
        reference = words.clone()
        calls["encode_difference, bfloat16"] = lambda: codec.encode_difference(x, words, payload, KEY)
        calls["decode_add, bfloat16"] = lambda: codec.decode_add(payloads[0], reference)
    return calls


def torch_calls(x: Tensor) -> dict[str, Calls]:
    """Return the same in plain torch, and torch's own cast to float8."""
    import torch

    num, generator = x.numel(), torch.Generator().manual_seed(SEED)
    h = torch.ones(1, 1)
    while len(h) < 32:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])

    def encode(transform: bool) -> tuple[Tensor, Tensor]:
        z = (x.view(-1, 32) @ h if transform else x).view(-1, 128)
        scale = z.abs().amax(1, keepdim=True) / 7
        noise = torch.rand(z.shape, generator=generator)
        codes = (z / scale + noise).floor_().clamp_(-7, 7).add_(7).to(torch.uint8)
        return codes[:, :64] | codes[:, 64:] << 4, scale

    def decode(packed: Tensor, scale: Tensor, transform: bool) -> Tensor:
        codes = torch.cat([packed & 15, packed >> 4], 1)
        z = (codes.to(torch.float32) - 7) * scale
        return (z.view(-1, 32) @ h / 32).view(-1) if transform else z.view(-1)

    plain, transformed = encode(False), encode(True)
    float8, bfloat16, copy = x.to(torch.float8_e4m3fn), x.to(torch.bfloat16), torch.empty(num)

    def scaled_cast() -> tuple[Tensor, Tensor]:
        z = x.view(-1, 128)
        scale = z.abs().amax(1, keepdim=True) / 448
        return (z / scale).to(torch.float8_e4m3fn), scale

    cast, scale = scaled_cast()
    return {
        "copy": {"copy": lambda: copy.copy_(x)},
        "plain torch, 4 bits": {"encode": lambda: encode(False), "decode": lambda: decode(*plain, False)},
        "plain torch, 4 bits, Hadamard 32": {
            "encode": lambda: encode(True),
            "decode": lambda: decode(*transformed, True),
        },
        "plain torch, e4m3, one scale": {
            "encode": scaled_cast,
            "decode": lambda: (cast.to(torch.float32) * scale).view(-1),
        },
        "torch's cast to e4m3": {
            "encode": lambda: x.to(torch.float8_e4m3fn),
            "decode": lambda: float8.to(torch.float32),
        },
        "torch's cast to bfloat16": {
            "encode": lambda: x.to(torch.bfloat16),
            "decode": lambda: bfloat16.to(torch.float32),
        },
    }


def peer_calls(x: Tensor) -> tuple[dict[str, Calls], dict[str, str]]:
    """Return peers that can be imported, and why others cannot."""
    try:
        from bitsandbytes import functional
    except ImportError as error:
        return {}, {"bitsandbytes": str(error)}
    packed, state = functional.quantize_4bit(x, blocksize=128, quant_type="nf4")
    codes, blocks = functional.quantize_blockwise(x, blocksize=256)
    return {
        "bitsandbytes nf4": {
            "encode": lambda: functional.quantize_4bit(x, blocksize=128, quant_type="nf4"),
            "decode": lambda: functional.dequantize_4bit(packed, state),
        },
        "bitsandbytes 8-bit blocks": {
            "encode": lambda: functional.quantize_blockwise(x, blocksize=256),
            "decode": lambda: functional.dequantize_blockwise(codes, blocks),
        },
    }, {}


def run(x: Tensor, options: Options) -> Record:
    """Measure everything on one flat float32 tensor, alternately, and return the record."""
    import torch

    peers, failed = peer_calls(x)
    contenders = {name: codec_calls(codec, x) for name, codec in CODECS.items()} | torch_calls(x) | peers
    calls = {f"{name}/{what}": call for name, found in contenders.items() for what, call in found.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with kernels.threads(1):
            seconds = _measure(calls, options.num_rounds)
    finally:
        torch.set_num_threads(threads)
    metrics: dict[str, Metric] = {}
    for name, taken in seconds.items():
        metrics[name] = harness.metric([x.nbytes / 1e9 / s for s in taken], "GB/s")
        pairs = zip(taken, seconds["copy/copy"], strict=True)
        metrics[f"{name}_share"] = harness.metric([copy / ours for ours, copy in pairs], "of the copy's speed")
    for name, codec in CODECS.items():
        metrics[f"{name}/wire"] = harness.exact(codec.payload_bytes(x.numel()) / x.nbytes, "of the float32 bytes")
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch", *(("bitsandbytes",) if peers else ())),
        seed=SEED,
        data={"normal float32": {"num_elements": x.numel(), "num_bytes": x.nbytes}},
        encoding={"contenders": list(contenders), "failed": failed, "num_rows": NUM_ROWS},
        inference={"num_threads": 1, "num_rounds": options.num_rounds, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=_bars(metrics),
    )


def _bars(metrics: dict[str, Metric]) -> list[Bar]:
    return [
        at_least(f"{name}: {what}, GB/s of float32 a core", REQUIRED, metrics[f"{name}/{what}"])
        for name in ("trimtab 4 bits, Hadamard 32", "trimtab 4 bits", "trimtab e4m3, two scales, Hadamard 128")
        for what in ("encode", "decode")
    ]


def _measure(calls: Calls, num_rounds: int) -> dict[str, list[float]]:
    """Run all calls alternately, after a round that is not timed, and return the CPU seconds of each round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for number in range(-1, num_rounds):
            for name in random.Random(number).sample(list(calls), len(calls)):
                begin = time.process_time()
                calls[name]()
                taken = time.process_time() - begin
                if number >= 0:
                    seconds[name].append(taken)
    finally:
        gc.enable()
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("wire", __doc__, argv)
    import torch

    num = NUM_QUICK if options.quick else NUM
    record = run(torch.randn(num, generator=torch.Generator().manual_seed(SEED)), options)
    print(wire_table(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
