"""LZF: back ends agree, undo what h5py's filter did, and stay inside their arrays whatever the stream says."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.kernels.lzf import numba, ref


def decoded(data: np.ndarray, most: int) -> np.ndarray | None:
    found = []
    for twin in (ref, numba):
        into = np.full(most + 8, 7, np.uint8)
        size = twin.decode(data, into[:most])
        assert (into[most:] == 7).all()
        found.append(None if size < 0 else into[:size])
    assert (found[0] is None) == (found[1] is None)
    if found[0] is not None:
        assert np.array_equal(*found)
    return found[0]


@pytest.mark.parametrize("seed", range(4))
def test_streams_of_h5py(tmp_path, seed):
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.integers(0, 9, 700), rng.integers(1, 400, 700)).astype(np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=x, chunks=x.shape, compression="lzf")
        mask, stored = dataset.id.read_direct_chunk((0,))
    assert mask == 0 and len(stored) < x.size / 4
    data = np.frombuffer(stored, np.uint8)
    assert np.array_equal(decoded(data, x.size), x)
    assert decoded(data, x.size - 1) is None
    assert decoded(data[:-1], x.size) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 64))
def test_any_bytes(data, most):
    decoded(np.frombuffer(data, np.uint8), most)


def test_copies_that_begin_before_the_output_are_refused():
    assert decoded(np.array([0, 65, 0x20, 1], np.uint8), 9) is None
    assert decoded(np.array([0, 65, 0x20, 0], np.uint8), 9).tobytes() == b"AAAA"
