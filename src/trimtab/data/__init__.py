"""Feed training: every shuffle is known beforehand, so it is planned which rank reads, keeps and uses which sample.

SOLAR (PVLDB 16, 2022, arXiv 2211.00224). Importing this package loads neither PyTorch nor Numba.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Epoch": "plan",
    "Plan": "plan",
    "RankPlan": "rank",
    "Shuffle": "shuffle",
    "Step": "rank",
    "Tally": "tally",
}

__all__ = [*_HOMES]  # noqa: PLE0604 (the names are texts)

if TYPE_CHECKING:
    from trimtab.data.plan import Epoch as Epoch
    from trimtab.data.plan import Plan as Plan
    from trimtab.data.rank import RankPlan as RankPlan
    from trimtab.data.rank import Step as Step
    from trimtab.data.shuffle import Shuffle as Shuffle
    from trimtab.data.tally import Tally as Tally


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'trimtab.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"trimtab.data.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
