"""TACO on a 4-layer GPT, four tensor-parallel ranks: bytes, losses and times beside torch's own styles and bfloat16.

The runs are those of `bench.tensor_runs`, which keeps them: what is missing is run first, and that takes hours. A
byte-level GPT trains on the source of Python's standard library. Every rank is a node of a netlab; bytes are those of
its interface, headers and acknowledgements included, and payloads those that the meter counted. Times are those of a
link at which exact communication takes half of the step. The peers are float32 through torch's own styles, and
bfloat16 through ``DTensor.redistribute(forward_dtype=, backward_dtype=)``; gradients of q, k and v are summed before
they are sent in all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench import harness
from bench.harness import Options, at_least, exact, metric
from bench.tensor_runs import EXACT, EXACT_2D, NUM_RANKS, SCALES, TRAINED, half, loss_runs, step_runs, unshaped
from bench.tensor_ways import SDP4BIT, WAYS
from trimtab.records import Bar, Metric, Record

PAYLOADS = {"fp8": 0.54, "fp8-1": 0.52, "int8": 0.52}
"""Way -> its largest payload, as a share of bfloat16's."""
LOSSES = {"fp8": 0.003, "int8": 0.001, "2-D both": 0.005}
"""Way -> by how much its loss may differ from the exact one, as a share of that, the mean of the seeds."""
LEAST_SPEEDUP = 1.4

Found = Mapping[str, Sequence[Mapping[str, Any]]]


def run(scale: str, options: Options) -> Record:
    """Collect the runs of a scale, starting those that are missing, and return the record."""
    trained: dict[str, list[Mapping[str, Any]]] = {way: [] for way in TRAINED}
    for loss_run in loss_runs(scale):
        trained[loss_run.ways[0]].append(loss_run.results())
    timed = {step_run.ways[0]: step_run for step_run in step_runs(scale)}
    metrics = _losses(trained) | _payloads(trained)
    for first, step_run in timed.items():
        alone = unshaped(scale, first).results()["seconds"][first]
        metrics |= _steps(step_run.results(), first, statistics.median(alone))
    size = SCALES[scale].size
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch",),
        seed=0,
        data={"text": trained[EXACT][0]["text"], "num_rows": SCALES[scale].num_rows, "num_seeds": SCALES[scale].seeds},
        architecture={
            "num_parameters": trained[EXACT][0]["num_parameters"],
            "width": size.width,
            "num_blocks": size.num_blocks,
            "num_heads": size.num_heads,
            "context": size.context,
        },
        encoding={
            "ways": {way: WAYS[way].note for step_run in timed.values() for way in step_run.ways},
            "SDP4Bit": str(SDP4BIT),
        },
        optimization={
            "num_steps": SCALES[scale].num_steps,
            "learning_rate": SCALES[scale].learning_rate,
            "validation": {way: [result["validation"] for result in found] for way, found in trained.items()},
        },
        inference={
            "num_ranks": NUM_RANKS,
            "link": {first: half(scale, first) for first in timed},
            "clock": "wall seconds of a step between barriers, ways taking turns",
        },
        metrics=metrics,
        bars=_bars(metrics, trained),
    )


def _exact_of(way: str) -> str:
    return EXACT_2D if way.startswith("2-D") else EXACT


def _losses(trained: Found) -> dict[str, Metric]:
    metrics = {}
    for way, found in trained.items():
        metrics[f"{way}/validation"] = metric([result["validation"] for result in found], "nats/byte")
        pairs = zip(found, trained[_exact_of(way)], strict=True)
        changes = [result["validation"] / other["validation"] - 1 for result, other in pairs]
        metrics[f"{way}/change"] = metric(changes, "of the exact loss")
        metrics[f"{way}/mean_change"] = exact(statistics.fmean(changes), "of the exact loss")
    return metrics


def _payloads(trained: Found) -> dict[str, Metric]:
    metrics = {}
    for way, found in trained.items():
        operations = found[0]["report"].get("exchange", {}).get("operations", {}).values()
        if operations:
            ours, theirs = (sum(count[key] for count in operations) for key in ("sent_bytes", "exact_bytes"))
            metrics[f"{way}/payload"] = exact(2 * ours / theirs, "of bfloat16")
    return metrics


def _steps(found: Mapping[str, Any], first: str, alone: float) -> dict[str, Metric]:
    """Return what steps of ways that took turns sent, and how long they took; `alone` is that of computation."""
    metrics = {}
    seconds, sent = found["seconds"], found["sent_bytes"]
    metrics[f"{first}/communication"] = metric([1 - alone / value for value in seconds[first]], "of the step")
    for way, values in seconds.items():
        metrics[f"{way}/sent"] = metric(sent[way], "bytes/step and rank")
        metrics[f"{way}/saved"] = exact(statistics.median(sent[first]) / statistics.median(sent[way]), "x")
        metrics[f"{way}/step"] = metric([1e3 * value for value in values], "ms")
        pairs = zip(values, seconds[first], strict=True)
        metrics[f"{way}/speedup"] = metric([other / value for value, other in pairs], "x")
    return metrics


def _bars(metrics: Mapping[str, Metric], trained: Found) -> list[Bar]:
    bars = []
    for way, limit in PAYLOADS.items():
        share = metrics[f"{way}/payload"].value
        bars.append(
            Bar(name=f"{way}: payload beside bfloat16's", required=f"<= {limit}x", reached=share, passed=share <= limit)
        )
    for way, limit in LOSSES.items():
        change = metrics[f"{way}/mean_change"].value
        bars.append(
            Bar(
                name=f"{way}: loss beside the exact one, mean of the seeds",
                required=f"within {100 * limit:g} %",
                reached=change,
                passed=abs(change) <= limit,
            )
        )
    for way in ("fp8", "int8"):
        bars.append(at_least(f"{way}: speed beside float32", LEAST_SPEEDUP, metrics[f"{way}/speedup"], "x"))
    both, alone = (
        [metrics[f"2-D {what}/speedup"].value for what in whats] for whats in (("both",), ("TACO", "SDP4Bit"))
    )
    bars.append(
        Bar(
            name="TACO and SDP4Bit: speed beside the better of them alone",
            required="> 1x",
            reached=both[0] / max(alone),
            passed=both[0] > max(alone),
        )
    )
    alike = sum(result["identical"] for found in trained.values() for result in found)
    total = sum(map(len, trained.values()))
    bars.append(Bar(name="runs whose ranks stayed alike", required=f"{total}", reached=alike, passed=alike == total))
    return bars


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = harness.parse("tensor_parallel", __doc__, argv)
    record = run("small" if options.quick else "4 layers", options)
    for key, found in record.metrics.items():
        print(f"{key:32} {found.value:12.6g} {found.unit}")
    harness.write(record, options)


if __name__ == "__main__":
    main()
