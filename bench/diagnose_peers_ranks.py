"""Gloo jobs with a fault each, whose ranks leave Flight Recorder dumps: those of `bench.diagnose_peers`.

    python -m bench.diagnose_peers_ranks run --limit 10    # jobs that are missing
    python -m bench.diagnose_peers_ranks job sleep ddp 4 0 --out dumps.json

Ranks are forked from a process that has imported PyTorch, meet in a file, and talk over the loopback. None has a
probe. Some seconds after the fault, all that can are asked for their dumps. One that was killed or stopped
leaves none; one that gloo aborts, as it does where sizes do not match, leaves its own at that moment.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import signal
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from bench.jobs import ProcessJob, run_missing
from trimtab.diagnose.injection import TRUTH

CACHE = Path(__file__).parents[1] / ".cache" / "diagnose_peers"
WORKLOADS, RANKS, SEEDS = ("all-reduce", "ddp"), (2, 4), (0, 1)
HANG_SECONDS = 4.0
"""A wait that is a hang."""
ASKED_AFTER = 7.0
"""Seconds from the fault, or from the start of a training without one, to the dumps."""
_LIMIT = 60.0
_LINK, _SLOW = 1e6, 0.25  # bytes a second; seconds a step


@dataclass(frozen=True)
class GlooJob(ProcessJob):
    """One job, or its dumps; `fault` "none" has none."""

    fault: str
    workload: str
    num_ranks: int
    seed: int
    module: ClassVar[str] = "bench.diagnose_peers_ranks"

    @property
    def path(self) -> Path:
        """Where the dumps are kept."""
        return CACHE / f"{self.fault}-{self.workload}-{self.num_ranks}-{self.seed}.json"

    @property
    def depends_on(self) -> dict[str, Any]:
        """All of it, and when it is asked."""
        return asdict(self) | {"asked_after": ASKED_AFTER}

    @property
    def arguments(self) -> list[str]:
        """As `main` reads them."""
        return ["job", self.fault, self.workload, str(self.num_ranks), str(self.seed)]

    @property
    def rank(self) -> int:
        """The rank with the fault."""
        return zlib.crc32(repr(self).encode()) % self.num_ranks

    @property
    def truth(self) -> tuple[str, frozenset[int]]:
        """The kind and the ranks that a verdict must have: the only link between two ranks is the fault of both."""
        if self.fault == "none":
            return "healthy", frozenset()
        both = self.fault == "link" and self.num_ranks == 2
        return TRUTH[self.fault], frozenset((0, 1) if both else (self.rank,))


def gloo_jobs() -> Iterator[GlooJob]:
    """All jobs."""
    for seed in SEEDS:
        for num_ranks in RANKS:
            for workload in WORKLOADS:
                for fault in (*TRUTH, "none"):
                    yield GlooJob(fault, workload, num_ranks, seed)


def play(job: GlooJob, folder: Path) -> dict[str, Any]:
    """Run a job; return the dumps by rank, and when each was made, on the host's clock, ns."""
    children = [_forked(job, rank, folder) for rank in range(job.num_ranks)]
    try:
        _wait(lambda: len(list(folder.glob("ready-*"))) == job.num_ranks, _LIMIT)
        _wait(lambda: job.fault == "none" or (folder / "fault").exists(), _LIMIT)
        time.sleep(ASKED_AFTER)
        (folder / "ask").touch()
        can = [rank for rank in range(job.num_ranks) if rank != job.rank or job.fault not in ("kill", "stop")]
        _wait(lambda: all((folder / f"rank_{rank}.json").exists() for rank in can), _LIMIT / 4)
    except TimeoutError as error:
        logs = "\n".join(path.read_text()[-1000:] for path in sorted(folder.glob("log-*")))
        raise RuntimeError(f"{job}: {error}\n{logs}") from None
    finally:
        for pid in children:
            for number in (signal.SIGCONT, signal.SIGKILL):
                os.kill(pid, number)  # a zombie, at worst
            os.waitpid(pid, 0)
    return {str(rank): json.loads((folder / f"rank_{rank}.json").read_text()) for rank in can}


def _wait(is_there: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_there():
        if time.monotonic() > end:
            raise TimeoutError("ranks did not begin, had no fault, or left no dumps")
        time.sleep(0.05)


def _forked(job: GlooJob, rank: int, folder: Path) -> int:
    """Start one rank: a copy of this process, which has imported PyTorch and started no threads."""
    import torch
    import torch._dynamo  # DDP would import it in every rank

    import bench.diagnose_job  # noqa: F401

    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(job.num_ranks), "GLOO_SOCKET_IFNAME": "lo"}
        with open(folder / f"log-{rank}", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        torch.set_num_threads(1)
        threading.Thread(target=_leave_when_asked, args=(folder, rank), daemon=True).start()
        last_words = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _leave(folder, rank) or os._exit(1))
        ctypes.CDLL(None).signal(signal.SIGABRT, last_words)  # Python's own handlers would wait for the main thread
        _rank(job, rank, folder)
    except BaseException:  # noqa: BLE001 (whatever it is, this copy stays until it has left its dump)
        import traceback

        traceback.print_exc()
        time.sleep(_LIMIT)
    finally:
        os._exit(1)


def _rank(job: GlooJob, rank: int, folder: Path) -> None:
    import torch.distributed as dist

    from bench.diagnose_job import train
    from trimtab.diagnose import Probe
    from trimtab.diagnose.injection import Injection

    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=job.num_ranks,
        timeout=timedelta(seconds=_LIMIT),
    )
    fault = None
    if job.fault != "none":
        at_step = random.Random(job.seed).randrange(20, 40)
        seconds = _SLOW if job.fault == "slow" else _LIMIT
        fault = Injection(job.fault, job.rank, at_step, None, seconds, _LINK)
        happen = fault._happen

        def noted() -> None:
            (folder / "fault").touch()
            happen()

        fault._happen = noted
        fault.start()
    (folder / f"ready-{rank}").touch()
    train(job.workload, num_steps=100_000, probe=Probe(folder), fault=fault, seed=job.seed)  # the probe is not started


def _leave_when_asked(folder: Path, rank: int) -> None:
    while not (folder / "ask").exists():
        time.sleep(0.05)
    _leave(folder, rank)


def _leave(folder: Path, rank: int) -> None:
    """Write the dump."""
    import torch

    taken = time.time_ns()
    dump = json.loads(torch._C._distributed_c10d._dump_fr_trace_json(True, False))
    path = folder / f"rank_{rank}.part"
    path.write_text(json.dumps({"dump": dump, "taken": taken}))
    path.rename(path.with_suffix(".json"))


def main() -> None:
    """Run jobs, or one."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.diagnose_peers_ranks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("run", "job"))
    parser.add_argument("job", nargs="*", help="of one job: fault, workload, ranks, seed")
    parser.add_argument("--limit", type=int, help="how many missing jobs to run at most")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.what == "run":
        run_missing(list(gloo_jobs()), options.limit)
        return
    fault, workload, num_ranks, seed = options.job
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-", dir="/dev/shm") as folder:
        found = play(GlooJob(fault, workload, int(num_ranks), int(seed)), Path(folder))
    text = json.dumps(found)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
