"""Markdown tables from records: every figure in README and docs comes through here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.activation_tables import activation_tables, blocks_table
from bench.comm_tables import (
    contrastive_wire_table,
    embedding_tables,
    encoders_table,
    sharded_tables,
    tensor_tables,
    wire_table,
)
from bench.contrastive_tables import contrastive_tables
from bench.data_tables import solar_loading_tables, solar_plan_tables
from bench.diagnose_tables import cost_table, faults_table, matrix_table, peers_table, scale_table
from bench.markdown import markdown, ours_bold
from bench.read_tables import solar_reads_tables
from trimtab.records import Record

RESULTS = Path(__file__).parent / "results"
ASSETS = Path(__file__).parent.parent / "docs" / "assets"
RATE_DISTORTION_CHART = ASSETS / "rate-distortion.svg"
AESZ_CHART = ASSETS / "aesz.svg"
DEEPSZ_CHART = ASSETS / "deepsz.svg"

GIVEN = "trimtab ENEC, given outputs"
"""The contender that decodes into arrays which exist: shown, but not ranked with those that allocate."""

EACH_TENSOR = "each tensor's own"
"""The source of parameters that is a search for every tensor."""


@dataclass(frozen=True, slots=True)
class Column:
    """One of the numbers that a contender has, and how it is shown."""

    what: str
    head: str
    form: str
    unit: str = ""
    ranked: bool = True
    """Whether the largest number is set in bold."""


RATIO = Column("ratio", "ratio", ".3f")
FILE_RATIO = Column("file_ratio", "ratio of the file", ".4f")
ENCODE = Column("encode", "encode, GB/s", ".2f")
DECODE = Column("decode", "decode, GB/s", ".2f")
ENCODE_TIMES = Column("encode_times", "encode, trimtab over it", ".2f", "x", ranked=False)
DECODE_TIMES = Column("decode_times", "decode, trimtab over it", ".2f", "x", ranked=False)
LOSSY_ENCODE_TIMES = Column("encode_times", "encode, trimtab SZ fast over it", ".2f", "x", ranked=False)
LOSSY_DECODE_TIMES = Column("decode_times", "decode, trimtab SZ fast over it", ".2f", "x", ranked=False)
LOSSY_RATIO = Column("ratio", "ratio", ".2f")
ERROR = Column("error", "largest error, as a share of the bound", ".3f", ranked=False)
PSNR = Column("psnr", "PSNR, dB; a dash where nothing was lost", ".1f", ranked=False)


LOSSY_CAPTION = "Ratio under an error bound, given relative to the value range:"


def readme_benchmarks(results: Path = RESULTS) -> str:
    """Return the tables of the README: bfloat16 weights, and the ratios of fields."""
    return "\n\n".join(
        [
            section(
                "lossless", lambda record: _headed(record, [s for s in record.data if s.endswith("bf16")]), results
            ),
            section("lossy", lambda record: f"{LOSSY_CAPTION}\n\n{lossy_table(record, LOSSY_RATIO)}", results),
        ]
    )


def all_benchmarks(results: Path = RESULTS) -> str:
    """Return every table, and what must hold, as the body of a page."""
    parts = [
        "## What must hold",
        bars_table([record for name in TABLES for record in records(name, results)]),
    ]
    for name, (title, table) in TABLES.items():
        parts += [f"## {title}", section(name, table, results)]
    return "\n\n".join(parts)


def records(name: str, results: Path = RESULTS) -> list[Record]:
    """Return the committed records called `name`, one a machine, in the order of the machines' folders."""
    return [Record.load(path) for path in sorted(results.glob(f"*/{name}.json"))]


def section(name: str, table: Callable[[Record], str], results: Path = RESULTS) -> str:
    """Return `table` of every committed record called `name`, each under a line that says where it was measured."""
    found = records(name, results)
    if not found:
        return f"Not measured yet: run `python -m bench.{name}`."
    return "\n\n".join(f"{provenance(record)}\n\n{table(record)}" for record in found)


