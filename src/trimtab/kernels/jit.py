"""How kernels are compiled: no GIL, no fast-math, cached on disk where a cache can be written.

Numba does not notice edits in other files, so whatever a cached kernel calls stands in the kernel's own file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def kernel(*signatures: Any) -> Callable[[Callable], Callable]:
    """Compile a function for these argument types when its module is imported, from the disk cache if possible."""
    options: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    types = list(signatures) or None

    def compile_kernel(function: Callable) -> Callable:
        try:
            return numba.njit(types, cache=True, **options)(function)
        except RuntimeError as error:  # neither __pycache__ nor the user's cache folder can be written
            if "cannot cache function" not in str(error):
                raise
            return numba.njit(types, **options)(function)

    return compile_kernel
