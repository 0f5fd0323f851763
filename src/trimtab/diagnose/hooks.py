"""Hooks: how the probe learns of the operations of torch.distributed in a running job.

Two ways, chosen by `attach`:

- **python** puts a function of ours into the decorator that every collective of `torch.distributed` has, so that it is
  seen however it was imported, and the function that users hold stays the same object, which `batch_isend_irecv` and
  `torch.compile` rely on. Sends, receives and coalesced operations are seen at the methods of `ProcessGroup`.
  Asynchronous ones end when the program waits for them. What does not come through Python is not seen one by one: the
  operations of DDP's reducer are counted as one a backward pass, functional collectives (DTensor, compiled graphs) not
  at all; the file says so (`Writer.unseen`).
- **compiled** puts a back end of ours before the one of each process group (`native`), through which everything goes,
  and which sees when each operation ends. It takes a C++ compiler, once.

PyTorch 2.13 has hooks of its own for NCCL only, and these tell of completed operations alone, which no hang has.
"""

from __future__ import annotations

import os
import sys
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from trimtab.diagnose.frame import (
    ASYNC,
    NO_PEER,
    UNSEEN_DEVICE,
    UNSEEN_FUNCTIONAL,
    UNSEEN_REDUCER,
    Call,
    Writer,
    signature,
)

_MAX_CACHED = 8192
_INSIDE = (str(Path(torch.__file__).parent) + os.sep, str(Path(__file__).parent) + os.sep)
"""Where code lies that is nobody's call site."""

_COLLECTIVES: dict[str, tuple[str, int, str]] = {
    "all_reduce": ("all_reduce", 0, "tensor"),
    "all_reduce_coalesced": ("coalesced", 0, "tensors"),
    "broadcast": ("broadcast", 0, "tensor"),
    "reduce": ("reduce", 0, "tensor"),
    "all_gather": ("all_gather", 1, "tensor"),
    "all_gather_single": ("all_gather", 1, "input_tensor"),
    "all_gather_coalesced": ("coalesced", 1, "input_tensor_list"),
    "gather": ("gather", 0, "tensor"),
    "scatter": ("scatter", 0, "tensor"),
    "reduce_scatter": ("reduce_scatter", 0, "output"),
    "reduce_scatter_single": ("reduce_scatter", 0, "output"),
    "all_to_all": ("all_to_all", 1, "input_tensor_list"),
    "all_to_all_single": ("all_to_all", 1, "input"),
    "barrier": ("barrier", -1, ""),
}
"""Functions of `torch.distributed`: the operation, and the tensor that all members must pass alike."""
_OLD = {"all_gather_single": "all_gather_into_tensor", "reduce_scatter_single": "reduce_scatter_tensor"}
"""What they were called before PyTorch 2.12."""
PARAMETERS: dict[str, tuple[str, ...]] = {
    "all_reduce": ("tensor", "op", "group", "async_op"),
    "all_reduce_coalesced": ("tensors", "op", "group", "async_op"),
    "broadcast": ("tensor", "src", "group", "async_op", "group_src"),
    "reduce": ("tensor", "dst", "op", "group", "async_op", "group_dst"),
    "all_gather": ("tensor_list", "tensor", "group", "async_op"),
    "all_gather_single": ("output_tensor", "input_tensor", "group", "async_op"),
    "all_gather_coalesced": ("output_tensor_lists", "input_tensor_list", "group", "async_op"),
    "gather": ("tensor", "gather_list", "dst", "group", "async_op", "group_dst"),
    "scatter": ("tensor", "scatter_list", "src", "group", "async_op", "group_src"),
    "reduce_scatter": ("output", "input_list", "op", "group", "async_op"),
    "reduce_scatter_single": ("output", "input", "op", "group", "async_op"),
    "all_to_all": ("output_tensor_list", "input_tensor_list", "group", "async_op"),
    "all_to_all_single": ("output", "input", "output_split_sizes", "input_split_sizes", "group", "async_op"),
    "barrier": ("group", "async_op", "device_ids"),
}
"""Their parameters, in order."""
_KEYED = frozenset(("op", "src", "dst", "group", "async_op", "group_src", "group_dst"))
"""Parameters on which the record depends, beside the tensor."""
_COALESCED = (
    "allreduce_coalesced",
    "allgather_coalesced",
    "all_gather_single_coalesced",
    "allgather_into_tensor_coalesced",
    "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced",
)


