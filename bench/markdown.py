"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ours_bold(name: str) -> str:
    """Return a contender's name, ours in bold."""
    return f"**{name}**" if name.startswith("trimtab") else name
