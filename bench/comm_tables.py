"""Tables of what crosses a network: codecs, sharded training, tensor parallelism, and recommendation models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.markdown import markdown, ours_bold
from trimtab.records import Metric, Record

SHARDED_CHART = Path(__file__).parent.parent / "docs" / "assets" / "sharded.svg"


def wire_table(record: Record) -> str:
    """Return what a core encodes and decodes for the network, a row a contender."""
    calls = list(dict.fromkeys(key.split("/")[1] for key, metric in record.metrics.items() if metric.unit == "GB/s"))
    calls = [call for call in calls if call != "copy"]
    rows = []
    for name in record.encoding["contenders"]:
        found = [record.metrics.get(f"{name}/{call}") for call in calls]
        wire = record.metrics.get(f"{name}/wire")
        if any(found):
            speeds = [f"{metric.value:.2f}" if metric else "-" for metric in found]
            rows.append([ours_bold(name), f"{wire.value:.3f}" if wire else "-", *speeds])
    copy = record.metrics["copy/copy"].value
    notes = [
        f"GB/s of float32 on the side of the tensor, one thread; a copy runs at {copy:.1f}.",
        *(f"{name} could not be run: {reason}." for name, reason in record.encoding["failed"].items()),
    ]
    return "\n\n".join([markdown(["", "bytes sent, of float32", *calls], rows), *notes])


def contrastive_wire_table(record: Record) -> str:
    """Return what each loss sends, as a share of what OpenCLIP's sends, a row for each number of ranks and size."""
    subjects = list(dict.fromkeys(key.split("/")[0] for key in record.metrics))
    names = list(dict.fromkeys(key.split("/")[1] for key in record.metrics))
    rows = [
        [
            subject,
            f"{record.metrics[f'{subject}/OpenCLIP/sent'].value / 1e6:.2f}",
            *(f"{record.metrics[f'{subject}/{name}/share'].value:.3f}" for name in names if name != "OpenCLIP"),
        ]
        for subject in subjects
    ]
    heads = ["", "OpenCLIP, MB a step, all ranks", *(f"{name}, of it" for name in names if name != "OpenCLIP")]
    notes = "\n".join(f"- {name}: {what}" for name, what in record.encoding["contenders"].items())
    counted = (
        "Bytes of the ranks' interfaces, for the features alone; gradients of parameters are the same for all losses."
    )
    return f"{counted}\n\n{markdown(heads, rows)}\n\n{notes}"


def sharded_tables(record: Record) -> str:
    """Return the losses beside the paper's, and for each way what it sends and how long a step takes at each rate."""
    shape, plan, rates = record.architecture, record.optimization, record.inference["rates"]
    chart = f"![Loss by step, and seconds a step by rate](assets/{SHARDED_CHART.name})"
    step_heads = [head for rate in rates for head in (f"seconds a step, {_rate(rate)}", "over SDP4Bit's")]
    return "\n\n".join(
        [
            *([chart] if SHARDED_CHART.exists() else []),
            f"A GPT of {shape['num_parameters'] / 1e6:.2f} million parameters on {shape['nodes']} nodes of "
            f"{shape['ranks_per_node']} ranks, {plan['steps']} steps of {plan['tokens_a_step']} bytes of the "
            f"{record.data['text']}.",
            f"**Validation loss**, in nats a byte, the mean of {plan['seeds']} seeds with the least and the largest; "
            "beside it the paper's Table 1: GPTs on the Pile, 80,000 steps, in nats a token",
            _sharded_losses(record),
            "**Bytes and seconds**: bytes are counted at the interface between the nodes; each way takes turns with "
            "SDP4Bit, and ratios are of turns",
            markdown(["", "sent by a node, MB a step", "over SDP4Bit's", *step_heads], _sharded_steps(record, rates)),
            "\n".join(f"- {way}: {note}" for way, note in record.encoding["contenders"].items()),
        ]
    )


