"""Samples that are kept: the slots of a rank, or those that the ranks of a node share.

Shared slots lie in anonymous memory that has no name in any file system: the first rank of the node makes it, and
hands it to the others through a socket whose name ends with the process. Nothing stays behind, whoever is killed.

Ranks keep each other's order by two numbers each: the steps whose slots they have read and released, and the steps
whose slots they have written.
"""

from __future__ import annotations

import math
import mmap
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import numpy as np
import xxhash

from trimtab.data.store import Field
from trimtab.errors import BackendUnavailable, PeerFailed, SettingsDiffer

Rows = dict[str, np.ndarray]
"""Field name -> [number of samples, *shape]."""

_PAGE = 4096
_CELL = 64  # bytes of a rank in the header: its own cache line
_PID, _TAKEN, _WRITTEN, _CLOSED = range(4)  # what its words mean
_CREDENTIALS = struct.Struct("3i")
_HELLO = struct.Struct("<q16s")  # local rank, identity
_ALIVE_SECONDS = 0.5  # how often it is looked whether the others live
_lock = threading.Lock()


def empty_rows(fields: Mapping[str, Field], num_rows: int) -> Rows:
    """Return memory for samples."""
    return {name: np.empty((num_rows, *field.shape), field.dtype) for name, field in fields.items()}


class Slots:
    """Slots in memory of this rank's own: nobody has to be waited for."""

    def __init__(self, fields: Mapping[str, Field], num_slots: int) -> None:
        self.rows = empty_rows(fields, num_slots)

    def before_reading(self, step: int) -> None:
        """Wait until all ranks have written what they keep of the steps before `step`."""

    def taken(self, step: int) -> None:
        """Say that this rank has read what it reads in a step, so that slots released in it may be written."""

    def before_writing(self, step: int) -> None:
        """Wait until all ranks have taken a step."""

    def written(self, step: int) -> None:
        """Say that this rank has written what it keeps of a step."""

    def close(self) -> None:
        """Let go of the memory."""
        self.rows = {}


