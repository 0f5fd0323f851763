"""Packed and its header: what they refuse before anything is allocated."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import xxhash

from trimtab.bounds import Lossless
from trimtab.errors import Corrupt, ShapeError
from trimtab.packed import Count, Header, Packed, digest


def header(**changes) -> Header:
    fields = {"codec": {"id": "raw"}, "bound": Lossless(), "dtype": "float32", "shape": (3, 4), **changes}
    return Header(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float31"}, "float31"),
        ({"shape": (1,) * 65}, "65 axes"),
        ({"shape": (2**61, 2)}, "does not fit in memory"),
        ({"shape": (2**61, 0, 2)}, "does not fit in memory"),  # NumPy refuses such empty arrays too
    ],
)
def test_headers_refuse_nonsense(changes, message):
    with pytest.raises(ValueError, match=message):
        header(**changes)


def test_sizes_beyond_four_gib_are_exact():
    large = header(shape=(3, 2**31, 5))
    assert large.num_elements == 15 * 2**31
    assert large.num_bytes == 60 * 2**31


def test_digest_is_of_the_elements_in_c_order():
    x = np.arange(12, dtype="<i4").reshape(3, 4)
    expected = xxhash.xxh3_64_intdigest(x.tobytes())
    assert digest(x) == digest(x.astype(">i4")) == digest(np.asfortranarray(x)) == digest(x[::-1][::-1]) == expected
    assert digest(x.T) != expected
    assert digest(np.array(5)) == xxhash.xxh3_64_intdigest((5).to_bytes(8, "little"))
    assert digest(np.zeros((0, 3))) == xxhash.xxh3_64_intdigest(b"")


def test_buffers_are_checked():
    packed = Packed(header(), {"data": np.arange(6, dtype="u2"), "square": np.zeros((2, 2), "u1")})
    assert packed.buffer("data", "uint16", 6).tolist() == list(range(6))
    for arguments in [("gone",), ("data",), ("data", "uint16", 5), ("square",)]:
        with pytest.raises(Corrupt, match=arguments[0]):
            packed.buffer(*arguments)


def test_misaligned_buffers_are_copied():
    raw = np.frombuffer(b"?" + np.arange(3.0).tobytes(), "u1")[1:].view("f8")
    assert not raw.flags.aligned
    buffer = Packed(header(), {"data": raw}).buffer("data", "float64", 3)
    assert buffer.flags.aligned
    assert buffer.tolist() == [0, 1, 2]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    level: Count


@pytest.mark.parametrize("params", [{}, {"level": "x"}, {"level": 2**70}, {"level": 1, "more": 2}, {"level": None}])
def test_params_are_checked(params):
    with pytest.raises(Corrupt, match="bad params of codec 'raw'"):
        Packed(header(params=params), {}).params(Settings)


def test_params_come_back():
    assert Packed(header(params={"level": 3}), {}).params(Settings) == Settings(3)


def test_output_is_given_or_new():
    packed = Packed(header(), {})
    fresh = packed.output(None)
    assert fresh.shape == (3, 4)
    assert fresh.dtype == np.float32
    assert packed.output(fresh) is fresh


@pytest.mark.parametrize(
    "out",
    [
        np.empty(12, "f4"),
        np.empty((3, 4), ">f4"),
        np.empty((3, 4)),
        np.empty((4, 3), "f4").T,
        np.broadcast_to(np.float32(1), (3, 4)),
    ],
    ids=["shape", "byte order", "dtype", "strides", "read-only"],
)
def test_output_must_fit(out):
    with pytest.raises(ShapeError, match="out"):
        Packed(header(), {}).output(out)


def test_repr_says_what_it_is():
    packed = Packed(header(), {"data": np.zeros(5, "u1")})
    assert repr(packed) == "Packed(raw, float32 3x4, 48 -> 5 bytes)"
    assert "scalar" in repr(Packed(header(shape=()), {}))
