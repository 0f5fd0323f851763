"""Payloads are formats, too: every back end makes the golden bytes, on every machine."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from tests.device import DEVICE
from tests.golden.wire import CASES, FOLDER

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Triton's interpreter computes with NumPy


def on_device(x: np.ndarray):
    torch = pytest.importorskip("torch")
    if x.dtype == np.uint16:
        return torch.from_numpy(x.view(np.int16)).to(DEVICE).view(torch.bfloat16)
    return torch.from_numpy(x.copy()).to(DEVICE)


def test_every_file_has_its_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.bin")} == set(CASES)


@pytest.mark.parametrize("backend", ["ref", "numba", "triton"])
@pytest.mark.parametrize("name", CASES)
def test_payloads_are_golden(name: str, backend: str) -> None:
    module = f"trimtab.kernels.{name.split('-')[0]}.{backend}"
    if backend == "triton":
        found = CASES[name](pytest.importorskip(module, exc_type=ImportError), on_device).cpu().numpy()
    else:
        found = CASES[name](importlib.import_module(module), np.copy)
    assert found.tobytes() == (FOLDER / f"{name}.bin").read_bytes()
