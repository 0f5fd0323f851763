"""Simulated samples in an HDF5 file: made in pieces, so that memory stays small, for training and held out.

The file has the groups ``train`` and ``test``, each with a data set for every field, one row a sample. A sample depends
on the seed, the group, and its number alone: a file of fewer samples holds the first of a larger one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Piece = dict[str, np.ndarray]
"""Some samples: each field as an array with a row a sample."""
Pieces = Callable[[int], Iterator[Piece]]
"""Yields pieces without end, from a number that tells apart what is for training (0) from what is held out (1)."""

SECONDS = 5.0
"""How often progress is told."""


def write(
    path: Path, pieces: Pieces, counts: Mapping[str, int], settings: Mapping[str, Any], chunk: int | None = None
) -> None:
    """Write as many samples of each group as `counts` says; the file has its name only when it is whole.

    Args:
        path: The file; one that is there is replaced.
        pieces: What makes the samples.
        counts: Samples of the groups, in the order of their numbers.
        settings: What the samples depend on, kept as text of the attribute ``settings``.
        chunk: Samples a chunk of the file; without it, rows lie one behind the other.

    Raises:
        ValueError: a count or a chunk is less than 1.
    """
    if min(*counts.values(), 1 if chunk is None else chunk) < 1:
        raise ValueError(f"at least one sample of each kind, and of a chunk, is needed; got {dict(counts)}, {chunk}")
    partial = path.with_name(path.name + ".partial")
    try:
        with h5py.File(partial, "w") as file:
            file.attrs["settings"] = json.dumps(dict(settings))
            for number, (name, count) in enumerate(counts.items()):
                _write_group(file.create_group(name), pieces(number), count, chunk)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_group(group: h5py.Group, pieces: Iterator[Piece], count: int, chunk: int | None) -> None:
    done, begun = 0, time.monotonic()
    told = begun
    while done < count:
        piece = next(pieces)
        for name, rows in piece.items():
            if name not in group:
                shape = (count, *rows.shape[1:])
                chunks = (min(chunk, count), *shape[1:]) if chunk else None
                group.create_dataset(name, shape, rows.dtype, chunks=chunks)
            group[name][done : done + len(rows)] = rows[: count - done]
        done = min(done + len(rows), count)
        now = time.monotonic()
        if now - told > SECONDS or done == count:
            told = now
            left = (now - begun) / done * (count - done)
            print(f"{group.name[1:]}: {done} of {count} samples, {left:.0f} s left", file=sys.stderr, flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all simulators have."""
    parser.add_argument("out", type=Path, help="HDF5 file to write")
    parser.add_argument("--samples", type=int, default=4096, help="to train on (default 4096)")
    parser.add_argument("--test-samples", type=int, help="held out (default: an eighth as many)")
    parser.add_argument("--chunk", type=int, help="samples a chunk of the file (default: contiguous)")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace, pieces: Pieces, settings: Mapping[str, Any]) -> None:
    """Write the file that the command line asks for."""
    held_out = options.test_samples if options.test_samples is not None else max(options.samples // 8, 1)
    counts = {"train": options.samples, "test": held_out}
    write(options.out, pieces, counts, {"seed": options.seed, **settings}, options.chunk)
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.1f} MiB", file=sys.stderr)
