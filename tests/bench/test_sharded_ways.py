from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trimtab.comm.netlab import Netlab
from trimtab.errors import NetlabUnavailable


def test_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact ways compute with the same bits, packed ones with the same on all ranks, and send less."""
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    try:
        with Netlab(nodes=2, ranks_per_node=2) as lab:
            lab.run([sys.executable, "-m", "tests.bench.ways_ranks"], timeout=240).check()
    except NetlabUnavailable as error:
        pytest.skip(str(error))
