"""Feeds the ranks of a training in one way, and writes how long it took: for `bench.solar_loading_runs`.

Every rank is a process; they meet at a barrier in every step, as gradients would have them do, and compute nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np

from bench import solar_loading_ways as ways
from bench.solar_loading_ways import Shape
from trimtab import kernels

_ROWS = 64  # written at a time
_LONGEST = 600  # seconds of a run: no rank stays when its run was killed


def data_file(folder: Path, shape: Shape) -> Path:
    """Return the file of samples, written if it is not there; its pages are in memory then."""
    path = folder / f"{shape.num_samples}x{shape.sample_bytes}.h5"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        random = np.random.default_rng(0)
        with h5py.File(part, "w") as file:
            x = file.create_dataset("x", (shape.num_samples, shape.sample_bytes // 4), np.float32)
            for begin in range(0, shape.num_samples, _ROWS):
                rows = random.random(x[begin : begin + _ROWS].shape, np.float32)
                rows[:, 0] = np.arange(begin, begin + len(rows))
                x[begin : begin + _ROWS] = rows
        part.replace(path)
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    return path


def batches(way: str, path: str, shape: Shape, rank: int, job: str) -> Iterator[tuple[Any, int]]:
    """Return the batches of a rank: ``DataLoader 4``, ``trimtab 0.5``, ``pooled 0.5`` or ``pooled, network 0.5``."""
    kind, _, number = way.rpartition(" ")
    if kind == "DataLoader":
        return ways.stock(path, shape, rank, int(number))
    if kind.startswith("pooled"):
        return ways.pooled(path, shape, rank, float(number), job, network=kind == "pooled, network")
    return ways.ours(path, shape, rank, float(number))


class Meeting:
    """A barrier over pipes in a folder: each rank sends a byte to the first, and gets one back when all have come.

    That of multiprocessing wakes the ranks one after the other, over ten system calls each; with a few milliseconds a
    step and more ranks than processors, runs would measure little else.
    """

    def __init__(self, folder: str, rank: int, num_ranks: int) -> None:
        # open for both, so that nobody waits for the other end
        self._mine = os.open(self.pipe(folder, rank), os.O_RDWR)
        self._others = [os.open(self.pipe(folder, k), os.O_RDWR) for k in (range(1, num_ranks) if not rank else (0,))]
        self._is_first = rank == 0

    @staticmethod
    def pipe(folder: str, rank: int) -> str:
        """Return where the pipe to a rank lies."""
        return f"{folder}/pipe-{rank}"

    def wait(self) -> None:
        """Wait for all ranks."""
        if not self._is_first:
            os.write(self._others[0], b".")
            os.read(self._mine, 1)
            return
        missing = len(self._others)
        while missing:
            missing -= len(os.read(self._mine, missing))
        for other in self._others:
            os.write(other, b".")


def feed(way: str, path: str, shape: Shape, rank: int, folder: str, found: Any) -> None:
    """Take all batches of a rank, and report seconds, CPU seconds and reads."""
    import torch
    import torch.distributed as dist

    signal.alarm(_LONGEST)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=shape.num_ranks)
    loaded = batches(way, path, shape, rank, folder)
    numbers, reads, meeting = np.zeros(shape.num_samples, int), 0, Meeting(folder, rank, shape.num_ranks)
    for name in ("permutation", "placement", "caching"):
        kernels.load(name)  # what is imported once is no loading of data
    # a virtual machine may have given free memory back to its host, and then the first touch costs ten times as much
    # as elsewhere: there shall be enough that was touched, for whatever a way keeps
    np.empty(shape.num_samples * shape.sample_bytes // shape.num_ranks, np.uint8).fill(1)
    meeting.wait()
    begun, used = time.perf_counter(), time.process_time()
    for batch, reads in loaded:  # noqa: B007
        x = batch["x"] if isinstance(batch, dict) else batch
        np.add.at(numbers, x[:, 0].numpy().astype(int), 1)
        meeting.wait()
    seconds = time.perf_counter() - begun
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)  # those of a DataLoader have ended with it
    used = time.process_time() - used + workers.ru_utime + workers.ru_stime
    found.put((seconds, used, reads, numbers))
    meeting.wait()
    sys.stdout.flush()
    found.close()
    found.join_thread()
    os._exit(0)  # gloo's threads now and then abort a process that ends in the usual way


def measure(way: str, shape: Shape, data: Path) -> dict[str, Any]:
    """Feed all ranks, and return the seconds of the slowest and the reads of all. `data` is the folder of samples."""
    path = str(data_file(data, shape))
    context = multiprocessing.get_context("forkserver")
    # imported once for all ranks
    context.set_forkserver_preload(["bench.solar_loading_ways", "torch.distributed", "torch.utils.data"])
    found = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(shape.num_ranks):
            os.mkfifo(Meeting.pipe(folder, rank))
        ranks = [
            context.Process(target=feed, args=(way, path, shape, rank, folder, found), daemon=False)
            for rank in range(shape.num_ranks)
        ]
        for rank in ranks:
            rank.start()
        try:
            results = [found.get(timeout=_LONGEST) for _ in ranks]
            for rank in ranks:
                rank.join(60)
        finally:
            for rank in ranks:
                rank.kill()
    seconds, cpu, reads, numbers = zip(*results, strict=True)
    counts = np.sum(numbers, axis=0)
    if counts.min() < shape.num_epochs:
        raise AssertionError(f"{way} lost samples: {np.flatnonzero(counts < shape.num_epochs)[:5]}")
    return {"seconds": max(seconds), "cpu_seconds": sum(cpu), "reads": sum(reads)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", required=True)
    parser.add_argument("--shape", required=True, help="JSON")
    parser.add_argument("--data", type=Path, required=True, help="folder of the samples")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    found = measure(args.way, msgspec.json.decode(args.shape, type=Shape), args.data.absolute())
    args.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
