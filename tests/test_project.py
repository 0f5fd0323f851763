"""The project around the code: examples run, links lead somewhere, pins are complete."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {page.name: re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S) for page in PAGES}


@pytest.mark.parametrize("page", [name for name, blocks in EXAMPLES.items() if blocks])
def test_examples_run(page, tmp_path, monkeypatch):
    """The Python blocks of a page run in order, as one session in an empty folder."""
    monkeypatch.chdir(tmp_path)
    session = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", session)  # classes look up their module
    for number, block in enumerate(EXAMPLES[page], 1):
        exec(compile(block, f"{page}, example {number}", "exec"), vars(session))


def test_readme_has_examples():
    assert EXAMPLES["README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text)
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    generated = {"index.md", "contributing.md", "changelog.md"}  # pages of the site made from files of the root
    assert set(missing) <= generated


def test_every_direct_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)]
    names = {re.match(r"[\w-]+", need)[0] for need in needs} - {"trimtab"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert names <= pins.keys()
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())
