"""Kernels: arrays in, arrays out.

One folder an operation. ``ref.py`` is the specification, in NumPy and obviously right; ``numba.py`` is the fast
twin for the CPU. Twins have the same functions with the same signatures, and their results are identical to the
last byte: a conformance test runs them side by side. Where there is a ``triton.py``, it does the same on torch tensors,
on the device where they are.
"""

from trimtab.kernels.backend import backend, load, load_for, operations
from trimtab.kernels.threads import for_each, num_threads, threads

__all__ = ["backend", "for_each", "load", "load_for", "num_threads", "operations", "threads"]
