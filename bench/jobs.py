"""Jobs, in one process or on the ranks of a netlab, whose results are kept: a command that was cut off goes on."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from trimtab.comm.netlab import Netlab


class Job(ABC):
    """One job, or what it found. It runs `module`, which writes what it found as JSON to the file ``--out``."""

    module: ClassVar[str]
    nodes: ClassVar[int] = 0
    """Of the netlab whose ranks all run the module; 0 for a single process without one."""
    ranks_per_node: ClassVar[int] = 0

    @property
    @abstractmethod
    def path(self) -> Path:
        """Where its results are kept."""

    @property
    @abstractmethod
    def depends_on(self) -> dict[str, Any]:
        """What the results depend on, as plain data."""

    @property
    @abstractmethod
    def arguments(self) -> list[str]:
        """The arguments of each rank."""

    @property
    def link_rate(self) -> str | None:
        """The rate of the links, as `Netlab` takes it."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """What the results depend on, as it is read from a file: lists for tuples."""
        return json.loads(json.dumps(self.depends_on))

    def found(self) -> dict[str, Any] | None:
        """Return the results, if they are there and of these settings."""
        if not self.path.exists():
            return None
        kept = json.loads(self.path.read_text())
        return kept["results"] if kept["settings"] == self.settings else None

    def results(self) -> dict[str, Any]:
        """Return the results; start the job unless they are there.

        Raises:
            CommandFailed: a rank failed.
            subprocess.CalledProcessError: the single process failed.
        """
        found = self.found()
        if found is not None:
            return found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        out = self.path.with_suffix(".part")
        command = [sys.executable, "-m", self.module, *self.arguments, "--out", str(out)]
        mode = {}
        if self.nodes:
            with Netlab(nodes=self.nodes, ranks_per_node=self.ranks_per_node, rate=self.link_rate) as lab:
                mode = {"mode": lab.run(command, timeout=7200).check().mode}
        else:
            subprocess.run(command, check=True)
        found = json.loads(out.read_text()) | mode
        out.write_text(json.dumps({"settings": self.settings, "results": found}))
        out.replace(self.path)
        return found


def run_missing(jobs: Sequence[Job], limit: int | None) -> None:
    """Run the first `limit` jobs that have no results yet."""
    missing = [job for job in jobs if job.found() is None]
    for number, job in enumerate(missing[:limit], 1):
        print(f"{number} of {len(missing)}: {job.path.stem}", file=sys.stderr, flush=True)
        job.results()


def parser(module: str, description: str, kinds: Mapping[str, Callable[..., Iterator[Job]]]) -> argparse.ArgumentParser:
    """Return the parser of a command that runs what is missing: the kind of jobs, how many, and of which ways."""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("kind", choices=kinds)
    made.add_argument("--limit", type=int, help="how many missing runs to start at most")
    made.add_argument("--ways", nargs="*", help="only runs of these (default all)")
    return made
