"""CCL-D beside PyTorch's own analyzer of Flight Recorder dumps, on the same dumps.

Jobs are simulated, and what NCCL's Flight Recorder would hold of them (with timings on) is written twice: as JSON for
ours, as the pickles that the peer reads. Ranks, steps and places of faults are drawn anew for every job. The peer is
`torch.distributed.flight_recorder.fr_trace`; what it names are the missing or culprit ranks of its first finding.

Dumps of real gloo jobs are compared too: nine kinds of faults in a loop of all-reduces and in DDP, on 2 and 4 ranks.
Both get them as they are, and with the members of the group filled in, which gloo enters under another name. A rank
that was killed or stopped leaves no dump; that the peer then asks for it counts as naming it. The jobs are those of
`bench.diagnose_peers_ranks`, which keeps their dumps: what is missing is run first, and that takes half an hour.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness
from bench.diagnose_faults import bar
from bench.diagnose_peers_ranks import ASKED_AFTER, HANG_SECONDS, RANKS, SEEDS, WORKLOADS, GlooJob, gloo_jobs
from bench.harness import Options, exact
from trimtab.diagnose import Limits, diagnose_dumps
from trimtab.diagnose.frame import OPS
from trimtab.diagnose.simulate import TRUTH, Fault, Job, Run
from trimtab.records import Bar, Metric, Record

JOBS = {
    "data 4": Job(data=4, micro_batches=1),
    "tensor 2 x data 2": Job(tensor=2, data=2),
    "tensor 2 x pipeline 2 x data 2": Job(tensor=2, pipeline=2, data=2),
}
KINDS = ("none", "stop", "other", "skip", "freeze", "slow", "link")
NUM_SEEDS, NUM_STEPS, SEED = 5, 16, 7
QUICK = (GlooJob("none", "all-reduce", 2, 0), GlooJob("sleep", "all-reduce", 2, 0))
_WAIT = 60  # seconds between the last operation and the dump of a hang


@dataclass(frozen=True)
class Finding:
    """What one of the two says about a job."""

    is_fault: bool
    ranks: frozenset[int]
    kind: str = ""
    crashed: str = ""


def run(options: Options) -> Record:
    """Simulate, ask both, and return the record."""
    metrics: dict[str, Metric] = {}
    bars: list[Bar] = []
    counts: dict[str, int] = {}
    for kind in KINDS:
        for fault, found in _simulated(kind, 1 if options.quick else NUM_SEEDS):
            truth = (TRUTH[kind], frozenset((fault.rank,))) if fault else ("healthy", frozenset())
            _count(counts, kind, found, *truth)
    gloo = QUICK if options.quick else tuple(gloo_jobs())
    for job in gloo:
        for filled, found in compare_gloo(job.results()).items():
            _count(counts, _gloo_key(job.fault, filled), found, *job.truth)
    for key, count in counts.items():
        metrics[key] = exact(count, "jobs")
    faults = [kind for kind in KINDS if kind != "none"]
    num = sum(counts[f"{kind}/jobs"] for kind in faults)
    for who in ("ours", "peer"):
        named = sum(counts[f"{kind}/{who} named"] for kind in faults)
        metrics[f"faults/{who} named, share"] = exact(named / num, "")
    shares = [metrics[f"faults/{who} named, share"].value for who in ("ours", "peer")]
    real = list(dict.fromkeys(job.fault for job in gloo if job.fault != "none"))
    for filled in (False, True):
        keys = [_gloo_key(fault, filled) for fault in real]
        for who in ("ours", "peer"):
            share = sum(counts[f"{key}/{who} named"] for key in keys) / sum(counts[f"{key}/jobs"] for key in keys)
            metrics[f"{_gloo_key('faults', filled)}/{who} named, share"] = exact(share, "")
    bars.append(bar("faults whose rank alone is named, ours less the peer's share", 0, shares[0] - shares[1]))
    gains = [metrics[f"{_gloo_key('faults', True)}/{who} named, share"].value for who in ("ours", "peer")]
    bars.append(bar("real faults whose ranks alone are named, ours less the peer's share", 0, gains[0] - gains[1]))
    bars.append(bar("ranks that stop, named", 1, counts["stop/ours named"] / counts["stop/jobs"]))
    for kind, words in (("other", "call another operation"), ("skip", "leave one out")):
        named = counts[f"{kind}/ours named"] / counts[f"{kind}/jobs"]
        bars.append(bar(f"ranks that {words}, named", 0.99, named))
    bars.append(bar("false alarms of ours", 0, counts["none/ours false alarms"], at_most=True))
    return Record.new(
        options.name,
        command=options.command,
        packages=("torch",),
        seed=SEED,
        data={
            "jobs": list(JOBS),
            "steps": NUM_STEPS,
            "dumps": "as NCCL's Flight Recorder writes them: version 2.10, with durations and call sites, no steps",
            "peer": "torch.distributed.flight_recorder.fr_trace",
            "gloo": (
                f"{' and '.join(WORKLOADS)} on {' and '.join(map(str, RANKS))} ranks, {len(SEEDS)} seeds; dumps "
                f"{ASKED_AFTER:g} s after the fault; a wait of {HANG_SECONDS:g} s is a hang"
            ),
        },
        metrics=metrics,
        bars=bars,
    )


def _gloo_key(fault: str, filled: bool) -> str:
    return f"gloo {fault}{', members filled in' if filled else ''}"


def _count(counts: dict[str, int], name: str, found: dict[str, Finding], kind: str, culprits: frozenset[int]) -> None:
    """Count a job whose verdict must have this kind and these ranks; without ranks, it has no fault."""

    def add(what: str, number: bool) -> None:
        counts[f"{name}/{what}"] = counts.get(f"{name}/{what}", 0) + int(number)

    add("jobs", True)
    for who, finding in found.items():
        add(f"{who} crashed", bool(finding.crashed))
        if not culprits:
            add(f"{who} false alarms", finding.is_fault)
        else:
            add(f"{who} found a fault", finding.is_fault)
            add(f"{who} named", finding.ranks == culprits)
            add(f"{who} named with others", culprits <= finding.ranks)
    add("ours right kind", found["ours"].kind == kind)


def _simulated(kind: str, num_seeds: int) -> Iterator[tuple[Fault | None, dict[str, Finding]]]:
    rng = np.random.default_rng(SEED + KINDS.index(kind))
    for job in JOBS.values():
        for seed in range(num_seeds):
            fault = None
            if kind != "none":
                rank = int(rng.integers(job.num_ranks))
                place = int(rng.choice(job.places(rank, "all_reduce")))
                late = kind in ("slow", "link")
                step = NUM_STEPS // 2 if late else int(rng.integers(2, NUM_STEPS - 1))
                factor = {"slow": float(rng.uniform(1.5, 3.0)), "link": 60.0}.get(kind, 1.0)
                fault = Fault(kind, rank=rank, step=step, place=place, factor=factor)
            played = job.run(faults=[fault] if fault else [], num_steps=NUM_STEPS, seed=seed)
            dumps = dumps_of(played)
            yield fault, compare(dumps, {rank: _taken(played, rank) for rank in dumps})


def dumps_of(played: Run) -> dict[int, dict[str, Any]]:
    """Return what NCCL's Flight Recorder would hold of a simulated job, by rank."""
    groups = played.job.groups
    usual = {int(place) & 0xFFFFFFFF for place in _signatures(played.job)}
    dumps = {}
    for rank, ring, _ in played.rings():
        ring = ring[ring["enter"] > 0]
        ring = ring[np.argsort(ring["enter"], kind="stable")]
        entries: list[dict[str, Any]] = []
        config: dict[str, Any] = {}
        for record_id, record in enumerate(ring):
            c = int(played.job._slots[rank, record["communicator"]])
            name, members = groups.names[c], groups.ranks[groups.members(c)]
            config[name] = {"name": name, "desc": name, "ranks": str(members.tolist())}
            entries.append(_entry(record_id, record, name, members, rank, usual, played))
        dumps[rank] = {"version": "2.10", "entries": entries, "pg_config": config}
    return dumps


