"""Starts the ranks of a test, real processes that talk over the loopback, and lets them meet.

As a program, ``python -m tests.dist.launch MODULE ARGUMENTS...``, it is one rank.
"""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

__all__ = ["join", "leave", "run_ranks"]

ROOT = Path(__file__).parents[2]


def run_ranks(
    module: str, num_ranks: int, *arguments: str, folder: Path, timeout: float = 240, died: tuple[int, ...] = ()
) -> list[str]:
    """Run ``python -m module arguments...`` in `num_ranks` processes and return what they said.

    Args:
        module: What runs in each, by RANK and WORLD_SIZE.
        num_ranks: How many.
        arguments: For the command line.
        folder: Where logs, and whatever the ranks share, may lie.
        timeout: Seconds until they must have ended.
        died: The ranks that are expected to end by a signal or an error.

    Raises:
        AssertionError: a rank failed that should not have, or the other way round; with what all said.
    """
    shared = {
        "WORLD_SIZE": str(num_ranks),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    logs = [folder / f"{module}-{rank}.log" for rank in range(num_ranks)]
    processes: list[subprocess.Popen] = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.dist.launch", module, *arguments],
                        cwd=ROOT,
                        env={**os.environ, **shared, "RANK": str(rank)},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
        end = time.monotonic() + timeout
        codes: list[int | str] = []
        for process in processes:
            try:
                codes.append(process.wait(timeout=max(end - time.monotonic(), 0)))
            except subprocess.TimeoutExpired:
                codes.append("hung")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = [log.read_text() for log in logs]
    assert all((code != 0) == (rank in died) for rank, code in enumerate(codes)), f"codes {codes}\n" + "\n".join(said)
    return said


def join(name: str, folder: str, seconds: float = 60) -> None:
    """Make the default group of a rank that `run_ranks` started; ranks of one name meet in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{os.path.abspath(folder)}/meeting-{name}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=seconds),
    )


def leave() -> None:
    """End a rank that has done its work: gloo's threads now and then abort a process that ends in the usual way."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    """Run a module as a program."""
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    leave()


if __name__ == "__main__":
    main()
