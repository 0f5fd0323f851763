"""Which twin of a kernel runs: the fastest that this machine has, or the one that the caller forces."""

from __future__ import annotations

import importlib
import os
import pkgutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType

from trimtab.errors import BackendUnavailable, UsageError

BACKENDS = ("numba", "ref")
"""For NumPy arrays, best first."""

DEVICE_BACKEND = "triton"
"""For torch tensors, on the device where they are."""

_forced: ContextVar[str | None] = ContextVar("trimtab_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force the kernels that run inside the ``with`` block: ``"numba"``, ``"ref"`` or ``"triton"``.

    ``"triton"`` serves torch tensors alone, on CUDA or, with TRITON_INTERPRET=1, on the CPU; NumPy arrays are left to
    the best of the others. The others serve CUDA tensors too, which are then copied to the host.

    Raises:
        UsageError: there is no back end of that name.

    >>> with backend("ref"):
    ...     load("bitplanes").__name__
    'trimtab.kernels.bitplanes.ref'
    """
    token = _forced.set(_checked(name))
    try:
        yield
    finally:
        _forced.reset(token)


def operations() -> list[str]:
    """Return the names of all kernel operations."""
    package = importlib.import_module("trimtab.kernels")
    return sorted(found.name for found in pkgutil.iter_modules(package.__path__) if found.ispkg)


def load(operation: str) -> ModuleType:
    """Return the module that runs `operation` here.

    The choice: ``with backend(...)``, else the environment variable TRIMTAB_BACKEND, else the best that works.
    A better back end that does not work is named once in a warning, with the reason.

    Raises:
        BackendUnavailable: the forced back end cannot run here.
    """
    forced = _forced_name()
    if forced and forced != DEVICE_BACKEND:
        return _must_load(operation, forced)
    return _best(operation)


def load_for(operation: str, device: str) -> ModuleType | None:
    """Return the Triton twin, if it is to run `operation` on torch tensors of this device type, else None.

    It runs on CUDA unless another back end is forced. Under TRITON_INTERPRET=1 it runs on the CPU where it is forced.
    One that does not work is named once in a warning, with the reason.

    Raises:
        BackendUnavailable: it is forced, and cannot run here.
    """
    forced = _forced_name()
    if forced == DEVICE_BACKEND and (device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
        return _must_load(operation, forced)
    return _on_device(operation) if device == "cuda" and not forced else None


@cache
def _best(operation: str) -> ModuleType:
    for name in BACKENDS:
        module, reason = _try_load(operation, name)
        if module is not None:
            return module
        warnings.warn(f"kernel {operation!r} runs without its {name} back end: {reason}", stacklevel=3)
    raise BackendUnavailable(f"no back end can run kernel {operation!r}")


@cache
def _on_device(operation: str) -> ModuleType | None:
    module, reason = _try_load(operation, DEVICE_BACKEND)
    if module is None:
        warnings.warn(f"CUDA tensors are copied to the host for kernel {operation!r}: {reason}", stacklevel=3)
    return module


def _must_load(operation: str, name: str) -> ModuleType:
    module, reason = _try_load(operation, name)
    if module is None:
        raise BackendUnavailable(f"back end {name!r} cannot run kernel {operation!r}: {reason}")
    return module


@cache
def _try_load(operation: str, name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"trimtab.kernels.{operation}.{name}"), ""
    except ImportError as error:
        return None, str(error)


def _forced_name() -> str | None:
    name = _forced.get() or os.environ.get("TRIMTAB_BACKEND")
    return _checked(name) if name else None


def _checked(name: str) -> str:
    names = (*BACKENDS, DEVICE_BACKEND)
    if name not in names:
        raise UsageError(f"unknown back end {name!r}; expected one of {', '.join(names)}")
    return name
