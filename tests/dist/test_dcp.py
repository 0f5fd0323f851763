"""Packed checkpoints of FSDP2 models: saved and loaded by other numbers of ranks, each a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch.distributed.checkpoint as dcp

import trimtab.dcp
from tests.dist import ranks
from trimtab.files import Reader

ROOT = Path(__file__).parents[2]


def run_ranks(num_ranks: int, what: str, folder: Path) -> None:
    """Run a part of `ranks` in processes that talk over the loopback, and show what they said if one fails."""
    shared = {
        "WORLD_SIZE": str(num_ranks),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    logs = [folder / f"{what}-{rank}.log" for rank in range(num_ranks)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.dist.ranks", what, str(folder)],
                        cwd=ROOT,
                        env={**os.environ, **shared, "RANK": str(rank)},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not any(codes), "\n".join(log.read_text() for log in logs)


def test_any_number_of_ranks_loads_what_any_number_saved(tmp_path):
    """One process saves; two load, train on, save and overwrite; three load that, and so does one."""
    model, optimizer = ranks.training(seed=0)
    ranks.step(model, optimizer, seed=0)
    ranks.remember(tmp_path, "one.pt", model, optimizer)
    dcp.save({**ranks.state(model, optimizer), **ranks.extras()}, storage_writer=trimtab.dcp.Writer(tmp_path / "one"))
    run_ranks(2, "save_sharded", tmp_path)
    files = sorted(file.name for file in (tmp_path / "two").iterdir())
    assert [file[:9] for file in files] == ["checkpoin", "rank00000", "rank00001"]  # nothing of the saves before
    entries = [set(Reader(tmp_path / "two" / file)) for file in files[1:]]
    assert "model.0.weight[0:19, 0:64]" in entries[0]
    assert "model.0.weight[19:37, 0:64]" in entries[1]
    run_ranks(3, "load_resharded", tmp_path)
    ranks.check(tmp_path / "two", "two.pt", seed=11)
