"""Linear prediction on the device: residuals and values are those of the specification."""

from __future__ import annotations

import numpy as np
import pytest

from tests.device import DEVICE
from tests.kernels.test_predictor import LAYOUTS
from trimtab.codecs.prediction import lorenzo_weights
from trimtab.errors import ShapeError
from trimtab.kernels.predictor import numba, ref

torch = pytest.importorskip("torch")
triton = pytest.importorskip("trimtab.kernels.predictor.triton", exc_type=ImportError)

# planes, rows per plane, row length, lane, linear
MORE = [(1, 70, 130, 1, False), (66, 2, 20, 2, False), (2, 66, 65, 3, False), (1, 9, 300, 4, True), (1, 1, 5, 2, True)]


def there(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.copy()).to(DEVICE)


@pytest.mark.parametrize(
    ("layout", "kind"), [*((layout, "lorenzo") for layout in LAYOUTS + MORE), *((x, "weighted") for x in LAYOUTS)]
)
def test_device_agrees(layout: tuple[int, int, int, int, bool], kind: str) -> None:
    planes, per_plane, num, lane, linear = layout
    rng = np.random.default_rng(0)
    dimension = 1 if linear else 3 if planes > 1 else 2
    weights, shift, largest = lorenzo_weights(dimension), 0, 2**30
    if kind == "weighted":
        weights, shift, largest = rng.integers(-300, 300, weights.size).astype(np.int32), 7, 2**22
    margin = 2 * lane
    q = np.zeros((planes * per_plane, num + 2 * margin), np.int32)
    q[:, margin:-margin] = rng.integers(-largest + 1, largest, (len(q), num))
    edges = ref.band_edges(len(q), per_plane)
    device_q = there(q)
    numba.fill_margins(q, edges, per_plane, lane, linear)
    triton.fill_margins(device_q, edges, per_plane, lane, linear)
    assert np.array_equal(device_q.cpu().numpy(), q)
    residual = np.zeros((len(q), num), np.int32)
    device_residual = there(residual + 7)
    numba.encode(q, edges, per_plane, lane, weights, shift, residual)
    triton.encode(device_q, edges, per_plane, lane, weights, shift, device_residual)
    assert np.array_equal(device_residual.cpu().numpy(), residual)
    if kind == "lorenzo":
        back = np.full_like(q, 7)
        back[:, margin:-margin] = residual
        device_back = there(back)
        triton.decode_lorenzo(device_back, edges, per_plane, lane, linear)
        assert np.array_equal(device_back.cpu().numpy(), q)


def test_sums_wrap_as_on_the_host() -> None:
    """Residuals of a damaged file are any integers."""
    residual = np.random.default_rng(0).integers(-(2**31), 2**31, (6, 40)).astype(np.int32)
    q = np.pad(residual, ((0, 0), (2, 2)))
    edges, device_q = ref.band_edges(6, 3), there(q)
    numba.decode(q, edges, 3, 1, False, lorenzo_weights(3), 0)
    triton.decode_lorenzo(device_q, edges, 3, 1, False)
    assert np.array_equal(device_q.cpu().numpy(), q)


def test_rows_too_short_for_their_margin() -> None:
    with pytest.raises(ShapeError, match="too short"):
        triton.fill_margins(torch.zeros((2, 3 + 8), dtype=torch.int32, device=DEVICE), np.array([0, 2]), 2, 2, True)
