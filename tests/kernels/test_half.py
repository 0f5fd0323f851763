"""Floats of two bytes: every one of them widened, and float32 narrowed around every one."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.half import numba, ref

EVERY = np.arange(1 << 16).astype(np.uint16)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_element_is_widened(name):
    results = [np.empty(EVERY.size, np.float32) for _ in (ref, numba)]
    for twin, y in zip((ref, numba), results, strict=True):
        twin.widen(EVERY, name, y)
    assert np.array_equal(*results, equal_nan=True)
    assert np.array_equal(*map(np.signbit, results))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_ties_and_their_neighbours_are_narrowed_alike(name):
    values = np.empty(EVERY.size, np.float32)
    ref.widen(EVERY, name, values)
    values = np.sort(values[np.isfinite(values)]).astype(np.float64)
    with np.errstate(over="ignore"):
        ties = ((values[1:] + values[:-1]) / 2).astype(np.float32)
        beyond = np.array([65519.996, 65520, 1e6, 3.3961776e38, 3.4028235e38, np.inf, 1e-45, 0.0], np.float32)
    around = [ties, np.nextafter(ties, np.float32(1e30)), np.nextafter(ties, np.float32(-1e30)), beyond, -beyond]
    x = np.concatenate([values.astype(np.float32), *around])
    results = [np.empty(x.size, np.uint16) for _ in (ref, numba)]
    for twin, bits in zip((ref, numba), results, strict=True):
        twin.narrow(x, name, bits)
    assert np.array_equal(*results)