def provenance(record: Record) -> str:
    """Return one line: the machine, how it was measured, the versions, the revision, the command."""
    machine = record.machine
    num_threads = record.inference.get("num_threads")
    how = [f"{num_threads} thread" if num_threads == 1 else None]
    if "num_rounds" in record.inference:
        how.append(f"medians of {record.inference['num_rounds']} rounds")
    if "clock" in record.inference:
        how.append(f"clock: {record.inference['clock']}")
    if "counted" in record.inference:
        how.append(record.inference["counted"])
    versions = ", ".join(f"{package} {version}" for package, version in record.versions.items())
    where = f"{machine['processor']}, {machine['num_cores']} cores ({', '.join(machine['instruction_sets'])})"
    return (
        f"Measured {record.date} on {where}, {machine['system']}; {', '.join(filter(None, how))}. "
        f"`{record.command}`, {versions}, revision {record.revision}."
    )


def lossless_tables(record: Record) -> str:
    """Return one table for each model and dtype, and the ratios of whole files."""
    names = list(record.encoding["contenders"])
    rows = [
        [subject, *_cells(record, [f"{subject}/{name}" for name in names], FILE_RATIO)]
        for subject in record.data
        if f"{subject}/{names[0]}/file_ratio" in record.metrics
    ]
    table = markdown(["", *map(ours_bold, names)], rows)
    whole = (
        "**Whole files**: safetensors over packed file; to a peer's bytes the header of the safetensors file is added"
        f"\n\n{table}"
    )
    return f"{_headed(record, record.data, spread=True)}\n\n{whole}\n\n{_notes(record)}"


def delta_tables(record: Record) -> str:
    """Return one table for each model and dtype, and the ratios of whole files of ours."""
    names = [name for name in record.encoding["contenders"] if name.startswith("trimtab")]
    rows = [
        [
            subject,
            f"{100 * record.data[subject]['equal_elements']:.1f} %",
            *_cells(record, [f"{subject}/{name}" for name in names], FILE_RATIO),
        ]
        for subject in record.data
    ]
    files = markdown(["whole files", "elements equal to the base's", *map(ours_bold, names)], rows)
    return f"{_headed(record, record.data, spread=True)}\n\n{files}\n\n{_notes(record)}"


def _headed(record: Record, subjects: Iterable[str], *, spread: bool = False) -> str:
    return "\n\n".join(f"**{subject}**\n\n{lossless_table(record, subject, spread=spread)}" for subject in subjects)


def lossless_table(record: Record, subject: str, *, spread: bool = False) -> str:
    """Return ratio and speeds of every contender on one model and dtype, in the order of the record.

    With `spread`, what was measured in rounds has its quartiles in brackets.
    """
    names = [name for name in record.encoding["contenders"] if f"{subject}/{name}/ratio" in record.metrics]
    columns = (RATIO, ENCODE, DECODE, ENCODE_TIMES, DECODE_TIMES)
    cells = [_cells(record, [f"{subject}/{name}" for name in names], column, spread=spread) for column in columns]
    return markdown(["", *(column.head for column in columns)], zip(map(ours_bold, names), *cells, strict=True))


def lossy_tables(record: Record) -> str:
    """Return the tables of ratios, errors and speeds."""
    columns = (LOSSY_RATIO, ERROR, PSNR, ENCODE, DECODE, LOSSY_ENCODE_TIMES, LOSSY_DECODE_TIMES)
    tables = [f"**{column.head}**\n\n{lossy_table(record, column)}" for column in columns]
    return "\n\n".join([*tables, _notes(record)])


def lossy_table(record: Record, column: Column) -> str:
    """Return one of the numbers: a row a field and bound relative to its value range, a column a contender."""
    names = list(record.encoding["contenders"])
    rows = []
    for subject in dict.fromkeys(key.rsplit("/", 2)[0] for key in record.metrics):
        rows.append([subject, *_cells(record, [f"{subject}/{name}" for name in names], column)])
    return markdown(["", *map(ours_bold, names)], rows)


