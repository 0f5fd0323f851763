"""Tables of `bench.diagnose_faults`, `bench.diagnose_scale` and `bench.diagnose_peers`."""

from __future__ import annotations

import math

from bench.markdown import markdown
from trimtab.records import Metric, Record


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
    heads = ["", "jobs", "ours: rank alone named", "fr_trace: rank alone named", "ours: false alarms"]
    return "\n\n".join(
        [
            f"The same dumps given to both: {data['dumps']}. The faulty rank alone is named in {ours:.0%} of the "
            f"simulated faults by ours, in {peer:.0%} by `{data['peer']}`. Rows that begin with gloo are real jobs "
            f"({data['gloo']}).",
            markdown([*heads, "fr_trace: false alarms", "fr_trace: crashed"], rows),
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
