"""What a failing rank tells the others: a word in the store of the group, which they read when a collective breaks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from trimtab.errors import PeerFailed

__all__ = ["Failures"]

_GRACE = 3.0  # seconds that the others get to leave their word
_MAX_WORDS = 2000  # characters of a reason


class Failures:
    """The failures of ranks that work together.

    Args:
        store: One that all of them reach.
        name: The same on all ranks, and used once.
        ranks: Who they are, by their ranks in the default group.
    """

    def __init__(self, store: dist.Store, name: str, ranks: Sequence[int]) -> None:
        # a connection of its own: on the group's, a timeout would be that of torch's rendezvous, too
        own = store.clone() if hasattr(store, "clone") else None  # since torch 2.8
        self._store = dist.PrefixStore(f"trimtab/{name}", own or store)
        if own:
            own.set_timeout(timedelta(seconds=5))
        self._rank = dist.get_rank()
        self._ranks = tuple(ranks)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the other ranks why this one fails, if it does here."""
        try:
            yield
        except PeerFailed:
            raise  # the reason is another's
        except BaseException as error:
            self.tell(error)
            raise

    def tell(self, error: BaseException) -> None:
        """Leave the reason why this rank fails; the first reason of a group stays."""
        reason = f"rank {self._rank}: {type(error).__name__}: {error}"[:_MAX_WORDS]
        try:
            self._store.compare_set("reason", "", reason)
            self._store.set(f"seen/{self._rank}", "failed")
        except Exception:  # noqa: BLE001 (the store may be gone with the rank that held it; the reason is raised here)
            return

    @contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Turn the break of a collective into a clear error.

        Raises:
            PeerFailed: the collective broke or timed out. It tells the reason that a rank left, or which left none.
        """
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise PeerFailed(f"{what} failed: {self._reason()} ({_line(error)})") from error

    def _reason(self) -> str:
        try:
            self._store.set(f"seen/{self._rank}", "broken")
            silent = [rank for rank in self._ranks if rank != self._rank]
            end = time.monotonic() + _GRACE
            while True:
                if self._store.check(["reason"]):
                    return self._store.get("reason").decode(errors="replace")
                silent = [rank for rank in silent if not self._store.check([f"seen/{rank}"])]
                if not silent or time.monotonic() > end:
                    break
                time.sleep(0.05)
        except Exception:  # noqa: BLE001 (whatever the store raises, what counts is that it is gone)
            return "no rank left a reason, and the store cannot be reached: rank 0 may be gone"
        if not silent:
            return "no rank left a reason, and all noticed: the link may be broken, or the timeout too short"
        ranks = ", ".join(map(str, silent))
        return f"no word from rank {ranks} of {len(self._ranks)}: killed, cut off, or busy for longer than the timeout"


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
