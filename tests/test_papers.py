"""What papers.toml says about a system holds for the tree."""

from __future__ import annotations

import importlib
from pathlib import Path

import msgspec
import pytest

from trimtab.papers import Paper, load_papers

ROOT = Path(__file__).parents[1]
PAPERS = load_papers()
HERE = [paper for paper in PAPERS if paper.status != "planned"]
PLANNED = [paper for paper in PAPERS if paper.status == "planned"]


def test_all_systems_are_listed_once():
    assert [paper.number for paper in PAPERS] == list(range(1, 24))
    assert len({paper.name for paper in PAPERS}) == 23


def test_some_system_is_here():
    assert "ENEC" in [paper.name for paper in HERE]


@pytest.mark.parametrize("paper", HERE, ids=lambda paper: paper.name)
class TestHere:
    def test_import_path(self, paper):
        module, name = paper.import_path.split(":")
        assert name in dir(importlib.import_module(module))

    def test_room(self, paper):
        assert (ROOT / "src/trimtab" / paper.room).exists()

    def test_test_file(self, paper):
        assert "def test_" in (ROOT / paper.test).read_text()

    def test_record(self, paper):
        assert list(ROOT.glob(f"bench/results/*/{paper.record}.json"))


@pytest.mark.parametrize("paper", PLANNED, ids=lambda paper: paper.name)
def test_planned_system_is_not_here(paper):
    assert not (ROOT / "src/trimtab" / paper.room).exists(), "update its status in papers.toml"


@pytest.mark.parametrize(
    "change",
    [
        {"status": "preview"},
        {"status": "finished"},
        {"number": 0},
        {"name": ""},
        {"import_path": "os:getcwd"},
        {"x": 1},
    ],
    ids=str,
)
def test_bad_entries_are_refused(change):
    fields = {"number": 1, "name": "A", "what": "b", "venue": "2020", "room": "a.py", "status": "planned"}
    msgspec.convert(fields, type=Paper)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields | change, type=Paper)
