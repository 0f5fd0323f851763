"""What SOLAR is compared with: a stock DataLoader with a DistributedSampler over h5py, here with exact resume."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Rows(Dataset):
    """The rows of data sets of an HDF5 file, as a map-style data set that opens the file in each process."""

    def __init__(self, path: Path, fields: Mapping[str, str]) -> None:
        self._path, self._fields = path, dict(fields)
        self._file: tuple[int, h5py.File] | None = None
        with h5py.File(path) as file:
            self._num = len(file[next(iter(self._fields.values()))])

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        if self._file is None or self._file[0] != os.getpid():
            self._file = os.getpid(), h5py.File(self._path)
        return {name: self._file[1][place][number] for name, place in self._fields.items()}

    def close(self) -> None:
        """Close the file in this process."""
        if self._file is not None:
            self._file[1].close()
            self._file = None


class StockLoader:
    """The batches of a DataLoader, an epoch each time it is iterated over, or what is left of one.

    The arguments are those of `tt.data.SOLAR`; `workers` is the DataLoader's ``num_workers``.
    """

    def __init__(self, rows: Rows, batch_size: int, *, seed: int, num_ranks: int, rank: int, workers: int = 0) -> None:
        self._rows, self._batch_size, self._workers = rows, batch_size, workers
        self._sampler = DistributedSampler(rows, num_ranks, rank, shuffle=True, seed=seed, drop_last=True)
        self._position = (0, 0)

    def __len__(self) -> int:
        return len(self._sampler) // self._batch_size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        epoch, first = self._position
        self._sampler.set_epoch(epoch)
        numbers = [*self._sampler]
        begins = range(first * self._batch_size, len(self) * self._batch_size, self._batch_size)
        batches = DataLoader(
            self._rows,
            batch_sampler=[numbers[begin : begin + self._batch_size] for begin in begins],
            num_workers=self._workers,
            generator=torch.Generator(),  # else every loader draws from torch's own
        )
        for step, batch in enumerate(batches, first + 1):
            self._position = (epoch + 1, 0) if step == len(self) else (epoch, step)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the last batch."""
        return dict(zip(("epoch", "step"), self._position, strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a position."""
        self._position = (state["epoch"], state["step"])

    def close(self) -> None:
        """Close the file."""
        self._rows.close()