class SharedSlots(Slots):
    """Slots that the ranks of a node share. Steps are counted from 0 where the ranks begin.

    Args:
        fields: What a sample has.
        num_slots: Those of all ranks together.
        local_rank: Of this rank, in its node.
        num_ranks: Ranks of the node.
        name: The same for all of them, and another for all else on the machine.
        identity: What must be equal: a rank with another one is refused.
        timeout: Seconds to wait for another rank.
        stopped: Asked while waiting; when it says true, waiting ends with `InterruptedError`.

    Raises:
        PeerFailed: a rank of the node did not come.
        SettingsDiffer: one came with another identity.
        BackendUnavailable: this system has no anonymous memory, or the name is taken.
    """

    def __init__(
        self,
        fields: Mapping[str, Field],
        num_slots: int,
        *,
        local_rank: int,
        num_ranks: int,
        name: str,
        identity: str,
        timeout: float,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        if not hasattr(os, "memfd_create"):
            raise BackendUnavailable(f"ranks can share slots on Linux only, not on {sys.platform}; ranks_per_node=1")
        self._local_rank, self._num_ranks = local_rank, num_ranks
        self._timeout, self._stopped = timeout, stopped
        begins, end = _layout(fields, num_slots, num_ranks)
        secret = xxhash.xxh3_128_digest(f"{identity} {num_slots} {num_ranks} {sorted(fields.items())}".encode())
        # an abstract name: it is in no file system
        address = f"\0trimtab-{os.getuid()}-{xxhash.xxh3_128_hexdigest(name.encode())}"
        descriptor = (self._create if local_rank == 0 else self._attach)(address, secret, end)
        try:
            memory = mmap.mmap(descriptor, end)
        finally:
            os.close(descriptor)
        words = np.frombuffer(memory, np.int64, num_ranks * _CELL // 8)
        self._words = words.reshape(num_ranks, -1)
        self._words[local_rank, _PID] = os.getpid()
        self.rows = {
            name: np.frombuffer(memory, field.dtype, num_slots * math.prod(field.shape), begins[name]).reshape(
                num_slots, *field.shape
            )
            for name, field in fields.items()
        }

    def before_reading(self, step: int) -> None:
        self._await(_WRITTEN, step, "written what it keeps of")

    def taken(self, step: int) -> None:
        self._publish(_TAKEN, step + 1)

    def before_writing(self, step: int) -> None:
        self._await(_TAKEN, step + 1, "taken")

    def written(self, step: int) -> None:
        self._publish(_WRITTEN, step + 1)

    def close(self) -> None:
        self._publish(_CLOSED, 1)
        self.rows = {}

    def _publish(self, word: int, value: int) -> None:
        _fence()
        self._words[self._local_rank, word] = value

    def _await(self, word: int, value: int, what: str) -> None:
        """Wait until a word of every rank has reached a value.

        Raises:
            PeerFailed: a rank is gone, or it takes too long.
        """
        for behind in _pauses(self._timeout, self._stopped):
            late = np.flatnonzero(self._words[:, word] < value)
            if not len(late):
                _fence()
                return
            if behind is None:
                continue
            rank = int(late[0])
            pid = int(self._words[rank, _PID])
            if self._words[rank, _CLOSED] or (pid and not _lives(pid)):
                how = "has closed its loader" if self._words[rank, _CLOSED] else f"(process {pid}) is gone"
                raise PeerFailed(f"rank {rank} of this node {how} and has not {what} step {value - 1} from the start")
            if behind:
                ranks = ", ".join(map(str, late))
                raise PeerFailed(
                    f"rank {ranks} of this node (process {pid}) has not {what} step {value - 1} from the start within "
                    f"{self._timeout:g} s; all ranks of a node must take their batches in step (timeout sets how long "
                    "they wait)"
                )

    def _create(self, address: str, secret: bytes, num_bytes: int) -> int:
        """Return anonymous memory, once all other ranks have it."""
        with ExitStack() as opened:
            server = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            try:
                server.bind(address)
            except OSError as error:
                raise BackendUnavailable(
                    "another job of the same name shares slots on this machine; give each its own with job="
                ) from error
            server.listen(self._num_ranks)
            server.settimeout(0.1)
            descriptor = os.memfd_create("trimtab-slots", os.MFD_CLOEXEC)
            opened.callback(os.close, descriptor)
            os.posix_fallocate(descriptor, 0, num_bytes)  # fails here rather than kills the process later
            came: set[int] = set()
            for behind in _pauses(self._timeout, self._stopped):
                if len(came) == self._num_ranks - 1:
                    break
                if behind:
                    missing = sorted({*range(1, self._num_ranks)} - came)
                    raise PeerFailed(f"ranks {missing} of this node did not come within {self._timeout:g} s")
                rank = self._hand_over(server, descriptor, secret)
                if rank is not None:
                    came.add(rank)
            return os.dup(descriptor)

    def _hand_over(self, server: socket.socket, descriptor: int, secret: bytes) -> int | None:
        """Give the memory to the next rank that asks, and return which it is."""
        try:
            client, _ = server.accept()
        except TimeoutError:
            return None
        with client:
            if not _same_user(client):
                return None
            client.settimeout(self._timeout)
            rank, theirs = _HELLO.unpack(_receive(client, _HELLO.size))
            socket.send_fds(client, [secret], [descriptor])
        if theirs != secret or not 0 < rank < self._num_ranks:
            raise SettingsDiffer(f"rank {rank} of this node has a loader with other settings, data or position")
        return rank

    def _attach(self, address: str, secret: bytes, num_bytes: int) -> int:
        """Return the memory that the first rank made."""
        for behind in _pauses(self._timeout, self._stopped):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                try:
                    client.connect(address)
                except (ConnectionRefusedError, FileNotFoundError) as error:
                    if behind:
                        raise PeerFailed(f"rank 0 of this node did not come within {self._timeout:g} s") from error
                    continue
                if not _same_user(client):
                    raise BackendUnavailable("another user has taken the name of this job; give another with job=")
                client.settimeout(self._timeout)
                client.sendall(_HELLO.pack(self._local_rank, secret))
                theirs, descriptors, _, _ = socket.recv_fds(client, len(secret), 1)
            if theirs != secret or len(descriptors) != 1 or os.fstat(descriptors[0]).st_size != num_bytes:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise SettingsDiffer("rank 0 of this node has a loader with other settings, data or position")
            return descriptors[0]
        raise AssertionError("pauses end by an error")


def _fence() -> None:
    """Keep memory accesses before this from moving behind it, and the other way round, on any processor."""
    with _lock:  # a lock lets accesses move into where it is held, but not through two such places
        pass
    with _lock:
        pass


def _layout(fields: Mapping[str, Field], num_slots: int, num_ranks: int) -> tuple[dict[str, int], int]:
    """Return where the samples of each field begin, and where the memory ends."""
    begins, end = {}, num_ranks * _CELL
    for name, field in fields.items():
        begins[name] = -(-end // _PAGE) * _PAGE
        end = begins[name] + num_slots * math.prod(field.shape) * field.dtype.itemsize
    return begins, end


def _pauses(timeout: float, stopped: Callable[[], bool]) -> Iterator[bool | None]:
    """Yield again and again, with short pauses: None, now and then False, and True once the time is over."""
    begun = looked = time.monotonic()
    pause = 20e-6
    yield None
    while True:
        if stopped():
            raise InterruptedError("the loader was closed")
        now = time.monotonic()
        if now - begun > timeout:
            yield True
        elif now - looked > _ALIVE_SECONDS:
            looked = now
            yield False
        else:
            yield None
        time.sleep(pause)
        pause = min(2 * pause, 1e-3)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _same_user(other: socket.socket) -> bool:
    found = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(found)[1] == os.getuid()


def _receive(other: socket.socket, num_bytes: int) -> bytes:
    found = b""
    while len(found) < num_bytes:
        part = other.recv(num_bytes - len(found))
        if not part:
            raise PeerFailed("a rank of this node ended before it had come")
        found += part
    return found