def _sharded_losses(record: Record) -> str:
    paper = record.data["paper"]
    rows = []
    for way in record.data["curves"]:
        loss, over = (record.metrics.get(f"{what}/{way}") for what in ("loss", "over_exact"))
        theirs = [
            f"{losses[way]:.4f} ({losses[way] / losses['stock'] - 1:+.2%})" if way in losses else "-"
            for losses in paper.values()
        ]
        rows.append([way, f"{loss.value:.4f} ({loss.low:.4f}-{loss.high:.4f})", _signed(over), *theirs])
    return markdown(["", "loss", "over the exact one's", *(f"paper, {size}" for size in paper)], rows)


def _rate(rate: str) -> str:
    """Return ``100mbit`` as people write it."""
    return f"{rate[:-4]} {rate[-4].upper()}{rate[-3:]}/s"


def _signed(over: Metric | None) -> str:
    return "-" if over is None else f"{over.value:+.2f} % ({over.low:+.2f} to {over.high:+.2f})"


def _sharded_steps(record: Record, rates: Sequence[str]) -> Iterator[list[str]]:
    """Yield a row a way; a dash where it was not measured, and where it is SDP4Bit itself."""
    for way in record.encoding["contenders"]:
        keys = [f"sent/{way}", f"sent/{way}/times"]
        keys += [f"{rate}/{way}/{what}" for rate in rates for what in ("seconds", "times")]
        found = [record.metrics.get(key) for key in keys]
        if any(found):
            yield [way, *("-" if m is None else _spread(m) if m.unit == "x" else f"{m.value:.3g}" for m in found)]


def _spread(metric: Metric) -> str:
    return f"{metric.value:.2f}x ({metric.low:.2f}-{metric.high:.2f})"


def tensor_tables(record: Record) -> str:
    """Return for each way of tensor parallelism what it sends, its loss, and how fast a step is on a slow link."""
    shape, plan = record.architecture, record.optimization
    links = ", ".join(
        f"{rate.removesuffix('mbit')} Mbit/s ({first}: {record.metrics[f'{first}/communication'].value:.0%})"
        for first, rate in record.inference["link"].items()
    )
    metrics, rows = record.metrics, []
    for way in record.encoding["ways"]:
        sent, saved, payload = (metrics.get(f"{way}/{what}") for what in ("sent", "saved", "payload"))
        mean, change, speedup = (metrics.get(f"{way}/{what}") for what in ("mean_change", "change", "speedup"))
        rows.append(
            [
                way,
                f"{payload.value:.3f}" if payload else "-",
                f"{sent.value / 1e6:.2f}" if sent else "-",
                f"{saved.value:.2f}x" if saved else "-",
                f"{mean.value:+.2%} ({change.low:+.2%} to {change.high:+.2%})" if mean and change else "-",
                _spread(speedup) if speedup else "-",
            ]
        )
    heads = [
        "",
        "payload, of bfloat16's",
        "sent by a rank, MB a step",
        "fewer than exact",
        "loss beside exact",
        "speed",
    ]
    return "\n\n".join(
        [
            f"A GPT of {shape['num_blocks']} blocks, {shape['num_parameters'] / 1e6:.2f} million parameters, on "
            f"{record.inference['num_ranks']} ranks, each a node; {plan['num_steps']} steps, "
            f"{record.data['num_seeds']} seeds, {record.data['text']}. Bytes are the "
            "interface's; speeds are those of a step beside the exact way, on links whose rate makes exact "
            f"communication as long as computation were they apart; its share of the step was {links}. The scale is "
            "small: the order of the ways is the claim.",
            markdown(heads, rows),
            "\n".join(f"- {way}: {note}" for way, note in record.encoding["ways"].items()),
        ]
    )


