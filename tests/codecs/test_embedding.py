"""Vectors of embedding tables: bounds are kept whatever the elements, and nothing breaks a decoder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import trimtab as tt
from bench.encoders import costs_of, fitted
from bench.harness import RESULTS
from tests.samples import same_bits, special
from trimtab.bounds import Abs, Lossless, PointwiseRel, Rel
from trimtab.codecs import Embedding
from trimtab.codecs.embedding_choice import NANOSECONDS, best_encoder, try_encoders
from trimtab.codecs.embedding_slice import DTYPES, ENCODERS, LOSSLESS, Slice, decode_slice
from trimtab.dtypes import numpy_dtype
from trimtab.errors import BoundError, Corrupt, ShapeError
from trimtab.records import Record

LOSSY = [encoder for encoder in ENCODERS if encoder not in LOSSLESS]


def looked_up(num_rows: int = 500, num_columns: int = 16, spread: float = 0.05, seed: int = 0) -> np.ndarray:
    """Vectors of a table as a batch asks for them: some often, most never."""
    rng = np.random.default_rng(seed)
    table = rng.normal(0, spread, (300, num_columns)).astype(np.float32)
    return table[np.minimum(rng.zipf(1.3, num_rows), 299)]


def round_trip(x: np.ndarray, limit: float, encoder) -> tuple[np.ndarray, np.ndarray]:
    payload = Slice(x, limit).encode(encoder)
    y = np.full(x.shape, 7, x.dtype)
    decode_slice(payload, y)
    return y, payload


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("spread", [0.0, 0.004, 0.02, 0.05, 1.0, 300.0])
def test_every_encoder_and_number_of_bits(encoder, name, spread):
    x = looked_up(spread=spread).astype(numpy_dtype(name))
    y, payload = round_trip(x, 0.01, encoder)
    assert Abs(0.01).allows(x, y)
    if encoder in LOSSLESS:
        assert same_bits(x, y)
    elif spread < 1:
        assert ENCODERS[payload[0]] == encoder


def test_all_packings_occur():
    found = {
        int(Slice(looked_up(spread=spread), 0.01).encode("dedup")[2]) for spread in (0, 0.003, 0.006, 0.02, 0.2, 5)
    }
    assert found == {0, 1, 2, 4, 8, 16}


@pytest.mark.parametrize("encoder", LOSSY)
@pytest.mark.parametrize("name", DTYPES)
def test_special_values(encoder, name):
    x = looked_up().astype(numpy_dtype(name))
    values = special(name)
    x.reshape(-1)[5 : 5 + values.size] = values
    y, payload = round_trip(x, 0.01, encoder)
    assert Abs(0.01).allows(x, y)
    assert ENCODERS[payload[0]] == encoder, "a few exact elements do not change the encoder"


@pytest.mark.parametrize("limit", [1e-45, 1e-38, 1e-30, 1e-7, 1e30, 3e38, 1e300])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_extreme_limits(encoder, limit):
    x = looked_up()
    x[:4] = np.array([[np.finfo("f4").max], [np.finfo("f4").tiny], [1e-45], [-1e30]])
    with np.errstate(over="ignore"):
        assert Abs(limit).allows(x, round_trip(x, limit, encoder)[0])


@pytest.mark.parametrize("encoder", LOSSY)
def test_the_bound_is_strict_where_elements_lie_between_two_steps(encoder):
    """Multiplying in float32 would miss the bound by its rounding."""
    limit = 0.01
    x = (np.arange(-40_000, 40_000) * limit).astype(np.float32).reshape(-1, 16)
    y, _ = round_trip(x, limit, encoder)
    assert np.abs(x.astype(np.float64) - y).max() <= limit


@settings(deadline=None, max_examples=150)
@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=12),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
        fill=st.floats(-1, 1, width=32),
    ),
    st.floats(1e-40, 1e36),
    st.sampled_from(ENCODERS),
)
def test_any_elements_under_any_bound(x, limit, encoder):
    assert Abs(limit).allows(x, round_trip(x, limit, encoder)[0])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-5, 0.003, 0.05, 2.0]), st.sampled_from(LOSSY))
def test_bits_of_any_kind_among_vectors(seed, limit, encoder):
    rng = np.random.default_rng(seed)
    x = looked_up(300, int(rng.integers(1, 40)), seed=seed % 1000)
    at = rng.integers(0, x.size, 5)
    x.reshape(-1)[at] = rng.integers(0, 1 << 32, 5, np.uint32).view(np.float32)
    assert Abs(limit).allows(x, round_trip(x, limit, encoder)[0])


def test_signed_zeros_may_lose_their_sign():
    x = np.array([[-0.0, 0.0]] * 50, np.float32)
    y, _ = round_trip(x, 0.01, "dedup")
    assert (y == 0).all()


def test_equal_vectors_are_sent_once():
    x = looked_up(2000, 32)
    num_distinct = len(np.unique(x, axis=0))
    sizes = {encoder: Slice(x, 0.01).encode(encoder).size for encoder in ENCODERS}
    assert sizes["unique"] < (num_distinct + 40) * 128 + 2000
    assert sizes["dedup"] < sizes["unique"] / 4
    assert sizes["dedup"] < sizes["entropy"] / 2
    assert sizes["dedup"] < sizes["vector_lz"]


def test_vectors_become_alike_within_the_bound():
    x = np.random.default_rng(0).uniform(-0.001, 0.001, (2000, 16)).astype(np.float32)
    part = Slice(x, 0.01)
    assert part.num_distinct == 2000
    assert part.num_distinct_codes == 1
    assert part.encode("dedup").size < 100


def test_too_many_exact_elements():
    x = np.random.default_rng(0).integers(0, 1 << 32, (100, 8), np.uint32).view(np.float32)
    for encoder in LOSSY:
        y, payload = round_trip(x, 1e-3, encoder)
        assert same_bits(x, y)
        assert ENCODERS[payload[0]] in LOSSLESS


def test_other_matrices_are_refused():
    for x in (np.zeros((2, 2)), np.zeros((2, 2), np.int32), np.zeros(4, np.float32)):
        with pytest.raises(ShapeError, match="matrix of float32"):
            Slice(x, 0.1)


@pytest.mark.parametrize("shape", [(4, 16), (500, 8), (499, 16), (16, 500), (0, 16)], ids=str)
@pytest.mark.parametrize("name", DTYPES)
def test_a_receiver_that_expects_another_matrix(shape, name):
    payload = Slice(looked_up(), 0.01).encode("dedup")
    with pytest.raises(Corrupt, match="expected"):
        decode_slice(payload, np.empty(shape, numpy_dtype(name)))


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_damaged_payloads(encoder, name):
    """Whatever a network delivers: `Corrupt`, or some matrix (the message's checksum tells), and nothing else."""
    rng = np.random.default_rng(1)
    x = looked_up(200, 6, spread=2 if name == "float32" else 0.05).astype(numpy_dtype(name))
    x[3, 3] = np.nan
    good = Slice(x, 0.01).encode(encoder)
    y = np.empty_like(x)
    for size in range(good.size):
        with pytest.raises(Corrupt):
            decode_slice(good[:size], y)
    with pytest.raises(Corrupt):
        decode_slice(np.append(good, good[:1]), y)
    caught = 0
    for k in range(4000):
        bad = good.copy()
        if k % 2:  # numbers of the head, made large or small
            at = int(rng.integers(0, 10))
            bad[4 * at : 4 * at + 4] = np.array([rng.choice([0, 1, 2, 255, 2**31, 2**32 - 1, 65537])], "<u4").view("u1")
        for place in rng.integers(0, 8 * bad.size, int(rng.integers(1, 4))):
            bad[place // 8] ^= np.uint8(1 << place % 8)
        try:
            decode_slice(bad, y)
        except Corrupt:
            caught += 1
    assert caught > 500


def test_speedups_are_predicted():
    """The formula of `trimtab.codecs.embedding_choice`, put the other way round."""
    trials = try_encoders([Slice(looked_up(2048, 32), 0.01)], ENCODERS)
    for trial in trials.values():
        ratio, throughput = trial.num_bytes / trial.num_encoded, trial.num_bytes / trial.seconds
        for bandwidth in (1e6, 1e8, 1e11):
            assert trial.speedup(bandwidth) == pytest.approx(1 / (1 / ratio + bandwidth / throughput))
    assert best_encoder(trials, 1e6) == "dedup"
    assert best_encoder(trials, 1e13) == "exact"


def test_speeds_of_the_model_are_those_of_a_record():
    (path,) = RESULTS.glob("*/encoders.json")
    assert costs_of(Record.load(path)) == NANOSECONDS
    assert set(NANOSECONDS) == set(ENCODERS)


def test_fitted_costs():
    terms = np.array([[1, k, k * m, 0] for k in range(1, 9) for m in (2, 3)], float)
    assert fitted(terms, terms @ [5, 2, 1, 0]) == pytest.approx([5, 2, 1, 0])
    costs = fitted(terms, terms @ [50, -2, 1.5, 0])
    assert (costs >= 0).all()
    assert costs[1] == 0 < costs[2]


def test_file_codec():
    x = looked_up(4000, 32)
    blob = tt.compress(x, Abs(0.01), codec=Embedding())
    assert len(blob) < x.nbytes / 30
    assert Abs(0.01).allows(x, tt.decompress(blob))
    assert len(blob) < 0.8 * len(tt.compress(x, Abs(0.01)))
    assert Rel(1e-3).allows(x, tt.decompress(tt.compress(x, Rel(1e-3), codec=Embedding())))
    assert same_bits(x, tt.decompress(tt.compress(x, codec=Embedding())))
    with pytest.raises(BoundError, match="promises Lossless, Abs or Rel"):
        tt.compress(x, PointwiseRel(0.1), codec=Embedding())
    with pytest.raises(ShapeError, match="float32"):
        tt.compress(x.astype(np.float64), Abs(0.01), codec=Embedding())


def test_several_slices():
    x = np.tile(looked_up(1000, 32), (70, 1))
    packed = Embedding().encode(x, Abs(0.01))
    assert packed.buffers["sizes"].size == 3
    assert Abs(0.01).allows(x, Embedding().decode(packed))
    assert packed.header.bound != Lossless()
