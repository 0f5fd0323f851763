"""Arrays as users hold them, through as_numpy and as_torch, and through compress and save."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

import trimtab as tt
from tests.samples import ALL, SHAPES, same_bits, sample
from trimtab.arrays import as_numpy, as_torch, is_torch
from trimtab.errors import BackendUnavailable, ShapeError

TORCH = [name for name in ALL if hasattr(torch, name)]


def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return as_torch(sample(name, shape))


def same_tensor(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and bits, by torch's own means."""
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    if x.numel() == 0:
        return True
    x, y = (t.detach().resolve_conj().contiguous().reshape(-1) for t in (x, y))
    if x.is_complex():
        x, y = torch.view_as_real(x), torch.view_as_real(y)
    return bool(torch.equal(x.view(torch.uint8), y.view(torch.uint8)))


def both_ways(x: torch.Tensor | np.ndarray, tmp_path) -> list:
    """Return what comes back through compress and through save, as NumPy arrays and as tensors."""
    blob = tt.compress(x)
    tt.save(tmp_path / "x.tt", {"x": x})
    came = [tt.decompress(blob), tt.load(tmp_path / "x.tt")["x"]]
    if (x if isinstance(x, np.ndarray) else as_numpy(x)).dtype.name in TORCH:
        came += [tt.decompress(blob, framework="pt"), tt.load(tmp_path / "x.tt", framework="pt")["x"]]
        assert all(isinstance(y, torch.Tensor) for y in came[2:])
    assert all(isinstance(y, np.ndarray) for y in came[:2])
    return came


def test_every_dtype_but_none_is_in_torch():
    assert set(ALL) == set(TORCH)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 5)], ids=str)
def test_tensors_come_back(name, shape, tmp_path):
    x = tensor(name, shape)
    assert x.dtype == getattr(torch, name)
    for y in both_ways(x, tmp_path):
        assert same_tensor(x, y if is_torch(y) else as_torch(y))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_arrays_come_back(name, shape, tmp_path):
    x = sample(name, shape)
    for y in both_ways(x, tmp_path):
        assert same_bits(x, as_numpy(y))


VIEWS = {
    "transposed": lambda t: t.t(),
    "strided": lambda t: t[::2, 1::3],
    "expanded": lambda t: t[:1].expand(9, t.shape[1]),
    "grad": lambda t: t.clone().requires_grad_(),
    "of a graph": lambda t: t.clone().requires_grad_() * 2,
    "parameter": torch.nn.Parameter,
    "conjugate": lambda t: torch.complex(t, 1 + t).conj(),
    "imaginary part of a conjugate": lambda t: torch.complex(t, 1 + t).conj().imag,
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_of_tensors(view, tmp_path):
    x = VIEWS[view](tensor("float32", (12, 20)))
    for y in both_ways(x, tmp_path):
        assert torch.equal(x.detach(), y if is_torch(y) else torch.from_numpy(y))


@pytest.mark.parametrize(
    "x",
    [
        np.arange(12.0).astype(">f8"),
        np.arange(12).astype(">u2").reshape(3, 4)[:, ::-1],
        np.arange(12, dtype="f4")[::-1],
        np.arange(24, dtype="f4").reshape(2, 3, 4).transpose(2, 0, 1)[:, ::-1],
        np.asfortranarray(np.arange(12, dtype="i2").reshape(3, 4)),
        np.broadcast_to(np.float32(2.5), (3, 4)),
        np.arange(7, dtype=ml_dtypes.bfloat16)[1::2],
        np.zeros((3, 4), ">c16")[::2],
        np.zeros(10, "f4")[3:3],
        np.frombuffer(b"\x00" * 33, "u1")[1:].view("f8"),  # misaligned and read-only
    ],
    ids=lambda x: f"{x.dtype.str}-{x.strides}",
)
def test_views_of_arrays(x, tmp_path):
    before = x.copy()
    for y in both_ways(x, tmp_path):
        assert same_bits(np.asarray(x), as_numpy(y))
    assert same_bits(before, x)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("framework", ["np", "pt"])
def test_lossy_tensors_stay_within_the_bound(name, framework):
    x = tensor(name, (50, 40))
    y = tt.decompress(tt.compress(x.clone().requires_grad_(), tt.Rel(0.05)), framework=framework)
    assert tt.Rel(0.05).allows(as_numpy(x), as_numpy(y))


def test_memory_is_shared_where_it_can_be():
    x = torch.arange(6, dtype=torch.bfloat16)
    as_numpy(x)[2] = 40
    assert x[2] == 40
    y = np.zeros(3, ml_dtypes.float8_e5m2)
    as_torch(y)[1] = 2
    assert y[1] == 2


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array(["a"]), "cannot store arrays of dtype <U1"),
        (np.array([None]), "dtype object"),
        (np.zeros(2, "M8[s]"), "datetime64"),
        (np.zeros(2, "f4,f4"), "cannot store"),
        (np.zeros(2, ml_dtypes.int4), "int4"),
        (np.zeros(2, np.longdouble), "cannot store|float64"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "mask"),
        (torch.zeros(3).to_sparse(), "to_dense"),
        (torch.zeros(3, device="meta"), "meta"),
        (torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "float4_e2m1fn_x2"),
    ],
    ids=lambda x: str(x) if isinstance(x, str) else f"{type(x).__name__}-{x.dtype}",
)
def test_what_cannot_be_stored_is_refused(x, message):
    with pytest.raises(ShapeError, match=message):
        tt.compress(x)


def test_numbers_and_lists_are_arrays():
    assert tt.decompress(tt.compress(2.5)) == 2.5
    assert tt.decompress(tt.compress([[1, 2], [3, 4]])).tolist() == [[1, 2], [3, 4]]


def test_tensors_without_torch_are_refused_with_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not is_torch(np.zeros(3))
    with pytest.raises(BackendUnavailable, match=r"trimtab\[torch\]"):
        as_torch(np.zeros(3))


def test_arrays_do_not_need_torch():
    code = (
        "import sys; sys.modules['torch'] = None; import trimtab as tt; print(tt.decompress(tt.compress([1.5, 2.5])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[1.5 2.5]\n"
