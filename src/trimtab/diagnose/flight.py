"""Dumps of PyTorch's Flight Recorder, read as states and traces.

The recorder keeps the latest operations of a process group in every job (NCCL, and gloo from PyTorch 2.13 on):
``torch._C._distributed_c10d._dump_fr_trace_json(True, False)`` returns them as JSON, which is read here. The recorder's
own dump files are pickles, whose reading may run any program; they are refused, not opened.

Versions 2.x of the JSON are known. A dump does not name its rank: the last number of the file's name does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from trimtab.diagnose.frame import OPS, RECORD, signature, text_key
from trimtab.diagnose.groups import Groups
from trimtab.diagnose.snapshot import Snapshot
from trimtab.diagnose.trace import Trace
from trimtab.errors import Corrupt, FormatError, NewerVersion, UsageError

_MAX_BYTES = 1 << 30
_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_NAMES = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "_all_gather_base": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "_allgather_base": "all_gather",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "_reduce_oop": "reduce",
    "_broadcast_oop": "broadcast",
    "alltoall": "all_to_all",
    "all_to_all_single": "all_to_all",
}
_UNEVEN = ("all_to_all", "gather", "scatter", "coalesced", "unknown")
"""Operations whose members may pass tensors of different sizes."""


class _Frame(msgspec.Struct):
    name: str = ""
    filename: str = ""
    line: int = 0


class _Entry(msgspec.Struct):
    process_group: tuple[str, str]
    collective_seq_id: _Count
    profiling_name: str
    record_id: _Count = 0
    is_p2p: bool = False
    input_sizes: list[list[_Count]] = []
    input_dtypes: list[str] = []
    state: str = ""
    retired: bool = False
    time_created_ns: _Count = 0
    time_discovered_completed_ns: _Count | None = None
    duration_ms: Annotated[float, msgspec.Meta(ge=0, lt=1e12)] | None = None
    frames: list[_Frame] = []


class _Group(msgspec.Struct):
    name: str = ""
    ranks: str = ""


class _Dump(msgspec.Struct):
    version: str
    entries: list[_Entry] = []
    pg_config: dict[str, _Group] = {}


def read_dumps(dumps: str | os.PathLike[str] | Mapping[int, str | os.PathLike[str]]) -> tuple[Snapshot, Trace]:
    """Read the dumps of all ranks: a folder of ``*.json`` whose names end in the rank, or files by rank.

    Raises:
        FormatError: a dump is pickled, of an unknown version, or damaged; or there is none.
        UsageError: two files claim the same rank, or a name has no number.
    """
    paths = dict(dumps) if isinstance(dumps, Mapping) else _by_rank(Path(dumps))
    if not paths:
        raise FormatError(f"{dumps} has no dumps: expected files such as rank_0.json")
    read = {rank: _read(Path(path)) for rank, path in sorted(paths.items())}
    taken = {rank: os.stat(path).st_mtime_ns for rank, path in paths.items()}
    return _joined(read, taken)


def _by_rank(folder: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*.json")):
        numbers = re.findall(r"\d+", path.stem)
        if not numbers:
            raise UsageError(f"{path} does not name its rank: expected a name such as rank_0.json")
        rank = int(numbers[-1])
        if rank in found:
            raise UsageError(f"{path} and {found[rank]} are both of rank {rank}; pass {{rank: path}} instead")
        found[rank] = path
    return found


def _read(path: Path) -> _Dump:
    if path.stat().st_size > _MAX_BYTES:
        raise Corrupt(f"{path} is larger than {_MAX_BYTES} bytes; no dump is")
    data = path.read_bytes()
    if data[:1] == b"\x80":
        raise FormatError(
            f"{path} is pickled, and pickles are never opened here;"
            " write what torch._C._distributed_c10d._dump_fr_trace_json(True, False) returns instead"
        )
    try:
        dump = msgspec.json.decode(data, type=_Dump)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{path} is no Flight Recorder dump: {error}") from None
    if not re.fullmatch(r"2\.\d{1,4}", dump.version):
        raise NewerVersion(f"{path} has version {dump.version[:20]!r} of the dump; versions 2.x are known")
    return dump


def _joined(dumps: dict[int, _Dump], taken: dict[int, int]) -> tuple[Snapshot, Trace]:
    num_ranks = max([*dumps, *_stated_ranks(dumps)]) + 1  # the last ranks may have left none
    if num_ranks > 1 << 20:
        raise UsageError(f"rank {num_ranks - 1}: more than {1 << 20} ranks")
    notes = ["durations: Flight Recorder knows them only where it is told to take timings"]
    members, guessed = _members(dumps, num_ranks)
    columns: dict[int, list[tuple[str, int, _Entry]]] = {}
    for rank, dump in dumps.items():
        columns[rank] = _operations(rank, dump, members, guessed, notes)
    names = sorted({name for rows in columns.values() for name, *_ in rows})
    index = {name: c for c, name in enumerate(names)}
    groups = Groups.build(
        num_ranks,
        [members[name] for name in names],
        names,
        [">" in name for name in names],
        [guessed[n] for n in names],
    )
    snapshot, texts, rings, room = Snapshot.empty(groups), {}, [], 0
    for rank, rows in columns.items():
        snapshot.present[rank] = True
        ring, place = _ring(rank, rows, groups, index, texts)
        rings.append((rank, ring, place))
        room += ring.size
        _state(snapshot, ring, place, taken[rank])
    trace = Trace.of_rings(rings, groups, room=room)
    snapshot.texts, snapshot.notes, snapshot.all_asked = texts, list(dict.fromkeys(notes)), True
    return snapshot, trace


def _stated_ranks(dumps: dict[int, _Dump]) -> Iterator[int]:
    """The highest rank of each process group, as far as a dump of a member says who the members are."""
    for rank, dump in dumps.items():
        for group in dump.pg_config.values():
            if rank in (ranks := _ranks(group)):
                yield max(ranks)


def _ranks(group: _Group) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,7}", group.ranks[: 1 << 23])]


def _members(dumps: dict[int, _Dump], num_ranks: int) -> tuple[dict[str, np.ndarray], dict[str, bool]]:
    """The ranks of each process group, and whether they are only those that were seen."""
    stated: dict[str, np.ndarray] = {}
    seen: dict[str, list[int]] = {}
    is_default: dict[str, bool] = {}
    for rank, dump in dumps.items():
        for key, group in dump.pg_config.items():
            ranks = _ranks(group)
            if ranks and max(ranks) < num_ranks and len(set(ranks)) == len(ranks):
                stated.setdefault(group.name or key, np.array(ranks, np.int32))
        for name, description in {entry.process_group for entry in dump.entries}:
            seen.setdefault(name, []).append(rank)
            is_default[name] = description == "default_pg"
    members, guessed = {}, {}
    for name, ranks in seen.items():
        known = stated.get(name)
        if known is not None and np.isin(ranks, known).all():
            members[name], guessed[name] = known, False
        elif is_default[name]:
            members[name], guessed[name] = np.arange(num_ranks, dtype=np.int32), False
        else:
            members[name], guessed[name] = np.array(sorted(ranks), np.int32), True
    return members, guessed


def _operations(
    rank: int, dump: _Dump, members: dict[str, np.ndarray], guessed: dict[str, bool], notes: list[str]
) -> list[tuple[str, int, _Entry]]:
    """The operations of one dump as (communicator, sequence number, entry), in their order."""
    rows: list[tuple[str, int, _Entry]] = []
    counts: dict[str, int] = {}
    highest: dict[str, int] = {}
    entries = sorted(dump.entries, key=lambda entry: entry.record_id)
    is_whole = not entries or entries[0].record_id == 0
    for entry in entries:
        name = entry.process_group[0]
        if not entry.is_p2p:
            if 0 < entry.collective_seq_id == highest.get(name, entry.collective_seq_id - 1) + 1:
                highest[name] = entry.collective_seq_id
                rows.append((name, entry.collective_seq_id, entry))
            else:
                notes.append("operations that share a number with others (coalesced ones), or whose numbers leave gaps")
            continue
        ends = re.search(r"(send|recv) (\d{1,7})(->|<-)(\d{1,7})", entry.profiling_name)
        if ends is None or not is_whole or guessed[name]:
            notes.append("point-to-point operations whose partner or number the dump does not tell")
            continue
        own, other = int(ends[2]), int(ends[4])
        ranks = members[name]
        if max(own, other) >= ranks.size or ranks[own] != rank or own == other:
            notes.append(f"a point-to-point operation of rank {rank} that contradicts its group")
            continue
        sender, receiver = (own, other) if ends[3] == "->" else (other, own)
        edge = f"{name}: {ranks[sender]}>{ranks[receiver]}"
        members.setdefault(edge, ranks[[sender, receiver]])
        guessed.setdefault(edge, False)
        counts[edge] = counts.get(edge, 0) + 1
        rows.append((edge, counts[edge], entry))
    return rows


def _ring(
    rank: int, rows: list[tuple[str, int, _Entry]], groups: Groups, index: dict[str, int], texts: dict[int, str]
) -> tuple[np.ndarray, np.ndarray]:
    """The operations of one rank as a ring, and the membership of each of its communicators."""
    ring = np.zeros(1 << max(len(rows), 1).bit_length(), RECORD)
    local: dict[str, int] = {}
    place: list[int] = []
    for number, (name, seq, entry) in enumerate(rows, 1):
        if name not in local:
            local[name] = len(place)
            at = groups.members(index[name])
            place.append(at.start + int(np.flatnonzero(groups.ranks[at] == rank)[0]))
        op = _op(entry)
        sizes = [prod(size) for size in entry.input_sizes]
        elements = 0 if op in _UNEVEN else sum(sizes) % (1 << 62)
        site = ""
        if entry.frames:
            frame = next((f for f in entry.frames if "torch/distributed" not in f.filename), entry.frames[0])
            site = f"{Path(frame.filename).name}:{frame.line} {frame.name}"
            texts[text_key(site)] = site
        enter = max(entry.time_created_ns, 1)
        took = round((entry.duration_ms or 0.0) * 1e6)
        is_done = entry.retired or entry.state == "completed"
        record = ring[number % ring.size]
        record["stamp"] = record["check"] = number
        record["communicator"], record["op"], record["seq"] = local[name], OPS.index(op), seq
        record["enter"], record["exit"] = enter, enter + took if is_done else 0
        record["num_bytes"] = min(sum(sizes), (1 << 62) - 1)  # elements: the dump has no bytes
        record["signature"] = signature(op, dtype=",".join(entry.input_dtypes), num_elements=elements)
        record["site"] = text_key(site) if site else 0
    return ring, np.array(place, np.int64)


def _state(snapshot: Snapshot, ring: np.ndarray, place: np.ndarray, taken: int) -> None:
    """Enter the latest operation of each communicator of a ring into the snapshot."""
    for local, at in enumerate(place.tolist()):
        mine = np.sort(ring[(ring["communicator"] == local) & (ring["seq"] > 0)], order="seq")
        last, open_ones = mine[-1], mine[mine["exit"] == 0]
        snapshot.seen[at], snapshot.seq[at] = True, last["seq"]
        snapshot.done[at] = open_ones["seq"][0] - 1 if open_ones.size else last["seq"]
        for name in ("signature", "site", "op"):
            getattr(snapshot, name)[at] = last[name]
        # the file was written when the dump was made, or copied later
        if 0 < int(last["enter"]) <= taken:
            snapshot.age[at] = (taken - int(last["enter"])) / 1e9


def _op(entry: _Entry) -> str:
    name = entry.profiling_name.rpartition(":")[2].split(" ")[0].lower()
    name = _NAMES.get(name, name)
    return name if name in OPS else "coalesced" if "coalesc" in name else "unknown"