class Hooks(Protocol):
    """What watches the operations of this process."""

    def watch(self, group: Any) -> None:
        """Take notice of a process group, which may be known already."""
        ...

    def remove(self) -> None:
        """Let go of everything; what is under way is not followed any more."""
        ...


def attach(writer: Writer, places: Places, kind: str, give_up: Callable[[BaseException], None]) -> Hooks:
    """Watch the operations of this process from now on.

    `kind` is "python", "compiled", or "auto": compiled where it was compiled before, and nothing has been recorded.
    `give_up` is called, once, with what went wrong in a hook; the hook's operation goes on without it.

    Raises:
        ImportError: compiled hooks cannot be had.
    """
    if kind != "python":
        from trimtab.diagnose import native

        if kind == "compiled" or native.is_built():
            return native.NativeHooks(writer, places, give_up)
    return PythonHooks(writer, places, give_up)


class Places:
    """Communicators of the writer, by process group and direction, and call sites."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self._groups: dict[Any, tuple[int, list[int]]] = {}
        self._edges: dict[tuple[Any, int, bool], tuple[int, int]] = {}
        self._is_inside: dict[str, bool] = {}

    def of(self, group: Any) -> tuple[int, list[int]]:
        """Return a process group's communicator (-1: there is no room for it) and ranks."""
        found = self._groups.get(group)
        if found is None:
            ranks = dist.get_process_group_ranks(group)
            found = (self.writer.communicator(f"group {group.group_name}", ranks), ranks)
            self._groups[group] = found
        return found

    def edge(self, group: Any, peer: int, *, is_send: bool) -> tuple[int, int]:
        """Return the communicator of one direction between this rank and `peer` of the group, and the peer's rank."""
        key = (group, peer, is_send)
        found = self._edges.get(key)
        if found is None:
            ranks = self.of(group)[1]
            own, other = ranks[group.rank()], ranks[peer]
            ends = (own, other) if is_send else (other, own)
            name = f"group {group.group_name}: {ends[0]}>{ends[1]}"
            found = (self.writer.communicator(name, ends, p2p=True), other)
            self._edges[key] = found
        return found

    def caller(self, frame: types.FrameType | None) -> types.FrameType | None:
        """Return the innermost frame, from this one outwards, that is neither PyTorch's nor ours."""
        while frame is not None and self.is_inside(frame.f_code.co_filename):
            frame = frame.f_back
        return frame

    def is_inside(self, filename: str) -> bool:
        """Whether a file is PyTorch's or ours."""
        found = self._is_inside.get(filename)
        if found is None:
            found = filename.startswith(("<frozen", *_INSIDE)) or filename.endswith("typing_extensions.py")
            self._is_inside[filename] = found
        return found

    def site(self, frame: types.FrameType | None) -> int:
        """Return the key of a place in the program, such as ``train.py:81 step``."""
        if frame is None:
            return 0
        return self.writer.text(site_text(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))


def site_text(filename: str, line: int, function: str) -> str:
    """Return a place in the program in words; alike on all hosts, wherever the program lies there."""
    return f"{os.path.basename(filename)}:{line} {function}"


