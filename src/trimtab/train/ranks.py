"""The ranks that compute one loss together: they agree before they exchange data, so that all raise or none does."""

from __future__ import annotations

from typing import NoReturn

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from trimtab.errors import NotFinite, SettingsDiffer, UsageError

__all__ = ["Ranks"]

_KINDS = (UsageError, NotFinite)
_SHOWN = 1024  # bytes of what a rank says when it fails


class Ranks:
    """The ranks of a process group; this process alone where torch.distributed is not initialized.

    Args:
        group: The group; the default group if it is left out.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        self._group = group
        self.rank, self.size = (0, 1) if group is None else (group.rank(), group.size())

    def agree(self, num_rows: int, state: str, problem: Exception | None, device: torch.device) -> list[int]:
        """Return how many rows each rank has, if none has a problem and all are in the same state.

        A collective of 24 bytes a rank. Whatever is wrong with a rank's input is `problem`, not raised, so that all
        ranks come here.

        Raises:
            UsageError, NotFinite: a rank has such a problem; raised on every rank, with the reason.
            SettingsDiffer: the ranks' `state` differs; raised on every rank.
        """
        if self.size == 1:
            if problem is not None:
                raise problem
            return [num_rows]
        kind = 0 if problem is None else 1 + _KINDS.index(type(problem))
        digest = xxhash.xxh3_64_intdigest(state.encode()) >> 1
        header = torch.tensor([kind, num_rows, digest], dtype=torch.int64, device=device)
        kinds, counts, digests = self._gather(header).view(self.size, 3).T.tolist()
        if any(kinds):
            self._fail(kinds, problem, device)
        if any(other != digests[0] for other in digests):
            self._differ(state, digests, device)
        return counts

    def gather(self, counts: list[int], *parts: Tensor) -> list[Tensor]:
        """Return each of `parts` [counts[rank], n], of any dtypes, with the rows of all ranks, by one collective.

        What is returned carries no gradient.
        """
        parts = tuple(part.detach() for part in parts)
        if self.size == 1:
            return list(parts)
        columns = [part.contiguous().view(torch.uint8) for part in parts]
        widths = [column.shape[1] for column in columns]
        most = max(counts)
        rows = columns[0].new_zeros(most, sum(widths))
        torch.cat(columns, dim=1, out=rows[: counts[self.rank]])
        found = self._gather(rows.view(-1)).view(self.size, most, -1)
        found = torch.cat([one[:count] for one, count in zip(found, counts, strict=True)])
        return [
            column.contiguous().view(part.dtype) for column, part in zip(found.split(widths, dim=1), parts, strict=True)
        ]

    def _gather(self, x: Tensor) -> Tensor:
        """Return the vectors of all ranks, which are of one size, behind each other."""
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
        found = x.new_empty(self.size * x.numel())
        gather(found, x, group=self._group)
        return found

    def _texts(self, text: str, device: torch.device) -> list[str]:
        cut = text.encode()[:_SHOWN]
        rows = self._gather(torch.tensor([*cut.ljust(_SHOWN, b"\0")], dtype=torch.uint8, device=device))
        return [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in rows.view(self.size, _SHOWN)]

    def _fail(self, kinds: list[int], problem: Exception | None, device: torch.device) -> NoReturn:
        texts = self._texts(str(problem or ""), device)
        told = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if kinds[rank])
        raise _KINDS[next(filter(None, kinds)) - 1](told) from problem

    def _differ(self, state: str, digests: list[int], device: torch.device) -> NoReturn:
        texts = self._texts(state, device)
        other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
        raise SettingsDiffer(
            f"the ranks do not compute the same loss: rank 0 has {texts[0]}; rank {other} has {texts[other]}"
        )
