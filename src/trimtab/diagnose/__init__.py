"""Which rank makes a distributed job hang or slow down, and how: CCL-D (PPoPP 2026, arXiv 2605.04478).

Every rank keeps a small file about its collectives (`frame`), which its `Probe` writes; `diagnose` reads the files of
all ranks, or Flight Recorder dumps (`flight`), and returns one `Verdict`. A `Watcher` adds what the host says about the
processes. `inject` makes a rank of a real job fail, `simulate` makes jobs of thousands of ranks with known faults.
Only `Probe` and `inject`, which work inside of the job, need PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Baseline": "slow",
    "Host": "verdict",
    "Limits": "verdict",
    "Probe": "probe",
    "Snapshot": "snapshot",
    "Trace": "trace",
    "Verdict": "verdict",
    "Watcher": "host",
    "Writer": "frame",
    "diagnose": "analyze",
    "diagnose_dumps": "analyze",
    "diagnose_folder": "analyze",
    "inject": "injection",
}

__all__ = [*_HOMES]  # noqa: PLE0604 (the names are texts)

if TYPE_CHECKING:
    from trimtab.diagnose.analyze import diagnose as diagnose
    from trimtab.diagnose.analyze import diagnose_dumps as diagnose_dumps
    from trimtab.diagnose.analyze import diagnose_folder as diagnose_folder
    from trimtab.diagnose.frame import Writer as Writer
    from trimtab.diagnose.host import Watcher as Watcher
    from trimtab.diagnose.injection import inject as inject
    from trimtab.diagnose.probe import Probe as Probe
    from trimtab.diagnose.slow import Baseline as Baseline
    from trimtab.diagnose.snapshot import Snapshot as Snapshot
    from trimtab.diagnose.trace import Trace as Trace
    from trimtab.diagnose.verdict import Host as Host
    from trimtab.diagnose.verdict import Limits as Limits
    from trimtab.diagnose.verdict import Verdict as Verdict


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'trimtab.diagnose' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"trimtab.diagnose.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
