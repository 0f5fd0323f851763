"""Train with less memory and less traffic.

Importing this package loads no PyTorch; using one of its names does, settings aside.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "COMET": "activations",
    "BatchChoice": "batch",
    "largest_batch": "batch",
}

__all__ = [*_HOMES]  # noqa: PLE0604 (the names are texts)

if TYPE_CHECKING:
    from trimtab.train.activations import COMET as COMET
    from trimtab.train.batch import BatchChoice as BatchChoice
    from trimtab.train.batch import largest_batch as largest_batch


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'trimtab.train' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"trimtab.train.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
