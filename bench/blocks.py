"""The block coder of activations: bits a value and speed on normal elements and rectified ones, beside others.

Ours is measured with dither and without. Elements are drawn from a seed; bounds are parts of their standard deviation
before rectifying, as coarse as training bears. Others: SZ within the same bound, 4-bit codes with stochastic rounding
and a scale for each 128 elements, which promise no bound, bfloat16, and a copy. All allocate what they return.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import harness
from bench.activation_tables import blocks_table
from bench.harness import Contender, Options, at_least, exact
from trimtab import kernels
from trimtab.bounds import Abs
from trimtab.codecs import SZ, Blocks, Codec
from trimtab.codecs.sdp4bit import Groups
from trimtab.records import Bar, Record

SEED = 0
NUM, NUM_QUICK = 1 << 23, 1 << 16
OURS, DITHERED = "trimtab Blocks", "trimtab Blocks, dithered"
ENCODE, DECODE = 2.5, 3.0
"""GB/s of float32 a core that must be reached."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Normal elements, `zeros` of them rectified; the bound is a `part` of their deviation."""

    name: str
    zeros: float
    part: float
    most_bits: float | None = None
    """A value may take so many, all counted."""

    def make(self, num: int) -> np.ndarray:
        x = np.random.default_rng(SEED).standard_normal(num, dtype=np.float32)
        return np.maximum(x - np.quantile(x, self.zeros).astype(np.float32), 0) if self.zeros else x


SUBJECTS = (
    Subject("normal, a quarter", zeros=0, part=0.25, most_bits=3.3),
    Subject("57 % zeros, a quarter", zeros=0.57, part=0.25, most_bits=2.2),
    Subject("57 % zeros, an eighth", zeros=0.57, part=0.125),
    Subject("normal, a sixteenth", zeros=0, part=0.0625),
)


def contenders(x: np.ndarray, bound: Abs) -> Iterator[tuple[Contender, float]]:
    """Yield what encodes and decodes `x`, and the bits that it takes a value."""
    import torch

    codecs: dict[str, Codec] = {OURS: Blocks(), DITHERED: Blocks(dither=True), "trimtab SZ, fast": SZ(level="fast")}
    for name, codec in codecs.items():
        contender = Contender(name, lambda codec=codec: codec.encode(x, bound), codec.decode)
        yield contender, 8 * codec.encode(x, bound).num_bytes / x.size
    tensor, groups = torch.from_numpy(x), Groups(bits=4, group=128, stochastic=True)
    num_bytes = groups.payload_bytes(x.size)

    def encode() -> Any:
        payload = torch.empty(num_bytes, dtype=torch.uint8)
        groups.encode(tensor, payload, SEED)
        return payload

    def decode(payload: Any) -> Any:
        y = torch.empty(x.size)
        groups.decode(payload, y)
        return y

    yield Contender("4 bits, stochastic", encode, decode), 8 * num_bytes / x.size
    yield Contender("bfloat16", lambda: tensor.to(torch.bfloat16), lambda y: y.to(torch.float32)), 16.0
    yield Contender("copy", tensor.clone, lambda y: y.clone()), 32.0


def run(options: Options) -> Record:
    """Measure everything and return the record."""
    import torch

    metrics, bars = {}, []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with kernels.threads(1):
        for subject in SUBJECTS:
            x = subject.make(NUM_QUICK if options.quick else NUM)
            found = list(contenders(x, Abs(subject.part)))
            timings = harness.measure([contender for contender, _ in found], options.num_rounds)
            metrics |= harness.speeds(subject.name, timings, x.nbytes, OURS)
            metrics |= {f"{subject.name}/{c.name}/bits": exact(bits, "bits a value") for c, bits in found}
            for what, least in (("encode", ENCODE), ("decode", DECODE)):
                for way, dithered in ((OURS, ""), (DITHERED, " dithered")):
                    reached = metrics[f"{subject.name}/{way}/{what}"]
                    bars.append(at_least(f"blocks: {what}{dithered}, {subject.name}", least, reached, " GB/s"))
            if subject.most_bits is not None:
                bits = metrics[f"{subject.name}/{OURS}/bits"].value
                required = f"<= {subject.most_bits:g}"
                name = f"blocks: bits a value, {subject.name}"
                bars.append(Bar(name=name, required=required, reached=bits, passed=bits <= subject.most_bits))
    torch.set_num_threads(threads)
    return Record.new(
        options.name,
        command=options.command,
        packages=("numpy", "numba", "torch"),
        seed=SEED,
        data={"num_elements": NUM_QUICK if options.quick else NUM, "subjects": [subject.name for subject in SUBJECTS]},
        architecture={},
        encoding={"bounds": {subject.name: subject.part for subject in SUBJECTS}},
        optimization={"num_rounds": options.num_rounds},
        inference={"num_threads": 1, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=bars,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = harness.parse("blocks", __doc__, argv)
    record = run(options)
    print(blocks_table(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
