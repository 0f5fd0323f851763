"""Faults on purpose: makes one rank of a running job hang, fail or slow down, to see what a diagnosis says of it.

    with tt.diagnose.inject("sleep", rank=2, at_step=5, seconds=60):
        train()

All ranks run the same lines; the one that is named has the fault. Or without a change to the program:
``TRIMTAB_INJECT=sleep:2:5:60`` (kind, rank, step, seconds) where a probe is started by the environment, or
``sleep:2:op40`` to count operations instead of steps.

A link is slowed down by the kernel's own pacing of the rank's connections (`SO_MAX_PACING_RATE`), which takes neither
privileges nor other hosts. A stopped process is continued by a helper process after `seconds`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

from trimtab.errors import UsageError

FaultKind = Literal["sleep", "stop", "busy", "skip", "other", "shape", "slow", "link", "kill"]
TRUTH: dict[str, str] = {
    "sleep": "H1",
    "stop": "H1",
    "busy": "H1",
    "kill": "H1",
    "skip": "H2",
    "other": "H2",
    "shape": "H2",
    "slow": "S1",
    "link": "S2",
}
"""The class of each fault."""
VARIABLE = "TRIMTAB_INJECT"
_SECONDS = {"sleep": 60.0, "stop": 60.0, "busy": 60.0, "slow": 0.05}
_PACING = getattr(socket, "SO_MAX_PACING_RATE", 47)
_UNLIMITED = 0xFFFFFFFF
_active: list[Injection] = []


def inject(
    fault: FaultKind,
    *,
    rank: int,
    at_step: int | None = None,
    at_op: int | None = None,
    seconds: float | None = None,
    bytes_per_second: float = 5e6,
) -> Injection:
    """Return a context in which `rank` has a fault.

    - sleep, busy, stop: it stands still for `seconds` (60), asleep, in a loop, or stopped by a signal;
    - kill: it is killed;
    - skip, other, shape: it leaves out its next operation, calls another one in its place, or with half the elements;
      under DDP, whose operations come from C++, it leaves out those of one backward pass, or calls one before them;
    - slow: it computes `seconds` (0.05) longer in every step (with `at_op`, before every operation) from there on;
    - link: its connections carry no more than `bytes_per_second` each, either way, from there on.

    Args:
        fault: What happens.
        rank: To which rank of the job.
        at_step: When so many steps are over: steps of optimizers, or calls of `Injection.step`.
        at_op: Before this operation of the rank, counted from 1: those that come through Python.
        seconds: For how long.
        bytes_per_second: For "link".

    Raises:
        UsageError: an unknown fault, or neither or both of `at_step` and `at_op`.
    """
    return Injection(fault, rank, at_step, at_op, seconds, bytes_per_second)


def from_text(text: str) -> Injection:
    """Return the fault that ``kind:rank:step[:seconds]`` describes; ``op40`` in place of the step counts operations.

    Raises:
        UsageError: it describes none.
    """
    match = re.fullmatch(r"(\w+):(\d+):(op)?(\d+)(?::(\d+(?:\.\d+)?))?", text.strip())
    if match is None or match[1] not in get_args(FaultKind):
        raise UsageError(f"{VARIABLE}={text!r}: expected kind:rank:step[:seconds], kinds {', '.join(TRUTH)}")
    kind, rank, op, number, seconds = match.groups()
    at = {"at_op": int(number)} if op else {"at_step": int(number)}
    return Injection(kind, int(rank), at.get("at_step"), at.get("at_op"), float(seconds) if seconds else None)


def start_by_environment() -> None:
    """Start the fault that `TRIMTAB_INJECT` describes, for as long as the process lasts."""
    if text := os.environ.get(VARIABLE):
        from_text(text).start()


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Have faults come before whatever is hooked in inside the ``with`` block."""
    for one in reversed(_active):
        one._remove()
    try:
        yield
    finally:
        for one in _active:
            one._install()