def rate_distortion_tables(record: Record) -> str:
    """Return the chart, where there is one, and a row a point of ours: its PSNR, its ratio, and the peers' there."""
    contenders = record.encoding["contenders"]
    ours = [name for name in contenders if name.startswith("trimtab")]
    peers = [name for name in contenders if name not in ours]
    metrics = record.metrics
    parts = []
    if RATE_DISTORTION_CHART.exists():
        parts.append(f"![PSNR against bits a value](assets/{RATE_DISTORTION_CHART.name})")
    for name in ours:
        rows = []
        for field in record.data:
            for bound in record.encoding["relative_bounds"]:
                key = f"{field}/{name}/{bound:.0e}"
                bits = [metrics.get(f"{key}/{what}") for what in ("bits", *(f"{peer}_bits" for peer in peers))]
                fewest = min(metric.value for metric in bits if metric)
                cells = [f"{m.value:.3f}" if m else "-" for m in bits]
                cells = [f"**{c}**" if m and m.value == fewest else c for m, c in zip(bits, cells, strict=True)]
                quality = metrics.get(f"{key}/psnr")
                rows.append([f"{field}, {bound:.0e}", f"{quality.value:.1f}" if quality else "no loss", *cells])
        heads = ["", "PSNR, dB", ours_bold(name), *(f"{peer} at this PSNR" for peer in peers)]
        parts.append(f"**{name}, bits a value**\n\n{markdown(heads, rows)}")
    return "\n\n".join([*parts, _notes(record)])


def aesz_tables(record: Record) -> str:
    """Return the chart, where there is one, the ratios with and without the model, and what else was looked at."""
    metrics, names = record.metrics, list(record.encoding["contenders"])
    parts = [f"![PSNR against bits a value](assets/{AESZ_CHART.name})"] if AESZ_CHART.exists() else []
    subjects = [(field, f"{bound:.0e}") for field in record.data for bound in record.encoding["relative_bounds"]]
    rows = [
        [f"{field}, {bound}", *_cells(record, [f"{field}/{name}/{bound}" for name in names], LOSSY_RATIO)]
        for field, bound in subjects
    ]
    parts.append(f"**Ratio, the model not counted**\n\n{markdown(['', *map(ours_bold, names)], rows)}")
    columns = ("ratio", "ratio_shared", "ratio_alone", "blocks")
    rows = []
    for field, bound in subjects:
        found = [metrics[f"{field}/trimtab AE-SZ/{bound}/{what}"] for what in columns]
        rival = metrics[f"{field}/trimtab SZ ratio/{bound}/ratio"]
        cells = [f"{m.value:.2f}" if m.unit == "x" else f"{m.value:.0f} %" for m in (rival, *found)]
        rows.append([f"{field}, {bound}", *cells])
    heads = [
        "",
        "SZ ratio",
        "AE-SZ, model not counted",
        "shared by 16 snapshots",
        "counted in full",
        "network's blocks",
    ]
    networks = "; ".join(
        f"{kind}: {network['bytes']} bytes" for kind, network in record.architecture["networks"].items()
    )
    title = f"**With the model** ({networks}; counted also where no block uses it), choice by bits"
    parts.append(f"{title}\n\n{markdown(heads, rows)}")
    rows = [
        [name, f"{metrics[key].value:.1f}", f"{metrics[f'ablation/{name}/model'].value:.0f}"]
        for key in metrics
        if key.startswith("ablation/") and key.endswith("/ratio")
        for name in [key.split("/")[1]]
    ]
    title = "**Waves at 2e-2 by block and latent size** (linear networks)"
    parts.append(f"{title}\n\n{markdown(['block, latents', 'ratio', 'bytes of the model'], rows)}")
    rows = []
    for kind in record.architecture["networks"]:
        for name in ("trimtab AE-SZ", "trimtab AE-SZ network", "trimtab SZ ratio"):
            speeds = [metrics[f"speed, {kind}/{name}/{phase}"].value for phase in ("encode", "decode")]
            rows.append([f"{kind}, {name}", *(f"{1000 * speed:.0f}" for speed in speeds)])
    parts.append(f"**Speed at 2e-2**\n\n{markdown(['', 'encode, MB/s', 'decode, MB/s'], rows)}")
    cells = {key.split("/")[1]: [] for key in metrics if key.startswith("cell/")}
    for key, metric in metrics.items():
        if key.startswith("cell/"):
            cells[key.split("/")[1]].append(f"{metric.value:.4f}")
    heads = ["size over the best single predictor's", "weights shared", "weights inline"]
    parts.append(markdown(heads, [[name, *values] for name, values in cells.items()]))
    return "\n\n".join([*parts, _notes(record)])


