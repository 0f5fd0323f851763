"""Record: one run, what went in and what came out, as one JSON file.

Its sections follow the "AI tetrahedron" of Materials Tetrahedra with AI (2026): data, architecture, encoding,
optimization and inference, with the machine, versions and command that make the run repeatable.
Every figure in README and docs is generated from a Record.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from trimtab.errors import FormatError


class Metric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A measured number: the median of `num_rounds` values between `low` and `high` (quartiles).

    `claim` is what the paper or the project's bar says about it, in words with the number.
    """

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    num_rounds: int = 1
    claim: str | None = None


class Bar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A statement that had to hold, the number reached, and whether it does."""

    name: str
    required: str
    reached: float
    passed: bool


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run. Sections hold plain values; `metrics` maps ``subject/what`` to a `Metric`."""

    name: str
    command: str
    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    revision: str
    seed: int | None = None
    data: dict[str, Any] = {}
    architecture: dict[str, Any] = {}
    encoding: dict[str, Any] = {}
    optimization: dict[str, Any] = {}
    inference: dict[str, Any] = {}
    metrics: dict[str, Metric] = {}
    bars: list[Bar] = []

    @classmethod
    def new(cls, name: str, *, command: str, packages: tuple[str, ...] = (), **sections: Any) -> Record:
        """Return a record of this moment, machine and revision; `packages` adds versions to the usual ones."""
        return cls(
            name=name,
            command=command,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            machine=machine(),
            versions=versions(("trimtab", "numpy", "numba", *packages)),
            revision=_revision(),
            **sections,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record as indented JSON and return the path; missing folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read a record.

        Raises:
            FormatError: the file is not a record.
        """
        try:
            return msgspec.json.decode(Path(path).read_bytes(), type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"{path} is not a record: {error}") from None


def machine() -> dict[str, Any]:
    """Describe this machine in words: processor, cores, memory and instruction sets; never its name."""
    info = _cpuinfo()
    flags = set(info.get("flags", "").split())
    sets = [name for name in ("sse4_2", "avx2", "avx512f", "avx512vbmi") if name in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "processor": info.get("model name", platform.processor() or platform.machine()),
        "architecture": platform.machine(),
        "num_cores": os.cpu_count(),
        "instruction_sets": sets,
        "memory_gib": round(memory / 2**30),
        "system": platform.system(),
    }


def machine_slug() -> str:
    """Return a folder name for results of this machine, such as ``2-core-amd-epyc-avx512f``."""
    described = machine()
    words = [f"{described['num_cores']}-core", *described["processor"].replace("(R)", "").split()[:2]]
    words += [name for name in described["instruction_sets"] if not name.startswith("avx512v")][-1:]
    return "-".join("".join(c for c in word.lower() if c.isalnum() or c == "-") for word in words)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _revision() -> str:
    """Return the git revision of the current folder, with ``+`` where it has changes, or ``unknown``."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
