"""Blocks of bit planes on the device: the bytes are those of the specification, and damage is seen."""

from __future__ import annotations

import numpy as np
import pytest

from tests.device import DEVICE
from tests.kernels.test_blocks import activations, decoded, encoded
from trimtab.dtypes import numpy_dtype
from trimtab.kernels.blocks import ref

torch = pytest.importorskip("torch")
triton = pytest.importorskip("trimtab.kernels.blocks.triton", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with NumPy


def there(x: np.ndarray) -> torch.Tensor:
    words = torch.from_numpy(x.view(f"i{x.itemsize}").copy()).to(DEVICE)
    return words.view(getattr(torch, x.dtype.name)) if x.dtype.kind not in "iu" or x.itemsize > 1 else words


def back(x: torch.Tensor) -> np.ndarray:
    return x.cpu().view(torch.int32 if x.element_size() == 4 else torch.int16).numpy()


@pytest.mark.parametrize(
    ("name", "size", "error", "start"),
    [
        ("float32", 0, 0.25, ref.PLAIN),
        ("float32", 1, 0.25, ref.PLAIN),
        ("float32", 1110, 0.25, ref.PLAIN),
        ("float32", 150, 3e-5, ref.PLAIN),
        ("float32", 70, 0.0, ref.PLAIN),
        ("float16", 300, 0.25, ref.PLAIN),
        ("bfloat16", 200, 0.15625, ref.PLAIN),
        ("float32", 1110, 0.25, 2**32 - 1030),
        ("float32", 70, 0.0, 5),
        ("float32", 70, 1e-44, 2**31 - 3),
        ("float16", 300, 0.25, 3_000_000_000),
        ("bfloat16", 200, 0.15625, 0),
    ],
)
def test_device_agrees(name: str, size: int, error: float, start: int) -> None:
    x = activations(name, size)
    x[150:1000] = 0  # the interpreter takes its time
    sizes, data, total = encoded(ref, x, error, start)
    device_sizes, device_data, device_total = triton.encode_tensor(there(x), float(np.float32(error)), start)
    assert device_sizes.cpu().numpy().astype(np.uint16).tobytes() == sizes
    assert device_data.cpu().numpy().tobytes() == data
    assert float(device_total) == pytest.approx(total, rel=1e-5)
    y = torch.full((size,), 9, dtype=getattr(torch, name), device=DEVICE)
    assert triton.decode_tensor(device_sizes, device_data, float(np.float32(error)), y, start)
    num_kept, wide = decoded(ref, sizes, data, error, x, start)
    expected = wide.astype(numpy_dtype(name))
    if num_kept:
        ref.restore(np.frombuffer(data, np.uint8), np.frombuffer(sizes, np.uint16), x.itemsize, expected.view(np.uint8))
    assert np.array_equal(back(y), expected.view(f"i{x.itemsize}"))


def test_damage_is_seen_as_by_the_reference() -> None:
    x = activations("float32", 100)
    sizes, data, _ = encoded(ref, x, 0.25)
    rng = np.random.default_rng(5)
    for k in range(4):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[0 if k < 2 else rng.integers(0, damaged.size)] ^= 1 << k % 8
        expected, _ = decoded(ref, sizes, damaged.tobytes(), 0.25, x)
        y = torch.zeros(x.size, device=DEVICE)
        device_sizes = torch.from_numpy(np.frombuffer(sizes, np.uint16).astype(np.int32)).to(DEVICE)
        assert triton.decode_tensor(device_sizes, torch.from_numpy(damaged).to(DEVICE), 0.25, y) == (expected >= 0)