def embedding_tables(record: Record) -> str:
    """Return what looked-up vectors take and do to the score, how fast they are coded, and what a step gains."""
    metrics = record.metrics

    def number(key: str, form: str, unit: str = "") -> str:
        found = metrics.get(key)
        return "-" if found is None else f"{found.value:{form}}{unit}"

    rates = list(dict.fromkeys(key.split("/")[0] for key in metrics if key.endswith("exact/share")))
    learnt = [way for way in record.encoding["ways"] if f"{way}/area" in metrics]
    trained = [
        [
            way,
            number(f"{way}/ratio", ".1f"),
            number(f"{way}/vectors/times int8", ".2f", "x"),
            number(f"{way}/gradients/ratio", ".2f"),
            number(f"{way}/area", ".4f"),
            number(f"{way}/mean area beside exact", "+.5f"),
            number(f"{way}/mean distance of area to exact", ".5f"),
            *(number(f"{rate}/{way}/times exact", ".2f", "x") for rate in rates),
        ]
        for way in learnt
    ]
    encoders = list(dict.fromkeys(key.split("/")[1] for key in metrics if key.endswith("encode and decode")))
    subjects = list(dict.fromkeys(key.split("/")[0] for key in metrics if key.endswith("encode and decode")))
    whats = ("ratio", "encode and decode")
    coded = [
        [
            encoder,
            *(number(f"{s}/{encoder}/{what}", ".2f") for s in subjects for what in whats),
        ]
        for encoder in encoders
    ]
    ranks, samples = record.inference["ranks"], record.inference["samples"]
    shares = ", ".join(f"{number(f'{rate}/exact/share', '.0%')} at {_rate(rate)}" for rate in rates) or "not timed"
    coded_heads = [f"{subject}: {what}" for subject in subjects for what in ("ratio", "encode and decode, GB/s")]
    return "\n\n".join(
        [
            f"Synthetic clicks, a DLRM whose tables have {', '.join(map(str, record.data['rows']))} rows of "
            f"{record.architecture['columns']} columns, {ranks} ranks, {samples} samples a rank, "
            f"{record.optimization['steps']} steps, {record.data['seeds']} seeds; {record.inference['training']}.",
            "**Bytes, score and speed.** Ratios are to float32: of vectors for every sample, of gradients for every "
            "id once. int8 asks for each id once, too, and sends its vector in 8 bits an element. Scores vary from "
            "seed to seed, and with any rounding: the mean change of the seeds is the claim, and the mean distance "
            "of int8 tells how far runs part in any case. Speeds are those of a step on four ranks, each a node, "
            f"beside an exact one, of which the exchange is {shares}.",
            markdown(
                [
                    "",
                    "vectors: ratio",
                    "vectors: fewer bytes than int8",
                    "gradients: ratio",
                    "area under the curve",
                    "beside exact, mean",
                    "mean distance",
                    *(f"speed, {_rate(rate)}" for rate in rates),
                ],
                trained,
            ),
            "**Encoders**, one thread",
            markdown(["", *coded_heads], coded),
        ]
    )


def encoders_table(record: Record) -> str:
    """Return the costs that are fitted to the time of each encoder, and how far they miss it."""
    costs = [key.split("/")[1] for key, metric in record.metrics.items() if metric.unit == "ns"]
    rows = []
    for encoder in record.encoding["encoders"]:
        values = [f"{record.metrics[f'{encoder}/{cost}'].value:.3g}" for cost in dict.fromkeys(costs)]
        error = record.metrics[f"{encoder}/error"]
        rows.append([encoder, *values, f"{error.value:.0%} ({error.low:.0%}-{error.high:.0%})"])
    heads = ["ns of a core", "a slice", "a row", "an element", "an element that is held", "error of the sum"]
    return "\n\n".join(
        [
            "Slices of normal elements, {rows} rows of {columns} columns, of which {different} are different, with "
            "limits of {limits} of the range.".format(**{k: ", ".join(map(str, v)) for k, v in record.data.items()}),
            markdown(heads, rows),
        ]
    )
