"""ENEC on the device: the files of the host, read and written where tensors are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import trimtab as tt
from tests.device import DEVICE
from tests.samples import random_bits, same_bits, sample
from trimtab import kernels
from trimtab.arrays import as_numpy, as_torch, torch_device
from trimtab.codecs import ENEC
from trimtab.errors import BackendUnavailable, Corrupt, FormatError, UsageError
from trimtab.packed import Header, Packed

torch = pytest.importorskip("torch")
pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def forced() -> Iterator[None]:
    with kernels.backend("triton"):
        yield


def weights(shape: tuple[int, ...], odd: float = 0.002) -> np.ndarray:
    x = sample("bfloat16", shape)
    chosen = np.random.default_rng(0).random(x.size) < odd
    x.reshape(-1)[chosen] = random_bits("bfloat16", x.size)[chosen]
    return x


def on_device(x: np.ndarray) -> torch.Tensor:
    return as_torch(x.copy()).to(DEVICE)


def packed_there(x: np.ndarray) -> Packed:
    packed = ENEC().encode_tensor(on_device(x))
    assert packed is not None
    return packed


@pytest.mark.parametrize("shape", [(1024,), (31, 41, 13), (3, 87_391)])
def test_same_bytes_and_back(shape: tuple[int, ...]) -> None:
    x = weights(shape)
    packed, expected = packed_there(x), ENEC().encode(x)
    assert packed.header == expected.header
    assert packed.header.params["layout"] == "escape"
    assert list(packed.buffers) == list(expected.buffers)
    assert all(np.array_equal(packed.buffers[name], expected.buffers[name]) for name in packed.buffers)
    y = ENEC().decode_tensor(packed, torch.device(DEVICE))
    assert y is not None
    assert y.device.type == DEVICE
    assert same_bits(as_numpy(y), x)


def test_strided_tensors() -> None:
    x = weights((60, 80))
    packed = ENEC().encode_tensor(on_device(x).t())
    assert packed is not None
    assert same_bits(ENEC().decode(packed), x.T)


def test_what_is_left_to_the_host() -> None:
    for x in (sample("float32", (40, 40)), sample("bfloat16", (1023,)), np.zeros(2000, sample("bfloat16", ()).dtype)):
        assert ENEC().encode_tensor(on_device(x)) is None
        blob = tt.compress(on_device(x))
        assert blob == tt.compress(x)
        assert same_bits(as_numpy(tt.decompress(blob, device=DEVICE)), x)
    assert ENEC(mode="paper").encode_tensor(on_device(weights((40, 40)))) is None
    with kernels.backend("ref"):
        assert ENEC().encode_tensor(on_device(weights((40, 40)))) is None


def test_files(tmp_path) -> None:
    model = {"w": weights((90, 50)), "b": sample("float32", (50,)), "n": np.array(3)}
    tt.save(tmp_path / "there.tt", {name: on_device(x) for name, x in model.items()})
    tt.save(tmp_path / "here.tt", model)
    assert (tmp_path / "there.tt").read_bytes() == (tmp_path / "here.tt").read_bytes()
    loaded = tt.load(tmp_path / "here.tt", device=DEVICE)
    for name, x in model.items():
        assert loaded[name].device.type == DEVICE
        assert same_bits(as_numpy(loaded[name]), x)


def test_a_changed_sign_is_found() -> None:
    """A bit that no table contradicts: only the checksum sees it."""
    blob = bytearray(tt.compress(weights((60, 80))))
    start = int.from_bytes(blob[:8], "little") + 8
    blob[start + 5] ^= 0x80
    with pytest.raises(Corrupt, match="checksum"):
        tt.decompress(blob, device=DEVICE)


@pytest.mark.parametrize("seed", range(24))
def test_damaged_entries_are_refused(seed: int) -> None:
    """What the device says of a damaged entry is what the host says."""
    rng = np.random.default_rng(seed)
    packed = ENEC().encode(weights((50, 90), odd=0.05))
    buffers = {name: buffer.copy() for name, buffer in packed.buffers.items()}
    params, shape = dict(packed.header.params), packed.header.shape
    match seed % 6:
        case 0:
            buffers["escapes"] = buffers["escapes"][: rng.integers(0, buffers["escapes"].size)]
        case 1:
            buffers["escapes"][rng.integers(0, buffers["escapes"].size, 4)] ^= np.uint8(1 << rng.integers(0, 8))
        case 2:
            planes = buffers["fixed"][50 * 90 :]
            planes[rng.integers(0, planes.size, 2)] ^= np.uint8(1 << rng.integers(0, 8))
        case 3:
            shape = (50, 91)
        case 4:
            params["width"] = params["width"] % 3 + 2
        case 5:
            params["next_width"] = params["next_width"] % 3 + 2
    header = Header(codec=packed.header.codec, bound=packed.header.bound, dtype="bfloat16", shape=shape, params=params)
    results = []
    for decode in (ENEC().decode, lambda damaged: ENEC().decode_tensor(damaged, torch.device(DEVICE))):
        try:
            results.append(as_numpy(decode(Packed(header, buffers))).tobytes())
        except FormatError:
            results.append(b"refused")
    assert results[0] == results[1]


def test_another_dtype_is_refused() -> None:
    packed = ENEC().encode(weights((50, 90)))
    header = Header(
        codec=packed.header.codec, bound=packed.header.bound, dtype="int16", shape=(50, 90), params=packed.header.params
    )
    with pytest.raises(Corrupt, match="holds bfloat16"):
        ENEC().decode_tensor(Packed(header, packed.buffers), torch.device(DEVICE))


def test_devices_that_are_not_there() -> None:
    with pytest.raises(BackendUnavailable, match="there is no device 'cuda:99'"):
        tt.decompress(tt.compress(np.ones(3)), device="cuda:99")
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        torch_device("gpu")
    with pytest.raises(UsageError, match="give one of them"):
        tt.decompress(tt.compress(np.ones(3)), device=DEVICE, out=np.ones(3))
