"""Sparse: what is special to it; the conformance matrix has the rest."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import numpy as np
import pytest

import trimtab as tt
from tests.samples import random_bits, same_bits, special
from trimtab import store
from trimtab.bounds import PSNR, Abs, Bound, Lossless, PointwiseRel, Rel
from trimtab.codecs import ENEC, SZ, Sparse
from trimtab.codecs.sparse import SparseTrials
from trimtab.dtypes import FLOATS, NAMES, numpy_dtype
from trimtab.errors import Corrupt
from trimtab.files import Reader, to_bytes
from trimtab.packed import Packed


def pruned(shape: tuple[int, ...], keep: float = 0.08, name: str = "float32", seed: int = 0) -> np.ndarray:
    """Return weights of which only the largest are left."""
    x = np.random.default_rng(seed).standard_normal(shape)
    x[np.abs(x) < np.quantile(np.abs(x), 1 - keep)] = 0
    return (x / 8).astype(numpy_dtype(name))


def round_trip(x: np.ndarray, bound: Bound = Lossless()) -> tuple[Packed, np.ndarray]:
    packed, checksum = store.encode(x, bound, Sparse())
    return packed, store.decode(Reader(to_bytes(packed, checksum)), "")


@pytest.mark.parametrize("shape", [(300, 784), (50, 20, 5, 5), (4000,)], ids=str)
def test_pruned_weights_shrink(shape):
    x = pruned(shape)
    density = np.count_nonzero(x) / x.size
    entropy = -(density * math.log2(density) + (1 - density) * math.log2(1 - density))
    packed, y = round_trip(x, Abs(0.05))
    assert packed.header.codec["id"] == "sparse"
    assert packed.num_bytes * 8 < (1.02 * entropy + 2.6 * density) * x.size + 1200
    assert Abs(0.05).allows(x, y)
    exact, z = round_trip(x)
    assert exact.header.codec["id"] == "sparse"
    assert same_bits(x, z)
    assert exact.num_bytes < ENEC(mode="ratio").encode(x).num_bytes


@pytest.mark.parametrize("name", NAMES)
def test_every_bit_of_what_is_not_zero_comes_back(name):
    x = np.zeros(5000, numpy_dtype(name))
    x[::7] = random_bits(name, x[::7].size)
    if name in FLOATS:
        x[100 : 100 + special(name).size] = special(name)
    packed, y = round_trip(x)
    assert packed.header.codec["id"] == "sparse"
    assert same_bits(x, y)


@pytest.mark.parametrize("bound", [Abs(0.01), Rel(0.01), PSNR(40.0), PointwiseRel(0.05)], ids=repr)
@pytest.mark.parametrize("name", FLOATS)
def test_specials_are_kept_within_bounds(name, bound):
    x = pruned((60, 70), name=name)
    x[3, 4:10] = [np.nan, np.inf, -np.inf, 1e-40, 5.0, -0.0]
    packed, y = round_trip(x, bound)
    assert packed.header.codec["id"] == "sparse"
    assert bound.allows(x, y)


def test_what_the_bound_lets_vanish_takes_no_place():
    x = pruned((200, 300), keep=0.3)
    fine, coarse = (round_trip(x, Abs(bound)) for bound in (0.01, 0.2))
    assert np.count_nonzero(coarse[1]) < 0.5 * np.count_nonzero(fine[1])
    assert coarse[0].num_bytes < 0.5 * fine[0].num_bytes


@pytest.mark.parametrize("bound", [Lossless(), Abs(0.05)], ids=repr)
def test_order_and_lag_of_an_image_are_found(bound):
    """Neurons that look at one patch each of an image of 28 x 28, a neuron a row, or a column."""
    patches = np.zeros((200, 28, 28), np.float32)
    rng = np.random.default_rng(4)
    for patch in patches:
        a, b = rng.integers(0, 22, 2)
        patch[a : a + 6, b : b + 6] = rng.standard_normal((6, 6))
    x = patches.reshape(200, 784)
    by_rows, y = round_trip(x, bound)
    assert by_rows.header.params["lag"] == 28
    assert "order" not in by_rows.header.params
    assert bound.allows(x, y)
    by_columns, y = round_trip(np.asfortranarray(x.T), bound)
    assert by_columns.header.params["lag"] == 28
    assert by_columns.header.params["order"] == "columns"
    assert bound.allows(x.T, y)


def test_several_chunks():
    x = pruned((3, 700_001), keep=0.02)
    for bound in (Lossless(), Abs(0.1)):
        packed, y = round_trip(x, bound)
        assert packed.header.codec["id"] == "sparse"
        assert bound.allows(x, y)
    data = packed.buffers["data"]
    for cut, text in [(data[:15], "the sizes of 4 blocks need 16"), (data[:-1], "damaged"), (data[:900], "sizes sum")]:
        with pytest.raises(Corrupt, match=text):
            Sparse().decode(forged(packed, {}, data=cut))


def test_searches_pack_as_the_codec_does():
    for x in (pruned((200, 300)), pruned((5, 9)), pruned((90, 90), keep=1.0)):
        trials = SparseTrials(x)
        assert to_bytes(trials.pack_exactly(), "") == to_bytes(Sparse().encode(x), "")
        found = trials.pack(Abs(0.05))
        assert found is not None
        assert Abs(0.05).allows(x, found[1])
        assert same_bits(Sparse().decode(found[0]), found[1])


def test_random_places_of_half_the_elements_are_plain_bits():
    x = np.where(np.random.default_rng(0).random(30_000) < 0.5, 1, 0).astype(np.float32)
    x *= random_bits("uint16", x.size).astype(np.float32) + 1
    packed, y = round_trip(x)
    assert packed.buffers["data"].size == x.size // 8
    assert same_bits(x, y)


@pytest.mark.parametrize("x", [pruned((90, 90), keep=1.0), np.zeros(50, np.float32)], ids=["dense", "small"])
def test_what_gains_nothing_is_packed_as_usual(x):
    assert round_trip(x)[0].header.codec["id"] != "sparse"


def test_is_never_larger_than_the_usual_codec():
    for keep in (0.02, 0.4, 0.8, 1.0):
        for bound, usual in ((Lossless(), ENEC(mode="ratio")), (Abs(0.01), SZ())):
            x = pruned((64, 64), keep)
            assert Sparse().encode(x, bound).num_bytes <= usual.encode(x, bound).num_bytes


def test_integers_keep_their_bounds():
    x = np.zeros(9000, np.int64)
    x[::31] = np.random.default_rng(0).integers(-(2**62), 2**62, x[::31].size)
    for bound in (Abs(1000), Rel(1e-9), PointwiseRel(0.01)):
        packed, y = round_trip(x, bound)
        assert packed.header.codec["id"] == "sparse"
        assert bound.allows(x, y)


def forged(packed: Packed, params: dict, **buffers: np.ndarray) -> Packed:
    header = msgspec.structs.replace(packed.header, params={**packed.header.params, **params})
    return dataclasses.replace(packed, header=header, buffers={**packed.buffers, **buffers})


def test_lies_are_found():
    x = pruned((80, 90))
    x[5, 5] = np.inf
    lossy, exact = Sparse().encode(x, Abs(0.05)), Sparse().encode(x)
    data = lossy.buffers["data"]
    values = exact.header.params["values"]
    for packed, text in [
        (forged(lossy, {}, outliers=np.array([7200], np.uint64)), "beyond 7200"),
        (forged(lossy, {}, outliers=np.array([2**64 - 1], np.uint64)), "beyond 7200"),
        (forged(lossy, {}, outliers=np.array([9, 9], np.uint64), exact=np.ones(2, np.float32)), "not ascending"),
        (forged(lossy, {}, exact=np.ones(2, np.float32)), "holds 2 elements"),
        (forged(lossy, {}, data=data[:-4]), "block 0 is damaged"),
        (forged(lossy, {}, data=data[:0]), "block 0 is damaged"),
        (forged(lossy, {"lag": 1}), "lag cannot be 1"),
        (forged(lossy, {"lag": 2**18 + 1}), "lag"),
        (forged(lossy, {"step": math.inf}), "step"),
        (forged(lossy, {"values": values}), "either"),
        (forged(lossy, {"order": "sideways"}), "sideways"),
        (forged(exact, {"values": {**values, "count": values["count"] + 1}}), "not zero"),
        (forged(exact, {"values": {**values, "count": 2**62}}), "among 7200"),
        (forged(exact, {"values": {**values, "codec": {"id": "sparse"}}}), "'sparse'"),
        (forged(exact, {"values": {**values, "codec": {"id": 5}}}), "codec 5"),
    ]:
        with pytest.raises(Corrupt, match=text):
            Sparse().decode(packed)


def test_save_takes_it(tmp_path):
    tensors = {"w": pruned((200, 300)), "b": np.ones(10, np.float32), "steps": np.arange(3)}
    tt.save(tmp_path / "m.tt", tensors, tt.Abs(0.05), codec=Sparse())
    found = tt.load(tmp_path / "m.tt")
    assert all(tt.Abs(0.05).allows(x, found[name]) for name, x in tensors.items())
    assert (tmp_path / "m.tt").stat().st_size < tensors["w"].nbytes / 30
