"""XXH3-64 on the device: the digests of the xxhash library."""

from __future__ import annotations

import numpy as np
import pytest

from tests.device import DEVICE
from trimtab.errors import ShapeError
from trimtab.kernels.xxh3 import numba, ref

torch = pytest.importorskip("torch")
triton = pytest.importorskip("trimtab.kernels.xxh3.triton", exc_type=ImportError)


@pytest.mark.parametrize("num_blocks", [1, 2, 4, 5, 6, 9, 512])
@pytest.mark.parametrize("kind", ["random", "zeros", "ones"])
def test_device_agrees(num_blocks: int, kind: str) -> None:
    fill = {"zeros": 0, "ones": 255}.get(kind)
    pieces = np.random.default_rng(num_blocks).integers(0, 256, (3, 1024 * num_blocks), dtype=np.uint8)
    if fill is not None:
        pieces[...] = fill
    expected = ref.digests(pieces)
    assert numba.digests(pieces) == expected
    assert triton.digests(torch.from_numpy(pieces).to(DEVICE)) == expected


def test_pieces_that_are_not_aligned() -> None:
    x = torch.arange(4100, device=DEVICE).to(torch.uint8)[2:4098].reshape(2, 2048)
    assert triton.digests(x) == ref.digests(x.cpu().numpy())


def test_no_pieces() -> None:
    assert triton.digests(torch.empty((0, 1024), dtype=torch.uint8, device=DEVICE)) == ref.digests(
        np.empty((0, 1024), np.uint8)
    )


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match="whole blocks"):
        triton.digests(torch.empty((2, 1000), dtype=torch.uint8, device=DEVICE))
