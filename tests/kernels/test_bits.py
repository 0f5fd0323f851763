"""Masks of one bit an element: the bits that ReLU's backward pass reads off its result."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.samples import random_bits, special
from trimtab.dtypes import numpy_dtype
from trimtab.kernels.bits import numba, ref

WORDS = {"float32": ("i4", 0x7F800000), "float16": ("i2", 0x7C00), "bfloat16": ("i2", 0x7F80)}


def masks(x: np.ndarray) -> list[np.ndarray]:
    words, infinity = WORDS[x.dtype.name]
    found = [np.full(ref.mask_bytes(x.size), 7, np.uint8) for _ in (ref, numba)]
    for twin, out in zip((ref, numba), found, strict=True):
        twin.mask(x.view(words), infinity, out)
    return found


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 63, 64, 65, 1000])
def test_twins_agree(name: str, size: int) -> None:
    x = random_bits(name, size)
    x[-special(name).size :] = special(name)[:size]
    by_ref, by_numba = masks(x)
    assert np.array_equal(by_ref, by_numba)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(np.unpackbits(by_ref, bitorder="little")[:size], ~(x <= 0))
    words = [np.full(size, 5, WORDS[name][0]) for _ in (ref, numba)]
    for twin, y in zip((ref, numba), words, strict=True):
        twin.unmask(by_ref, int(np.ones(1, numpy_dtype(name)).view(WORDS[name][0])[0]), y)
    assert np.array_equal(*words)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(words[0].view(x.dtype), np.where(x <= 0, 0, 1).astype(x.dtype))


def test_bits_behind_the_end_are_clear() -> None:
    for mask in masks(np.ones(9, ml_dtypes.bfloat16)):
        assert mask.tolist() == [255, 1]