def _entry(
    record_id: int, record: np.void, name: str, members: np.ndarray, rank: int, usual: set[int], played: Run
) -> dict[str, Any]:
    op = OPS[record["op"]]
    if int(record["signature"]) not in usual:
        op = "broadcast"  # what a fault of the kind "other" puts in its place
    is_p2p = op in ("send", "recv")
    seq, left, size = int(record["seq"]), int(record["exit"]), [[int(record["num_bytes"]) // 2]]
    me = int(np.flatnonzero(members == rank)[0])
    ends = {"send": f" {me}->{1 - me}", "recv": f" {me}<-{1 - me}"}.get(op, "")
    site, _, line = played.texts[int(record["site"])].partition(":")
    entry = {
        "record_id": record_id,
        "pg_id": 0,
        "process_group": (name, name),
        "collective_seq_id": 0 if is_p2p else seq,
        "p2p_seq_id": seq if is_p2p else 0,
        "op_id": record_id,
        "profiling_name": f"nccl:{op}{ends}",
        "time_created_ns": int(record["enter"]),
        "input_sizes": size,
        "input_dtypes": ["BFloat16"],
        "output_sizes": size,
        "output_dtypes": ["BFloat16"],
        "state": "completed" if left else "started",
        "time_discovered_started_ns": int(record["enter"]),
        "time_discovered_completed_ns": left or None,
        "retired": bool(left),
        "timeout_ms": 600_000,
        "is_p2p": is_p2p,
        "frames": [{"name": "step", "filename": site, "line": int(line)}],
    }
    return entry | {"duration_ms": (left - int(record["enter"])) / 1e6} if left else entry


def _signatures(job: Job) -> Iterator[int]:
    for _, ring, _ in job.run(num_steps=1).rings():
        yield from ring["signature"].tolist()


def _taken(played: Run, rank: int) -> int:
    """When a rank's dump is made: on its own clock, ns."""
    return int(played.clock.max()) + int(played.offset[rank]) + (_WAIT * 10**9 if played.is_hung else 0)


def compare(
    dumps: dict[int, dict[str, Any]],
    taken: dict[int, int] | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> dict[str, Finding]:
    """Ask both about the same dumps, which were made at the times `taken`, ns on each rank's clock."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        texts, pickles = Path(folder, "json"), Path(folder, "pickle")
        texts.mkdir()
        pickles.mkdir()
        for rank, dump in dumps.items():
            path = texts / f"rank_{rank}.json"
            path.write_text(json.dumps(dump))
            if taken is not None:
                os.utime(path, ns=(taken[rank], taken[rank]))
            (pickles / f"rank_{rank}").write_bytes(pickle.dumps(dump))
        verdict = diagnose_dumps(texts, limits=limits)
        ours = Finding(not verdict.is_healthy, frozenset(verdict.ranks), verdict.kind)
        return {"ours": ours, "peer": ask_peer(pickles)}


def ask_peer(folder: Path) -> Finding:
    """Run PyTorch's analyzer as its command does, and return the ranks of its first finding."""
    from torch.distributed.flight_recorder import fr_trace

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("Flight Recorder")
    before, logger.handlers, logger.propagate = logger.handlers, [handler], False
    crashed = ""
    try:
        fr_trace.main([str(folder), "-p", "rank_"])
    except Exception as error:  # noqa: BLE001 (whatever it raises is a finding about the peer)
        crashed = f"{type(error).__name__}: {error}"
    finally:
        gc.enable()  # it turns the collector off
        logger.handlers = before
    return _read_finding(lines, crashed)


def _read_finding(lines: Sequence[str], crashed: str = "") -> Finding:
    for line in lines:
        if match := re.match(r"missing ranks: \{([\d, ]+)\}", line):
            return Finding(True, frozenset(map(int, match[1].split(","))), crashed=crashed)
        if ranks := re.findall(r"Culprit rank (\d+);", line):
            return Finding(True, frozenset(map(int, ranks)), crashed=crashed)
    if match := re.search(r"Missing dump files from ranks \{([\d, ]+)\}", crashed):
        return Finding(True, frozenset(map(int, match[1].split(","))))  # it says so, and goes no further
    told = any("mismatch" in line or "has errors" in line for line in lines)
    return Finding(told, frozenset(), crashed=crashed)


def compare_gloo(found: Mapping[str, Any]) -> dict[bool, dict[str, Finding]]:
    """Ask both about the dumps of a gloo job, as they are (False) and with the members of its group filled in (True).

    `found` has the dump of each rank that left one, and when it did, as `bench.diagnose_peers_ranks` writes them.
    """
    dumps: dict[int, dict[str, Any]] = {int(rank): one["dump"] for rank, one in found.items()}
    taken = {int(rank): one["taken"] for rank, one in found.items()}
    members = next(group["ranks"] for dump in dumps.values() for group in dump["pg_config"].values())
    for dump in dumps.values():
        entries = dump.get("entries", [])  # a rank that has begun nothing has no such list
        dump["entries"] = [{**entry, "process_group": tuple(entry["process_group"])} for entry in entries]
    filled = {"0": {"name": "0", "desc": "default_pg", "ranks": members}}
    with_members = {rank: dump | {"pg_config": filled} for rank, dump in dumps.items()}
    limits = Limits(hang_seconds=HANG_SECONDS)
    return {False: compare(dumps, taken, limits), True: compare(with_members, taken, limits)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = harness.parse("diagnose_peers", __doc__, argv)
    record = run(options)
    for name, found in record.metrics.items():
        print(f"{name:55} {found.value:8.4g} {found.unit}")
    harness.write(record, options)


if __name__ == "__main__":
    main()
