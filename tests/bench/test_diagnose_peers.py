from __future__ import annotations

from typing import Any

import pytest

from bench import diagnose_peers_ranks
from bench.diagnose_peers import _read_finding, compare_gloo
from bench.diagnose_peers_ranks import GlooJob, gloo_jobs

NOW = 1_700_000_000_000_000_000


def left(num: int, num_ranks: int = 2, size: int = 8) -> dict[str, Any]:
    """Return what a gloo rank leaves that has begun `num` operations, a millisecond each, a minute ago."""
    entries = [
        {
            "record_id": k,
            "pg_id": 0,
            "process_group": ["0", "default_pg"],
            "collective_seq_id": k + 1,
            "p2p_seq_id": 0,
            "op_id": k + 1,
            "profiling_name": "gloo:all_reduce",
            "time_created_ns": NOW - 60 * 10**9 + k * 10**6,
            "input_sizes": [[size]],
            "input_dtypes": ["Float"],
            "output_sizes": [[size]],
            "output_dtypes": ["Float"],
            "state": "scheduled",
            "retired": k < 5,
            "timeout_ms": 60_000,
            "is_p2p": False,
        }
        for k in range(num)
    ]
    config = {"": {"name": "", "desc": "", "ranks": str(list(range(num_ranks)))}}
    return {"dump": {"version": "2.10", "entries": entries, "pg_config": config}, "taken": NOW}


def test_a_missing_rank_is_named_by_both_once_members_are_there():
    found = compare_gloo({"0": left(6), "1": left(5)})
    assert (found[False]["ours"].kind, found[False]["ours"].ranks) == ("H1", {1})
    assert found[False]["peer"].crashed
    assert not found[False]["peer"].ranks
    assert found[True]["ours"].ranks == found[True]["peer"].ranks == {1}


def test_a_rank_without_a_dump_is_named_by_the_peer_that_asks_for_it():
    found = compare_gloo({"0": left(6)})
    assert found[True]["peer"].ranks == {1}
    assert not found[True]["peer"].crashed


def test_jobs_without_a_fault_are_quiet():
    found = compare_gloo({"0": left(5), "1": left(5)})
    assert not any(finding.is_fault for finding in found[True].values())
    assert not found[False]["ours"].is_fault


def test_what_the_peer_prints_is_read():
    assert _read_finding(["group info: 0:default_pg", "missing ranks: {1, 3}"]).ranks == {1, 3}
    assert _read_finding(["error msg: Culprit rank 2; Error type: SIZE_OR_SYNTAX_MISMATCH"]).ranks == {2}
    assert not _read_finding(["No errors found for this collective entry"]).is_fault


def test_jobs_cover_all_faults_and_places():
    jobs = list(gloo_jobs())
    assert len({job.path for job in jobs}) == len(jobs) == 10 * 2 * 2 * len(diagnose_peers_ranks.SEEDS)
    assert all(job.truth[1] == frozenset((0, 1)) for job in jobs if job.fault == "link" and job.num_ranks == 2)
    assert {job.rank for job in jobs} == {0, 1, 2, 3}


@pytest.mark.slow
def test_ranks_of_a_gloo_job_leave_dumps(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnose_peers_ranks, "CACHE", tmp_path)
    job = GlooJob("sleep", "all-reduce", 2, 0)
    found = compare_gloo(job.results())
    assert found[True]["ours"].ranks == found[True]["peer"].ranks == job.truth[1]
    assert found[True]["ours"].kind == "H1"
