"""Wire codecs: one protocol, payloads of a size known beforehand, clear errors."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from trimtab import kernels
from trimtab.codecs.codec import codec_ids
from trimtab.codecs.sdp4bit import Groups
from trimtab.codecs.taco import Float8
from trimtab.codecs.wire import Exact, WireCodec, make_wire_codec, noise_key, wire_codec_ids
from trimtab.errors import ShapeError, UnknownCodec, UsageError

torch = pytest.importorskip("torch")

CODECS = [
    (Exact(), 0),
    (Exact(dtype="bfloat16"), 0.005),
    (Exact(dtype="float16"), 0.001),
    (Groups(), 0.3),
    (Groups(bits=8, group=512, hadamard=32), 0.03),
    (Groups(bits=6, stochastic=False), 0.05),
    (Float8(), 0.04),
    (Float8(format="e5m2", group=256, scales=1, hadamard=False), 0.07),
]
KEY = noise_key(1, 2, 3, 4, 5)


def elements(num: int, seed: int = 0, dtype=torch.float32):
    return torch.randn(num, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(x, y) -> float:
    return float((x.double() - y.double()).norm() / x.double().norm())


@pytest.mark.parametrize("backend", ["numba", "ref"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("codec", "share"), CODECS, ids=str)
@pytest.mark.parametrize("num", [0, 1, 1000, 1024])
def test_there_and_back(codec, share: float, dtype, num: int, backend: str) -> None:
    assert isinstance(codec, WireCodec)
    rows = torch.zeros(3, codec.payload_bytes(num) + 13, dtype=torch.uint8)[:, 13:]  # behind a header
    xs = [elements(num, seed, dtype) for seed in range(3)]
    state = torch.get_rng_state()
    with kernels.backend(backend):
        for x, row in zip(xs, rows, strict=True):
            codec.encode(x, row, KEY)
        y, total = (torch.full((num,), 7.0, dtype=dtype) for _ in range(2))
        codec.decode(rows[0], y)
        codec.decode_sum(rows, total, 1 / 3)
    assert torch.equal(torch.get_rng_state(), state)
    if num > 1:
        rounding = 0.005 if dtype == torch.bfloat16 else 1e-6
        assert error(xs[0], y) <= share + rounding
        assert error(sum(x.double() for x in xs) / 3, total) <= share + rounding


@pytest.mark.parametrize(("codec", "share"), CODECS, ids=str)
def test_tensors_that_need_gradients_are_taken(codec, share: float) -> None:
    x = elements(100).requires_grad_()
    payload = torch.zeros(codec.payload_bytes(100), dtype=torch.uint8)
    codec.encode(x, payload, KEY)
    codec.decode(payload, x)


def test_two_levels_and_differences() -> None:
    inside, across = Groups(bits=8, hadamard=32), Groups(bits=4, group=64, hadamard=32)
    xs = [elements(1000, seed) for seed in range(2)]
    rows = torch.zeros(2, inside.payload_bytes(1000), dtype=torch.uint8)
    for x, row in zip(xs, rows, strict=True):
        inside.encode(x, row, KEY)
    out = torch.zeros(across.payload_bytes(1000), dtype=torch.uint8)
    inside.decode_sum_encode(rows, out, 1000, across, KEY)
    y = torch.empty(1000)
    across.decode(out, y)
    assert error(xs[0] + xs[1], y) < 0.25

    weights = Groups(group=2048)
    reference = elements(5000, 3, torch.bfloat16)
    before = reference.clone()
    target = reference.float() + 0.05 * elements(5000, 4)
    payload = torch.zeros(weights.payload_bytes(5000), dtype=torch.uint8)
    weights.encode_difference(target, reference, payload, KEY)
    assert torch.equal(reference, before)
    weights.decode_add(payload, reference)
    assert error(target, reference) < 0.5 * error(target, before)


def test_exact_sums_in_order() -> None:
    codec = Exact()
    xs = torch.tensor([[1e8], [1.0], [-1e8]])
    rows = torch.zeros(3, 4, dtype=torch.uint8)
    for x, row in zip(xs, rows, strict=True):
        codec.encode(x, row)
    y = torch.empty(1)
    codec.decode_sum(rows, y)
    assert y.item() == ((np.float32(1e8) + np.float32(1)) - np.float32(1e8))


def test_without_stochastic_rounding_the_key_does_nothing() -> None:
    codec, x = Groups(stochastic=False), elements(500)
    one, other = (torch.zeros(codec.payload_bytes(500), dtype=torch.uint8) for _ in range(2))
    codec.encode(x, one)
    codec.encode(x, other, KEY)
    assert torch.equal(one, other)


def test_payloads_depend_on_the_key_alone() -> None:
    codec, x = Groups(), elements(500)
    payloads = [torch.zeros(codec.payload_bytes(500), dtype=torch.uint8) for _ in range(3)]
    for payload, key in zip(payloads, (KEY, KEY, KEY + 1), strict=True):
        codec.encode(x, payload, key)
    assert torch.equal(payloads[0], payloads[1])
    assert not torch.equal(payloads[0], payloads[2])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Groups(bits=1), "2 to 8"),
        (lambda: Groups(bits=9), "got 9"),
        (lambda: Groups(group=100), "power of two"),
        (lambda: Groups(group=1 << 14), "8 to 8192"),
        (lambda: Groups(group=32, hadamard=64), "at most the group of 32"),
        (lambda: Groups(hadamard=16), "hadamard must be 0 or one of"),
        (lambda: Float8(format="e3m4"), "e4m3, e5m2"),
        (lambda: Float8(group=16), "group must be one of"),
        (lambda: Float8(scales=3), "scales must be 1 or 2"),
        (lambda: Float8(format="e5m2", target=57734.0), "57344.*cut off"),
        (lambda: Float8(target=449.0), "448"),
        (lambda: Float8(target=float("nan")), "target"),
        (lambda: Exact(dtype="float64"), "float32, bfloat16, float16"),
    ],
)
def test_settings_are_checked_at_construction(make, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_calls_are_checked() -> None:
    codec, x = Groups(), elements(256)
    payload = torch.zeros(codec.payload_bytes(256), dtype=torch.uint8)
    with pytest.raises(UsageError, match="needs a key"):
        codec.encode(x, payload)
    for bad in (x.double(), x.reshape(2, 128), x[::2], x.half()):
        with pytest.raises(ShapeError, match="flat, contiguous tensor of float32 or bfloat16"):
            codec.encode(bad, payload, KEY)
    for bad in (payload[1:], payload.to(torch.int8), payload[None], torch.zeros(0, dtype=torch.uint8)):
        with pytest.raises(ShapeError, match=f"uint8 tensor of {payload.numel()} bytes"):
            codec.encode(x, bad, KEY)
        with pytest.raises(ShapeError, match=f"uint8 tensor of {payload.numel()} bytes"):
            codec.decode(bad, x)
    for bad in (payload, payload[None][:0], payload[None, 1:]):
        for any_codec in (codec, Float8(), Exact()):
            with pytest.raises(ShapeError):
                any_codec.decode_sum(bad, x)
    with pytest.raises(UsageError, match="hadamard must be 0 in both"):
        codec.decode_sum_encode(payload[None], payload, 256, Groups(hadamard=32), KEY)
    with pytest.raises(UsageError, match="without a transform"):
        Groups(hadamard=32).encode_difference(x, x, payload, KEY)
    with pytest.raises(UsageError, match="256 elements, its reference 255"):
        codec.encode_difference(x, x[1:], payload, KEY)


def test_registry() -> None:
    for codec, _ in CODECS:
        settings = msgspec.to_builtins(codec)
        assert settings["id"] == codec.id in wire_codec_ids()
        assert make_wire_codec(settings) == codec
    assert not set(wire_codec_ids()) & set(codec_ids())  # they promise no bound
    with pytest.raises(UnknownCodec, match="exact, groups, float8"):
        make_wire_codec({"id": "sz"})
    for bad in ({"bits": 10}, {"group": 100}, {"bit": 4}):
        with pytest.raises(UsageError, match="bad settings of wire codec 'groups'"):
            make_wire_codec({"id": "groups", **bad})


def test_the_device_twin_makes_the_same_payloads(monkeypatch) -> None:
    pytest.importorskip("triton")
    for codec, _ in CODECS:
        x = elements(300)
        one, other = (torch.zeros(codec.payload_bytes(300), dtype=torch.uint8) for _ in range(2))
        codec.encode(x, one, KEY)
        with kernels.backend("triton"):
            codec.encode(x, other, KEY)
            y, w = torch.empty(300), torch.empty(300)
            codec.decode(one, w)
        codec.decode(one, y)
        assert torch.equal(one, other) and torch.equal(y, w)
