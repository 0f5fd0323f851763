"""What works for a loader in the background, from one position on: read ahead, keep, lend, and make batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.data.batches import Batches
from trimtab.data.lending import Lending
from trimtab.data.pool import Rows, Slots, empty_rows
from trimtab.data.prefetch import Coming, Prefetch
from trimtab.data.rank import Step
from trimtab.data.recycled import Recycled
from trimtab.data.store import Store

_SMALL = 2048  # bytes of a sample up to which indexing by arrays beats copying row by row
_JOIN_SECONDS = 10.0

OpenSlots = Callable[[Callable[[], bool]], Slots]
"""Returns the slots; what it is given says whether to stop waiting for other ranks."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A batch, and the step it is of."""

    batch: Any
    step: Step


class Run:
    """A thread that makes one batch ahead of the training, over a `Prefetch`.

    It does what `Step` says, in that order: it takes the batch from slots, the ring and other ranks, and then writes
    what is kept. The batch is handed out after that, so that a training that changes it in place changes nothing else.
    """

    def __init__(
        self,
        prefetch: Prefetch,
        store: Store,
        open_slots: OpenSlots,
        lending: Lending | None,
        batches: Batches,
        *,
        batch_size: int,
    ) -> None:
        self._memory = Recycled(store.fields, batch_size)
        self._prefetch, self._store, self._lending, self._batches = prefetch, store, lending, batches
        self._open_slots = open_slots
        self._changed = threading.Condition()
        self._ready: deque[Ready | None] = deque()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="trimtab-batches")
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether there are no more batches because of an error."""
        return self._error is not None

    @property
    def num_reads(self) -> int:
        """Samples read so far."""
        return self._prefetch.num_reads

    @property
    def num_bytes(self) -> int:
        """Bytes that came from storage so far."""
        return self._prefetch.num_bytes

    def next(self) -> Ready | None:
        """Return the next batch; None behind the last one. Raises what happened in the background."""
        with self._changed:
            while not self._ready:
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            found = self._ready.popleft()
            self._changed.notify_all()
            return found

    def close(self) -> None:
        """End all threads."""
        with self._changed:
            self._closed = True
            self._error = self._error or InterruptedError("the loader was closed")
            self._changed.notify_all()
        self._prefetch.close()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def _work(self) -> None:
        slots = None
        try:
            slots = self._open_slots(lambda: self._closed)
            number = 0
            while self._wait_for_room() and (coming := self._prefetch.next()) is not None:
                self._hand_out(Ready(self._batches.make(self._take(coming, slots, number), coming.step), coming.step))
                number += 1
            self._hand_out(None)
        except BaseException as error:  # noqa: BLE001 (the training's thread raises it)
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()
        finally:
            if slots is not None:
                slots.close()

    def _wait_for_room(self) -> bool:
        """Wait until the last batch was taken, so that there is one beside it at most; return False when closed."""
        with self._changed:
            while self._ready and not self._closed:
                self._changed.wait()
            return not self._closed

    def _hand_out(self, ready: Ready | None) -> None:
        with self._changed:
            self._ready.append(ready)
            self._changed.notify_all()

    def _take(self, coming: Coming, slots: Slots, number: int) -> Rows:
        """Return the rows of a batch, and do all else that a step wants."""
        step = coming.step
        rows = self._memory.rows(len(step.samples))
        at_hand = step.slot >= 0
        at_hand[coming.read] = False
        hits = at_hand.nonzero()[0]
        num_read = len(coming.read)
        if coming.is_direct:
            self._prefetch.read(coming, rows)
        elif coming.round is not None:
            _copy(coming.round.rows, coming.rows[:num_read], rows, coming.read)
        if len(hits) or len(step.lent):
            slots.before_reading(number)
        _copy(slots.rows, step.slot[hits], rows, hits)
        self._lend(coming, slots, rows)
        slots.taken(number)
        kept = (step.keep >= 0).nonzero()[0]
        # what was expected in a slot and was not there is left there
        stays = _left(step.slot[coming.read], step.released)
        lent_stays = _left(step.lent_slot[coming.lent_read], step.released)
        if len(kept) or len(stays) or len(lent_stays):
            slots.before_writing(number)
            _copy(rows, kept, slots.rows, step.keep[kept])
            _copy(rows, coming.read[stays], slots.rows, step.slot[coming.read[stays]])
            if coming.round is not None:
                lent_slot = step.lent_slot[coming.lent_read[lent_stays]]
                _copy(coming.round.rows, coming.rows[num_read:][lent_stays], slots.rows, lent_slot)
        slots.written(number)
        self._prefetch.release(coming)
        return rows

    def _lend(self, coming: Coming, slots: Slots, rows: Rows) -> None:
        """Send what others borrow, and receive what is borrowed into `rows`."""
        step = coming.step
        if self._lending is None or not (len(step.lent) or (step.lender >= 0).any()):
            return
        lent = empty_rows(self._store.fields, len(step.lent))
        held = np.setdiff1d(np.arange(len(step.lent)), coming.lent_read)
        _copy(slots.rows, step.lent_slot[held], lent, held)
        if coming.round is not None:
            _copy(coming.round.rows, coming.rows[len(coming.read) :], lent, coming.lent_read)
        sent = {int(rank): _packed(lent, np.flatnonzero(step.lent_to == rank)) for rank in np.unique(step.lent_to)}
        lenders = {int(rank): np.flatnonzero(step.lender == rank) for rank in np.unique(step.lender[step.lender >= 0])}
        num_bytes = sum(x[:1].nbytes for x in rows.values())
        received = {rank: np.empty(num_bytes * len(positions), np.uint8) for rank, positions in lenders.items()}
        self._lending.exchange(sent, received)
        for rank, positions in lenders.items():
            _unpack(received[rank], rows, positions)


def _left(slots: np.ndarray, released: np.ndarray) -> np.ndarray:
    """Return the places of those slots, -1 for none, that are not released."""
    places = (slots >= 0).nonzero()[0]
    return places[~np.isin(slots[places], released)] if len(places) else places


def _copy(source: Rows, of: np.ndarray, target: Rows, to: np.ndarray) -> None:
    """Copy rows of all fields; `to` has no row twice."""
    if not len(of):
        return
    first, in_a_row = int(to[0]), int(to[-1]) - int(to[0]) == len(to) - 1 and bool((np.diff(to) == 1).all())
    for name, x in target.items():
        theirs = source[name]
        if in_a_row:
            theirs.take(of, axis=0, out=x[first : first + len(to)], mode="clip")
        elif x[:1].nbytes <= _SMALL:
            x[to] = theirs[of]
        else:
            for i, j in zip(to.tolist(), of.tolist(), strict=True):
                x[i] = theirs[j]


def _packed(rows: Rows, positions: np.ndarray) -> np.ndarray:
    """Return rows as bytes, field by field."""
    return np.concatenate([np.ascontiguousarray(x[positions]).reshape(-1).view(np.uint8) for x in rows.values()])


def _unpack(packed: np.ndarray, rows: Rows, positions: np.ndarray) -> None:
    begin = 0
    for x in rows.values():
        end = begin + len(positions) * x[:1].nbytes
        x[positions] = packed[begin:end].view(x.dtype).reshape(len(positions), *x.shape[1:])
        begin = end
