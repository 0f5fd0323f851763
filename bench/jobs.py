"""Jobs whose results are kept: a command that was cut off goes on where it stopped."""

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
    """A job, or what it found."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """Where its results are kept."""

    @property
    @abstractmethod
    def depends_on(self) -> dict[str, Any]:
        """What the results depend on, as plain data."""

    @abstractmethod
    def work(self, out: Path) -> dict[str, Any]:
        """Do it, and return the results as JSON has them; `out` is a file that may be used on the way."""

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
        """Return the results; do the job unless they are there."""
        found = self.found()
        if found is not None:
            return found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        out = self.path.with_suffix(".part")
        found = self.work(out)
        out.write_text(json.dumps({"settings": self.settings, "results": found}))
        out.replace(self.path)
        return found


class ProcessJob(Job):
    """A job in a process of its own. It runs `module`, which writes what it found as JSON to the file ``--out``."""

    module: ClassVar[str]

    @property
    @abstractmethod
    def arguments(self) -> list[str]:
        """The arguments of the module."""

    def work(self, out: Path) -> dict[str, Any]:
        """Start the process, and return what it found.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        subprocess.run([sys.executable, "-m", self.module, *self.arguments, "--out", str(out)], check=True)
        return json.loads(out.read_text())


class RanksJob(Job):
    """A job on the ranks of a netlab. They run `module`, which writes what it found as JSON to the file ``--out``."""

    module: ClassVar[str]
    nodes: ClassVar[int]
    ranks_per_node: ClassVar[int]

    @property
    @abstractmethod
    def arguments(self) -> list[str]:
        """The arguments of each rank."""

    @property
    @abstractmethod
    def link_rate(self) -> str | None:
        """The rate of the links, as `Netlab` takes it."""

    def work(self, out: Path) -> dict[str, Any]:
        """Start the ranks, and return what they found.

        Raises:
            CommandFailed: a rank failed.
        """
        command = [sys.executable, "-m", self.module, *self.arguments, "--out", str(out)]
        with Netlab(nodes=self.nodes, ranks_per_node=self.ranks_per_node, rate=self.link_rate) as lab:
            result = lab.run(command, timeout=7200).check()
        return json.loads(out.read_text()) | {"mode": result.mode}


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
