"""What a host says about the processes of a job, from outside of them: state, processor time, stacks, connections.

Nothing here needs the help of a process that hangs: its state and processor time come from ``/proc``, the counters of
its TCP connections from the kernel (what ``ss -ti`` shows, asked by netlink). Only the Python stack is written by the
process itself, by a thread of the probe, and so is missing where the process is stopped or holds Python's lock.

A host sees its own processes. Where a job has several hosts, each looks at its own, and the findings are put together:
dicts of hosts by union, edges by concatenation. Linux only; elsewhere nothing is found.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from trimtab.diagnose.frame import FAILED, RankFile, boot_id
from trimtab.diagnose.links import EDGE
from trimtab.diagnose.verdict import Host

_MAX_STACK = 1 << 16
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_DIAG, _BY_FAMILY, _DUMP, _ESTABLISHED, _INFO = 4, 20, 0x301, 1 << 1, 2
_ACKED, _BUSY = 120, 168  # in the kernel's tcp_info: bytes, microseconds


def stack_path(folder: str | os.PathLike[str], rank: int) -> Path:
    """Return where a rank says which functions it is in while nothing moves."""
    return Path(folder) / f"rank-{rank:06d}.stack"


def write_stack(folder: str | os.PathLike[str], rank: int, functions: Sequence[str]) -> None:
    """Keep the functions that a rank is in, the innermost last; none takes the file away.

    Raises:
        OSError: it cannot be written.
    """
    path = stack_path(folder, rank)
    if not functions:
        path.unlink(missing_ok=True)
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(msgspec.json.encode(list(functions)))
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def read_stack(folder: str | os.PathLike[str], rank: int) -> tuple[str, ...]:
    """Return the functions that a rank is in; none where nothing usable is there."""
    path = stack_path(folder, rank)
    try:
        if path.stat().st_size > _MAX_STACK:
            return ()
        return tuple(msgspec.json.decode(path.read_bytes(), type=list[str]))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ()


@dataclass
class _Process:
    """What was seen of a process at the last look."""

    ticks: int
    at: float


@dataclass
class Watcher:
    """Looks at the processes of a job's ranks, again and again: rates are over the time since the last look.

    >>> hosts, edges = Watcher().look([])
    """

    _processes: dict[int, _Process] = field(default_factory=dict)
    _links: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    _linked_at: float = 0.0

    def look(self, files: Iterable[RankFile]) -> tuple[dict[int, Host], np.ndarray]:
        """Return what this host says about the ranks whose files were read, and their connections (`links.EDGE`).

        Ranks that run on other hosts, that have finished, or whose operation ended by an error are left out: that the
        process of the latter is gone says that another one is wrong. The first look knows no rates: its `cpu_share` is
        None, and it has no edges.
        """
        here = boot_id()
        mine = [file for file in files if here and file.boot == here]
        hosts = {}
        for file in mine:
            failed = bool((file.latest["flags"] & FAILED).any())
            host = self._process(file)
            if not file.finished and not (host.is_dead and failed):
                hosts[file.rank] = host
        return hosts, self._edges({file.pid: file.rank for file in mine if not file.finished})

    def _process(self, file: RankFile) -> Host:
        try:
            text = Path(f"/proc/{file.pid}/stat").read_bytes()
        except OSError:
            return Host(state="X")
        values = text[text.rindex(b")") + 2 :].split()
        asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
        if _started(values) > file.created + asleep + 1.0:
            return Host(state="X")  # the number belongs to another process now
        now, ticks = time.monotonic(), int(values[11]) + int(values[12])
        last = self._processes.get(file.pid)
        self._processes[file.pid] = _Process(ticks, now)
        share = None
        if last is not None and now - last.at > 0.05:
            share = round((ticks - last.ticks) / _TICKS / (now - last.at), 3)
        return Host(state=values[0].decode(), cpu_share=share, stack=read_stack(file.path.parent, file.rank))

    def _edges(self, ranks: dict[int, int]) -> np.ndarray:
        now = time.monotonic()
        window, self._linked_at = now - self._linked_at, now
        counters, unsent = _connections(ranks)
        before, self._links = self._links, counters
        rows = []
        for ends, (acked, busy) in counters.items():
            if ends in before:
                sent = max(acked - before[ends][0], 0)
                share = max(busy - before[ends][1], 0) / 1e6 / window
                rows.append((*ends, sent, unsent[ends], min(share, 1.0)))
        return np.array(rows, EDGE)


def _started(values: list[bytes]) -> float:
    """When a process began, in seconds since the boot."""
    return int(values[19]) / _TICKS


def _connections(ranks: dict[int, int]) -> tuple[dict[tuple[int, int], tuple[int, int]], dict[tuple[int, int], int]]:
    """Counters of TCP between ranks, by (sender, receiver): bytes acknowledged and busy microseconds; bytes unsent."""
    owners = {inode: rank for pid, rank in ranks.items() for inode in _sockets(pid)}
    if not owners:
        return {}, {}
    found = [row for row in _tcp() if row[2] in owners]
    at = {(local, remote): owners[inode] for local, remote, inode, *_ in found}
    counters: dict[tuple[int, int], tuple[int, int]] = {}
    unsent: dict[tuple[int, int], int] = {}
    for local, remote, inode, acked, waiting, busy in found:
        peer = at.get((remote, local))
        if peer is None or peer == owners[inode]:
            continue
        ends = (owners[inode], peer)
        total = counters.get(ends, (0, 0))
        counters[ends] = (total[0] + acked, max(total[1], busy))  # several connections send at the same time
        unsent[ends] = unsent.get(ends, 0) + waiting
    return counters, unsent


def _sockets(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry.path)):
                    found.append(int(match[1]))
    return found


def _tcp() -> list[tuple[bytes, bytes, int, int, int, int]]:
    """All established connections of this host: local and remote end, inode, acknowledged, unsent, busy."""
    rows = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _DIAG) as link:
                link.settimeout(1.0)
                request = struct.pack("<BBBBI48x", family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, _ESTABLISHED)
                link.send(struct.pack("<IHHII", 16 + len(request), _BY_FAMILY, _DUMP, 1, 0) + request)
                rows += _answers(link)
        except (OSError, AttributeError):
            continue  # no netlink here
    return rows


def _answers(link: socket.socket) -> list[tuple[bytes, bytes, int, int, int, int]]:
    rows = []
    while True:
        data, at = link.recv(1 << 18), 0
        while at + 16 <= len(data):
            length, kind = struct.unpack_from("<IH", data, at)
            if kind in (2, 3) or length < 16:  # an error, or the end
                return rows
            if kind == _BY_FAMILY and length >= 88 and (row := _answer(data[at + 16 : at + length])):
                rows.append(row)
            at += -(-length // 4) * 4


def _answer(data: bytes) -> tuple[bytes, bytes, int, int, int, int] | None:
    ports, source, target = data[4:8], data[8:24], data[24:40]
    inode = struct.unpack_from("<I", data, 68)[0]
    at = 72
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("<HH", data, at)
        if length < 4:
            return None
        if kind == _INFO and length - 4 >= _BUSY + 8:
            info = data[at + 4 : at + length]
            acked, busy = (struct.unpack_from("<Q", info, place)[0] for place in (_ACKED, _BUSY))
            unsent = struct.unpack_from("<I", data, 60)[0]  # the queue: what was not sent, and not acknowledged
            return source + ports[:2], target + ports[2:], inode, acked, unsent, busy
        at += -(-length // 4) * 4
    return None
