"""From rows of samples to the batch that a training receives: structure, tensors, augmentation, collation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from trimtab.data.mapped import rebuild
from trimtab.data.pool import Rows
from trimtab.data.rank import Step
from trimtab.data.store import Field
from trimtab.errors import UsageError

Transform = Callable[[Any, np.random.Generator], Any]
"""Called with a sample, which it may change, and a generator of its own; returns a sample."""


class Batches:
    """Makes batches.

    Args:
        fields: What a sample has.
        structure: A sample with the names of fields in the place of arrays.
        tensors: Whether arrays become torch tensors.
        seed: Of the augmentation.
        transform: What changes each sample at random.
        collate: What makes a batch of a list of samples, where it is not stacking.
        num_threads: Threads that transform.
        pin_memory: Whether tensors are copied into memory that an accelerator reads directly.

    Raises:
        UsageError: torch has no such dtype.
    """

    def __init__(
        self,
        fields: Mapping[str, Field],
        structure: Any,
        *,
        tensors: bool,
        seed: int,
        transform: Transform | None,
        collate: Callable[[list[Any]], Any] | None,
        num_threads: int,
        pin_memory: bool,
    ) -> None:
        self._structure, self._tensors, self._seed = structure, tensors, seed
        self._transform, self._collate, self._pin_memory = transform, collate, pin_memory
        self._num_threads = num_threads
        self._threads: ThreadPoolExecutor | None = None
        for name, field in fields.items() if tensors else ():
            try:
                _tensor(np.empty(0, field.dtype))
            except TypeError as error:
                raise UsageError(
                    f"torch has no tensors of {field.dtype}, as field {name!r} is; tensors=False"
                ) from error

    def make(self, rows: Rows, step: Step) -> Any:
        """Return the batch of a step; `rows` become part of it."""
        fields = {name: _tensor(x) if self._tensors else x for name, x in rows.items()}
        if self._transform is None and self._collate is None:
            batch = rebuild(self._structure, fields, batch=True)
        else:
            samples = [
                rebuild(self._structure, {name: x[i] for name, x in fields.items()}, batch=False)
                for i in range(len(step.samples))
            ]
            batch = (self._collate or self._stack)(self._transformed(samples, step))
        return _pinned(batch) if self._pin_memory else batch

    def _transformed(self, samples: list[Any], step: Step) -> list[Any]:
        transform = self._transform
        if transform is None:
            return samples
        generators = [generator(self._seed, step.epoch, int(sample)) for sample in step.samples]
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._num_threads, "trimtab-transform")
        return list(self._threads.map(transform, samples, generators))

    def close(self) -> None:
        """End the threads that transform; they begin anew when they are needed."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None

    def _stack(self, samples: list[Any]) -> Any:
        if self._tensors:
            from torch.utils.data import default_collate

            return default_collate(samples)
        return _stacked(samples)


def generator(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """Return the randomness of a sample in an epoch, the same whichever rank uses it."""
    key = np.array([seed, sample], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, epoch], np.uint64)))


def _stacked(samples: Sequence[Any]) -> Any:
    """Return samples as one, their arrays stacked."""
    first = samples[0]
    if isinstance(first, Mapping):
        return {key: _stacked([sample[key] for sample in samples]) for key in first}
    if isinstance(first, (tuple, list)):
        parts = [_stacked(part) for part in zip(*samples, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else parts
    return np.stack(samples)


def _tensor(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(x)


def _pinned(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {key: _pinned(part) for key, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        parts = [_pinned(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch.pin_memory() if hasattr(batch, "pin_memory") else batch
