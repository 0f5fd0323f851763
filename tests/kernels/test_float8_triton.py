"""8-bit floats in groups on the device: payloads and elements are those of the specification, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.device import DEVICE
from tests.kernels.wire import bfloat16, elements
from trimtab.kernels.float8 import ref

torch = pytest.importorskip("torch")
triton = pytest.importorskip("trimtab.kernels.float8.triton", exc_type=ImportError)
from tests.kernels.test_groups_triton import back, same, there  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with NumPy

# elements, group, transformed, scales, format, magnitude, bfloat16
CASES = [
    (0, 32, False, 1, "e4m3", 1, False),
    (5000, 128, True, 2, "e4m3", 1, False),
    (3000, 32, True, 1, "e5m2", 1e-3, True),
    (1000, 512, False, 2, "e5m2", 1e5, True),
    (700, 64, True, 1, "e4m3", 1e-35, False),
    (2000, 128, False, 2, "e4m3", 1e12, False),
    (2000, 256, True, 2, "e5m2", 1e-9, False),
]


@pytest.mark.parametrize(("num", "group", "transform", "scales", "format", "magnitude", "is_bfloat16"), CASES)
def test_device_agrees(num, group, transform, scales, format, magnitude, is_bfloat16) -> None:
    settings = format, group, group if transform else 0, scales
    x = elements(num, 1, magnitude)
    if num > 900:
        x[[200, 700]] = np.nan, -np.inf
        x[:130] = 0
    x = bfloat16(x) if is_bfloat16 else x
    rows = np.zeros((3, ref.payload_bytes(num, group, scales) + 5), np.uint8)[:, 5:]  # at odd addresses
    device_rows = torch.zeros(3, rows.shape[1] + 5, dtype=torch.uint8, device=DEVICE)[:, 5:]
    for r in range(3):
        ref.encode(np.roll(x, r), rows[r], *settings, 440.0)
        triton.encode(there(np.roll(x, r)), device_rows[r], *settings, 440.0)
    assert np.array_equal(back(device_rows), rows)
    y, device_y = np.zeros_like(x), there(np.zeros_like(x))
    ref.decode_sum(rows, y, *settings, 0.3)
    triton.decode_sum(device_rows, device_y, *settings, 0.3)
    assert same(device_y, y)
    ref.decode(rows[1], y, *settings)
    triton.decode(device_rows[1], device_y, *settings)
    assert same(device_y, y)


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_every_byte_agrees(format: str) -> None:
    packed = np.concatenate([np.arange(256, dtype=np.uint8), np.ones(8, np.float32).view(np.uint8)])
    y = np.zeros(256, np.float32)
    device_y = there(y)
    ref.decode(packed, y, format, 32, 0, 1)
    triton.decode(there(packed), device_y, format, 32, 0, 1)
    assert same(device_y, y)
    finite = np.repeat(y[np.isfinite(y)], 2) * np.tile(np.float32([1, 1.03]), np.isfinite(y).sum())
    x = np.concatenate([finite, np.zeros(-finite.size % 32, np.float32)])
    x[::32] = ref.MAXIMUM[format]
    packed = np.zeros(ref.payload_bytes(x.size, 32, 1), np.uint8)
    device_packed = there(packed)
    ref.encode(x, packed, format, 32, 0, 1, ref.MAXIMUM[format])
    triton.encode(there(x), device_packed, format, 32, 0, 1, ref.MAXIMUM[format])
    assert same(device_packed, packed)