class Injection:
    """A fault, from `inject`."""

    def __init__(
        self,
        fault: str,
        rank: int,
        at_step: int | None,
        at_op: int | None,
        seconds: float | None = None,
        bytes_per_second: float = 5e6,
    ) -> None:
        if fault not in get_args(FaultKind):
            raise UsageError(f"fault {fault!r}: expected one of {', '.join(TRUTH)}")
        if (at_step is None) == (at_op is None):
            raise UsageError("expected one of at_step and at_op")
        self.fault, self.rank, self.at_step, self.at_op = fault, rank, at_step, at_op
        self.seconds = _SECONDS.get(fault, 0.0) if seconds is None else seconds
        self.bytes_per_second = bytes_per_second
        self.has_happened = False
        """Whether it has begun, in this process."""
        self._num_steps = self._num_ops = 0
        self._next = ""  # what is to happen to the next operation
        self._undo: list[Callable[[], None]] = []
        self._unsynced: list[Any] = []
        self._busy = threading.local()

    def __enter__(self) -> Injection:
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def start(self) -> Injection:
        """Lie in wait."""
        self._install()
        _active.append(self)
        return self

    def stop(self) -> None:
        """End it. A link gets its speed back; what has been left out stays left out."""
        if self in _active:
            _active.remove(self)
        self._remove()
        if self.fault == "link" and self.has_happened:
            _pace(_UNLIMITED)

    def step(self) -> None:
        """Say that a step is over, in programs without an optimizer."""
        self._num_steps += 1
        if self._is_me():
            if self.at_step is not None and self._num_steps >= self.at_step:
                self._happen()
        elif self.fault == "link" and not self.has_happened:
            self.has_happened = _pace_towards(self.rank, round(self.bytes_per_second))

    # ---- in the job

    def _install(self) -> None:
        import torch
        from torch import distributed as dist
        from torch.nn.modules.module import register_module_forward_pre_hook
        from torch.optim.optimizer import register_optimizer_step_post_hook

        from trimtab.diagnose import hooks

        c10d = dist.distributed_c10d
        self._undo.append(register_optimizer_step_post_hook(lambda *_: self.step()).remove)
        for name, parameters in hooks.PARAMETERS.items():
            function = getattr(c10d, name, None)
            if function is not None:
                self._undo.append(
                    hooks.replace(function, lambda original, a=(name, parameters): self._intercept(original, *a))
                )
        for name in ("send", "recv"):
            parameters = ("group", "tensors", "peer", "tag")
            self._undo.append(
                hooks.replace_method(
                    dist.ProcessGroup, name, lambda original, a=(name, parameters): self._intercept(original, *a)
                )
            )
        if self.fault in ("skip", "other", "shape"):
            parallel = torch.nn.parallel.DistributedDataParallel
            self._undo.append(
                register_module_forward_pre_hook(
                    lambda module, _: self._before_forward(module) if isinstance(module, parallel) else None
                ).remove
            )

    def _remove(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _is_me(self) -> bool:
        from torch import distributed as dist

        return (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "-1"))) == self.rank

    def _intercept(self, original: Callable[..., Any], name: str, parameters: tuple[str, ...]) -> Callable[..., Any]:
        def intercepted(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._busy, "on", False) or not self._is_me():
                return original(*args, **kwargs)
            self._num_ops += 1
            self._busy.on = True
            try:
                if self.at_op is not None and self._num_ops >= self.at_op:
                    self._happen()
                if not self._next:
                    return original(*args, **kwargs)
                what, self._next = self._next, ""
                values = dict(zip(parameters, args, strict=False)) | kwargs
                if what == "skip":
                    return _nothing(name, values)
                if what == "other":
                    return _other(name, values)
                return original(**_halved(values)) if name not in ("send", "recv") else _half_sent(original, values)
            finally:
                self._busy.on = False

        return intercepted

    def _happen(self) -> None:
        """Do it, or arrange for the next operation."""
        if self.has_happened and self.fault != "slow":
            return
        self.has_happened = True
        if self.fault in ("sleep", "slow"):
            time.sleep(self.seconds)
        elif self.fault == "busy":
            end = time.monotonic() + self.seconds
            while time.monotonic() < end:
                pass
        elif self.fault == "stop":
            _stop(self.seconds)
        elif self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "link":
            _tell_ends(self.rank, _pace(round(self.bytes_per_second)))
        else:
            self._next = self.fault

    def _before_forward(self, module: Any) -> None:
        """Under DDP, the next operation is that of the reducer in the coming backward pass."""
        from torch import distributed as dist

        while self._unsynced:
            self._unsynced.pop().require_backward_grad_sync = True
        if not self._next or not self._is_me():
            return
        what, self._next = self._next, ""
        if what == "skip":
            module.require_backward_grad_sync = False
            self._unsynced.append(module)
            return
        group = module.process_group
        if what == "other":
            _other("all_reduce", {"tensor": _ones(8), "group": group})
        else:
            dist.all_reduce(_ones(3), group=group)


