"""Bytes that contrastive losses send: FastCLIP beside the losses of OpenCLIP (gather with gradient) and SigLIP (ring).

Every rank is a node of a netlab, whose interfaces count: payload, headers and acknowledgements, forward and backward.
Gradients of parameters, which are exchanged alike whatever the loss, are not among them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import harness
from bench.harness import Options, exact
from trimtab.comm.netlab import Netlab
from trimtab.records import Bar, Metric, Record

NUM_RANKS = (2, 4, 8)
SIZES = ("16x512", "64x512", "256x512", "64x64")
"""Samples a rank, and columns of the features."""
CLAIMED = ("16x512", "64x512", "256x512")
LARGEST_SHARE = 0.52
NUM_STEPS, NUM_QUICK_STEPS = 20, 2

Sent = dict[str, dict[str, float]]
"""Size -> loss -> bytes that all ranks sent a step."""


def count(num_ranks: int, sizes: Sequence[str], num_steps: int) -> Sent:
    """Start the ranks, and return what they sent."""
    with tempfile.TemporaryDirectory() as folder, Netlab(nodes=num_ranks) as lab:
        out = Path(folder) / "sent.json"
        words = ["--sizes", *sizes, "--steps", str(num_steps), "--out", str(out)]
        lab.run([sys.executable, "-m", "bench.contrastive_wire_ranks", *words], timeout=600).check()
        return json.loads(out.read_text())


def run(options: Options, num_ranks: Sequence[int] = NUM_RANKS, sizes: Sequence[str] = SIZES) -> Record:
    """Put the record together."""
    num_steps = NUM_QUICK_STEPS if options.quick else NUM_STEPS
    metrics: dict[str, Metric] = {}
    bars: list[Bar] = []
    for num in num_ranks:
        for size, found in count(num, sizes, num_steps).items():
            rows, columns = size.split("x")
            subject = f"{num} ranks, {rows} pairs a rank, {columns} columns"
            for name, num_bytes in found.items():
                share = exact(num_bytes / found["OpenCLIP"], "of OpenCLIP's")
                metrics[f"{subject}/{name}/sent"] = exact(num_bytes, "B a step, all ranks")
                metrics[f"{subject}/{name}/share"] = share
                if size in CLAIMED and name == "FastCLIP v3":
                    what = f"FastCLIP v3, bytes of the loss beside OpenCLIP's: {subject}"
                    passed = share.value <= LARGEST_SHARE
                    bars.append(Bar(name=what, required=f"<= {LARGEST_SHARE}", reached=share.value, passed=passed))
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch",),
        encoding={
            "contenders": {
                "OpenCLIP": "features gathered, their gradients reduced",
                "SigLIP": "texts passed round the ranks, their gradients back",
                "FastCLIP": "features gathered once, beside them an index and 2 numbers a sample (v2: 4)",
            }
        },
        inference={"counted": f"bytes of gloo, means of {num_steps} steps"},
        metrics=metrics,
        bars=bars,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    options = harness.parse("contrastive_wire", __doc__, argv)
    record = run(options)
    for key, found in record.metrics.items():
        print(f"{key}: {found.value:g} {found.unit}")
    harness.write(record, options)


if __name__ == "__main__":
    main()
