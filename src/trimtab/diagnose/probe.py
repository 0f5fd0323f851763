"""Probe: records what a rank of a torch.distributed job does, for `trimtab diagnose` to read. CCL-D, PPoPP 2026.

    with tt.diagnose.Probe():
        train()

Or without a change to the program: ``trimtab diagnose run -- torchrun ... train.py`` sets `TRIMTAB_DIAGNOSE` to a
folder and puts the folder `autoload` in front of `PYTHONPATH`, whose ``sitecustomize.py`` starts a probe in every
Python process that comes to import `torch` (`autoload/sitecustomize.py`).

A probe never harms the job: where it cannot go on (no room for its file, an error in a hook), it warns once, takes
itself out, and says so in its file.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import threading
import time
import traceback
import types
import warnings
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trimtab import waiting
from trimtab.diagnose.frame import Writer, frame_path
from trimtab.diagnose.host import write_stack
from trimtab.errors import UsageError

if TYPE_CHECKING:
    from trimtab.diagnose.hooks import Hooks, Places

FOLDER = "TRIMTAB_DIAGNOSE"
HOOKS = "TRIMTAB_DIAGNOSE_HOOKS"
_JOB = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "MASTER_ADDR", "MASTER_PORT")
_STILL_SECONDS = 2.0
_active: Probe | None = None


def default_folder() -> Path:
    """Return where the ranks of this job keep their files: `TRIMTAB_DIAGNOSE`, or a folder in memory, by job."""
    if folder := os.environ.get(FOLDER):
        return Path(folder)
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(os.environ.get("TMPDIR", "/tmp"))
    return base / f"trimtab-{os.getuid()}" / f"job-{job_number():08x}"


def job_number() -> int:
    """Return a hash of what names this job in the environment, alike on all of its ranks; 0 where nothing does."""
    found = [f"{name}={os.environ[name]}" for name in _JOB if name in os.environ]
    return zlib.crc32("\n".join(found).encode()) if found else 0


class Probe:
    """Watches the operations of torch.distributed in this process.

    It may be started before or after the process group is made. In a process that makes none, it does nothing.

    Args:
        folder: Where the ranks of the job keep their files (`default_folder`).
        hooks: "python", "compiled", or "auto" (`hooks.attach`); by default what `TRIMTAB_DIAGNOSE_HOOKS` says, or auto.
        capacity: How many operations the ring holds, a power of two.
        max_communicators: How many process groups and directions between ranks are told apart.

    Raises:
        UsageError: an impossible setting, or a probe is running already.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        hooks: Literal["auto", "python", "compiled"] | None = None,
        capacity: int = 4096,
        max_communicators: int = 256,
    ) -> None:
        kind = hooks or os.environ.get(HOOKS) or "auto"
        if kind not in ("auto", "python", "compiled"):
            raise UsageError(f"hooks {kind!r}: expected auto, python or compiled")
        if not 1 <= capacity <= 1 << 22 or capacity & (capacity - 1):
            raise UsageError(f"capacity {capacity}: expected a power of two up to {1 << 22}")
        self.folder = Path(folder) if folder is not None else default_folder()
        self._kind = kind
        self._options = {"capacity": capacity, "max_communicators": max_communicators}
        self._writer: Writer | None = None
        self._hooks: Hooks | None = None
        self._places: Places | None = None
        self._undo: list[Callable[[], None]] = []
        self._still: threading.Event | None = None
        self._step = 0  # unknown, as long as neither the program nor an optimizer says otherwise
        self._counts_steps = True
        self._is_on = False

    @property
    def is_on(self) -> bool:
        """Whether it is started, and has not given up."""
        return self._is_on

    @property
    def hooks(self) -> str | None:
        """Which hooks are in place: "python", "compiled", or None before there is a process group."""
        if self._hooks is None:
            return None
        return "python" if type(self._hooks).__name__ == "PythonHooks" else "compiled"

    def __enter__(self) -> Probe:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.stop(finished=kind is None)

    def start(self) -> Probe:
        """Begin to watch.

        Raises:
            UsageError: another probe is running in this process.
        """
        global _active
        if _active is not None and _active._is_on:
            raise UsageError("a probe is running in this process already")
        _active = self
        self._is_on = True
        self._guarded(self._start)
        return self

    def stop(self, *, finished: bool = True) -> None:
        """Leave the job as it was. `finished` says that the rank came to its end; else it ended by an error."""
        global _active
        if _active is self:
            _active = None
        if not self._is_on:
            return
        self._is_on = False
        self._detach()
        if self._writer is not None:
            self._writer.close(finished=finished)

    def step(self, number: int | None = None) -> None:
        """Announce that a training step begins: `number` must be alike on all ranks; by default they are counted.

        Without it, the steps of optimizers are counted, and what comes before the first has none.
        """
        self._counts_steps = False
        self._announce(self._step + 1 if number is None else number)

    def pause(self, seconds: float) -> None:
        """Announce that this rank will be away for up to so long, to write a checkpoint for instance; 0 ends it."""
        if self._writer is not None and self._is_on:
            self._writer.pause(seconds)

    # ---- starting

    def _start(self) -> None:
        from torch import distributed as dist
        from torch.optim.optimizer import register_optimizer_step_post_hook
        from torch.utils.data import dataloader

        from trimtab.diagnose import hooks

        if not dist.is_available():
            self._is_on = False
            return
        handle = register_optimizer_step_post_hook(self._after_step)
        self._undo.append(handle.remove)
        self._undo.append(hooks.replace_method(dataloader._BaseDataLoaderIter, "__next__", _counted))
        c10d = dist.distributed_c10d
        self._undo.append(hooks.replace(c10d.init_process_group, self._after_group))
        self._undo.append(hooks.replace_attribute(c10d, "_new_group_with_tag", self._after_group))
        self._undo.append(hooks.replace(c10d.split_group, self._after_group))
        ranks = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
        if dist.is_initialized():
            self._attach()
        elif all(text.isdigit() for text in ranks) and multiprocessing.parent_process() is None:
            self._open(int(ranks[0]), int(ranks[1]))  # a rank that never comes to its first operation is seen, too
        os.register_at_fork(after_in_child=_forked_later(self))

    def _open(self, rank: int, world_size: int) -> Writer:
        writer = Writer(
            frame_path(self.folder, rank), rank=rank, world_size=world_size, job=job_number(), **self._options
        )
        self._writer = writer
        self._undo.append(waiting.listen(writer.waiting))
        writer.step(self._step)
        self._still = threading.Event()
        threading.Thread(
            target=_watch, args=(weakref.ref(writer), self.folder, rank, self._still), name="trimtab-probe", daemon=True
        ).start()
        return writer

    def _attach(self) -> None:
        """Begin to record: there is a process group."""
        from torch import distributed as dist

        from trimtab.diagnose import hooks, injection

        rank, world_size = dist.get_rank(), dist.get_world_size()
        writer = self._writer
        if writer is None or (writer.rank, writer.world_size) != (rank, world_size):
            writer = self._open(rank, world_size)
        if self._hooks is None:
            self._places = hooks.Places(writer)
            with injection.aside():  # faults come before what is recorded
                self._hooks = hooks.attach(writer, self._places, self._kind, self._give_up)
            writer.step(self._step)  # to compiled hooks, which count for themselves
        for group in list(dist.distributed_c10d._world.pg_map):
            self._hooks.watch(group)

    def _after_group(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if self._is_on:
                self._guarded(self._attach)
            return result

        return made

    # ---- steps

    def _after_step(self, *_: Any) -> None:
        if self._counts_steps:
            self._announce(self._step + 1)

    def _announce(self, number: int) -> None:
        self._step = number
        if self._writer is not None and self._is_on:
            self._writer.step(number)

    # ---- ending

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 (the job comes first)
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """Take everything out and go on without: the job comes first."""
        if not self._is_on:
            return
        self._is_on = False
        warnings.warn(f"trimtab's probe gave up and records nothing more: {error!r}", RuntimeWarning, stacklevel=2)
        try:
            self._detach()
            if self._writer is not None:
                self._writer.close(finished=False, blind=True)
        except Exception:  # noqa: BLE001 (what is left of it does no harm)
            self._undo.clear()

    def _detach(self) -> None:
        if self._still is not None:
            self._still.set()
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None
        while self._undo:
            self._undo.pop()()

    def _forked(self) -> None:
        """In a child process: the file stays the parent's."""
        global _active
        if not self._is_on:
            return
        if _active is self:
            _active = None
        self._is_on = False
        self._detach()
        self._writer = None


def start_by_environment() -> None:
    """Start a probe that lasts as long as the process; `autoload` calls this when `torch` is imported."""
    probe = Probe()
    probe.start()
    atexit.register(lambda: probe.stop(finished=not hasattr(sys, "last_value")))


def _forked_later(probe: Probe) -> Callable[[], None]:
    """What a forked child does to a probe, if that is still there."""
    reference = weakref.ref(probe)

    def forked() -> None:
        found = reference()
        if found is not None:
            found._forked()

    return forked


def _counted(original: Callable[..., Any]) -> Callable[..., Any]:
    """Count the time in a stock DataLoader as waiting for data."""

    def following(loader: Any) -> Any:
        with waiting.for_data():
            return original(loader)

    return following


def _watch(reference: weakref.ref[Writer], folder: Path, rank: int, ended: threading.Event) -> None:
    """Note where the program is while no operation is entered or left: in a thread of its own."""
    thread = threading.main_thread().ident
    seen, since, was_still = -1, time.monotonic(), False
    while not ended.wait(1.0):
        writer = reference()
        if writer is None:
            return
        try:
            now = writer.progress()
            if now != seen:
                seen, since = now, time.monotonic()
                if was_still:
                    write_stack(folder, rank, ())
                was_still = False
            elif time.monotonic() - since >= _STILL_SECONDS:
                frame = sys._current_frames().get(thread or 0)
                write_stack(folder, rank, _functions(frame))
                was_still = True
        except (OSError, ValueError):
            return  # no room, or the file has been let go of: only this evidence is missing
        del writer


def _functions(frame: types.FrameType | None) -> tuple[str, ...]:
    found = traceback.extract_stack(frame) if frame is not None else []
    return tuple(f"{os.path.basename(one.filename)}:{one.lineno} {one.name}" for one in found)[-32:]
