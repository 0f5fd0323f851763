"""The exchange of looked-up vectors, over real ranks; its schedules, classes and payloads; and torchrec's interface."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from tests.dist.launch import run_ranks
from trimtab.bounds import Abs, Lossless, Rel
from trimtab.comm.embedding import EmbeddingExchange
from trimtab.comm.embedding_tables import Part, Tables, decay, unpack
from trimtab.comm.torchrec import BoundedCodec
from trimtab.errors import BoundError, Corrupt, ShapeError


def test_two_ranks(tmp_path):
    run_ranks("tests.comm.embedding_ranks", 2, "values+modes+settings_differ", str(tmp_path), folder=tmp_path)


def test_four_ranks_and_faults(tmp_path):
    what = "values+damage+flipped"
    run_ranks("tests.comm.embedding_ranks", 4, what, str(tmp_path), folder=tmp_path)


def test_one_rank(tmp_path):
    run_ranks("tests.comm.embedding_ranks", 1, "values+modes", str(tmp_path), folder=tmp_path)


@pytest.mark.parametrize("schedule", ["step", "linear", "log", "constant"])
def test_schedules(schedule):
    factors = [decay(schedule, step, 1000, 2) for step in range(1200)]
    assert factors[0] == 2
    assert factors[1000:] == [1] * 200
    assert all(a >= b for a, b in itertools.pairwise(factors))
    half = {"step": 1.5, "linear": 1.5, "log": 2 - math.log(1 + 0.5 * (math.e - 1)), "constant": 2}[schedule]
    assert factors[500] == pytest.approx(half)
    assert len(set(factors)) == {"step": 11, "constant": 2}.get(schedule, 1001)
    assert decay(schedule, 0, 0, 2) == 1


def vectors(num_rows: int, spread: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, spread, (64, 16)).astype(np.float32)[np.minimum(rng.zipf(1.2, num_rows), 63)]


def test_classes():
    """A table that falls together within the bound is tightened, one that stays apart loosened."""
    settings = EmbeddingExchange(bound=Abs(0.01), class_factors=(0.25, 1, 2), bandwidth=1e6)
    tables = Tables(settings, settings.bound, 3)
    parts = [Part(0, 0, vectors(500, 0.0001)), Part(1, 1, vectors(500, 0.1)), Part(2, 0, np.empty((0, 16), np.float32))]
    exact, encoded = tables.choose(0, parts)
    assert encoded < exact / 10
    payloads = tables.pack(0, parts, 2)
    report = tables.report
    assert {t: row["class"] for t, row in report.items()} == {0: "tighten", 1: "loosen"}
    assert {t: row["absolute_bound"] for t, row in report.items()} == {0: 0.0025, 1: 0.02}
    assert report[0]["homogenisation_index"] > 0.9 and report[1]["homogenisation_index"] == 0
    assert all(row["predicted_speedup"] > 5 for row in report.values())
    for rank, payload in enumerate(payloads):
        own = [part for part in parts if part.rank == rank]
        back = [np.empty_like(part.x) for part in own]
        unpack(payload, back)
        for part, y in zip(own, back, strict=True):
            limit = report[part.table]["absolute_bound"] if part.x.size else 1
            assert Abs(limit).allows(part.x, y)


def test_relative_bounds_take_the_range_of_all_ranks():
    settings = EmbeddingExchange(bound=Rel(0.01), bandwidth=1e6)
    tables = Tables(settings, settings.bound, 2)
    x = vectors(100, 0.05)
    x[3, 3], x[4, 4] = np.nan, np.inf
    own = tables.ranges([Part(1, 0, x)])
    finite = x[np.isfinite(x)]
    assert own.tolist() == [[-math.inf, finite.max()], [-math.inf, -finite.min()]]
    everywhere = np.maximum(own, [[-np.inf, 3], [-np.inf, 1]])
    tables.choose(0, [Part(1, 0, x)], everywhere)
    tables.pack(0, [Part(1, 0, x)], 1, everywhere)
    assert tables.report[1]["absolute_bound"] == pytest.approx(0.04)


@pytest.mark.parametrize("bound", [Lossless(), Abs(0.01)])
def test_hostile_payloads(bound):
    settings = EmbeddingExchange(bound=bound, bandwidth=1e6)
    tables = Tables(settings, bound, 2)
    parts = [Part(0, 0, vectors(60, 0.05)), Part(1, 0, vectors(20, 0.01))]
    tables.choose(0, parts)
    (payload,) = tables.pack(0, parts, 1)
    back = [np.empty_like(part.x) for part in parts]
    for size in range(payload.size):
        with pytest.raises(Corrupt):
            unpack(payload[:size], back)
    with pytest.raises(Corrupt):
        unpack(payload, [*back, back[0].copy()])
    with pytest.raises(Corrupt):
        unpack(payload, back[::-1])
    rng = np.random.default_rng(0)
    for k in range(3000):
        bad = payload.copy()
        bad[rng.integers(0, 16 if k % 3 == 0 else bad.size, 2)] = rng.integers(0, 256, 2)
        try:
            unpack(bad, back)
        except Corrupt:
            continue


@pytest.mark.parametrize("bits", [8, 16])
def test_torchrec_codec(bits):
    """torchrec cuts the encoded buffer by sizes, and joins buffers before it decodes."""
    codec = BoundedCodec(Abs(0.01), bits)
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * 0.3
    x[3, 3:6] = torch.tensor([float("inf"), -float("inf"), float("nan")])
    x[4, 4], x[5, 5] = 1e-42, -0.0
    encoded = codec.encode(x)
    assert encoded.dtype == codec.quantized_dtype == torch.uint8
    assert encoded.numel() == codec.calc_quantized_size(x.numel()) == x.numel() * bits // 8
    cut = codec.calc_quantized_size(48)
    joined = torch.cat([encoded[cut:], encoded[:cut]])
    y = torch.cat([codec.decode(joined)[-48:], codec.decode(joined)[:-48]]).view_as(x)
    assert Abs(0.01).allows(np.nan_to_num(x.numpy(), nan=9e9), np.nan_to_num(y.numpy(), nan=9e9))
    assert codec.create_context() is None
    assert codec.padded_size(x, [16], 0, None) == (16, 0)


def test_torchrec_codec_refuses():
    with pytest.raises(BoundError, match="do not fit 8 bits"):
        BoundedCodec(Abs(0.01)).encode(torch.tensor([3.0]))
    with pytest.raises(BoundError, match="do not fit 16 bits"):
        BoundedCodec(Abs(0.01), 16).encode(torch.tensor([1e9]))
    with pytest.raises(BoundError, match="need Abs"):
        BoundedCodec(Rel(0.01))
    with pytest.raises(ShapeError, match="float32"):
        BoundedCodec(Abs(0.01)).encode(torch.zeros(3, dtype=torch.float64))
    assert BoundedCodec(Abs(0.01), 16).encode(torch.tensor([3.0])).numel() == 2
