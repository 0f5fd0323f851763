"""trimtab netlab: what goes where, and what its exit status says."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import one_line_error
from tests.comm.test_netlab import needs_namespaces


@needs_namespaces
def test_rank_0_speaks_on_stdout_and_all_else_on_stderr(start):
    script = "echo out of $RANK; printf 'err of %s' $RANK >&2"
    process = start(
        "netlab", "--nodes", 2, "--ranks-per-node", 2, "--rate", "0:100mbit,1:50mbit", "--", "sh", "-c", script
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == "out of 0\n"
    lines = err.splitlines()
    for rank in range(4):
        assert f"[rank {rank}] err of {rank}" in lines
        assert (f"[rank {rank}] out of {rank}" in lines) == (rank > 0)
    table = [line.split() for line in lines if not line.startswith("[rank")]
    assert table[2][:3] == ["0", "100", "Mbit/s"]
    assert table[3][:3] == ["1", "50", "Mbit/s"]


@needs_namespaces
def test_a_failed_rank_is_a_no(start):
    process = start("netlab", "--json", "--timeout", 30, "--", "sh", "-c", "echo of $RANK; exit $RANK")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    report = json.loads(out)
    assert report["ok"] is False
    assert report["failure"] == "rank 1 on node 1 ended with exit status 1:\nof 1"
    assert [rank["exit_code"] for rank in report["ranks"]] == [0, 1]
    assert {"node", "bits_per_second", "sent_bytes", "received_bytes", "seconds"} <= report["nodes"][0].keys()
    assert "[rank 0] of 0" in err
    assert "trimtab: no: rank 1 on node 1 ended with exit status 1:\nof 1" in err


@needs_namespaces
def test_rates_are_checked(start):
    process = start("netlab", "--rate", "20mbit", "--check", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert all(10e6 < rate < 22e6 for rate in json.loads(out)["checked_bits_per_second"])
    assert "20 Mbit/s" in err


@needs_namespaces
def test_once_a_node(start):
    process = start(
        "netlab", "--nodes", 3, "--per-node", "--mode", "auto", "sh", "-c", "echo $PET_NODE_RANK of $PET_NNODES"
    )
    out, err = process.communicate(timeout=60)
    assert out == "0 of 3\n"
    assert "[node 2] 2 of 3" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["there is no COMMAND", "-- python train.py"]),
        (["--rate", "fast", "--", "true"], ["'fast' is not a rate", "100mbit"]),
        (["--rate", "2:1mbit", "--", "true"], ["names no node", "from 0 to 1"]),
        (["--nodes", 1, "--", "true"], ["--nodes"]),
        (["--delay", -1, "--", "true"], ["delay of 0 to 10 seconds"]),
        (["--wrong", "--", "true"], ["--wrong"]),
    ],
)
def test_mistakes_are_told_in_a_line(trimtab, arguments, words):
    one_line_error(trimtab("netlab", *arguments), *words)
