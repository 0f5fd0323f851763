"""SDP4Bit on models of real ranks."""

from __future__ import annotations

import pytest
from torch import nn

from tests.dist.launch import run_ranks
from trimtab.codecs.sdp4bit import Groups
from trimtab.comm import Exact, SDP4Bit, Sharded
from trimtab.comm.replicated import Replicated
from trimtab.errors import UsageError

RANKS = "tests.comm.sharded_ranks"


def test_training_with_every_setting(tmp_path):
    run_ranks(RANKS, 4, "plain", str(tmp_path), folder=tmp_path)


def test_uses_and_failures(tmp_path):
    """Rank 1 is killed in the end."""
    scenarios = "drift,uses,resumes,hybrid,replicated,disagreements"
    said = run_ranks(RANKS, 4, scenarios, str(tmp_path), folder=tmp_path, died=(1,))
    assert all("done" in words for rank, words in enumerate(said) if rank != 1)


def test_settings_are_checked():
    for bad in (
        {"weight_bits": 9},
        {"weight_group": 100},
        {"grad_bits": (8,)},
        {"hadamard": 33},
        {"hadamard": 256},
        {"rounding": "up"},
        {"when": "never"},
        {"reference": "disk"},
        {"min_bytes": -1},
        {"resync_every": 0},
    ):
        with pytest.raises(UsageError):
            SDP4Bit(**bad)
    with pytest.raises(UsageError, match="hadamard"):
        Sharded(weights=Groups(hadamard=32))
    with pytest.raises(UsageError, match="DistributedDataParallel"):
        Replicated()(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="levels"):
        Exact(levels=3)(nn.Linear(2, 2))


def test_a_model_that_is_not_sharded_is_refused():
    with pytest.raises(UsageError, match="fully_shard"):
        SDP4Bit()(nn.Linear(2, 2))
