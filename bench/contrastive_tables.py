"""Tables of what contrastive losses find."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.markdown import markdown
from trimtab.records import Record

CONTRASTIVE_CHART = Path(__file__).parent.parent / "docs" / "assets" / "contrastive.svg"
COLUMNS = {
    "recall": "mean of the six",
    "R@1 image to text": "R@1, text by image",
    "R@10 image to text": "R@10",
    "R@1 text to image": "R@1, image by text",
    "R@10 text to image": "R@10",
    "loss": "held-out loss, nats",
}
"""Metric -> its head."""


def contrastive_tables(record: Record) -> str:
    """Return the chart, where there is one, and for each regime a row a loss."""
    parts = []
    if CONTRASTIVE_CHART.exists():
        parts.append(f"![Held-out loss and recall by epoch](assets/{CONTRASTIVE_CHART.name})")
    parts.append(
        f"{record.data['pairs']}, a network of {record.architecture['num_parameters'] / 1e6:.1f} million parameters: "
        "means over seeds in %, standard deviations in brackets. The scale is small: the order of the losses is the "
        "claim. Held-out loss: the cross entropy of finding each other in a gallery, at the temperature of a grid that "
        "suits each loss best. Seeds won: those on which the mean recall is above both OpenCLIP's and SigLIP's."
    )
    parts += [_regime(record, name) for name in record.data["regimes"]]
    notes = [f"- {way}: {note}" for way, note in record.encoding["contenders"].items()]
    notes += [
        f"- {regime}, chosen of {len(record.optimization['recall_of_tried'][regime][way])} settings for {way}: "
        f"{_words(settings)}"
        for regime, chosen in record.optimization["settings"].items()
        for way, settings in chosen.items()
    ]
    return "\n\n".join([*parts, "\n".join(notes)])


def _regime(record: Record, name: str) -> str:
    regime = record.data["regimes"][name]
    ways = record.optimization["settings"][name]
    heads = ["", *COLUMNS.values(), "seeds won", "ms a step"]
    title = (
        f"**{name[0].upper()}{name[1:]}**: {regime['num_pairs']:,} pairs, {regime['epochs']} epochs, "
        f"{regime['num_seeds']} seeds; "
        f"{regime['num_test']:,} test pairs in galleries of {regime['gallery']:,}"
    )
    return f"{title}\n\n{markdown(heads, [_row(record, name, way, [*ways]) for way in ways])}"


def _row(record: Record, regime: str, way: str, ways: Sequence[str]) -> list[str]:
    metrics = record.metrics
    cells = []
    for what in COLUMNS:
        value, deviation = (metrics[f"{regime}/{way}/{key}"].value for key in (what, f"{what}, deviation"))
        others = [metrics[f"{regime}/{other}/{what}"].value for other in ways]
        form = ".3f" if what == "loss" else ".2f"
        text = f"{value:{form}} ({deviation:{form}})"
        cells.append(f"**{text}**" if value == (min if what == "loss" else max)(others) else text)
    wins = metrics.get(f"{regime}/{way}/wins")
    step = metrics[f"{regime}/{way}/step"].value
    return [way, *cells, f"{wins.value:g} {wins.unit}" if wins else "-", f"{step:.1f}"]


def _words(settings: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in settings.items())
