"""Flip bits of files that are not ours and read them: ``python -m tests.fuzz.sources SUFFIX FLIPS SEED LOG``.

Most of these files carry no checksum, so that other elements may come out; but nothing else than our own errors, and no
crash, hang or huge allocation.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.sources import Spec, create_target, open_source

SUFFIXES = (".npy", ".npz", ".safetensors", ".pt", ".h5", ".zarr")
MEMORY = 1 << 30  # bytes that an attack may cost beyond what the imports took
SECONDS = 5.0  # that an attack may take


def make(path: Path) -> None:
    arrays = {"weights": np.arange(60, dtype=np.float32).reshape(6, 10), "steps": np.arange(7)}
    if path.suffix == ".npy":
        del arrays["steps"]
    with create_target(path, {name: Spec(x.dtype.name, x.shape) for name, x in arrays.items()}, {}) as target:
        for name in target.order:
            target.add(name, arrays[name])


def read(path: Path) -> None:
    with open_source(path) as source:
        for name in source.specs:
            source.read(name)


def main(suffix: str, num_flips: int, seed: int, log: Path) -> None:
    warnings.simplefilter("ignore")  # libraries warn of what they then refuse
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"victim{suffix}"
        make(path)
        read(path)  # loads everything before memory is limited
        whole = {file: file.read_bytes() for file in [path, *path.rglob("*")] if file.is_file()}
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        for _ in range(num_flips):
            file = list(whole)[rng.integers(len(whole))]
            damaged = bytearray(whole[file])
            bit = int(rng.integers(8 * len(damaged)))
            damaged[bit >> 3] ^= 1 << (bit & 7)
            file.write_bytes(damaged)
            log.write_text(f"bit {bit} of {file.name}")
            start = time.monotonic()
            try:
                read(path)
            except TrimtabError:
                pass
            except Exception as error:  # noqa: BLE001 (whatever else comes out is the finding)
                print(f"bit {bit} of {file.name} -> {error!r}")  # noqa: T201
            if time.monotonic() - start > SECONDS:
                print(f"bit {bit} of {file.name} -> took {time.monotonic() - start:.1f} s")  # noqa: T201
            file.write_bytes(whole[file])
    print(f"{num_flips} attacks")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
