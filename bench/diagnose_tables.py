"""Tables of `bench.diagnose_faults` and `bench.diagnose_scale`."""

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
