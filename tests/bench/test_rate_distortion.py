from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass

import numpy as np
import pytest

import trimtab as tt
from bench import chart, curves, rate_distortion
from bench.harness import Options
from bench.rate_distortion import Point, bits_at
from bench.tables import provenance, rate_distortion_tables
from trimtab.bounds import Abs, psnr
from trimtab.peers import Zstd


@dataclass(frozen=True, repr=False)
class Rounding(Zstd):
    """An error-bounded peer: multiples of twice the bound, and zstd."""

    lossless = False
    name = "zfp"

    def refuses(self, x, bound):
        return None if isinstance(bound, Abs) else "needs an absolute bound"

    def compress(self, x, bound):
        step = 2 * bound.value
        return super().compress((np.round(x / step) * step).astype(x.dtype))


@dataclass(frozen=True, repr=False)
class Missing(Zstd):
    """A peer that is not installed."""

    lossless = False
    name = "sperr"
    module = "trimtab_no_such_module"


@pytest.fixture(scope="module")
def field() -> np.ndarray:
    return np.cumsum(np.random.default_rng(0).standard_normal((20, 30, 40)), axis=2).astype(np.float32)


@pytest.fixture(scope="module")
def record(field: np.ndarray) -> tt.Record:
    options = Options(name="rate_distortion", quick=True)
    return rate_distortion.run({"walk": field, "steps": np.round(field)}, options, (Rounding(), Missing()))


def test_points_are_what_compress_reaches(record: tt.Record, field: np.ndarray) -> None:
    blob = tt.compress(field, Abs(1e-3 * float(np.ptp(field))), level="fast")
    metrics = record.metrics
    assert metrics["walk/trimtab SZ fast/1e-03/bits"].value == pytest.approx(8 * len(blob) / field.size, rel=1e-5)
    quality = psnr(field, tt.decompress(blob))
    assert metrics["walk/trimtab SZ fast/1e-03/psnr"].value == pytest.approx(quality, rel=1e-5)
    assert {f"walk/zfp/{bound:.0e}/bits" for bound in rate_distortion.PEER_BOUNDS} <= metrics.keys()


def test_bars_count_points_at_equal_psnr(record: tt.Record) -> None:
    bars = {bar.name.split(" of ")[-1]: bar for bar in record.bars}
    ours = [key.removesuffix("/zfp_bits") for key in record.metrics if key.endswith("/zfp_bits")]
    ours = [key for key in ours if f"/{rate_distortion.BEST}/" in key]
    smaller = [record.metrics[f"{key}/bits"].value <= record.metrics[f"{key}/zfp_bits"].value for key in ours]
    zfp, sperr = bars["zfp at equal PSNR"], bars["sperr at equal PSNR"]
    assert (zfp.required, zfp.reached, zfp.passed) == (">= 10", sum(smaller), sum(smaller) == 10)
    assert not sperr.passed
    assert "trimtab_no_such_module" in record.encoding["failed"]["sperr"]


@pytest.mark.parametrize(
    ("decibels", "bits"),
    [(40, 1), (50, 2), (45, math.sqrt(2)), (60, 4), (70, 8), (30, 0.5), (math.inf, 4)],
)
def test_bits_are_interpolated_in_their_logarithm(decibels: float, bits: float) -> None:
    assert bits_at([Point(2, 50), Point(4, 60), Point(1, 40)], decibels) == pytest.approx(bits)


def test_points_without_loss_are_a_peers_best_answer_to_any_psnr() -> None:
    curve = [Point(1, 40), Point(4, 60), Point(3, math.inf)]
    assert bits_at(curve, 40) == 1
    assert bits_at(curve, 80) == 3
    assert bits_at(curve, math.inf) == 3
    assert bits_at([Point(3, math.inf)], 50) == 3
    assert bits_at([], 50) is None
    assert bits_at([Point(1, 40)], 50) is None


def test_tables_and_chart(record: tt.Record) -> None:
    text = rate_distortion_tables(record)
    assert "zfp at this PSNR" in text
    assert "no loss" in text  # of the whole numbers
    assert "trimtab_no_such_module" in text
    assert "python -m bench.rate_distortion" in provenance(record)
    svg = curves.draw(record)
    assert svg == curves.draw(record)
    texts = [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"walk", "steps: nothing was lost", "zfp"} <= set(texts)
    assert "sperr" not in texts


def test_chart_without_a_record_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(chart, "CHARTS", {tmp_path / "x.svg": ("no_such_record", curves.draw)})
    chart.main([])
    chart.main(["--check"])
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.svg").write_text("")
    with pytest.raises(tt.UsageError, match="no record"):
        chart.main(["--check"])
