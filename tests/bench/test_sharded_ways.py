from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.dist.launch import run_ranks


def test_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact ways compute with the same bits, packed ones with the same on all ranks, and send less."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    run_ranks("tests.bench.ways_ranks", 4, folder=tmp_path, timeout=240)
