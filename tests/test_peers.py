from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from trimtab.bounds import PSNR, Abs, Bound, Lossless, Rel
from trimtab.errors import UsageError
from trimtab.peers import PEERS, SPERR, SZ3, ZFP, Peer, ZipNN, Zstd, find_peer

DTYPES = (ml_dtypes.bfloat16, "float16", "float32", "float64", "int64", "uint8", "bool", "complex128", ">f4")
SHAPES = ((), (0,), (1,), (7,), (5, 6, 7), (200, 31))


def installed(peer: Peer) -> Peer:
    reason = peer.unavailable()
    if reason is not None:
        pytest.skip(reason)
    return peer


def noise(shape: tuple[int, ...], dtype: object) -> np.ndarray:
    return np.asarray(np.random.default_rng(0).standard_normal(shape) * 9).astype(dtype)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what a peer imports is not ours to judge
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_round_trip_keeps_the_bound(peer: Peer) -> None:
    installed(peer)
    bound: Bound = Lossless() if peer.lossless else Abs(0.01)
    accepted = set()
    for dtype in DTYPES:
        for shape in SHAPES:
            x = noise(shape, dtype)
            if peer.refuses(x, bound) is not None:
                continue
            accepted.add((x.dtype.name, shape))
            before = x.copy()
            encoded = peer.compress(x, bound)
            y = peer.decompress(encoded)
            assert (y.dtype, y.shape) == (x.dtype, x.shape)
            assert bound.allows(x, y)
            assert np.array_equal(before, x)
            assert encoded.num_bytes == len(memoryview(encoded.data).cast("B"))
    fewest_axes = 2 if isinstance(peer, SPERR) else 0
    assert {("float32", shape) for shape in SHAPES if shape != (0,) and len(shape) >= fewest_axes} <= accepted


@pytest.mark.parametrize("peer", [peer for peer in PEERS if not peer.lossless], ids=lambda peer: peer.name)
def test_relative_bound_is_relative_to_the_value_range(peer: Peer) -> None:
    x = np.cumsum(noise((32, 32, 32), "float32"), axis=0) * np.float32(1e-6)  # far from a range of 1
    tight, loose = (installed(peer).compress(x, Rel(value)) for value in (1e-4, 1e-2))
    assert loose.num_bytes < tight.num_bytes
    assert Rel(1e-4).allows(x, peer.decompress(tight))
    assert Rel(1e-2).allows(x, peer.decompress(loose))


def test_a_strided_array_comes_back_in_c_order() -> None:
    x = noise((6, 4), "float32").T
    y = Zstd().decompress(Zstd().compress(x))
    assert np.array_equal(x, y)


def test_names_are_distinct_and_found() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert all(find_peer(peer.name) is peer for peer in PEERS)
    with pytest.raises(UsageError, match="unknown peer 'rar'; expected one of zipnn"):
        find_peer("rar")


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_relative_bound_is_that_of_the_finite_range(special: float) -> None:
    peer = installed(SZ3())
    x = np.cumsum(noise((32, 32, 32), "float32"), axis=0)
    x[3, 4, 5] = special
    assert Rel(1e-3).allows(x, peer.decompress(peer.compress(x, Rel(1e-3))))


@pytest.mark.parametrize(
    ("peer", "x", "bound", "reason"),
    [
        (Zstd(), noise((4,), "float32"), Abs(1), "lossless"),
        (ZipNN(), noise((4,), "float64"), Lossless(), "the array is float64"),
        (SZ3(), noise((4,), "float32"), Lossless(), "absolute or range-relative"),
        (SZ3(), noise((4,), "float32"), PSNR(60), "absolute or range-relative"),
        (SZ3(), noise((4,), "float16"), Abs(1), "the array is float16"),
        (SZ3(), noise((4,), ">f4"), Abs(1), "the array is >f4"),
        (SZ3(), noise((0,), "float32"), Abs(1), "no empty arrays"),
        (ZFP(), np.ones(4, "float32"), Rel(0.1), "positive error bound"),
        (ZFP(), noise((1, 1, 2, 1, 3), "float32"), Abs(1), "up to 4 axes"),
        (ZFP(), np.array([1, np.nan], "float32"), Abs(1), "no NaN"),
        (SPERR(), noise((1, 9, 1), "float32"), Abs(1), "2 or 3 axes longer than 1"),
        (SPERR(), noise((2, 2, 2, 2), "float32"), Abs(1), "2 or 3 axes longer than 1"),
        (SPERR(), np.array([[1, np.nan], [2, 3]], "float32"), Abs(1), "no NaN"),
    ],
)
def test_refusals_say_why(peer: Peer, x: np.ndarray, bound: Bound, reason: str) -> None:
    assert reason in (peer.refuses(x, bound) or "")


def test_a_missing_package_is_a_reason_not_a_crash() -> None:
    class Missing(Zstd):
        module = "trimtab_no_such_module"
        package = "no-such-package"

    reason = Missing().unavailable()
    assert reason is not None
    assert "trimtab_no_such_module" in reason
    assert "pip install no-such-package" in reason
    assert Zstd().unavailable() is None


def test_importing_the_adapters_imports_no_peer() -> None:
    code = (
        "import sys, trimtab.peers as p; "
        "print([q.module for q in p.PEERS if q.module in sys.modules and q.module != 'zstandard'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
