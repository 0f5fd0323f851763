"""Watch: looks at a job again and again while it runs, and keeps what is usual for it in mind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from trimtab.diagnose.analyze import hang_limit
from trimtab.diagnose.frame import RankFile, boot_id
from trimtab.diagnose.host import Watcher, telling
from trimtab.diagnose.look import Look
from trimtab.diagnose.report import OVER
from trimtab.diagnose.slow import Baseline
from trimtab.diagnose.standing import Standing
from trimtab.diagnose.verdict import Host, Limits, Verdict, ranks_in_words

Observer = Callable[[Sequence[RankFile]], tuple[Mapping[int, Host], np.ndarray | None]]
"""Says what the hosts tell about ranks, and what connections carried (`links.EDGE`)."""

_SHARE = 0.2  # of the time may go into reading rings
_LONGEST_REST = 30.0  # seconds without reading rings, whatever the last reading took


@dataclass(frozen=True)
class View:
    """One look with what follows from it."""

    look: Look
    verdict: Verdict
    standing: Standing
    ended: bool
    """Every rank has finished, or its process is gone."""


def gone(files: Sequence[RankFile]) -> tuple[dict[int, Host], None]:
    """Return the ranks of this host that have not finished and whose processes are gone."""
    here, hosts = boot_id(), {}
    for file in files:
        if here and file.boot == here and not file.finished and not _is_alive(file.pid):
            hosts[file.rank] = Host(state="X")
    return hosts, None


class Watch:
    """Watches the folder of a job. The time that it spends on reading rings stays below a fifth.

    Between two readings of rings, a hang is seen from the states alone (and then looked into with the rings), and what
    was found of slowness stands. What this host says about processes and connections is taken in (`host.Watcher`), if
    `observe` does not say it. With `confirm`, slowness counts only if two readings in a row find the same kind: a
    job that begins, or one that was held up for a moment, is not called slow.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        observe: Observer | None = None,
        confirm: bool = True,
    ) -> None:
        self.folder = folder
        self._limits = limits
        self._observe = observe or Watcher().look
        self._confirm = confirm
        self._baseline = Baseline()
        self._suspected = ""
        self._last: Verdict | None = None
        self._hang_seconds: float | None = None
        self._rested_at = 0.0

    def look(self, *, is_over: bool = False) -> View:
        """Look now. `is_over` says that the job has ended; else that is so where all of its processes are gone.

        Of a job that is over, nobody knows how long ranks had waited when it ended: any wait counts, with less
        confidence.

        Raises:
            FormatError: there is nothing that can be used, or not yet.
            UsageError: the names of dumps do not tell their ranks.
            OSError: the folder cannot be read.
        """
        begun = time.monotonic()
        with_trace = is_over or begun >= self._rested_at
        look = Look.of_folder(self.folder, with_trace=with_trace)
        hosts, edges = self._observe(look.files)
        if any(host.is_dead for host in hosts.values()):  # what was read may be older than their end
            look = Look.of_folder(self.folder, with_trace=with_trace)
            hosts = telling(hosts, look.files)
        ended = _has_ended(look, gone(look.files)[0])
        if ended or is_over:
            verdict = _autopsy(look, self._limits)
            return View(look, verdict, Standing.of(look), ended=True)
        limits = self._limits
        if with_trace:
            self._hang_seconds = hang_limit(look.trace, limits)
        elif self._hang_seconds is not None:
            limits = msgspec.structs.replace(limits, hang_seconds=self._hang_seconds)
        verdict = look.verdict(limits=limits, hosts=hosts, edges=edges, baseline=self._baseline)
        if not with_trace and verdict.kind.startswith("H"):  # whether operations differ stands in the rings
            with_trace, look = True, Look.of_folder(self.folder)
            verdict = look.verdict(limits=limits, hosts=hosts, edges=edges)
        if with_trace:
            verdict = self._confirmed(verdict)
            now = time.monotonic()
            self._rested_at = now + min((now - begun) * (1 / _SHARE - 1), _LONGEST_REST)
            self._last = verdict
        elif verdict.is_healthy and self._last is not None and not self._last.kind.startswith("H"):
            verdict = self._last
        return View(look, verdict, Standing.of(look), ended=False)

    def _confirmed(self, verdict: Verdict) -> Verdict:
        kind = verdict.kind if verdict.kind.startswith("S") else ""
        is_new, self._suspected = kind != self._suspected, kind
        if not (kind and is_new and self._confirm):
            return verdict
        doubt = f"whether it stays so: {verdict.summary} ({kind}), in this look alone"
        return Verdict(
            kind="healthy", confidence=0.5, summary="nothing is wrong for certain", not_seen=(*verdict.not_seen, doubt)
        )


def _autopsy(look: Look, limits: Limits) -> Verdict:
    """The verdict on a job that is over; its processes are gone, which says nothing about any one of them."""
    snapshot = look.snapshot
    open_ends = np.flatnonzero(snapshot.present & ~snapshot.finished)
    if not open_ends.size:
        return look.verdict(limits=limits)
    snapshot.age[:] = np.nan  # it would go on for ever; where it is unknown, any wait counts
    verdict = look.verdict(limits=limits)
    words = [f"why {ranks_in_words(open_ends)} ended without coming to the end of the program"]
    if verdict.kind in ("H1", "H3"):
        words.append(f"how long the others had waited: {OVER}, and may have been ended from outside")
        verdict = msgspec.structs.replace(verdict, confidence=round(0.6 * verdict.confidence, 3))
    return msgspec.structs.replace(verdict, not_seen=(*verdict.not_seen, *words))


def _has_ended(look: Look, hosts: Mapping[int, Host]) -> bool:
    ended = look.snapshot.finished.copy()
    for rank, host in hosts.items():
        ended[rank] |= host.is_dead
    return bool(ended[look.snapshot.present].all()) and bool(ended.any())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
