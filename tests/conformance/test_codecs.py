"""One matrix for all codecs: every dtype, shape and bound. A codec joins by being registered."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

import trimtab as tt
from tests.networks import required
from tests.samples import ALL, SHAPES, promised, random_bits, same_bits, sample, special
from trimtab import store
from trimtab.bounds import PSNR, Abs, Lossless, PointwiseRel, Rel
from trimtab.codecs import Codec, codec_ids, make_codec
from trimtab.codecs.codec import codec_class, describe
from trimtab.dtypes import FLOATS, REALS, numpy_dtype
from trimtab.errors import BoundError, ShapeError, UnknownCodec
from trimtab.files import Reader, to_bytes

BOUNDS = [Lossless(), Abs(0.01), Rel(0.01), PointwiseRel(0.01), PSNR(50.0)]
LONG = [(1 << 18) - 1, (1 << 18) + 1]
"""Sizes beside that of a chunk."""


def settings(codec_id: str) -> list[Codec]:
    """Return a codec with each value of each of its closed choices, the defaults first."""
    plain = {"id": codec_id, **required(codec_id)}
    codecs = [make_codec(plain)]
    for field in msgspec.inspect.type_info(codec_class(codec_id)).fields:
        choices = field.type.values if isinstance(field.type, msgspec.inspect.LiteralType) else ()
        if isinstance(field.type, msgspec.inspect.BoolType):
            choices = (False, True)
        codecs += [make_codec({**plain, field.name: choice}) for choice in choices if choice != field.default]
    return codecs


CODECS = [codec for codec_id in codec_ids() for codec in settings(codec_id)]


def check(codec: Codec, x: np.ndarray, bound: tt.bounds.Bound) -> bool:
    """Round-trip through the container; return False where the codec refuses in the proper way."""
    before = x.copy()
    try:
        packed, checksum = store.encode(x, bound, codec)
    except (BoundError, ShapeError):
        return False
    reader = Reader(to_bytes(packed, checksum))
    y = store.decode(reader, "")
    assert y.shape == x.shape
    assert y.dtype == numpy_dtype(x.dtype.name)
    assert y.flags.c_contiguous
    assert y.flags.writeable
    stated = reader.header("").bound
    assert stated in (bound, promised(codec, bound))
    assert stated.allows(x, y) if x.dtype.name in REALS else same_bits(x, y)
    assert same_bits(x, before)
    out = np.full(x.shape, 1, y.dtype)
    assert store.decode(reader, "", out=out) is out
    assert same_bits(out, y)
    return True


@pytest.mark.parametrize("bound", BOUNDS, ids=repr)
@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_every_dtype_and_shape(codec, bound):
    taken = {name for name in ALL for shape in SHAPES if check(codec, sample(name, shape), bound)}
    refused = {name for name in ALL for shape in SHAPES if not check(codec, sample(name, shape), bound)}
    assert not taken & refused, "whether a dtype is taken must not depend on the shape"


@pytest.mark.parametrize("codec_id", codec_ids())
def test_every_codec_takes_something(codec_id):
    assert any(
        check(make_codec({"id": codec_id, **required(codec_id)}), sample("float32", (100, 9)), bound)
        for bound in BOUNDS
    )


@pytest.mark.parametrize("bound", BOUNDS, ids=repr)
@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_views(codec, bound):
    x = sample("float32", (12, 30, 20))
    for view in (x.T, x[::2, ::-3, 1:], x[:, :, 5], np.broadcast_to(x[0], (4, 30, 20)), x.astype(">f4"), x[:, 3:3]):
        check(codec, view, bound)


@pytest.mark.parametrize("bound", BOUNDS, ids=repr)
@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_any_bit_pattern(codec, bound):
    for name in ALL:
        x = random_bits(name, 5000)
        if name in FLOATS:
            x[-special(name).size :] = special(name)
        with np.errstate(invalid="ignore"):
            check(codec, x, bound)
            check(codec, np.repeat(x[:7], 300), bound)


@pytest.mark.parametrize("size", LONG)
@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_around_the_size_of_a_chunk(codec, size):
    for name in ("bfloat16", "float32", "uint8"):
        for bound in BOUNDS[:2]:
            check(codec, sample(name, (size,)), bound)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_bytes_do_not_depend_on_threads(codec):
    for name, bound in (
        ("bfloat16", Lossless()),
        ("float32", Lossless()),
        ("float32", Abs(0.01)),
        ("float16", PSNR(30.0)),
        ("uint16", PSNR(30.0)),
        ("int32", Abs(2)),
    ):
        x = sample(name, (1100, 1000))
        blobs = []
        for count in (1, 3):
            with tt.threads(count):
                try:
                    blobs.append(tt.compress(x, bound, codec=codec))
                except (BoundError, ShapeError):
                    continue
        assert len(set(blobs)) <= 1
        for count in (1, 3):
            with tt.threads(count):
                assert all(promised(codec, bound).allows(x, tt.decompress(blob)) for blob in blobs)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_fixed_sizes_are_fixed(codec):
    arrays = [sample("float32", (1000,)), np.zeros(1000, "f4"), random_bits("float32", 1000)]
    sizes = {codec.encode(x).num_bytes for x in arrays} if codec.fixed_size else {0}
    assert len(sizes) == 1


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_codecs_are_plain_data(codec):
    assert make_codec(describe(codec)) == codec
    assert make_codec(msgspec.json.decode(msgspec.json.encode(codec))) == codec
    assert isinstance(codec, Codec)
    assert codec.id in codec_ids()
    assert hash(codec) == hash(make_codec(describe(codec)))


@pytest.mark.parametrize("codec_id", codec_ids())
@pytest.mark.parametrize("lie", [{"no_such_setting": 1}, {"id": "no-such-codec"}, {"id": 3}, {"id": None}], ids=repr)
def test_wrong_settings_are_refused(codec_id, lie):
    with pytest.raises((tt.FormatError, UnknownCodec), match=r"no_such_setting|no-such-codec|\$\.codec\.id"):
        make_codec({"id": codec_id, **required(codec_id), **lie})