GWLZ_COLUMNS = (
    Column("base_psnr", "base, dB", ".2f"),
    Column("psnr", "with GWLZ", ".2f"),
    Column("base_at_bytes", "base at the same bytes", ".2f"),
    Column("gain", "gain", "+.2f"),
    Column("sz3_at_bytes", "sz3 at the same bytes", ".2f"),
    Column("overhead", "more bytes", ".2%"),
    Column("error", "largest error, as a share of the bound", ".3f"),
)


def gwlz_tables(record: Record) -> str:
    """Return what GWLZ gains: a row a field, bound and base; then the settings tried on the large field, and speeds."""
    names = list(record.encoding["contenders"])
    headline = record.encoding["headline"]
    bases = [name for name in names if f"{headline}/{name}/decode" in record.metrics]
    subjects = list(dict.fromkeys(key.rsplit("/", 2)[0] for key in record.metrics))
    heads = ["", *(column.head for column in GWLZ_COLUMNS)]
    cells = [[f"{s}, {name}", *_gwlz_row(record, f"{s}/{name}")] for s in subjects for name in bases]
    tried = [[name, *_gwlz_row(record, f"{headline}/{name}")] for name in names]
    speeds = [
        [name, *(f"{1000 * record.metrics[f'{headline}/{name}/{phase}'].value:.3g}" for phase in ("encode", "decode"))]
        for name in bases
    ]
    return "\n\n".join(
        [
            f"**Gain at equal bytes**; where nothing pays, what is packed is the base's\n\n{markdown(heads, cells)}",
            f"**Settings, {headline}**\n\n{markdown(heads, tried)}",
            f"**Speed, {headline}**\n\n{markdown(['', 'encode, MB/s', 'decode, MB/s'], speeds)}",
            _notes(record),
        ]
    )


def _gwlz_row(record: Record, key: str) -> list[str]:
    found = [(record.metrics.get(f"{key}/{column.what}"), column) for column in GWLZ_COLUMNS]
    return [f"{metric.value:{column.form}}" if metric else "-" for metric, column in found]


def deepsz_tables(record: Record) -> str:
    """Return the chart, where there is one, and for each network what it loses and takes, beside what others take."""
    parts = [f"![Ratio against loss of accuracy](assets/{DEEPSZ_CHART.name})"] if DEEPSZ_CHART.exists() else []
    return "\n\n".join(
        [*parts, *(_deepsz_network(record, name) for name in record.data["subjects"]), _decode_line(record)]
    )


