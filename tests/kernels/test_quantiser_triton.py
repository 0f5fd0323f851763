"""Quantisation on the device: the integers, outliers and elements are those of the specification, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.device import DEVICE
from tests.kernels.test_quantiser import field
from trimtab.kernels.quantiser import ref

torch = pytest.importorskip("torch")
triton = pytest.importorskip("trimtab.kernels.quantiser.triton", exc_type=ImportError)

# rows, elements a row, margin, room for outliers
LAYOUTS = [(16, 64, 2, 2000), (1, 1000, 6, 2000), (4, 300, 2, 40), (1, 2500, 2, 2000), (3, 1, 2, 5)]


def there(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.copy()).to(DEVICE)


def bits(x) -> bytes:
    return (x.cpu().numpy() if isinstance(x, torch.Tensor) else x).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("num_rows", "num", "margin", "room"), LAYOUTS)
@pytest.mark.parametrize("bound", [0.005, 0.0, np.inf])
def test_device_agrees(dtype, num_rows: int, num: int, margin: int, room: int, bound: float) -> None:
    x = np.concatenate([field(dtype), field(dtype)[::-1], field(dtype)[:500]])[: num_rows * num]
    starts = np.arange(num_rows, dtype=np.int64) * num
    if num_rows > 1:
        x = x[:-7] if num > 7 else x  # the last row is short
    q, outliers = np.full((num_rows, num + 2 * margin), 7, np.int32), np.full(room, 7, np.uint32)
    device_q, device_outliers = there(q), there(outliers.astype(np.int64))
    count = ref.quantise(x, starts, 0.012, bound, ref.NONE, margin, q, outliers)
    assert triton.quantise_floats(there(x), there(starts), 0.012, bound, margin, device_q, device_outliers) == count
    assert np.array_equal(device_q.cpu().numpy(), q)
    assert np.array_equal(device_outliers.cpu().numpy(), outliers)
    assert room != 40 or np.isinf(bound) or count > room  # more than fit
    for name, step in (("dequantise", 0.012), ("dequantise_exp2", 0.001)):
        y, device_y = np.zeros_like(x), there(np.zeros_like(x))
        getattr(ref, name)(q, starts, step, margin, y)
        getattr(triton, name)(there(q), there(starts), step, margin, device_y)
        assert bits(device_y) == bits(y)


def test_exp2_agrees_over_all_exponents() -> None:
    q = np.zeros((1, 4004), np.int32)
    q[0, 2:-2] = np.linspace(-1_100_000, 1_100_000, 4000)
    y, starts = np.empty(4000), np.zeros(1, np.int64)
    ref.dequantise_exp2(q, starts, 1 / 1000, 2, y)
    device_y = there(y * 0)
    triton.dequantise_exp2(there(q), there(starts), 1 / 1000, 2, device_y)
    assert bits(device_y) == bits(y)


def test_rows_that_overlap_nothing() -> None:
    """Rows start anywhere, as those of a tile inside an array do."""
    x = field(np.float32)
    starts = np.array([700, 10, 333], np.int64)
    q, device_q = np.zeros((3, 54), np.int32), there(np.zeros((3, 54), np.int32))
    outliers, device_outliers = np.zeros(150, np.uint32), there(np.zeros(150, np.int64))
    count = ref.quantise(x, starts, 0.01, 0.005, ref.NONE, 2, q, outliers)
    assert triton.quantise_floats(there(x), there(starts), 0.01, 0.005, 2, device_q, device_outliers) == count
    assert np.array_equal(device_q.cpu().numpy(), q)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extent(dtype) -> None:
    for x in (field(dtype), np.array([np.nan, np.inf], dtype), np.empty(0, dtype)):
        assert triton.extent(there(x)) == ref.extent(x)