class PythonHooks:
    """Hooks in Python. `remove` leaves everything as it was."""

    def __init__(self, writer: Writer, places: Places, give_up: Callable[[BaseException], None]) -> None:
        self._writer, self._places, self._give_up = writer, places, give_up
        self._undo: list[Callable[[], None]] = []
        self._pending: dict[int, tuple[Call, int, Any]] = {}
        self._calls: dict[Any, Call | None] = {}
        self._quick: list[dict[Any, Call | None]] = []  # by function
        self._kept: list[Any] = []  # whose addresses stand in keys
        self._prepared: list[Any] = []  # modules of DDP between forward and backward
        self._waits = False
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def watch(self, group: Any) -> None:
        """Have the group in the file before its first operation."""
        self._places.of(group)

    def remove(self) -> None:
        """Take the hooks out."""
        while self._undo:
            self._undo.pop()()
        self._pending.clear()
        self._calls.clear()
        self._quick.clear()
        self._kept.clear()

    def _install(self) -> None:
        for name, (op, place, tensor) in _COLLECTIVES.items():
            parameters = PARAMETERS[name]
            function = getattr(c10d, name, None) or getattr(c10d, _OLD.get(name, ""), None)
            if function is not None:
                self._undo.append(
                    replace(
                        function, lambda original, a=(op, place, tensor, parameters): self._collective(original, *a)
                    )
                )
        for name, is_send in (("send", True), ("recv", False)):
            self._undo.append(replace_method(dist.ProcessGroup, name, lambda o, s=is_send: self._point_to_point(o, s)))
        self._undo.append(replace_method(dist.ProcessGroup, "recv_anysource", self._unknown))
        for name in (*_COALESCED, "monitored_barrier"):
            if hasattr(dist.ProcessGroup, name):
                self._undo.append(replace_method(dist.ProcessGroup, name, lambda o, n=name: self._method(o, n)))
        reducing = torch.nn.parallel.DistributedDataParallel
        if hasattr(reducing, "_post_forward"):
            self._undo.append(replace_method(reducing, "_post_forward", self._forward))
            self._undo.append(replace_attribute(torch.autograd, "backward", self._backward))
        if "torch.distributed.tensor" in sys.modules:
            self._writer.unseen(UNSEEN_FUNCTIONAL)

    # ---- collectives

    def _collective(
        self, original: Callable[..., Any], op: str, place: int, tensor_name: str, parameters: tuple[str, ...]
    ) -> Callable[..., Any]:
        getframe, collecting = sys._getframe, c10d._world.pg_coalesce_state
        calls: dict[Any, Call | None] = {}
        self._quick.append(calls)
        writer = self._writer
        enter, leave = writer.enter, writer.leave
        after = place + 1

        def hooked(*args: Any, **kwargs: Any) -> Any:
            if collecting:
                return original(*args, **kwargs)
            try:
                key, frame = None, getframe(2)  # beyond the decorator
                try:
                    if place < 0:
                        key = (id(frame.f_code), frame.f_lasti, *args, *kwargs.values())
                        call = calls[key]
                    elif kwargs or len(args) > after:
                        tensor = args[place]
                        key = (
                            id(frame.f_code), frame.f_lasti, tensor.dtype, tensor.numel(),
                            *args[after:], *kwargs.values(),
                        )  # fmt: skip
                        call = calls[key]
                    else:
                        tensor = args[place]
                        key = (id(frame.f_code), frame.f_lasti, tensor.dtype, tensor.numel())
                        call = calls[key]
                except (LookupError, AttributeError, TypeError):  # new, or lists of tensors, or tensors by name
                    call = self._find(calls, key, frame, op, tensor_name, parameters, args, kwargs)
                number = enter(call) if call is not None else 0
            except Exception as error:  # noqa: BLE001 (the job comes first)
                result = original(*args, **kwargs)  # which raises, if it is the arguments that are wrong
                self._give_up(error)
                return result
            if call is None:
                return original(*args, **kwargs)
            try:
                result = original(*args, **kwargs)
            except BaseException:
                writer.failed(number)
                raise
            if result is None:
                leave(call, number)
            else:
                self._follow(result, call, number)
            return result

        return hooked

    def _find(
        self,
        quick: dict[Any, Call | None],
        key: Any,
        frame: types.FrameType,
        op: str,
        tensor_name: str,
        parameters: tuple[str, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Call | None:
        """Find what is recorded for a call that is new, or comes through other functions of PyTorch."""
        values = dict(zip(parameters, args, strict=False)) | kwargs
        tensor = values.get(tensor_name)
        tensors = [] if tensor is None else [tensor] if isinstance(tensor, torch.Tensor) else list(tensor)
        sizes = tuple(t.numel() for t in tensors)
        dtype = tensors[0].dtype if tensors else None
        caller = self._places.caller(frame)
        if caller is not frame:
            key = None  # the same place in PyTorch stands for many in the program
        wide = (
            id(caller.f_code) if caller else 0, caller.f_lasti if caller else 0, dtype, sizes, op,
            *[(name, values[name]) for name in sorted(_KEYED & values.keys())],
        )  # fmt: skip
        if wide in self._calls:
            call = self._calls[wide]
        else:
            call = self._call(op, tensors, sizes, values, caller)
            self._keep(wide, call, caller)
        try:
            if key is not None and caller is not None:
                if len(quick) > _MAX_CACHED:
                    quick.clear()
                quick[key] = call
                self._kept.append(caller.f_code)
        except TypeError:
            pass  # lists cannot be kept
        return call

    def _keep(self, key: Any, call: Call | None, caller: types.FrameType | None) -> None:
        if len(self._calls) > _MAX_CACHED:
            for calls in (self._calls, *self._quick):
                calls.clear()
            self._kept.clear()
        self._calls[key] = call
        self._kept.append(caller.f_code if caller else None)

    def _call(
        self,
        op: str,
        tensors: list[torch.Tensor],
        sizes: tuple[int, ...],
        values: dict[str, Any],
        caller: types.FrameType | None,
    ) -> Call | None:
        group = values.get("group")
        if group is dist.GroupMember.NON_GROUP_MEMBER:
            return None
        group = group or dist.group.WORLD
        if group is None or group.rank() < 0:
            return None
        index, ranks = self._places.of(group)
        if index < 0:
            self._writer.lost()
            return None
        if tensors and tensors[0].device.type != "cpu":
            self._writer.unseen(UNSEEN_DEVICE)
        root = NO_PEER
        for name in ("src", "dst"):
            if values.get(f"group_{name}") is not None:
                root = ranks[values[f"group_{name}"]]
            elif values.get(name) is not None:
                root = values[name]
        if op in ("gather", "scatter", "reduce", "broadcast") and root == NO_PEER:
            root = 0  # the default of gather and scatter
        reduce_op = ""
        if op in ("all_reduce", "reduce", "reduce_scatter") or (op == "coalesced" and "op" in values):
            reduce_op = reduce_name(values.get("op", dist.ReduceOp.SUM))
        others = values.get("tensor_list")
        is_uneven = op == "all_gather" and others is not None and len({t.numel() for t in others}) > 1
        return self._writer.prepare(
            index,
            op,
            signature(
                op,
                dtype=dtype_name(tensors[0].dtype) if tensors else "",
                num_elements=0 if is_uneven else sum(sizes),
                root=root if root != NO_PEER else -1,
                reduce_op=reduce_op,
            ),
            site=self._places.site(caller),
            num_bytes=sum(t.numel() * t.element_size() for t in tensors),
            peer=root,
            flags=ASYNC if values.get("async_op") else 0,
        )

    # ---- methods of ProcessGroup

    def _point_to_point(self, original: Callable[..., Any], is_send: bool) -> Callable[..., Any]:
        calls, getframe, places = self._calls, sys._getframe, self._places
        op = "send" if is_send else "recv"

        def hooked(group: Any, tensors: Any, peer: int, tag: int = 0) -> Any:
            try:
                frame = places.caller(getframe(1))
                tensor = tensors[0]
                code, at = (frame.f_code, frame.f_lasti) if frame else (None, 0)
                key = (id(code), at, tensor.dtype, tensor.numel(), op, group, peer)
                call = calls.get(key, 0)
                if call == 0:
                    index, other = places.edge(group, peer, is_send=is_send)
                    if index < 0:
                        self._writer.lost()
                    call = None if index < 0 else self._writer.prepare(
                        index,
                        op,
                        signature(op, dtype=dtype_name(tensor.dtype), num_elements=tensor.numel()),
                        site=places.site(frame),
                        num_bytes=tensor.numel() * tensor.element_size(),
                        peer=other,
                        flags=ASYNC,
                    )  # fmt: skip
                    self._keep(key, call, frame)
            except Exception as error:  # noqa: BLE001 (the job comes first)
                result = original(group, tensors, peer, tag)
                self._give_up(error)
                return result
            return self._watched(call or None, original, group, tensors, peer, tag)  # pyrefly: ignore

        return hooked

    def _method(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        op = "barrier" if name == "monitored_barrier" else "coalesced"

        def hooked(group: Any, *args: Any, **kwargs: Any) -> Any:
            call = None
            try:
                index, _ = self._places.of(group)
                if index < 0:
                    self._writer.lost()
                else:
                    tensors = [t for t in args[0] if isinstance(t, torch.Tensor)] if op == "coalesced" and args else []
                    size = sum(t.numel() for t in tensors)
                    call = self._writer.prepare(
                        index,
                        op,
                        signature(name if op == "coalesced" else op, num_elements=size),
                        site=self._places.site(self._places.caller(sys._getframe(1))),
                        num_bytes=sum(t.numel() * t.element_size() for t in tensors),
                        flags=0 if op == "barrier" else ASYNC,
                    )
            except Exception as error:  # noqa: BLE001 (the job comes first)
                self._give_up(error)
            return self._watched(call, original, group, *args, **kwargs)

        return hooked

    def _unknown(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(group: Any, *args: Any, **kwargs: Any) -> Any:
            self._writer.lost()  # nobody knows yet who will send
            return original(group, *args, **kwargs)

        return hooked

    def _watched(self, call: Call | None, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if call is None:
            return original(*args, **kwargs)
        number = self._writer.enter(call)
        try:
            result = original(*args, **kwargs)
        except BaseException:
            self._writer.failed(number)
            raise
        if result is None:
            self._writer.leave(call, number)
        else:
            self._follow(result, call, number)
        return result

    # ---- the end of asynchronous operations

    def _follow(self, work: Any, call: Call, number: int) -> None:
        """Note when the program waits for a work, and when it is done; one that is dropped is taken to be done."""
        if not self._waits:
            # only now: programs without such operations need not pay for it
            self._waits = True
            self._undo.append(replace_method(dist.Work, "wait", self._wait))
        key, leave = id(work), self._writer.leave
        pending = self._pending

        def dropped(_: Any) -> None:
            if pending.pop(key, None) is not None:
                leave(call, number)

        pending[key] = (call, number, weakref.ref(work, dropped))

    def _wait(self, original: Callable[..., Any]) -> Callable[..., Any]:
        pending, writer = self._pending, self._writer

        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            entry = pending.pop(id(work), None)
            if entry is None:
                return original(work, *args, **kwargs)
            call, number, _ = entry
            writer.awaited(number)
            try:
                result = original(work, *args, **kwargs)
            except BaseException:
                writer.failed(number)
                raise
            writer.leave(call, number)
            return result

        return wait

    # ---- DDP's reducer

    def _forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def post_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled() and module.require_backward_grad_sync:
                self._prepared.append(module)
            return original(module, *args, **kwargs)

        return post_forward

    def _backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(*args: Any, **kwargs: Any) -> Any:
            modules, self._prepared[:] = list(self._prepared), []
            entered = []
            try:
                for module in modules:
                    call = self._reduction(module, sys._getframe(1))
                    if call is not None:
                        entered.append((call, self._writer.enter(call)))
            except Exception as error:  # noqa: BLE001 (the job comes first)
                self._give_up(error)
                entered = []
            try:
                result = original(*args, **kwargs)
            except BaseException:
                for _, number in entered:
                    self._writer.failed(number)
                raise
            for call, number in entered:
                self._writer.leave(call, number)
            return result

        return backward

    def _reduction(self, module: Any, frame: types.FrameType) -> Call | None:
        """All operations of one module in one backward pass."""
        self._writer.unseen(UNSEEN_REDUCER)
        caller = self._places.caller(frame)
        key = (id(caller.f_code) if caller else 0, caller.f_lasti if caller else 0, "DDP", module)
        if key not in self._calls:
            index, _ = self._places.of(module.process_group)
            shared = [p for p in module.parameters() if p.requires_grad]
            self._keep(
                key,
                None if index < 0 else self._writer.prepare(
                    index,
                    "all_reduce",
                    signature("all_reduce", dtype="DDP", num_elements=sum(p.numel() for p in shared)),
                    site=self._places.site(caller),
                    num_bytes=sum(p.numel() * p.element_size() for p in shared),
                ),
                caller,
            )  # fmt: skip
        return self._calls[key]


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def reduce_name(op: Any) -> str:
    """Return ``SUM`` for ``ReduceOp.SUM``, whichever of PyTorch's classes it comes in."""
    name = getattr(op, "name", None)
    return name if isinstance(name, str) else str(op).rpartition(".")[2].strip(">").partition(":")[0]


def replace(
    function: Callable[..., Any], make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[[], None]:
    """Have a function of `torch.distributed` call ``make(original)``; return what undoes it.

    Decorated functions keep their identity: what the decorator calls is replaced. Others are replaced by name.
    """
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        original = cell.cell_contents
        if name == "func" and isinstance(original, types.FunctionType):
            cell.cell_contents = make(original)

            def restore(cell: Any = cell, original: Any = original) -> None:
                cell.cell_contents = original

            return restore
    undo = [
        replace_attribute(module, function.__name__, make)
        for module in (c10d, dist)
        if getattr(module, function.__name__, None) is function
    ]

    def restore_all() -> None:
        for one in undo:
            one()

    return restore_all


def replace_method(
    owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[[], None]:
    """Replace a method of a class by ``make(original)``; return what undoes it."""
    is_own = name in vars(owner)
    raw, original = vars(owner).get(name), getattr(owner, name)
    ours = make(original)
    setattr(owner, name, ours)

    def restore() -> None:
        if vars(owner).get(name) is not ours:
            return  # somebody has come after us, and keeps what he found
        if is_own:
            setattr(owner, name, raw)
        else:
            delattr(owner, name)

    return restore


def replace_attribute(
    owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[[], None]:
    """Replace a function of a module by ``make(original)``; return what undoes it."""
    original = getattr(owner, name)
    ours = make(original)
    setattr(owner, name, ours)

    def restore() -> None:
        if getattr(owner, name) is ours:
            setattr(owner, name, original)

    return restore
