"""The command line of one rank of a job (`bench.jobs.RanksJob`), and the file of what the ranks found."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of all jobs."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    made.add_argument("--rounds", type=int, default=0, help="timed turns of each way")
    made.add_argument("--out", type=Path, required=True, help="the file for what is found")
    return made


def training_parser(
    module: str, description: str | None, scales: Iterable[str], ways: Iterable[str]
) -> argparse.ArgumentParser:
    """Return the parser of a rank that trains from a seed in one way, or times steps of several ways by turns."""
    made = parser(module, description)
    made.add_argument("job", choices=("losses", "steps"))
    made.add_argument("--scale", choices=scales, required=True)
    made.add_argument("--ways", nargs="+", choices=ways, required=True)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--steps", type=int, default=0, help="of the training, or of a turn")
    return made


def work(out: Path, job: Callable[[], dict[str, Any]]) -> None:
    """Do a job with the other ranks, over gloo and on one thread; rank 0 writes what it found. Ends the process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = job()
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads now and then abort a process that ends in the usual way
