"""Runs of zeros: both twins alike, every length, and no way out of the buffers."""

import numpy as np
import pytest

from trimtab import kernels
from trimtab.kernels.runs import ref

RNG = np.random.default_rng(0)
CASES = [
    np.zeros(0, np.uint8),
    np.zeros(1, np.uint8),
    np.zeros((1 << 17) + 12345, np.uint8),
    np.arange(1, 241, dtype=np.uint8),
    *(
        RNG.choice(np.array([0, 1, 240], np.uint8), 5000, p=[p, 0.9 - 0.9 * p, 0.1 - 0.1 * p])
        for p in (0.1, 0.9, 0.999)
    ),
    *(
        np.concatenate([[7], np.zeros(n), [9]]).astype(np.uint8)
        for n in (*range(1, 70), 255, 256, 257, 511, 2**15 - 1, 2**15, 2**15 + 1, 3 * 2**15 + 777)
    ),
]


@pytest.mark.parametrize("tokens", CASES)
def test_round_trip_and_twins(tokens):
    found = []
    for backend in ("ref", "numba"):
        with kernels.backend(backend):
            runs = kernels.load("runs")
        symbols = np.full(tokens.size + 8, 255, np.uint8)
        count = runs.fold(tokens, symbols)
        found.append(symbols[:count].tolist())
        back = np.full(tokens.size, 255, np.uint8)
        assert runs.unfold(symbols[:count], back) == 0
        assert np.array_equal(back, tokens)
    assert found[0] == found[1]


def test_long_runs_are_short():
    symbols = np.empty((1 << 20) + 8, np.uint8)
    assert kernels.load("runs").fold(np.zeros(1 << 20, np.uint8), symbols) == 1 << (20 - ref.MAX_POWER)


@pytest.mark.parametrize("backend", ["ref", "numba"])
@pytest.mark.parametrize(
    "symbols", [[0] * 9, [0] * 11, [244], [244, 244], [240], [0] * 9 + [255], [255] * 100, [241] * 6], ids=str
)
def test_symbols_of_other_lengths_are_refused(backend, symbols):
    tokens = np.empty(12, np.uint8)[:10]
    with kernels.backend(backend):
        assert kernels.load("runs").unfold(np.array(symbols, np.uint8), tokens) == -1
