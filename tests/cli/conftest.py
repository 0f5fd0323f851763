"""What the tests of the command line share: running a verb, and small files of every kind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from trimtab.cli import main


@pytest.fixture(name="trimtab")
def run_verb() -> Callable[..., Result]:
    """Return a function that runs ``trimtab ARGS`` in this process."""
    return lambda *args: CliRunner().invoke(main, [str(arg) for arg in args], prog_name="trimtab")


@pytest.fixture
def start() -> Callable[..., subprocess.Popen]:
    """Return a function that starts ``trimtab ARGS`` in a process of its own."""

    def popen(*args: object, **options: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "trimtab", *map(str, args)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]

    return popen


@pytest.fixture
def field(tmp_path: Path) -> Path:
    """Return a .npy file with a smooth field of 20 x 30 x 40 float32 elements."""
    x, y, z = np.meshgrid(*(np.linspace(0, 3, n) for n in (20, 30, 40)), indexing="ij")
    path = tmp_path / "field.npy"
    np.save(path, (np.sin(x) * np.cos(2 * y) + 0.1 * np.sin(7 * z)).astype(np.float32))
    return path


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Return a .npz file with float, integer, bool, 0-d and empty arrays."""
    rng = np.random.default_rng(0)
    path = tmp_path / "arrays.npz"
    np.savez(
        path,
        weights=rng.normal(0, 0.02, (60, 50)).astype(np.float32),
        counts=np.arange(12, dtype=np.int64),
        mask=np.array([True, False]),
        scalar=np.float64(2.5),
        empty=np.empty((0, 3), np.float32),
    )
    return path


def one_line_error(result: Result, *words: str) -> str:
    """Check that a verb failed with exit status 2 and one line that has these words; return the line."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("trimtab: error: ")
    for word in words:
        assert word in lines[0]
    return lines[0]
