"""CCL-D on real faults: gloo ranks that hang, fail or slow down on purpose, and what the verdict says of it.

Nine kinds of faults, on 2, 4 and 8 ranks, in a loop of all-reduces, DDP, FSDP2 and a pipeline of sends and receives,
three seeds each; and longer jobs without a fault beside a process that takes the processor away. `Watch` looks at a job
twice a second from outside, as `trimtab diagnose watch` does, and its first verdict that is not healthy counts. It is
right when the kind and the exact set of ranks are; the only link between two ranks is the fault of both. Thresholds
were chosen on other seeds.

Ranks are forked from a process that has imported PyTorch, talk over the loopback, and end after a few seconds.

    python -m bench.diagnose_matrix run                # what is missing, resumable; an hour in all
    python -m bench.diagnose_matrix                    # the same, and the record
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from bench import harness
from bench.harness import exact
from bench.jobs import ProcessJob, run_missing
from trimtab.diagnose import Limits
from trimtab.diagnose.injection import TRUTH
from trimtab.records import Bar, Metric, Record

RANKS, SEEDS = (2, 4, 8), (4, 5, 6)
WORKLOADS = ("all-reduce", "ddp", "fsdp2", "pipeline")
RESULTS = Path(__file__).parents[1] / ".cache" / "diagnose_matrix"
_LIMIT = 40.0  # seconds for a verdict
_HEALTHY_STEPS = 1000
_NOISE = f"import time; end = time.monotonic() + {_LIMIT + 10}\nwhile time.monotonic() < end: pass"
_LIMITS = Limits(hang_seconds=4.0, window_seconds=4.0)


@dataclass(frozen=True)
class Case(ProcessJob):
    """One job with one fault; `fault` "none" has none."""

    fault: str
    workload: str
    num_ranks: int
    seed: int
    hooks: str = "compiled"
    module: ClassVar[str] = "bench.diagnose_matrix"

    @property
    def path(self) -> Path:
        """Where the verdict is kept."""
        name = f"{self.fault}-{self.workload}-{self.num_ranks}-{self.seed}-{self.hooks}"
        return RESULTS / f"{name}.json"

    @property
    def depends_on(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)

    @property
    def arguments(self) -> list[str]:
        """As `_one` reads them."""
        return ["case", self.fault, self.workload, str(self.num_ranks), str(self.seed), self.hooks]

    @property
    def rank(self) -> int:
        """The rank with the fault."""
        return zlib.crc32(repr(self).encode()) % self.num_ranks

    @property
    def truth(self) -> tuple[str, tuple[int, ...]]:
        """The kind and the ranks that a verdict must have."""
        if self.fault == "none":
            return "healthy", ()
        if self.fault == "link":
            last = self.num_ranks - 1
            if self.num_ranks == 2 or (self.workload == "pipeline" and self.rank == 0):
                return "S2", (0, 1)
            if self.workload == "pipeline" and self.rank == last:
                return "S2", (last - 1, last)
        return TRUTH[self.fault], (self.rank,)


def cases(hooks: str = "compiled") -> Iterator[Case]:
    """All jobs."""
    for seed in SEEDS:
        for num_ranks in RANKS:
            for workload in WORKLOADS:
                for fault in (*TRUTH, "none"):
                    yield Case(fault, workload, num_ranks, seed, hooks)


def play(case: Case, folder: Path, *, verbose: bool = False) -> dict[str, Any]:
    """Run a job, watch it, and return the first verdict that is not healthy, or the last."""
    from trimtab.diagnose.simulate import Job
    from trimtab.diagnose.watch import Watch
    from trimtab.errors import FormatError

    frames = folder / "frames"
    Job(data=2).run(num_steps=20).verdict()  # whatever is compiled or loaded at first use
    children = [_forked(case, rank, folder) for rank in range(case.num_ranks)]
    noise = [subprocess.Popen([sys.executable, "-S", "-c", _NOISE])] if case.fault == "none" else []
    watch, begun, begun_fault = Watch(frames, limits=_LIMITS), time.monotonic(), None
    found: dict[str, Any] = {}
    try:
        while time.monotonic() - begun < _LIMIT:
            time.sleep(0.5)
            if begun_fault is None and (folder / "fault").exists():
                begun_fault = time.monotonic()
            start = time.perf_counter()
            try:
                view = watch.look()
            except (FormatError, OSError):
                continue
            verdict = view.verdict
            found = {
                "kind": verdict.kind,
                "ranks": list(verdict.ranks),
                "confidence": verdict.confidence,
                "summary": verdict.summary,
                "evidence": list(verdict.evidence),
                "not_seen": list(verdict.not_seen),
                "look_ms": round(1e3 * (time.perf_counter() - start), 2),
                "seconds_after_fault": None if begun_fault is None else round(time.monotonic() - begun_fault, 2),
            }
            if verbose:
                print(f"{time.monotonic() - begun:5.1f} s {verdict!r}", flush=True)
            if not verdict.is_healthy:
                found["false_alarm"] = begun_fault is None
                break
            if view.ended:
                break
    finally:
        for one in noise:
            one.kill()
            one.wait()
        for pid in children:
            _end(pid)
    return {**found, "truth": case.truth[0], "true_ranks": list(case.truth[1]), "rank": case.rank}


def _forked(case: Case, rank: int, folder: Path) -> int:
    """Start one rank: a copy of this process, which has imported PyTorch and started no threads."""
    import torch
    import torch.distributed.fsdp  # noqa: F401

    import bench.diagnose_job  # noqa: F401

    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(case.num_ranks), "GLOO_SOCKET_IFNAME": "lo"}
        with open(folder / f"log-{rank}", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        _rank(case, rank, folder)
        code = 0
    except BaseException:  # noqa: BLE001 (whatever it is, it ends this copy)
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _rank(case: Case, rank: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from bench.diagnose_job import train
    from trimtab.diagnose import Probe
    from trimtab.diagnose.injection import Injection

    torch.set_num_threads(1)
    rng = random.Random(case.seed)
    fault = None
    if case.fault != "none":
        at = rng.randrange(60, 90)
        seconds = {"slow": 0.25}.get(case.fault, _LIMIT)
        fault = Injection(case.fault, case.rank, at, None, seconds, 1e6)
        happen = fault._happen

        def noted() -> None:
            (folder / "fault").touch()
            happen()

        fault._happen = noted  # the time counts from here
    with Probe(folder / "frames", hooks=case.hooks) as probe:  # pyrefly: ignore
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting",
            rank=rank,
            world_size=case.num_ranks,
            timeout=timedelta(seconds=_LIMIT + 5),
        )
        if fault is not None:
            fault.start()
        train(
            case.workload,
            num_steps=_HEALTHY_STEPS if case.fault == "none" else 100_000,
            probe=probe,
            fault=fault,
            seed=case.seed,
        )


def _end(pid: int) -> None:
    for number in (signal.SIGCONT, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


def is_right(result: dict[str, Any]) -> bool:
    """Whether a verdict has the kind and exactly the ranks of the fault."""
    return not result.get("false_alarm") and (result.get("kind"), result.get("ranks")) == (
        result["truth"], result["true_ranks"],
    )  # fmt: skip


def record(command: str, name: str, hooks: str) -> Record:
    """Return the record of all results that are there."""
    found = [(case, case.found()) for case in cases(hooks)]
    done = [(case, result) for case, result in found if result is not None]
    metrics: dict[str, Metric] = {}
    faults = [(case, result) for case, result in done if case.fault != "none"]
    quiet = [(case, result) for case, result in done if case.fault == "none"]
    metrics["all/jobs"] = exact(len(faults), "jobs")
    metrics["all/right"] = exact(sum(is_right(result) for _, result in faults), "jobs")
    metrics["healthy/jobs"] = exact(len(quiet), "jobs")
    metrics["healthy/false alarms"] = exact(sum(result.get("kind") != "healthy" for _, result in quiet), "jobs")
    for kind in TRUTH:
        for workload in WORKLOADS:
            some = [result for case, result in faults if (case.fault, case.workload) == (kind, workload)]
            if some:
                metrics[f"{kind}/{workload}/jobs"] = exact(len(some), "jobs")
                metrics[f"{kind}/{workload}/right"] = exact(sum(map(is_right, some)), "jobs")
    times = [result["seconds_after_fault"] for _, result in faults if is_right(result)]
    if times:
        metrics["all/seconds from fault to verdict"] = harness.metric([t for t in times if t is not None], "s")
        metrics["all/seconds from fault to verdict, longest"] = exact(max(t for t in times if t is not None), "s")
        metrics["all/look"] = harness.metric([result["look_ms"] for _, result in faults], "ms")
    share = metrics["all/right"].value / max(len(faults), 1)
    hangs = [result["seconds_after_fault"] for _, result in faults if result["truth"] == "H1" and is_right(result)]
    slowest = max((seconds for seconds in hangs if seconds is not None), default=float("nan"))
    patience = (_LIMITS.hang_seconds or 0) + 2
    bars = [
        Bar(
            name="seconds from a hang to its verdict, the longest",
            required=f"<= {patience:g}",
            reached=slowest,
            passed=slowest <= patience,
        ),
        Bar(name="right kind and exact ranks", required=">= 0.99", reached=share, passed=share >= 0.99),
        Bar(
            name="false alarms under CPU noise",
            required="0",
            reached=metrics["healthy/false alarms"].value,
            passed=not metrics["healthy/false alarms"].value,
        ),
    ]
    return Record.new(
        name,
        command=command,
        packages=("torch",),
        data={
            "ranks": list(RANKS), "seeds": list(SEEDS), "workloads": list(WORKLOADS), "hooks": hooks,
            "missing": len(found) - len(done),
            "wrong": [f"{case.path.stem}: {r.get('kind')} {r.get('ranks')}" for case, r in faults if not is_right(r)],
        },
        inference={
            "hang_seconds": _LIMITS.hang_seconds, "window_seconds": _LIMITS.window_seconds, "looks_a_second": 2,
            "healthy_steps": _HEALTHY_STEPS,
        },
        metrics=metrics,
        bars=bars,
    )  # fmt: skip


def main() -> None:
    """Run jobs, one job, or write the record."""
    parser = argparse.ArgumentParser(prog="python -m bench.diagnose_matrix", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("record", "run", "case"), default="record")
    parser.add_argument("case", nargs="*", help="of one case: fault, workload, ranks, seed, hooks")
    parser.add_argument("--limit", type=int, help="how many missing jobs to run at most")
    parser.add_argument("--ranks", type=int, nargs="*", default=RANKS, help="run only jobs of so many ranks")
    parser.add_argument("--hooks", default="compiled", choices=("compiled", "python"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.what == "run":
        run_missing([case for case in cases(options.hooks) if case.num_ranks in options.ranks], options.limit)
    elif options.what == "case":
        fault, workload, num_ranks, seed, hooks = options.case
        with tempfile.TemporaryDirectory(prefix="trimtab-diagnose-", dir="/dev/shm") as folder:
            case = Case(fault, workload, int(num_ranks), int(seed), hooks)
            result = play(case, Path(folder), verbose=options.out is None)
            if options.out is None:
                for rank in range(case.num_ranks):
                    text = (Path(folder) / f"log-{rank}").read_text()[-1500:]
                    print(f"--- rank {rank}\n{text}" if text else f"--- rank {rank}: silent")
        if options.out:
            options.out.write_text(json.dumps(result))
        else:
            print(json.dumps(result, indent=1))
    else:
        run_missing(list(cases(options.hooks)), options.limit)
        name = "diagnose_matrix" if options.hooks == "compiled" else "diagnose_matrix_python"
        found = record(f"python -m bench.diagnose_matrix --hooks {options.hooks}", name, options.hooks)
        print(found.save(options.out or harness.results_folder() / f"{name}.json"))


if __name__ == "__main__":
    main()
