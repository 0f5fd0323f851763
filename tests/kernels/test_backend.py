import importlib
import sys
import threading

import pytest

from trimtab import kernels
from trimtab.errors import BackendUnavailable, UsageError

mechanism = importlib.import_module("trimtab.kernels.backend")  # the package gives this name to the function


def test_best_back_end_is_numba_and_ref_can_be_forced():
    assert kernels.load("huffman").__name__ == "trimtab.kernels.huffman.numba"
    with kernels.backend("ref"):
        assert kernels.load("huffman").__name__ == "trimtab.kernels.huffman.ref"
    assert kernels.load("huffman").__name__ == "trimtab.kernels.huffman.numba"


def test_environment_variable_forces(monkeypatch):
    monkeypatch.setenv("TRIMTAB_BACKEND", "ref")
    assert kernels.load("huffman").__name__.endswith(".ref")
    with kernels.backend("numba"):  # what stands in the code beats the environment
        assert kernels.load("huffman").__name__.endswith(".numba")


def test_unknown_back_end_names_the_known_ones(monkeypatch):
    with pytest.raises(UsageError, match="'cuda'; expected one of numba, ref, triton"), kernels.backend("cuda"):
        pass
    monkeypatch.setenv("TRIMTAB_BACKEND", "cuda")
    with pytest.raises(UsageError, match="'cuda'"):
        kernels.load("huffman")


def test_broken_back_end_warns_once_and_falls_back(monkeypatch):
    monkeypatch.setitem(sys.modules, "trimtab.kernels.huffman.numba", None)  # makes its import fail
    mechanism._best.cache_clear()
    mechanism._try_load.cache_clear()
    try:
        with pytest.warns(UserWarning, match="'huffman' runs without its numba back end"):
            assert kernels.load("huffman").__name__.endswith(".ref")
        assert kernels.load("huffman").__name__.endswith(".ref")  # a second warning would be an error here
        with pytest.raises(BackendUnavailable, match="'numba' cannot run kernel 'huffman'"), kernels.backend("numba"):
            kernels.load("huffman")
    finally:
        mechanism._best.cache_clear()
        mechanism._try_load.cache_clear()


def test_triton_serves_tensors_alone(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.load_for("bitplanes", "cpu") is None
    with kernels.backend("triton"):
        assert kernels.load("bitplanes").__name__.endswith(".numba")
        pytest.importorskip("triton")
        assert kernels.load_for("bitplanes", "cpu").__name__.endswith(".triton")
        with pytest.raises(BackendUnavailable, match="'triton' cannot run kernel 'huffman'"):
            kernels.load_for("huffman", "cpu")
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        assert kernels.load_for("bitplanes", "cpu") is None
    with kernels.backend("ref"):
        assert kernels.load_for("bitplanes", "cuda") is None


def test_missing_triton_is_told_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "trimtab.kernels.bitplanes.triton", None)
    mechanism._on_device.cache_clear()
    mechanism._try_load.cache_clear()
    try:
        with pytest.warns(UserWarning, match="copied to the host for kernel 'bitplanes'"):
            assert kernels.load_for("bitplanes", "cuda") is None
        assert kernels.load_for("bitplanes", "cuda") is None
    finally:
        mechanism._on_device.cache_clear()
        mechanism._try_load.cache_clear()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_for_each_does_all_work_once(count):
    done, lock = [], threading.Lock()

    def work(index):
        with lock:
            done.append(index)

    with kernels.threads(count):
        assert kernels.num_threads() == count
        kernels.for_each(work, 20)
    assert sorted(done) == list(range(20))


def test_for_each_runs_side_by_side_and_keeps_the_context():
    meet = threading.Barrier(2, timeout=20)
    names = []

    def work(index):
        meet.wait()  # passes only if two run at the same time
        names.append(kernels.load("huffman").__name__)

    with kernels.threads(2), kernels.backend("ref"):
        kernels.for_each(work, 2)
    assert names == ["trimtab.kernels.huffman.ref"] * 2


def test_for_each_raises_the_error_of_the_work():
    def work(index):
        if index == 3:
            raise KeyError(index)

    with kernels.threads(2), pytest.raises(KeyError):
        kernels.for_each(work, 8)


def test_number_of_threads_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert kernels.num_threads() == 3
    monkeypatch.setenv("TRIMTAB_NUM_THREADS", "5")
    assert kernels.num_threads() == 5
    with pytest.raises(UsageError, match="at least 1"), kernels.threads(0):
        pass
