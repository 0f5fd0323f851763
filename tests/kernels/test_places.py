"""Places in windows: both twins agree, and give back the indices."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels.places import numba as fast
from trimtab.kernels.places import ref


@pytest.mark.parametrize("num_places", [1, 2, 3, 4, 5, 9, 16, 17, 256])
@pytest.mark.parametrize("num", [1, 7, 64])
def test_twins_agree_and_round_trip(num_places, num):
    generator = np.random.default_rng(num_places * num)
    first = generator.integers(-5, 1000, num)
    offsets = np.sort(generator.choice(5000, num_places, replace=False))
    indices = first + offsets[generator.integers(0, num_places, (11, num))]
    bits = ref.bits_of(num_places)
    slow, quick = (np.full((11, ref.row_bytes(num, bits)), 255, np.uint8) for _ in range(2))
    assert ref.encode(indices, first, offsets, bits, slow)
    assert fast.encode(indices, first, offsets, bits, quick)
    np.testing.assert_array_equal(slow, quick)
    for twin in (ref, fast):
        out = np.full_like(indices, -1)
        twin.decode(slow, first, offsets, bits, out)
        np.testing.assert_array_equal(out, indices)


@pytest.mark.parametrize("twin", [ref, fast])
def test_index_outside_its_window_is_told(twin):
    indices = np.array([[0, 1], [5, 3]])
    assert not twin.encode(indices, np.array([0, 2]), np.array([0, 1]), 1, np.empty((2, 1), np.uint8))


def test_bits():
    assert [ref.bits_of(n) for n in (1, 2, 3, 4, 5, 9, 16, 17, 256)] == [1, 1, 2, 2, 4, 4, 4, 8, 8]
