"""FastCLIP: its gradients over real ranks."""

from __future__ import annotations

import pytest

from tests.dist.launch import run_ranks

RANKS = "tests.train.contrastive_ranks"


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks(num_ranks, tmp_path):
    run_ranks(RANKS, num_ranks, "gradients", str(tmp_path), folder=tmp_path)
