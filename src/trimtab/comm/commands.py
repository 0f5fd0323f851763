"""One command a rank, run side by side: what they print, how they end, and what their links carry meanwhile."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import msgspec

from trimtab.comm.counters import Traffic
from trimtab.comm.namespaces import Links, Loopback
from trimtab.errors import CommandFailed

_KEPT_BYTES = 4 << 20  # of what a rank prints, the newest
_TICK_SECONDS = 0.1
_RATE_SECONDS = 0.5  # the stretch of time of which the busiest is reported
_KILL_SECONDS = 5.0  # between asking a process to end and ending it

Listen = Callable[[int, str, bytes], None]
"""Called with a rank, ``stdout`` or ``stderr``, and a piece of what it printed: whole lines, but for the last."""


class RankResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one command of a run ended."""

    rank: int
    node: int
    exit_code: int
    """As `subprocess` tells it: a negative number is the signal that ended it."""
    seconds: float
    stdout: str
    """The last 4 MiB."""
    stderr: str
    """The last 4 MiB."""


class NodeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the link of a node carried during a run."""

    node: int
    bits_per_second: float | None
    """The rate that was asked for; None: as fast as the machine can."""
    sent_bytes: int
    received_bytes: int
    busiest_bits_per_second: float | None
    """The most that it sent in any half second; None in a run shorter than that."""
    seconds: float
    """Until the node's last command ended."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a command on all nodes.

    ``nodes[k].sent_bytes`` is what node k sent over its link; on a shared loopback there is one entry for all nodes.
    """

    nodes: list[NodeResult]
    ranks: list[RankResult]
    seconds: float
    mode: str
    failure: str | None
    """Which command failed first and how, or None."""

    @property
    def ok(self) -> bool:
        return self.failure is None

    @property
    def report(self) -> dict[str, Any]:
        """The result as a plain dict, without what the ranks printed."""
        ranks = [msgspec.structs.asdict(rank) for rank in self.ranks]
        for rank in ranks:
            del rank["stdout"], rank["stderr"]
        return {
            "ok": self.ok,
            "failure": self.failure,
            "mode": self.mode,
            "seconds": self.seconds,
            "nodes": [msgspec.structs.asdict(node) for node in self.nodes],
            "ranks": ranks,
        }

    def check(self) -> Result:
        """Return this result.

        Raises:
            CommandFailed: a command failed; the message has its last lines.
        """
        if self.failure is not None:
            raise CommandFailed(self.failure)
        return self

    def __repr__(self) -> str:
        sent = ", ".join(f"{node.sent_bytes / 1e6:.2f}" for node in self.nodes)
        return f"<Result of {len(self.ranks)} ranks: {self.failure or 'ok'}; {self.seconds:.1f} s, sent {sent} MB>"


class _Stream:
    """A pipe that a command prints to: its newest bytes are kept, and whole lines passed on."""

    def __init__(self, rank: int, name: str, pipe: IO[bytes], listen: Listen | None) -> None:
        self.pipe = pipe
        self._rank, self._name, self._listen = rank, name, listen
        self._kept: deque[bytes] = deque()
        self._num_kept = 0
        self._line = b""

    def read(self) -> bool:
        """Take what there is; return False at the end."""
        try:
            data = os.read(self.pipe.fileno(), 1 << 16)
        except BlockingIOError:
            return True
        self._kept.append(data)
        self._num_kept += len(data)
        while self._num_kept - len(self._kept[0]) >= _KEPT_BYTES:
            self._num_kept -= len(self._kept.popleft())
        if self._listen is not None:
            lines, newline, rest = (self._line + data).rpartition(b"\n")
            if not data or len(rest) > _KEPT_BYTES:
                lines, newline, rest = lines + newline + rest, b"", b""
            self._line = rest
            if lines or newline:
                self._listen(self._rank, self._name, lines + newline)
        return bool(data)

    def text(self) -> str:
        return b"".join(self._kept)[-_KEPT_BYTES:].decode(errors="replace")


class _Command:
    """A command of a run: its process, its two streams, and when it ended."""

    def __init__(self, rank: int, node: int, process: subprocess.Popen, listen: Listen | None) -> None:
        self.rank, self.node, self.process = rank, node, process
        assert process.stdout is not None
        assert process.stderr is not None
        self.streams = {
            "stdout": _Stream(rank, "stdout", process.stdout, listen),
            "stderr": _Stream(rank, "stderr", process.stderr, listen),
        }
        self.seconds: float | None = None

    def signal(self, number: int) -> None:
        """Send a signal to the command and to those of its children that stayed in its session."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


