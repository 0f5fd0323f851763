"""Blocks of tensors are packed where they are, to the bytes that the host makes."""

from __future__ import annotations

import numpy as np
import pytest

import trimtab as tt
from tests.device import DEVICE
from trimtab.bounds import Abs, Rel
from trimtab.codecs import Blocks
from trimtab.errors import BoundError, ShapeError

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
device = pytest.importorskip("trimtab.codecs.blocks_device")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with NumPy


@pytest.fixture(autouse=True)
def on_device():
    with tt.backend("triton"):
        yield


@pytest.mark.parametrize("start", [None, 2**40 + 77])
def test_the_bytes_are_those_of_the_host(start):
    x = np.maximum(np.random.default_rng(0).standard_normal((7, 11), dtype=np.float32), 0)
    packed = device.encode_tensor(torch.from_numpy(x.T.copy()).to(DEVICE).T, Abs(0.1), start=start)
    by_host, squared_error = Blocks(dither=start is not None).encode_measured(x, Abs(0.1), start=start or 0)
    assert np.array_equal(packed.data.cpu().numpy(), by_host.buffers["data"])
    assert np.array_equal(packed.sizes.cpu().numpy(), by_host.buffers["sizes"])
    assert float(packed.squared_error) == pytest.approx(squared_error, rel=1e-5)
    y = device.decode_tensor(packed)
    assert np.array_equal(y.cpu().numpy(), Blocks().decode(by_host))
    out = torch.empty_like(y)
    assert device.decode_tensor(packed, out) is out
    assert torch.equal(out, y)
    assert packed.num_bytes == packed.data.numel() + 4


def test_what_does_not_fit_is_refused():
    x = torch.ones(5, device=DEVICE)
    with pytest.raises(BoundError):
        device.encode_tensor(x, Rel(0.1))
    with pytest.raises(ShapeError, match="int64"):
        device.encode_tensor(x.long(), Abs(0.1))
    packed = device.encode_tensor(x, Abs(0.1))
    for out in (x[:4], x.double(), torch.ones(10, device=DEVICE)[::2]):
        with pytest.raises(ShapeError):
            device.decode_tensor(packed, out)


def test_hosts_keep_to_their_own_kernels():
    with tt.backend("numba"):
        assert device.encode_tensor(torch.ones(5), Abs(0.1)) is None
