from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trimtab as tt
from bench import delta, lossless, lossy, scaling, startup, transfer
from bench.contenders import attempt, trimtab_contender
from bench.harness import Contender, Options
from bench.tables import EACH_TENSOR, delta_tables, transfer_tables
from bench.weights import DTYPES, Weights, cast
from trimtab.codecs import ENEC, SZ, Raw
from trimtab.peers import SZ3, Encoded, Zstd
from trimtab.peers.peer import words

QUICK = {"quick": True, "num_rounds": 1}


@dataclass(frozen=True, repr=False)
class Broken(Zstd):
    """A peer that raises."""

    @property
    def name(self) -> str:
        return "broken"

    def compress(self, x: np.ndarray, bound: Any = None) -> Encoded:
        raise MemoryError("no room")


@dataclass(frozen=True, repr=False)
class Liar(Zstd):
    """A peer that loses a bit."""

    @property
    def name(self) -> str:
        return "liar"

    def decompress(self, encoded: Encoded) -> np.ndarray:
        y = super().decompress(encoded).copy()
        y.reshape(-1).view("u1")[:1] ^= 1
        return y


@dataclass(frozen=True, repr=False)
class Missing(Zstd):
    """A peer that is not installed."""

    module = "trimtab_no_such_module"

    @property
    def name(self) -> str:
        return "missing"


@pytest.fixture(scope="module")
def weights() -> Weights:
    rng = np.random.default_rng(0)
    return {
        "w": (rng.standard_normal((80, 64)) * 0.02).astype(np.float32),
        "b": np.zeros(64, np.float32),
        "steps": np.array(3, np.int64),
    }


@pytest.fixture(scope="module")
def lossless_record(weights: Weights) -> tt.Record:
    peers = (Zstd(), Broken(), Liar(), Missing())
    return lossless.run({"tiny": weights}, Options(name="lossless", **QUICK), peers)


def test_lossless_counts_every_tensor(lossless_record: tt.Record, weights: Weights) -> None:
    for dtype, numpy_dtype in DTYPES.items():
        tensors = cast(weights, numpy_dtype).values()
        raw = sum(x.nbytes for x in tensors)
        packed = sum(len(tt.compress(x, codec=ENEC())) for x in tensors)
        assert lossless_record.data[f"tiny {dtype}"]["num_bytes"] == raw
        assert lossless_record.metrics[f"tiny {dtype}/trimtab ENEC/ratio"].value == pytest.approx(
            raw / packed, rel=1e-5
        )
        zstd = sum(Zstd().compress(x).num_bytes for x in tensors)
        assert lossless_record.metrics[f"tiny {dtype}/zstd/ratio"].value == pytest.approx(raw / zstd, rel=1e-5)
        assert lossless_record.metrics[f"tiny {dtype}/zstd/encode_times"].value > 0
        for name in ("trimtab ENEC", "trimtab ENEC ratio", "zstd"):
            assert f"tiny {dtype}/{name}/file_ratio" in lossless_record.metrics
        assert f"tiny {dtype}/ENEC as published/ratio" in lossless_record.metrics


def test_paper_mode_takes_what_the_formula_says_and_padding(lossless_record: tt.Record) -> None:
    for dtype in DTYPES:
        assert 1 <= lossless_record.metrics[f"tiny {dtype}/ENEC as published/over_formula"].value < 1.02
    (bar,) = (bar for bar in lossless_record.bars if "formula" in bar.name)
    assert bar.passed == (bar.reached <= 1.001)


def test_peers_that_fail_are_named_with_the_reason(lossless_record: tt.Record) -> None:
    failed = lossless_record.encoding["failed"]
    assert failed["tiny bf16/broken"] == "MemoryError: no room"
    assert failed["tiny bf16/liar"] == "what it decodes is not within the bound"
    assert "trimtab_no_such_module" in failed["missing"]
    assert not any("/broken/" in key or "/liar/" in key or "/missing/" in key for key in lossless_record.metrics)


def test_bars_need_their_peer(lossless_record: tt.Record) -> None:
    over_zipnn = [bar for bar in lossless_record.bars if "zipnn" in bar.name]
    assert len(over_zipnn) == 5
    assert all(not bar.passed and "not measured" in bar.required for bar in over_zipnn)