def _ones(num: int) -> Any:
    import torch

    return torch.ones(num)


def _nothing(name: str, values: dict[str, Any]) -> Any:
    """What a call returns that has not been made."""
    import torch
    from torch._C import _distributed_c10d

    if not values.get("async_op") and name not in ("send", "recv"):
        return None
    future: Any = torch.futures.Future()
    future.set_result([])
    return _distributed_c10d._create_work_from_future(future)  # pyrefly: ignore


def _other(name: str, values: dict[str, Any]) -> Any:
    """Call another operation: everybody else's data would come from the next rank."""
    from torch import distributed as dist

    group = values.get("group") or dist.group.WORLD
    if name in ("send", "recv"):
        group = dist.group.WORLD
    ranks = dist.get_process_group_ranks(group)
    tensor = next((values[n] for n in ("tensor", "output_tensor", "output") if n in values), None)
    if name in ("all_reduce", "all_gather_single", "reduce_scatter_single", "reduce_scatter", "barrier"):
        root = ranks[(ranks.index(dist.get_rank()) + 1) % len(ranks)]
        work = dist.broadcast(_ones(8) if tensor is None else tensor, root, group=group, async_op=True)
    else:
        work = dist.all_reduce(_ones(8), group=group, async_op=True)
    if values.get("async_op") or name in ("send", "recv"):
        return work
    return None if work is None else work.wait() and None


def _halved(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a collective with half the elements everywhere."""
    import torch

    def half(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.reshape(-1)[: math.ceil(value.numel() / 2)] if value.numel() > 1 else value.new_ones(3)
        if isinstance(value, list):
            return [half(one) for one in value]
        return value

    found = {name: half(value) for name, value in values.items()}
    for large, small in (("output_tensor", "input_tensor"), ("input", "output")):
        if isinstance(values.get(large), torch.Tensor) and isinstance(values.get(small), torch.Tensor):
            times = values[large].numel() // max(values[small].numel(), 1)
            found[large] = values[large].new_ones(times * found[small].numel())
    return found


def _half_sent(original: Callable[..., Any], values: dict[str, Any]) -> Any:
    tensors = _halved({"tensors": list(values["tensors"])})["tensors"]
    return original(values["group"], tensors, values["peer"], values.get("tag", 0))


def _stop(seconds: float) -> None:
    """Stop this process; another one continues it."""
    code = f"import os, signal, time; time.sleep({seconds!r}); os.kill({os.getpid()}, signal.SIGCONT)"
    subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def _pace(bytes_per_second: int, only: frozenset[str] | None = None) -> list[str]:
    """Limit what TCP connections of this process send, all or those to some ends; return their own ends."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(entry))) as one:
            if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
                continue
            if only is None or str(one.getpeername()[:2]) in only:  # connected ones have a peer, others raise
                one.setsockopt(socket.SOL_SOCKET, _PACING, struct.pack("<I", min(bytes_per_second, _UNLIMITED)))
                found.append(str(one.getsockname()[:2]))
    return found


def _tell_ends(rank: int, ends: list[str]) -> None:
    """Tell the other ranks which ends of connections are ours."""
    from torch import distributed as dist

    if dist.is_initialized():
        dist.distributed_c10d._get_default_store().set(f"trimtab-link-{rank}", "|".join(ends))


def _pace_towards(rank: int, bytes_per_second: int) -> bool:
    """Limit what we send to a rank, once it has told its ends; return whether it has."""
    from torch import distributed as dist

    store, key = dist.distributed_c10d._get_default_store(), f"trimtab-link-{rank}"
    if not store.check([key]):
        return False
    _pace(bytes_per_second, frozenset(store.get(key).decode().split("|")))
    return True
