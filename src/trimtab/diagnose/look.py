"""Look: all that the folder of a job tells at one moment, whatever its files are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from trimtab.diagnose import flight
from trimtab.diagnose.analyze import diagnose
from trimtab.diagnose.frame import RankFile, read_folder
from trimtab.diagnose.groups import Groups
from trimtab.diagnose.slow import Baseline
from trimtab.diagnose.snapshot import Snapshot
from trimtab.diagnose.trace import Trace
from trimtab.diagnose.verdict import Host, Limits, Verdict
from trimtab.errors import FormatError


@dataclass(frozen=True)
class Look:
    """The states and operations of a job, from the files that its ranks keep or from Flight Recorder dumps."""

    source: Literal["frames", "dumps"]
    snapshot: Snapshot
    trace: Trace | None
    """None where only the states were asked for."""
    clocks: np.ndarray
    """uint64 [ranks]: where it is the same, and not 0, ranks have one and the same clock."""
    waited: np.ndarray
    """float64 [ranks]: seconds that ranks have waited for data in all."""
    files: tuple[RankFile, ...] = ()
    """The files of ranks, where the source are frames."""

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str], *, with_trace: bool = True) -> Look:
        """Read a folder: ``rank-*.frame`` files, or else ``*.json`` dumps.

        Raises:
            FormatError: there is nothing that can be used.
            UsageError: the names of dumps do not tell their ranks.
            OSError: the folder cannot be read.
        """
        names = os.listdir(folder)
        if any(name.startswith("rank-") and name.endswith(".frame") for name in names):
            return cls._of_frames(folder, with_trace=with_trace)
        if any(name.endswith(".json") for name in names):
            snapshot, trace = flight.read_dumps(folder)
            num_ranks = snapshot.groups.num_ranks
            return cls("dumps", snapshot, trace, np.zeros(num_ranks, np.uint64), np.zeros(num_ranks))
        hint = "; pickled dumps are never opened" if any(_is_pickled(Path(folder, name)) for name in names[:16]) else ""
        raise FormatError(
            f"{folder} has no files of ranks (rank-000000.frame), nor Flight Recorder dumps (rank_0.json){hint}"
        )

    @classmethod
    def _of_frames(cls, folder: str | os.PathLike[str], *, with_trace: bool) -> Look:
        files, notes = read_folder(folder)
        groups, places, more = Groups.of_files(files)
        snapshot = Snapshot.of_files(files, groups, places, notes=[*notes, *more])
        trace = Trace.of_files(files, groups, places) if with_trace else None
        clocks, waited = np.zeros(groups.num_ranks, np.uint64), np.zeros(groups.num_ranks)
        for file in files:
            clocks[file.rank], waited[file.rank] = file.boot, file.waited
        return cls("frames", snapshot, trace, clocks, waited, tuple(files))

    def verdict(
        self,
        *,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        hosts: Mapping[int, Host] | None = None,
        edges: np.ndarray | None = None,
        baseline: Baseline | None = None,
    ) -> Verdict:
        """Return what is wrong with the job (`analyze.diagnose`)."""
        return diagnose(self.snapshot, self.trace, limits=limits, hosts=hosts, edges=edges, baseline=baseline)


def _is_pickled(path: Path) -> bool:
    if not path.is_file():  # a pipe would hold us up
        return False
    with open(path, "rb") as file:
        return file.read(1) == b"\x80"