def test_our_own_failure_is_not_hidden() -> None:
    x = np.ones(3, np.float32)
    ours = trimtab_contender("ours", [x], [Raw()])
    assert not isinstance(attempt(ours, lambda decoded: np.array_equal(decoded[0], x)), str)
    with pytest.raises(RuntimeError, match="broke its promise"):
        attempt(ours, lambda decoded: False)
    with pytest.raises(ZeroDivisionError):
        attempt(Contender("ours", lambda: 1 // 0, lambda encoded: encoded))


def test_delta_gives_every_contender_the_base(weights: Weights, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tuned = {**weights, "w": weights["w"] + rng.normal(0, 1e-5, (80, 64)).astype(np.float32)}
    tuned |= {"word_embeddings": weights["w"]}
    base = {**weights, "word_embeddings": weights["w"]}
    peers = (Zstd(), Liar(), Missing())
    record = delta.run(delta.Pair(base, tuned), Options(name="delta", **QUICK), peers)
    assert list(record.data)[:2] == ["tuned MiniLM bf16", "tuned MiniLM bf16 without embeddings"]
    for subject, about in record.data.items():
        ratios = {
            key.split("/")[1]: m.value
            for key, m in record.metrics.items()
            if key.startswith(f"{subject}/") and key.endswith("/ratio")
        }
        assert set(ratios) == {delta.OURS, delta.RATIO, delta.ALONE, "XOR, zstd"}
        assert ratios[delta.OURS] > 1.2 * ratios[delta.ALONE]
        assert about["equal_elements"] >= 0.49 - 0.48 * subject.endswith("embeddings")
        assert record.metrics[f"{subject}/XOR, zstd/decode_times"].value > 0
        assert f"{subject}/{delta.RATIO}/file_ratio" in record.metrics
    zstd = sum(Zstd().compress(words(x) ^ words(base[name])).num_bytes for name, x in tuned.items())
    assert record.metrics["tuned MiniLM fp32/XOR, zstd/ratio"].value == pytest.approx(
        sum(x.nbytes for x in tuned.values()) / zstd, rel=1e-5
    )
    assert record.encoding["failed"]["tuned MiniLM bf16/XOR, liar"] == "what it decodes is not within the bound"
    assert "XOR, missing" in record.encoding["failed"]
    assert "equal to the base's" in delta_tables(tt.Record.load(record.save(tmp_path / "delta.json")))


def test_lossy_measures_error_against_the_bound() -> None:
    field = np.cumsum(np.random.default_rng(1).standard_normal((12, 13, 14)), axis=0).astype(np.float32)
    record = lossy.run({"tiny": field}, Options(name="lossy", **QUICK), (SZ3(), Missing()))
    errors = [metric.value for key, metric in record.metrics.items() if key.endswith("trimtab SZ/error")]
    assert len(errors) == len(lossy.RELATIVE_BOUNDS)
    assert all(0 < error <= 1 for error in errors)
    held = [bar for bar in record.bars if "bound holds" in bar.name]
    assert len(held) == len(lossy.OURS)
    assert all(bar.passed and bar.reached == len(errors) for bar in held)
    bound = tt.Abs(1e-2 * float(np.ptp(field.astype(np.float64))))
    size = len(tt.compress(field, bound, codec=SZ()))
    assert record.metrics["tiny, 1e-02/trimtab SZ/ratio"].value == pytest.approx(field.nbytes / size, rel=1e-5)
    assert "missing" in record.encoding["failed"]
    assert ("sz3" in record.encoding["failed"]) == (SZ3().unavailable() is not None)


def test_scaling_compares_bytes_of_both_thread_counts() -> None:
    x = np.random.default_rng(2).standard_normal(5000).astype(np.float32)
    case = scaling.Case(x, ENEC(), tt.Lossless())
    record = scaling.run({"tiny": case}, Options(name="scaling", **QUICK))
    (same,) = (bar for bar in record.bars if "same bytes" in bar.name)
    assert same.passed
    assert record.metrics["tiny/2 threads/encode_gain"].unit == "x"


def test_heavy_modules_are_noticed() -> None:
    assert startup.heavy_modules("import json") == []
    assert startup.heavy_modules("import numba") == ["numba", "llvmlite"]
    with pytest.raises(RuntimeError, match="exit status"):
        startup.heavy_modules("raise SystemExit(3)")


def test_transfer_packs_each_model_with_the_parameters_of_the_others(weights: Weights) -> None:
    larger = {
        "w": 64 * weights["w"],
        "with a zero": np.append(weights["w"], np.float32(0)),
        "small": np.ones(1023, "f4"),
    }
    record = transfer.run({"tiny": weights, "larger": larger}, Options(name="transfer", **QUICK))
    assert record.data["tiny bf16"] == {"num_tensors": 1, "num_bytes": 2 * 80 * 64, "num_suited": 1}
    assert record.data["larger fp32"]["num_tensors"] == 2
    assert [*record.encoding["parameters"]] == ["paper bf16", "escape bf16", "paper fp16", "paper fp32"]
    packed = ENEC(mode="paper").fit(larger.values()).encode(weights["w"])
    assert record.metrics["paper fp32/tiny/larger/ratio"].value == pytest.approx(4 * 80 * 64 / packed.num_bytes, 1e-5)
    assert record.metrics["paper fp32/tiny/tiny/share"].value == 1
    assert record.metrics["paper fp32/tiny/larger/share"].value < 1
    assert record.metrics["paper fp32/larger/tiny/fitting"].value < 1
    assert record.metrics["paper fp32/larger/larger/fitting"].value == 1
    assert record.metrics["escape bf16/larger/tiny/share"].value < 1
    assert record.metrics[f"escape bf16/tiny/{EACH_TENSOR}/search"].unit == "us"
    claimed = {key.split("/")[2] for key, metric in record.metrics.items() if metric.claim}
    assert claimed == {"tiny", "larger"}
    assert [bar.name.split(":")[0] for bar in record.bars] == ["paper", "escape"]
    assert "of bytes fit" in transfer_tables(record)


def test_transfer_unpacks_what_it_counts(weights: Weights) -> None:
    with pytest.raises(RuntimeError, match="does not come back bit for bit"):
        transfer.packed_bytes([weights["w"]], lambda x: ENEC().encode(-x))
