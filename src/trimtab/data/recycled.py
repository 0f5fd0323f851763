"""Memory of batches, used again once nobody has the batch any more: fresh memory costs more than copying does."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping

import numpy as np

from trimtab.data.pool import Rows
from trimtab.data.store import Field

_MOST = 3  # the batch that the training has, the one that is ready, and the one that the training is about to drop


class Recycled:
    """Hands out rows for batches of up to `num_rows` samples.

    Whatever is made of the rows without copying, arrays and tensors, keeps them from being used again.
    """

    def __init__(self, fields: Mapping[str, Field], num_rows: int) -> None:
        self._fields, self._num_rows = fields, num_rows
        self._blocks: list[_Block] = []

    def rows(self, num_rows: int) -> Rows:
        """Return rows, of any content."""
        block = next((block for block in self._blocks if block.is_free), None)
        if block is None:
            block = _Block(self._fields, max(self._num_rows, num_rows))
            self._blocks = [*self._blocks[1 - _MOST :], block]
        elif block.num_rows < num_rows:
            block = _Block(self._fields, num_rows)
        return block.lend(num_rows)


class _Block:
    def __init__(self, fields: Mapping[str, Field], num_rows: int) -> None:
        self.num_rows = num_rows
        self._fields = fields
        self._memory = {
            name: np.empty(num_rows * math.prod(field.shape) * field.dtype.itemsize, np.uint8)
            for name, field in fields.items()
        }
        self._lent: list[weakref.ref[np.ndarray]] = []

    @property
    def is_free(self) -> bool:
        return all(lent() is None for lent in self._lent)

    def lend(self, num_rows: int) -> Rows:
        """Return rows. Views of an array over foreign memory refer to that array, so it tells when they are gone."""
        rows, self._lent = {}, []
        for name, field in self._fields.items():
            count = num_rows * math.prod(field.shape)
            array = np.frombuffer(memoryview(self._memory[name]), field.dtype, count)
            self._lent.append(weakref.ref(array))
            rows[name] = array.reshape(num_rows, *field.shape)
        return rows
