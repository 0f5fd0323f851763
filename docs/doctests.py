"""Examples in docstrings as code blocks. An extension of griffe, which reads the docstrings for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.M)
OPTION = re.compile(r" *# doctest: .*")


class Doctests(griffe.Extension):
    """Fence the examples, which griffe itself expects under a heading of their own."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(
                lambda found: f"```pycon\n{OPTION.sub('', found[0])}\n```", obj.docstring.value
            )
