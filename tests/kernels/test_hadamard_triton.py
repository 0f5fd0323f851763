"""Hadamard transforms on the device agree with the specification to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.device import DEVICE
from trimtab.kernels.hadamard import ref

torch = pytest.importorskip("torch")
triton = pytest.importorskip("trimtab.kernels.hadamard.triton", exc_type=ImportError)


@pytest.mark.parametrize("order", ref.ORDERS)
def test_device_agrees(order: int) -> None:
    z = np.random.default_rng(1).normal(size=7 * order).astype(np.float32)
    device_z = torch.from_numpy(z.copy()).to(DEVICE)
    ref.transform(z, order)
    triton.transform(device_z, order)
    assert device_z.cpu().numpy().tobytes() == z.tobytes()
    triton.transform(device_z[:0], order)
