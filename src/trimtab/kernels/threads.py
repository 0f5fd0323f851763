"""Work on independent pieces of an array in a few threads; results never depend on their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

from trimtab.errors import UsageError

_chosen: ContextVar[int | None] = ContextVar("trimtab_threads", default=None)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use at most `count` threads inside the ``with`` block.

    Raises:
        UsageError: `count` is below 1.
    """
    if count < 1:
        raise UsageError(f"the number of threads must be at least 1, got {count}")
    token = _chosen.set(count)
    try:
        yield
    finally:
        _chosen.reset(token)


def num_threads() -> int:
    """Return how many threads may run.

    ``with threads(...)``, else TRIMTAB_NUM_THREADS, else OMP_NUM_THREADS, else the number of cores.
    """
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    for variable in ("TRIMTAB_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(variable, "").split(",")[0]
        if value.isdigit() and int(value) > 0:
            return int(value)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(work: Callable[[int], None], count: int) -> None:
    """Call ``work(0) ... work(count - 1)``, in threads where that can pay; the first error is raised.

    The caller's thread takes part. The others live for one call, so that a later ``fork()`` finds no threads of ours.
    """
    helpers = min(num_threads(), count) - 1 if count > 1 else 0
    indices = iter(range(count))  # shared: taking the next one is atomic

    def work_on() -> None:
        try:
            for index in indices:
                work(index)
        except BaseException:
            for _ in indices:  # nobody starts anything more
                pass
            raise

    if not helpers:
        work_on()
        return
    with ThreadPoolExecutor(helpers) as pool:
        # each thread gets its own copy of the context, so that a forced back end holds there too
        futures = [pool.submit(copy_context().run, work_on) for _ in range(helpers)]
        work_on()
        for future in futures:
            future.result()