def _deepsz_network(record: Record, name: str) -> str:
    def number(key: str, form: str = ".1f", unit: str = "") -> str:
        found = record.metrics.get(f"{name}/{key}")
        if found is None:
            return "-"
        spread = "" if found.low is None else f" ({found.low:{form}} to {found.high:{form}})"
        return f"{found.value:{form}}{unit}{spread}"

    budgets = dict.fromkeys(case["budget"] for case in record.data["subjects"][name]["cases"])
    rows = []
    for budget in budgets:
        key = f"{100 * budget:.1f} pt"
        drops = [
            number(f"{key}/{what}", ".2f") for what in ("check_drop_pruned", "test_drop_pruned", "check_drop_dense")
        ]
        rows.append([key, number(f"{key}/ratio"), number(f"{key}/linear_ratio"), *drops])
    heads = ["budget", "ratio of the file", "of linear layers", "lost, pt", "lost on test images", "lost to dense"]
    sure = ""
    if f"{name}/confident/cases" in record.metrics:
        sure = (
            f" Where budgets are asked to hold with a confidence of 95 %, they do on the test images in "
            f"{number('confident/cases_within_on_test', 'g')} of {number('confident/cases', 'g')} cases."
        )
    accuracy = ", ".join(
        f"{what} {number(f'accuracy/{what}_{split}', '.2f')} on the {split} split"
        for split in ("check", "test")
        for what in ("dense", "pruned")
    )
    rivals = [
        ["DeepSZ, 0.3 pt", number("rivals/ours"), number("rivals/ours_drop", ".2f"), "-"],
        [
            "SZ3 within the same bounds, byte gaps by zstd or xz",
            *_rival(number, "SZ3"),
            number("rivals/SZ3_times", ".2f"),
        ],
        ["DeepSZ, what Deep Compression loses", number("rivals/equal"), number("rivals/equal_drop", ".2f"), "-"],
        [
            "Deep Compression: 5-bit clusters, Huffman's code of them and of gaps",
            *_rival(number, "Deep Compression, Huffman"),
            number("rivals/Deep Compression, Huffman_times", ".2f"),
        ],
        [
            "the same, but the entropies of codes and gaps, without tables",
            *_rival(number, "Deep Compression"),
            number("rivals/Deep Compression_times", ".2f"),
        ],
        ["codec sparse, lossless", number("rivals/lossless"), "0", "-"],
        ["zstd, level 19, lossless", number("rivals/zstd"), "0", "-"],
    ]
    prefix = f"{name}/places/"
    places = [
        [key.removeprefix(prefix), f"{m.value:.0f}"] for key, m in record.metrics.items() if key.startswith(prefix)
    ]
    return "\n\n".join(
        [
            f"**{name}**, Fashion-MNIST, {record.data['subjects'][name]['num_seeds']} seeds: medians, quartiles in "
            f"brackets. Accuracy in %: {accuracy}.",
            markdown(heads, rows),
            f"The budget holds in {number('cases_within', 'g')} of {number('cases', 'g')} cases on the images that it"
            f" is checked on, in {number('cases_within_on_test', 'g')} on the test images, and in "
            f"{number('cases_within_against_dense', 'g')} where the loss is counted from the dense network.{sure}",
            markdown(["weights alone, biases aside", "ratio", "lost, pt", "its bytes over ours"], rivals),
            markdown(["where the weights are", "bytes"], places),
            f"A run takes {number('seconds', '.2f')} CPU seconds, {number('seconds_in_epochs', '.2f')} epochs of"
            f" training; a file is decoded at {number('decode', '.0f')} MB/s of weights.",
        ]
    )


def _rival(number: Callable[..., str], what: str) -> list[str]:
    return [number(f"rivals/{what}"), number(f"rivals/{what}_drop", ".2f")]


def _decode_line(record: Record) -> str:
    found = [(key, m) for key, m in record.metrics.items() if key.startswith("synthetic")]
    return "\n".join(f"{key.removesuffix('/decode')}: decoded at {m.value:.0f} MB/s." for key, m in found)


