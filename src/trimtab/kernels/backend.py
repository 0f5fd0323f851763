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
"""Best first."""

_forced: ContextVar[str | None] = ContextVar("trimtab_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force the kernels that run inside the ``with`` block: ``"numba"`` or ``"ref"``.

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
    forced = _forced.get() or os.environ.get("TRIMTAB_BACKEND")
    if forced:
        module, reason = _try_load(operation, _checked(forced))
        if module is None:
            raise BackendUnavailable(f"back end {forced!r} cannot run kernel {operation!r}: {reason}")
        return module
    return _best(operation)


@cache
def _best(operation: str) -> ModuleType:
    for name in BACKENDS:
        module, reason = _try_load(operation, name)
        if module is not None:
            return module
        warnings.warn(f"kernel {operation!r} runs without its {name} back end: {reason}", stacklevel=3)
    raise BackendUnavailable(f"no back end can run kernel {operation!r}")


@cache
def _try_load(operation: str, name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"trimtab.kernels.{operation}.{name}"), ""
    except ImportError as error:
        return None, str(error)


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise UsageError(f"unknown back end {name!r}; expected one of {', '.join(BACKENDS)}")
    return name
