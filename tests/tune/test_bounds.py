from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import trimtab as tt
from trimtab.bounds import PSNR, Abs, Lossless, Rel, psnr
from trimtab.errors import NoFeasibleChoice, ShapeError
from trimtab.tune import bounds, for_psnr, for_ratio
from trimtab.tune.sample import boxes, draw, local_bound


@pytest.fixture(scope="module")
def field() -> np.ndarray:
    walk = np.random.default_rng(0).standard_normal((40, 50, 60))
    return np.cumsum(np.cumsum(walk, axis=0), axis=2).astype(np.float32)


@pytest.mark.parametrize("level", ["fast", "balanced"])
@pytest.mark.parametrize("ratio", [3, 12])
def test_ratio(field, ratio, level):
    compress = partial(tt.compress, level=level)
    choice = for_ratio(field, ratio, compress)
    assert isinstance(choice.value, Rel)
    reached = field.nbytes / len(compress(field, choice.value))
    assert reached == choice.metrics["ratio"]
    assert ratio <= reached <= 1.05 * ratio


def test_large_arrays_are_tried_on_a_sample_first(field, monkeypatch):
    monkeypatch.setattr(bounds, "SAMPLE_BYTES", field.nbytes // 4)
    monkeypatch.setattr("trimtab.tune.sample._BLOCK", field.size // 32)
    sizes = []

    def compress(x, bound):
        sizes.append(x.size)
        return tt.compress(x, bound)

    choice = for_ratio(field, 6, compress)
    assert 6 <= choice.metrics["ratio"] <= 6.3
    assert sizes.count(field.size) == sum(not trial.sampled for trial in choice.trace) <= 4
    assert sum(trial.sampled for trial in choice.trace) >= 2
    assert set(sizes) - {field.size}


def test_torch_tensors_are_taken(field):
    torch = pytest.importorskip("torch")
    assert for_ratio(torch.from_numpy(field), 4, tt.compress).metrics["ratio"] >= 4


def test_psnr_of_a_compressor_that_takes_error_bounds_only(field):
    choice = for_psnr(field, 70, tt.compress, tt.decompress)
    y = tt.decompress(tt.compress(field, choice.value))
    assert psnr(field, y) == choice.metrics["psnr"]
    assert 70 <= choice.metrics["psnr"] <= 70.1


def test_integers_have_no_bound():
    with pytest.raises(ShapeError, match="got int64"):
        for_ratio(np.arange(9), 4, tt.compress)
    with pytest.raises(ShapeError, match="got int64"):
        for_psnr(np.arange(9), 40, tt.compress, tt.decompress)


def test_ratio_beyond_reach(field):
    with pytest.raises(NoFeasibleChoice, match="ratio 1e"):
        for_ratio(field, 1e7, tt.compress)


def test_empty_arrays_reach_nothing():
    with pytest.raises(NoFeasibleChoice):
        for_ratio(np.empty(0, np.float32), 2, tt.compress)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (0, 5), (100,), (9, 11, 13), (2, 3, 5, 7)])
def test_boxes_cover_each_element_once(shape):
    seen = np.zeros(shape, int)
    for box in boxes(shape, 20):
        assert seen[box].size <= 20
        seen[box] += 1
    assert (seen == 1).all()


def test_drawing_is_seeded_and_within_its_limit():
    sizes = {"a": ((4096, 4096), 4), "b": ((3000, 1000), 8), "c": ((10,), 4)}
    drawn = draw(sizes, 20_000_000, seed=1)
    assert drawn == draw(sizes, 20_000_000, seed=1) != draw(sizes, 20_000_000, seed=2)
    num_bytes = sum(np.empty(sizes[name][0], f"f{sizes[name][1]}")[box].nbytes for name in drawn for box in drawn[name])
    assert 10_000_000 < num_bytes <= 20_000_000
    assert draw({"a": ((1000,), 4)}, 1) == {"a": [(slice(0, 1000),)]}
    assert draw({}, 1) == {}


def test_bound_of_a_block_is_that_of_its_array(field):
    block = field[:10, :10, :10]
    span = float(np.ptp(field))
    assert local_bound(Rel(1e-3), block, span) == Abs(1e-3 * span)
    assert local_bound(Abs(2), block, span) == Abs(2)
    assert local_bound(Lossless(), block, span) == Lossless()
    y = block + np.float32(0.001 * span)
    whole = -20 * np.log10(np.sqrt(np.mean((block.astype(float) - y) ** 2)) / span)
    assert local_bound(PSNR(whole - 0.01), block, span).allows(block, y)
    assert not local_bound(PSNR(whole + 0.01), block, span).allows(block, y)