class Run:
    """The commands of one run, read and watched by one thread."""

    def __init__(self, network: Links | Loopback, num_nodes: int, listen: Listen | None) -> None:
        self._network, self._listen = network, listen
        self._links = range(1 if network.interface == "lo" else num_nodes)
        self._selector = selectors.DefaultSelector()
        self.commands: list[_Command] = []
        self._begun = time.monotonic()
        self._before = [network.traffic(link) for link in self._links]
        self._after = self._before
        self._samples = deque([(self._begun, self._before)])
        self._busiest: list[float | None] = [None for _ in self._links]

    def start(
        self,
        rank: int,
        node: int,
        prefix: Sequence[str],
        command: Sequence[str | os.PathLike[str]],
        variables: Mapping[str, str],
    ) -> None:
        # a mount namespace forgets the working folder; without a process namespace, death of this process is theirs
        changed = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "trimtab", os.getcwd()]
        mortal = [] if any(word.startswith("--pid=") for word in prefix) else ["setpriv", "--pdeathsig", "KILL"]
        process = subprocess.Popen(
            [*prefix, *mortal, *changed, *command],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started = _Command(rank, node, process, self._listen)
        self.commands.append(started)
        for stream in started.streams.values():
            os.set_blocking(stream.pipe.fileno(), False)
            self._selector.register(stream.pipe, selectors.EVENT_READ, stream)

    def wait(self, timeout: float | None, patience: float) -> str | None:
        """Wait until all commands have ended; return how the first one failed, or None."""
        failure: str | None = None
        failed: _Command | None = None
        deadline = self._begun + timeout if timeout is not None else float("inf")
        stage = 0  # 1: patience runs, 2: asked to end, 3: killed
        while running := [command for command in self.commands if command.seconds is None]:
            self._listen_for(_TICK_SECONDS)
            self._sample()
            now = time.monotonic()
            for command in running:
                if (code := command.process.poll()) is not None:
                    command.seconds = now - self._begun
                    if code and failed is None and failure is None:
                        failed = command
            if stage == 0 and (failed is not None or now > deadline):
                if failed is None:
                    late = ", ".join(str(command.rank) for command in running)
                    failure = f"after {timeout:g} seconds rank {late} had not ended"
                stage, deadline = 1, now + (patience if failed is not None else 0.0)
            elif stage == 1 and now > deadline:
                self._signal(signal.SIGTERM)
                stage, deadline = 2, now + _KILL_SECONDS
            elif stage == 2 and now > deadline:
                self._signal(signal.SIGKILL)
                stage = 3
        if failed is not None:
            self._listen_for(0.0)
            failure = _describe(failed)
        return failure

    def _listen_for(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            if not key.data.read():
                self._selector.unregister(key.fileobj)

    def _sample(self) -> None:
        now = time.monotonic()
        if now - self._samples[-1][0] < _TICK_SECONDS:
            return
        self._after = [self._network.traffic(link) for link in self._links]
        self._samples.append((now, self._after))
        while len(self._samples) > 1 and now - self._samples[1][0] >= _RATE_SECONDS:
            self._samples.popleft()
        then, earlier = self._samples[0]
        if now - then >= _RATE_SECONDS:
            for link in self._links:
                sent = self._after[link].sent_bytes - earlier[link].sent_bytes
                self._busiest[link] = max(self._busiest[link] or 0.0, 8 * sent / (now - then))

    def _signal(self, number: int) -> None:
        for command in self.commands:
            command.signal(number)

    def kill(self) -> None:
        """End what still runs: first kindly, where the run was interrupted."""
        self._after = [self._network.traffic(link) for link in self._links]
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + _KILL_SECONDS
        for command in self.commands:
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.process.wait(max(0.0, deadline - time.monotonic()))
        self._signal(signal.SIGKILL)
        for command in self.commands:
            command.process.wait()

    def drain(self) -> None:
        """Read what is left in the pipes, and close them."""
        deadline = time.monotonic() + 1.0  # a survivor may hold a pipe open where there is no process namespace
        while self._selector.get_map() and time.monotonic() < deadline:
            self._listen_for(_TICK_SECONDS)
        for command in self.commands:
            for stream in command.streams.values():
                stream.pipe.close()
        self._selector.close()

    def rank_results(self) -> list[RankResult]:
        return [
            RankResult(
                rank=command.rank,
                node=command.node,
                exit_code=command.process.returncode,
                seconds=command.seconds or 0.0,
                stdout=command.streams["stdout"].text(),
                stderr=command.streams["stderr"].text(),
            )
            for command in self.commands
        ]

    def node_results(self, rates: Sequence[float | None]) -> list[NodeResult]:
        results = []
        for link in self._links:
            traffic: Traffic = self._after[link] - self._before[link]
            shared = len(self._links) < len(rates)
            results.append(
                NodeResult(
                    node=link,
                    bits_per_second=sum(filter(None, rates)) or None if shared else rates[link],
                    sent_bytes=traffic.sent_bytes,
                    received_bytes=traffic.received_bytes,
                    busiest_bits_per_second=self._busiest[link],
                    seconds=max(command.seconds or 0.0 for command in self.commands if shared or command.node == link),
                )
            )
        return results


def _describe(command: _Command) -> str:
    code = command.process.returncode
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    last = command.streams["stderr"].text().strip() or command.streams["stdout"].text().strip()
    lines = "\n".join(last.splitlines()[-12:])
    return f"rank {command.rank} on node {command.node} ended with {how}" + (f":\n{lines}" if lines else "")