def scaling_table(record: Record) -> str:
    """Return what the second thread brings, a row an array."""
    heads, rows = [""], [[subject] for subject in record.data]
    for phase in ("encode", "decode"):
        heads += [f"{phase}, 1 thread, GB/s", "2 threads", "gain"]
        for row, subject in zip(rows, record.data, strict=True):
            row += [f"{record.metrics[f'{subject}/{name}/{phase}'].value:.2f}" for name in ("1 thread", "2 threads")]
            row.append(f"{record.metrics[f'{subject}/2 threads/{phase}_gain'].value:.2f}x")
    controls = [
        f"{key.removesuffix('/2 threads/gain')}: {metric.value:.2f}x"
        for key, metric in record.metrics.items()
        if key.startswith("control")
    ]
    return f"{markdown(heads, rows)}\n\nHashing data in the cache, for comparison: {'; '.join(controls)}."


def startup_table(record: Record) -> str:
    """Return the times of a start, a row a case."""
    rows = [[name, f"{m.value:.2f} s" if m.unit == "s" else f"{m.value:g}"] for name, m in record.metrics.items()]
    return markdown(["wall time of a fresh process", "median"], rows)


def transfer_tables(record: Record) -> str:
    """Return for every layout and dtype a row a model: its ratio with the parameters of each source, and the times."""
    parts = []
    for subject, found in record.encoding["parameters"].items():
        layout, dtype = subject.split(" ")
        models = [name.removesuffix(f" {dtype}") for name in record.data if name.endswith(f" {dtype}")]
        heads = ["", f"**{EACH_TENSOR}**", *(f"of {source}" for source in found)]
        heads += ["encode with the search, GB/s", "without", "search, microseconds a tensor"]
        table = markdown(heads, [_transfer_row(record, f"{subject}/{model}", model, list(found)) for model in models])
        values = "; ".join(
            f"{source} {', '.join(str(v) for k, v in params.items() if k not in ('layout', 'distances'))}"
            for source, params in found.items()
        )
        parts.append(
            f"**{layout.capitalize()}, {dtype}**: ratio by whose parameters\n\n{table}\n\nParameters: {values}."
        )
    claim = next(metric.claim for metric in record.metrics.values() if metric.claim)
    notes = [
        "- in brackets: against the parameters of the model itself, found on all its tensors together",
        "- where not all bytes fit, the other tensors have exponents that the parameters cannot map, a zero for "
        "instance, and take a search of their own",
        "- speeds are those of packing with each tensor's own parameters, searched for or known beforehand",
        f"- table IV: what the paper gives for large language models; beside it, the paper says: {claim}",
    ]
    return "\n\n".join([*parts, "\n".join(notes)])


def _transfer_row(record: Record, key: str, model: str, sources: Sequence[str]) -> list[str]:
    metrics = record.metrics
    row = [model]
    for source in (EACH_TENSOR, *sources):
        text = f"{metrics[f'{key}/{source}/ratio'].value:.4f}"
        if source != model:
            text += f" ({metrics[f'{key}/{source}/share'].value - 1:+.2%})"
        fitting = metrics.get(f"{key}/{source}/fitting")
        row.append(text if fitting is None or fitting.value == 1 else f"{text}, {fitting.value:.0%} of bytes fit")
    row += [f"{metrics[f'{key}/{EACH_TENSOR}/{what}'].value:.2f}" for what in ("encode", "encode_known")]
    search = metrics[f"{key}/{EACH_TENSOR}/search"]
    return [*row, f"{search.value:.0f} ({search.low:.0f}-{search.high:.0f})"]


def gpu_table(record: Record) -> str:
    """Return bandwidths on the device and their share of a copy's, a row a call."""
    rows = []
    for name in record.data:
        for key, metric in record.metrics.items():
            subject, what = key.split("/", 1)
            if subject == name and metric.unit == "GB/s":
                share = record.metrics.get(f"{key}_share")
                rows.append([name, what, f"{metric.value:.0f}", f"{share.value:.2f}" if share else "-"])
    heads = ["", "", "GB/s, read and written", "share of the copy"]
    return f"On one {record.architecture['device']}:\n\n{markdown(heads, rows)}"


