"""The published systems that trimtab sets out to offer, and how far each one is.

The list itself is ``papers.toml``: paper, room in this package, status, test, benchmark record, differences.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Annotated, Literal

import msgspec

Text = Annotated[str, msgspec.Meta(min_length=1)]

Status = Literal["planned", "preview", "stable"]
"""planned: not written. preview: works and is tested, may still change. stable: its interface is kept."""


class Paper(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One system. `import_path`, `test` and `record` are there from the status preview on."""

    number: Annotated[int, msgspec.Meta(ge=1)]
    name: Text
    what: Text
    venue: Text
    room: Text
    status: Status
    title: Text | None = None
    import_path: Annotated[str, msgspec.Meta(pattern=r"^trimtab[\w.]*:\w+$")] | None = None
    test: Text | None = None
    record: Text | None = None
    differences: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        if self.status != "planned" and not (self.import_path and self.test and self.record):
            raise ValueError(f"{self.name} is {self.status}, so it needs import_path, test and record")


class _Papers(msgspec.Struct, forbid_unknown_fields=True):
    paper: tuple[Paper, ...]


def load_papers() -> list[Paper]:
    """Return all systems in the order of their numbers."""
    text = resources.files("trimtab").joinpath("papers.toml").read_text(encoding="utf-8")
    papers = msgspec.convert(tomllib.loads(text), type=_Papers).paper
    return sorted(papers, key=lambda paper: paper.number)
