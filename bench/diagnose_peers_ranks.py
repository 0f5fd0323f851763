"""A rank of a gloo job that leaves its Flight Recorder dump: ``diagnose_peers_ranks.py FOLDER KIND`` under torchrun."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import torch
from torch import distributed as dist

NUM, CULPRIT, FROM = 24, 1, 10


def main(folder: str, kind: str) -> None:
    """Make `NUM` all-reduces; from the one with the number `FROM` on, the culprit does what `kind` says."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    threading.Thread(target=leave, args=(folder, rank), daemon=True).start()
    x = torch.ones(4096)
    for i in range(NUM):
        if i == FROM and rank == CULPRIT and kind == "stop":
            time.sleep(600)
        if i == FROM and rank == CULPRIT and kind == "other":
            dist.broadcast(x, src=CULPRIT)
        else:
            dist.all_reduce(x)
        time.sleep(0.01)
    time.sleep(600)


def leave(folder: str, rank: int) -> None:
    """Wait until nothing moves any more, write the dump, and end the rank when all have."""
    time.sleep(8)
    dump = torch._C._distributed_c10d._dump_fr_trace_json(True, False)
    path = Path(folder, f"rank_{rank}.json")
    path.with_suffix(".part").write_bytes(dump if isinstance(dump, bytes) else dump.encode())
    path.with_suffix(".part").rename(path)
    until = time.monotonic() + 60
    while len(list(Path(folder).glob("rank_*.json"))) < dist.get_world_size() and time.monotonic() < until:
        time.sleep(0.1)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
