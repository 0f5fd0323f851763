"""Real ranks: they lend each other samples, and share slots between processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dist.launch import run_ranks

pytest.importorskip("torch")


@pytest.mark.parametrize(("num_ranks", "per_node", "start"), [(2, 1, ("0", "0")), (4, 2, ("1", "5"))])
def test_ranks_hold_all_samples_together(num_ranks, per_node, start, tmp_path):
    before = {*Path("/dev/shm").glob("*")} if Path("/dev/shm").exists() else set()
    said = run_ranks(
        "tests.data.loader_ranks", num_ranks, str(tmp_path), str(per_node), *start, folder=tmp_path, timeout=120
    )
    assert all("loaded" in log for log in said)
    left = [path.name for path in {*Path("/dev/shm").glob("*")} - before]
    assert not [name for name in left if "trimtab" in name and "diagnose" not in name]  # of tests that run beside this
