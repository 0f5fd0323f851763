"""Jobs that are played through: both twins alike, and as the rules say."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab import kernels
from trimtab.diagnose.simulate import Fault, Job

FAULTS = [
    [],
    [Fault("stop", rank=3, step=2, place=1)],
    [Fault("skip", rank=6, step=1, place=2)],
    [Fault("other", rank=0, step=2, place=0)],
    [Fault("freeze", rank=5, step=3, place=3)],
    [Fault("slow", rank=2, step=1, place=0, factor=2.5), Fault("link", rank=7, step=2, place=4, factor=9.0)],
]


@pytest.mark.parametrize("faults", FAULTS, ids=lambda faults: "+".join(f.kind for f in faults) or "none")
def test_twins_agree(faults):
    runs = []
    for name in ("ref", "numba"):
        with kernels.backend(name):
            runs.append(Job(tensor=2, pipeline=2, data=2, micro_batches=2).run(faults=faults, num_steps=5, seed=3))
    for field in ("words", "seqs", "dones", "exits", "clock", "numbers", "ended"):
        np.testing.assert_array_equal(getattr(runs[0], field), getattr(runs[1], field))


def test_all_ranks_finish_together():
    run = Job(tensor=2, pipeline=3, data=2).run(num_steps=4)
    assert not run.is_hung
    assert (run.seqs == run.dones).all()
    assert np.ptp(run.clock) < 1e-3 * run.clock.max()


def test_a_stopped_rank_stops_all():
    run = Job(tensor=2, pipeline=2, data=2).run(faults=[Fault("stop", rank=1, step=1, place=0)], num_steps=4)
    assert not run.ended.any()
    assert (run.seqs > run.dones).any(1).sum() == 7
    assert not (run.seqs[1] > run.dones[1]).any()


def test_rings_go_round():
    job = Job(data=2)
    short, whole = (job.run(num_steps=20, capacity=capacity) for capacity in (16, None))
    assert short.words.shape[1] == 16
    newest = {tuple(row) for row in short.words[0]}
    assert newest == {tuple(row) for row in whole.words[0][whole.numbers[0] - 15 : whole.numbers[0] + 1]}
