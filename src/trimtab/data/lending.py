"""Samples that one rank holds and another uses: they are sent from processor to processor by torch.distributed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np

from trimtab.errors import PeerFailed


class Lending:
    """Sends and receives samples, on a process group of its own so that nothing of the training's is disturbed.

    Making it is a collective: all ranks do so, and make their loaders in the same order.
    """

    def __init__(self, timeout: float) -> None:
        import torch.distributed as dist

        self._timeout = timedelta(seconds=timeout)
        self._group: Any = dist.new_group(backend="gloo", timeout=self._timeout)

    def exchange(self, sent: Mapping[int, np.ndarray], received: Mapping[int, np.ndarray]) -> None:
        """Send bytes to ranks, and fill arrays with what ranks send; uint8 of any length.

        Raises:
            PeerFailed: a rank is gone, or did not answer in time.
        """
        import torch
        import torch.distributed as dist

        try:
            works = [dist.isend(torch.from_numpy(x), rank, group=self._group) for rank, x in sent.items()]
            works += [dist.irecv(torch.from_numpy(x), rank, group=self._group) for rank, x in received.items()]
            for work in works:
                if work is not None:
                    work.wait(self._timeout)
        except RuntimeError as error:
            ranks = sorted({*sent, *received})
            raise PeerFailed(f"samples could not be exchanged with ranks {ranks}: {error}") from error
