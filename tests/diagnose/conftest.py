"""Folders of simulated jobs, as their ranks would leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.diagnose.look import Look
from trimtab.diagnose.simulate import Fault, Job

SMALL = Job(tensor=2, pipeline=2, data=2)


@pytest.fixture
def looked(tmp_path: Path) -> Callable[..., Look]:
    """Return a function that simulates a job with faults, writes its files and looks at them."""

    def look(*faults: Fault, job: Job = SMALL, num_steps: int = 16, folder: Path = tmp_path) -> Look:
        job.run(faults=list(faults), num_steps=num_steps).write(folder)
        return Look.of_folder(folder)

    return look
