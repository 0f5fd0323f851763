from __future__ import annotations

import numpy as np
import pytest

from bench import solar_loading, solar_loading_job, solar_loading_runs
from bench.data_tables import solar_loading_tables
from bench.harness import Options
from bench.solar_loading_ways import Pooled
from trimtab.data import Plan, Tally
from trimtab.data.plan import STORE
from trimtab.data.policies import pooled


@pytest.mark.parametrize("network", [False, True])
def test_the_pooled_policy_reads_what_the_simulation_counts(network):
    plan = Plan(num_samples=500, num_ranks=4, batch_size=5, num_epochs=4, num_slots=60)
    policy, reads, far, given, seen = Pooled(plan, network), 0, 0, 0, []
    for rank in range(4):
        for step in policy.rank(rank, start=(0, 0)):
            samples = step.samples % 500
            reads += int(((step.source == STORE) & (step.samples < 500)).sum())
            others = step.samples >= 500
            assert (step.source[others] == STORE).all()
            assert (policy.keeper[samples[others]] != rank).all()
            assert not network or (policy.keeper[samples[step.slot >= 0]] == rank).all()
            far += int(others.sum())
            given += int(((step.keep >= 0) & (policy.keeper[samples] != rank)).sum())
            seen += samples.tolist()
    counted = sum(pooled(plan), Tally())
    assert reads == counted.num_reads
    assert far == (counted.num_sent - given if network else 0)
    assert np.bincount(seen).tolist() == [4] * 500


@pytest.mark.slow
def test_all_ways_load_a_small_set(tmp_path, monkeypatch):
    """One of them as the command starts it, the others by ranks that import torch once for all."""
    started = solar_loading_runs.Load.work

    def work(load, out):
        if load.way == solar_loading_runs.POOLED:
            return started(load, out)
        return solar_loading_job.measure(load.way, load.shape, tmp_path / "data")

    monkeypatch.setattr(solar_loading_runs, "CACHE", tmp_path)
    monkeypatch.setattr(solar_loading_runs.Load, "work", work)
    record = solar_loading.run(Options("solar_loading", quick=True, num_rounds=1))
    reads = {way: record.metrics[f"small/{way}/reads"].value for way in solar_loading_runs.WAYS}
    assert reads["DataLoader 0"] == reads["DataLoader 4"] == reads["trimtab 0"] == 3 * 256
    assert 256 <= reads["trimtab 1"] < reads["trimtab 0.9"] < reads["trimtab 0.5"] < 3 * 256
    assert reads["pooled, network 0.5"] == reads["pooled 0.5"] < 3 * 256
    page = solar_loading_tables(record)
    assert page.count("| small |") == 3
    assert page.count("**") % 2 == 0
