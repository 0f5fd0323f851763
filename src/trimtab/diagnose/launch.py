"""Launch: a job started so that its Python processes load the probe, without a change to its program.

The folder `autoload` comes first in ``PYTHONPATH``; its ``sitecustomize.py`` starts a probe where `torch.distributed`
is imported, which keeps its file in the folder that ``TRIMTAB_DIAGNOSE`` names.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from trimtab.errors import UsageError

FOLDER = "TRIMTAB_DIAGNOSE"
AUTOLOAD = Path(__file__).parent / "autoload"
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_PATIENCE = 10.0  # seconds between asking a job to end and ending it


def new_folder() -> Path:
    """Make a folder for the files of one job: in memory where possible, so that no disk can hold up a rank."""
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() and os.access(memory, os.W_OK) else Path.cwd()
    return Path(tempfile.mkdtemp(prefix="trimtab-diagnose-", dir=base))


def environment(folder: Path, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a job whose ranks keep their files in `folder`."""
    found = dict(os.environ if given is None else given)
    found[FOLDER] = str(folder.absolute())
    others = [found["PYTHONPATH"]] if found.get("PYTHONPATH") else []
    found["PYTHONPATH"] = os.pathsep.join([str(AUTOLOAD), *others])
    return found


class Launched:
    """A job in a process group of its own, which runs from the beginning of a ``with`` block on.

    Inside the block, signals that reach this process are passed on to the job, from before it starts.

    Raises:
        UsageError: the command cannot be run, or the folder holds files of another job.
    """

    def __init__(self, command: Sequence[str], folder: Path, *, stdout: IO | None = None) -> None:
        self.was_signalled = False
        """Whether a signal was sent to it."""
        self._command, self._folder, self._stdout = command, folder, stdout
        self._process: subprocess.Popen | None = None
        self._early: list[int] = []
        self._handlers: dict[int, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if next(folder.glob("rank-*.frame"), None) is not None:
            raise UsageError(f"{folder} has the files of another job; choose another folder, or an empty one")

    def __enter__(self) -> Launched:
        numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        self._handlers = {number: signal.signal(number, self._pass_on) for number in numbers}
        try:
            self._process = self._start()
        except BaseException:
            self.__exit__()
            raise
        for number in self._early:
            self.send(number)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _start(self) -> subprocess.Popen:
        # a group in the background that reads a terminal would be stopped
        stdin = subprocess.DEVNULL if sys.stdin is not None and sys.stdin.isatty() else None
        try:
            return subprocess.Popen(
                self._command, env=environment(self._folder), stdin=stdin, stdout=self._stdout, process_group=0
            )
        except OSError as error:
            raise UsageError(f"{self._command[0]} cannot be run: {error.strerror or error}") from None

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self.send(number)

    def wait(self, seconds: float) -> int | None:
        """Wait for at most so long for the end; return its exit status as a shell tells it, None while it runs."""
        assert self._process is not None
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return 128 - status if status < 0 else status

    def send(self, number: int) -> None:
        """Send a signal to the job."""
        self.was_signalled = True
        if self._process is None:
            self._early.append(number)
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def end(self) -> None:
        """Ask the job to end, and end it if it does not."""
        self.send(signal.SIGTERM)
        if self.wait(_PATIENCE) is None:
            self.send(signal.SIGKILL)
            self.wait(_PATIENCE)
