"""The file that every rank keeps in shared memory about its collectives, and that others read: CCL-D's probing frame.

CCL-D (PPoPP 2026, arXiv 2605.04478) watches a fixed frame a rank; this is ours. One rank writes it, nothing else does;
whoever reads it needs no help from that rank, which may be stopped, dead or holding Python's lock.

The file, little-endian throughout, is this sequence:

    header          256 bytes, `HEADER`
    frames          64 bytes for each of `max_communicators`, `FRAME`: the latest state of each communicator
    members         `members_words` u32: the ranks of communicators, as runs of three words (start, stride, count)
    texts           `texts_bytes` bytes: entries of key u32, length u16 and UTF-8 text, one behind the other
    ring            64 bytes for each of `capacity` records (a power of two), `RECORD`

**Records.** One a collective or point-to-point operation, numbered from 1 in the order of entering. Record n stands at
place n mod `capacity` and carries n mod 2^32 in its first word (`stamp`, written first) and in its last (`check`,
written last); one where these differ, or do not belong to the place, is torn and does not count. One whose `enter` is 0
was never written. `exit` is 0 while the rank is inside. Times are nanoseconds of the host's monotonic clock: only their
differences on one host mean anything.

**Sequence numbers** count the operations of one communicator from 1, alike on all of its members; so (`uid`, `seq`)
names an operation in the whole job. Point-to-point operations in one direction between two ranks are a communicator
of their own (`p2p`), whose members are the sender and the receiver.

**Signatures** are hashes of what all members must agree on: `signature()`. `site` is a hash of the place in the
program, `step` the number that the program last announced; without these two, a rank that leaves out one of two
identical operations looks healthy. 0 stands for unknown in both.

**Frames.** `seq` and `record` (the number of the latest record) are written when an operation is entered, `done` (how
many have been completed) and `exit` (when the latest was) when one is left. An operation that ended by an error is
never left, but has the flag `FAILED`.

Differences from the paper, whose frame has 1,184 bytes and lies in memory that GPU and CPU share: there is a ring of
the latest operations beside the state, since a hang by different operations is found by looking back; there are no
counts of what was sent and received, which no hook outside of the library sees (`links.EDGE` takes them from
elsewhere).
"""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import socket
import stat
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from trimtab.errors import Corrupt, FormatError, NewerVersion, Truncated, UsageError

MAGIC = b"ttframe\n"
VERSION = 1

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("rank", "<u4"),
        ("world_size", "<u4"),
        ("pid", "<u4"),
        ("capacity", "<u4"),
        ("max_communicators", "<u4"),
        ("members_words", "<u4"),
        ("texts_bytes", "<u4"),
        ("num_communicators", "<u4"),
        ("members_used", "<u4"),
        ("texts_used", "<u4"),
        ("state", "<u4"),  # 1 running, 2 finished, 3 blind: the rank goes on, its probe does not
        ("job", "<u8"),  # the same in all files of one job
        ("boot", "<u8"),  # hash of the host's boot id: whose monotonic clock this is; 0 unknown
        ("created", "<u8"),  # monotonic
        ("created_unix", "<u8"),  # for people; nothing is concluded from it but which of two files is newer
        ("lost", "<u8"),  # operations that could not be recorded at all
        ("waited", "<u8"),  # nanoseconds waited for data
        ("waiting_since", "<u8"),  # monotonic; 0 while not waiting for data
        ("pause_until", "<u8"),  # monotonic: until then the rank has announced to be away; 0 none
        ("unseen", "<u4"),  # what this rank's hooks cannot see: bits of UNSEEN
        ("host", "S64"),
        ("spare", "V68"),
    ]
)
FRAME = np.dtype(
    [
        ("uid", "<u8"),
        ("seq", "<u8"),
        ("record", "<u8"),
        ("done", "<u8"),
        ("exit", "<u8"),
        ("members_start", "<u4"),  # word in the area of members
        ("num_runs", "<u4"),  # 0: the members did not fit and are unknown
        ("num_members", "<u4"),
        ("position", "<u4"),  # of this rank among the members
        ("name", "<u4"),  # key of its text
        ("flags", "<u4"),  # 1: p2p
    ]
)
RECORD = np.dtype(
    [
        ("stamp", "<u4"),
        ("communicator", "<u2"),  # which frame of this file
        ("op", "u1"),  # index into OPS
        ("flags", "u1"),  # ASYNC, AWAITED, FAILED
        ("seq", "<u8"),
        ("enter", "<u8"),
        ("exit", "<u8"),
        ("num_bytes", "<u8"),
        ("signature", "<u4"),
        ("site", "<u4"),
        ("step", "<u4"),
        ("peer", "<u4"),  # the root, sender or receiver, as a rank of the job; NO_PEER
        ("waited", "<u4"),  # microseconds waited for data since the record before
        ("check", "<u4"),
    ]
)

