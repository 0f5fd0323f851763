"""Pages of the site that stand at the root of the repository: README, CONTRIBUTING, CHANGELOG. A hook of mkdocs."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages, with their links as the site needs them."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        text = (root / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=re.sub(r"(\]\(|src=\")([^)\"#]+)", _on_site, text)))
    return files


def _on_site(match: re.Match[str]) -> str:
    """Return the link with the path that its target has on the site."""
    opening, target = match.groups()
    return opening + PAGES.get(target, target.removeprefix("docs/"))
