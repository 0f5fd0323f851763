"""Peak memory of pack, unpack and verify: twice the largest array and a reserve, whatever the size of the file."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trimtab.bounds import Abs, Lossless, value_range
from trimtab.dtypes import numpy_dtype
from trimtab.sources import Spec, create_target

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kB on Linux only")
GIB = 1 << 30
RESERVE = {".pt": 500 * 10**6}  # the code of PyTorch alone takes 180 MB

MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "trimtab", *sys.argv[1:]], capture_output=True, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps([done.returncode, done.stderr, peak]))
"""


def peak_bytes(*args: object) -> int:
    """Return the peak resident memory of ``trimtab ARGS``."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, args)], capture_output=True, text=True, check=True)
    status, talk, peak = json.loads(done.stdout)
    assert status == 0, talk
    return peak


def write(path: Path, num_arrays: int, num_elements: int, dtype: str = "float32", scale: float = 0.02) -> Path:
    """Write arrays as trained weights have them."""
    rng = np.random.default_rng(0)
    names = [f"layer.{i}" for i in range(num_arrays)]
    with create_target(path, {name: Spec(dtype, (num_elements // 1000, 1000)) for name in names}, {}) as target:
        for name in names:
            x = rng.standard_normal(num_elements, dtype=np.float32)
            target.add(name, (scale * x).reshape(-1, 1000).astype(numpy_dtype(dtype), copy=False))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt", ".h5", ".zarr"])
def test_a_file_much_larger_than_its_arrays(tmp_path, suffix):
    source, packed, back = tmp_path / f"a{suffix}", tmp_path / "a.tt", tmp_path / f"b{suffix}"
    write(source, num_arrays=40, num_elements=5_000_000)  # 800 MB in arrays of 20 MB
    limit = 2 * 20_000_000 + RESERVE.get(suffix, 300 * 10**6)
    assert peak_bytes("pack", source, packed) < limit
    assert peak_bytes("verify", packed, "--against", source) < limit
    assert peak_bytes("unpack", packed, back) < limit


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".pt"])
@pytest.mark.parametrize("flags", [[], ["--rel", "1e-3"]])
def test_one_large_array(tmp_path, suffix, flags):
    source, packed, back = tmp_path / f"a{suffix}", tmp_path / "a.tt", tmp_path / f"b{suffix}"
    write(source, num_arrays=1, num_elements=105_000_000)
    limit = 2 * 420_000_000 + RESERVE.get(suffix, 300 * 10**6)
    assert peak_bytes("pack", source, packed, *flags) < limit
    assert peak_bytes("verify", packed, "--against", source) < limit
    assert peak_bytes("unpack", packed, back) < limit


def huge_pieces(dtype: str, num_elements: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the parts of a huge array and where they stand; no two are alike, so that a mix-up of offsets shows."""
    rng = np.random.default_rng(0)
    size = 1 << 24
    pattern = np.abs(0.02 * rng.standard_normal(size, dtype=np.float32))
    pattern = (500 * pattern if dtype == "uint8" else pattern).astype(dtype)
    for i, start in enumerate(range(0, num_elements, size)):
        where = slice(start, min(start + size, num_elements))
        yield where, np.roll(pattern, 977 * i)[: where.stop - start]


def free_memory() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("dtype", "shape", "rel"),
    [
        ("uint8", (6 * GIB + 1001,), 0.0),  # more than 2**32 elements
        ("float32", (3, GIB // 2 + 7), 0.0),
        ("float16", (3, 1 << 15, 1 << 15), 1e-3),  # more than 2**31 elements
    ],
)
def test_one_array_of_6_gib(tmp_path, dtype, shape, rel):
    num_elements = math.prod(shape)
    limit = 2 * num_elements * np.dtype(dtype).itemsize + 300 * 10**6
    if free_memory() < limit + GIB or shutil.disk_usage(tmp_path).free < 20 * GIB:
        pytest.skip("needs 14 GiB of free memory and 20 GiB of free disk")
    source, packed, back = tmp_path / "a.npy", tmp_path / "a.tt", tmp_path / "b.npy"
    flags = ["--rel", rel] if rel else []
    _, first = next(huge_pieces(dtype, num_elements))
    bound = Abs(rel * value_range(first)) if rel else Lossless()
    try:
        x = np.lib.format.open_memmap(source, "w+", dtype, shape).reshape(-1)
        for where, piece in huge_pieces(dtype, num_elements):
            x[where] = piece
        del x
        assert peak_bytes("pack", source, packed, *flags) < limit
        assert packed.stat().st_size < (0.6 if rel else 0.9) * 6 * GIB
        source.unlink()
        assert peak_bytes("unpack", packed, back) < limit
        y = np.load(back, mmap_mode="r")
        assert y.shape == shape and y.dtype == dtype
        y = y.reshape(-1)
        for where, piece in huge_pieces(dtype, num_elements):
            assert bound.allows(piece, y[where]), where
    finally:  # pytest keeps the folders of its last three runs
        for path in (source, packed, back):
            path.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--rel", "1e-2"], ["--pointwise-rel", "1e-2"], ["--psnr", "40"]])
def test_one_large_array_of_short_floats(tmp_path, flags):
    source, packed = tmp_path / "a.safetensors", tmp_path / "a.tt"
    write(source, num_arrays=1, num_elements=210_000_000, dtype="bfloat16")
    assert peak_bytes("pack", source, packed, *flags) < 2 * 420_000_000 + 300 * 10**6


@pytest.mark.slow
def test_a_base_takes_room_for_one_array_more(tmp_path):
    """And its difference, while both ways of packing are at hand."""
    base = write(tmp_path / "base.safetensors", 10, 5_000_000)
    tuned = write(tmp_path / "tuned.safetensors", 10, 5_000_000, scale=0.02001)
    packed, back, packed_base = tmp_path / "a.tt", tmp_path / "b.safetensors", tmp_path / "base.tt"
    assert peak_bytes("pack", base, packed_base) < 2 * 20_000_000 + 300 * 10**6
    for given in (base, packed_base):
        limit = 4 * 20_000_000 + 300 * 10**6
        assert peak_bytes("pack", tuned, packed, "--base", given, "--force") < limit
        assert peak_bytes("verify", packed, "--base", given, "--against", tuned) < limit
        assert peak_bytes("unpack", packed, back, "--base", given, "--force") < limit


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for num_arrays in (2, 20):  # of 4 MB
        source, packed = (
            write(tmp_path / f"{num_arrays}.safetensors", num_arrays, 1_000_000),
            tmp_path / f"{num_arrays}.tt",
        )
        peaks.append(
            (
                peak_bytes("pack", source, packed, "--codec", "raw"),
                peak_bytes("unpack", packed, tmp_path / f"{num_arrays}.npz"),
            )
        )
    for small, large in zip(*peaks, strict=True):
        assert large < small + 30_000_000