RUNNING, FINISHED, BLIND = 1, 2, 3
P2P = 1
ASYNC, AWAITED, FAILED = 1, 2, 4
"""Flags of a record: the call returned before the operation was complete; the program waits for it now; the operation
ended by an error, and stays open."""
UNSEEN = (
    "operations inside DDP's reducer: all of one backward pass count as one, from its beginning to its end",
    "functional collectives (DTensor, compiled graphs)",
    "how long operations on a GPU take: only until they were enqueued",
)
"""What hooks may be blind for, by bits of the header's `unseen`."""
UNSEEN_REDUCER, UNSEEN_FUNCTIONAL, UNSEEN_DEVICE = 1, 2, 4
NO_PEER = 0xFFFFFFFF

OPS = (
    "unknown",
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "barrier",
    "send",
    "recv",
    "coalesced",
)
SYMMETRIC = frozenset(OPS.index(op) for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier"))
"""Operations that nobody leaves before everybody has come. In others, ranks may leave early."""

_MAX_CAPACITY, _MAX_COMMUNICATORS, _MAX_WORDS, _MAX_TEXTS, _MAX_WORLD = 1 << 22, 1 << 14, 1 << 22, 1 << 22, 1 << 20
_LOW = 0xFFFFFFFF
_OFFSETS: dict[str, int] = {name: HEADER.fields[name][1] for name in HEADER.names or ()}  # pyrefly: ignore
_FORMATS = {4: "<I", 8: "<Q"}
_CODES = {"u4": "I", "u8": "Q"}
_HEAD = struct.Struct(
    "<"
    + "".join(
        _CODES.get(of.str[1:]) or f"{of.itemsize}{'s' if of.kind == 'S' else 'x'}"
        for of in (HEADER[name] for name in HEADER.names or ())
    )
)
_HEAD_NAMES = tuple(name for name in HEADER.names or () if name != "spare")
_KEYS = struct.Struct("<IH2xQ44xI")  # of a record: stamp, communicator, seq, check
_NO_RECORD = bytes(64)
_PREFIX, _SUFFIX = "rank-", ".frame"


def signature(op: str, *, dtype: str = "", num_elements: int = 0, root: int = -1, reduce_op: str = "") -> int:
    """Return the hash of what all members of a communicator must call alike, 1 to 2^32 - 1.

    What may differ between ranks does not go in: the elements of all_to_all and of gathers of uneven parts (pass 0),
    and which end of a point-to-point operation this is ("send" and "recv" hash alike).
    """
    name = "p2p" if op in ("send", "recv") else op
    size = 0 if op == "all_to_all" else num_elements
    return zlib.crc32(f"{name}|{dtype}|{size}|{root}|{reduce_op}".encode()) or 1


def text_key(text: str) -> int:
    """Return the hash that stands for a text in records: a call site such as ``train.py:81``, a name; never 0."""
    return zlib.crc32(text.encode()) or 1


def communicator_uid(name: str, members: Sequence[int] | np.ndarray) -> int:
    """Return the hash that names a communicator in the whole job."""
    return xxhash.xxh3_64_intdigest(np.asarray(members, "<u4").tobytes(), seed=zlib.crc32(name.encode())) or 1


def frame_path(folder: str | os.PathLike[str], rank: int) -> Path:
    """Return where rank `rank` keeps its file in the folder of a job."""
    return Path(folder) / f"{_PREFIX}{rank:06d}{_SUFFIX}"


def boot_id() -> int:
    """Return a hash of this host's boot, or 0: where it is the same, monotonic clocks can be compared."""
    try:
        return xxhash.xxh3_64_intdigest(Path("/proc/sys/kernel/random/boot_id").read_bytes()) or 1
    except OSError:
        return 0


# ---- writing


class Call(NamedTuple):
    """An operation as it is entered again and again: what does not change, packed once. From `Writer.prepare`."""

    communicator: int
    what: int
    num_bytes: int
    signature_and_site: int
    peer: int
    next_seq: Callable[[], int]
    next_done: Callable[[], int]
    seq_at: int
    """Where in the file the communicator's latest number stands, and that of what is complete."""
    done_at: int


class Writer:
    """The file of one rank, for the probe. Not for several processes; any threads of one.

    `enter` and `leave` are plain functions over the mapped file, together about 0.6 us. The file is given its disk
    space when it is made, so that a disk that fills up later cannot kill the process.

        writer = Writer(frame_path(folder, rank), rank=rank, world_size=world_size)
        world = writer.communicator("default", range(world_size))
        call = writer.prepare(world, "all_reduce", signature("all_reduce", dtype="float32", num_elements=n))
        number = writer.enter(call)
        ...                              # the operation itself
        writer.leave(call, number)

    Raises:
        OSError: the file cannot be made, or there is no room for it.
        UsageError: a rank outside of the world, or a capacity that is not a power of two.
    """

    enter: Callable[[Call], int]
    """Say that a call begins; returns the number of its record."""
    leave: Callable[[Call, int], None]
    """Say that the call with this record number is complete, from any thread."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rank: int,
        world_size: int,
        job: int = 0,
        capacity: int = 4096,
        max_communicators: int = 64,
        members_words: int = 4096,
        texts_bytes: int = 32768,
    ) -> None:
        if not 0 <= rank < world_size <= _MAX_WORLD:
            raise UsageError(f"rank {rank} of {world_size}: expected 0 <= rank < world size <= {_MAX_WORLD}")
        if not 1 <= capacity <= _MAX_CAPACITY or capacity & (capacity - 1):
            raise UsageError(f"capacity {capacity}: expected a power of two up to {_MAX_CAPACITY}")
        if not 1 <= max_communicators <= _MAX_COMMUNICATORS:
            raise UsageError(f"max_communicators {max_communicators}: expected 1 to {_MAX_COMMUNICATORS}")
        self.path, self.rank, self.world_size = Path(path), rank, world_size
        self._layout = _Layout(capacity, max_communicators, members_words, texts_bytes)
        self._header = np.zeros(1, HEADER)
        for name, value in {
            "magic": MAGIC,
            "version": VERSION,
            "rank": rank,
            "world_size": world_size,
            "pid": os.getpid(),
            "capacity": capacity,
            "max_communicators": max_communicators,
            "members_words": members_words,
            "texts_bytes": texts_bytes,
            "state": RUNNING,
            "job": job,
            "boot": boot_id(),
            "created": time.monotonic_ns(),
            "created_unix": time.time_ns(),
            "host": socket.gethostname().encode()[:64],
        }.items():
            self._header[name] = value
        self._map = _made(self.path, self._layout.size, self._header.tobytes())
        self._names: dict[tuple[str, bytes], int] = {}
        self._texts: set[int] = set()
        self._lock = threading.Lock()
        self._counts: list[tuple[Callable[[], int], Callable[[], int]]] = []  # entered, completed: by communicator
        self.enter, self.leave, self.step, self._waited, self._flag = self._functions()

    def communicator(self, name: str, members: Sequence[int] | np.ndarray, *, p2p: bool = False) -> int:
        """Make a communicator known, or find it again; return its index, or -1 where the file has no room for it.

        `members` are ranks of the job in the communicator's order. Its operations count as `lost` if there is no room.
        """
        ranks = np.ascontiguousarray(members, "<u4")
        with self._lock:
            key = (name, ranks.tobytes())
            if key in self._names:
                return self._names[key]
            index = len(self._counts)
            if index == self._layout.max_communicators:
                return -1
            runs = _runs(ranks)
            start = int(self._header["members_used"][0])
            if start + runs.size > self._layout.members_words:
                runs = runs[:0]
            at = self._layout.members_at + 4 * start
            self._map[at : at + runs.nbytes] = runs.tobytes()
            found = np.flatnonzero(ranks == self._header["rank"][0])
            frame = np.zeros(1, FRAME)
            frame["uid"], frame["name"] = communicator_uid(name, ranks), self._text(name)
            frame["members_start"], frame["num_runs"], frame["num_members"] = start, runs.size // 3, ranks.size
            frame["position"] = found[0] if found.size else _LOW
            frame["flags"] = P2P if p2p else 0
            at = self._layout.frames_at + 64 * index
            self._map[at : at + 64] = frame.tobytes()
            self._counts.append((itertools.count(1).__next__, itertools.count(1).__next__))
            self._put("members_used", start + runs.size)
            self._put("num_communicators", index + 1)  # last: a reader now trusts the frame
            self._names[key] = index
            return index

    def prepare(
        self,
        communicator: int,
        op: str,
        signature: int,
        *,
        site: int = 0,
        num_bytes: int = 0,
        peer: int = NO_PEER,
        flags: int = 0,
    ) -> Call:
        """Pack what does not change from call to call: keep the result by communicator, operation, shape and place."""
        code = OPS.index(op) if op in OPS else 0
        what = communicator | code << 16 | flags << 24
        at = self._layout.frames_at + 64 * communicator
        return Call(
            communicator, what, num_bytes, signature | site << 32, peer, *self._counts[communicator], at + 8, at + 24
        )

    def text(self, text: str) -> int:
        """Keep a text, such as a call site, for the report; return its key. Beyond the room for texts only the key."""
        with self._lock:
            return self._text(text)

    def lost(self, num: int = 1) -> None:
        """Count operations that could not be recorded."""
        with self._lock:
            self._put("lost", int(self._header["lost"][0]) + num)

    def pause(self, seconds: float) -> None:
        """Announce that this rank will be away, writing a checkpoint for instance, for up to so long; 0 ends it."""
        self._put("pause_until", time.monotonic_ns() + round(seconds * 1e9) if seconds > 0 else 0)

    def waiting(self, since: int, waited: int) -> None:
        """A listener for `trimtab.waiting.listen`: keeps in the file how long the rank waits for data."""
        self._put("waiting_since", since)
        if waited:
            self._waited(waited // 1000)
            self._put("waited", int(self._header["waited"][0]) + waited)

    def awaited(self, number: int) -> None:
        """Say that the program now waits for the asynchronous operation with this record number."""
        self._flag(number, AWAITED)

    def failed(self, number: int) -> None:
        """Say that the operation with this record number ended by an error; do not call `leave` for it."""
        self._flag(number, FAILED)

    def unseen(self, bits: int) -> None:
        """Say what this rank's hooks cannot see: bits of `UNSEEN`, added to those that are set."""
        with self._lock:
            if (seen := int(self._header["unseen"][0])) | bits != seen:
                self._put("unseen", seen | bits)

    def hand_over(self, step: Callable[[int], None], waited: Callable[[int], None]) -> dict[str, int]:
        """Leave `enter` and `leave` to compiled code, which counts for itself, from the first operation on.

        `step` and `waited` are told to it from now on. Returns where things stand in the file.
        """
        self.step, self._waited = step, waited
        return {
            "ring_at": self._layout.ring_at,
            "capacity": self._layout.capacity,
            "frames_at": self._layout.frames_at,
            "max_communicators": self._layout.max_communicators,
        }

    def restore(self, communicator: int, *, seq: int, record: int, done: int, exit_ns: int) -> None:
        """Set the state of a communicator, for a rank that was simulated or recorded elsewhere. Not for a live one."""
        at = self._layout.frames_at + 64 * communicator + 8
        struct.pack_into("<QQQQ", self._map, at, seq, record, done, exit_ns)

    def restore_ring(self, ring: np.ndarray) -> None:
        """Set all records (`capacity` times 64 bytes), likewise. Their clock is then nobody's: ages are unknown."""
        data = ring.tobytes()
        if len(data) != RECORD.itemsize * self._layout.capacity:
            raise UsageError(f"a ring of {len(data)} bytes; expected {RECORD.itemsize * self._layout.capacity}")
        self._map[self._layout.ring_at : self._layout.size] = data
        self._put("boot", 0)

    def progress(self) -> int:
        """Return a number that changes with every operation that is entered or left."""
        at = self._layout.frames_at
        frames = np.frombuffer(self._map[at : at + 64 * len(self._counts)], FRAME)
        return int(frames["seq"].sum() + frames["done"].sum())

    def close(self, *, finished: bool = True, blind: bool = False) -> None:
        """Let go of the file. `finished` says that the rank came to its end, which is not a hang.

        `blind` says that the rank goes on, but nothing is recorded any more. The file stays mapped, for operations
        that are under way in other threads.
        """
        if self._map.closed:
            return
        if finished or blind:
            self._put("state", BLIND if blind else FINISHED)

    def _put(self, name: str, value: int) -> None:
        self._header[name] = value
        struct.pack_into(_FORMATS[HEADER[name].itemsize], self._map, _OFFSETS[name], value)

    def _text(self, text: str) -> int:
        key, data = text_key(text), text.encode()[:200]
        used = int(self._header["texts_used"][0])
        if key not in self._texts and used + 6 + len(data) <= self._layout.texts_bytes:
            at = self._layout.texts_at + used
            self._map[at : at + 6 + len(data)] = struct.pack("<IH", key, len(data)) + data
            self._put("texts_used", used + 6 + len(data))
            self._texts.add(key)
        return key

    def _functions(self) -> tuple[Callable, ...]:
        """The hot path: closures, whose variables cost less than attributes."""
        buffer, layout = self._map, self._layout
        put_record = struct.Struct("<IIQQQQQIIII").pack_into
        put_pair, put_one = struct.Struct("<QQ").pack_into, struct.Struct("<Q").pack_into
        slots = [layout.ring_at + 64 * i for i in range(layout.capacity)]
        now = time.monotonic_ns
        next_number, mask = itertools.count(1).__next__, layout.capacity - 1
        latest = step = waited = 0

        def enter(call: Call) -> int:
            nonlocal latest, waited
            _, what, num_bytes, signature_and_site, peer, next_seq, _, seq_at, _ = call
            latest = number = next_number()
            seq = next_seq()
            stamp = number & _LOW
            put_record(
                buffer,
                slots[number & mask],
                stamp,
                what,
                seq,
                now(),
                0,
                num_bytes,
                signature_and_site,
                step,
                peer,
                waited,
                stamp,
            )
            put_pair(buffer, seq_at, seq, number)
            waited = 0
            return number

        def leave(call: Call, number: int) -> None:
            time_ns = now()
            if latest - number <= mask:  # else the ring has gone round since, and the place is another's
                put_one(buffer, slots[number & mask] + 24, time_ns)
            put_pair(buffer, call[8], call[6](), time_ns)

        def announce(number: int) -> None:
            nonlocal step
            step = number & _LOW

        def add_waited(microseconds: int) -> None:
            nonlocal waited
            waited = min(waited + microseconds, _LOW)

        def flag(number: int, bits: int) -> None:
            if latest - number <= mask:
                at = slots[number & mask] + 7
                buffer[at] |= bits

        return enter, leave, announce, add_waited, flag


# ---- reading


@dataclass(frozen=True, slots=True)
class Communicator:
    """What one file says about one of its communicators."""

    uid: int
    name: str
    members: np.ndarray | None
    """Ranks of the job, int32, in order; None where the file had no room for them."""
    p2p: bool


@dataclass(slots=True)
class RankFile:
    """The state of one rank, read at one moment. The ring is read when it is asked for."""

    path: Path
    rank: int
    world_size: int
    pid: int
    job: int
    boot: int
    host: str
    created: float
    """Seconds on the clock of the rank's host."""
    created_unix: int
    finished: bool
    blind: bool
    """The rank goes on, but records nothing any more."""
    lost: int
    waited: float
    """Seconds waited for data."""
    waiting_since: int
    pause_until: int
    unseen: int
    """Bits of `UNSEEN`."""
    capacity: int
    frames: np.ndarray
    """`FRAME` of each communicator."""
    latest: np.ndarray
    """`RECORD` of each communicator's latest operation; `enter` is 0 where there is none or it was being written."""
    read_at: int
    """This reader's monotonic clock."""
    raw_texts: bytes = field(repr=False)
    """The area of texts, for `texts_in`; many ranks have the same."""
    _layout: _Layout = field(repr=False)
    _members: bytes = field(repr=False)

    def communicator(self, index: int) -> Communicator:
        """Return what the file says about a communicator.

        Raises:
            Corrupt: its members contradict themselves.
        """
        frame, layout = self.frames[index], self._layout
        num_members, num_runs, start = (int(frame[name]) for name in ("num_members", "num_runs", "members_start"))
        members = None
        if num_runs:
            if start + 3 * num_runs > layout.members_words:
                raise Corrupt(f"{self.path}: the members of communicator {index} lie outside of their area")
            if 4 * (start + 3 * num_runs) > len(self._members):
                raise Corrupt(f"{self.path}: the members of communicator {index} are not yet written")
            runs = np.frombuffer(self._members, "<u4", 3 * num_runs, 4 * start).astype(np.int64).reshape(-1, 3)
            counts = runs[:, 2]
            if not 1 <= num_members <= self.world_size or (counts > num_members).any() or counts.sum() != num_members:
                raise Corrupt(f"{self.path}: communicator {index} has {counts.sum()} members, not {num_members}")
            steps = np.arange(num_members) - np.repeat(counts.cumsum() - counts, counts)
            ranks = np.repeat(runs[:, 0], counts) + np.repeat(runs[:, 1], counts) * steps
            position = int(frame["position"])
            if ranks.max() >= self.world_size or np.unique(ranks).size < ranks.size:
                raise Corrupt(f"{self.path}: communicator {index} has members twice or outside of the world")
            if position >= num_members or ranks[position] != self.rank:
                raise Corrupt(f"{self.path}: rank {self.rank} is not at its place in communicator {index}")
            members = ranks.astype(np.int32)
        name = self.texts().get(int(frame["name"]), f"{int(frame['uid']):016x}")
        return Communicator(int(frame["uid"]), name, members, bool(frame["flags"] & P2P))

    def texts(self) -> dict[int, str]:
        """Return the texts by key; what is damaged is left out."""
        return texts_in(self.raw_texts)

    def ring(self, out: np.ndarray | None = None) -> np.ndarray:
        """Read the records, torn ones included: `RECORD` of shape [capacity]; into `out` if that is large enough.

        Raises:
            Truncated: the file has become shorter.
        """
        if out is None or out.size < self.capacity:
            out = np.empty(self.capacity, RECORD)
        out = out[: self.capacity]
        handle = _opened(self.path)
        try:
            view, at = memoryview(out).cast("B"), 0
            while at < len(view):
                num = os.preadv(handle, [view[at:]], self._layout.ring_at + at)
                if not num:
                    raise Truncated(f"{self.path} was cut short while it was read: {len(view) - at} bytes are missing")
                at += num
        finally:
            os.close(handle)
        return out


def texts_in(data: bytes) -> dict[int, str]:
    """Return the texts of `RankFile.raw_texts` by key; what is damaged is left out."""
    found, at = {}, 0
    while at + 6 <= len(data):
        key, length = struct.unpack_from("<IH", data, at)
        found[key] = data[at + 6 : at + 6 + length].decode(errors="replace")
        at += 6 + length
    return found


def read(path: str | os.PathLike[str]) -> RankFile:
    """Read the state of a rank from its file, which may be written to meanwhile. Nothing is mapped.

    Raises:
        Corrupt: it is no such file, or contradicts itself.
        Truncated: it is too short.
        NewerVersion: a newer version wrote it.
        OSError: it cannot be read.
    """
    path = Path(path)
    handle = _opened(path)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Corrupt(f"{path} is no file but a pipe, a device or a folder")
        head = os.pread(handle, HEADER.itemsize, 0)
        if len(head) < HEADER.itemsize:
            raise Truncated(f"{path} has {len(head)} bytes; the header alone has {HEADER.itemsize}")
        header = dict(zip(_HEAD_NAMES, _HEAD.unpack(head), strict=True))
        layout = _checked_layout(path, header, status.st_size)
        frames = np.frombuffer(_part(handle, path, layout.frames_at, 64 * header["num_communicators"]), FRAME)
        members = _part(handle, path, layout.members_at, 4 * header["members_used"])
        texts = _part(handle, path, layout.texts_at, header["texts_used"])
        latest, mask = [], layout.capacity - 1
        for index, (seq, number) in enumerate(zip(frames["seq"].tolist(), frames["record"].tolist(), strict=True)):
            data = os.pread(handle, 64, layout.ring_at + 64 * (number & mask)) if seq else b""
            low = number & _LOW
            is_whole = len(data) == 64 and _KEYS.unpack(data) == (low, index, seq, low)
            latest.append(data if is_whole else _NO_RECORD)
        read_at = time.monotonic_ns()
    finally:
        os.close(handle)
    return RankFile(
        path=path,
        rank=header["rank"],
        world_size=header["world_size"],
        pid=header["pid"],
        job=header["job"],
        boot=header["boot"],
        host=header["host"].rstrip(b"\0").decode(errors="replace"),
        created=header["created"] / 1e9,
        created_unix=header["created_unix"],
        finished=header["state"] == FINISHED,
        blind=header["state"] == BLIND,
        lost=header["lost"],
        waited=header["waited"] / 1e9,
        waiting_since=header["waiting_since"],
        pause_until=header["pause_until"],
        unseen=header["unseen"],
        capacity=layout.capacity,
        frames=frames,
        latest=np.frombuffer(b"".join(latest), RECORD),
        read_at=read_at,
        raw_texts=texts,
        _layout=layout,
        _members=members,
    )


def _opened(path: Path) -> int:
    """Open a file of a rank; a pipe in its place, which nobody writes to, does not hold us up."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))


def _part(handle: int, path: Path, at: int, num_bytes: int) -> bytes:
    data = os.pread(handle, num_bytes, at) if num_bytes else b""
    if len(data) < num_bytes:
        raise Truncated(f"{path} was cut short while it was read")
    return data


def read_folder(folder: str | os.PathLike[str]) -> tuple[list[RankFile], list[str]]:
    """Read the files of all ranks of a job, in the order of ranks, and say in words what could not be used.

    Files of another job than the newest, second files of a rank and damaged files are left out, never an error.

    Raises:
        FormatError: there is no file that can be used.
        OSError: the folder cannot be read.
    """
    files: dict[int, RankFile] = {}
    notes = []
    found = []
    names = os.listdir(folder) if os.path.exists(folder) else []
    for name in sorted(name for name in names if name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
        try:
            found.append(read(Path(folder, name)))
        except (FormatError, OSError) as error:
            notes.append(f"a file could not be read: {error}")
    if not found:
        raise FormatError(f"{folder} has no files of ranks that can be read{'; ' if notes else ''}{'; '.join(notes)}")
    newest = max(found, key=lambda file: file.created_unix)
    for file in found:
        if (file.job, file.world_size) != (newest.job, newest.world_size):
            notes.append(f"{file.path.name} is of another job")
        elif file.rank in files:
            notes.append(f"there are two files of rank {file.rank}; the newer one counts")
            files[file.rank] = max(file, files[file.rank], key=lambda file: file.created_unix)
        else:
            files[file.rank] = file
    return [files[rank] for rank in sorted(files)], notes


@dataclass(frozen=True)
class _Layout:
    capacity: int
    max_communicators: int
    members_words: int
    texts_bytes: int

    @functools.cached_property
    def frames_at(self) -> int:
        return HEADER.itemsize

    @functools.cached_property
    def members_at(self) -> int:
        return self.frames_at + FRAME.itemsize * self.max_communicators

    @functools.cached_property
    def texts_at(self) -> int:
        return self.members_at + 4 * self.members_words

    @functools.cached_property
    def ring_at(self) -> int:
        return -(-(self.texts_at + self.texts_bytes) // 64) * 64

    @functools.cached_property
    def size(self) -> int:
        return self.ring_at + RECORD.itemsize * self.capacity


_layout = functools.lru_cache(64)(_Layout)
"""All files of a job have the same, as a rule."""


def _checked_layout(path: Path, numbers: dict[str, Any], size: int) -> _Layout:
    if numbers["magic"] != MAGIC:
        raise Corrupt(f"{path} is no file of a rank: it does not begin with {MAGIC!r}")
    if numbers["version"] > VERSION:
        raise NewerVersion(f"{path} has version {numbers['version']} of the format; this trimtab reads {VERSION}")
    limits = {
        "version": (VERSION, VERSION),
        "world_size": (1, _MAX_WORLD),
        "rank": (0, numbers["world_size"] - 1),
        "capacity": (1, _MAX_CAPACITY),
        "max_communicators": (1, _MAX_COMMUNICATORS),
        "num_communicators": (0, numbers["max_communicators"]),
        "members_words": (0, _MAX_WORDS),
        "members_used": (0, numbers["members_words"]),
        "texts_bytes": (0, _MAX_TEXTS),
        "texts_used": (0, numbers["texts_bytes"]),
        "state": (RUNNING, BLIND),
    }
    for name, (low, high) in limits.items():
        if not low <= numbers[name] <= high:
            raise Corrupt(f"{path}: {name} is {numbers[name]}; expected {low} to {high}")
    if numbers["capacity"] & (numbers["capacity"] - 1):
        raise Corrupt(f"{path}: capacity is {numbers['capacity']}; expected a power of two")
    layout = _layout(*(numbers[n] for n in ("capacity", "max_communicators", "members_words", "texts_bytes")))
    if size < layout.size:
        raise Truncated(f"{path} has {size} bytes; its header promises {layout.size}")
    return layout


def _runs(ranks: np.ndarray) -> np.ndarray:
    """Cut ranks into runs of (start, stride, count), strides upwards only."""
    values, runs, at = ranks.tolist(), [], 0
    while at < len(values):
        stride = values[at + 1] - values[at] if at + 1 < len(values) else 1
        end = at + 1
        if stride > 0:
            while end < len(values) and values[end] - values[end - 1] == stride:
                end += 1
        runs += [values[at], max(stride, 1), end - at]
        at = end
    return np.array(runs, "<u4")


def _made(path: Path, size: int, head: bytes) -> mmap.mmap:
    """Make a file that takes its disk space now, and map it; it appears under its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            mapped = mmap.mmap(file.fileno(), size)
        mapped[: len(head)] = head
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return mapped
