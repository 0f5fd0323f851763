"""CCL-D at scale: 40 million records of 4,888 ranks, read from their files and matched.

Each rank is in three communicators. Records are read, decoded, matched by communicator and number, and compared: the
shortest and the longest time inside each operation, who it was, and whether signatures differ. A matcher with Python's
dicts does the same for the files of 64 ranks, and so do one that has NumPy take the records apart before, and one that
sorts with NumPy; rates are compared with ours.
The time and memory of decoding everything that verdicts need, 34 bytes a record, are measured too.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bench import harness
from bench.diagnose_faults import bar
from bench.harness import Options, exact, metric
from trimtab.diagnose.frame import OPS, RECORD, RankFile, Writer, frame_path, read, read_folder, signature
from trimtab.diagnose.groups import Groups
from trimtab.diagnose.simulate import Job
from trimtab.diagnose.snapshot import Snapshot
from trimtab.diagnose.trace import Trace
from trimtab.kernels import load
from trimtab.records import Bar, Metric, Record

NUM_RANKS, CAPACITY, NUM_DICT_RANKS = 4888, 8192, 64
SEED = 7


def run(options: Options) -> Record:
    """Simulate and measure, and return the record."""
    metrics: dict[str, Metric] = {}
    bars: list[Bar] = []
    _records(metrics, bars, NUM_RANKS // 400 * 8 if options.quick else NUM_RANKS, options.num_rounds)
    return Record.new(
        options.name,
        command=options.command,
        seed=SEED,
        data={
            "records": {"num_ranks": NUM_RANKS, "records_a_rank": CAPACITY, "num_dict_ranks": NUM_DICT_RANKS},
        },
        inference={"num_rounds": options.num_rounds, "clock": "CPU seconds of one thread"},
        metrics=metrics,
        bars=bars,
    )


def _records(metrics: dict[str, Metric], bars: list[Bar], num_ranks: int, num_rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        write_files(folder, num_ranks)
        paths = [frame_path(folder, rank) for rank in range(min(NUM_DICT_RANKS, num_ranks))]
        matchers: dict[str, Callable[[list[RankFile]], int]] = {
            "dicts": match_dicts,
            "dicts over columns": match_columns,
            "sort": match_sort,
        }
        rates: dict[str, list[float]] = {name: [] for name in matchers}
        found, whole = [], []
        for _ in range(min(num_rounds, 5)):
            # a process of its own, whose memory is that of this work; by turns, for the machine may slow down
            found.append(_in_a_process(folder, ("inside", "signature")))
            whole.append(_in_a_process(folder, None))
            for name, matcher in matchers.items():
                start = time.process_time()
                num = matcher([read(path) for path in paths])
                rates[name].append(num / (time.process_time() - start) / 1e6)
    num = found[0]["num_records"]
    ours = [num / one["cpu_seconds"] / 1e6 for one in found]
    metrics["records/number"] = exact(num, "records")
    metrics["records/CPU time"] = metric([one["cpu_seconds"] for one in found], "s")
    metrics["records/time"] = metric([one["seconds"] for one in found], "s")
    metrics["records/all columns, CPU time"] = metric([one["cpu_seconds"] for one in whole], "s", "at most 10 s")
    metrics["records/all columns, time"] = metric([one["seconds"] for one in whole], "s")
    metrics["records/states of all ranks from files"] = metric([one["snapshot_seconds"] for one in found], "s")
    metrics["records/peak memory"] = metric([one["peak_gib"] for one in found], "GiB")
    metrics["records/all columns, peak memory"] = metric([one["peak_gib"] for one in whole], "GiB", "at most 2 GB")
    metrics["records/ours"] = metric(ours, "million/s")
    for name, values in rates.items():
        metrics[f"records/{name}"] = metric(values, "million/s")
        metrics[f"records/times {name}"] = metric([a / b for a, b in zip(ours, values, strict=True)], "x")
    gigabytes = metrics["records/all columns, peak memory"].value * 2**30 / 1e9
    bars += [
        bar(
            f"{num / 1e6:.1f} million records (CPU s)", 10, metrics["records/all columns, CPU time"].value, at_most=True
        ),
        bar("peak memory (GB)", 2, gigabytes, at_most=True),
        bar("rate over a matcher with dicts", 20, metrics["records/times dicts"].value),
    ]


def write_files(folder: str, num_ranks: int) -> None:
    """Write the files of ranks in tensor groups of 8, data groups across these, and the world: full rings."""
    rng = np.random.default_rng(SEED)
    pattern = np.array([0, 0, 0, 1, 0, 0, 0, 2], np.uint64)  # tensor, data, world
    numbers = np.arange(1, CAPACITY + 1)
    local = pattern[numbers % 8]
    seq = np.zeros(CAPACITY, np.int64)
    for c in range(3):
        seq[local == c] = np.arange(1, np.count_nonzero(local == c) + 1)
    ring = np.zeros(CAPACITY, RECORD)
    ring["stamp"] = ring["check"] = numbers
    ring["communicator"], ring["seq"], ring["op"] = local, seq, OPS.index("all_reduce")
    ring["num_bytes"], ring["step"] = 1 << 20, numbers // 8 + 1
    ring["signature"] = [signature("all_reduce", num_elements=int(c) + 1) for c in local]
    order = np.argsort(numbers % CAPACITY)
    for rank in range(num_ranks):
        spans = rng.integers(1000, 1_000_000, 2 * CAPACITY).cumsum()
        ring["enter"], ring["exit"] = 10**9 + spans[::2], 10**9 + spans[1::2]
        path = frame_path(folder, rank)
        writer = Writer(path, rank=rank, world_size=num_ranks, capacity=CAPACITY, texts_bytes=64, members_words=64)
        groups = (range(rank // 8 * 8, rank // 8 * 8 + 8), range(rank % 8, num_ranks, 8), range(num_ranks))
        for c, (name, members) in enumerate(zip(("tensor", "data", "world"), groups, strict=True)):
            index = writer.communicator(f"{name} {members[0]}", members)
            last = int(numbers[local == c][-1])
            done = int(seq[local == c][-1])
            writer.restore(index, seq=done, record=last, done=done, exit_ns=int(ring["exit"][last - 1]))
        writer.restore_ring(ring[order])
        writer.close()


def match_ours(folder: str, columns: Sequence[str] | None = None) -> dict[str, float]:
    """Read, decode, match and compare all records of a folder; `columns` are those to decode, by default all."""
    kernels = load("rings")
    _warm()
    begin, start = time.perf_counter(), time.process_time()
    files, _ = read_folder(folder)
    groups, places, _ = Groups.of_files(files)
    Snapshot.of_files(files, groups, places)
    snapshot_seconds = time.process_time() - start
    trace = Trace.of_files(files, groups, places, columns=columns)
    for c in range(len(groups.names)):
        blocks = trace.blocks(c)
        _, first, count = blocks
        low, num = int(first.min()), int((first + count).max() - first.min())
        out = [np.empty(num, dtype) for dtype in ("f4", "f4", "i4", "i4")]
        kernels.spread(*blocks, trace.columns["inside"], low, *out)
        kernels.differing(*blocks, trace.columns["signature"], 0, np.zeros(first.size, np.int64))
    return {
        "cpu_seconds": time.process_time() - start,
        "seconds": time.perf_counter() - begin,
        "snapshot_seconds": snapshot_seconds,
        "num_records": trace.num_records,
        "peak_gib": _peak_bytes() / 2**30,
    }


def match_dicts(files: list[RankFile]) -> int:
    """Do the same with dicts, as one would write it in Python; return the number of records."""
    record = struct.Struct("<IHBBQQQQIIIIII")
    operations: dict[tuple[int, int], list] = {}
    num = 0
    for file in files:
        uids = file.frames["uid"].tolist()
        for row in record.iter_unpack(file.ring().tobytes()):
            stamp, communicator, _, _, seq, enter, leave, _, sign, _, _, _, _, check = row
            if stamp != check or not enter:
                continue
            num += 1
            inside = (leave - enter) * 1e-9
            key = (uids[communicator], seq)
            found = operations.get(key)
            if found is None:
                operations[key] = [inside, inside, file.rank, 1, sign, False]
                continue
            if inside < found[0]:
                found[0], found[2] = inside, file.rank
            if inside > found[1]:
                found[1] = inside
            found[3] += 1
            if sign != found[4]:
                found[5] = True
    return num


def match_columns(files: list[RankFile]) -> int:
    """Do the same with dicts too, but let NumPy take the records apart first; return the number of records."""
    operations: dict[int, dict[int, list]] = {}
    num = 0
    for file in files:
        mine = [operations.setdefault(uid, {}) for uid in file.frames["uid"].tolist()]
        ring, rank = file.ring(), file.rank
        ring = ring[(ring["stamp"] == ring["check"]) & (ring["enter"] > 0)]
        inside = ((ring["exit"] - ring["enter"]) * 1e-9).tolist()
        columns = (ring[name].tolist() for name in ("communicator", "seq", "signature"))
        for communicator, seq, sign, seconds in zip(*columns, inside, strict=True):
            found = mine[communicator].get(seq)
            if found is None:
                mine[communicator][seq] = [seconds, seconds, rank, 1, sign, False]
                continue
            if seconds < found[0]:
                found[0], found[2] = seconds, rank
            if seconds > found[1]:
                found[1] = seconds
            found[3] += 1
            if sign != found[4]:
                found[5] = True
        num += ring.size
    return num


def match_sort(files: list[RankFile]) -> int:
    """Do the same by sorting, as one would write it in NumPy; return the number of records."""
    rings, uids, ranks = [], [], []
    for file in files:
        ring = file.ring()
        ring = ring[(ring["stamp"] == ring["check"]) & (ring["enter"] > 0)]
        rings.append(ring)
        uids.append(file.frames["uid"][ring["communicator"]])
        ranks.append(np.full(ring.size, file.rank, np.int32))
    ring, uid, rank = np.concatenate(rings), np.concatenate(uids), np.concatenate(ranks)
    inside = ((ring["exit"] - ring["enter"]) * 1e-9).astype(np.float32)
    order = np.lexsort((inside, ring["seq"], uid))
    uid, seq, sign = uid[order], ring["seq"][order], ring["signature"][order]
    edges = np.flatnonzero(np.concatenate([[True], (uid[1:] != uid[:-1]) | (seq[1:] != seq[:-1])]))
    least, most = inside[order][edges], np.maximum.reduceat(inside[order], edges)
    differ = np.minimum.reduceat(sign, edges) != np.maximum.reduceat(sign, edges)
    who, counts = rank[order][edges], np.diff(np.append(edges, uid.size))
    assert least.size == most.size == differ.size == who.size == counts.size
    return ring.size


def _warm() -> None:
    """Load the kernels, so that the time of compiling them is not counted."""
    Job(data=2).run(num_steps=2).trace()


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _in_a_process(folder: str, columns: Sequence[str] | None) -> dict[str, float]:
    call = f"match_ours({folder!r}, {columns!r})"
    code = f"import json; from bench.diagnose_scale import match_ours; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("diagnose_scale", __doc__, argv)
    record = run(options)
    for name, found in record.metrics.items():
        print(f"{name:45} {found.value:12.6g} {found.unit}")
    harness.write(record, options)


if __name__ == "__main__":
    main()
