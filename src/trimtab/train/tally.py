"""What a step saved: bytes that plain training would retain, and bytes that are kept instead, by function and layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass
class Row:
    """The bytes of a function, or of one layer of it."""

    function: str
    layer: str
    before: int = 0
    after: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    """Bytes by what became of them."""


class Tally:
    """The rows of one step. A storage counts once, in the row that keeps its values, whole, as autograd retains it.

    Of a slice of data that needs no gradient, the slice alone counts: the rest is in memory anyhow.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self._owners: dict[StorageWeakRef, Row] = {}
        self._exact: set[StorageWeakRef] = set()

    def row(self, function: str, layer: str = "") -> Row:
        found = self.rows.get((function, layer))
        if found is None:
            found = self.rows[function, layer] = Row(function, layer)
        return found

    def saw(self, storage: StorageWeakRef, x: Tensor, row: Row, *, owns: bool = False) -> None:
        """Count the storage of a tensor that was saved; `owns` moves it here from the row that saw it first."""
        owner = self._owners.get(storage)
        if owner is row or (owner is not None and not owns):
            return
        num_bytes = _retained(x)
        if owner is not None:
            owner.before -= num_bytes
        row.before += num_bytes
        self._owners[storage] = row

    def retains(self, storage: StorageWeakRef, x: Tensor) -> int:
        """Return the bytes that keeping `x` itself costs: of its storage, once."""
        if storage in self._exact:
            return 0
        self._exact.add(storage)
        return _retained(x)

    def keep(self, row: Row, how: str, num_bytes: int) -> None:
        """Count bytes that are kept; negative ones take back."""
        row.after += num_bytes
        row.kept[how] = row.kept.get(how, 0) + num_bytes

    @property
    def before(self) -> int:
        return sum(row.before for row in self.rows.values())

    @property
    def after(self) -> int:
        return sum(row.after for row in self.rows.values())

    def functions(self) -> dict[str, dict[str, Any]]:
        """Return for each function the bytes before and after, and what became of them."""
        found: dict[str, dict[str, Any]] = {}
        for row in self.rows.values():
            entry = found.setdefault(row.function, {"before_bytes": 0, "after_bytes": 0, "kept_bytes": {}})
            entry["before_bytes"] += row.before
            entry["after_bytes"] += row.after
            for how, num_bytes in row.kept.items():
                entry["kept_bytes"][how] = entry["kept_bytes"].get(how, 0) + num_bytes
        return found


def _retained(x: Tensor) -> int:
    """Return the bytes that keeping a tensor retains."""
    base = x._base
    return x.nbytes if base is not None and not base.requires_grad else x.untyped_storage().nbytes()
