"""Start-up: what ``trimtab --help`` costs, what it does not import, and the first use with and without a cache.

Every number is the wall time of a fresh process, its start included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import harness
from bench.harness import Options, exact, metric
from bench.tables import startup_table
from trimtab.records import Bar, Metric, Record

HEAVY_MODULES = ("torch", "numba", "llvmlite", "matplotlib", "triton", "h5py", "zarr")
"""Modules that must not be imported before they are needed."""

NOTHING = "import json"
HELP = "import sys; sys.argv = ['trimtab', '--help']; from trimtab.cli import main; main()"
FIRST_USE = """
import numpy as np, trimtab as tt
x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
tt.decompress(tt.compress(x))
tt.decompress(tt.compress(x, tt.Rel(1e-3)))
"""
IMPORTED = f"""
import json, sys
try:
    {{code}}
finally:
    print(json.dumps([name for name in {HEAVY_MODULES!r} if name in sys.modules]), file=sys.stderr)
"""


def run(options: Options) -> Record:
    """Measure, and return the record."""
    script = str(Path(sys.executable).parent / "trimtab")
    nothing, help_page = _alternated([[sys.executable, "-c", NOTHING], [script, "--help"]], options.num_rounds)
    times = metric([ours / bare for ours, bare in zip(help_page, nothing, strict=True)], "x")
    metrics: dict[str, Metric] = {
        "python -c 'import json'": metric(nothing, "s"),
        "trimtab --help": metric(help_page, "s"),
        "trimtab --help, times python": times,
    }
    bars = [
        Bar(
            name="trimtab --help over python -c 'import json'",
            required="<= 3x",
            reached=times.value,
            passed=times.value <= 3,
        )
    ]
    for what, code in {"import trimtab": "import trimtab", "trimtab --help": HELP}.items():
        heavy = heavy_modules(code)
        metrics[f"{what}: heavy modules imported"] = exact(len(heavy), "modules")
        bars.append(
            Bar(
                name=f"{what} imports none of {', '.join(HEAVY_MODULES)}",
                required="0 modules",
                reached=len(heavy),
                passed=not heavy,
            )
        )
    with tempfile.TemporaryDirectory() as folder:
        cache = {"NUMBA_CACHE_DIR": folder}
        first_use = [sys.executable, "-c", FIRST_USE]
        metrics["first use, kernels compiled"] = exact(_seconds(first_use, cache), "s")
        cached = metric([_seconds(first_use, cache) for _ in range(options.num_rounds)], "s")
    metrics["first use, kernels from the cache"] = cached
    bars.append(
        Bar(name="first use in a second process", required="<= 2 s", reached=cached.value, passed=cached.value <= 2)
    )
    return Record.new(
        options.name,
        command=options.command,
        inference={"num_rounds": options.num_rounds, "clock": "wall, of a whole process"},
        metrics=metrics,
        bars=bars,
    )


def _alternated(commands: Sequence[Sequence[str]], num_rounds: int) -> list[list[float]]:
    seconds: list[list[float]] = [[] for _ in commands]
    for number in range(-1, num_rounds):
        for command, found in zip(commands, seconds, strict=True):
            elapsed = _seconds(command)
            if number >= 0:  # the first round only warms the file cache
                found.append(elapsed)
    return seconds


def _seconds(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    start = time.perf_counter()
    _run(command, environment)
    return time.perf_counter() - start


def heavy_modules(code: str) -> list[str]:
    """Return which of `HEAVY_MODULES` a fresh process has imported after running `code`."""
    return json.loads(_run([sys.executable, "-c", IMPORTED.format(code=code)]).splitlines()[-1])


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it wrote to standard error.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command!r} failed with exit status {done.returncode}:\n{done.stderr}")
    return done.stderr


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("startup", __doc__, argv)
    record = run(options)
    print(startup_table(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
