"""Tables of the benchmarks of `trimtab.diagnose`: faults, the probe's cost, scale, and PyTorch's analyzer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bench.markdown import markdown
from trimtab.records import Metric, Record

_MOST_NAMED = 20


def faults_table(record: Record) -> str:
    """Return how many simulated faults were recognised, a row a kind."""
    shape, metrics = record.data["ranks"], record.metrics

    def of(kind: str, what: str) -> str:
        found = metrics.get(f"{kind}/{what}")
        return "-" if found is None else f"{found.value:.0f} of {metrics[f'{kind}/jobs'].value:.0f}"

    rows = []
    for kind in dict.fromkeys(key.split("/")[0] for key in metrics):
        times = [m for key, m in metrics.items() if key.startswith(f"{kind}/verdict from")]
        row = [kind, of(kind, "right kind"), of(kind, "named"), of(kind, "false alarms")]
        rows.append([*row, _number(times[0]) if times else "-"])
    groups = " x ".join(f"{number} {axis}" for axis, number in shape.items())
    return "\n\n".join(
        [
            f"Simulated jobs of {math.prod(shape.values()):,} ranks ({groups} parallel), durations spread by "
            f"{record.data['jitter']:.0%}; a verdict is right when it names the one faulty rank and no other.",
            markdown(["", "right kind", "rank named", "false alarms", "verdict, CPU"], rows),
            "\n".join(f"- {kind}: {text}" for kind, text in record.data.items() if isinstance(text, str)),
        ]
    )


def peers_table(record: Record) -> str:
    """Return what CCL-D and PyTorch's analyzer find in the same dumps, a row a kind of fault."""
    metrics, data = record.metrics, record.data
    rows = []
    for kind in dict.fromkeys(key.split("/")[0] for key in metrics if key.endswith("/jobs")):
        jobs = f"{metrics[f'{kind}/jobs'].value:.0f}"
        named, false = "ours named", "ours false alarms"
        found = [metrics.get(f"{kind}/{what}") for what in (named, named.replace("ours", "peer"))]
        alarms = [metrics.get(f"{kind}/{what}") for what in (false, false.replace("ours", "peer"))]
        crashed = f"{metrics[f'{kind}/peer crashed'].value:.0f}"
        rows.append([kind, jobs, *("-" if m is None else f"{m.value:.0f}" for m in (*found, *alarms)), crashed])
    ours, peer = (metrics[f"faults/{who} named, share"].value for who in ("ours", "peer"))
    real = []
    for prefix, words in (
        ("gloo faults", "as gloo dumps them"),
        ("gloo faults, members filled in", "members filled in"),
    ):
        shares = [metrics.get(f"{prefix}/{who} named, share") for who in ("ours", "peer")]
        if all(shares):
            real.append("{:.0%} and {:.0%} {}".format(*(share.value for share in shares if share), words))
    more = f" Of these, ours and the peer name {'; '.join(real)}." if real else ""
    heads = ["", "jobs", "ours: rank alone named", "fr_trace: rank alone named", "ours: false alarms"]
    return "\n\n".join(
        [
            f"The same dumps given to both: {data['dumps']}. The faulty rank alone is named in {ours:.0%} of the "
            f"simulated faults by ours, in {peer:.0%} by `{data['peer']}`. Rows that begin with gloo are real jobs "
            f"({data['gloo']}).{more}",
            markdown([*heads, "fr_trace: false alarms", "fr_trace: crashed"], rows),
        ]
    )


