"""Tables of `bench.activations`: bytes and accuracy, gradient errors, times, memory and batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.markdown import markdown, ours_bold
from trimtab.records import Metric, Record

ASSETS = Path(__file__).parent.parent / "docs" / "assets"
MEMORY_CHART, ACCURACY_CHART = ASSETS / "activation-memory.svg", ASSETS / "activation-accuracy.svg"


def activation_tables(record: Record) -> str:
    """Return the table in the shape of the paper's, and what else was measured."""
    plan, scales = record.optimization, record.architecture["scales"]
    networks = ", ".join(
        f"{name} with {count:,} parameters" for name, count in record.architecture["num_parameters"].items()
    )
    paper = record.data["paper"]
    return "\n\n".join(
        [
            *([pictures()] if pictures() else []),
            f"{networks}; {plan['num_images']:,} images of {record.data['images']}, {plan['num_epochs']} epochs, "
            f"batches of {scales['accuracy']['batch']}, {record.data['num_seeds']} seeds, {plan['num_tested']:,} test "
            "images. The scale is small: the order of the ways is the claim. "
            f"The paper: {paper['COMET']}, {paper['beside']}, with little or no loss of accuracy.",
            "**Bytes and accuracy.** Ratios are over all that is kept between forward and backward, parameters aside; "
            "accuracies are means over the seeds, with the standard error of the difference to exact, seed by seed.",
            markdown(
                ["", "", "ratio", "beside 4 bits", "beside bfloat16", "accuracy, %", "beside exact, pt"],
                list(_sizes(record)),
            ),
            f"**Times** of a step, ways taking turns; batches of {scales['steps']['batch']}.",
            markdown(["", "", "ms", "beside exact", "beside exact, CPU"], list(_times(record))),
            "**Memory** that is resident at the peak of a step, above what is resident before it; networks "
            f"{scales['memory']['width']} wide, batches of {scales['memory']['batch']}. It counts what a layer needs "
            "while it runs too, which no way of keeping activations changes.",
            markdown(["", "", "grows by, MB", "less than exact", "the whole process, MB"], list(_memory(record))),
            "**Noise of gradients**, measured over predicted standard deviation: own is that of the error in the "
            "layer's own input, all else being exact; in a whole step, errors of BatchNorm's gradient come from the "
            "layers behind.",
            markdown(["", "", "layers", "own, least", "own, most", "whole step, most"], list(_noise(record))),
            "**The largest batch** that keeps at most 16 MiB, and images a second at it.",
            markdown(
                ["", "", "images", "of the budget", "with 5 % more images", "images/s", "beside exact"],
                list(_batches(record)),
            ),
            "\n".join(f"- {way}: {note}" for way, note in record.encoding["ways"].items()),
        ]
    )


def blocks_table(record: Record) -> str:
    """Return what a core packs and unpacks of activations, a row a contender."""
    rows = []
    for subject in record.data["subjects"]:
        for key in [key for key in record.metrics if key.startswith(f"{subject}/") and key.endswith("/bits")]:
            name = key.split("/")[-2]
            bits, encode, decode = (record.metrics[f"{subject}/{name}/{what}"] for what in ("bits", "encode", "decode"))
            rows.append([subject, ours_bold(name), f"{bits.value:.2f}", f"{encode.value:.2f}", f"{decode.value:.2f}"])
    return "\n\n".join(
        [
            f"{record.data['num_elements']:,} elements, drawn from a seed; bounds are parts of their deviation before "
            "rectifying. Speeds are GB/s of float32, one thread, with the memory of the results. 4 bits and bfloat16 "
            "promise no bound.",
            markdown(["", "", "bits a value", "encode", "decode"], rows),
        ]
    )


def pictures() -> str:
    """Return the charts that are there, as a page shows them."""
    return "\n\n".join(f"![{text}](assets/{path.name})" for text, path in _CHARTS.items() if path.exists())


_CHARTS = {
    "Resident memory over a step, in several ways of keeping activations": MEMORY_CHART,
    "Accuracy against ratio": ACCURACY_CHART,
}


def _sizes(record: Record) -> Iterator[list[str]]:
    for network, found in record.optimization["accuracies"].items():
        for way, scores in found.items():
            ratio, smaller, half, mean, change, error = (
                record.metrics.get(f"{network}/{way}/{what}")
                for what in (
                    "ratio",
                    "smaller than 4 bits",
                    "smaller than bfloat16",
                    "mean accuracy",
                    "mean beside exact",
                    "error beside exact",
                )
            )
            beside = f"{change.value:+.2f} ± {error.value:.2f}" if change and error else "-"
            if change and len(scores) < record.data["num_seeds"]:
                beside = f"{change.value:+.2f}, one seed"
            score = f"{mean.value:.2f}" if mean else "-"
            yield [network, way, _number(ratio, ".1f"), _number(smaller), _number(half), score, beside]


def _times(record: Record) -> Iterator[list[str]]:
    for key, found in record.metrics.items():
        if key.endswith("/step"):
            subject, way, _ = key.split("/")
            times, cpu = (record.metrics[f"{subject}/{way}/{what}"] for what in ("times", "cpu_times"))
            yield [subject, way, f"{found.value:.0f}", _spread(times), _spread(cpu)]


def _memory(record: Record) -> Iterator[list[str]]:
    for key, found in record.metrics.items():
        if key.endswith("/grown"):
            _, network, way, _ = key.split("/")
            less, peak = (record.metrics[f"memory/{network}/{way}/{what}"] for what in ("less", "peak"))
            yield [network, way, f"{found.value:.0f}", f"{less.value:.2f}x", f"{peak.value:.0f}"]


def _noise(record: Record) -> Iterator[list[str]]:
    subjects: dict[tuple[str, str], dict[str, list[float]]] = {}
    for key, found in record.metrics.items():
        if key.startswith("noise/"):
            _, network, way, _, what = key.split("/")
            subjects.setdefault((network, way), {}).setdefault(what, []).append(found.value)
    for (network, way), ratios in subjects.items():
        own, whole = ratios["own"], ratios["whole step"]
        yield [network, way, f"{len(own)}", f"{min(own):.2f}", f"{max(own):.2f}", f"{max(whole):.2f}"]


def _batches(record: Record) -> Iterator[list[str]]:
    for key, found in record.metrics.items():
        if key.startswith("batch/") and key.endswith("/images"):
            _, network, way, _ = key.split("/")
            whats = ("of the budget", "of the budget, 5 % more images", "speed", "faster")
            within, more, speed, faster = (record.metrics[f"batch/{network}/{way}/{what}"] for what in whats)
            yield [
                network,
                way,
                f"{found.value:.0f}",
                f"{within.value:.3f}",
                f"{more.value:.3f}",
                f"{speed.value:.0f}",
                _spread(faster),
            ]


def _number(found: Metric | None, form: str = ".2f") -> str:
    return "-" if found is None else f"{found.value:{form}}x"


def _spread(found: Metric) -> str:
    return f"{found.value:.2f}x ({found.low:.2f}-{found.high:.2f})"
