"""The benchmark of learned enhancers: PSNR at equal bytes, and what counts as never below."""

from __future__ import annotations

import math

import numpy as np
import pytest

import trimtab as tt
from bench import gwlz
from bench.fields import logn
from bench.gwlz import psnr_at
from bench.harness import Options
from bench.tables import gwlz_tables
from trimtab.bounds import value_range
from trimtab.codecs import GWLZ, SZ


def test_psnr_is_interpolated_between_the_best_points() -> None:
    curve = [(100, 40.0), (110, 39.0), (200, 50.0), (400, 60.0)]
    assert psnr_at(curve, 100) == 40
    assert psnr_at(curve, 110) == 40
    assert psnr_at(curve, 50) == 40
    assert psnr_at(curve, round(math.sqrt(200 * 400))) == pytest.approx(55, abs=0.1)
    assert psnr_at(curve, 401) == math.inf


def test_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gwlz, "VARIANTS", {"least squares": GWLZ(hidden=())})
    noise = np.random.default_rng(0).standard_normal((20, 20, 20)).astype(np.float32)
    arrays = {"noise": noise, "large": logn(48)}
    record = gwlz.run(arrays, "large", Options(name="gwlz", quick=True, num_rounds=1), ())
    metrics = record.metrics
    assert metrics["noise, 1e-02/SZ/overhead"].value == metrics["noise, 1e-02/SZ/gain"].value == 0
    key = "large, 1e-02/SZ"
    size = len(tt.compress(arrays["large"], tt.Abs(0.01 * value_range(arrays["large"])), codec=SZ()))
    assert metrics[f"{key}/base_bytes"].value == size < metrics[f"{key}/bytes"].value
    assert metrics[f"{key}/psnr"].value > metrics[f"{key}/base_at_bytes"].value >= metrics[f"{key}/base_psnr"].value
    assert "large, 1e-02/least squares/gain" in metrics
    assert any("not below" in bar.name and bar.passed for bar in record.bars)
    assert "least squares" in gwlz_tables(record)
