"""Feed training: every shuffle is known beforehand, so it is planned which rank reads, keeps and uses which sample.

SOLAR (PVLDB 16, 2022, arXiv 2211.00224). Importing this package loads neither PyTorch nor Numba.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "BatchSampler": "batch_sampler",
    "Costs": "reading",
    "Epoch": "plan",
    "Field": "store",
    "HDF5": "hdf5",
    "MapStore": "mapped",
    "Memmap": "memmap",
    "open_store": "store",
    "Plan": "plan",
    "RankPlan": "rank",
    "sample_bytes": "store",
    "Shuffle": "shuffle",
    "SOLAR": "loader",
    "Step": "rank",
    "Store": "store",
    "Tally": "tally",
    "Throttle": "throttle",
    "Zarr": "zarr",
}

__all__ = [*_HOMES]  # noqa: PLE0604 (the names are texts)

if TYPE_CHECKING:
    from trimtab.data.batch_sampler import BatchSampler as BatchSampler
    from trimtab.data.hdf5 import HDF5 as HDF5
    from trimtab.data.loader import SOLAR as SOLAR
    from trimtab.data.mapped import MapStore as MapStore
    from trimtab.data.memmap import Memmap as Memmap
    from trimtab.data.plan import Epoch as Epoch
    from trimtab.data.plan import Plan as Plan
    from trimtab.data.rank import RankPlan as RankPlan
    from trimtab.data.rank import Step as Step
    from trimtab.data.reading import Costs as Costs
    from trimtab.data.shuffle import Shuffle as Shuffle
    from trimtab.data.store import Field as Field
    from trimtab.data.store import Store as Store
    from trimtab.data.store import open_store as open_store
    from trimtab.data.store import sample_bytes as sample_bytes
    from trimtab.data.tally import Tally as Tally
    from trimtab.data.throttle import Throttle as Throttle
    from trimtab.data.zarr import Zarr as Zarr


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
