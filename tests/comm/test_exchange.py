"""Collectives with and without a codec, by real ranks, and what becomes of damaged messages and dead ranks."""

from __future__ import annotations

import pytest

from tests.dist.launch import run_ranks

RANKS = "tests.comm.exchange_ranks"


def test_topologies_and_settings(tmp_path):
    run_ranks(RANKS, 4, "topologies", str(tmp_path), folder=tmp_path)


def test_exchanges_of_every_kind(tmp_path):
    run_ranks(RANKS, 4, "exchanges", str(tmp_path), folder=tmp_path)


def test_runs_repeat_exactly(tmp_path):
    (tmp_path / "again").mkdir()
    first, second = (run_ranks(RANKS, 4, "hashes", str(f), folder=f) for f in (tmp_path, tmp_path / "again"))
    assert first == second and "bits" in first[0]


def test_damage_is_told_on_every_rank(tmp_path):
    said = run_ranks(RANKS, 4, "faults", str(tmp_path), folder=tmp_path)
    assert all("done" in one for one in said)


def test_a_killed_rank_is_told_on_every_other(tmp_path):
    run_ranks(RANKS, 4, "killed", str(tmp_path), folder=tmp_path, died=(2,))


@pytest.mark.slow
def test_other_sizes_end_in_an_error(tmp_path):
    run_ranks(RANKS, 2, "sizes_differ", str(tmp_path), folder=tmp_path)
