"""COMET on models that are replicated (DDP) and sharded (FSDP2)."""

from __future__ import annotations

import pytest

from tests.dist.launch import run_ranks


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_ranks(kind, tmp_path):
    run_ranks("tests.train.ranks", 2, kind, str(tmp_path), folder=tmp_path)
