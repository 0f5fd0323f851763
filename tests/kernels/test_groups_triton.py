"""Integers in groups on the device: payloads and elements are those of the specification, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.device import DEVICE
from tests.kernels.wire import bfloat16, elements
from trimtab.kernels.groups import ref

torch = pytest.importorskip("torch")
triton = pytest.importorskip("trimtab.kernels.groups.triton", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with NumPy

# elements, group, order, bits, bfloat16
CASES = [
    (0, 128, 0, 4, False),
    (5000, 128, 32, 4, False),
    (777, 8, 0, 3, True),
    (3000, 2048, 0, 5, True),
    (1300, 128, 128, 8, False),
    (2100, 64, 32, 6, False),
    (100, 512, 0, 7, True),
    (4096, 2048, 512, 2, False),
    (9000, 8192, 0, 4, True),
]


def there(x: np.ndarray) -> torch.Tensor:
    """Copy to the device, words as bfloat16; rows of payloads stay apart."""
    if x.dtype == np.uint16:
        return torch.from_numpy(x.view(np.int16).copy()).to(DEVICE).view(torch.bfloat16)
    return torch.from_numpy(x.copy()).to(DEVICE)


def back(x: torch.Tensor) -> np.ndarray:
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).cpu().numpy().view(np.uint16)
    return x.cpu().numpy()


def same(x: torch.Tensor, expected: np.ndarray) -> bool:
    return np.array_equal(back(x), expected, equal_nan=expected.dtype == np.float32)


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize(("num", "group", "order", "bits", "is_bfloat16"), CASES)
def test_device_agrees(num: int, group: int, order: int, bits: int, is_bfloat16: bool, keyed: bool) -> None:
    x = elements(num, 1, 1e-3, specials=False)
    if num > 900:
        x[[200, 700]] = np.nan, -np.inf
        x[:130], x[600:650] = 0, 1e-40
    x = bfloat16(x) if is_bfloat16 else x
    key = ref.noise_key(1, 2, 3) if keyed else None
    rows = np.zeros((3, ref.payload_bytes(num, bits, group, order) + 5), np.uint8)[:, 5:]  # at odd addresses
    device_rows = torch.zeros(3, rows.shape[1] + 5, dtype=torch.uint8, device=DEVICE)[:, 5:]
    for r in range(3):
        ref.encode(np.roll(x, r), rows[r], bits, group, order, key)
        triton.encode(there(np.roll(x, r)), device_rows[r], bits, group, order, key)
    assert np.array_equal(back(device_rows), rows)
    y, device_y = np.zeros_like(x), there(np.zeros_like(x))
    ref.decode_sum(rows, y, bits, group, order, 0.3)
    triton.decode_sum(device_rows, device_y, bits, group, order, 0.3)
    assert same(device_y, y)
    ref.decode(rows[1], y, bits, group, order)
    triton.decode(device_rows[1], device_y, bits, group, order)
    assert same(device_y, y)
    for out_bits, out_group in ((8, max(128, order)), (4, 2048)):
        out = np.zeros(ref.payload_bytes(num, out_bits, out_group, order), np.uint8)
        device_out = there(out)
        ref.decode_sum_encode(rows, out, num, bits, group, out_bits, out_group, order, key)
        triton.decode_sum_encode(device_rows, device_out, num, bits, group, out_bits, out_group, order, key)
        assert same(device_out, out)


@pytest.mark.parametrize(("num", "group", "order", "bits", "is_bfloat16"), CASES)
def test_differences_agree(num: int, group: int, order: int, bits: int, is_bfloat16: bool) -> None:
    reference = elements(num, 1)
    x = reference + elements(num, 2, 0.01)
    reference = bfloat16(reference) if is_bfloat16 else reference
    packed = np.zeros(ref.payload_bytes(num, bits, group, 0), np.uint8)
    device_packed, device_reference = there(packed), there(reference)
    ref.encode_difference(x, reference, packed, bits, group, 7)
    triton.encode_difference(there(x), device_reference, device_packed, bits, group, 7)
    assert same(device_packed, packed)
    ref.decode_add(packed, reference, bits, group)
    triton.decode_add(device_packed, device_reference, bits, group)
    assert same(device_reference, reference)
