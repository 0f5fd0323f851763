"""Differences from a base: every dtype and bit pattern comes back, equal arrays cost nothing, contexts pay."""

from __future__ import annotations

import numpy as np
import pytest

import trimtab as tt
from tests.samples import ALL, SHAPES, random_bits, same_bits, sample, special
from trimtab.codecs import ENEC
from trimtab.dtypes import FLOATS
from trimtab.errors import BaseError, Corrupt
from trimtab.packed import Packed

MODES = [ENEC(), ENEC(mode="ratio")]
LONG = [(1 << 18) - 1, (1 << 18) + 1, (1 << 19) + 70]


def moved(x: np.ndarray, seed: int = 5, scale: float = 2e-4) -> np.ndarray:
    """Return floats a little away from `x`, as fine-tuning leaves them."""
    steps = np.random.default_rng(seed).normal(0, scale, x.shape).astype(np.float32)
    return (x.astype(np.float32) + steps).astype(x.dtype)


def there_and_back(codec: ENEC, x: np.ndarray, base: np.ndarray) -> Packed:
    packed = codec.encode_difference(x, base)
    y = codec.decode(packed) if packed.header.codec["id"] == "enec" and packed.header.base is None else None
    if packed.header.base is not None:
        y = codec.decode_difference(packed, base)
    assert y is None or same_bits(x, y)
    return packed


@pytest.mark.parametrize("codec", MODES, ids=repr)
@pytest.mark.parametrize("name", ALL)
def test_every_dtype_and_shape(codec, name):
    for shape in SHAPES:
        x, base = sample(name, shape, seed=1), sample(name, shape, seed=2)
        blob = tt.compress(x, codec=codec, base=base)
        assert same_bits(tt.decompress(blob, base=base), x)
        equal = there_and_back(codec, base, base)
        assert equal.num_bytes <= max(4, min(base.nbytes, 256))


@pytest.mark.parametrize("name", ALL)
def test_any_bit_pattern(name):
    x, base = random_bits(name, 5000), random_bits(name, 5000, seed=1)
    if name in FLOATS:
        x[:9], base[1:10] = special(name), special(name)
    base[1000:3000] = x[1000:3000]
    for codec in MODES:
        packed = there_and_back(codec, x, base)
        assert packed.header.base is not None or name == "bool"  # whose bits are packed as they are


@pytest.mark.parametrize("codec", MODES, ids=repr)
@pytest.mark.parametrize("name", ["bfloat16", "float32", "float64", "uint8"])
@pytest.mark.parametrize("size", LONG)
def test_around_the_size_of_a_chunk(codec, name, size):
    base = sample(name, (size,))
    x = base.copy()
    x[-3:] = sample(name, (3,), seed=9)
    packed = there_and_back(codec, x, base)
    assert packed.header.base is not None
    assert packed.num_bytes < 2000
    there_and_back(codec, moved(base) if name in FLOATS else base[::-1], base)


def test_contexts_pay():
    """Beside one table for all exponents, and beside byte planes of the exclusive or."""
    base = sample("bfloat16", (600, 700))
    x = moved(base)
    steps = x.view(np.uint16).astype(int) - base.view(np.uint16)
    shares = np.unique(steps, return_counts=True)[1] / x.size
    entropy = -(shares * np.log2(shares)).sum() / 8 * x.size
    packed = there_and_back(ENEC(), x, base)
    assert packed.num_bytes < 0.87 * entropy
    assert packed.num_bytes < 0.4 * ENEC(mode="ratio").encode(x).num_bytes


def test_byte_planes_where_they_are_smaller():
    base = sample("float32", (1 << 16,))
    x = (base.view(np.uint32) + (np.arange(base.size, dtype=np.uint32) % 4 << np.uint32(20))).view(np.float32)
    packed = there_and_back(ENEC(), x, base)
    assert int(packed.buffers["differences"][:4].view("<u4")[0]) >> 30 == 1
    assert packed.num_bytes < 0.7 * base.size  # tokens would take more than two bytes


def test_views_and_byte_orders():
    base = sample("float32", (40, 60))
    x = moved(base)
    for a, b in ((x.T, base.T), (x[::2, ::-3], base[::2, ::-3]), (x.astype(">f4"), base), (x, base.astype(">f4"))):
        blob = tt.compress(a, base=b)
        assert same_bits(tt.decompress(blob, base=b), a)
    out = np.empty((40, 60), np.float32)
    assert tt.decompress(tt.compress(x, base=base), base=base, out=out) is out
    assert same_bits(out, x)


def test_bytes_do_not_depend_on_threads():
    base = sample("bfloat16", (2200, 1000))
    x = moved(base)
    blobs = []
    for count in (1, 3):
        with tt.threads(count):
            blobs.append(tt.compress(x, base=base))
            assert same_bits(tt.decompress(blobs[0], base=base), x)
    assert blobs[0] == blobs[1]


def test_back_ends_agree():
    base = sample("float32", (700,))
    x = moved(base)
    blob = tt.compress(x, base=base)
    with tt.backend("ref"):
        assert tt.compress(x, base=base) == blob
        assert same_bits(tt.decompress(blob, base=base), x)


def test_neither_array_is_changed():
    base = sample("float32", (3000,))
    x = moved(base)
    copies = x.copy(), base.copy()
    tt.decompress(tt.compress(x, base=base), base=base)
    assert same_bits(x, copies[0])
    assert same_bits(base, copies[1])


def test_the_base_is_checked():
    base = sample("float32", (3000,))
    packed = ENEC().encode_difference(moved(base), base)
    other = base.copy()
    other.view(np.uint32)[7] ^= 1
    for wrong in (other, base[:-1], base.astype(np.float64), base.view(np.int32)):
        with pytest.raises(BaseError):
            ENEC().decode_difference(packed, wrong)
    with pytest.raises(BaseError, match=str(packed.header.base)):
        ENEC().decode(packed)


def test_what_is_no_difference_is_refused():
    base = sample("float32", (3000,))
    with pytest.raises(Corrupt):
        ENEC().decode_difference(ENEC().encode(base), base)