def bars_table(found: Iterable[Record]) -> str:
    """Return what had to hold, and whether it does, over several records."""
    rows = [
        [bar.name.replace("|", "\\|"), bar.required, f"{bar.reached:.4g}", "yes" if bar.passed else "**no**"]
        for record in found
        for bar in record.bars
    ]
    return markdown(["", "required", "reached", "holds"], rows) if rows else "Not measured yet: run `make bench`."


TABLES: dict[str, tuple[str, Callable[[Record], str]]] = {
    "lossless": ("Model weights, lossless", lossless_tables),
    "delta": ("Tuned weights, against their base", delta_tables),
    "lossy": ("Fields, within an error bound", lossy_tables),
    "rate_distortion": ("Fields, size at equal PSNR", rate_distortion_tables),
    "aesz": ("AE-SZ, a trained predictor (synthetic series)", aesz_tables),
    "gwlz": ("Fields, with a learned enhancer", gwlz_tables),
    "scaling": ("A second thread", scaling_table),
    "transfer": ("Parameters of another model", transfer_tables),
    "startup": ("Start-up", startup_table),
    "deepsz": ("Pruned networks within an accuracy budget", deepsz_tables),
    "sharded": ("Sharded training over a slow link", sharded_tables),
    "wire": ("What goes over a network, a core", wire_table),
    "tensor_parallel": ("Tensor parallelism over a slow link", tensor_tables),
    "embedding": ("Recommendation models", embedding_tables),
    "encoders": ("Encoders of looked-up vectors, their costs", encoders_table),
    "contrastive": ("Contrastive training with small batches", contrastive_tables),
    "solar_plan": ("Feeding training: SOLAR's plan", solar_plan_tables),
    "solar_loading": ("Feeding training: a slow store", solar_loading_tables),
    "solar_reads": ("Feeding training: reading rows", solar_reads_tables),
    "diagnose_matrix": ("Diagnosis: real faults", matrix_table),
    "diagnose_faults": ("Diagnosis: simulated faults", faults_table),
    "diagnose_peers": ("Diagnosis: beside PyTorch's analyzer", peers_table),
    "diagnose_scale": ("Diagnosis: records of many ranks", scale_table),
    "diagnose_cost": ("Diagnosis: what the probe costs", cost_table),
    "contrastive_wire": ("What contrastive losses send", contrastive_wire_table),
    "blocks": ("The block coder of activations", blocks_table),
    "activations": ("Activations kept compressed", activation_tables),
    "gpu": ("On a GPU", gpu_table),
}
"""Benchmark -> title of its section, and its tables."""


def _cells(record: Record, subjects: Sequence[str], column: Column, *, spread: bool = False) -> list[str]:
    """Return one number for each ``subject/contender``, the best in bold; a dash where there is none."""
    texts = {}
    for subject in subjects:
        metric = record.metrics.get(f"{subject}/{column.what}")
        if metric is not None:
            texts[subject] = f"{metric.value:{column.form}}{column.unit}"
            if spread and metric.low is not None:
                texts[subject] += f" ({metric.low:{column.form}}-{metric.high:{column.form}})"
    ranked = [subject for subject in texts if column.ranked and not subject.endswith(GIVEN)]
    best = max(ranked, key=lambda subject: record.metrics[f"{subject}/{column.what}"].value, default=None)
    return [f"**{texts[s]}**" if s == best else texts.get(s, "-") for s in subjects]


def _notes(record: Record) -> str:
    """Say what each contender is, and which failed or refused what."""
    notes = [f"- {name}: {setting}" for name, setting in record.encoding["contenders"].items()]
    notes += [f"- not measured: {key}: {reason}" for key, reason in record.encoding["failed"].items()]
    notes += [f"- {reason}; such tensors are stored as they are" for reason in record.encoding.get("refused", [])]
    return "\n".join(notes)
