"""Memory of batches comes back when the last view of it is gone, and not before."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.data import Field
from trimtab.data.recycled import Recycled

FIELDS = {"x": Field((3, 2), np.dtype("f4")), "number": Field((), np.dtype("i8"))}


def address(rows) -> int:
    return rows["x"].__array_interface__["data"][0]


def test_memory_comes_back():
    memory = Recycled(FIELDS, 5)
    rows = memory.rows(5)
    first = address(rows)
    assert rows["x"].shape == (5, 3, 2)
    assert rows["number"].shape == (5,)
    rows["x"][:] = 1
    del rows
    assert address(memory.rows(4)) == first


@pytest.mark.parametrize(
    "keep",
    [
        lambda rows: rows["number"],
        lambda rows: rows["x"][2, 1:],
        lambda rows: rows["x"].reshape(-1)[::2].view(np.int32),
        lambda rows: memoryview(rows["x"]),
        lambda rows: pytest.importorskip("torch").from_numpy(rows["x"])[1:].flatten(),
    ],
    ids=["field", "part", "strided", "memoryview", "tensor"],
)
def test_not_while_there_is_a_view(keep):
    memory = Recycled(FIELDS, 5)
    rows = memory.rows(5)
    first, kept = address(rows), keep(rows)
    del rows
    other = memory.rows(5)
    assert address(other) != first
    del kept, other
    found = [memory.rows(5) for _ in range(2)]
    assert first in map(address, found)


def test_who_keeps_all_batches_gets_new_memory():
    memory = Recycled(FIELDS, 2)
    kept = [memory.rows(2) for _ in range(10)]
    for number, rows in enumerate(kept):
        rows["number"][:] = number
    assert [rows["number"].tolist() for rows in kept] == [[number] * 2 for number in range(10)]
    assert len(memory._blocks) == 3
    assert memory.rows(7)["x"].shape == (7, 3, 2)