def matrix_table(record: Record) -> str:
    """Return how many real faults were recognised, by fault and workload; then times, and the wrong ones."""
    metrics, data = record.metrics, record.data
    faults = list(dict.fromkeys(key.split("/")[0] for key in metrics if key.count("/") == 2))

    def cell(keys: Sequence[str]) -> str:
        found = [
            (metrics[f"{key}/right"].value, metrics[f"{key}/jobs"].value) for key in keys if f"{key}/jobs" in metrics
        ]
        return f"{sum(right for right, _ in found):.0f} / {sum(jobs for _, jobs in found):.0f}" if found else "-"

    rows = [
        [fault, *(cell([f"{fault}/{workload}"]) for workload in data["workloads"]),
         cell([f"{fault}/{workload}" for workload in data["workloads"]])]
        for fault in faults
    ]  # fmt: skip
    columns = [cell([f"{fault}/{workload}" for fault in faults]) for workload in data["workloads"]]
    rows.append(["all", *columns, cell(["all"])])
    ranks = ", ".join(map(str, data["ranks"]))
    parts = [
        f"Real gloo jobs on {ranks} ranks, {len(data['seeds'])} seeds, {data['hooks']} hooks, one fault each: verdicts "
        "that are right / jobs. A verdict is right when it has the kind and exactly the ranks, and comes after the "
        f"fault. A wait of {record.inference['hang_seconds']:g} s counts as a hang.",
        markdown(["", *data["workloads"], "all"], rows),
        "\n".join(_matrix_notes(record)),
    ]
    if data["wrong"]:
        num = len(data["wrong"])
        some = "" if num <= _MOST_NAMED else f", of which {_MOST_NAMED} are shown"
        parts.append(f"Wrong ({num}{some}), as fault, workload, ranks, seed and hooks: what the verdict says:")
        parts.append("\n".join(f"- {one}" for one in data["wrong"][:_MOST_NAMED]))
    return "\n\n".join(parts)


def _matrix_notes(record: Record) -> Iterator[str]:
    metrics = record.metrics
    alarms, quiet = (metrics[f"healthy/{what}"].value for what in ("false alarms", "jobs"))
    yield f"- false alarms: {alarms:.0f} of {quiet:.0f} jobs without a fault, beside a process that takes the processor"
    for key, words in (
        ("all/seconds from fault to verdict", "from the fault to the verdict"),
        ("all/look", "a look: reading what all ranks wrote, and the verdict"),
    ):
        found = metrics.get(key)
        if found is not None:
            longest = metrics.get(f"{key}, longest")
            more = "" if longest is None else f", at most {_number(longest)}"
            yield f"- {words}: {_number(found)} in the median, half of them {found.low:.3g} to {found.high:.3g}{more}"
    if missing := record.data["missing"]:
        yield f"- not run: {missing} jobs"


def cost_table(record: Record) -> str:
    """Return what the probe adds to each operation, a row an operation, a column a kind of hooks."""
    metrics, bare = record.metrics, "no probe"
    kinds = list(dict.fromkeys(key.split("/")[0] for key in metrics if not key.startswith(f"{bare}/")))
    names = [key.removeprefix(f"{bare}/") for key in metrics if key.startswith(f"{bare}/")]

    def cell(key: str, scale: float = 1) -> str:
        found = metrics[key]
        spread = "" if found.low is None else f" ({scale * found.low:.2f} to {scale * found.high:.2f})"
        return f"{scale * found.value:.2f}{spread}"

    rows = [[name, cell(f"{bare}/{name}"), *(cell(f"{kind}/{name}") for kind in kinds)] for name in names]
    share = next(key.split("/", 1)[1] for key in metrics if "/share of the time" in key)
    rows.append([f"{share}, %", "", *(cell(f"{kind}/{share}", 100) for kind in kinds)])
    return "\n\n".join(
        [
            "Microseconds of CPU time that the probe adds to a call in a loop: signature, call site, shared memory "
            f"and completion included ({record.data['operations']}). In brackets: half of the rounds. Last row: of "
            f"{', '.join(record.inference['paced'])} by turns, with work between them, the probe's thread included.",
            markdown(["", bare, *(f"{kind} hooks add" for kind in kinds)], rows),
        ]
    )


def scale_table(record: Record) -> str:
    """Return how fast records of all ranks are read and matched."""
    found = {key.removeprefix("records/"): metric for key, metric in record.metrics.items()}
    count = record.data["records"]
    rows = [[what, _number(metric)] for what, metric in found.items() if what != "number"]
    return "\n\n".join(
        [
            f"{found['number'].value / 1e6:.1f} million records in the rings of {count['num_ranks']:,} ranks, decoded "
            "and matched; dicts and sorting do the same work, the dicts on "
            f"{count['num_dict_ranks']} ranks.",
            markdown(["", ""], rows),
        ]
    )


def _number(found: Metric) -> str:
    return f"{found.value:.3g} {found.unit}"
