"""trimtab: shrink what is stored, sent, kept and computed, within a budget that is verified.

>>> import numpy as np, trimtab as tt
>>> x = np.linspace(0, 1, 1000, dtype="float32")
>>> y = tt.decompress(tt.compress(x, tt.Rel(1e-3)))
>>> bool(abs(x - y).max() <= 1e-3)
True
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Abs": "bounds",
    "Lossless": "bounds",
    "PSNR": "bounds",
    "PointwiseRel": "bounds",
    "Rel": "bounds",
    "Record": "records",
    "TrimtabError": "errors",
    "UsageError": "errors",
    "FormatError": "errors",
    "backend": "kernels",
    "threads": "kernels",
    "compress": "store",
    "decompress": "store",
    "load": "store",
    "save": "store",
}
_MODULES = ("bounds", "codecs", "comm", "compact", "errors", "train", "tune")
_ADAPTERS = ("dcp", "hf", "numcodecs", "zarr")  # each needs another library, so `import *` leaves them out

__all__ = [*_HOMES, *_MODULES]  # noqa: PLE0604 (the names are texts)

if TYPE_CHECKING:
    from trimtab import bounds as bounds
    from trimtab import codecs as codecs
    from trimtab import comm as comm
    from trimtab import compact as compact
    from trimtab import dcp as dcp
    from trimtab import errors as errors
    from trimtab import hf as hf
    from trimtab import numcodecs as numcodecs
    from trimtab import train as train
    from trimtab import tune as tune
    from trimtab import zarr as zarr
    from trimtab.bounds import PSNR as PSNR
    from trimtab.bounds import Abs as Abs
    from trimtab.bounds import Lossless as Lossless
    from trimtab.bounds import PointwiseRel as PointwiseRel
    from trimtab.bounds import Rel as Rel
    from trimtab.errors import FormatError as FormatError
    from trimtab.errors import TrimtabError as TrimtabError
    from trimtab.errors import UsageError as UsageError
    from trimtab.kernels import backend as backend
    from trimtab.kernels import threads as threads
    from trimtab.records import Record as Record
    from trimtab.store import compress as compress
    from trimtab.store import decompress as decompress
    from trimtab.store import load as load
    from trimtab.store import save as save


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import trimtab`` stays light (PEP 562)."""
    if name in (*_MODULES, *_ADAPTERS):
        return importlib.import_module(f"trimtab.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"trimtab.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ADAPTERS})
