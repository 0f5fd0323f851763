"""Fletcher's checksum: back ends agree, with each other and with HDF5."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from trimtab.kernels.fletcher import numba, ref


@pytest.mark.parametrize("num", [0, 1, 2, 3, 719, 720, 721, 8192, 8193, 20_001])
@pytest.mark.parametrize("values", ["random", "zeros", "ones"])
def test_twins_agree_with_hdf5(tmp_path, num, values):
    x = {"random": np.random.default_rng(num).integers(0, 256, num), "zeros": np.zeros(num), "ones": np.full(num, 255)}
    data = x[values].astype(np.uint8)
    found = int(numba.checksum(data))
    assert found == ref.checksum(data)
    if num:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            dataset = file.create_dataset("x", data=data, chunks=data.shape, fletcher32=True)
            _, stored = dataset.id.read_direct_chunk((0,))
        assert found == int.from_bytes(stored[-4:], "little")
