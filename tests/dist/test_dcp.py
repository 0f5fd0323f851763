"""Packed checkpoints of FSDP2 models: saved and loaded by other numbers of ranks, each a process of its own."""

from __future__ import annotations

import torch.distributed.checkpoint as dcp

import trimtab.dcp
from tests.dist import ranks
from tests.dist.launch import run_ranks
from trimtab.files import Reader


def test_any_number_of_ranks_loads_what_any_number_saved(tmp_path):
    """One process saves; two load, train on, save and overwrite; three load that, and so does one."""
    model, optimizer = ranks.training(seed=0)
    ranks.step(model, optimizer, seed=0)
    ranks.remember(tmp_path, "one.pt", model, optimizer)
    dcp.save({**ranks.state(model, optimizer), **ranks.extras()}, storage_writer=trimtab.dcp.Writer(tmp_path / "one"))
    run_ranks("tests.dist.ranks", 2, "save_sharded", str(tmp_path), folder=tmp_path)
    files = sorted(file.name for file in (tmp_path / "two").iterdir())
    assert [file[:9] for file in files] == ["checkpoin", "rank00000", "rank00001"]  # nothing of the saves before
    entries = [set(Reader(tmp_path / "two" / file)) for file in files[1:]]
    assert "model.0.weight[0:19, 0:64]" in entries[0]
    assert "model.0.weight[19:37, 0:64]" in entries[1]
    run_ranks("tests.dist.ranks", 3, "load_resharded", str(tmp_path), folder=tmp_path)
    ranks.check(tmp_path / "two", "two.pt", seed=11)
