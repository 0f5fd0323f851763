"""Map-style data sets as stores: whatever has a length and samples by number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from trimtab.data.store import Field
from trimtab.errors import ShapeError, UsageError


class MapStore:
    """The samples of a map-style data set, such as one made for a torch DataLoader.

    A sample is an array, a tensor or a number, or tuples, lists and dicts of such, nested at will; all samples have the
    shapes and dtypes of the first one, which is read when the store is made. Fields are named by their place, such as
    ``0`` and ``1.mask``; a sample that is one array has the field ``x``.

    What the data set draws at random is drawn when a sample is read, and stays while it is kept: randomness belongs
    into the loader's ``transform``. Samples are taken by several threads at the same time.

    Raises:
        UsageError: there is no sample, or one has something else in it.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.num_samples = len(dataset)
        if self.num_samples < 1:
            raise UsageError("the data set has no sample")
        first = dataset[0]
        self.structure = _structure(first, ())
        """The first sample, with the names of fields in the place of arrays."""
        self.fields: Mapping[str, Field] = {
            name: Field(x.shape, x.dtype) for name, x in ((name, _array(x, name)) for name, x in _leaves(first, ()))
        }

    def read(self, samples: np.ndarray, out: Mapping[str, np.ndarray]) -> int:
        """Read samples; see `trimtab.data.store.Store`. All bytes of the samples count.

        Raises:
            UsageError: there is no such sample.
            ShapeError: a sample has another structure, shape or dtype than the first.
        """
        numbers = np.asarray(samples).tolist()
        if numbers and not 0 <= min(numbers) <= max(numbers) < self.num_samples:
            raise UsageError(f"samples are numbered from 0 to {self.num_samples - 1}")
        several = getattr(self.dataset, "__getitems__", None)
        found = several(numbers) if several is not None else map(self.dataset.__getitem__, numbers)
        num_bytes = 0
        for row, (number, sample) in enumerate(zip(numbers, found, strict=True)):
            for name, leaf in self._checked(number, sample):
                num_bytes += leaf.nbytes
                if name in out:
                    out[name][row] = leaf
        return num_bytes

    def close(self) -> None:
        """Do nothing: the data set belongs to the caller."""

    def _checked(self, number: int, sample: Any) -> Iterator[tuple[str, np.ndarray]]:
        if _structure(sample, ()) != self.structure:
            raise ShapeError(f"sample {number} has other parts than sample 0: {_structure(sample, ())}")
        for name, leaf in _leaves(sample, ()):
            x, field = _array(leaf, name), self.fields[name]
            if (x.shape, x.dtype) != field:
                raise ShapeError(
                    f"field {name!r} of sample {number} is {x.dtype}{[*x.shape]}, and of sample 0 "
                    f"{field.dtype}{[*field.shape]}; all samples must be alike (pad or crop them in the data set)"
                )
            yield name, x


def rebuild(structure: Any, fields: Mapping[str, Any], *, batch: bool) -> Any:
    """Return a sample, or a batch, with the arrays of fields in their places.

    In a batch, tuples become lists, as torch's own collation has it; named tuples stay.
    """
    if isinstance(structure, str):
        return fields[structure]
    if isinstance(structure, Mapping):
        return {key: rebuild(part, fields, batch=batch) for key, part in structure.items()}
    parts = [rebuild(part, fields, batch=batch) for part in structure]
    if hasattr(structure, "_fields"):
        return type(structure)(*parts)
    return parts if batch or isinstance(structure, list) else tuple(parts)


def _structure(sample: Any, path: tuple[str, ...]) -> Any:
    if isinstance(sample, Mapping):
        return {key: _structure(part, (*path, str(key))) for key, part in sample.items()}
    if isinstance(sample, (tuple, list)):
        parts = [_structure(part, (*path, str(number))) for number, part in enumerate(sample)]
        if hasattr(sample, "_fields"):
            return type(sample)(*parts)
        return parts if isinstance(sample, list) else tuple(parts)
    return ".".join(path) or "x"


def _leaves(sample: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(sample, Mapping):
        for key, part in sample.items():
            yield from _leaves(part, (*path, str(key)))
    elif isinstance(sample, (tuple, list)):
        for number, part in enumerate(sample):
            yield from _leaves(part, (*path, str(number)))
    else:
        yield ".".join(path) or "x", sample


def _array(leaf: Any, name: str) -> np.ndarray:
    """Return a part of a sample as an array."""
    try:
        if hasattr(leaf, "detach"):
            leaf = leaf.detach().cpu().numpy()
        found = np.asarray(leaf)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"field {name!r} is no array: {error}") from error
    if found.dtype.hasobject or found.dtype.kind in "US":
        raise UsageError(
            f"field {name!r} is {type(leaf).__name__}; samples must be made of arrays, tensors and numbers"
        )
    return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))
