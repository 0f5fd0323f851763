"""Collectives with and without a codec, by real ranks, and what becomes of damaged messages and dead ranks."""

from __future__ import annotations

import pytest

from tests.dist.launch import run_ranks

RANKS = "tests.comm.exchange_ranks"


def test_exchanges_and_faults(tmp_path):
    """Rank 2 is killed in the end."""
    said = run_ranks(RANKS, 4, "topologies,exchanges,repeats,faults,killed", str(tmp_path), folder=tmp_path, died=(2,))
    assert all("done" in words for rank, words in enumerate(said) if rank != 2)


@pytest.mark.slow
def test_gloo_ends_a_rank_that_gets_more_than_it_expects(tmp_path):
    """Why settings and counters are compared before messages are sent: gloo aborts. The other rank gets an error."""
    said = run_ranks(RANKS, 2, "sizes_differ", str(tmp_path), folder=tmp_path, died=(1,))
    assert "PeerFailed" in said[0] and "done" in said[0]
