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
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from trimtab.diagnose.frame import FAILED, RankFile, boot_id
from trimtab.diagnose.links import EDGE
from trimtab.diagnose.verdict import Host
from trimtab.errors import FormatError

_MAX_STACK = 1 << 16
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_DIAG, _BY_FAMILY, _DUMP, _ESTABLISHED, _INFO = 4, 20, 0x301, 1 << 1, 2
_ACKED, _BUSY, _FULL = 120, 168, 176  # in the kernel's tcp_info: bytes; microseconds, those with a full receiver
_SECONDS = 5.0  # are looked at together, of connections and delays: one step of a slow job may take a second


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
class _Seen:
    """What was seen at a look."""

    at: float
    ticks: dict[int, int]
    """Processor time by process."""
    delays: dict[int, int]
    """Nanoseconds that the threads of a process have waited for a processor."""
    links: dict[tuple[int, int], tuple[int, int]]
    """Bytes acknowledged and busy microseconds, by (sender, receiver)."""


@dataclass
class Watcher:
    """Looks at the processes of a job's ranks, again and again.

    Processor time is over the time since the last look; what connections carried, and how long processes waited for a
    processor, over that since the first look of the last five seconds, or since the last look if that is longer ago
    (at the first look: since the process began).

    >>> hosts, edges = Watcher().look([])
    """

    _seen: deque[_Seen] = field(default_factory=deque)

    def look(self, files: Iterable[RankFile]) -> tuple[dict[int, Host], np.ndarray]:
        """Return what this host says about the ranks whose files were read, and their connections (`links.EDGE`).

        Ranks that run on other hosts are left out, and those of whom it says nothing (`telling`). The first look knows
        no processor time, and has no edges.
        """
        here = boot_id()
        mine = [file for file in files if here and file.boot == here]
        now = _Seen(time.monotonic(), {}, {}, {})
        while len(self._seen) > 1 and now.at - self._seen[0].at > _SECONDS:
            self._seen.popleft()
        hosts = telling({file.rank: self._process(file, now) for file in mine}, mine)
        edges = self._edges({file.pid: file.rank for file in mine if not file.finished}, now)
        self._seen.append(now)
        return hosts, edges

    def _process(self, file: RankFile, now: _Seen) -> Host:
        try:
            text = Path(f"/proc/{file.pid}/stat").read_bytes()
        except OSError:
            return Host(state="X")
        values = text[text.rindex(b")") + 2 :].split()
        asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
        if _started(values) > file.created + asleep + 1.0:
            return Host(state="X")  # the number belongs to another process now
        now.ticks[file.pid], now.delays[file.pid] = int(values[11]) + int(values[12]), _delay(file.pid)
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - _started(values)
        share, delay = None, round(now.delays[file.pid] / 1e9 / max(age, 0.05), 3)
        if self._seen:
            last, first = self._seen[-1], self._seen[0]
            if file.pid in last.ticks and now.at - last.at > 0.05:
                ticks = now.ticks[file.pid] - last.ticks[file.pid]
                share = round(ticks / _TICKS / (now.at - last.at), 3)
            if file.pid in first.delays and now.at - first.at > 0.05:
                delay = round((now.delays[file.pid] - first.delays[file.pid]) / 1e9 / (now.at - first.at), 3)
        stack = read_stack(file.path.parent, file.rank)
        return Host(state=values[0].decode(), cpu_share=share, delay_share=delay, stack=stack)

    def _edges(self, ranks: dict[int, int], now: _Seen) -> np.ndarray:
        now.links, unsent = _connections(ranks)
        first = self._seen[0] if self._seen else now
        rows = []
        for ends, (acked, busy) in now.links.items():
            if self._seen and ends in first.links:
                past, past_busy = first.links[ends]
                sent, seconds = max(acked - past, 0), max(busy - past_busy, 0) / 1e6
                cost = seconds / sent if sent else np.nan
                before = past_busy / 1e6 / past if past > sent else np.nan  # of little, it says nothing
                rows.append((*ends, sent, unsent[ends], min(seconds / (now.at - first.at), 1.0), cost, before))
        return np.array(rows, EDGE)


def _delay(pid: int) -> int:
    """Nanoseconds that the threads of a process have waited for a processor; 0 where the kernel does not count it."""
    total = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, ValueError, IndexError):  # a thread may end
                total += int(Path(entry.path, "schedstat").read_bytes().split()[1])
    return total


def telling(hosts: Mapping[int, Host], files: Iterable[RankFile]) -> dict[int, Host]:
    """Leave out ranks that have finished, and those that are gone since an operation failed: another one is wrong."""
    by_rank = {file.rank: file for file in files}
    return {
        rank: host
        for rank, host in hosts.items()
        if rank not in by_rank or not (by_rank[rank].finished or (host.is_dead and _has_failed(by_rank[rank])))
    }


def _has_failed(file: RankFile) -> bool:
    """Whether one of the operations that a rank has not completed ended by an error."""
    try:
        ring = file.ring()
    except (FormatError, OSError):
        return False
    failed = ring[(ring["flags"] & FAILED > 0) & (ring["communicator"] < file.frames.size)]
    return bool((failed["seq"] > file.frames["done"][failed["communicator"]]).any())


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
        if kind == _INFO and length - 4 >= _FULL + 8:
            info = data[at + 4 : at + length]
            acked, busy, full = (struct.unpack_from("<Q", info, place)[0] for place in (_ACKED, _BUSY, _FULL))
            unsent = struct.unpack_from("<I", data, 60)[0]  # the queue: what was not sent, and not acknowledged
            return source + ports[:2], target + ports[2:], inode, acked, unsent, busy - full
        at += -(-length // 4) * 4
    return None
