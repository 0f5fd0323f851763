from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from bench.fields import fields, gaussian, grf, logn, mni_t1, turb
from bench.weights import DTYPES, FILES, cast, load_weights, package_file


def test_fields_are_seeded_and_of_unit_deviation() -> None:
    assert np.array_equal(grf(16), grf(16))
    for field, scale in ((grf(16), 1e7), (turb(16), 1.0)):
        assert field.dtype == np.float32
        assert field.shape == (16, 16, 16)
        assert field.std() == pytest.approx(scale, rel=1e-3)
        assert abs(field.mean()) < 1e-4 * scale
    assert np.allclose(np.log(logn(16)) / 1.5, grf(16) / 1e7, atol=1e-3)


def test_spectrum_falls_with_the_slope() -> None:
    spectrum = np.abs(np.fft.fftn(gaussian(64, -3.0, 1e9, seed=2))) ** 2
    axis = np.fft.fftfreq(64) * 64
    k = np.sqrt(sum(np.meshgrid(axis**2, axis**2, axis**2, indexing="ij")))
    shells = np.array([spectrum[(k >= low) & (k < 1.25 * low)].mean() for low in (4, 8, 16)])
    assert np.log2(shells[:-1] / shells[1:]) == pytest.approx([3, 3], abs=0.3)


def test_quick_fields_are_small() -> None:
    names = ["synthetic grf 128^3", "synthetic logn 128^3", "synthetic turb 128^3", "MNI T1"]
    assert list(fields()) == names
    quick = fields(quick=True)
    assert list(quick) == [name.replace("128", "32") for name in names]
    assert quick["synthetic turb 32^3"]().shape == (32, 32, 32)


def test_cast_rounds_floats_to_nearest_even_and_leaves_integers() -> None:
    weights = {"w": np.array([1 + 2**-8, 1 + 3 * 2**-8, -0.0], np.float32), "n": np.array([7], np.int64)}
    found = cast(weights, DTYPES["bf16"])
    assert found["w"].dtype == ml_dtypes.bfloat16
    assert found["w"].astype(np.float32).tolist() == [1.0, 1 + 2**-6, 0.0]
    assert found["n"] is weights["n"]


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(FileNotFoundError, match=r"bench/inputs\.txt"):
        package_file("trimtab_no_such_package", "model.safetensors")


@pytest.mark.parametrize("model", FILES)
def test_models_are_float32(model: str) -> None:
    if model == "EfficientNet":
        pytest.importorskip("torch")
    try:
        weights = load_weights(model)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    floats = [x for x in weights.values() if x.dtype == np.float32]
    assert sum(x.size for x in floats) > 4_500_000
    assert len(floats) > len(weights) // 2


def test_mni_is_whole_grey_levels() -> None:
    pytest.importorskip("nibabel")
    try:
        field = mni_t1()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert field.shape == (189, 233, 197)
    assert field.flags.c_contiguous
    assert np.array_equal(field, np.rint(field))
