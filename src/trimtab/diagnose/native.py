"""The compiled hooks: a back end of ours before the one of each process group, which sees everything that it does.

`native.cpp` is compiled once a machine, in about a minute, into the folder of PyTorch's extensions. It is bound to the
versions of PyTorch and Python, and compiled again for others.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trimtab.diagnose.frame import OPS, UNSEEN_DEVICE, Writer, signature
from trimtab.diagnose.hooks import Places, dtype_name

_SOURCE = Path(__file__).with_name("native.cpp")
_TYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
    "Bool": torch.bool,
}  # fmt: skip
_REDUCE = ("SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR", "PREMUL_SUM")
_loaded: Any = None
_wrapped: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""Our back end of each process group that has had one."""


def build_folder() -> Path:
    """Return where the extension for these versions lies, or would."""
    base = os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "torch_extensions"
    )
    versions = f"{torch.__version__}|{sys.version}|{_SOURCE.read_text()}"
    return Path(base) / f"trimtab_probe_{hashlib.sha256(versions.encode()).hexdigest()[:16]}"


def is_built() -> bool:
    """Whether it has been compiled for these versions."""
    return (build_folder() / "trimtab_probe.so").exists()


def build(*, verbose: bool = False) -> Path:
    """Compile it unless it has been; return the folder.

    Raises:
        ImportError: there is no compiler, or it fails.
    """
    folder = build_folder()
    if not is_built():
        from torch.utils import cpp_extension

        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "building", "w") as turn:  # one at a time; a lock that ends with its process
                fcntl.flock(turn, fcntl.LOCK_EX)
                if not is_built():
                    (folder / "lock").unlink(missing_ok=True)  # of PyTorch: left behind by one that was killed
                    cpp_extension.load(
                        name="trimtab_probe",
                        sources=[str(_SOURCE)],
                        extra_cflags=["-O2", "-DUSE_DISTRIBUTED"],
                        build_directory=str(folder),
                        verbose=verbose,
                        is_python_module=False,
                    )
        except (RuntimeError, OSError) as error:
            raise ImportError(f"the compiled hooks cannot be built: {error}") from error
    return folder


def extension() -> Any:
    """Return the compiled module.

    Raises:
        ImportError: it cannot be built, or not be loaded.
    """
    global _loaded
    if _loaded is None:
        path = build() / "trimtab_probe.so"
        spec = importlib.util.spec_from_file_location("trimtab_probe", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} cannot be loaded")
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        _loaded = found
    return _loaded


class NativeHooks:
    """Hooks in the back ends of process groups on the CPU; groups of other devices keep theirs."""

    def __init__(
        self, writer: Writer, places: Places, give_up: Callable[[BaseException], None], *, raw_frames: bool = True
    ) -> None:
        module = extension()
        self._module, self._places, self._give_up = module, places, give_up
        self._groups: dict[str, Any] = {}
        self._undo: list[Callable[[], None]] = []
        asked = _Asked(writer, places, self._groups, give_up)
        recorder = None

        def step(number: int) -> None:
            recorder.set_step(number & 0xFFFFFFFF)  # pyrefly: ignore

        def waited(microseconds: int) -> None:
            recorder.add_waited(microseconds)  # pyrefly: ignore

        layout = writer.hand_over(step, waited)
        recorder = module.Recorder(path=str(writer.path), **layout, raw_frames=raw_frames, asked=asked)
        self._recorder, self._writer = recorder, writer

    def watch(self, group: Any) -> None:
        """Put our back end before that of a group, unless it is there."""
        if group.group_name in self._groups:
            return
        cpu = torch.device("cpu")
        if cpu not in group._device_types:
            self._writer.unseen(UNSEEN_DEVICE)
            return
        unused = dist.ProcessGroup.BackendType.UCC
        inner = group._get_backend(cpu)
        index, ranks = self._places.of(group)
        self._groups[group.group_name] = group
        if group in _wrapped:  # a type of back end cannot be registered twice
            ours = _wrapped[group]
            self._module.rearm(ours, self._recorder, index)
        else:
            ours = _wrapped[group] = self._module.wrap(inner, self._recorder, index, group.group_name, ranks)
        group._register_backend(cpu, unused, ours)
        kind = _kind_of(inner)

        def restore() -> None:
            group._register_backend(cpu, kind, inner)  # which finds the one that is registered under its kind

        self._undo.append(restore)

    def remove(self) -> None:
        """Put the back ends in their places again; what is under way ends unseen."""
        self._recorder.stop()
        while self._undo:
            self._undo.pop()()


def _kind_of(backend: Any) -> Any:
    """The type under which a back end is registered."""
    kinds = dist.ProcessGroup.BackendType
    return getattr(kinds, backend.name().upper(), kinds.CUSTOM)


class _Asked:
    """Answers what the compiled hooks ask once for each new thing."""

    def __init__(
        self, writer: Writer, places: Places, groups: dict[str, Any], give_up: Callable[[BaseException], None]
    ) -> None:
        self._writer, self._places, self._groups, self._give_up = writer, places, groups, give_up

    def signature(self, op: int, scalar: str, num_elements: int, root: int, reduce_op: int) -> int:
        dtype = "" if not scalar else dtype_name(_TYPES[scalar]) if scalar in _TYPES else scalar.lower()
        reduce = "" if reduce_op < 0 else _REDUCE[reduce_op] if reduce_op < len(_REDUCE) else str(reduce_op)
        return signature(OPS[op], dtype=dtype, num_elements=num_elements, root=root, reduce_op=reduce)

    def site(self) -> int:
        return self._places.site(self._places.caller(sys._getframe(1)) if sys._getframe().f_back else None)

    def edge(self, group: str, peer: int, is_send: bool) -> int:
        return self._places.edge(self._groups[group], peer, is_send=is_send)[0]

    def lost(self) -> None:
        self._writer.lost()

    def failed(self, what: str) -> None:
        self._give_up(RuntimeError(what))
