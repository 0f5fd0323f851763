"""Measuring the link and deciding together, by real ranks on links of a known rate."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from tests.comm.test_netlab import needs_namespaces
from trimtab.comm import link, planner
from trimtab.comm.netlab import Netlab
from trimtab.errors import UsageError

ROOT = Path(__file__).parents[2]
BITS_PER_SECOND = 100e6


def test_there_must_be_ranks(tmp_path):
    with pytest.raises(UsageError, match="init_process_group"):
        link.measure()
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        with pytest.raises(UsageError, match="start two or more"):
            link.measure()
    finally:
        dist.destroy_process_group()


@needs_namespaces
def test_ranks_measure_the_link_and_agree():
    with Netlab(nodes=2, ranks_per_node=2, rate="100mbit") as lab:
        path = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, "-W", "error", "-m", "tests.comm.test_link"]
        result = lab.run(command, env={"PYTHONPATH": path}, timeout=120).check()
    found = [json.loads(rank.stdout) for rank in result.ranks]
    assert all(told == found[0] for told in found)
    between, rate = found[0]["between"], BITS_PER_SECOND / 8
    assert 0.4 * rate < between["bytes_per_second"] < 1.2 * rate  # the machine may be busy
    assert 0 < between["latency_seconds"] < 0.1
    assert found[0]["slow"]["exact_bytes"] == 100e6  # the largest that a rank told
    assert found[0]["slow"]["codec_seconds"] == 0.4
    assert found[0]["slow"]["bytes_per_second"] == 1e6  # the slowest
    assert found[0]["slow"]["compress"] is True
    assert found[0]["measured"]["compress"] is False
    assert "codec_seconds is inf" in found[0]["refused"]
    assert found[0]["mesh"]["bytes_per_second"] == 1e6  # of another column of the mesh
    assert result.nodes[0].sent_bytes < 40e6


def measure_and_decide() -> dict:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    assert dist.group.WORLD is not None
    pairs = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    nodes = SimpleNamespace(group=dist.group.WORLD, inter=pairs[rank % 2], local_size=2)
    between = link.measure(nodes)
    mine = link.Link(bytes_per_second=(4 - rank) * 1e6, latency_seconds=0.0)
    slow = planner.decide(nodes, exact_bytes=100e6 - rank, packed_bytes=2e6, codec_seconds=(1 + rank) / 10, link=mine)
    measured = planner.decide(exact_bytes=1e6, packed_bytes=9e5, codec_seconds=float(rank == 3))
    rows = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mesh = planner.decide(
        pairs[rank % 2], exact_bytes=1e6, packed_bytes=9e5, codec_seconds=0.0, link=mine, across=[rows[rank // 2]]
    )
    try:
        planner.decide(exact_bytes=1, packed_bytes=1, codec_seconds=math.nan if rank == 1 else 0.0, link=mine)
    except UsageError as error:
        refused = str(error)
    dist.destroy_process_group()
    plans = {"slow": slow.report, "measured": measured.report, "mesh": mesh.report}
    return {"between": between.report, **plans, "refused": refused}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure_and_decide()))
