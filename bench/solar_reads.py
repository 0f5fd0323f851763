"""Reading rows in random order from warm files: trimtab's stores beside h5py, zarr and np.memmap, CPU time a sample.

The files lie in memory (or in the page cache), so that only the price of the calls and copies is left. Every way copies
the same rows, batch by batch in an order drawn at random, into the same array. Threads are off.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import zarr

from bench import harness
from bench.harness import Contender, Options, metric
from bench.read_tables import solar_reads_tables
from trimtab.data import HDF5, Memmap, Zarr
from trimtab.records import Bar, Metric, Record

ROWS = {"64 KiB": (2_048, (128, 128)), "1 MiB": (256, (512, 512))}
"""Size of a sample -> samples of the file, shape of one, as float32."""
QUICK_ROWS = {"64 KiB": (64, (128, 128)), "1 MiB": (8, (512, 512))}
BATCH = 64
BAR = 0.75
OURS = "trimtab"
BARRED = ("HDF5, contiguous", "HDF5, chunks of 1")
"""Layouts whose plain rows must be read for at most `BAR` of h5py's CPU time."""

Read = Callable[[np.ndarray, np.ndarray], object]
"""(samples, out) -> whatever."""


def run(options: Options) -> Record:
    """Measure, and return the record."""
    metrics: dict[str, Metric] = {}
    rows = QUICK_ROWS if options.quick else ROWS
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        for size, (num, shape) in rows.items():
            # as detectors count: gzip finds something, but not all
            x = np.random.default_rng(0).poisson(30, (num, *shape)).astype(np.float32)
            for layout, ways in _layouts(Path(folder) / size.replace(" ", ""), x).items():
                metrics |= _measured(f"{layout}/{size}", ways, x, options)
    return Record.new(
        options.name,
        command=options.command,
        packages=("h5py", "zarr"),
        seed=0,
        data={"rows": {size: [num, list(shape)] for size, (num, shape) in rows.items()}, "batch": BATCH},
        inference={"num_threads": 1, "clock": "CPU seconds of the process"},
        metrics=metrics,
        bars=_bars(metrics, list(rows)),
    )


def _layouts(start: Path, x: np.ndarray) -> dict[str, dict[str, Read]]:
    """Write `x` in every layout, and return the ways to read each."""
    path, row = start.with_suffix(".h5"), (1, *x.shape[1:])
    with h5py.File(path, "w") as file:
        file["contiguous"] = x
        file.create_dataset("chunks", data=x, chunks=row)
        file.create_dataset("gzip", data=x, chunks=row, compression="gzip", compression_opts=1, shuffle=True)
    np.save(start.with_suffix(".npy"), x)
    group = zarr.create_group(start.with_suffix(".zarr"))
    group.create_array("plain", data=x, chunks=row, compressors=None)
    group.create_array("shards", data=x, chunks=row, shards=(min(64, len(x)), *x.shape[1:]), compressors=None)
    file = h5py.File(path)

    def hdf5(name: str) -> dict[str, Read]:
        return {OURS: _store(HDF5(path, name, num_threads=1), name), "h5py": partial(_row_by_row, file[name])}

    def zarrs(name: str) -> dict[str, Read]:
        ours = _store(Zarr(start.with_suffix(".zarr"), name, num_threads=1), name)
        return {OURS: ours, "zarr": partial(_row_by_row, group[name])}

    mapped = np.load(start.with_suffix(".npy"), mmap_mode="r")
    return {
        "HDF5, contiguous": {**hdf5("contiguous"), "h5py, sorted list": partial(_sorted, file["contiguous"])},
        "HDF5, chunks of 1": hdf5("chunks"),
        "HDF5, chunks of 1, shuffle and gzip": hdf5("gzip"),
        "Zarr, chunks of 1": zarrs("plain"),
        "Zarr, shards of 64": zarrs("shards"),
        ".npy": {
            OURS: _store(Memmap(start.with_suffix(".npy"), num_threads=1), "x"),
            "np.memmap": partial(_row_by_row, mapped),
        },
    }


def _store(store: HDF5 | Zarr | Memmap, name: str) -> Read:
    return lambda samples, out: store.read(samples, {name: out})


def _row_by_row(rows: h5py.Dataset | zarr.Array | np.ndarray, samples: np.ndarray, out: np.ndarray) -> None:
    for place, sample in enumerate(samples.tolist()):
        out[place] = rows[sample]


def _sorted(rows: h5py.Dataset, samples: np.ndarray, out: np.ndarray) -> None:
    order = np.argsort(samples)
    out[order] = rows[samples[order]]


def _measured(key: str, ways: dict[str, Read], x: np.ndarray, options: Options) -> dict[str, Metric]:
    """Let all ways read all samples in turns; each is checked once."""
    order = np.random.default_rng(1).permutation(len(x))
    batches = [order[start : start + BATCH] for start in range(0, len(x), BATCH)]
    out = np.empty((BATCH, *x.shape[1:]), x.dtype)

    def every(read: Read) -> None:
        for batch in batches:
            read(batch, out[: len(batch)])

    for name, read in ways.items():
        for batch in batches:
            out.fill(-1)
            read(batch, out[: len(batch)])
            if not np.array_equal(out[: len(batch)], x[batch]):
                raise AssertionError(f"{name} does not return the rows of {key}")
    contenders = [Contender(name, partial(every, read), _nothing, name != OURS) for name, read in ways.items()]
    timings = harness.measure(contenders, options.num_rounds)
    metrics = {}
    for name, timing in timings.items():
        seconds = timing.seconds("encode", "cpu")
        metrics[f"{key}/{name}/cpu"] = metric([1e6 * one / len(x) for one in seconds], "us a sample")
        if name != OURS:
            pairs = zip(timings[OURS].seconds("encode", "cpu"), seconds, strict=True)
            metrics[f"{key}/{name}/ratio"] = metric([ours / theirs for ours, theirs in pairs], "x")
    return metrics


def _nothing(_: object) -> None:
    return None


def _bars(metrics: dict[str, Metric], sizes: list[str]) -> list[Bar]:
    bars = []
    for layout in BARRED:
        for size in sizes:
            reached = metrics[f"{layout}/{size}/h5py/ratio"].value
            name = f"SOLAR: warm rows of {size}, {layout}: CPU beside h5py's"
            bars.append(Bar(name=name, required=f"<= {BAR}", reached=reached, passed=reached <= BAR))
    return bars


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("solar_reads", __doc__, argv)
    record = run(options)
    print(solar_reads_tables(record))
    harness.write(record, options)


if __name__ == "__main__":
    main()
